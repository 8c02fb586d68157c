//! The world: services, instances and intents as one immutable value, indexed by what compilation asks for.
//!
//! Built off to the side on every change and swapped in; nothing here does I/O.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_model::path::PathNormalization;
use outrigger_rules::host::Resolver;
use outrigger_rules::intent::{
    AuthorizationIntent, DestinationIntent, Host, Intent, MtlsIntent, MtlsMode, RouteIntent, ServiceIntent,
};

use crate::described::{self, Described, Offer};
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

/// A service: the instances that registered under one name, and what users say of it.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its host.
    pub host: Host,
    /// Its namespace.
    pub namespace: String,
    /// Its short name.
    pub name: String,
    /// Ports of all instances, where instances disagree the smallest instance id decides; and those that are described. Who
    /// sees which, [`Service::offer`] says.
    pub ports: BTreeMap<u16, Protocol>,
    /// Its instances, by id.
    pub instances: Vec<Arc<Instance>>,
    /// Who describes it, by origin.
    pub described: Vec<Arc<ServiceIntent>>,
    /// What stands for it where there is only room for an address.
    pub virtual_addresses: VirtualAddresses,
}

impl Service {
    /// A port as the clients of a namespace see it.
    pub fn offer(&self, port: u16, namespace: &str) -> Option<Offer<'_>> {
        if self.described.is_empty() {
            return self.ports.get(&port).map(|protocol| Offer { protocol: *protocol, described: None });
        }
        if let Some(intent) = described::offering(&self.described, port, namespace) {
            let protocol = described::protocol(intent.ports.get(&port)?.protocol);
            return Some(Offer { protocol, described: Some(intent) });
        }
        let registered = self.instances.iter().find_map(|instance| instance.port(port));
        registered.map(|port| Offer { protocol: port.protocol, described: None })
    }

    /// The ports that the clients of a namespace see.
    pub fn offers<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (u16, Offer<'a>)> {
        self.ports.keys().filter_map(move |port| Some((*port, self.offer(*port, namespace)?)))
    }

    /// The addresses that stand for it, as the clients of a namespace are told.
    pub fn addresses(&self, namespace: &str) -> Vec<IpAddr> {
        let visible = self.described.iter().filter(|intent| intent.visibility.includes(namespace));
        let blocks = visible.clone().flat_map(|intent| &intent.addresses);
        let single = blocks.filter(|block| block.prefix_len() == block.max_prefix_len());
        let own: Vec<IpAddr> = single.map(ipnet::IpNet::addr).collect();
        if !own.is_empty() {
            return own;
        }
        match self.instances.is_empty() && visible.count() == 0 {
            true => Vec::new(),
            false => self.virtual_addresses.iter().collect(),
        }
    }
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
    described: Described,
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
            described: Described::default(),
        };
        let (mut services, mut workloads) = (Vec::new(), Vec::new());
        for intent in intents {
            match intent {
                Intent::Route(i) => world.routes.push(Arc::new(i)),
                Intent::Destination(i) => world.destinations.push(Arc::new(i)),
                Intent::Mtls(i) => world.mtls.push(Arc::new(i)),
                Intent::Authorization(i) => world.authorization.push(Arc::new(i)),
                Intent::Service(i) => services.push(Arc::new(i)),
                Intent::Workload(i) => workloads.push(Arc::new(i)),
            }
        }
        world.routes.sort_by(|a, b| a.origin.cmp(&b.origin));
        world.destinations.sort_by(|a, b| a.origin.cmp(&b.origin));
        world.mtls.sort_by(|a, b| a.origin.cmp(&b.origin));
        world.authorization.sort_by(|a, b| a.origin.cmp(&b.origin));
        world.described = Described::new(services, workloads);
        world.index_instances();
        world.index_described();
        world.give_addresses();
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
                described: Vec::new(),
                virtual_addresses: VirtualAddresses::default(),
            });
            for port in &instance.ports {
                service.ports.entry(port.number).or_insert(port.protocol);
            }
            service.instances.push(instance.clone());
        }
    }

    fn index_described(&mut self) {
        for (host, intents) in self.described.hosts() {
            let Some(first) = intents.first() else { continue };
            let (name, namespace) =
                self.resolver.split(host).unwrap_or((host.as_str(), first.origin.namespace.as_str()));
            let service = self.services.entry(host.clone()).or_insert_with(|| Service {
                host: host.clone(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                ports: BTreeMap::new(),
                instances: Vec::new(),
                described: Vec::new(),
                virtual_addresses: VirtualAddresses::default(),
            });
            for (number, port) in intents.iter().rev().flat_map(|intent| &intent.ports) {
                service.ports.insert(*number, described::protocol(port.protocol));
            }
            service.described.clone_from(intents);
        }
    }

    fn give_addresses(&mut self) {
        let wants = |service: &&mut Service| {
            !service.instances.is_empty() || described::wants_address(&service.host, &service.described)
        };
        let hosts: Vec<Host> =
            self.services.values_mut().filter(wants).map(|service| service.host.clone()).collect();
        let given = virtual_address::give(hosts.iter().map(Host::as_str));
        for ((host, service), addresses) in
            self.services.iter_mut().filter(|(_, s)| hosts.binary_search(&s.host).is_ok()).zip(given)
        {
            service.virtual_addresses = addresses;
            self.by_virtual_address.extend(addresses.iter().map(|address| (address, host.clone())));
        }
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The service of a host. A rule's `example.com` may be a described service of that very name.
    pub fn service(&self, host: &Host) -> Option<&Service> {
        let bare =
            || self.services.get(&self.resolver.bare(host)?).filter(|service| !service.described.is_empty());
        self.services.get(host).or_else(bare)
    }

    /// The service that a name belongs to: its own, or that of the longest wildcard over it.
    pub fn service_of(&self, host: &Host) -> Option<&Service> {
        let wild = || {
            let name = host.as_str();
            name.match_indices('.').find_map(|(at, _)| {
                let wildcard = self.resolver.resolve(&format!("*{}", &name[at..]), "").ok()?;
                self.services.get(&wildcard)
            })
        };
        self.service(host).or_else(wild)
    }

    /// What users describe.
    pub(crate) fn described(&self) -> &Described {
        &self.described
    }

    /// The registered instances of a namespace.
    pub(crate) fn instances_of(&self, namespace: &str) -> impl Iterator<Item = &Instance> {
        self.instances.values().map(AsRef::as_ref).filter(move |instance| instance.namespace == namespace)
    }

    /// All instances, by id.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.values()
    }

    /// The instance of an id.
    pub fn instance(&self, id: &str) -> Option<&Arc<Instance>> {
        self.instances.get(id)
    }

    /// The services that an address stands for, virtual or described.
    pub fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        let virtual_one = self.by_virtual_address.get(&address).into_iter();
        virtual_one.chain(self.described.at(address)).filter_map(|host| self.services.get(host))
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
        let mistaken = self.mistaken(host);
        let score = |route: &RouteIntent| {
            let of = |pattern: &Host| {
                specificity(pattern, host)
                    .max(mistaken.as_ref().and_then(|mistaken| specificity(pattern, mistaken)))
            };
            route.hosts.iter().filter_map(of).max()
        };
        best(visible.filter_map(|route| score(route).map(|score| (score, route))))
    }

    /// The client-side policy that a client of `namespace` has for a host; the client's own namespace goes first, then the
    /// service's, then any. Several rules of one namespace for one host are merged.
    pub fn destination_for(&self, host: &Host, namespace: &str) -> Option<Arc<DestinationIntent>> {
        let owner = self.resolver.split(host).map(|(_, namespace)| namespace);
        let owner = owner.or_else(|| self.services.get(host).map(|service| service.namespace.as_str()));
        let mut rules = DestinationIntent::in_force(&self.destinations, host, owner, namespace);
        if let Some(mistaken) = self.mistaken(host).filter(|_| rules.is_empty()) {
            rules = DestinationIntent::in_force(&self.destinations, &mistaken, owner, namespace);
        }
        match rules.as_slice() {
            [] => None,
            [only] => Some((*only).clone()),
            several => DestinationIntent::merge(several.iter().map(|rule| &***rule)).map(Arc::new),
        }
    }

    /// How rules that say `example.com` were read, where that is a described service and not one of a namespace.
    fn mistaken(&self, host: &Host) -> Option<Host> {
        let described = self.services.get(host).is_some_and(|service| !service.described.is_empty());
        self.resolver.mistaken(host).filter(|other| described && !self.services.contains_key(other))
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
