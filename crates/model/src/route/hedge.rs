//! Hedging: a second attempt beside the first, before that has answered (gRFC A6, Envoy's `HedgePolicy`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most attempts that run at a time, as in gRFC A6.
pub const MOST_HEDGES: u32 = 5;

/// When another attempt is made while others run. The first good response is taken, and the others are given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HedgePolicy {
    /// Attempts in all, the first included: 2 to [`MOST_HEDGES`]. Default 2.
    pub attempts: u32,
    /// After so long without a response head, each time. Absent: not by time.
    pub delay: Option<HedgeDelay>,
    /// When the time of one attempt has passed, which then goes on (`hedge_on_per_try_timeout`).
    pub on_per_try_timeout: bool,
    /// Not only requests whose method may be repeated (RFC 9110, section 9.2.2).
    pub all_methods: bool,
}

/// How long is waited.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum HedgeDelay {
    /// So long.
    Fixed(Duration),
    /// As long as this part of the first attempts took of late, as far as there were so many.
    Percentile {
        /// Above 0, below 100.
        percent: f64,
        /// Fewer say nothing. Default 100.
        min_samples: u32,
    },
}

impl Default for HedgePolicy {
    fn default() -> Self {
        Self { attempts: 2, delay: None, on_per_try_timeout: false, all_methods: false }
    }
}

impl HedgePolicy {
    /// What is wrong with it, by the field: what the wire could bring and no rule would.
    ///
    /// # Errors
    /// The field and the reason.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if !(2..=MOST_HEDGES).contains(&self.attempts) {
            return Err(("attempts", "must be from 2 to 5"));
        }
        match self.delay {
            Some(HedgeDelay::Fixed(Duration::ZERO)) => Err(("delay", "must be longer than nothing")),
            Some(HedgeDelay::Percentile { percent, .. }) if !(percent > 0.0 && percent < 100.0) => {
                Err(("percent", "must be above 0 and below 100"))
            }
            _ => Ok(()),
        }
    }
}
