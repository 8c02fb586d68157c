//! Outlier ejection: an endpoint that keeps failing gets no requests for a while.
//!
//! The state lives beside the endpoint and is kept when the endpoint set changes. There are no timers: whoever picks sees
//! by the clock that an ejection is over.
//!
//! ```text
//! serving ──N failures in a row──> ejected until now + base × times ejected (≤ max) ──time──> serving
//!    ├── but not if that would eject more than max_ejection_percent, nor ever the last endpoint; who becomes the last serves again
//!    └──refuses a connection──> left alone for 1 s, then 2, 4, … 30 s ──time──> serving
//! ```
//!
//! Each interval without an ejection takes one off the times, as Envoy's does. Who refuses connections is left alone without any rules, but
//! for the last endpoint: nobody listens there. Who is an outlier among the others is found once in an interval (`rates`), not by requests.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use outrigger_model::cluster::Outlier;
use tokio::time::Instant;

mod cause;
mod rates;

pub use cause::Cause;
use rates::Tally;
pub use rates::{Found, Rate};

/// What one request says about the endpoint that served it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status.
    Status(u16),
    /// No response: reset, timeout. Counts as a 5xx and as a gateway error, where it does not count apart.
    GatewayError,
    /// No connection; else as a gateway error.
    Unconnected,
    /// Nobody listens there; else as no connection.
    Refused,
    /// It failed here; says nothing about the endpoint.
    LocalFailure,
    /// A finished TCP session.
    Success,
}

impl Outcome {
    /// Whether no response came, for a reason that is not ours.
    pub fn is_unanswered(self) -> bool {
        matches!(self, Self::GatewayError | Self::Unconnected | Self::Refused)
    }
}

/// How long who refuses connections is left alone the first time, and at most.
const REFUSED_FIRST: Duration = Duration::from_secs(1);
const REFUSED_MOST: Duration = Duration::from_secs(30);

/// Who has taken connections for so long begins with the first again.
const REFUSED_MEMORY: u64 = 60_000;

/// The ejection state of one endpoint.
#[derive(Debug, Default)]
pub struct Health {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    /// Answers, and connections where they count apart, of the present interval.
    answers: Tally,
    connections: Tally,
    /// Milliseconds after the cluster's epoch, plus one; 0 is "not ejected".
    ejected_until: AtomicU64,
    /// The same of the last ejection, also when it is over.
    ended: AtomicU64,
    times_ejected: AtomicU32,
    /// Times that it was left alone for refusing connections, without a longer time between.
    times_refused: AtomicU32,
    /// [`Cause`] plus one; 0 is none.
    cause: AtomicU32,
}

impl Health {
    /// No run of failures goes on.
    fn end_runs(&self) {
        for run in [&self.consecutive_5xx, &self.consecutive_gateway, &self.consecutive_local] {
            run.store(0, Relaxed);
        }
    }
}

/// An endpoint beside others: its state, and whether it takes requests but for an ejection.
pub type Peer<'h> = (&'h Health, bool);

/// The ejections of one cluster, counted so that a pick in a healthy cluster costs one read.
#[derive(Debug)]
pub struct Ejections {
    epoch: Instant,
    /// Endpoints whose `ejected_until` is set, over or not.
    marked: AtomicU32,
    counts: cause::Counts,
    /// What was found in the last interval, of answers and of connections.
    found: parking_lot::Mutex<[Option<Rate>; 2]>,
    /// Serialises ejecting: two workers must not both take the last allowed place.
    deciding: parking_lot::Mutex<()>,
}

impl Default for Ejections {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            marked: AtomicU32::new(0),
            counts: cause::Counts::default(),
            found: parking_lot::Mutex::default(),
            deciding: parking_lot::Mutex::new(()),
        }
    }
}

impl Ejections {
    /// Whether any endpoint may be ejected; false spares the pick the clock.
    pub fn any(&self) -> bool {
        self.marked.load(Relaxed) > 0
    }

    /// Ejections since the start.
    pub fn total(&self) -> u64 {
        self.counts.total()
    }

    /// What was found and what was done about it, since the start.
    pub fn counts(&self) -> &cause::Counts {
        &self.counts
    }

