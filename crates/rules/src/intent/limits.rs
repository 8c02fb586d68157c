//! How many requests the instances of a service take.

use outrigger_model::rate_limit::RateLimit;
use serde::{Deserialize, Serialize};

use super::{Host, Origin, Place};

/// The rate limits of one service, held by each of its instances for itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LimitsIntent {
    /// The object that says so; only services of its namespace are limited.
    pub origin: Origin,
    /// The service.
    pub host: Host,
    /// In order; all that a request falls under must have room. Without an origin.
    pub limits: Vec<RateLimit>,
    /// Where the host was written.
    pub place: Place,
}
