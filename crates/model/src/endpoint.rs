//! The endpoints of a cluster: priority, locality, weight, health, identity.
//!
//! Stands for `envoy.config.endpoint.v3.ClusterLoadAssignment`.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::identity::SpiffeId;

/// All endpoints of one cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSet {
    /// The cluster (or EDS service name).
    pub cluster: String,
    /// Endpoints by locality.
    pub localities: Vec<LocalityEndpoints>,
}

/// Endpoints of one locality.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalityEndpoints {
    /// Where they are.
    pub locality: Locality,
    /// 0 is the most wanted.
    pub priority: u32,
    /// Share of the locality within its priority.
    pub weight: u32,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
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

impl EndpointSet {
    /// All endpoints.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.localities.iter().flat_map(|l| &l.endpoints)
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
