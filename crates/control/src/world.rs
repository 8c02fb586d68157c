//! The world: services, instances and intents as one value, indexed by what compilation asks for.
//!
//! Its maps are persistent: a copy costs nothing, and a change what it changes. What a change is about it says in a [`Change`],
//! by which compiled resources are known that have to be compiled again. Nothing here does I/O.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::described::{self, Offer};
use crate::instance::{Instance, Protocol, State};
use crate::provider::ExtensionProvider;
use crate::sorted::Sorted;
use crate::virtual_address::{Given, VirtualAddresses};
use outrigger_model::path::PathNormalization;
use outrigger_rules::ParseOptions;
use outrigger_rules::host::Resolver;
use outrigger_rules::intent::{
    AuthorizationIntent, Carried, Host, Intent, IpFamily, KeySource, Known, LimitsIntent, Location,
    MtlsIntent, MtlsMode, ObjectKind, Reach, RouteIntent, ServiceIntent, TokensIntent, WorkloadIntent,
};

mod addresses;
mod attached;
mod change;
mod destinations;
mod keys;
mod rules;
#[cfg(test)]
pub(crate) mod sample;
mod sidecars;

use addresses::Addresses;
pub use addresses::Contested;
pub use change::{Change, Fact, Wide};
pub use keys::KeyWish;
use rules::Rules;

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
    /// Whom policies of action CUSTOM may ask.
    pub providers: Vec<ExtensionProvider>,
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

    /// How rules are read: those that name no namespace are of this one.
    pub(crate) fn reading(&self, namespace: &str) -> ParseOptions {
        let (resolver, default_namespace) = (Resolver::new(&self.domain), namespace.to_owned());
        ParseOptions { resolver, default_namespace, ..ParseOptions::default() }
    }

    /// The namespaces whose policies hold for the whole mesh, the configured one first.
    pub(crate) fn roots(&self) -> impl Iterator<Item = &str> {
        let istio = self.is_root(ISTIO_ROOT) && self.root_namespace != ISTIO_ROOT;
        std::iter::once(self.root_namespace.as_str()).chain(istio.then_some(ISTIO_ROOT))
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
            providers: Vec::new(),
        }
    }
}

/// A service: the instances that registered under one name, and what users say of it.
#[derive(Debug, Clone, PartialEq)]
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
    /// Those of instances alone.
    pub registered: BTreeMap<u16, Protocol>,
    /// What requests to a port may switch to besides WebSocket; a port without any is not there.
    pub upgrades: BTreeMap<u16, Vec<String>>,
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
        if let Some(intent) = self.known(port).description(port, namespace) {
            let protocol = described::protocol(intent.ports.get(&port)?.protocol);
            return Some(Offer { protocol, described: Some(intent) });
        }
        self.registered.get(&port).map(|protocol| Offer { protocol: *protocol, described: None })
    }

    /// Who may say where a port is.
    pub(crate) fn known(&self, port: u16) -> Known<'_, Arc<ServiceIntent>> {
        let registered = self.registered.contains_key(&port);
        Known { home: &self.namespace, described: &self.described, registered }
    }

    /// Where an instance serves a port, for the clients of a namespace.
    pub(crate) fn place(&self, instance: &Instance, port: u16, namespace: &str) -> Option<SocketAddr> {
        match self.offer(port, namespace)?.described {
            Some(intent) => {
                let target = described::target(intent.ports.get(&port)?, port, instance)?;
                Some(SocketAddr::new(described::address(intent, instance)?, target))
            }
            None => {
                instance.port(port)?;
                Some(SocketAddr::new(*instance.addresses.first()?, port))
            }
        }
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
        if visible.clone().any(|intent| intent.headless) {
            return self.of_members(visible.collect());
        }
        match self.instances.is_empty() && visible.count() == 0 {
            true => Vec::new(),
            false => self.virtual_addresses.iter().collect(),
        }
    }
}

