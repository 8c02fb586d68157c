//! Where requests go: matches, targets with weights, and what happens to a request on its way.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Host, Origin, Percent, Place, RetryIntent, StringMatch, Visibility};

/// Routing for a set of hosts. The first matching route wins; a request that matches none is answered 404.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteIntent {
    /// The object that says so.
    pub origin: Origin,
    /// Resolved hosts; may hold wildcards (`*`, `*.example.com`). Never empty.
    pub hosts: Vec<Host>,
    /// Where the hosts were written, for findings.
    pub place: Place,
    /// Which clients it applies to.
    pub visibility: Visibility,
    /// HTTP routes in order. Empty = this object says nothing about HTTP.
    pub http: Vec<HttpRoute>,
    /// TCP routes in order. Empty = this object says nothing about TCP.
    pub tcp: Vec<TcpRoute>,
}

/// One HTTP route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRoute {
    /// The user's name for it.
    pub name: Option<String>,
    /// Any of these must hold; empty = every request.
    pub matches: Vec<HttpMatch>,
    /// What happens with the request.
    pub action: RouteAction,
    /// Applied to the request before it is sent.
    pub rewrite: Option<Rewrite>,
    /// For every target; a target's own edits come first.
    pub headers: HeaderEdits,
    /// Whole request with all attempts; `None` = unlimited.
    pub timeout: Option<Duration>,
    /// Retries with defaults filled in.
    pub retry: RetryIntent,
    /// Injected once per request, before the retry loop.
    pub fault: FaultIntent,
    /// Where it was written.
    pub place: Place,
}

impl HttpRoute {
    /// Whether every request matches.
    pub fn is_catch_all(&self) -> bool {
        self.matches.is_empty() || self.matches.iter().any(HttpMatch::is_catch_all)
    }
}

/// Conditions that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpMatch {
    /// The user's name for it.
    pub name: Option<String>,
    /// The path without the query.
    pub uri: Option<StringMatch>,
    /// Compare `uri` without regard to case (exact and prefix only).
    pub ignore_uri_case: bool,
    /// `:scheme`.
    pub scheme: Option<StringMatch>,
    /// The method.
    pub method: Option<StringMatch>,
    /// `Host` or `:authority`.
    pub authority: Option<StringMatch>,
    /// Headers that must match, and (inverted) those that must not.
    pub headers: Vec<NamedMatch>,
    /// Query parameters that must match.
    pub query: Vec<NamedMatch>,
    /// The destination port.
    pub port: Option<u16>,
    /// Labels of the calling workload.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the calling workload.
    pub source_namespace: Option<String>,
    /// Where it was written.
    pub place: Place,
}

impl HttpMatch {
    /// Whether every request matches.
    pub fn is_catch_all(&self) -> bool {
        self.uri.as_ref().is_none_or(|uri| uri.is_any() || *uri == StringMatch::Prefix("/".to_owned()))
            && self.scheme.is_none()
            && self.method.as_ref().is_none_or(StringMatch::is_any)
            && self.authority.as_ref().is_none_or(StringMatch::is_any)
            && self.headers.is_empty()
            && self.query.is_empty()
            && self.port.is_none()
            && self.source_labels.is_empty()
            && self.source_namespace.is_none()
    }
}

/// A header or query parameter and its condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedMatch {
    /// Header names are in lower case.
    pub name: String,
    /// What its value must be.
    pub value: StringMatch,
    /// The condition must not hold (`withoutHeaders`): an absent header satisfies it.
    pub invert: bool,
}

/// What a route does with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteAction {
    /// Sends it to one of the targets by weight. Never empty.
    Forward(Vec<WeightedTarget>),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Answers itself.
    Respond(DirectResponse),
}

impl RouteAction {
    /// The targets, none for an answer of our own.
    pub fn targets(&self) -> &[WeightedTarget] {
        match self {
            Self::Forward(targets) => targets,
            Self::Redirect(_) | Self::Respond(_) => &[],
        }
    }
}

/// A destination service, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Resolved host.
    pub host: Host,
    /// A subset of the host's `DestinationIntent`.
    pub subset: Option<String>,
    /// The service's port; `None` = the port that the request came for, or the service's only one.
    pub port: Option<u16>,
}

/// A target and its share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedTarget {
    /// Where to.
    pub target: Target,
    /// Share of the sum of all weights of the route; 0 = nothing. A lone target without a weight has 1.
    pub weight: u32,
    /// Header edits for this target only.
    pub headers: HeaderEdits,
    /// Where it was written.
    pub place: Place,
}

/// Header edits of both directions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderEdits {
    /// On the request.
    pub request: HeaderOps,
    /// On the response.
    pub response: HeaderOps,
}

/// Order of application: remove, set, add.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderOps {
    /// Replaces all values.
    pub set: Vec<(String, String)>,
    /// Adds a value.
    pub add: Vec<(String, String)>,
    /// Names to remove.
    pub remove: Vec<String>,
}

impl HeaderOps {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// A redirect; what is `None` stays as in the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// The whole path.
    pub uri: Option<String>,
    /// Replaces only the prefix that matched.
    pub prefix_rewrite: Option<String>,
    /// Host of the location.
    pub authority: Option<String>,
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Port of the location.
    pub port: Option<RedirectPort>,
    /// 301 by default.
    pub code: u16,
}

/// Port of a redirect's location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RedirectPort {
    /// This one.
    Fixed(u16),
    /// The default of the scheme.
    SchemeDefault,
    /// The one of the request.
    Request,
}

/// A changed request line; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// Replaces the prefix that matched, or the whole path after an exact or regex match.
    pub uri: Option<String>,
    /// Replaces the authority.
    pub authority: Option<String>,
    /// Replaces by pattern.
    pub uri_regex: Option<RegexRewrite>,
}

/// RE2 substitution on the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegexRewrite {
    /// The pattern, valid.
    pub pattern: String,
    /// `\1` is the first group.
    pub substitution: String,
}

/// An answer of the proxy's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Faults to inject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultIntent {
    /// Waits first.
    pub delay: Option<FaultDelay>,
    /// Then answers instead of the upstream.
    pub abort: Option<FaultAbort>,
}

/// An injected delay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultDelay {
    /// How long.
    pub duration: Duration,
    /// For which share of requests.
    pub percent: Percent,
}

/// An injected failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultAbort {
    /// With what.
    pub status: AbortStatus,
    /// For which share of requests.
    pub percent: Percent,
}

/// Status of an injected failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AbortStatus {
    /// HTTP status, 200 to 599.
    Http(u16),
    /// gRPC status, 0 to 16, as trailers-only response.
    Grpc(u32),
}

/// One TCP route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpRoute {
    /// Any of these must hold; empty = every connection.
    pub matches: Vec<TcpMatch>,
    /// By weight, per connection. Never empty.
    pub targets: Vec<WeightedTarget>,
    /// Where it was written.
    pub place: Place,
}

/// Conditions on a connection that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpMatch {
    /// The destination port.
    pub port: Option<u16>,
    /// Labels of the calling workload.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the calling workload.
    pub source_namespace: Option<String>,
}
