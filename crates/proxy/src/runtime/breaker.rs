//! The circuit breaker of a cluster, shared by all workers: who may send, and what came of it.
//!
//! ```text
//! closed ──too much of the interval fails, or too much in a row──> open ──after its time, the next request──> half-open
//!    ^                                                              ^                                          │  │
//!    │                                                              └─a probe fails, or stays out for too long─┘  │
//!    └──────────────────────────────all probes succeed────────────────────────────────────────────────────────────┘
//! ```
//!
//! While it is closed a request costs an atomic read (and the handle's count) when it is sent, and an addition and a look at the
//! counts when it has ended; the lock is for transitions and probes. Each transition begins a new term, and what was sent in an earlier one says nothing any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use outrigger_model::cluster as model;
use outrigger_model::resource::Origin;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::failure::{Failure, FailureKind, Stage};
use crate::runtime::outlier::Outcome;

/// Parts of the interval: the oldest is forgotten as a whole.
const SLOTS: u64 = 10;

/// What a breaker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Everything passes.
    Closed,
    /// Nothing passes.
    Open,
    /// Probes pass.
    HalfOpen,
}

impl Phase {
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// As metrics and logs write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// The breaker of one cluster.
pub struct Breaker {
    rules: model::Breaker,
    cluster: Arc<str>,
    origin: Option<Arc<Origin>>,
    epoch: Instant,
    /// The term times four, and the phase: one read says both.
    now: AtomicU32,
    /// Failures in a row.
    run: AtomicU32,
    slots: [Slot; SLOTS as usize],
    turn: Mutex<BreakerTurn>,
    /// Transitions into each phase since the start.
    transitions: [AtomicU64; 3],
    refused: AtomicU64,
}

/// What ended in one part of the interval; each with the part's number above its count.
#[derive(Default)]
struct Slot {
    ended: AtomicU64,
    failed: AtomicU64,
}

/// The term of now.
struct BreakerTurn {
    since: Instant,
    /// When the last probe was let through.
    probed: Instant,
    /// Why it is not closed.
    why: String,
    /// Probes that are under way.
    out: u32,
    /// Probes that succeeded.
    good: u32,
}

/// The leave to send one request. Dropped without a word it has not been sent, or says nothing.
#[must_use = "a probe's place is free again when it is dropped"]
pub struct Pass {
    breaker: Arc<Breaker>,
    /// As it was when it was given.
    now: u32,
    told: bool,
    /// It is the first probe.
    half_opened: bool,
}

/// What one request has made of a breaker; mostly nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turned {
    /// It came when the time was over, as the first probe.
    pub half_opened: bool,
    /// What came of it closed the breaker, or opened it, and why. Every attempt hands this on, and seldom with anything in it.
    pub to: Option<Box<(Phase, String)>>,
}

impl Turned {
    /// Whether it has made nothing of it.
    pub fn is_nothing(&self) -> bool {
        !self.half_opened && self.to.is_none()
    }
}

/// What a breaker looks like from outside.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Look {
    pub phase: Phase,
    pub for_seconds: f64,
    /// Of the interval, while it is closed.
    pub ended: u64,
    pub failed: u64,
    pub failures_in_a_row: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    pub probes_under_way: u32,
    pub probes_succeeded: u32,
    pub refused: u64,
    /// How often it became closed, open, half-open.
    pub transitions: [u64; 3],
}

impl Breaker {
    /// A closed one.
    pub fn new(rules: model::Breaker, cluster: Arc<str>, origin: Option<Arc<Origin>>) -> Self {
        let since = Instant::now();
        Self {
            rules,
            cluster,
            origin,
            epoch: since,
            now: AtomicU32::new(Phase::Closed as u32),
            run: AtomicU32::new(0),
            slots: Default::default(),
            turn: Mutex::new(BreakerTurn { since, probed: since, why: String::new(), out: 0, good: 0 }),
            transitions: Default::default(),
            refused: AtomicU64::new(0),
        }
    }

    /// Whether it was made for these rules.
    pub fn is_for(&self, rules: &model::Breaker, origin: Option<&Origin>) -> bool {
        (&self.rules, self.origin.as_deref()) == (rules, origin)
    }

    /// Leave to send a request.
    ///
    /// # Errors
    /// It is open, or as many probes as are allowed are under way.
    #[inline]
    pub fn admit(self: &Arc<Self>) -> Result<Pass, Failure> {
        let now = self.now.load(Relaxed);
        if phase(now) == Phase::Closed {
            return Ok(Pass { breaker: self.clone(), now, told: false, half_opened: false });
        }
        self.probe(Instant::now())
    }

