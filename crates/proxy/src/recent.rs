//! Requests that have ended, so that one of them can be explained by its id: each worker keeps the last that failed, and all
//! where somebody wants them.
//!
//! A worker never waits for who reads: what ends in that moment is not kept. What did not fail costs one relaxed read.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// So many that failed are kept by each worker, and so many others.
const FAILED: usize = 128;
const OTHERS: usize = 256;

/// What is kept.
pub struct Recent {
    /// Those that did not fail, too.
    all: AtomicBool,
    workers: Box<[Mutex<Kept>]>,
}

#[derive(Default)]
struct Kept {
    failed: VecDeque<Ended>,
    others: VecDeque<Ended>,
}

/// One request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Its `x-request-id`.
    pub id: String,
    /// RFC 3339, in UTC.
    pub began: String,
    pub millis: f64,
    pub outbound: bool,
    pub source: String,
    /// The identity of who sent it.
    pub peer: Option<String>,
    pub method: String,
    pub authority: String,
    /// As it came.
    pub path: String,
    /// Of the configuration by which it was served.
    pub generation: u64,
    pub routes: String,
    pub route: Option<String>,
    pub route_origin: Option<String>,
    pub cluster: Option<String>,
    pub cluster_origin: Option<String>,
    /// That it was sent to last.
    pub endpoint: Option<String>,
    /// How often it was sent.
    pub attempts: u32,
    /// 0: it had no answer.
    pub status: u16,
    pub grpc_status: Option<u32>,
    /// Envoy's.
    pub flags: String,
    /// Envoy's.
    pub details: String,
    pub error: Option<String>,
    pub error_origin: Option<String>,
}

/// What the admin page says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// The sidecar's node id.
    pub node: String,
    /// Those that did not fail are kept, too.
    pub all: bool,
    /// The newest first.
    pub requests: Vec<Ended>,
}

impl Recent {
    /// Keeps nothing yet.
    pub fn new(workers: usize, all: bool) -> Self {
        let workers = std::iter::repeat_with(Mutex::default).take(workers).collect();
        Self { all: AtomicBool::new(all), workers }
    }

    /// Whether those that do not fail are kept.
    pub fn keeps_all(&self) -> bool {
        self.all.load(Relaxed)
    }

    /// Keeps them, or no longer.
    pub fn keep_all(&self, all: bool) {
        self.all.store(all, Relaxed);
        if !all {
            self.workers.iter().for_each(|worker| worker.lock().others = VecDeque::new());
        }
    }

    /// Takes note of a request that has ended at a worker, if it is one to keep.
    #[inline]
    pub fn note(&self, worker: usize, failed: bool, ended: impl FnOnce() -> Ended) {
        if failed || self.keeps_all() {
            self.keep(worker, failed, ended());
        }
    }

    #[cold]
    fn keep(&self, worker: usize, failed: bool, ended: Ended) {
        let Some(mut kept) = self.workers.get(worker).and_then(Mutex::try_lock) else { return };
        let (ring, most) = match failed {
            true => (&mut kept.failed, FAILED),
            false => (&mut kept.others, OTHERS),
        };
        if ring.len() == most {
            ring.pop_front();
        }
        ring.push_back(ended);
    }

    /// Those of an id, or the last of all, the newest first.
    pub fn show(&self, id: Option<&str>, most: usize) -> Vec<Ended> {
        let mut found: Vec<Ended> = Vec::new();
        for worker in &self.workers {
            let kept = worker.lock();
            let all = kept.failed.iter().chain(&kept.others);
            found.extend(all.filter(|ended| id.is_none_or(|id| ended.id == id)).cloned());
        }
        found.sort_by(|a, b| b.began.cmp(&a.began));
        found.truncate(most);
        found
    }
}
