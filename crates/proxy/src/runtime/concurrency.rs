//! How many requests may be under way, as latency allows: the gradient controller of Envoy's `adaptive_concurrency`, shared by all
//! workers and exact.
//!
//! ```text
//! measuring ──request_count samples: the minRTT; the limit is what it was before──> following
//!     ^                                                                              │  each window: limit = limit · gradient + √
//!     └──────the interval and its jitter are over, or five windows at the lowest─────┘
//! ```
//!
//! A request reads the limit, counts itself with one exchange, and when it has ended adds to one bucket. There is no task and no timer: who
//! finds that a window is over closes it, and everybody else goes on meanwhile. Without requests nothing happens, nor would it with a timer.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use outrigger_model::concurrency::{AdaptiveConcurrency, MinRtt};
use outrigger_model::resource::Origin;
use parking_lot::Mutex;
use tokio::time::Instant;

mod samples;

use samples::Samples;

/// What the gradient is at least and at most: no window halves or doubles the limit twice.
const GRADIENTS: (f64, f64) = (0.5, 2.0);
/// So many windows in a row at the lowest limit, and the minRTT is doubted.
const LOWEST_IN_A_ROW: u32 = 5;
/// Nothing is due.
const NEVER: u64 = u64::MAX;

/// One limit that follows latency.
pub struct Controller {
    pub rules: AdaptiveConcurrency,
    pub origin: Option<Arc<Origin>>,
    /// The listener, the chain and the filter; of a rule, which holds for them all, empty.
    pub place: String,
    epoch: Instant,
    /// Also those that came under other settings of the same rule.
    in_flight: Arc<AtomicU32>,
    limit: AtomicU32,
    /// When a window is over or the minRTT is to be measured, in nanoseconds after the epoch.
    due: AtomicU64,
    /// When the last measurement began: who came before tells nothing.
    since: AtomicU64,
    measuring: AtomicBool,
    samples: Samples,
    turn: Mutex<SampleWindow>,
    refused: AtomicU64,
}

/// What only those look at who close a window.
#[derive(Default)]
struct SampleWindow {
    min_rtt: Duration,
    sample_rtt: Duration,
    gradient: f64,
    headroom: f64,
    next_update: u64,
    next_measurement: u64,
    lowest_in_a_row: u32,
    /// The limit before the measurement.
    deferred: u32,
}

/// A request that is under way.
#[must_use = "the permit counts only while it lives"]
pub struct Permit {
    controller: Arc<Controller>,
    came: u64,
}

/// What a controller looks like from outside.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Look {
    pub limit: u32,
    pub requests: u32,
    pub refused: u64,
    /// The minRTT is being measured.
    pub measuring: bool,
    /// In milliseconds; 0: not known yet.
    pub min_rtt_millis: f64,
    /// Of the last window.
    pub sample_rtt_millis: f64,
    pub gradient: f64,
    pub headroom: f64,
}

/// The controllers of all limits that are in force: listeners that are compiled anew find theirs again.
#[derive(Default)]
pub struct Controllers(Mutex<Vec<Weak<Controller>>>);

impl Controllers {
    /// That of a rule, wherever it holds, or else of a place. With other settings one begins anew, and counts who is under way.
    pub fn of(&self, rules: &AdaptiveConcurrency, place: &str) -> Arc<Controller> {
        let place = if rules.origin.is_some() { "" } else { place };
        let mut all = self.0.lock();
        all.retain(|controller| controller.strong_count() > 0);
        let same = |one: &Arc<Controller>| one.place == place && one.rules.origin == rules.origin;
        let of_rule: Vec<_> = all.iter().filter_map(Weak::upgrade).filter(same).collect();
        let known = of_rule.iter().find(|controller| controller.rules == *rules);
        known.cloned().unwrap_or_else(|| {
            let in_flight =
                of_rule.first().map(|controller| controller.in_flight.clone()).unwrap_or_default();
            let controller = Arc::new(Controller::new(rules.clone(), place, in_flight));
            all.push(Arc::downgrade(&controller));
            controller
        })
    }
}

impl Controller {
    fn new(rules: AdaptiveConcurrency, place: &str, in_flight: Arc<AtomicU32>) -> Self {
        let controller = Self {
            origin: rules.origin.clone().map(Arc::new),
            place: place.to_owned(),
            epoch: Instant::now(),
            in_flight,
            limit: AtomicU32::new(rules.lowest()),
            due: AtomicU64::new(0),
            since: AtomicU64::new(0),
            measuring: AtomicBool::new(false),
            samples: Samples::default(),
            turn: Mutex::default(),
            refused: AtomicU64::new(0),
            rules,
        };
        {
            let mut turn = controller.turn.lock();
            match controller.rules.min_rtt {
                MinRtt::Measured { .. } => controller.measure(&mut turn, 0),
                MinRtt::Fixed(time) => {
                    turn.min_rtt = time;
                    turn.next_update = nanos(controller.rules.update_interval);
                    turn.next_measurement = NEVER;
                }
            }
            controller.plan(&turn);
        }
        controller
    }

    fn at(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }

