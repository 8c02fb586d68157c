//! When a request is tried again, and how long is waited before.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::invalid::{Flaw, Under};
use crate::matcher::HeaderMatch;
use crate::matcher::header::CompiledHeader;
use crate::request::RequestView;

/// When and how a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Conditions, any of which permits a retry.
    pub on: Vec<RetryOn>,
    /// Statuses that permit a retry (`retriable-status-codes`).
    pub statuses: Vec<u16>,
    /// Retries after the first attempt.
    pub attempts: u32,
    /// Of one attempt. Absent: only the route's timeout.
    pub per_try_timeout: Option<Duration>,
    /// Base of the exponential back-off with full jitter. Default 25 ms.
    pub backoff_base: Duration,
    /// Longest back-off. Default ten times the base.
    pub backoff_max: Duration,
    /// Endpoints already tried are avoided while others exist. Default true.
    pub avoid_previous_hosts: bool,
    /// After each so many attempts the priorities that were tried are left, until there is none but those: then it is as if nothing had
    /// been tried (`previous_priorities`). 0: a retry goes where a request would. Default 0.
    #[serde(default)]
    pub leave_priorities: u32,
    /// Of one attempt without a byte of its response. Absent: only the stream's own limit.
    #[serde(default)]
    pub per_try_idle: Option<Duration>,
    /// How long is waited where the answer says so, in place of the back-off. Absent: what it says does not count.
    #[serde(default)]
    pub rate_limited: Option<Box<RateLimitedBackOff>>,
    /// Any of these in a response permits a retry (`retriable-headers`).
    #[serde(default)]
    pub response_headers: Vec<HeaderMatch>,
    /// Only requests with any of these are tried again. Empty: all are.
    #[serde(default)]
    pub request_headers: Vec<HeaderMatch>,
}

/// How long is waited where an answer says when to come again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimitedBackOff {
    /// Where it says so: the first of them that holds a time of at most `max`. At least one.
    pub headers: Vec<ResetHeader>,
    /// A longer time does not count. Default 5 minutes.
    pub max: Duration,
}

/// A header of an answer that says when to come again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetHeader {
    /// Its name in lower case.
    pub name: String,
    /// Its value is a point in time, in seconds since 1970, and not a number of seconds from now.
    pub unix_timestamp: bool,
}

impl RateLimitedBackOff {
    /// Longest time that counts, where nothing is said.
    pub const MAX: Duration = Duration::from_secs(300);
    /// Most headers.
    pub const MOST_HEADERS: usize = 8;

    /// What an answer says, in whole seconds; `value` finds a header, `now` is in seconds since 1970.
    pub fn interval<'s>(&'s self, value: impl Fn(&'s str) -> Option<&'s [u8]>, now: u64) -> Option<Duration> {
        self.headers.iter().find_map(|header| {
            let text = std::str::from_utf8(value(&header.name)?).ok()?.trim();
            let seconds = match text.parse::<u64>() {
                Ok(time) if header.unix_timestamp => time.checked_sub(now)?,
                Ok(seconds) => seconds,
                Err(_) => header.date(text)?.checked_sub(now)?,
            };
            Some(Duration::from_secs(seconds)).filter(|interval| *interval <= self.max)
        })
    }
}

impl ResetHeader {
    /// `Retry-After` may be a date as well (RFC 9110, section 10.2.3): in seconds since 1970.
    fn date(&self, text: &str) -> Option<u64> {
        let is_date = self.name.eq_ignore_ascii_case("retry-after") && !self.unix_timestamp;
        let date = is_date.then(|| httpdate::parse_http_date(text).ok()).flatten()?;
        date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
    }
}

impl Default for RetryPolicy {
    /// Outrigger's default: at most 2 retries, only of what provably never reached the application.
    fn default() -> Self {
        Self {
            on: vec![RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::ResetBeforeRequest],
            statuses: Vec::new(),
            attempts: 2,
            per_try_timeout: None,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            avoid_previous_hosts: true,
            leave_priorities: 0,
            per_try_idle: None,
            rate_limited: None,
            response_headers: Vec::new(),
            request_headers: Vec::new(),
        }
    }
}

impl RetryPolicy {
    /// Attempts in each priority before it is left, where a rule says that it is to be: Istio's.
    pub const ATTEMPTS_OF_PRIORITY: u32 = 2;

    /// With this base of the back-off, if there is one, and ten times as much at most.
    #[must_use]
    pub fn with_backoff(self, base: Option<Duration>) -> Self {
        match base {
            Some(base) => Self { backoff_base: base, backoff_max: base.saturating_mul(10), ..self },
            None => self,
        }
    }
}

/// What a policy asks of headers, compiled.
#[derive(Debug)]
pub struct RetryHeaders {
    response: Vec<CompiledHeader>,
    request: Vec<CompiledHeader>,
}

impl RetryHeaders {
    /// Of a policy that asks anything.
    pub(crate) fn compile(policy: Option<&RetryPolicy>) -> Result<Option<Box<Self>>, Flaw> {
        let asks =
            |policy: &&RetryPolicy| !policy.response_headers.is_empty() || !policy.request_headers.is_empty();
        let Some(policy) = policy.filter(asks) else { return Ok(None) };
        let compiled = |headers: &[HeaderMatch], field: &str| {
            let headers = headers.iter().enumerate();
            let one = |(i, header)| CompiledHeader::compile(header).under(format_args!("{field}[{i}]"));
            headers.map(one).collect::<Result<Vec<_>, _>>()
        };
        Ok(Some(Box::new(Self {
            response: compiled(&policy.response_headers, "retriable_headers")?,
            request: compiled(&policy.request_headers, "retriable_request_headers")?,
        })))
    }

