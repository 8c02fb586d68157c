//! The kinds of resource, which have an order.

use serde::{Deserialize, Serialize};

/// The kinds, in the order in which a make-before-break push sends them when it adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ResourceKind {
    /// `envoy.config.cluster.v3.Cluster`.
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    Endpoints,
    /// `envoy.config.listener.v3.Listener`.
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`.
    Routes,
    /// `outrigger.v1.Destination`: which listener serves an address or a name.
    Destination,
    /// `outrigger.v1.Host`: the addresses that stand for a name of the mesh.
    Host,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`: only trust bundles travel, never keys.
    Secret,
    /// `outrigger.v1.Barrier`: everything before it is in force once it is acknowledged.
    Barrier,
}

impl ResourceKind {
    /// All kinds, in push order.
    pub const ALL: [Self; 8] = [
        Self::Secret,
        Self::Cluster,
        Self::Endpoints,
        Self::Listener,
        Self::Routes,
        Self::Destination,
        Self::Host,
        Self::Barrier,
    ];

    /// Asked for by whoever needs one, one by one: the answer may be that there is none, and idle ones are forgotten.
    pub const ON_DEMAND: [Self; 2] = [Self::Destination, Self::Host];

    /// Whether it is one of [`ResourceKind::ON_DEMAND`].
    pub fn is_on_demand(self) -> bool {
        Self::ON_DEMAND.contains(&self)
    }
}
