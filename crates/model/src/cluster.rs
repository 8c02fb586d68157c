//! Clusters: where requests can go, and how much of them at once.
//!
//! Stands for `envoy.config.cluster.v3.Cluster` without its endpoints (`endpoint.rs`).

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::endpoint::{EndpointSet, NamedAddress};
use crate::identity::SpiffeId;
use crate::origin::Origin;

mod breaker;
mod check;

pub use breaker::{Breaker, SHORTEST as SHORTEST_BREAKER_INTERVAL};
pub use check::{CHECK_METHODS, CheckHow, GrpcCheck, HealthCheck, HttpCheck, TcpCheck};

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
    /// Places share requests by weights of their own, and not by those of their endpoints. Envoys must be told; our proxies see it in
    /// the places ([`LocalityEndpoints::weight`](crate::endpoint::LocalityEndpoints::weight)).
    #[serde(default)]
    pub place_weights: bool,
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
    /// HTTP protocol to its endpoints.
    pub protocol: UpstreamProtocol,
    /// A pooled connection without requests is closed after this time. Default 1 h; zero is off.
    pub idle_timeout: Duration,
    /// Requests per connection; 0 is unlimited.
    pub max_requests_per_connection: u32,
    /// The user object that shaped it.
    pub origin: Option<Origin>,
}

impl Cluster {
    /// With EDS under its own name and all defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            discovery: Discovery::Eds { service_name: None },
            original_port: None,
            balance: Balance::LeastRequest,
            place_weights: false,
            warmup: None,
            connect_timeout: Duration::from_secs(10),
            limits: Limits::default(),
            outlier: None,
            breaker: None,
            health_check: None,
            tls: ClientTls::None,
            protocol: UpstreamProtocol::Follow,
            idle_timeout: Duration::from_secs(3600),
            max_requests_per_connection: 0,
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

/// Load-balancing policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Balance {
    /// Weighted round robin.
    RoundRobin,
    /// The less loaded of two random choices, by weight.
    #[default]
    LeastRequest,
    /// Weighted random.
    Random,
    /// The same endpoint for the same hash of a request: a ring of points (ketama).
    RingHash {
        /// At least so many points. Default 1024.
        minimum: u64,
        /// At most so many points. Default and limit [`MAX_RING`].
        maximum: u64,
    },
    /// The same endpoint for the same hash of a request: a lookup table.
    Maglev {
        /// Slots of the table, a prime up to [`MAX_MAGLEV`]. Default 65537.
        size: u64,
    },
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
/// Most slots of a Maglev table, as in Envoy.
pub const MAX_MAGLEV: u64 = 5_000_011;

impl Balance {
    /// Whether the hash of a request decides.
    pub fn hashes(self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::Maglev { .. })
    }
}

/// Whether a number is a prime, as the size of a Maglev table must be.
pub fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
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

/// Outlier detection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outlier {
    /// Ejects after this many 5xx (or local-origin failures) in a row; 0 is off. Default 5.
    pub consecutive_5xx: u32,
    /// Ejects after this many 502, 503, 504 in a row; 0 is off. Default 0.
    pub consecutive_gateway: u32,
    /// How often ejected endpoints are looked at. Default 10 s.
    pub interval: Duration,
    /// Ejection lasts this long times the number of ejections. Default 30 s.
    pub base_ejection: Duration,
    /// Longest ejection. Default 300 s.
    pub max_ejection: Duration,
    /// Of all endpoints, 0–100; at least one may always be ejected, but never the last. Default 10.
    pub max_ejection_percent: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejection_percent: 10,
        }
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

/// TLS to servers that are not the mesh's: their names are DNS names, and public rules apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideTls {
    /// SNI.
    pub server_name: String,
    /// DNS names or URIs of which the server must have one. Empty: the server name.
    pub subject_alt_names: Vec<String>,
    /// A file of the proxy's with the roots to trust, PEM. Absent: the system's public roots.
    pub roots_file: Option<String>,
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
