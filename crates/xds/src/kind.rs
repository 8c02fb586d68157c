//! The kinds of resources and of clients, and the type URLs that stand for the former on the wire.

use outrigger_model::resource::ResourceKind;
use serde::{Deserialize, Serialize};

/// Who reads the configuration; part of every cache key, because each gets its own encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientKind {
    /// Our own proxy: lossless, with our own resource types.
    Outrigger,
    /// A real Envoy: bound listeners, explicit protocol options, only types that Envoy knows.
    Envoy,
    /// A proxyless gRPC client: `api_listener`, certificate-provider instances.
    Grpc,
}

impl ClientKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Outrigger, Self::Envoy, Self::Grpc];

    /// Whether such a client can be sent this kind of resource.
    pub fn takes(self, kind: ResourceKind) -> bool {
        match kind {
            ResourceKind::Destination | ResourceKind::Host | ResourceKind::Barrier => self == Self::Outrigger,
            ResourceKind::Secret => self != Self::Grpc,
            _ => true,
        }
    }
}

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const DESTINATION: &str = "type.googleapis.com/outrigger.v1.Destination";
const HOST: &str = "type.googleapis.com/outrigger.v1.Host";
const BARRIER: &str = "type.googleapis.com/outrigger.v1.Barrier";

/// The type URL of a kind.
pub fn type_url(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Cluster => CLUSTER,
        ResourceKind::Endpoints => ENDPOINTS,
        ResourceKind::Listener => LISTENER,
        ResourceKind::Routes => ROUTES,
        ResourceKind::Destination => DESTINATION,
        ResourceKind::Host => HOST,
        ResourceKind::Secret => SECRET,
        ResourceKind::Barrier => BARRIER,
    }
}

/// The kind that a type URL stands for.
pub fn kind_of(type_url: &str) -> Option<ResourceKind> {
    ResourceKind::ALL.into_iter().find(|kind| self::type_url(*kind) == type_url)
}
