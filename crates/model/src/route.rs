//! Route configurations: from a request to weighted clusters, with its retries, timeouts and faults.
//!
//! Stands for `envoy.config.route.v3.RouteConfiguration`. How a request is matched is `route/table.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::Part;
use crate::ext_authz::RouteAuthz;
use crate::filter::FilterConfig;
use crate::local_limit::LocalLimit;
pub use crate::matcher::HeaderMatch;
use crate::matcher::StringMatch;
use crate::origin::Origin;

pub mod cors;
pub mod edits;
pub mod hedge;
pub mod limits;
pub mod mirror;
pub mod retry;
mod rewrite;
pub mod session;
pub mod table;
pub mod text;

pub use cors::Cors;
pub use edits::{HeaderEdits, Written};
pub use hedge::{HedgeDelay, HedgePolicy, MOST_HEDGES};
pub use limits::{GrpcTimeout, StreamLimits};
pub use mirror::Mirror;
pub use retry::{RateLimitedBackOff, ResetHeader, RetryHeaders, RetryOn, RetryPolicy};
pub use session::{Session, SessionBy};
pub use text::HeaderText;

/// A set of virtual hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteConfig {
    /// Unique name, such as `8080` or `outbound|8080||catalog.shop.svc.cluster.local`.
    pub name: String,
    /// Chosen by authority.
    pub virtual_hosts: Vec<VirtualHost>,
}

/// Routes for some authorities.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VirtualHost {
    /// Name for logs, metrics and errors.
    pub name: String,
    /// `host`, `host:port`, `*.suffix`, `prefix.*` or `*`; a domain occurs once per route configuration.
    pub domains: Vec<String>,
    /// First match wins.
    pub routes: Vec<Route>,
    /// Retries of routes that have none of their own.
    pub retry: Option<RetryPolicy>,
}

/// One route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Name for the access log (`%ROUTE_NAME%`) and `http.route`; may be empty.
    pub name: String,
    /// Which requests it takes.
    pub matches: RouteMatch,
    /// What is done with them.
    pub action: RouteAction,
    /// Injected faults; replaces the listener's.
    pub fault: Option<Fault>,
    /// Which other origins may call it. Acts on requests that are forwarded.
    #[serde(default)]
    pub cors: Option<Cors>,
    /// What leads a client's requests to the endpoint that has answered its first one. Acts on requests that are forwarded.
    #[serde(default)]
    pub session: Option<Box<Session>>,
    /// What it wants of filters that ask, by their names.
    #[serde(default)]
    pub authz: BTreeMap<String, RouteAuthz>,
    /// Its limits instead of those of filters of these names.
    #[serde(default)]
    pub local_limits: BTreeMap<String, LocalLimit>,
    /// Edits of the request before it is forwarded.
    pub request_headers: HeaderEdits,
    /// Edits of the response.
    pub response_headers: HeaderEdits,
    /// The user object that it comes from.
    pub origin: Option<Origin>,
}

/// All conditions must hold; by default there is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RouteMatch {
    /// On the path without its query.
    pub path: PathMatch,
    /// ASCII case of the path is ignored (not for regular expressions).
    pub ignore_case: bool,
    /// On headers; `:method`, `:authority`, `:scheme` and `:path` are headers too.
    pub headers: Vec<HeaderMatch>,
    /// On query parameters.
    pub query: Vec<QueryMatch>,
    /// On cookies.
    #[serde(default)]
    pub cookies: Vec<CookieMatch>,
}

impl RouteMatch {
    /// Takes every request.
    pub fn any() -> Self {
        Self::default()
    }
}

/// On the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMatch {
    /// Equal.
    Exact(String),
    /// Starts with; `/` also takes `*`.
    Prefix(String),
    /// Equal, or starts with it and a `/` (`path_separated_prefix`).
    Segments(String),
    /// The whole path matches (RE2).
    Regex(String),
    /// A CONNECT request (`connect_matcher`); no other match takes one.
    Connect,
}

impl Default for PathMatch {
    fn default() -> Self {
        Self::Prefix("/".into())
    }
}

/// On a cookie: of several of one name the first counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CookieMatch {
    /// Its name, in this case.
    pub name: String,
    /// On its value, without the quotes that it may be in.
    pub value: StringMatch,
    /// The result is negated; an absent cookie then matches.
    pub invert: bool,
}

/// On a query parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryMatch {
    /// Its name.
    pub name: String,
    /// On its first value.
    pub value: StringMatch,
}

/// What is done with a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)] // nearly all are Forward
pub enum RouteAction {
    /// Send it to a cluster.
    Forward(Forward),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer at once.
    Direct {
        /// HTTP status.
        status: u16,
        /// The body.
        body: String,
    },
}

impl Default for RouteAction {
    fn default() -> Self {
        Self::Forward(Forward::default())
    }
}

/// `RouteAction` of Envoy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// Chosen by weight; at least one, and not all of weight 0.
    pub clusters: Vec<WeightedCluster>,
    /// From the end of the request to the end of the response, retries included. Absent: none.
    pub timeout: Option<Duration>,
    /// How long its streams may last and be silent. Absent: as the listener says.
    #[serde(default)]
    pub limits: Option<Box<StreamLimits>>,
    /// Retries. Absent: the virtual host's; absent there too: none.
    pub retry: Option<RetryPolicy>,
    /// Another attempt beside one that is slow. Absent: none.
    #[serde(default)]
    pub hedge: Option<Box<HedgePolicy>>,
    /// Edits of path and authority.
    pub rewrite: Rewrite,
    /// What consistent hashing hashes, in order.
    pub hash: Vec<HashOn>,
    /// Protocols that a request may switch to on this route, or not, whatever the listener says (`upgrade_configs`).
    #[serde(default)]
    pub upgrades: Vec<RouteUpgrade>,
    /// Clusters that get copies of the requests.
    #[serde(default)]
    pub mirrors: Vec<Mirror>,
    /// What is answered where the picked cluster is not there.
    #[serde(default)]
    pub no_cluster: NoCluster,
}