    #[cold]
    fn probe(self: &Arc<Self>, at: Instant) -> Result<Pass, Failure> {
        let mut turn = self.turn.lock();
        let age = at.saturating_duration_since(turn.since);
        let mut half_opened = false;
        match phase(self.now.load(Relaxed)) {
            Phase::Closed => {}
            Phase::Open if age < self.rules.open_time => return Err(self.refuse(&turn, age)),
            Phase::Open => {
                let why = std::mem::take(&mut turn.why);
                self.turn_to(&mut turn, Phase::HalfOpen, at, why);
                turn.out = 1;
                half_opened = true;
            }
            Phase::HalfOpen if turn.out + turn.good < self.rules.probes => {
                turn.out += 1;
                turn.probed = at;
            }
            // Who asks finds that the probes do not come back.
            Phase::HalfOpen if at.saturating_duration_since(turn.probed) >= self.rules.open_time => {
                let why = format!("{} of its probes did not answer in time", turn.out);
                self.turn_to(&mut turn, Phase::Open, at, why);
                return Err(self.refuse(&turn, Duration::ZERO));
            }
            Phase::HalfOpen => return Err(self.refuse(&turn, age)),
        }
        Ok(Pass { breaker: self.clone(), now: self.now.load(Relaxed), told: false, half_opened })
    }

    fn refuse(&self, turn: &BreakerTurn, age: Duration) -> Failure {
        self.refused.fetch_add(1, Relaxed);
        let how = match phase(self.now.load(Relaxed)) {
            Phase::HalfOpen => format!("half-open, and all {} probes are under way", self.rules.probes),
            _ => format!("open for another {:.1?}", self.rules.open_time.saturating_sub(age)),
        };
        let detail = format!("cluster {}: the circuit breaker is {how}; {}", self.cluster, turn.why);
        Failure::local(Stage::Pick, FailureKind::CircuitOpen, detail).because_of(self.origin.clone())
    }

    /// Counts what ended while it is closed; opens it where that is too much, and says why.
    fn count(&self, sent: u32, failed: bool, at: Instant) -> Option<(Phase, String)> {
        let tick = self.tick(at);
        let slot = &self.slots[(tick % SLOTS) as usize];
        add(&slot.ended, tick);
        let mut run = 0;
        if failed {
            add(&slot.failed, tick);
            run = self.run.fetch_add(1, Relaxed).saturating_add(1);
        } else if self.run.load(Relaxed) != 0 {
            self.run.store(0, Relaxed);
        }
        let rules = &self.rules;
        let why = if rules.consecutive_failures > 0 && run >= rules.consecutive_failures {
            format!("{run} requests in a row failed")
        } else {
            let (ended, failed) = self.recent(tick);
            let share = 100.0 * failed as f64 / ended.max(1) as f64;
            let enough = ended >= u64::from(rules.minimum_requests);
            if rules.failure_percent == 0.0 || !enough || share < rules.failure_percent {
                return None;
            }
            format!("{failed} of {ended} requests in {:?} failed", rules.interval)
        };
        let mut turn = self.turn.lock();
        (self.now.load(Relaxed) == sent).then(|| self.turn_to(&mut turn, Phase::Open, at, why))
    }

    /// What came of a probe.
    #[cold]
    fn judge(&self, sent: u32, failed: Option<bool>, at: Instant) -> Option<(Phase, String)> {
        let mut turn = self.turn.lock();
        if self.now.load(Relaxed) != sent {
            return None;
        }
        turn.out = turn.out.saturating_sub(1);
        match failed {
            None => None,
            Some(true) => Some(self.turn_to(&mut turn, Phase::Open, at, "a probe failed".to_owned())),
            Some(false) => {
                turn.good += 1;
                let enough = turn.good >= self.rules.probes;
                enough.then(|| self.turn_to(&mut turn, Phase::Closed, at, String::new()))
            }
        }
    }