    /// Whether a request may be tried again at all.
    pub fn lets<R: RequestView>(&self, request: &R) -> bool {
        self.request.is_empty() || self.request.iter().any(|header| header.routes(request))
    }

    /// Whether a response has what permits a retry.
    pub fn permit<R: RequestView>(&self, response: &R) -> bool {
        self.response.iter().any(|header| header.routes(response))
    }
}

/// Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on` conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RetryOn {
    /// `5xx`: any 5xx, or no response at all.
    FiveXx,
    /// `gateway-error`: 502, 503, 504.
    GatewayError,
    /// `reset`: no response at all, or none within the time of an attempt.
    Reset,
    /// `reset-before-request`: reset before any request byte was sent.
    ResetBeforeRequest,
    /// `connect-failure`.
    ConnectFailure,
    /// `refused-stream`: REFUSED_STREAM or GOAWAY below the stream's id, or the peer's own mark.
    RefusedStream,
    /// `retriable-4xx`: 409.
    Retriable4xx,
    /// `retriable-status-codes`.
    RetriableStatusCodes,
    /// `retriable-headers`.
    RetriableHeaders,
    /// `envoy-ratelimited`: the answer says that a rate limit refused it.
    RateLimited,
    /// gRPC `cancelled` (1).
    Cancelled,
    /// gRPC `deadline-exceeded` (4).
    DeadlineExceeded,
    /// gRPC `resource-exhausted` (8).
    ResourceExhausted,
    /// gRPC `internal` (13).
    Internal,
    /// gRPC `unavailable` (14).
    Unavailable,
}

impl RetryOn {
    /// Names as in Envoy.
    pub const NAMES: [(&'static str, Self); 15] = [
        ("5xx", Self::FiveXx),
        ("gateway-error", Self::GatewayError),
        ("reset", Self::Reset),
        ("reset-before-request", Self::ResetBeforeRequest),
        ("connect-failure", Self::ConnectFailure),
        ("refused-stream", Self::RefusedStream),
        ("retriable-4xx", Self::Retriable4xx),
        ("retriable-status-codes", Self::RetriableStatusCodes),
        ("retriable-headers", Self::RetriableHeaders),
        ("envoy-ratelimited", Self::RateLimited),
        ("cancelled", Self::Cancelled),
        ("deadline-exceeded", Self::DeadlineExceeded),
        ("resource-exhausted", Self::ResourceExhausted),
        ("internal", Self::Internal),
        ("unavailable", Self::Unavailable),
    ];

    /// By Envoy's name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, on)| *on)
    }

    /// Envoy's name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, on)| *on == self).map_or("", |(n, _)| n)
    }

    /// Whether the condition is one of gRPC's.
    pub fn is_grpc(self) -> bool {
        matches!(
            self,
            Self::Cancelled
                | Self::DeadlineExceeded
                | Self::ResourceExhausted
                | Self::Internal
                | Self::Unavailable
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_when_to_come_again_in_the_first_header_that_counts() {
        let header = |name: &str, unix_timestamp| ResetHeader { name: name.into(), unix_timestamp };
        let headers = vec![header("retry-after", false), header("x-reset", true)];
        let back_off = RateLimitedBackOff { headers, max: Duration::from_secs(10) };
        let interval = |after: &'static str, reset: &'static str| {
            let value = |name: &str| {
                let text = if name == "retry-after" { after } else { reset };
                (!text.is_empty()).then_some(text.as_bytes())
            };
            back_off.interval(value, 1_000).map(|interval| interval.as_secs())
        };
        assert_eq!(interval("3", "1009"), Some(3));
        assert_eq!(interval("10", ""), Some(10));
        assert_eq!(interval("11", "1009"), Some(9), "one that is too long does not count");
        assert_eq!(interval("", "999"), None, "what is past says nothing");
        for other in ["", "-1", "1.5", "Wed, 21 Oct 2015 07:28:00 GMT", "99999999999999999999"] {
            assert_eq!(interval(other, ""), None, "{other}");
        }
    }

    #[test]
    fn retry_after_may_be_a_date_in_each_of_the_three_formats() {
        let back_off = |name: &str, unix_timestamp| RateLimitedBackOff {
            headers: vec![ResetHeader { name: name.into(), unix_timestamp }],
            max: Duration::from_secs(60),
        };
        let after = back_off("Retry-After", false);
        let interval = |back_off: &RateLimitedBackOff, text: &str, now| {
            back_off.interval(|_| Some(text.as_bytes()), now).map(|interval| interval.as_secs())
        };
        // RFC 9110, section 5.6.7.
        for date in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(interval(&after, date, 784_111_767), Some(10), "{date}");
            assert_eq!(interval(&after, date, 784_111_777), Some(0), "{date}: now");
            assert_eq!(interval(&after, date, 784_111_778), None, "{date} is past");
            assert_eq!(interval(&after, date, 784_111_700), None, "{date} is too far");
            assert_eq!(
                interval(&back_off("x-reset", false), date, 784_111_767),
                None,
                "only Retry-After has dates"
            );
            assert_eq!(
                interval(&back_off("retry-after", true), date, 784_111_767),
                None,
                "nor as a timestamp"
            );
        }
        for other in [
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 25:49:37 GMT",
            "x",
        ] {
            assert_eq!(interval(&after, other, 784_111_767), None, "{other}");
        }
    }
}
