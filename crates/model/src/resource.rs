//! The resources that travel from the control plane to a proxy, as one type.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::endpoint::EndpointSet;
use crate::listener::Listener;
use crate::route::RouteConfig;

pub use crate::invalid::{Flaw, Invalid, Under};
pub use crate::kind::ResourceKind;
pub use crate::origin::Origin;

/// One resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)] // held behind Arc wherever many of them live
pub enum Resource {
    /// See [`ResourceKind::Cluster`].
    Cluster(Cluster),
    /// See [`ResourceKind::Endpoints`].
    Endpoints(EndpointSet),
    /// See [`ResourceKind::Listener`].
    Listener(Listener),
    /// See [`ResourceKind::Routes`].
    Routes(RouteConfig),
    /// See [`ResourceKind::Destination`].
    Destination(Destination),
    /// See [`ResourceKind::Host`].
    Host(Host),
    /// See [`ResourceKind::Secret`].
    Secret(TrustBundleSecret),
    /// See [`ResourceKind::Barrier`].
    Barrier(Barrier),
}

impl Resource {
    /// Which kind it is.
    pub fn kind(&self) -> ResourceKind {
        match self {
            Self::Cluster(_) => ResourceKind::Cluster,
            Self::Endpoints(_) => ResourceKind::Endpoints,
            Self::Listener(_) => ResourceKind::Listener,
            Self::Routes(_) => ResourceKind::Routes,
            Self::Destination(_) => ResourceKind::Destination,
            Self::Host(_) => ResourceKind::Host,
            Self::Secret(_) => ResourceKind::Secret,
            Self::Barrier(_) => ResourceKind::Barrier,
        }
    }

    /// Its name, unique within its kind.
    pub fn name(&self) -> &str {
        match self {
            Self::Cluster(r) => &r.name,
            Self::Endpoints(r) => &r.cluster,
            Self::Listener(r) => &r.name,
            Self::Routes(r) => &r.name,
            Self::Destination(r) => &r.name,
            Self::Host(r) => &r.name,
            Self::Secret(r) => &r.name,
            Self::Barrier(r) => &r.name,
        }
    }
}

/// Answers "who serves this destination?" on demand (design: config follows use).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// What was asked for: `host:port`, or `network/ip:port` (an empty network is the default one: `/10.0.0.1:80`).
    pub name: String,
    /// The outbound listener that serves it.
    pub listener: String,
}

impl Destination {
    /// What stands before the name of a user object in place of a listener: nobody serves the destination, and by that object's word
    /// it is refused. No listener is called so, so whoever does not know that waits in vain.
    pub const REFUSED: &str = "REGISTRY_ONLY|";

    /// The user object by whose word it is refused.
    pub fn refused_by(&self) -> Option<&str> {
        self.listener.strip_prefix(Self::REFUSED)
    }
}

/// Answers "which addresses stand for this name?" on demand: what a sidecar's DNS says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// What was asked for: lower case, without a trailing dot.
    pub name: String,
    /// The service's whole name, such as `catalog.shop.svc.cluster.local`.
    pub host: String,
    /// Its virtual addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Of [`Host::OUTSIDE`] alone: the names that it stands for, in order; `*.` is every name below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

impl Host {
    /// The name under which the control plane says for which names beyond the mesh's own domain it has addresses. Nobody can
    /// look it up, and `*` would be xDS's wildcard.
    pub const OUTSIDE: &str = ".";

    /// Whether a name is one of its names, or below one.
    pub fn covers(&self, name: &str) -> bool {
        let known = |text: &str| self.names.binary_search_by(|known| known.as_str().cmp(text)).is_ok();
        known(name) || name.match_indices('.').any(|(at, _)| known(&format!("*{}", &name[at..])))
    }
}

/// Where virtual IPv4 addresses are, a /12: of the block that was never given to anybody.
pub const VIRTUAL_V4: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 0);
/// Where virtual IPv6 addresses are, a /48 (RFC 5180, for benchmarks): never routed.
pub const VIRTUAL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0);

/// Whether an address can only be that of a service of the mesh.
pub fn is_virtual(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.to_bits() >> 20 == VIRTUAL_V4.to_bits() >> 20,
        IpAddr::V6(v6) => v6.to_bits() >> 80 == VIRTUAL_V6.to_bits() >> 80,
    }
}

/// The roots that a proxy trusts, pushed so that they rotate live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundleSecret {
    /// Always `ROOTCA`, Istio's name.
    pub name: String,
    /// PEM certificates of all roots, old and new.
    pub roots_pem: String,
    /// Who is trusted no longer: `spiffe://…`, or `serial:` and hex.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<String>,
}

/// Closes a push: acknowledged when all resources before it are in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier {
    /// Always `barrier`.
    pub name: String,
    /// The generation of the world that the push brought.
    pub generation: u64,
}
