//! What came of questions to rate limit services, shared by all workers; listeners that are compiled anew go on with it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use outrigger_model::global_limit::GlobalLimit;
use parking_lot::Mutex;

/// Of one limit.
#[derive(Debug)]
pub struct Refusals {
    pub limit: GlobalLimit,
    refused: AtomicU64,
}

impl Refusals {
    /// The service had no room.
    pub fn note(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// How often.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

/// Of one service, by its cluster.
#[derive(Debug)]
pub struct Tally {
    pub cluster: String,
    counts: [AtomicU64; 4],
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    Ok,
    OverLimit,
    /// Nobody answered, or not as one should.
    Error,
    /// The same, and the request passed.
    Allowed,
}

impl Tally {
    /// One more.
    pub fn note(&self, came: Came) {
        self.counts[came as usize].fetch_add(1, Relaxed);
    }

    /// How many, with Envoy's names.
    pub fn counts(&self) -> [(&'static str, u64); 4] {
        let names = [
            "envoy_cluster_ratelimit_ok",
            "envoy_cluster_ratelimit_over_limit",
            "envoy_cluster_ratelimit_error",
            "envoy_cluster_ratelimit_failure_mode_allowed",
        ];
        std::array::from_fn(|i| (names[i], self.counts[i].load(Relaxed)))
    }
}

/// Those that are in force.
#[derive(Default)]
pub(super) struct Tallies {
    refusals: Mutex<Vec<Weak<Refusals>>>,
    services: Mutex<Vec<Weak<Tally>>>,
}

impl Tallies {
    pub(super) fn of_limit(&self, limit: &GlobalLimit) -> Arc<Refusals> {
        let new = || Refusals { limit: limit.clone(), refused: AtomicU64::new(0) };
        known(&self.refusals, |known| known.limit == *limit, new)
    }

    pub(super) fn of_service(&self, cluster: &str) -> Arc<Tally> {
        let new = || Tally { cluster: cluster.to_owned(), counts: Default::default() };
        known(&self.services, |known| known.cluster == cluster, new)
    }
}

fn known<T>(all: &Mutex<Vec<Weak<T>>>, is: impl Fn(&T) -> bool, new: impl FnOnce() -> T) -> Arc<T> {
    let mut all = all.lock();
    all.retain(|one| one.strong_count() > 0);
    let found = all.iter().filter_map(Weak::upgrade).find(|one| is(one));
    found.unwrap_or_else(|| {
        let one = Arc::new(new());
        all.push(Arc::downgrade(&one));
        one
    })
}
