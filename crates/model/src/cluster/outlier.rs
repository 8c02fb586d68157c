//! Ejection of endpoints that fail (`envoy.config.cluster.v3.OutlierDetection`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When an endpoint gets no requests for a while. Percentages are 0–100.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outlier {
    /// Ejects after this many 5xx (or failures without an answer) in a row; 0 is off. Default 5.
    pub consecutive_5xx: u32,
    /// Ejects after this many 502, 503, 504 in a row; 0 is off. Default 0.
    pub consecutive_gateway: u32,
    /// What brings no answer (no connection, a reset, a timeout) counts for itself, and not as a 5xx.
    pub local_apart: bool,
    /// Where it does: ejects after this many of these in a row; 0 is off. Default 5.
    pub consecutive_local: u32,
    /// How often what is found in a row has consequences.
    pub enforcing: Enforcing,
    /// Ejects who succeeds much less often than the others. Absent: nobody.
    pub success_rate: Option<SuccessRate>,
    /// Ejects who fails too often. Absent: nobody.
    pub failure_percentage: Option<FailurePercentage>,
    /// How often rates are looked at, and how soon times ejected are forgotten. Default 10 s.
    pub interval: Duration,
    /// Ejection lasts this long times the number of ejections. Default 30 s.
    pub base_ejection: Duration,
    /// Longest ejection. Default 300 s.
    pub max_ejection: Duration,
    /// Each ejection lasts up to so much longer, by chance. Default 0.
    pub jitter: Duration,
    /// Of all endpoints; at least one may always be ejected, but never the last. Default 10.
    pub max_ejection_percent: u32,
    /// Nobody is ejected where fewer than so many of all endpoints would be left that take requests. Default 0.
    pub min_health_percent: u32,
    /// An active check that passes ends an ejection.
    pub check_ends_ejection: bool,
}

/// In so many of a hundred cases ([`Outlier::enforcing`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Enforcing {
    /// Of [`Outlier::consecutive_5xx`]. Default 100.
    pub consecutive_5xx: u32,
    /// Of [`Outlier::consecutive_gateway`]. Default 100.
    pub consecutive_gateway: u32,
    /// Of [`Outlier::consecutive_local`]. Default 100.
    pub consecutive_local: u32,
}

/// Ejects whose rate of success in the last interval is below the average of all by so many standard deviations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SuccessRate {
    /// So many endpoints must have had enough requests. Default 5.
    pub minimum_hosts: u32,
    /// Enough requests in an interval. Default 100.
    pub request_volume: u32,
    /// Standard deviations, in thousandths. Default 1900.
    pub stdev_factor: u32,
    /// In so many of a hundred cases; of what brought no answer, where that counts apart, the second. Default 100.
    pub enforcing: u32,
    /// See there.
    pub enforcing_local: u32,
}

/// Ejects of whose requests in the last interval at least so many failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FailurePercentage {
    /// Of a hundred. Default 85.
    pub threshold: u32,
    /// So many endpoints must have had enough requests. Default 5.
    pub minimum_hosts: u32,
    /// Enough requests in an interval. Default 50.
    pub request_volume: u32,
    /// In so many of a hundred cases; of what brought no answer, where that counts apart, the second. Default 100.
    pub enforcing: u32,
    /// See there.
    pub enforcing_local: u32,
}

impl Outlier {
    /// Whether requests must be counted by interval.
    pub fn needs_rates(&self) -> bool {
        self.success_rate.is_some() || self.failure_percentage.is_some()
    }
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            local_apart: false,
            consecutive_local: 5,
            enforcing: Enforcing::default(),
            success_rate: None,
            failure_percentage: None,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            jitter: Duration::ZERO,
            max_ejection_percent: 10,
            min_health_percent: 0,
            check_ends_ejection: false,
        }
    }
}

impl Default for Enforcing {
    fn default() -> Self {
        Self { consecutive_5xx: 100, consecutive_gateway: 100, consecutive_local: 100 }
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self {
            minimum_hosts: 5,
            request_volume: 100,
            stdev_factor: 1900,
            enforcing: 100,
            enforcing_local: 100,
        }
    }
}

impl Default for FailurePercentage {
    fn default() -> Self {
        Self { threshold: 85, minimum_hosts: 5, request_volume: 50, enforcing: 100, enforcing_local: 100 }
    }
}
