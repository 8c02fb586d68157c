//! The world: services, instances and intents as one immutable value, indexed by what compilation asks for.
//!
//! Built off to the side on every change and swapped in; nothing here does I/O.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_model::path::PathNormalization;
use outrigger_rules::host::Resolver;
use outrigger_rules::intent::{
    AuthorizationIntent, DestinationIntent, Host, Intent, MtlsIntent, MtlsMode, RouteIntent,
};

use crate::instance::{Instance, Protocol};
use crate::virtual_address::{self, VirtualAddresses};

/// Mesh-wide settings that shape compilation.
#[derive(Debug, Clone)]
pub struct MeshSettings {
    /// Trust domain of all identities. Default `cluster.local`.
    pub trust_domain: String,
    /// DNS domain of services. Default `cluster.local`.
    pub domain: String,
    /// Policies in this namespace hold for the whole mesh. Default `outrigger-system`.
    pub root_namespace: String,
    /// Percentage of root spans that are recorded. Default 1.
    pub sampling: f64,
    /// What is made equal in paths before routing and policy. Default `MERGE_SLASHES`.
    pub path: PathNormalization,
}

/// Istio's root namespace.
const ISTIO_ROOT: &str = "istio-system";

impl MeshSettings {
    /// Whether policies of a namespace hold for the whole mesh. Rules that were written for Istio say `istio-system`, which is
    /// one as long as nobody has chosen another.
    pub fn is_root(&self, namespace: &str) -> bool {
        namespace == self.root_namespace
            || (namespace == ISTIO_ROOT && self.root_namespace == Self::default().root_namespace)
    }
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            domain: "cluster.local".into(),
            root_namespace: "outrigger-system".into(),
            sampling: 1.0,
            path: PathNormalization::default(),
        }
    }
}

/// A service: the instances that registered under one name.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its host.
    pub host: Host,
    /// Its namespace.
    pub namespace: String,
    /// Its short name.
    pub name: String,
    /// Ports of all instances; where instances disagree the smallest instance id decides.
    pub ports: BTreeMap<u16, Protocol>,
    /// Its instances, by id.
    pub instances: Vec<Arc<Instance>>,
    /// What stands for it where there is only room for an address.
    pub virtual_addresses: VirtualAddresses,
}

/// Everything that compilation looks at.
#[derive(Debug)]
pub struct World {
    /// Grows with every change.
    pub generation: u64,
    /// Settings.
    pub settings: MeshSettings,
    /// Turns names into hosts.
    pub resolver: Resolver,
    services: BTreeMap<Host, Service>,
    instances: BTreeMap<String, Arc<Instance>>,
    by_address: HashMap<IpAddr, Vec<Arc<Instance>>>,
    by_virtual_address: HashMap<IpAddr, Host>,
    routes: Vec<Arc<RouteIntent>>,
    destinations: Vec<Arc<DestinationIntent>>,
    mtls: Vec<Arc<MtlsIntent>>,
    authorization: Vec<Arc<AuthorizationIntent>>,
}

impl World {
    /// Builds the indexes. Intents are taken in the order of their objects' names, so that the result does not depend on
    /// the order of application.
    pub fn new(
        generation: u64,
        settings: MeshSettings,
        instances: impl IntoIterator<Item = Arc<Instance>>,
        intents: impl IntoIterator<Item = Intent>,
    ) -> Self {
        let resolver = Resolver::new(&settings.domain);
        let mut world = Self {
            generation,
            settings,
            resolver,
            services: BTreeMap::new(),
            instances: instances.into_iter().map(|i| (i.id.clone(), i)).collect(),
            by_address: HashMap::new(),
            by_virtual_address: HashMap::new(),
            routes: Vec::new(),
            destinations: Vec::new(),
            mtls: Vec::new(),
            authorization: Vec::new(),
        };
        world.index_instances();
        world.give_addresses();
        for intent in intents {
            match intent {
                Intent::Route(i) => world.routes.push(Arc::new(i)),
                Intent::Destination(i) => world.destinations.push(Arc::new(i)),
                Intent::Mtls(i) => world.mtls.push(Arc::new(i)),
                Intent::Authorization(i) => world.authorization.push(Arc::new(i)),
            }
        }
        world.routes.sort_by(|a, b| a.origin.cmp(&b.origin));
        world.destinations.sort_by(|a, b| a.origin.cmp(&b.origin));
        world.mtls.sort_by(|a, b| a.origin.cmp(&b.origin));
        world.authorization.sort_by(|a, b| a.origin.cmp(&b.origin));
        world
    }

    fn index_instances(&mut self) {
        for instance in self.instances.values() {
            for address in &instance.addresses {
                self.by_address.entry(*address).or_default().push(instance.clone());
            }
            let host = self.resolver.service(&instance.service, &instance.namespace);
            let service = self.services.entry(host.clone()).or_insert_with(|| Service {
                host,
                namespace: instance.namespace.clone(),
                name: instance.service.clone(),
                ports: BTreeMap::new(),
                instances: Vec::new(),
                virtual_addresses: VirtualAddresses::default(),
            });
            for port in &instance.ports {
                service.ports.entry(port.number).or_insert(port.protocol);
            }
            service.instances.push(instance.clone());
        }
    }

