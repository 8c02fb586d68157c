//! Who asks: what of a client decides what it is told, and therefore belongs into cache keys.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use outrigger_model::endpoint::Locality;
use outrigger_rules::intent::{SidecarIntent, Unknown};
use outrigger_xds::ClientKind;

use crate::instance::Instance;
use crate::world::World;

/// A client as compilation sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Outrigger, Envoy or gRPC.
    pub kind: ClientKind,
    /// Its namespace, from its identity.
    pub namespace: String,
    /// Its service account, from its identity; with the namespace it says which instances are its own.
    pub service_account: String,
    /// The registered instance that it stands beside, if it named one that its identity may have.
    pub instance: Option<String>,
    /// Where an Envoy binds its outbound listeners. Default 127.0.0.1.
    pub bind: Option<IpAddr>,
    /// A gRPC client that has certificates.
    pub secure: bool,
    /// The largest program of RE2 that an Envoy takes.
    pub regex_limit: u32,
}

/// Envoy's own default of `re2.max_program_size.error_level`.
pub const REGEX_LIMIT: u32 = 100;

impl Scope {
    /// Its own registration.
    pub fn own<'a>(&self, world: &'a World) -> Option<&'a Arc<Instance>> {
        let instance = world.instance(self.instance.as_deref()?)?;
        (instance.namespace == self.namespace && instance.service_account == self.service_account)
            .then_some(instance)
    }

    /// The network that it is in: its own registration's, or the default one.
    pub fn network<'a>(&self, world: &'a World) -> &'a str {
        self.own(world).map_or("", |own| own.network.as_str())
    }

    /// Where its own registration says that it is.
    pub fn locality(&self, world: &World) -> Option<Locality> {
        self.own(world).map(|own| own.locality())
    }

    /// The node of a cluster that its own registration says that it is on.
    pub fn node<'a>(&self, world: &'a World) -> Option<&'a str> {
        self.own(world).and_then(|own| own.node())
    }

    /// The Sidecar that holds for it.
    pub fn sidecar<'a>(&self, world: &'a World) -> Option<&'a Arc<SidecarIntent>> {
        world.sidecar_for(&self.namespace, self.labels(world))
    }

    /// What becomes of connections to what it does not know, if that is not its sidecar's own matter. What an egress proxy opens leaves the
    /// mesh: by the Sidecar that it has in common with its callers it would come to itself, again and again.
    pub fn unknown<'a>(&self, world: &'a World) -> Option<&'a Unknown> {
        let unknown = self.sidecar(world)?.unknown.as_ref();
        unknown.filter(|_| !self.is_egress_proxy(world))
    }

    /// Whether it stands beside the egress proxy of the Sidecar that holds for it.
    pub fn is_egress_proxy(&self, world: &World) -> bool {
        let sidecar = self.sidecar(world);
        let Some(Unknown::Through(target)) = sidecar.and_then(|one| one.unknown.as_ref()) else {
            return false;
        };
        self.own(world).is_some_and(|own| world.served_by(own).any(|host| host == target.host))
    }

    /// The labels of its own registration: what `sourceLabels` compares.
    pub fn labels<'a>(&self, world: &'a World) -> Option<&'a BTreeMap<String, String>> {
        self.own(world).map(|instance| &*instance.labels)
    }
}
