//! Listeners and filter chains: what is done with a connection to an address.
//!
//! Stands for `envoy.config.listener.v3.Listener` with the HTTP connection manager, the TCP proxy and the RBAC network filter.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::concurrency::AdaptiveConcurrency;
use crate::ext_authz::ExtAuthz;
use crate::filter::FilterConfig;
use crate::global_limit::GlobalLimits;
use crate::local_limit::LocalLimits;
use crate::origin::Origin;
use crate::path::PathNormalization;
use crate::policy::Rbac;
use crate::rate_limit::RateLimit;
use crate::route::{Fault, RouteConfig, WeightedCluster};
use crate::token::JwtAuthn;

/// One listener: the destination addresses that it serves and its filter chains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// Unique name, such as `inbound|127.0.0.5:8080` or `outbound|8080||catalog.shop.svc.cluster.local`.
    pub name: String,
    /// Inbound (to our workload) or outbound (from it). Envoy `traffic_direction`.
    pub direction: Direction,
    /// The original destinations that it serves: service or workload addresses. For Envoy the addresses to bind.
    /// Empty: reached only by name (a destination without an address).
    pub addresses: Vec<SocketAddr>,
    /// First match wins after Envoy's ordering by specificity, see [`Listener::select`].
    pub chains: Vec<FilterChain>,
    /// Serves connections that no chain matches. Absent: they are refused.
    pub default_chain: Option<FilterChain>,
}

/// Direction of traffic, seen from the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

/// One way to treat a connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FilterChain {
    /// Name for logs and dumps.
    pub name: String,
    /// Which connections it takes.
    pub matches: ChainMatch,
    /// Terminates TLS. Absent: plain text (or the application's own TLS, passed through).
    pub tls: Option<ServerTls>,
    /// Authorization at L4, evaluated in order; all must allow.
    pub authorization: Vec<Rbac>,
    /// What happens then.
    pub terminal: Terminal,
    /// The user object that routes its connections; absent: nobody's rule, or routes that have origins of their own.
    #[serde(default)]
    pub origin: Option<Origin>,
}

impl FilterChain {
    /// For every connection, in plain text, without authorization.
    pub fn new(name: impl Into<String>, terminal: Terminal) -> Self {
        Self {
            name: name.into(),
            matches: ChainMatch::default(),
            tls: None,
            authorization: Vec::new(),
            terminal,
            origin: None,
        }
    }
}

/// `FilterChainMatch`: every given condition must hold; empty lists hold always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainMatch {
    /// The port of the original destination.
    pub destination_port: Option<u16>,
    /// Server names of the ClientHello: exact, or `*.suffix`.
    pub server_names: Vec<String>,
    /// What the first bytes are.
    pub transport: TransportMatch,
    /// For TLS any of the ALPN names that the client offered; for plain text `http/1.1` or `h2c` as detected.
    pub application_protocols: Vec<String>,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransportMatch {
    /// Does not matter.
    #[default]
    Any,
    /// A TLS ClientHello (`transport_protocol: tls`).
    Tls,
    /// Anything else (`raw_buffer`).
    Plain,
}

/// How TLS is terminated (`DownstreamTlsContext`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerTls {
    /// The mesh's mTLS: our SVID, TLS 1.3, a client certificate of a trusted domain is required.
    Mesh {
        /// Offered ALPN names, most wanted first.
        alpn: Vec<String>,
    },
}

/// The end of a filter chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Terminal {
    /// `HttpConnectionManager`.
    Http(Box<HttpConnection>),
    /// `TcpProxy`.
    Tcp(TcpProxy),
}