impl Service {
    /// Of those who serve it, as a cluster's own DNS says: of its families, and only of who is ready unless it says otherwise.
    fn of_members(&self, headless: Vec<&Arc<ServiceIntent>>) -> Vec<IpAddr> {
        let unready = headless.iter().any(|intent| intent.unready);
        let serves = |instance: &&Arc<Instance>| match instance.state {
            State::Running => true,
            State::Stopped => false,
            State::Starting | State::Unhealthy | State::Maintenance | State::Stopping => unready,
        };
        let families: Vec<IpFamily> = headless.iter().flat_map(|intent| intent.families.clone()).collect();
        let is_meant = |address: &IpAddr| families.is_empty() || families.contains(&IpFamily::of(*address));
        let members = self.instances.iter().filter(serves).flat_map(|instance| &instance.addresses);
        let all: BTreeSet<IpAddr> = members.filter(|address| is_meant(address)).copied().collect();
        all.into_iter().collect()
    }

    /// Whether its addresses are those of who serves it.
    pub fn is_headless(&self) -> bool {
        described::is_headless(&self.described)
    }
}

/// Everything that compilation looks at.
#[derive(Debug, Clone)]
pub struct World {
    /// Grows with every change.
    pub generation: u64,
    /// Settings.
    pub settings: Arc<MeshSettings>,
    /// Turns names into hosts.
    pub resolver: Resolver,
    services: Sorted<Host, Arc<Service>>,
    instances: Sorted<String, Arc<Instance>>,
    by_address: Addresses,
    given: Given,
    rules: Arc<Rules>,
    keys: Sorted<KeySource, Arc<str>>,
}

impl World {
    /// With nothing in it.
    pub fn empty(settings: MeshSettings) -> Self {
        let resolver = Resolver::new(&settings.domain);
        Self {
            generation: 0,
            settings: Arc::new(settings),
            resolver,
            services: Sorted::default(),
            instances: Sorted::default(),
            by_address: Addresses::default(),
            given: Given::default(),
            rules: Arc::default(),
            keys: Sorted::default(),
        }
    }

    /// With everything in it. Whatever led to a world, it equals the one that this makes of the same.
    pub fn new(
        generation: u64,
        settings: MeshSettings,
        instances: impl IntoIterator<Item = Arc<Instance>>,
        intents: impl IntoIterator<Item = Intent>,
    ) -> Self {
        let mut world = Self { generation, ..Self::empty(settings) };
        let mut change = Change::default();
        for instance in instances {
            world.put(instance, 0, &mut change);
        }
        world.rule(intents, &mut change);
        world
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(AsRef::as_ref)
    }

    /// Namespaces in which there is anything. Looks at everything.
    pub(crate) fn inhabited(&self) -> HashSet<String> {
        let mut all = HashSet::new();
        let services = self.services().map(|service| &service.namespace);
        for namespace in services.chain(self.instances().map(|instance| &instance.namespace)) {
            if !all.contains(namespace) {
                all.insert(namespace.clone());
            }
        }
        all
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The host that the name of a service stands for and nothing else, where both are names of the mesh: a cluster's ExternalName.
    pub(crate) fn alias(&self, host: &Host) -> Option<Host> {
        let service = self.service(host).filter(|service| service.instances.is_empty())?;
        let [intent] = service.described.as_slice() else { return None };
        if intent.origin.kind != ObjectKind::Service || intent.location != Location::Outside {
            return None;
        }
        let target = self.resolver.resolve(&intent.endpoints.first()?.address, "").ok()?;
        self.resolver.split(&target)?;
        (target != *host).then_some(target)
    }

    /// The service of a host.
    pub fn service(&self, host: &Host) -> Option<&Service> {
        self.services.get(host).map(AsRef::as_ref)
    }

    /// All instances, by id.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.values()
    }

    /// How many instances there are.
    pub fn instance_count(&self) -> usize {
        self.instances.len()
    }