    /// Begins the next term; which, and why.
    fn turn_to(&self, turn: &mut BreakerTurn, to: Phase, at: Instant, why: String) -> (Phase, String) {
        if to == Phase::Closed {
            self.run.store(0, Relaxed);
            for slot in &self.slots {
                slot.ended.store(0, Relaxed);
                slot.failed.store(0, Relaxed);
            }
        }
        let term = self.now.load(Relaxed) / 4 + 1;
        self.now.store(term.wrapping_mul(4) | to as u32, Relaxed);
        self.transitions[to as usize].fetch_add(1, Relaxed);
        match to {
            Phase::Open => tracing::warn!(cluster = %self.cluster, %why, "circuit breaker is open"),
            _ => tracing::info!(cluster = %self.cluster, "circuit breaker is {}", to.name()),
        }
        *turn = BreakerTurn { since: at, probed: at, why: why.clone(), out: 0, good: 0 };
        (to, why)
    }

    /// The number of the part of the interval that it is.
    fn tick(&self, at: Instant) -> u64 {
        let part = (self.rules.interval.as_nanos() / u128::from(SLOTS)).max(1);
        // Never zero: an empty slot is of no part.
        (at.saturating_duration_since(self.epoch).as_nanos() / part) as u64 + SLOTS
    }

    /// What ended in the interval, and how much of it failed.
    fn recent(&self, tick: u64) -> (u64, u64) {
        let live = |word: &AtomicU64| {
            let word = word.load(Relaxed);
            // One from a worker whose clock was read later is of now.
            let age = (tick as u32).wrapping_sub((word >> 32) as u32) as i32;
            if word != 0 && i64::from(age) < SLOTS as i64 { word & COUNT } else { 0 }
        };
        self.slots
            .iter()
            .fold((0, 0), |(ended, failed), slot| (ended + live(&slot.ended), failed + live(&slot.failed)))
    }

    /// What it is doing.
    pub fn phase(&self) -> Phase {
        phase(self.now.load(Relaxed))
    }

    /// For the admin pages and the metrics.
    pub fn look(&self) -> Look {
        let at = Instant::now();
        let turn = self.turn.lock();
        let (ended, failed) = self.recent(self.tick(at));
        Look {
            phase: self.phase(),
            for_seconds: at.saturating_duration_since(turn.since).as_secs_f64(),
            ended,
            failed,
            failures_in_a_row: self.run.load(Relaxed),
            why: turn.why.clone(),
            probes_under_way: turn.out,
            probes_succeeded: turn.good,
            refused: self.refused.load(Relaxed),
            transitions: [0, 1, 2].map(|i: usize| self.transitions[i].load(Relaxed)),
        }
    }
}

impl Pass {
    /// Whether the request is a probe.
    pub fn is_probe(&self) -> bool {
        phase(self.now) != Phase::Closed
    }

    /// Whether it is a probe of now: the breaker has not turned since.
    pub fn is_probing(&self) -> bool {
        self.is_probe() && self.breaker.now.load(Relaxed) == self.now
    }

    /// Of a request that says nothing, or not yet: what it has made of the breaker by coming, which is said once.
    pub fn came(&mut self) -> Turned {
        Turned { half_opened: std::mem::take(&mut self.half_opened), to: None }
    }

    /// Tells what came of the request; what that has made of the breaker.
    pub fn tell(mut self, outcome: Outcome) -> Turned {
        let half_opened = self.half_opened;
        let failed = match outcome {
            Outcome::Status(status) => status >= 500,
            Outcome::GatewayError | Outcome::Unconnected | Outcome::Refused => true,
            Outcome::Success => false,
            Outcome::LocalFailure => return Turned { half_opened, to: None },
        };
        self.told = true;
        let at = Instant::now();
        let to = if self.is_probe() {
            self.breaker.judge(self.now, Some(failed), at)
        } else if self.breaker.now.load(Relaxed) == self.now {
            self.breaker.count(self.now, failed, at)
        } else {
            None
        };
        Turned { half_opened, to: to.map(Box::new) }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.told && self.is_probe() {
            self.breaker.judge(self.now, None, Instant::now());
        }
    }
}

const COUNT: u64 = u32::MAX as u64;

fn phase(now: u32) -> Phase {
    match now % 4 {
        0 => Phase::Closed,
        1 => Phase::Open,
        _ => Phase::HalfOpen,
    }
}

/// One more in a slot, which begins anew in a later part of time than it last counted.
fn add(word: &AtomicU64, tick: u64) {
    let mut seen = word.load(Relaxed);
    loop {
        let later = (tick as u32).wrapping_sub((seen >> 32) as u32) as i32 > 0;
        let next = if later { u64::from(tick as u32) << 32 | 1 } else { seen + 1 };
        match word.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
            Ok(_) => return,
            Err(other) => seen = other,
        }
    }
}

#[cfg(test)]
mod tests;