    fn give_addresses(&mut self) {
        let given = virtual_address::give(self.services.keys().map(Host::as_str));
        for ((host, service), addresses) in self.services.iter_mut().zip(given) {
            service.virtual_addresses = addresses;
            self.by_virtual_address.extend(addresses.iter().map(|address| (address, host.clone())));
        }
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The service of a host.
    pub fn service(&self, host: &Host) -> Option<&Service> {
        self.services.get(host)
    }

    /// All instances, by id.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.values()
    }

    /// The instance of an id.
    pub fn instance(&self, id: &str) -> Option<&Arc<Instance>> {
        self.instances.get(id)
    }

    /// The service that a virtual address stands for.
    pub fn service_at(&self, address: IpAddr) -> Option<&Service> {
        self.services.get(self.by_virtual_address.get(&address)?)
    }

    /// The instances that serve an address of a network. Networks may use the same addresses.
    pub fn workloads_at(&self, network: &str, address: SocketAddr) -> impl Iterator<Item = &Instance> {
        let at = self.by_address.get(&address.ip()).map_or(&[][..], Vec::as_slice);
        let serves = move |i: &&Instance| i.network == network && i.port(address.port()).is_some();
        at.iter().map(AsRef::as_ref).filter(serves)
    }

    /// The routing that a client of `namespace` has for a host: an exact host goes before a wildcard, the longer wildcard
    /// before the shorter, then the first by name.
    pub fn route_for(&self, host: &Host, namespace: &str) -> Option<&Arc<RouteIntent>> {
        let visible = self.routes.iter().filter(|route| route.visibility.includes(namespace));
        let score = |route: &RouteIntent| route.hosts.iter().filter_map(|h| specificity(h, host)).max();
        best(visible.filter_map(|route| score(route).map(|score| (score, route))))
    }

    /// The client-side policy that a client of `namespace` has for a host; the client's own namespace goes first, then the
    /// service's, then any. Several rules of one namespace for one host are merged.
    pub fn destination_for(&self, host: &Host, namespace: &str) -> Option<Arc<DestinationIntent>> {
        let owner = self.resolver.split(host).map(|(_, namespace)| namespace);
        let rules = DestinationIntent::in_force(&self.destinations, host, owner, namespace);
        match rules.as_slice() {
            [] => None,
            [only] => Some((*only).clone()),
            several => DestinationIntent::merge(several.iter().map(|rule| &***rule)).map(Arc::new),
        }
    }

    /// What an instance accepts on a port: the narrowest scope that says something, finally PERMISSIVE.
    pub fn mtls_mode(&self, instance: &Instance, port: u16) -> MtlsMode {
        let selects = |intent: &&Arc<MtlsIntent>| {
            !intent.selector.is_empty()
                && intent.origin.namespace == instance.namespace
                && selected(&intent.selector, &instance.labels)
        };
        let wide = |within: &dyn Fn(&str) -> bool| {
            let in_scope = |i: &&Arc<MtlsIntent>| i.selector.is_empty() && within(&i.origin.namespace);
            self.mtls.iter().filter(in_scope).find_map(|i| i.mode)
        };
        let inherited = || {
            wide(&|namespace| namespace == instance.namespace)
                .or_else(|| wide(&|namespace| namespace == self.settings.root_namespace))
                .or_else(|| wide(&|namespace| self.settings.is_root(namespace)))
                .unwrap_or(MtlsMode::Permissive)
        };
        match self.mtls.iter().find(selects) {
            None => inherited(),
            Some(own) => own.ports.get(&port).copied().flatten().or(own.mode).unwrap_or_else(inherited),
        }
    }

    /// The PeerAuthentications that have a say in what an instance accepts.
    pub fn mtls_for(&self, instance: &Instance) -> impl Iterator<Item = &Arc<MtlsIntent>> {
        self.mtls.iter().filter(move |intent| {
            let scope = &intent.origin.namespace;
            match intent.selector.is_empty() {
                true => *scope == instance.namespace || self.settings.is_root(scope),
                false => *scope == instance.namespace && selected(&intent.selector, &instance.labels),
            }
        })
    }

    /// The ports of an instance that a policy gives an mTLS mode of their own, registered or not.
    pub fn mtls_ports<'w>(&'w self, instance: &'w Instance) -> impl Iterator<Item = u16> + 'w {
        let own = self.mtls.iter().find(|intent| {
            !intent.selector.is_empty()
                && intent.origin.namespace == instance.namespace
                && selected(&intent.selector, &instance.labels)
        });
        own.into_iter().flat_map(|intent| intent.ports.keys().copied())
    }

    /// The authorization policies of an instance: those of its namespace and of the root namespace that select it.
    pub fn authorization_for(&self, instance: &Instance) -> impl Iterator<Item = &Arc<AuthorizationIntent>> {
        self.authorization.iter().filter(move |intent| {
            let scope = &intent.origin.namespace;
            (*scope == instance.namespace || self.settings.is_root(scope))
                && selected(&intent.selector, &instance.labels)
        })
    }
}

/// Whether labels satisfy a selector.
pub fn selected(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn specificity(pattern: &Host, host: &Host) -> Option<usize> {
    if pattern == host {
        return Some(usize::MAX);
    }
    pattern.covers(host.as_str()).then(|| pattern.as_str().len())
}

/// The first of those with the highest score.
fn best<'a, S: PartialOrd, T>(scored: impl Iterator<Item = (S, &'a T)>) -> Option<&'a T> {
    scored.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, item)| item)
}
