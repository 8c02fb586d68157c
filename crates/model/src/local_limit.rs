//! `envoy.filters.http.local_ratelimit`, as other control planes have it: one token bucket for all requests of a place. Ours are
//! [`RateLimit`](crate::rate_limit::RateLimit)s, which can do more.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::filter::FilterConfig;
use crate::route::edits::HeaderEdits;

/// The filter of a listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalLimits {
    /// What routes know it by.
    pub name: String,
    /// What holds for requests whose routes say nothing.
    pub own: LocalLimit,
}

impl FilterConfig for LocalLimits {}

/// What holds in one place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalLimit {
    /// Its bucket. Nothing: every request passes.
    pub bucket: Option<Bucket>,
    /// Of so many percent of the requests a token is taken.
    pub enabled: f64,
    /// So many percent of those that find none are refused.
    pub enforced: f64,
    /// What they are answered.
    pub status: u16,
    /// To calls of gRPC: RESOURCE_EXHAUSTED, not what the status stands for.
    pub exhausted: bool,
    /// Headers of that answer.
    pub response_headers: HeaderEdits,
    /// Headers of requests that found no token and pass all the same.
    pub request_headers: HeaderEdits,
}

/// Tokens of all requests of a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Tells it from others.
    pub name: String,
    /// So many tokens come.
    pub tokens: u32,
    /// In this time.
    pub per: Duration,
    /// So many wait at most.
    pub most: u32,
}

impl LocalLimit {
    /// Every request passes.
    pub fn off() -> Self {
        Self {
            bucket: None,
            enabled: 0.0,
            enforced: 0.0,
            status: 429,
            exhausted: false,
            response_headers: HeaderEdits::default(),
            request_headers: HeaderEdits::default(),
        }
    }
}