    /// The instance of an id.
    pub fn instance(&self, id: &str) -> Option<&Arc<Instance>> {
        self.instances.get(id)
    }

    /// The services that users describe.
    pub(crate) fn described(&self) -> impl Iterator<Item = &Service> {
        self.rules.described.hosts().filter_map(|host| self.service(host))
    }

    /// The described workloads of a namespace.
    pub(crate) fn workloads(&self, namespace: &str) -> &[Arc<WorkloadIntent>] {
        self.rules.described.workloads(namespace)
    }

    /// The service whose virtual address this is.
    pub(crate) fn virtual_at(&self, address: IpAddr) -> Option<&Host> {
        self.given.at(address)
    }

    /// The hosts that an address was said to stand for, the narrowest block first.
    pub(crate) fn described_at(&self, address: IpAddr) -> impl Iterator<Item = &Host> {
        self.rules.described.at(address)
    }

    /// Whether rules route a host, for whichever client.
    pub(crate) fn is_routed(&self, host: &Host) -> bool {
        let is = |host: &Host| !self.rules.routes.of(host).is_empty();
        is(host) || self.mistaken(host).is_some_and(|other| is(&other))
    }

    /// The routing of what is carried that a client of `namespace` has for a host: of all rules that have routes for it an exact host
    /// goes before a wildcard, the longer wildcard before the shorter, then what is for fewer clients, then the oldest, as in Istio.
    pub fn route_for(&self, host: &Host, namespace: &str, carried: Carried) -> Option<Arc<RouteIntent>> {
        self.route_known(host, namespace, None, carried)
    }

    fn route_among(
        &self,
        host: &Host,
        reach: impl Fn(&RouteIntent) -> Option<Reach>,
    ) -> Option<Arc<RouteIntent>> {
        let mistaken = self.mistaken(host);
        let routes = self.routes_over(host);
        let score = |route: &RouteIntent| {
            let of = |pattern: &Host| {
                let other = mistaken.as_ref().and_then(|other| specificity(pattern, other));
                specificity(pattern, host).max(other)
            };
            route.hosts.iter().filter_map(of).max()
        };
        let order = |route: &RouteIntent| Some((score(route)?, reach(route)?));
        let scored = routes.iter().filter_map(|route| Some(((order(route)?, Reverse(route.age())), route)));
        scored.max_by(|one, other| one.0.cmp(&other.0)).map(|(_, route)| route.clone())
    }

    /// All that rules say of routing a host, for whichever client, by origin.
    pub(crate) fn routes_over(&self, host: &Host) -> Vec<Arc<RouteIntent>> {
        let mut routes = self.rules.routes.of(host);
        for route in self.mistaken(host).iter().flat_map(|other| self.rules.routes.of(other)) {
            if !routes.iter().any(|known| Arc::ptr_eq(known, &route)) {
                routes.push(route);
            }
        }
        routes.sort_by(|a, b| a.origin.cmp(&b.origin));
        routes
    }

    /// How rules that say `example.com` were read, where that is a described service and not one of a namespace.
    fn mistaken(&self, host: &Host) -> Option<Host> {
        let other = self.resolver.mistaken(host)?;
        let described = self.service(host).is_some_and(|service| !service.described.is_empty());
        (described && self.service(&other).is_none()).then_some(other)
    }

    /// What an instance accepts on a port: the narrowest scope that says something, finally PERMISSIVE.
    pub fn mtls_mode(&self, instance: &Instance, port: u16) -> MtlsMode {
        self.mtls_of(instance, port).0
    }

