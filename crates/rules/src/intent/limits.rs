//! What the instances of a service take: how many requests, how many at once, and what these may switch to.

use outrigger_model::concurrency::AdaptiveConcurrency;
use outrigger_model::global_limit::GlobalLimit;
use outrigger_model::rate_limit::RateLimit;
use serde::{Deserialize, Serialize};

use super::{Host, Origin, Place};

/// The limits of one service, held by each of its instances for itself, and the protocols that requests to it may switch to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LimitsIntent {
    /// The object that says so; only services of its namespace are limited.
    pub origin: Origin,
    /// The service.
    pub host: Host,
    /// In order; all that a request falls under must have room. Without an origin.
    pub limits: Vec<RateLimit>,
    /// Those that a service keeps for all. Without an origin.
    pub global: Vec<GlobalIntent>,
    /// How many requests may be under way, as latency allows. Without an origin.
    pub concurrency: Option<AdaptiveConcurrency>,
    /// Besides WebSocket, in lower case; `connect` is CONNECT. Callers hold it, too.
    pub upgrades: Vec<String>,
    /// Where the host was written.
    pub place: Place,
}

/// A limit that a service keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GlobalIntent {
    /// Whom to ask, of the control plane's settings.
    pub provider: String,
    /// Where that was written.
    pub place: Place,
    /// What about.
    pub limit: GlobalLimit,
}

impl LimitsIntent {
    /// How many limits there are.
    pub fn count(&self) -> usize {
        self.limits.len() + self.global.len() + usize::from(self.concurrency.is_some())
    }
}
