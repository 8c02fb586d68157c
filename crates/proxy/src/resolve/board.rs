//! What is known of each name, for people and for metrics.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use outrigger_telemetry::metrics::{Labels, Page};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::lookup::Outcome;

/// Shared by whoever asks and whoever looks.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    names: Mutex<BTreeMap<String, NameStatus>>,
    found: AtomicU64,
    absent: AtomicU64,
    failed: AtomicU64,
}

/// One name.
#[derive(Debug, Clone)]
pub struct NameStatus {
    /// Of the last answer that was one.
    pub addresses: Vec<IpAddr>,
    /// For how long it may be kept, as the servers said.
    pub ttl: Duration,
    /// When it came.
    pub answered: Option<Instant>,
    /// What went wrong since.
    pub trouble: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// When it is asked for next.
    pub next: Instant,
}

impl Board {
    pub(super) fn note(&self, host: &str, outcome: &Outcome, now: Instant, pause: Duration) {
        let mut names = self.0.names.lock();
        let status = names.entry(host.to_owned()).or_insert_with(|| NameStatus {
            addresses: Vec::new(),
            ttl: Duration::ZERO,
            answered: None,
            trouble: None,
            failures: 0,
            next: now,
        });
        status.next = now + pause;
        match outcome {
            Outcome::Found(addresses) => {
                self.0.found.fetch_add(1, Relaxed);
                let trouble = addresses.missing.as_ref().map(|(_, why)| why.clone());
                match (&status.trouble, &trouble) {
                    (Some(was), None) => tracing::info!(host, was, "the name is resolved again"),
                    (None, Some(why)) => {
                        tracing::warn!(host, why, "one kind of the name's addresses stays what it was");
                    }
                    _ => {}
                }
                status.trouble = trouble;
                status.addresses = addresses.iter().collect();
                status.ttl = addresses.ttl;
                (status.answered, status.failures) = (Some(now), 0);
            }
            Outcome::Absent(why) => {
                self.0.absent.fetch_add(1, Relaxed);
                if status.trouble.as_ref() != Some(why) {
                    tracing::warn!(host, why, "the name has no address; requests to it fail");
                }
                status.addresses.clear();
                status.trouble = Some(why.clone());
                (status.answered, status.failures) = (Some(now), 0);
            }
            Outcome::Failed(why) => {
                self.0.failed.fetch_add(1, Relaxed);
                if status.failures == 0 {
                    let addresses = &status.addresses;
                    tracing::warn!(
                        host,
                        why,
                        ?addresses,
                        "the name is not resolved; its last addresses serve"
                    );
                }
                status.failures = status.failures.saturating_add(1);
                status.trouble = Some(why.clone());
            }
        }
    }

    pub(super) fn retain(&self, wanted: impl Fn(&str) -> bool) {
        self.0.names.lock().retain(|name, _| wanted(name));
    }

    /// What is known of a name.
    pub fn name(&self, host: &str) -> Option<NameStatus> {
        self.0.names.lock().get(host).cloned()
    }

    /// Shows how lookups ended, and how many names are in trouble.
    pub fn write(&self, page: &mut Page) {
        let inner = &*self.0;
        for (outcome, count) in
            [("found", &inner.found), ("absent", &inner.absent), ("failed", &inner.failed)]
        {
            page.counter(
                "outrigger_dns_lookups_total",
                "Lookups of names that clusters consist of, by how they ended.",
            )
            .sample(Labels::new().with("outcome", outcome), count.load(Relaxed));
        }
        let names = inner.names.lock();
        let stale = names.values().filter(|name| name.failures > 0).count();
        page.gauge("outrigger_dns_names", "Names that clusters consist of.").sample((), names.len() as u64);
        page.gauge("outrigger_dns_names_failing", "Names whose last lookup failed; older addresses serve.")
            .sample((), stale as u64);
    }
}
