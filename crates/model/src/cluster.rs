//! Clusters: where requests can go, and how much of them at once.
//!
//! Stands for `envoy.config.cluster.v3.Cluster` without its endpoints (`endpoint.rs`).

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::endpoint::{EndpointSet, NamedAddress, ZoneAware};
use crate::identity::SpiffeId;
use crate::origin::Origin;

mod balance;
mod breaker;
mod check;
mod outlier;
mod subsets;

pub use balance::{
    Balance, LEAST_RING, LONGEST_METRIC, LeastOf, LoadReports, MAX_CHOICES, MAX_MAGLEV, MAX_RING,
    MOST_METRICS, SHORTEST_UPDATE, USUAL_RING, Warmup, is_prime,
};
pub use breaker::{Breaker, SHORTEST as SHORTEST_BREAKER_INTERVAL};
pub use check::{CHECK_METHODS, CheckHow, GrpcCheck, HealthCheck, HttpCheck, TcpCheck};
pub use outlier::{Enforcing, FailurePercentage, Outlier, SuccessRate};
pub use subsets::{Labels, Part, Selector, SubsetFallback, Subsets};

/// The proxy's own cluster of what leaves the mesh, where the connection was going; a control plane need not send it.
pub const PASSTHROUGH: &str = "PassthroughCluster";

/// A cluster that never is: the share of a route that has nowhere to go names it.
pub const NOWHERE: &str = "nowhere";

/// One upstream cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Unique name, `outbound|PORT|SUBSET|HOST` or `inbound|PORT||`.
    pub name: String,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// Of [`Discovery::OriginalDestination`]: another port than the client was going to (`upstream_port_override`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_port: Option<u16>,
    /// How one is picked.
    pub balance: Balance,
    /// Of [`Balance::Reported`]; absent: the defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_reports: Option<Box<LoadReports>>,
    /// A priority with so many requests in flight for each endpoint is full: what comes then goes to the next that is not, whoever of it
    /// is well. Absent: none is ever full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// Parts by metadata of endpoints. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subsets: Option<Box<Subsets>>,
    /// Places share requests by weights of their own, and not by those of their endpoints. Envoys must be told; our proxies see it in
    /// the places ([`LocalityEndpoints::weight`](crate::endpoint::LocalityEndpoints::weight)).
    #[serde(default)]
    pub place_weights: bool,
    /// The own zone takes what it can bear, beside the client's peers; only other control planes say so, as ours sends shares of places.
    /// Absent: all zones are alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_aware: Option<ZoneAware>,
    /// New endpoints get their share only little by little; not with consistent hashing. Absent: at once.
    #[serde(default)]
    pub warmup: Option<Warmup>,
    /// Of one TCP (and TLS) connection. Default 10 s.
    pub connect_timeout: Duration,
    /// Circuit-breaker limits, shared by all workers, exact.
    pub limits: Limits,
    /// Ejection of failing endpoints. Absent: none.
    pub outlier: Option<Outlier>,
    /// Opens where too much fails. Absent: never.
    #[serde(default)]
    pub breaker: Option<Box<Breaker>>,
    /// Asks endpoints whether they are well. Absent: nobody asks.
    #[serde(default)]
    pub health_check: Option<Box<HealthCheck>>,
    /// TLS to its endpoints.
    pub tls: ClientTls,
    /// Probes of connections without traffic. Absent: the proxy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Keepalive>,
    /// HTTP protocol to its endpoints.
    pub protocol: UpstreamProtocol,
    /// A pooled connection without requests is closed after this time. Default 1 h; zero is off.
    pub idle_timeout: Duration,
    /// Requests per connection; 0 is unlimited.
    pub max_requests_per_connection: u32,
    /// Streams of one HTTP/2 connection at a time, beside what the peer allows; 0 is unlimited.
    #[serde(default)]
    pub max_streams_per_connection: u32,
    /// A pooled connection takes no request once it is so old, and ends when it has none (`max_connection_duration`). Absent: it does not
    /// age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<Duration>,
    /// How long one attempt of a request may last, to the end of its response (`max_stream_duration`). Absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_stream_duration: Option<Duration>,
    /// The user object that shaped it.
    pub origin: Option<Origin>,
}

/// TCP's own probes (`tcp_keepalive`), in whole seconds. What is absent is the proxy's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keepalive {
    /// A connection is given up after so many without an answer.
    pub probes: Option<u32>,
    /// The first is sent after so long without traffic.
    pub time: Option<u32>,
    /// From one to the next.
    pub interval: Option<u32>,
}

impl Cluster {
    /// With EDS under its own name and all defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            discovery: Discovery::Eds { service_name: None },
            original_port: None,
            balance: Balance::LeastRequest,
            load_reports: None,
            capacity: None,
            subsets: None,
            place_weights: false,
            zone_aware: None,
            warmup: None,
            connect_timeout: Duration::from_secs(10),
            limits: Limits::default(),
            outlier: None,
            breaker: None,
            health_check: None,
            tls: ClientTls::None,
            keepalive: None,
            protocol: UpstreamProtocol::Follow,
            idle_timeout: Duration::from_secs(3600),
            max_requests_per_connection: 0,
            max_streams_per_connection: 0,
            max_connection_duration: None,
            max_stream_duration: None,
            origin: None,
        }
    }
}

