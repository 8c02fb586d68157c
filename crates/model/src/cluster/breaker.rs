//! The circuit breaker of a cluster: a field of ours, which Envoy has nothing for (its `CircuitBreakers` are [`super::Limits`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Opens where too much fails: then nothing is sent for a while. After that a few requests are let through as probes; if all
/// succeed it closes, and if one fails it is open again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Breaker {
    /// Opens when at least this part of the requests of an interval fails, in percent; zero is off. Default 50.
    pub failure_percent: f64,
    /// So many requests of the interval must have ended before their failures are looked at. Default 20.
    pub minimum_requests: u32,
    /// How far back requests count, to a tenth of it. Default 10 s, at least [`SHORTEST`].
    pub interval: Duration,
    /// Opens after so many failures in a row; 0 is off. Default 0.
    pub consecutive_failures: u32,
    /// How long it stays open. Default 30 s.
    pub open_time: Duration,
    /// How many requests must succeed before it closes; no more are under way at a time. Default 3, at least 1.
    pub probes: u32,
}

/// Of an interval that requests are counted in.
pub const SHORTEST: Duration = Duration::from_millis(100);

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failure_percent: 50.0,
            minimum_requests: 20,
            interval: Duration::from_secs(10),
            consecutive_failures: 0,
            open_time: Duration::from_secs(30),
            probes: 3,
        }
    }
}

impl Breaker {
    /// What is wrong with it, by the field: what the wire could bring and no rule would.
    ///
    /// # Errors
    /// The field and the reason.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if !(0.0..=100.0).contains(&self.failure_percent) {
            return Err(("failure_percent", "must be between 0 and 100"));
        }
        if self.failure_percent == 0.0 && self.consecutive_failures == 0 {
            return Err(("failure_percent", "nothing opens it; give a percentage, or consecutive failures"));
        }
        if self.interval < SHORTEST {
            return Err(("interval", "must be at least 100ms"));
        }
        if self.open_time.is_zero() {
            return Err(("open_time", "must be longer than nothing"));
        }
        if self.probes == 0 {
            return Err(("probes", "must be at least 1"));
        }
        Ok(())
    }
}
