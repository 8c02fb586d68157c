//! Counts of a rate limit, shared by all workers and exact. One token bucket for all is a word; what else there is has a lock, which
//! is held for some additions.
//!
//! A limit with one count for each value of something has a table of fixed size, made for the first of them. It keeps no values, only
//! their hash under a secret key. Where a place of it is full, one begins anew: of buckets the fullest, of windows the one
//! that was not asked for the longest.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use outrigger_model::global_limit::GlobalLimit;
use outrigger_model::rate_limit::{Algorithm, RateLimit};
use outrigger_model::resource::Origin;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::concurrency::Controllers;

pub mod tally;
mod window;

use tally::{Refusals, Tallies, Tally};
use window::Window;

/// Sets of a table, and most values in one.
const SETS: usize = 2048;
const WAYS: usize = 8;

/// The counts of one limit.
pub struct Counts {
    pub limit: RateLimit,
    pub origin: Option<Arc<Origin>>,
    epoch: Instant,
    /// Nanoseconds from one token to the next, and what a full bucket is worth.
    token: u64,
    full: u64,
    kind: Kind,
    refused: AtomicU64,
}

enum Kind {
    /// When the bucket is full again, in nanoseconds after the epoch.
    Bucket(AtomicU64),
    Window(Mutex<Window>),
    Buckets(Table<u64>),
    Windows(Table<Window>),
}

/// A limit has no room.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// When it will have some, if nobody else comes.
    pub wait: Duration,
}

/// The counts of all limits that are in force, by the limit: listeners that are compiled anew find theirs again.
#[derive(Default)]
pub struct Rates {
    counts: Mutex<Vec<Weak<Counts>>>,
    tallies: Tallies,
    /// Limits that follow latency.
    pub controllers: Controllers,
}

impl Rates {
    /// The counts of a limit.
    pub fn of(&self, limit: &RateLimit) -> Arc<Counts> {
        let mut all = self.counts.lock();
        all.retain(|counts| counts.strong_count() > 0);
        let known = all.iter().filter_map(Weak::upgrade).find(|counts| counts.limit == *limit);
        known.unwrap_or_else(|| {
            let counts = Arc::new(Counts::new(limit.clone()));
            all.push(Arc::downgrade(&counts));
            counts
        })
    }

    /// What came of a limit that a service keeps.
    pub fn of_global(&self, limit: &GlobalLimit) -> Arc<Refusals> {
        self.tallies.of_limit(limit)
    }

    /// What came of questions to a service, by its cluster.
    pub fn of_service(&self, cluster: &str) -> Arc<Tally> {
        self.tallies.of_service(cluster)
    }
}

impl Counts {
    fn new(limit: RateLimit) -> Self {
        let nanos = u64::try_from(limit.per.as_nanos()).unwrap_or(u64::MAX);
        // Rounded up: never more than the limit.
        let token = nanos.div_ceil(u64::from(limit.requests.max(1))).max(1);
        let (kind, full) = match (limit.algorithm, limit.by.is_empty()) {
            (Algorithm::TokenBucket { burst }, alone) => {
                let kind =
                    if alone { Kind::Bucket(AtomicU64::new(0)) } else { Kind::Buckets(Table::default()) };
                (kind, token.saturating_mul(u64::from(burst)))
            }
            (Algorithm::SlidingWindow, true) => (Kind::Window(Mutex::default()), 0),
            (Algorithm::SlidingWindow, false) => (Kind::Windows(Table::default()), 0),
        };
        let (origin, refused) = (limit.origin.clone().map(Arc::new), AtomicU64::new(0));
        Self { limit, origin, epoch: Instant::now(), token, full, kind, refused }
    }