impl Cluster {
    /// The endpoint set that it is filled from; absent where it needs none. Sets of names that DNS is asked about are the
    /// proxy's own: they are called after all that an answer depends on, so that other names are other sets.
    pub fn endpoints_name(&self) -> Option<Cow<'_, str>> {
        match &self.discovery {
            Discovery::Eds { service_name } => Some(service_name.as_deref().unwrap_or(&self.name).into()),
            Discovery::Dns(dns) => {
                let mut hasher = DefaultHasher::new();
                dns.hash(&mut hasher);
                Some(format!("dns|{}|{:016x}", self.name, hasher.finish()).into())
            }
            Discovery::Static(_) | Discovery::OriginalDestination => None,
        }
    }

    /// The same cluster without anybody to call, because its TLS cannot be: what an earlier version of it let through may have been plain
    /// text, and must not go on.
    #[must_use]
    pub fn barred(self, why: &str) -> Self {
        let trouble = format!("the TLS that it asks for cannot be set up: {why}");
        let nobody =
            EndpointSet { trouble: Some(trouble), ..EndpointSet::new(self.name.clone(), Vec::new()) };
        Self {
            discovery: Discovery::Static(nobody),
            original_port: None,
            subsets: None,
            health_check: None,
            place_weights: false,
            tls: ClientTls::None,
            ..self
        }
    }
}

/// Where endpoints come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Discovery {
    /// EDS, under another name than the cluster's if given.
    Eds {
        /// `eds_cluster_config.service_name`.
        service_name: Option<String>,
    },
    /// In place.
    Static(EndpointSet),
    /// In place by name: the proxy asks DNS.
    Dns(Box<DnsDiscovery>),
    /// The original destination of the connection (passthrough).
    OriginalDestination,
}

/// Endpoints by DNS name (`STRICT_DNS`, `LOGICAL_DNS`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DnsDiscovery {
    /// The names.
    pub endpoints: EndpointSet<NamedAddress>,
    /// Only the first address of an answer counts, for new connections; those to earlier ones live on (`LOGICAL_DNS`).
    pub first_only: bool,
    /// An answer is asked for anew when its time to live has passed, instead of after `refresh`.
    pub respect_ttl: bool,
    /// How often a name is asked for. Default 5 s.
    pub refresh: Duration,
    /// After a failure: first so soon, then ever later up to the second. Absent: as after an answer.
    pub retry: Option<(Duration, Duration)>,
    /// Which addresses are wanted.
    pub families: DnsFamilies,
}

impl Default for DnsDiscovery {
    fn default() -> Self {
        Self {
            endpoints: EndpointSet::default(),
            first_only: false,
            respect_ttl: false,
            refresh: Duration::from_secs(5),
            retry: None,
            families: DnsFamilies::default(),
        }
    }
}

/// Which addresses of a name are wanted (`DnsLookupFamily`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DnsFamilies {
    /// IPv6, or else IPv4.
    #[default]
    V6Preferred,
    /// IPv4, or else IPv6.
    V4Preferred,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// Both, as far as this host can reach them.
    All,
}

/// Circuit-breaker limits (`CircuitBreakers`, default priority). `u32::MAX` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Connections to the cluster.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending: u32,
    /// Requests in flight.
    pub max_requests: u32,
    /// Retries in flight.
    pub max_retries: u32,
    /// Bounds retries by the number of requests in flight; replaces `max_retries`.
    pub retry_budget: Option<RetryBudget>,
}

impl Default for Limits {
    fn default() -> Self {
        let max = u32::MAX;
        Self {
            max_connections: max,
            max_pending: max,
            max_requests: max,
            max_retries: max,
            retry_budget: Some(RetryBudget::default()),
        }
    }
}

/// `RetryBudget`: retries in flight ≤ max(percent of requests in flight, minimum).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RetryBudget {
    /// 0–100. Default 20.
    pub percent: f64,
    /// Retries that are always allowed. Default 3.
    pub min_concurrency: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20.0, min_concurrency: 3 }
    }
}

/// TLS towards endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientTls {
    /// Plain text.
    None,
    /// The mesh's mTLS to endpoints that can ([`crate::endpoint::Endpoint::mesh_tls`]); plain text to the others.
    Mesh {
        /// `outbound_.PORT_.SUBSET_.HOST`.
        server_name: String,
        /// Accepted where the endpoint does not name its own identity. Empty: any of the trust domain.
        identities: Vec<SpiffeId>,
        /// Never plain text: an endpoint that cannot do mTLS is not reached at all.
        #[serde(default)]
        required: bool,
    },
    /// TLS to servers that are not the mesh's, with all endpoints.
    Outside(OutsideTls),
}

impl ClientTls {
    /// Whether nothing leaves in plain text, to whichever endpoint.
    pub fn is_for_all(&self) -> bool {
        match self {
            Self::None => false,
            Self::Mesh { required, .. } => *required,
            Self::Outside(_) => true,
        }
    }
}

/// TLS to servers that are not the mesh's: their names are DNS names, and public rules apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideTls {
    /// SNI.
    pub server_name: String,
    /// DNS names or URIs of which the server must have one. Empty: the server name.
    pub subject_alt_names: Vec<String>,
    /// A file of the proxy's with the roots to trust, PEM. Absent: those at hand, or else the system's public roots.
    pub roots_file: Option<String>,
    /// The roots themselves, PEM.
    #[serde(default)]
    pub roots_pem: Option<String>,
    /// Files of the proxy's with the client's certificate chain and key, PEM. Absent: the client shows none.
    pub client_files: Option<(String, String)>,
}

/// HTTP protocol towards endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UpstreamProtocol {
    /// The protocol of the request (`use_downstream_protocol_config`).
    #[default]
    Follow,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}
