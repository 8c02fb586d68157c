//! The endpoints of a cluster: priority, locality, weight, health, identity.
//!
//! Stands for `envoy.config.endpoint.v3.ClusterLoadAssignment`.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::Labels;
use crate::identity::SpiffeId;

pub mod spread;
pub mod zones;

pub use zones::ZoneAware;

/// All endpoints of one cluster, by address or, for DNS, by name ([`NamedAddress`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EndpointSet<A = SocketAddr> {
    /// The cluster (or EDS service name).
    pub cluster: String,
    /// Endpoints by locality.
    pub localities: Vec<LocalityEndpoints<A>>,
    /// Why there are none, as whoever looked for them says. Travels with a cluster that has its endpoints itself, otherwise never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Endpoints of one locality.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LocalityEndpoints<A = SocketAddr> {
    /// Where they are.
    pub locality: Locality,
    /// 0 is the most wanted.
    pub priority: u32,
    /// Share of the locality within its priority; 0: its endpoints have their own.
    pub weight: u32,
    /// The endpoints.
    pub endpoints: Vec<Endpoint<A>>,
}

/// A name that DNS knows, or an IP address, and a port. Displays as `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedAddress {
    /// The name, without a trailing dot; or an IP address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for NamedAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Region, zone, sub-zone; empty where unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Sub-zone.
    pub sub_zone: String,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint<A = SocketAddr> {
    /// Where it listens.
    pub address: A,
    /// Share within its locality, at least 1.
    pub weight: u32,
    /// As the control plane sees it.
    pub health: Health,
    /// Required of it in mTLS (secure naming).
    pub identity: Option<SpiffeId>,
    /// It has a sidecar that speaks the mesh's mTLS.
    pub mesh_tls: bool,
    /// For metrics labels. Endpoints of the same workload share it.
    #[serde(default, with = "shared")]
    pub workload: Option<Arc<Workload>>,
    /// The name that requests may call it by (`auto_host_rewrite`); of endpoints that DNS knows it is that, where nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Box<str>>,
    /// What parts of a cluster go by; none of our own control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Box<Labels>>,
}

/// Health as the control plane sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Health {
    /// Takes requests.
    #[default]
    Healthy,
    /// Takes none.
    Unhealthy,
    /// Finishes what it has.
    Draining,
}

/// What metrics say of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Workload {
    /// `catalog-v1`.
    pub name: String,
    /// `shop`.
    pub namespace: String,
    /// Canonical service, `catalog`.
    pub service: String,
    /// Canonical revision, `v1`.
    pub revision: String,
}

/// Written as if it were not shared.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Workload;

    pub(super) fn serialize<S: Serializer>(
        workload: &Option<Arc<Workload>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        workload.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<Workload>>, D::Error> {
        Ok(Option::<Workload>::deserialize(deserializer)?.map(Arc::new))
    }
}

impl<A> Default for LocalityEndpoints<A> {
    fn default() -> Self {
        Self { locality: Locality::default(), priority: 0, weight: 0, endpoints: Vec::new() }
    }
}

impl<A> Endpoint<A> {
    /// A healthy one of weight 1 of which no more is known.
    pub fn new(address: A) -> Self {
        Self {
            address,
            weight: 1,
            health: Health::Healthy,
            identity: None,
            mesh_tls: false,
            workload: None,
            hostname: None,
            labels: None,
        }
    }

    /// The same at another address.
    pub fn at<B>(&self, address: B) -> Endpoint<B> {
        Endpoint {
            address,
            weight: self.weight,
            health: self.health,
            identity: self.identity.clone(),
            mesh_tls: self.mesh_tls,
            workload: self.workload.clone(),
            hostname: self.hostname.clone(),
            labels: self.labels.clone(),
        }
    }
}

impl<A> Default for EndpointSet<A> {
    fn default() -> Self {
        Self { cluster: String::new(), localities: Vec::new(), trouble: None }
    }
}

impl<A> EndpointSet<A> {
    /// Of one cluster.
    pub fn new(cluster: impl Into<String>, localities: Vec<LocalityEndpoints<A>>) -> Self {
        Self { cluster: cluster.into(), localities, trouble: None }
    }

    /// All endpoints.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint<A>> {
        self.localities.iter().flat_map(|l| &l.endpoints)
    }

    /// All endpoints, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Endpoint<A>> {
        self.localities.iter_mut().flat_map(|l| &mut l.endpoints)
    }

    /// Number of endpoints.
    pub fn len(&self) -> usize {
        self.localities.iter().map(|l| l.endpoints.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
