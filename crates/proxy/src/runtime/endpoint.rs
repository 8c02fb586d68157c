//! One endpoint: where it is and who it is, with the load and health that outlive any endpoint set.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use outrigger_model::cluster::Labels;
use outrigger_model::endpoint::{Endpoint, Health as Reported, Workload};
use outrigger_model::identity::SpiffeId;
use tokio::time::Instant;

use crate::runtime::ewma::PeakEwma;
use crate::runtime::outlier::Health;
use crate::runtime::reports::Reported as ReportedLoad;
use crate::runtime::turns::Turns;
use crate::runtime::verdict::{Checked, Verdict};

pub use crate::runtime::outlier::Outcome;

/// How the rules of interception are to see a connection to an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Reach {
    /// As the sidecar's own call to somebody else.
    #[default]
    Network,
    /// As the sidecar's connection to its application.
    App,
    /// The same, in the name of the client.
    AppFrom(IpAddr),
}

/// One endpoint of one cluster.
#[derive(Debug, Clone)]
pub struct EndpointState {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is reached.
    pub reach: Reach,
    /// Whom it must prove to be.
    pub identity: Option<SpiffeId>,
    /// It speaks the mesh's mTLS.
    pub mesh_tls: bool,
    /// For metrics labels.
    pub workload: Option<Arc<Workload>>,
    /// The name that requests may call it by.
    pub hostname: Option<Box<str>>,
    /// What parts of its cluster go by.
    pub labels: Option<Arc<Labels>>,
    /// As the control plane sees it.
    pub reported: Reported,
    /// It takes requests: the control plane has it for healthy, and its active checks pass where there are any.
    pub serves: bool,
    /// Since when it takes requests.
    pub since: Instant,
    /// Kept by address when the set changes.
    pub load: Arc<Load>,
}

/// What is kept of an endpoint while its address stays in the cluster.
#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicU32,
    requests: AtomicU64,
    errors: AtomicU64,
    /// Made for the first handshake.
    turns: OnceLock<Box<Turns>>,
    /// Made for the first check.
    checked: OnceLock<Box<Checked>>,
    /// Of a cluster that goes by it.
    latency: PeakEwma,
    /// Made for the first report.
    reported: OnceLock<Box<ReportedLoad>>,
    pub(crate) health: Health,
}

/// A request or connection in flight to an endpoint.
#[must_use = "it counts only while it lives"]
#[derive(Debug)]
pub struct InFlight(Arc<Load>);

impl EndpointState {
    /// As configured, with load and workload taken over from an earlier state of the same address.
    pub fn new(config: &Endpoint, before: Option<&Arc<Self>>) -> Self {
        // Metrics are found by the address of the workload, so an unchanged one keeps its allocation.
        let workload = config.workload.as_ref().map(|workload| {
            let kept = before.and_then(|b| b.workload.as_ref()).filter(|kept| *kept == workload);
            kept.unwrap_or(workload).clone()
        });
        Self {
            address: config.address,
            reach: Reach::Network,
            identity: config.identity.clone(),
            mesh_tls: config.mesh_tls,
            workload,
            hostname: config.hostname.clone(),
            labels: config.labels.as_deref().cloned().map(Arc::new),
            reported: config.health,
            serves: config.health == Reported::Healthy,
            since: before.filter(|b| b.serves).map_or_else(Instant::now, |b| b.since),
            load: before.map(|b| b.load.clone()).unwrap_or_default(),
        }
    }

    /// A destination that no control plane told us: the application, or a passthrough.
    pub fn plain(address: SocketAddr, reach: Reach) -> Self {
        Self {
            address,
            reach,
            identity: None,
            mesh_tls: false,
            workload: None,
            hostname: None,
            labels: None,
            reported: Reported::Healthy,
            serves: true,
            since: Instant::now(),
            load: Arc::default(),
        }
    }

    /// The same, taking requests from now on, or none.
    pub(super) fn turned(&self, serves: bool) -> Self {
        let since = if serves { Instant::now() } else { self.since };
        Self { serves, since, ..self.clone() }
    }

    /// The same place with a load of its own: what is sent there counts for nobody.
    pub fn apart(&self) -> Self {
        Self { load: Arc::default(), ..self.clone() }
    }

    /// The turns of TLS handshakes with it.
    pub fn turns(&self) -> &Turns {
        self.load.turns.get_or_init(Box::default)
    }

    /// Begins a request or connection.
    pub fn begin(&self) -> InFlight {
        self.load.in_flight.fetch_add(1, Relaxed);
        self.load.requests.fetch_add(1, Relaxed);
        InFlight(self.load.clone())
    }

    /// Requests and connections in flight.
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight.load(Relaxed)
    }

    /// Requests since the endpoint is known, and failed ones among them.
    pub fn totals(&self) -> (u64, u64) {
        (self.load.requests.load(Relaxed), self.load.errors.load(Relaxed))
    }

    /// Counts an outcome.
    pub(crate) fn note(&self, outcome: Outcome) {
        if outcome.is_unanswered() || matches!(outcome, Outcome::Status(500..)) {
            self.load.errors.fetch_add(1, Relaxed);
        }
    }
}

impl Load {
    /// What active checks say, where somebody checks.
    pub fn checked(&self) -> Option<&Checked> {
        self.checked.get().map(|checked| &**checked)
    }

    /// How long its answers took of late, where that is measured.
    pub fn latency(&self) -> &PeakEwma {
        &self.latency
    }

    /// What it reports of its load, where it has done so.
    pub fn reported(&self) -> Option<&ReportedLoad> {
        self.reported.get().map(|reported| &**reported)
    }

    /// Where reports are kept.
    pub fn reports(&self) -> &ReportedLoad {
        self.reported.get_or_init(Box::default)
    }

    /// The same; who was not checked so far begins with this.
    pub(super) fn checked_from(&self, first: Verdict) -> &Checked {
        self.checked.get_or_init(|| Box::new(Checked::new(first)))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