/// What is answered where a cluster is not there (`cluster_not_found_response_code`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoCluster {
    /// 503.
    #[default]
    Unavailable,
    /// 404.
    NotFound,
    /// 500.
    InternalError,
}

impl NoCluster {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Unavailable => 503,
            Self::NotFound => 404,
            Self::InternalError => 500,
        }
    }
}

/// Whether requests of a route may switch to a protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteUpgrade {
    /// In lower case, such as `websocket`.
    pub protocol: String,
    /// They may.
    pub allowed: bool,
}

impl RouteUpgrade {
    /// Whether a text is the name of a protocol: a token, or one with a version (RFC 9110, section 7.8).
    pub fn is_name(text: &str) -> bool {
        let char = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let token = |part: &str| !part.is_empty() && part.bytes().all(char);
        text.len() <= 64 && text.splitn(2, '/').all(token)
    }
}

impl Forward {
    /// Whether a request may switch to a protocol, which is compared without its version: the route's word, else the
    /// listener's.
    pub fn allows_upgrade(&self, protocol: &str, listener: &[String]) -> bool {
        let name = protocol.split('/').next().unwrap_or_default();
        let is = |known: &str| known.eq_ignore_ascii_case(protocol) || known.eq_ignore_ascii_case(name);
        match self.upgrades.iter().find(|upgrade| is(&upgrade.protocol)) {
            Some(upgrade) => upgrade.allowed,
            None => listener.iter().any(|known| is(known)),
        }
    }
}

/// A cluster and its share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WeightedCluster {
    /// The name of a cluster.
    pub cluster: String,
    /// Its share of the sum; 0 gets nothing.
    pub weight: u32,
    /// Edits for this cluster only.
    pub request_headers: HeaderEdits,
    /// Edits for this cluster only.
    pub response_headers: HeaderEdits,
    /// Replaces the authority for this cluster only, unless the route itself does (`host_rewrite_literal`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Only this part of it. Absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Box<Part>>,
}

impl WeightedCluster {
    /// The whole share, no edits.
    pub fn only(cluster: impl Into<String>) -> Self {
        Self::share(cluster, 1)
    }

    /// A share, no edits.
    pub fn share(cluster: impl Into<String>, weight: u32) -> Self {
        Self { cluster: cluster.into(), weight, ..Self::default() }
    }
}

/// Edits of path and authority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// Replaces what the path match matched (`prefix_rewrite`).
    pub prefix: Option<String>,
    /// Replaces by regular expression: pattern and substitution with `\1`.
    pub regex: Option<(String, String)>,
    /// Replaces the authority.
    pub authority: Option<String>,
    /// Or by what the request itself says.
    #[serde(default)]
    pub authority_of: Option<AuthorityOf>,
    /// What the authority was is added to `x-forwarded-host` (`append_x_forwarded_host`).
    #[serde(default)]
    pub forwarded_host: bool,
}

/// What of a request replaces its authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthorityOf {
    /// The value of this header, by its lower-case name (`host_rewrite_header`); without it, nothing does.
    Header(String),
    /// The path without its query, changed by regular expression: pattern and substitution with `\1` (`host_rewrite_path_regex`).
    Path(String, String),
    /// The name of the endpoint that each attempt is sent to (`auto_host_rewrite`); without one, nothing does.
    Endpoint,
}

/// Source of a hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HashOn {
    /// A header by lower-case name.
    Header(String),
    /// A cookie.
    Cookie {
        /// Its name.
        name: String,
        /// Path of a cookie that we set.
        path: Option<String>,
        /// A client without the cookie is given one that lives so long; zero: for the browser's session. Absent: none is
        /// set.
        ttl: Option<Duration>,
    },
    /// A query parameter.
    Query(String),
    /// The address of the peer.
    SourceAddress,
}

/// `RedirectAction`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// New scheme.
    pub scheme: Option<String>,
    /// New authority.
    pub authority: Option<String>,
    /// New port.
    pub port: Option<u16>,
    /// New path; keeps the query unless it has one itself.
    pub path: Option<String>,
    /// Replaces the matched prefix.
    pub prefix: Option<String>,
    /// Replaces by regular expression in the path: pattern and substitution with `\1`.
    #[serde(default)]
    pub regex: Option<(String, String)>,
    /// The query is left behind.
    #[serde(default)]
    pub strip_query: bool,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Injected faults (`envoy.filters.http.fault`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// Wait before forwarding.
    pub delay: Option<FaultDelay>,
    /// Answer instead of forwarding.
    pub abort: Option<FaultAbort>,
}

impl FilterConfig for Fault {}

impl Fault {
    /// Nothing, if there is neither delay nor abort.
    pub fn if_any(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

/// An injected delay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultDelay {
    /// How long.
    pub duration: Duration,
    /// Of how many requests, 0–100.
    pub percentage: f64,
}

/// An injected answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultAbort {
    /// With what.
    pub status: FaultStatus,
    /// Of how many requests, 0–100.
    pub percentage: f64,
}

/// The status of an injected answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultStatus {
    /// HTTP status.
    Http(u16),
    /// gRPC status code.
    Grpc(u32),
}

impl FaultStatus {
    /// The status of HTTP with which a request is answered, which is a call of gRPC's or is not.
    pub fn answered(self, is_grpc: bool) -> u16 {
        match self {
            _ if is_grpc => 200,
            Self::Http(status) => status,
            Self::Grpc(status) => crate::grpc::http_of_grpc(status),
        }
    }
}
