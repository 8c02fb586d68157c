//! Compiled resources of one world, shared by all clients that see the same.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use outrigger_identity::Revoked;
use outrigger_model::resource::{Barrier, Resource, ResourceKind, TrustBundleSecret};
use outrigger_xds::ClientKind;
use outrigger_xds::server::Versioned;
use parking_lot::Mutex;

use super::foreign::{self, Gap};
use super::scope::Scope;
use super::{any_host, cluster, described, destination, endpoints, host, inbound, names, outbound, route};
use crate::world::World;

/// What a scope sees of one name, `None` was found not to exist; and what the client does not enforce of the rules behind it.
#[derive(Clone, Default)]
struct Seen {
    resource: Option<Arc<Versioned>>,
    gaps: Arc<[Gap]>,
}

type ByScope = HashMap<Scope, Seen>;

/// A world and what was compiled from it so far.
pub struct Compiled {
    world: Arc<World>,
    roots_pem: Arc<str>,
    revoked: Arc<Revoked>,
    cache: Mutex<HashMap<(ResourceKind, String), ByScope>>,
}

impl Compiled {
    /// Nothing is compiled yet.
    pub fn new(world: Arc<World>, roots_pem: Arc<str>, revoked: Arc<Revoked>) -> Self {
        Self { world, roots_pem, revoked, cache: Mutex::default() }
    }

    /// The world.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// The resource of a name as a client sees it; `None` when it does not exist for that client.
    pub fn resource(&self, scope: &Scope, kind: ResourceKind, name: &str) -> Option<Arc<Versioned>> {
        if kind == ResourceKind::Barrier {
            return self.compile(scope, kind, name).map(|resource| Arc::new(Versioned::new(resource)));
        }
        self.seen(scope, kind, name).resource
    }

    fn seen(&self, scope: &Scope, kind: ResourceKind, name: &str) -> Seen {
        let key = (kind, name.to_owned());
        if let Some(known) = self.cache.lock().get(&key).and_then(|by_scope| by_scope.get(scope)) {
            return known.clone();
        }
        // Compiled outside the lock: two clients may do the same work once, which is cheaper than one waiting for another.
        let mut compiled = Seen::default();
        if let Some(mut resource) = self.compile(scope, kind, name) {
            let fitted = foreign::fit(&mut resource, scope);
            compiled.resource = fitted.sent.then(|| Arc::new(Versioned::new(resource)));
            compiled.gaps = fitted.gaps.into();
        }
        // Who asks on demand may ask for anything: what is not there costs one look, and would fill the memory.
        if compiled.resource.is_some() || !kind.is_on_demand() {
            self.cache.lock().entry(key).or_default().insert(scope.clone(), compiled.clone());
        }
        compiled
    }

    /// What a foreign client does not enforce of the rules behind what it is sent: an Envoy is sent everything, a gRPC client
    /// what it asked for.
    pub fn gaps(&self, scope: &Scope, asked: &BTreeSet<(ResourceKind, String)>) -> BTreeSet<Gap> {
        let mut gaps = BTreeSet::new();
        let mut collect = |kind, name: &str| gaps.extend(self.seen(scope, kind, name).gaps.iter().cloned());
        match scope.kind {
            ClientKind::Outrigger => {}
            ClientKind::Grpc => asked.iter().for_each(|(kind, name)| collect(*kind, name)),
            ClientKind::Envoy => {
                for name in self.envoy_clusters(scope) {
                    collect(ResourceKind::Cluster, &name);
                }
                for port in outbound::envoy_ports(&self.world) {
                    collect(ResourceKind::Routes, &port.to_string());
                }
                gaps.extend(outbound::envoy_gaps(&self.world, scope));
            }
        }
        gaps
    }

    /// All resources of a kind that a wildcard subscription of a client gets.
    pub fn wildcard(&self, scope: &Scope, kind: ResourceKind) -> Vec<Arc<Versioned>> {
        let names = match (scope.kind, kind) {
            (ClientKind::Envoy, ResourceKind::Listener) => outbound::envoy_names(&self.world),
            (ClientKind::Envoy, ResourceKind::Cluster) => self.envoy_clusters(scope),
            (ClientKind::Outrigger, ResourceKind::Listener) => inbound::names_for(&self.world, scope),
            (ClientKind::Outrigger, ResourceKind::Cluster) => {
                let own = scope.own(&self.world).into_iter();
                let ports =
                    own.flat_map(|own| own.ports.iter().map(|p| p.number).chain([inbound::OTHER_PORTS]));
                ports.map(names::inbound_cluster).collect()
            }
            _ => Vec::new(),
        };
        names.iter().filter_map(|name| self.resource(scope, kind, name)).collect()
    }

    /// Every service port and every subset that a route of this client may name.
    fn envoy_clusters(&self, scope: &Scope) -> Vec<String> {
        let mut all = Vec::new();
        for service in self.world.services() {
            let subsets = self.world.destination_for(&service.host, &scope.namespace);
            let subsets = subsets.as_deref().map(|rule| rule.subsets.as_slice()).unwrap_or_default();
            for port in service.ports.keys() {
                let name = |subset: &str| names::outbound(*port, subset, service.host.as_str());
                all.push(name(""));
                all.extend(subsets.iter().map(|subset| name(&subset.name)));
            }
        }
        all
    }

    fn compile(&self, scope: &Scope, kind: ResourceKind, name: &str) -> Option<Resource> {
        let world = &self.world;
        Some(match kind {
            ResourceKind::Listener => Resource::Listener(match any_host::port_of(scope, name) {
                Some(port) => any_host::listener(world, scope, name, port)?,
                None => {
                    inbound::compile(world, scope, name).or_else(|| outbound::compile(world, scope, name))?
                }
            }),
            ResourceKind::Routes => Resource::Routes(match any_host::port_of(scope, name) {
                Some(port) => any_host::routes(world, scope, name, port),
                None => route::compile(world, scope, name)?,
            }),
            ResourceKind::Cluster => Resource::Cluster(cluster::compile(world, scope, name)?),
            ResourceKind::Endpoints => Resource::Endpoints(match described::of(world, scope, name) {
                Some(of) => described::addressed(world, scope, name, of)?,
                None => endpoints::compile(world, scope, name)?,
            }),
            ResourceKind::Destination => Resource::Destination(destination::compile(world, scope, name)?),
            ResourceKind::Host => Resource::Host(host::compile(world, scope, name)?),
            ResourceKind::Secret if name == "ROOTCA" => Resource::Secret(TrustBundleSecret {
                name: name.to_owned(),
                roots_pem: self.roots_pem.to_string(),
                revoked: self.revoked.entries().collect(),
            }),
            ResourceKind::Barrier if name == "barrier" => {
                Resource::Barrier(Barrier { name: name.to_owned(), generation: world.generation })
            }
            ResourceKind::Secret | ResourceKind::Barrier => return None,
        })
    }
}
