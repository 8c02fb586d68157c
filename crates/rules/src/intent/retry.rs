//! When an attempt may be repeated, how often and how soon.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Percent;

/// Retries of one route. Absent in the source means [`RetryIntent::default`], which is safe for every request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryIntent {
    /// Further attempts after the first; 0 = no retries.
    pub attempts: u32,
    /// What an attempt must have ended with.
    pub on: RetryOn,
    /// Limit of one attempt; `None` = only the route's timeout.
    pub per_try_timeout: Option<Duration>,
    /// Waiting time before a further attempt.
    pub backoff: Backoff,
    /// Whether an attempt avoids the endpoints that were tried before.
    pub ignore_previous_hosts: bool,
    /// Whether an attempt may leave the locality; `None` = the mesh's default.
    pub remote_localities: Option<bool>,
    /// Budget of this route's own; `None` = that of the destination.
    pub budget: Option<RetryBudget>,
    /// Whether the user wrote this, rather than it being the default.
    pub explicit: bool,
}

impl Default for RetryIntent {
    fn default() -> Self {
        Self {
            attempts: 2,
            on: RetryOn::never_reached(),
            per_try_timeout: None,
            backoff: Backoff::default(),
            ignore_previous_hosts: true,
            remote_localities: None,
            budget: None,
            explicit: false,
        }
    }
}

/// Exponential backoff with full jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// First interval, default 25 ms.
    pub base: Duration,
    /// Largest interval; `None` = ten times the base.
    pub max: Option<Duration>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: None }
    }
}

/// How many retries may be in flight, relative to the requests in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryBudget {
    /// Share of the active requests, default 20 %.
    pub percent: Percent,
    /// Always allowed at once, default 3.
    pub min_concurrency: u32,
    /// Over which time requests are counted; 0 = those in flight.
    pub interval: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: Percent { per_million: 200_000 }, min_concurrency: 3, interval: Duration::ZERO }
    }
}

/// Envoy's retry conditions, by Envoy's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryCondition {
    /// The connection could not be made.
    ConnectFailure,
    /// The peer said REFUSED_STREAM, or GOAWAY below the stream's id.
    RefusedStream,
    /// The connection ended before anything of the request was sent.
    ResetBeforeRequest,
    /// The peer ended the connection or stream without a response.
    Reset,
    /// Any 5xx, or no response at all.
    #[serde(rename = "5xx")]
    ServerError,
    /// 502, 503 or 504.
    GatewayError,
    /// 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// One of [`RetryOn::statuses`].
    RetriableStatusCodes,
    /// The upstream's header `x-envoy-ratelimited` is present.
    EnvoyRatelimited,
    /// gRPC status 1.
    Cancelled,
    /// gRPC status 4.
    DeadlineExceeded,
    /// gRPC status 13.
    Internal,
    /// gRPC status 8.
    ResourceExhausted,
    /// gRPC status 14.
    Unavailable,
}

impl RetryCondition {
    /// Every condition with its spelling.
    pub const NAMES: [(&'static str, Self); 14] = [
        ("connect-failure", Self::ConnectFailure),
        ("refused-stream", Self::RefusedStream),
        ("reset-before-request", Self::ResetBeforeRequest),
        ("reset", Self::Reset),
        ("5xx", Self::ServerError),
        ("gateway-error", Self::GatewayError),
        ("retriable-4xx", Self::Retriable4xx),
        ("retriable-status-codes", Self::RetriableStatusCodes),
        ("envoy-ratelimited", Self::EnvoyRatelimited),
        ("cancelled", Self::Cancelled),
        ("deadline-exceeded", Self::DeadlineExceeded),
        ("internal", Self::Internal),
        ("resource-exhausted", Self::ResourceExhausted),
        ("unavailable", Self::Unavailable),
    ];

    /// Envoy's name.
    pub fn as_str(self) -> &'static str {
        Self::NAMES.iter().find(|(_, condition)| *condition == self).map_or("", |(name, _)| name)
    }

    /// The condition of that exact name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, condition)| *condition)
    }
}

/// The set of conditions under which an attempt is repeated. Displays as Envoy's list, statuses last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryOn {
    /// Any of these.
    pub conditions: BTreeSet<RetryCondition>,
    /// Or one of these response statuses.
    pub statuses: BTreeSet<u16>,
}

impl RetryOn {
    /// Our default: only what provably never reached the app.
    pub fn never_reached() -> Self {
        use RetryCondition::{ConnectFailure, RefusedStream, ResetBeforeRequest};
        Self::of(&[ConnectFailure, RefusedStream, ResetBeforeRequest])
    }

    /// What an Istio `retries` block without `retryOn` means.
    pub fn istio_default() -> Self {
        use RetryCondition::{Cancelled, ConnectFailure, RefusedStream, Unavailable};
        Self::of(&[ConnectFailure, RefusedStream, Unavailable, Cancelled])
    }

    /// Exactly these conditions.
    pub fn of(conditions: &[RetryCondition]) -> Self {
        Self { conditions: conditions.iter().copied().collect(), statuses: BTreeSet::new() }
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.conditions.iter().map(|condition| condition.as_str().to_owned());
        let all: Vec<String> = names.chain(self.statuses.iter().map(u16::to_string)).collect();
        f.write_str(&all.join(","))
    }
}
