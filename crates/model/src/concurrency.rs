//! How many requests a workload has under way, as its latency allows: the gradient controller of
//! `envoy.filters.http.adaptive_concurrency`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::filter::FilterConfig;
use crate::origin::Origin;

/// The highest limit.
pub const MOST_CONCURRENCY: u32 = 1_000_000;
/// Shortest and longest time of a window, and between two measurements of the minRTT.
pub const WINDOWS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(24 * 3600));

/// A limit that follows latency: while answers take as long as they did when there was little to do, it grows; while they take longer, it
/// falls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdaptiveConcurrency {
    /// Which of the latencies of a window stands for all, 0–100.
    pub percentile: f64,
    /// After so long a time the limit is calculated anew.
    pub update_interval: Duration,
    /// The limit is never higher.
    pub max_limit: u32,
    /// The lowest that is calculated. Absent: `min_concurrency`.
    pub min_limit: Option<u32>,
    /// The limit while the minRTT is measured; and the lowest that is calculated, where `min_limit` says nothing.
    pub min_concurrency: u32,
    /// So much is added to the minRTT, in percent, before a window is compared with it, 0–100.
    pub buffer: f64,
    /// How long an answer takes where there is little to do.
    pub min_rtt: MinRtt,
    /// What is answered beyond the limit.
    pub status: u16,
    /// The user object that says so.
    pub origin: Option<Origin>,
}

impl FilterConfig for AdaptiveConcurrency {
    fn origins(&self) -> Vec<&Origin> {
        self.origin.iter().collect()
    }
}

/// How long an answer takes where there is little to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MinRtt {
    /// So long.
    Fixed(Duration),
    /// It is found out.
    Measured {
        /// Anew after this time.
        interval: Duration,
        /// By so many requests.
        requests: u32,
        /// Later by up to this part of the interval, in percent, 0–100: so not all instances measure at once.
        jitter: f64,
    },
}

impl Default for MinRtt {
    /// What Envoy takes where nothing is said, and of the interval what its documentation has.
    fn default() -> Self {
        Self::Measured { interval: Duration::from_secs(60), requests: 50, jitter: 15.0 }
    }
}

impl Default for AdaptiveConcurrency {
    /// What Envoy takes where nothing is said, and of the interval what its documentation has.
    fn default() -> Self {
        Self {
            percentile: 50.0,
            update_interval: Duration::from_millis(100),
            max_limit: 1000,
            min_limit: None,
            min_concurrency: 3,
            buffer: 25.0,
            min_rtt: MinRtt::default(),
            status: 503,
            origin: None,
        }
    }
}

impl AdaptiveConcurrency {
    /// The lowest limit that is calculated, with which it begins.
    pub fn lowest(&self) -> u32 {
        self.min_limit.unwrap_or(self.min_concurrency)
    }

    /// What is wrong with it, by the field.
    ///
    /// # Errors
    /// The field and the reason.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let percent = |value: f64| (0.0..=100.0).contains(&value);
        let limit = |value: u32| (1..=MOST_CONCURRENCY).contains(&value);
        let window = |time: Duration| (WINDOWS.0..=WINDOWS.1).contains(&time);
        let limits = "must be from 1 to 1,000,000";
        let windows = "must be from 1ms to 24h";
        let percents = "must be from 0 to 100";
        if !percent(self.percentile) {
            return Err(("percentile", percents));
        }
        if !window(self.update_interval) {
            return Err(("update_interval", windows));
        }
        if !limit(self.max_limit) {
            return Err(("max_limit", limits));
        }
        if self.min_limit.is_some_and(|value| !limit(value)) {
            return Err(("min_limit", limits));
        }
        if !limit(self.min_concurrency) {
            return Err(("min_concurrency", limits));
        }
        if !percent(self.buffer) {
            return Err(("buffer", percents));
        }
        match self.min_rtt {
            MinRtt::Fixed(time) if time.is_zero() => Err(("fixed_value", "must be longer than 0")),
            MinRtt::Measured { interval, .. } if !window(interval) => Err(("interval", windows)),
            MinRtt::Measured { requests: 0, .. } => Err(("request_count", "must not be 0")),
            MinRtt::Measured { jitter, .. } if !percent(jitter) => Err(("jitter", percents)),
            _ => Ok(()),
        }
    }
}