/// The HTTP connection manager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpConnection {
    /// Where routes come from.
    pub routes: RouteSource,
    /// Request filters in order; the router is implied at the end.
    pub filters: Vec<HttpFilter>,
    /// The codec.
    pub codec: Codec,
    /// Traces are recorded. Absent: context is only passed on.
    pub tracing: Option<Tracing>,
    /// Largest request head, in KiB. Default 60.
    pub max_request_headers_kb: u32,
    /// A request's head must arrive within this time. Default 10 s; zero is off.
    pub request_headers_timeout: Duration,
    /// A stream without any byte in either direction ends after this time. Default 5 min; zero is off.
    pub stream_idle_timeout: Duration,
    /// A stream lasts no longer, whatever is on its way; a route may say otherwise. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_stream_duration: Option<Duration>,
    /// A connection without requests is closed after this time. Default 1 h; zero is off.
    pub idle_timeout: Duration,
    /// A connection that is so old takes leave: what it has under way goes on (`max_connection_duration`). Absent: it does not age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<Duration>,
    /// What is made equal in paths before routing and policy (`normalize_path` and its siblings).
    #[serde(default)]
    pub path: PathNormalization,
    /// Protocols that a request may switch to (`upgrade_configs`), in lower case; a route may say otherwise. Default
    /// `websocket`. CONNECT is no matter of this list: it needs a route, see [`PathMatch::Connect`].
    ///
    /// [`PathMatch::Connect`]: crate::route::PathMatch::Connect
    #[serde(default = "websocket")]
    pub upgrades: Vec<String>,
}

fn websocket() -> Vec<String> {
    vec!["websocket".to_owned()]
}

impl HttpConnection {
    /// With the default limits, no filters and no tracing.
    pub fn new(routes: RouteSource) -> Self {
        Self {
            routes,
            filters: Vec::new(),
            codec: Codec::Auto,
            tracing: None,
            max_request_headers_kb: 60,
            request_headers_timeout: Duration::from_secs(10),
            stream_idle_timeout: Duration::from_secs(300),
            max_stream_duration: None,
            idle_timeout: Duration::from_secs(3600),
            max_connection_duration: None,
            path: PathNormalization::default(),
            upgrades: websocket(),
        }
    }
}

/// Routes by name (RDS) or in place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RouteSource {
    /// The name of a route configuration.
    Named(String),
    /// In place.
    Inline(RouteConfig),
}

/// `codec_type`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// From ALPN or the connection preface.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, prior knowledge.
    Http2,
}

/// Sampling of root spans.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tracing {
    /// Percentage of requests without a sampling decision of their own that are recorded, 0–100.
    pub random_sampling: f64,
}

/// One row for each filter.
macro_rules! filters {
    ($($(#[$what:meta])* $name:ident($config:ty),)*) => {
        /// A request filter.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub enum HttpFilter {
            $($(#[$what])* $name($config),)*
        }

        impl HttpFilter {
            fn config(&self) -> &dyn FilterConfig {
                match self {
                    $(Self::$name(config) => config,)*
                }
            }
        }
    };
}

filters! {
    /// `envoy.filters.http.rbac`.
    Rbac(Rbac),
    /// `envoy.filters.http.fault`, listener-wide; a route's own fault replaces it.
    Fault(Fault),
    /// `envoy.filters.http.ext_authz`.
    ExtAuthz(Box<ExtAuthz>),
    /// Of ours: how many requests pass. All limits that a request falls under must have room, in order.
    RateLimit(Vec<RateLimit>),
    /// `envoy.filters.http.adaptive_concurrency`.
    Concurrency(Box<AdaptiveConcurrency>),
    /// `envoy.filters.http.local_ratelimit`.
    LocalLimit(Box<LocalLimits>),
    /// A service is asked how many requests pass.
    GlobalLimit(Box<GlobalLimits>),
    /// `envoy.filters.http.jwt_authn`.
    Tokens(Box<JwtAuthn>),
}

impl HttpFilter {
    /// The cluster that it asks.
    pub(crate) fn cluster(&self) -> Option<&str> {
        self.config().cluster()
    }

    /// The user objects that it comes from.
    pub(crate) fn origins(&self) -> Vec<&Origin> {
        self.config().origins()
    }
}

/// The TCP proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TcpProxy {
    /// Where connections go, by weight.
    pub clusters: Vec<WeightedCluster>,
    /// A tunnel without any byte in either direction ends after this time. Default 1 h; zero is off.
    pub idle_timeout: Duration,
    /// A connection ends when it is so old, whatever is on its way (`max_downstream_connection_duration`). Absent: it does not age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<Duration>,
}

impl TcpProxy {
    /// To these clusters, by weight, with an hour for silence.
    pub fn new(clusters: Vec<WeightedCluster>) -> Self {
        Self { clusters, idle_timeout: Duration::from_secs(3600), max_duration: None }
    }

    /// The first of its times for a connection on which nothing ever comes; zero: it has none.
    pub fn quiet(&self) -> Duration {
        match self.max_duration {
            Some(longest) if self.idle_timeout.is_zero() || longest < self.idle_timeout => longest,
            _ => self.idle_timeout,
        }
    }
}

/// What is known of a connection when its filter chain is chosen.
#[derive(Debug, Clone, Copy)]
pub struct ChainInput<'a> {
    /// The port of the original destination.
    pub destination_port: u16,
    /// It began with a ClientHello.
    pub tls: bool,
    /// The server name of the ClientHello.
    pub server_name: Option<&'a str>,
    /// ALPN names that the client offered, or what was detected in plain text.
    pub application_protocols: &'a [&'a str],
}

