//! Requests that have ended, so that one of them can be explained by its id: each worker keeps the last that failed, and all
//! where somebody wants them.
//!
//! A worker never waits for who reads: what ends in that moment is not kept; nor is what ends in a second that has filled the ring already.
//! What did not fail costs one relaxed read.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

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
    /// When the present second began, and how many failed in it.
    second: Option<(Instant, usize)>,
}

impl Kept {
    /// Whether one more of this second is kept: more than there is room for would only push each other out, and each costs.
    fn has_room(&mut self, now: Instant) -> bool {
        match &mut self.second {
            Some((began, count)) if now.saturating_duration_since(*began) < Duration::from_secs(1) => {
                *count += 1;
                *count <= FAILED
            }
            second => {
                *second = Some((now, 1));
                true
            }
        }
    }
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
    pub fn note(&self, worker: usize, failed: bool, now: Instant, ended: impl FnOnce() -> Ended) {
        if failed || self.keeps_all() {
            self.keep(worker, failed, now, ended);
        }
    }

    #[cold]
    fn keep(&self, worker: usize, failed: bool, now: Instant, ended: impl FnOnce() -> Ended) {
        let Some(mut kept) = self.workers.get(worker).and_then(Mutex::try_lock) else { return };
        if failed && !kept.has_room(now) {
            return;
        }
        let (ring, most) = match failed {
            true => (&mut kept.failed, FAILED),
            false => (&mut kept.others, OTHERS),
        };
        if ring.len() == most {
            ring.pop_front();
        }
        ring.push_back(ended());
    }

    /// Those of an id, or the last of all, the newest first.
    pub fn show(&self, id: Option<&str>, most: usize) -> Vec<Ended> {
        let mut found: Vec<Ended> = Vec::new();
        for worker in &self.workers {
            let kept = worker.lock();
            let all = kept.failed.iter().chain(&kept.others);
            let mut wanted: Vec<&Ended> = all.filter(|ended| id.is_none_or(|id| ended.id == id)).collect();
            wanted.sort_by(|a, b| b.began.cmp(&a.began));
            found.extend(wanted.into_iter().take(most).cloned());
        }
        found.sort_by(|a, b| b.began.cmp(&a.began));
        found.truncate(most);
        found
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_flood_of_failures_costs_no_more_than_are_kept() {
        let (recent, made) = (Recent::new(1, true), Cell::new(0));
        let ended = || {
            made.set(made.get() + 1);
            Ended::default()
        };
        let now = Instant::now();
        (0..1000).for_each(|_| recent.note(0, true, now, ended));
        assert_eq!(made.get(), FAILED);
        recent.note(0, false, now, ended);
        recent.note(0, true, now + Duration::from_secs(1), ended);
        assert_eq!(made.get(), FAILED + 2, "what did not fail, and the next second");
        assert_eq!(recent.show(None, 7).len(), 7);
    }
}
