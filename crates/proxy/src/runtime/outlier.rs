//! Outlier ejection: an endpoint that keeps failing gets no requests for a while.
//!
//! The state lives beside the endpoint and is kept when the endpoint set changes. There are no timers: whoever picks sees
//! by the clock that an ejection is over.
//!
//! ```text
//! serving ──N failures in a row──> ejected until now + base × times ejected (≤ max) ──time──> serving
//!    └── but not if that would eject more than max_ejection_percent, nor ever the last endpoint; who becomes the last serves again
//! ```

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
}

/// The ejection state of one endpoint.
#[derive(Debug, Default)]
pub struct Health {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    /// Milliseconds after the cluster's epoch, plus one; 0 is "not ejected".
    ejected_until: AtomicU64,
    times_ejected: AtomicU32,
    /// 0 none, 1 5xx, 2 gateway.
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
            Outcome::GatewayError => (true, true),
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
        if self.is_ejected(health, now) {
            return false;
        }
        let (mut all, mut ejected, mut present) = (0_u64, 0_u64, false);
        for peer in peers {
            all += 1;
            ejected += u64::from(self.is_ejected(peer, now));
            present |= std::ptr::eq(peer, health);
        }
        // A late failure of an endpoint that is gone, or that takes no requests anyway.
        if !present {
            return false;
        }
        // One may always go, however small the percentage; the last never.
        let allowed = (all * u64::from(rules.max_ejection_percent.min(100)) / 100).max(1);
        if ejected >= allowed || ejected + 1 >= all {
            return false;
        }
        let times = health.times_ejected.fetch_add(1, Relaxed) + 1;
        let length =
            rules.base_ejection.saturating_mul(times).min(rules.max_ejection.max(rules.base_ejection));
        let until = (now + length).saturating_duration_since(self.epoch).as_millis() as u64 + 1;
        if health.ejected_until.swap(until, Relaxed) == 0 {
            self.marked.fetch_add(1, Relaxed);
        }
        health.cause.store(if cause == Cause::Consecutive5xx { 1 } else { 2 }, Relaxed);
        health.consecutive_5xx.store(0, Relaxed);
        health.consecutive_gateway.store(0, Relaxed);
        self.total.fetch_add(1, Relaxed);
        true
    }

    /// Whether it is ejected at this moment. An ejection that is over is cleared.
    pub fn is_ejected(&self, health: &Health, now: Instant) -> bool {
        let until = health.ejected_until.load(Relaxed);
        if until == 0 {
            return false;
        }
        if now.saturating_duration_since(self.epoch).as_millis() as u64 + 1 < until {
            return true;
        }
        // Only the one that clears it counts it down.
        if health.ejected_until.compare_exchange(until, 0, Relaxed, Relaxed).is_ok() {
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
        let cause =
            if health.cause.load(Relaxed) == 2 { Cause::ConsecutiveGateway } else { Cause::Consecutive5xx };
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
        let ended = first.is_some_and(|first| first.ejected_until.swap(0, Relaxed) != 0);
        self.marked.fetch_sub(u32::from(ended), Relaxed);
        ended
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
