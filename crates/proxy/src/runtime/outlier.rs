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
//! for the last endpoint: nobody listens there.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use outrigger_model::cluster::Outlier;
use tokio::time::Instant;

/// What one request says about the endpoint that served it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status.
    Status(u16),
    /// No response: connect failure, reset, timeout. Counts as a 5xx and as a gateway error.
    GatewayError,
    /// Nobody listens there; else as a gateway error.
    Refused,
    /// It failed here; says nothing about the endpoint.
    LocalFailure,
    /// A finished TCP session.
    Success,
}

/// Why an endpoint was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Cause {
    /// So many 5xx in a row.
    Consecutive5xx,
    /// So many gateway errors in a row.
    ConsecutiveGateway,
    /// It refuses connections.
    Refused,
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
    /// Milliseconds after the cluster's epoch, plus one; 0 is "not ejected".
    ejected_until: AtomicU64,
    /// The same of the last ejection, also when it is over.
    ended: AtomicU64,
    times_ejected: AtomicU32,
    /// Times that it was left alone for refusing connections, without a longer time between.
    times_refused: AtomicU32,
    /// 0 none, 1 5xx, 2 gateway, 3 refused.
    cause: AtomicU32,
}

/// The ejections of one cluster, counted so that a pick in a healthy cluster costs one read.
#[derive(Debug)]
pub struct Ejections {
    epoch: Instant,
    /// Endpoints whose `ejected_until` is set, over or not.
    marked: AtomicU32,
    total: AtomicU64,
    /// Serialises ejecting: two workers must not both take the last allowed place.
    deciding: parking_lot::Mutex<()>,
}

impl Default for Ejections {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            marked: AtomicU32::new(0),
            total: AtomicU64::new(0),
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
        self.total.load(Relaxed)
    }

    /// Records an outcome; ejects where the rules say so. `peers` are all endpoints that could serve, this one included.
    pub fn record<'a>(
        &self,
        rules: &Outlier,
        health: &Health,
        outcome: Outcome,
        now: Instant,
        peers: impl Iterator<Item = &'a Health>,
    ) -> Option<Cause> {
        let (five, gateway) = match outcome {
            Outcome::Status(status) => (status >= 500, matches!(status, 502..=504)),
            Outcome::GatewayError | Outcome::Refused => (true, true),
            Outcome::Success => (false, false),
            Outcome::LocalFailure => return None,
        };
        let five = count(&health.consecutive_5xx, five);
        let gateway = count(&health.consecutive_gateway, gateway);
        let reached = |count: u32, limit: u32| limit > 0 && count >= limit;
        let cause = if reached(five, rules.consecutive_5xx) {
            Cause::Consecutive5xx
        } else if reached(gateway, rules.consecutive_gateway) {
            Cause::ConsecutiveGateway
        } else {
            return None;
        };
        self.eject(rules, health, cause, now, peers).then_some(cause)
    }

    fn eject<'a>(
        &self,
        rules: &Outlier,
        health: &Health,
        cause: Cause,
        now: Instant,
        peers: impl Iterator<Item = &'a Health>,
    ) -> bool {
        let _deciding = self.deciding.lock();
        let Some((all, ejected)) = self.others(health, now, peers) else { return false };
        // One may always go, however small the percentage; the last never.
        let allowed = (all * u64::from(rules.max_ejection_percent.min(100)) / 100).max(1);
        if ejected >= allowed || ejected + 1 >= all {
            return false;
        }
        let interval = rules.interval.as_millis().max(1) as u64;
        let calm = (self.at(now) - health.ended.load(Relaxed).min(self.at(now))) / interval;
        let calm = u32::try_from(calm).unwrap_or(u32::MAX);
        let times = health.times_ejected.load(Relaxed).saturating_sub(calm).saturating_add(1);
        health.times_ejected.store(times, Relaxed);
        let length =
            rules.base_ejection.saturating_mul(times).min(rules.max_ejection.max(rules.base_ejection));
        self.hold(health, cause, now + length);
        self.total.fetch_add(1, Relaxed);
        true
    }

    /// How many there are and how many of them are ejected; nothing where this one is, or is none of them: a late failure of who is
    /// gone, or takes no requests anyway.
    fn others<'a>(
        &self,
        health: &Health,
        now: Instant,
        peers: impl Iterator<Item = &'a Health>,
    ) -> Option<(u64, u64)> {
        if self.is_ejected(health, now) {
            return None;
        }
        let (mut all, mut ejected, mut present) = (0, 0, false);
        for peer in peers {
            all += 1;
            ejected += u64::from(self.is_ejected(peer, now));
            present |= std::ptr::eq(peer, health);
        }
        present.then_some((all, ejected))
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
        peers: impl Iterator<Item = &'a Health>,
    ) -> Option<Duration> {
        let _deciding = self.deciding.lock();
        let (all, ejected) = self.others(health, now, peers)?;
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
            health.consecutive_5xx.store(0, Relaxed);
            health.consecutive_gateway.store(0, Relaxed);
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
        let cause = match health.cause.load(Relaxed) {
            2 => Cause::ConsecutiveGateway,
            3 => Cause::Refused,
            _ => Cause::Consecutive5xx,
        };
        Some((cause, until.saturating_duration_since(now)))
    }

    /// Where all of those that could serve are ejected, ends the ejection that would end first; whether it did. It counts for the length
    /// of the next one.
    pub fn keep_one<'a>(&self, peers: impl Iterator<Item = &'a Health>, now: Instant) -> bool {
        if !self.any() {
            return false;
        }
        let _deciding = self.deciding.lock();
        let until = |health: &Health| health.ejected_until.load(Relaxed);
        let mut first: Option<&Health> = None;
        for peer in peers {
            if !self.is_ejected(peer, now) {
                return false;
            }
            if first.is_none_or(|first| until(peer) < until(first)) {
                first = Some(peer);
            }
        }
        let ended = first.is_some_and(|first| {
            first.ended.store(self.at(now), Relaxed);
            first.ejected_until.swap(0, Relaxed) != 0
        });
        self.marked.fetch_sub(u32::from(ended), Relaxed);
        ended
    }

    /// The rules went away.
    pub fn forget_rules(&self, health: &Health) {
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
