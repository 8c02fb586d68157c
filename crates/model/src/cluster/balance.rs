//! How one of a cluster's endpoints is picked.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Load-balancing policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Balance {
    /// Weighted round robin.
    RoundRobin,
    /// The less loaded of two random choices, by weight.
    #[default]
    LeastRequest,
    /// The least loaded of more, or of all.
    LeastOf(LeastOf),
    /// Weighted random.
    Random,
    /// The same endpoint for the same hash of a request: a ring of points (ketama) as an Envoy lays it out, with so many in all. So the
    /// number of an endpoint's points hangs on the others, and who comes or leaves moves some of their keys, too.
    RingHash {
        /// At least so many points. Default 1024.
        minimum: u64,
        /// At most so many points. Limit and default on the wire [`MAX_RING`]; of rules 262,144, or the minimum.
        maximum: u64,
    },
    /// The same endpoint for the same hash of a request: a ring on which an endpoint's points do not hang on the others, so that who comes
    /// or leaves moves no keys but its own. No Envoy has it: they are given [`Balance::RingHash`] in its place.
    SteadyRing,
    /// The same endpoint for the same hash of a request: a lookup table.
    Maglev {
        /// Slots of the table, a prime up to [`MAX_MAGLEV`]. Default 65537.
        size: u64,
    },
    /// Of two random choices, by weight, the one where the answer is expected sooner: by how long its answers took of late, times the
    /// requests that it has, this one included.
    PeakEwma {
        /// How soon what was is forgotten: after this time a third of it is left. Default 10 s.
        decay: Duration,
        /// What is presumed of who has not answered yet. Default 10 ms.
        initial: Duration,
    },
    /// Round robin by weights that endpoints' own reports make ([`LoadReports`]).
    Reported,
}

/// Settings of [`Balance::LeastOf`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeastOf {
    /// So many random choices, at least 2; absent: all endpoints.
    pub choices: Option<u32>,
    /// How much load counts against weight, in thousandths: 0 is not at all. Default 1000.
    pub bias: u32,
}

impl Default for LeastOf {
    fn default() -> Self {
        Self { choices: Some(2), bias: 1000 }
    }
}

/// How reports of load (ORCA) make weights: requests a second by utilization
/// (`envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadReports {
    /// Who has not reported for so long yet has no weight of its own. Default 10 s.
    pub blackout: Duration,
    /// Nor has who does not report any more for this long. Default 180 s.
    pub expiration: Duration,
    /// How often weights are made anew. Default 1 s, at least [`SHORTEST_UPDATE`].
    pub update: Duration,
    /// How much the share of errors adds to the utilization. Default 1.
    pub error_penalty: f64,
    /// Metrics of which the greatest is the utilization, where the report has no other: `named_metrics.KEY`, `utilization.KEY` and so on.
    pub metrics: Vec<String>,
}

/// Of [`LoadReports::metrics`].
pub const MOST_METRICS: usize = 16;
/// As long as the name of a metric may be.
pub const LONGEST_METRIC: usize = 256;

/// Of [`LoadReports::update`].
pub const SHORTEST_UPDATE: Duration = Duration::from_millis(100);

impl Default for LoadReports {
    fn default() -> Self {
        Self {
            blackout: Duration::from_secs(10),
            expiration: Duration::from_secs(180),
            update: Duration::from_secs(1),
            error_penalty: 1.0,
            metrics: Vec::new(),
        }
    }
}

/// Slow start of new endpoints (`SlowStartConfig`): the weight grows with the age.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Warmup {
    /// An endpoint is warm after this time.
    pub window: Duration,
    /// The least part of its weight, 0-100. Default 10.
    pub minimum_percent: f64,
    /// How soon it grows: the part of its weight is the part of its time to the power of one by this. Default 1: evenly.
    pub aggression: f64,
}

impl Default for Warmup {
    fn default() -> Self {
        Self { window: Duration::ZERO, minimum_percent: 10.0, aggression: 1.0 }
    }
}

/// Most points of a ring, as in Envoy.
pub const MAX_RING: u64 = 8_388_608;

/// Most points of a ring where nobody says how many: an endpoint that is far heavier than another must not cost every caller the most.
pub const USUAL_RING: u64 = 262_144;
/// Least points of a ring where nobody says how many, for those who lay it out as an Envoy does.
pub const LEAST_RING: u64 = 1024;

impl Balance {
    /// A ring of at least so many points, as an Envoy lays it out; where nobody says how many, the steady one.
    pub fn ring(minimum: Option<u64>) -> Self {
        match minimum {
            Some(minimum) => Self::RingHash { minimum, maximum: minimum.max(USUAL_RING) },
            None => Self::SteadyRing,
        }
    }
}
/// Most slots of a Maglev table, as in Envoy.
pub const MAX_MAGLEV: u64 = 5_000_011;
/// Most random choices of [`LeastOf`].
pub const MAX_CHOICES: u32 = 1024;

impl Balance {
    /// Peak EWMA as without more words.
    pub const PEAK_EWMA: Self =
        Self::PeakEwma { decay: Duration::from_secs(10), initial: Duration::from_millis(10) };

    /// Whether the hash of a request decides.
    pub fn hashes(self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::SteadyRing | Self::Maglev { .. })
    }
}

/// Whether a number is a prime, as the size of a Maglev table must be.
pub fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}