    /// The same, and who says so.
    pub(crate) fn mtls_of(&self, instance: &Instance, port: u16) -> (MtlsMode, Option<&MtlsIntent>) {
        let inherited = || {
            let of = |namespace: &str| {
                let wide = self.rules.mtls.of(namespace).iter().filter(|i| i.selector.is_empty());
                wide.into_iter().find_map(|i| Some((i.mode?, Some(i.as_ref()))))
            };
            of(&instance.namespace)
                .or_else(|| self.settings.roots().find_map(of))
                .unwrap_or((MtlsMode::Permissive, None))
        };
        let own = self.own_mtls(instance).and_then(|own| {
            let mode = own.ports.get(&port).copied().flatten().or(own.mode)?;
            Some((mode, Some(own.as_ref())))
        });
        own.unwrap_or_else(inherited)
    }

    /// The PeerAuthentication that selects an instance.
    fn own_mtls(&self, instance: &Instance) -> Option<&Arc<MtlsIntent>> {
        let own = self.rules.mtls.of(&instance.namespace);
        own.iter().find(|intent| !intent.selector.is_empty() && selected(&intent.selector, &instance.labels))
    }

    /// The PeerAuthentications that have a say in what an instance accepts.
    pub fn mtls_for(&self, instance: &Instance) -> impl Iterator<Item = &Arc<MtlsIntent>> {
        let own = self.rules.mtls.of(&instance.namespace).iter();
        let own =
            own.filter(|intent| intent.selector.is_empty() || selected(&intent.selector, &instance.labels));
        let roots = self.settings.roots().filter(|root| **root != *instance.namespace);
        let wide =
            roots.flat_map(|root| self.rules.mtls.of(root)).filter(|intent| intent.selector.is_empty());
        own.chain(wide)
    }

    /// The ports of an instance that a policy gives an mTLS mode of their own, registered or not.
    pub fn mtls_ports<'w>(&'w self, instance: &'w Instance) -> impl Iterator<Item = u16> + 'w {
        self.own_mtls(instance).into_iter().flat_map(|intent| intent.ports.keys().copied())
    }

    /// The rate limits of an instance: those of its namespace for its services, by the objects' names.
    pub fn limits_for<'w>(&'w self, instance: &Instance) -> impl Iterator<Item = &'w LimitsIntent> + use<'w> {
        let hosts = instance.serves().iter().map(|name| self.resolver.service(name, &instance.namespace));
        let hosts: Vec<Host> = hosts.collect();
        let all = self.rules.limits.of(&instance.namespace).iter();
        all.map(AsRef::as_ref).filter(move |intent| hosts.contains(&intent.host))
    }

    /// What the namespace of a service says of the requests to it.
    pub fn limits_of<'w>(&'w self, service: &'w Service) -> impl Iterator<Item = &'w LimitsIntent> + use<'w> {
        let all = self.rules.limits.of(&service.namespace).iter();
        all.map(AsRef::as_ref).filter(|intent| intent.host == service.host)
    }

    /// The authorization policies of an instance: those of its namespace and of the root namespace that select it, by name.
    pub fn authorization_for(&self, instance: &Instance) -> Vec<&Arc<AuthorizationIntent>> {
        let all = self.scopes(instance).flat_map(|scope| self.rules.authorization.of(scope));
        let mut all: Vec<_> = all.filter(|intent| selected(&intent.selector, &instance.labels)).collect();
        all.sort_by(|a, b| a.origin.cmp(&b.origin));
        all
    }

    /// Whose tokens an instance knows: by the rules of its namespace and of the root namespace that select it, by name.
    pub fn tokens_for(&self, instance: &Instance) -> Vec<&Arc<TokensIntent>> {
        let all = self.scopes(instance).flat_map(|scope| self.rules.tokens.of(scope));
        let mut all: Vec<_> = all.filter(|intent| selected(&intent.selector, &instance.labels)).collect();
        all.sort_by(|a, b| a.origin.cmp(&b.origin));
        all
    }

    /// The namespaces whose policies may be for an instance.
    fn scopes<'w>(&'w self, instance: &'w Instance) -> impl Iterator<Item = &'w str> {
        let roots = self.settings.roots().filter(|root| **root != *instance.namespace);
        std::iter::once(instance.namespace.as_str()).chain(roots)
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