    /// What tells a count from others; `value` hashes it. Of one count for all nothing does.
    pub fn key(&self, value: impl FnOnce(&mut dyn Hasher)) -> CountKey {
        CountKey(match &self.kind {
            Kind::Bucket(_) | Kind::Window(_) => 0,
            Kind::Buckets(table) => table.hash(value),
            Kind::Windows(table) => table.hash(value),
        })
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Counts a request, and that it is refused where there is no room.
    ///
    /// # Errors
    /// There is no room for it; it is not counted.
    pub fn take(&self, now: Instant, key: CountKey) -> Result<(), Refused> {
        self.ask(now, key).inspect_err(|_| self.count_refused())
    }

    /// For metrics.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// Counts a request.
    ///
    /// # Errors
    /// There is no room for it; it is not counted.
    pub fn ask(&self, now: Instant, key: CountKey) -> Result<(), Refused> {
        let now = self.nanos(now);
        let (limit, per) = (self.limit.requests, self.limit.per);
        let taken = match &self.kind {
            Kind::Bucket(bucket) => self.take_shared(bucket, now),
            Kind::Window(window) => window.lock().take(now, limit, per),
            Kind::Buckets(table) => table.with(key.0, |bucket| {
                let (next, taken) = self.token(*bucket, now);
                *bucket = next;
                taken
            }),
            Kind::Windows(table) => table.with(key.0, |window| window.take(now, limit, per)),
        };
        taken.map_err(|wait| Refused { wait: Duration::from_nanos(wait) })
    }

    /// Takes back what was just counted: another limit had no room.
    #[cold]
    pub fn give(&self, key: CountKey) {
        match &self.kind {
            Kind::Bucket(bucket) => {
                // What was taken is there to be given.
                bucket.fetch_sub(self.token, Relaxed);
            }
            Kind::Window(window) => window.lock().give(),
            Kind::Buckets(table) => table.with(key.0, |bucket| *bucket = bucket.saturating_sub(self.token)),
            Kind::Windows(table) => table.with(key.0, Window::give),
        }
    }

    fn take_shared(&self, bucket: &AtomicU64, now: u64) -> Result<(), u64> {
        let mut seen = bucket.load(Relaxed);
        loop {
            let (next, taken) = self.token(seen, now);
            taken?;
            match bucket.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => seen = other,
            }
        }
    }

    /// A token of a bucket that is full again at `again`; what it is then, or how long one must wait.
    fn token(&self, again: u64, now: u64) -> (u64, Result<(), u64>) {
        let next = again.max(now).saturating_add(self.token);
        match (next - now).checked_sub(self.full) {
            None | Some(0) => (next, Ok(())),
            Some(wait) => (again, Err(wait)),
        }
    }

    /// Requests that found no room.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counts").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// Tells a count from others of its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountKey(u64);

/// The state of one value: zeroed it is that of one that never came.
trait State: Default {
    /// How much would be forgotten with it.
    fn weight(&self) -> u64;
}

impl State for u64 {
    fn weight(&self) -> u64 {
        *self
    }
}

/// States by the hash of values.
struct Table<S> {
    secret: RandomState,
    sets: OnceLock<Box<[Set<S>]>>,
}

/// Hashes that share a place, each with its state; the last was asked for last.
type Set<S> = Mutex<Vec<(u64, S)>>;

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self { secret: RandomState::new(), sets: OnceLock::new() }
    }
}

impl<S: State> Table<S> {
    fn hash(&self, value: impl FnOnce(&mut dyn Hasher)) -> u64 {
        let mut hasher = self.secret.build_hasher();
        value(&mut hasher);
        hasher.finish()
    }

    fn with<T>(&self, hash: u64, act: impl FnOnce(&mut S) -> T) -> T {
        let sets = self.sets.get_or_init(|| (0..SETS).map(|_| Mutex::default()).collect());
        let mut set = sets[hash as usize % SETS].lock();
        match set.iter().position(|(known, _)| *known == hash) {
            Some(at) => set[at..].rotate_left(1),
            None => {
                if set.len() == WAYS {
                    let light = set.iter().enumerate().min_by_key(|(_, (_, state))| state.weight());
                    let at = light.map_or(0, |(at, _)| at);
                    set.remove(at);
                }
                set.push((hash, S::default()));
            }
        }
        let last = set.len() - 1;
        act(&mut set[last].1)
    }
}

/// Hashes a text so that two texts are not one longer text.
pub fn part(mut hasher: &mut dyn Hasher, bytes: &[u8]) {
    bytes.hash(&mut hasher);
}

#[cfg(test)]
mod tests;