    /// Records an outcome; ejects where the rules say so. `peers` are all endpoints, this one included.
    pub fn record<'a>(
        &self,
        rules: &Outlier,
        health: &Health,
        outcome: Outcome,
        now: Instant,
        peers: impl Iterator<Item = Peer<'a>>,
    ) -> Option<Cause> {
        if rules.local_apart && outcome != Outcome::LocalFailure {
            return self.record_apart(rules, health, outcome, now, peers);
        }
        let status = match outcome {
            Outcome::Status(status) => status,
            Outcome::GatewayError | Outcome::Unconnected | Outcome::Refused => 503,
            Outcome::Success => 200,
            Outcome::LocalFailure => return None,
        };
        self.answered(rules, health, status, now, peers)
    }

    /// What brings no answer counts for itself; a connection that stood is a success before whatever came of it, as in Envoy.
    fn record_apart<'a>(
        &self,
        rules: &Outlier,
        health: &Health,
        outcome: Outcome,
        now: Instant,
        peers: impl Iterator<Item = Peer<'a>>,
    ) -> Option<Cause> {
        if !matches!(outcome, Outcome::Unconnected | Outcome::Refused) {
            count(&health.consecutive_local, false);
            health.connections.count(rules, false);
        }
        match outcome {
            Outcome::Status(status) => self.answered(rules, health, status, now, peers),
            outcome if outcome.is_unanswered() => {
                health.connections.count(rules, true);
                let run = count(&health.consecutive_local, true);
                if !reached(run, rules.consecutive_local) {
                    return None;
                }
                health.consecutive_local.store(0, Relaxed);
                self.eject(rules, health, Cause::ConsecutiveLocal, now, peers)
            }
            _ => None,
        }
    }

    fn answered<'a>(
        &self,
        rules: &Outlier,
        health: &Health,
        status: u16,
        now: Instant,
        peers: impl Iterator<Item = Peer<'a>>,
    ) -> Option<Cause> {
        health.answers.count(rules, status >= 500);
        let five = count(&health.consecutive_5xx, status >= 500);
        let gateway = count(&health.consecutive_gateway, matches!(status, 502..=504));
        let (run, cause) = if reached(five, rules.consecutive_5xx) {
            (&health.consecutive_5xx, Cause::Consecutive5xx)
        } else if reached(gateway, rules.consecutive_gateway) {
            (&health.consecutive_gateway, Cause::ConsecutiveGateway)
        } else {
            return None;
        };
        run.store(0, Relaxed);
        self.eject(rules, health, cause, now, peers)
    }

    /// Ejects, if it may: the cause, if it did.
    fn eject<'a>(
        &self,
        rules: &Outlier,
        health: &Health,
        cause: Cause,
        now: Instant,
        peers: impl Iterator<Item = Peer<'a>>,
    ) -> Option<Cause> {
        let _deciding = self.deciding.lock();
        let Others { all, ejected, total } = self.others(health, now, peers)?;
        self.counts.found(cause);
        // One may always go, however small the percentage; the last never.
        let allowed = (all * u64::from(rules.max_ejection_percent.min(100)) / 100).max(1);
        let left = all.saturating_sub(ejected + 1);
        if ejected >= allowed || left == 0 || left * 100 < total * u64::from(rules.min_health_percent) {
            self.counts.overflow();
            return None;
        }
        if fastrand::u32(..100) >= cause.enforcing(rules) {
            return None;
        }
        let interval = rules.interval.as_millis().max(1) as u64;
        let calm = (self.at(now) - health.ended.load(Relaxed).min(self.at(now))) / interval;
        let calm = u32::try_from(calm).unwrap_or(u32::MAX);
        let times = health.times_ejected.load(Relaxed).saturating_sub(calm).saturating_add(1);
        health.times_ejected.store(times, Relaxed);
        let length =
            rules.base_ejection.saturating_mul(times).min(rules.max_ejection.max(rules.base_ejection));
        self.hold(health, cause, now + length + rules.jitter.mul_f64(fastrand::f64()));
        self.counts.ejected(cause);
        Some(cause)
    }

    /// The others; nothing where this one is ejected, or takes no requests: a late failure of who is gone, or is kept away anyway.
    fn others<'a>(
        &self,
        health: &Health,
        now: Instant,
        peers: impl Iterator<Item = Peer<'a>>,
    ) -> Option<Others> {
        if self.is_ejected(health, now) {
            return None;
        }
        let (mut others, mut present) = (Others::default(), false);
        for (peer, serves) in peers {
            others.total += 1;
            if serves {
                others.all += 1;
                others.ejected += u64::from(self.is_ejected(peer, now));
                present |= std::ptr::eq(peer, health);
            }
        }
        present.then_some(others)
    }

    /// A moment as it is kept.
    fn at(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64 + 1
    }

    fn hold(&self, health: &Health, cause: Cause, until: Instant) {
        let until = self.at(until);
        health.ended.store(until, Relaxed);
        if health.ejected_until.swap(until, Relaxed) == 0 {
            self.marked.fetch_add(1, Relaxed);
        }
        health.cause.store(cause as u32 + 1, Relaxed);
    }

    /// Nobody listens there: it is left alone for a while, unless it is the last. For how long.
    pub fn refused<'a>(
        &self,
        health: &Health,
        now: Instant,
        peers: impl Iterator<Item = Peer<'a>>,
    ) -> Option<Duration> {
        let _deciding = self.deciding.lock();
        let Others { all, ejected, .. } = self.others(health, now, peers)?;
        if ejected + 1 >= all {
            return None;
        }
        let since = self.at(now).saturating_sub(health.ended.load(Relaxed));
        let times = if since < REFUSED_MEMORY { health.times_refused.load(Relaxed) } else { 0 };
        health.times_refused.store(times.saturating_add(1), Relaxed);
        let length = REFUSED_FIRST.saturating_mul(2_u32.saturating_pow(times)).min(REFUSED_MOST);
        self.hold(health, Cause::Refused, now + length);
        Some(length)
    }

    /// Whether it is ejected at this moment. An ejection that is over is cleared.
    pub fn is_ejected(&self, health: &Health, now: Instant) -> bool {
        let until = health.ejected_until.load(Relaxed);
        if until == 0 {
            return false;
        }
        if self.at(now) < until {
            return true;
        }
        // Only the one that clears it counts it down. What was sent before it was ejected may have failed since.
        if health.ejected_until.compare_exchange(until, 0, Relaxed, Relaxed).is_ok() {
            health.end_runs();
            self.marked.fetch_sub(1, Relaxed);
        }
        false
    }

    /// Why, and for how much longer.
    pub fn ejection(&self, health: &Health, now: Instant) -> Option<(Cause, Duration)> {
        if !self.is_ejected(health, now) {
            return None;
        }
        let until = self.epoch + Duration::from_millis(health.ejected_until.load(Relaxed).saturating_sub(1));
        Some((Cause::of(health.cause.load(Relaxed)), until.saturating_duration_since(now)))
    }

    /// Where too few of those that could serve are left, ends the ejections that would end first; how many. Each counts for the length of
    /// the next one. Too few is none, and where there are rules fewer than their percentage.
    pub fn keep_enough<'a>(
        &self,
        rules: Option<&Outlier>,
        peers: impl Iterator<Item = Peer<'a>>,
        now: Instant,
    ) -> usize {
        if !self.any() {
            return 0;
        }
        let _deciding = self.deciding.lock();
        let (mut total, mut serving, mut ejected) = (0_u64, 0_u64, Vec::new());
        for (peer, serves) in peers {
            total += 1;
            match serves && self.is_ejected(peer, now) {
                true => ejected.push(peer),
                false => serving += u64::from(serves),
            }
        }
        let percent = rules.map_or(0, |rules| u64::from(rules.min_health_percent));
        let wanted = (total * percent).div_ceil(100).max(1);
        let lacking = usize::try_from(wanted.saturating_sub(serving)).unwrap_or(usize::MAX);
        ejected.sort_by_key(|health| health.ejected_until.load(Relaxed));
        ejected.into_iter().take(lacking).filter(|health| self.end(health, now)).count()
    }

    /// Ends an ejection before its time; whether there was one.
    pub fn end(&self, health: &Health, now: Instant) -> bool {
        if health.ejected_until.swap(0, Relaxed) == 0 {
            return false;
        }
        health.ended.store(self.at(now), Relaxed);
        health.end_runs();
        self.marked.fetch_sub(1, Relaxed);
        true
    }

    /// The rules went away: what was counted for them does not count when they come back.
    pub fn forget_rules(&self, health: &Health) {
        health.end_runs();
        health.answers.clear();
        health.connections.clear();
        if health.cause.load(Relaxed) != Cause::Refused as u32 + 1 {
            self.forgive(health);
        }
    }

    /// Ends an ejection at once: the rules went away, or the endpoint did.
    pub fn forgive(&self, health: &Health) {
        if health.ejected_until.swap(0, Relaxed) != 0 {
            self.marked.fetch_sub(1, Relaxed);
        }
        health.times_ejected.store(0, Relaxed);
    }
}

/// Endpoints beside one.
#[derive(Debug, Default)]
struct Others {
    /// Those that take requests but for an ejection, the one included.
    all: u64,
    ejected: u64,
    /// With those that take none anyway.
    total: u64,
}

fn reached(count: u32, limit: u32) -> bool {
    limit > 0 && count >= limit
}

/// Adds to a run of failures, or ends it. A success in a healthy run writes nothing: the line stays shared.
fn count(run: &AtomicU32, failed: bool) -> u32 {
    if failed {
        return run.fetch_add(1, Relaxed).saturating_add(1);
    }
    if run.load(Relaxed) != 0 {
        run.store(0, Relaxed);
    }
    0
}

#[cfg(test)]
mod tests;
