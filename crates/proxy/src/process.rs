//! What all threads of the process have in common: workers, and the control runtime beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_identity::CredentialStore;
use outrigger_model::resource::ResourceKind;
use outrigger_telemetry::Drain;
use outrigger_telemetry::trace::SpanSender;
use tokio::sync::{mpsc, watch};

use crate::access_log;
use crate::bootstrap::{Node, OutboundPolicy};
use crate::descriptors::Descriptors;
use crate::failure::{Failure, FailureKind, Stage};
use crate::intercept::probe::Token;
use crate::loops::Loops;
use crate::memory::Budget;
use crate::metrics;
use crate::recent::Recent;
use crate::runtime::snapshot::Snapshot;

/// What all threads have in common.
pub struct Process {
    pub snapshot: ArcSwap<Snapshot>,
    /// Of `snapshot`; stored after it, so whoever sees a generation also sees its snapshot.
    pub generation: AtomicU64,
    /// Wakes those who wait for configuration.
    pub swapped: watch::Sender<u64>,
    pub credentials: CredentialStore,
    /// Absent: nothing is recorded, contexts are only passed on.
    pub spans: Option<SpanSender>,
    /// Percentage of root spans, instead of what listeners say.
    pub sampling: Option<f64>,
    pub access_log: access_log::Sink,
    /// Requests that have ended.
    pub recent: Recent,
    pub drain: Drain,
    pub demand: Demand,
    pub node: Node,
    pub metrics: Arc<metrics::Totals>,
    pub outbound_policy: OutboundPolicy,
    /// How long a connection waits for configuration.
    pub pending_timeout: Duration,
    /// Keeps calls from coming back.
    pub loops: Arc<Loops>,
    /// Of connections to the application in the client's name.
    pub mark: u32,
    /// By which the sidecar knows itself when it probes interception.
    pub token: Token,
    /// What clients may hold.
    pub memory: Budget,
    /// Of traffic.
    pub descriptors: Descriptors,
}

/// Asks the configuration feed for destinations and hosts.
#[derive(Clone)]
pub struct Demand(mpsc::Sender<(ResourceKind, String)>);

impl Demand {
    /// The two ends; names that do not fit are asked for again by whoever still waits.
    pub fn channel() -> (Self, mpsc::Receiver<(ResourceKind, String)>) {
        let (sender, receiver) = mpsc::channel(1024);
        (Self(sender), receiver)
    }

    /// Asks for a destination; asking twice is harmless.
    pub fn ask(&self, destination: &str) {
        let _ = self.0.try_send((ResourceKind::Destination, destination.to_owned()));
    }

    /// Asks for the addresses of a host name.
    pub fn ask_host(&self, name: &str) {
        let _ = self.0.try_send((ResourceKind::Host, name.to_owned()));
    }
}

impl Process {
    /// Puts a snapshot in force.
    pub fn swap(&self, snapshot: Snapshot) {
        let generation = snapshot.generation;
        self.snapshot.store(Arc::new(snapshot));
        self.generation.store(generation, Ordering::Release);
        self.swapped.send_replace(generation);
    }

    /// Looks until `find` finds something in a snapshot, for at most the pending timeout. `ask` is called each time that
    /// something changed and it was not there.
    ///
    /// # Errors
    /// It did not come in time; `what` is named.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        ask: impl Fn(),
        find: impl Fn(&Snapshot) -> Option<T>,
    ) -> Result<T, Failure> {
        tokio::time::timeout(self.pending_timeout, self.search(ask, find)).await.map_err(|_| {
            let detail = format!(
                "no configuration for {what} after {:?}; see /config_dump and the control plane",
                self.pending_timeout
            );
            Failure::local(Stage::Route, FailureKind::Pending, detail)
        })
    }

    /// As [`Process::wait_for`], for as long as it takes.
    pub async fn search<T>(&self, ask: impl Fn(), find: impl Fn(&Snapshot) -> Option<T>) -> T {
        let mut swapped = self.swapped.subscribe();
        loop {
            swapped.borrow_and_update();
            if let Some(found) = find(&self.snapshot.load()) {
                return found;
            }
            ask();
            // The sender lives in `self`.
            let _ = swapped.changed().await;
        }
    }
}