    /// One more request under way.
    ///
    /// # Errors
    /// The limit, which is reached.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<Permit, u32> {
        let came = self.at(now);
        self.look_at_clock(came);
        let limit = self.limit.load(Relaxed);
        let mut seen = self.in_flight.load(Relaxed);
        loop {
            if seen >= limit {
                self.refused.fetch_add(1, Relaxed);
                return Err(limit);
            }
            match self.in_flight.compare_exchange_weak(seen, seen + 1, Relaxed, Relaxed) {
                Ok(_) => return Ok(Permit { controller: self.clone(), came }),
                Err(other) => seen = other,
            }
        }
    }

    /// A request has been answered.
    fn sample(&self, came: u64, now: u64) {
        self.look_at_clock(now);
        if came < self.since.load(Relaxed) {
            return;
        }
        let samples = self.samples.add(Duration::from_nanos(now.saturating_sub(came)));
        if self.measuring.load(Relaxed) {
            self.look_at_samples(samples, now);
        }
    }

    #[inline]
    fn look_at_clock(&self, now: u64) {
        if now >= self.due.load(Relaxed) {
            self.close_window(now);
        }
    }

    /// Whoever comes meanwhile goes by the limit that there was.
    #[cold]
    fn close_window(&self, now: u64) {
        let Some(mut turn) = self.turn.try_lock() else { return };
        if self.measuring.load(Relaxed) {
            return;
        }
        if now >= turn.next_update {
            self.update(&mut turn, now);
            turn.next_update = now.saturating_add(nanos(self.rules.update_interval));
        }
        if now >= turn.next_measurement {
            self.measure(&mut turn, now);
        }
        self.plan(&turn);
    }

    /// Says when something is due next; a measurement ends by the number of its requests.
    fn plan(&self, turn: &SampleWindow) {
        let measuring = self.measuring.load(Relaxed);
        let next = if measuring { NEVER } else { turn.next_update.min(turn.next_measurement) };
        self.due.store(next, Relaxed);
    }

    /// The limit of the next window. One without requests says nothing.
    fn update(&self, turn: &mut SampleWindow, now: u64) {
        let Some(sample_rtt) = self.samples.take(self.rules.percentile) else { return };
        let before = self.limit.load(Relaxed);
        let buffered = turn.min_rtt.as_secs_f64() * (1.0 + self.rules.buffer / 100.0);
        let gradient = (buffered / sample_rtt.as_secs_f64()).clamp(GRADIENTS.0, GRADIENTS.1);
        let scaled = f64::from(before) * gradient;
        // Without it a limit would never be tried that is higher than what is there.
        let headroom = scaled.sqrt();
        let lowest = self.rules.lowest();
        // The cast rounds down. Envoy's order: the lowest goes before the highest.
        let next = ((scaled + headroom) as u32).min(self.rules.max_limit).max(lowest);
        self.limit.store(next, Relaxed);
        (turn.sample_rtt, turn.gradient, turn.headroom) = (sample_rtt, gradient, headroom);
        let stays = before == lowest && next == lowest;
        turn.lowest_in_a_row = if stays { turn.lowest_in_a_row + 1 } else { 0 };
        if turn.lowest_in_a_row >= LOWEST_IN_A_ROW && matches!(self.rules.min_rtt, MinRtt::Measured { .. }) {
            turn.next_measurement = now;
        }
    }

    /// Begins to measure the minRTT.
    fn measure(&self, turn: &mut SampleWindow, now: u64) {
        turn.deferred = self.limit.load(Relaxed);
        turn.lowest_in_a_row = 0;
        self.limit.store(turn.deferred.min(self.rules.min_concurrency), Relaxed);
        self.samples.clear();
        self.since.store(now, Relaxed);
        self.measuring.store(true, Relaxed);
    }

    /// Ends a measurement that has had enough requests.
    fn look_at_samples(&self, samples: u32, now: u64) {
        let MinRtt::Measured { interval, requests, jitter } = self.rules.min_rtt else { return };
        if samples < requests {
            return;
        }
        // Who has the lock does it; or else the next request will.
        let Some(mut turn) = self.turn.try_lock() else { return };
        if !self.measuring.load(Relaxed) {
            return;
        }
        let Some(min_rtt) = self.samples.take(self.rules.percentile) else { return };
        turn.min_rtt = min_rtt;
        self.limit.store(turn.deferred, Relaxed);
        self.measuring.store(false, Relaxed);
        let later = nanos(jittered(interval, jitter, fastrand::f64()));
        turn.next_measurement = now.saturating_add(later);
        turn.next_update = now.saturating_add(nanos(self.rules.update_interval));
        self.plan(&turn);
        tracing::debug!(?min_rtt, limit = turn.deferred, "the minRTT is measured");
    }

    /// For the admin pages and the metrics.
    pub fn look(&self) -> Look {
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        let turn = self.turn.lock();
        Look {
            limit: self.limit.load(Relaxed),
            requests: self.in_flight.load(Relaxed),
            refused: self.refused.load(Relaxed),
            measuring: self.measuring.load(Relaxed),
            min_rtt_millis: millis(turn.min_rtt),
            sample_rtt_millis: millis(turn.sample_rtt),
            gradient: turn.gradient,
            headroom: turn.headroom,
        }
    }

    /// The rule, or the place, for people.
    pub fn scope(&self) -> String {
        self.origin.as_ref().map_or_else(|| self.place.clone(), ToString::to_string)
    }
}

impl Permit {
    /// The request has been answered in full.
    pub fn answered(self, now: Instant) {
        self.controller.sample(self.came, self.controller.at(now));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.controller.in_flight.fetch_sub(1, Relaxed);
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("came", &self.came).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("rules", &self.rules).finish_non_exhaustive()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The interval and up to this part of it, in percent, more.
fn jittered(interval: Duration, percent: f64, random: f64) -> Duration {
    interval + interval.mul_f64(percent / 100.0 * random)
}

#[cfg(test)]
mod tests;