impl Listener {
    /// Reached by name, without a chain.
    pub fn new(name: impl Into<String>, direction: Direction) -> Self {
        Self { name: name.into(), direction, addresses: Vec::new(), chains: Vec::new(), default_chain: None }
    }

    /// The chain for a connection: Envoy's order, destination port first, then server name (exact before the longest
    /// suffix), transport, application protocol; a chain that names a condition goes before one that does not.
    pub fn select(&self, input: &ChainInput<'_>) -> Option<&FilterChain> {
        self.chains
            .iter()
            .filter_map(|chain| chain.matches.score(input).map(|score| (score, chain)))
            .reduce(|best, next| if next.0 > best.0 { next } else { best })
            .map(|(_, chain)| chain)
            .or(self.default_chain.as_ref())
    }

    /// Whether some chain asks what the first bytes are, so that they must be seen before a chain can be chosen.
    pub fn needs_first_bytes(&self) -> bool {
        self.chains.iter().any(|chain| {
            let m = &chain.matches;
            m.transport != TransportMatch::Any
                || !m.application_protocols.is_empty()
                || !m.server_names.is_empty()
        })
    }
}

/// Specificity of a match, compared lexicographically.
type Score = (bool, usize, bool, bool);

impl ChainMatch {
    fn score(&self, input: &ChainInput<'_>) -> Option<Score> {
        if self.destination_port.is_some_and(|port| port != input.destination_port) {
            return None;
        }
        let names = if self.server_names.is_empty() {
            0
        } else {
            self.server_names.iter().filter_map(|name| name_score(name, input.server_name?)).max()?
        };
        match self.transport {
            TransportMatch::Tls if !input.tls => return None,
            TransportMatch::Plain if input.tls => return None,
            _ => {}
        }
        let any_protocol = self.application_protocols.is_empty();
        if !any_protocol
            && !self.application_protocols.iter().any(|p| input.application_protocols.contains(&p.as_str()))
        {
            return None;
        }
        Some((self.destination_port.is_some(), names, self.transport != TransportMatch::Any, !any_protocol))
    }
}

fn name_score(pattern: &str, name: &str) -> Option<usize> {
    if let Some(suffix) = pattern.strip_prefix('*') {
        return (name.len() > suffix.len()
            && name.as_bytes()[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes()))
        .then_some(suffix.len() + 1);
    }
    pattern.eq_ignore_ascii_case(name).then_some(usize::MAX)
}

#[cfg(test)]
mod tests;
