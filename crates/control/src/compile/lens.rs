//! How compilation looks at the world: through a client's eyes, and noting what it looked at.
//!
//! What was noted says when a compiled resource is no longer true (its facts), and which other clients see the very same (who
//! are equal in its facets). A question that was not asked here is one that nobody knows to ask again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_model::endpoint::Locality;
use outrigger_rules::intent::{
    AttachedIntent, AuthorizationIntent, Carried, DestinationIntent, Host, KeySource, LimitsIntent, MtlsMode,
    RouteIntent, SidecarIntent, Target, TokensIntent, Unknown, WorkloadIntent,
};
use outrigger_xds::ClientKind;

use super::scope::Scope;
use crate::described::Offer;
use crate::instance::Instance;
use crate::provider::ExtensionProvider;
use crate::world::{Fact, MeshSettings, Service, World};

mod facets;

use facets::Facet;
pub(super) use facets::Facets;

/// A client's view of a world.
pub(super) struct Lens<'a> {
    world: &'a World,
    scope: &'a Scope,
    facts: RefCell<BTreeSet<Fact>>,
    facets: Cell<u16>,
}

impl<'a> Lens<'a> {
    pub(super) fn new(world: &'a World, scope: &'a Scope) -> Self {
        Self { world, scope, facts: RefCell::default(), facets: Cell::new(0) }
    }

    /// What was looked at.
    pub(super) fn looked_at(self) -> (BTreeSet<Fact>, Facets) {
        (self.facts.into_inner(), Facets::of(self.scope, self.world, self.facets.get()))
    }

    pub(super) fn saw(&self, fact: Fact) {
        self.facts.borrow_mut().insert(fact);
    }

    fn facet(&self, facet: Facet) {
        self.facets.set(self.facets.get() | facet as u16);
    }

    pub(super) fn kind(&self) -> ClientKind {
        self.scope.kind
    }

    /// A gRPC client that has certificates.
    pub(super) fn is_secure(&self) -> bool {
        self.facet(Facet::Secure);
        self.scope.secure
    }

    pub(super) fn bind(&self) -> Option<IpAddr> {
        self.facet(Facet::Bind);
        self.scope.bind
    }

    /// The largest program of a regular expression that the client takes.
    pub(super) fn regex_limit(&self) -> u32 {
        self.facet(Facet::RegexLimit);
        self.scope.regex_limit
    }

    pub(super) fn settings(&self) -> &'a MeshSettings {
        &self.world.settings
    }

    pub(super) fn namespace(&self) -> &'a str {
        self.facet(Facet::Namespace);
        &self.scope.namespace
    }

    /// The client's own registration.
    pub(super) fn own(&self) -> Option<&'a Arc<Instance>> {
        self.facet(Facet::Own);
        let own = self.scope.own(self.world)?;
        self.saw(Fact::Instance(own.id.clone()));
        Some(own)
    }

    /// The labels of the client's own registration.
    pub(super) fn labels(&self) -> Option<&'a BTreeMap<String, String>> {
        self.facet(Facet::Labels);
        self.scope.labels(self.world)
    }

    /// Where the client is, by its own registration.
    pub(super) fn locality(&self) -> Option<Locality> {
        self.facet(Facet::Locality);
        self.scope.locality(self.world)
    }

    /// The node that the client is on, by its own registration.
    pub(super) fn node(&self) -> Option<&'a str> {
        self.facet(Facet::Node);
        self.scope.node(self.world)
    }

    /// The Sidecar that holds for the client.
    pub(super) fn sidecar(&self) -> Option<&'a SidecarIntent> {
        self.saw(Fact::Sidecars);
        self.facet(Facet::Sidecar);
        self.scope.sidecar(self.world).map(AsRef::as_ref)
    }

    /// What becomes of what the client does not know, as [`Scope::unknown`].
    pub(super) fn unknown(&self) -> Option<&'a Unknown> {
        if let Unknown::Through(_) = self.sidecar()?.unknown.as_ref()? {
            self.facet(Facet::Proxy);
        }
        self.scope.unknown(self.world)
    }

    fn network(&self) -> &'a str {
        self.facet(Facet::Network);
        self.scope.network(self.world)
    }

    /// Whether a network is the client's.
    pub(super) fn is_own_network(&self, network: &str) -> bool {
        self.network() == network
    }

    /// The host that a name means to the client.
    pub(super) fn resolve(&self, name: &str) -> Option<Host> {
        // A name of one label is of the client's namespace; all others mean the same to everybody.
        let alone = !name.strip_suffix('.').unwrap_or(name).contains('.');
        let namespace = if alone { self.namespace() } else { "" };
        let host = self.world.resolver.resolve(name, namespace).ok()?;
        let Some(target) = self.world.alias(&host) else { return Some(host) };
        self.saw(Fact::Service(host.clone()));
        self.saw(Fact::Service(target.clone()));
        // What the name stands for is not there: then it is a name like any other.
        Some(if self.world.service(&target).is_some() { target } else { host })
    }

    /// The host that a name means in a namespace.
    pub(super) fn resolve_in(&self, name: &str, namespace: &str) -> Option<Host> {
        self.world.resolver.resolve(name, namespace).ok()
    }

    /// Whom policies may ask by that name.
    pub(super) fn provider(&self, name: &str) -> Option<&'a ExtensionProvider> {
        self.world.settings.providers.iter().find(|provider| provider.name == name)
    }

    /// The host of an instance's service, of several the first.
    pub(super) fn host_of(&self, instance: &Instance) -> Host {
        let name = instance.serves().first().unwrap_or(&instance.service);
        self.world.resolver.service(name, &instance.namespace)
    }

    /// The hosts of all of an instance's services.
    pub(super) fn hosts_of(&self, instance: &Instance) -> impl Iterator<Item = Host> {
        self.world.served_by(instance)
    }

    /// The service of a host. A rule's `example.com` may be a described service of that very name.
    pub(super) fn service(&self, host: &Host) -> Option<Seen<'a>> {
        self.saw(Fact::Service(host.clone()));
        let found = self.world.service(host).or_else(|| {
            let bare = self.world.resolver.bare(host)?;
            self.saw(Fact::Service(bare.clone()));
            self.world.service(&bare).filter(|service| !service.described.is_empty())
        });
        found.map(Seen)
    }

    /// The service that a name belongs to: its own, or that of the longest wildcard over it, the first that is one to this client.
    pub(super) fn service_of(&self, host: &Host, is: impl Fn(&Seen<'a>) -> bool) -> Option<Seen<'a>> {
        let wild = || {
            let name = host.as_str();
            // There is no wildcard that nobody describes: one fact stands for them all.
            self.saw(Fact::Described);
            let wildcards = name.match_indices('.').filter_map(|(at, _)| {
                let wildcard = self.world.resolver.resolve(&format!("*{}", &name[at..]), "").ok()?;
                self.world.service(&wildcard).map(Seen)
            });
            wildcards.into_iter().find(|service| is(service))
        };
        self.service(host).filter(&is).or_else(wild)
    }

    /// A port of a service as the client sees it.
    pub(super) fn offer(&self, service: Seen<'a>, port: u16) -> Option<Offer<'a>> {
        service.0.offer(port, self.looking_at(service))
    }

    /// The namespace whose word the client goes by for a port of a service.
    pub(super) fn owner(&self, service: Seen<'a>, port: u16) -> Option<&'a str> {
        service.0.known(port).owner(port, self.looking_at(service))
    }

    /// The addresses that stand for a service, as the client is told.
    pub(super) fn addresses(&self, service: Seen<'a>) -> Vec<IpAddr> {
        if service.0.is_headless() {
            self.saw(Fact::Members(service.0.host.clone()));
        }
        service.0.addresses(self.looking_at(service))
    }

    /// The client's namespace. What nobody describes is the same for everybody.
    fn looking_at(&self, service: Seen<'a>) -> &'a str {
        if service.0.described.is_empty() { "" } else { self.namespace() }
    }

    /// All that somebody describes.
    pub(super) fn described(&self) -> impl Iterator<Item = Seen<'a>> {
        self.saw(Fact::Described);
        self.world.described().map(Seen)
    }

    /// The described workloads of a namespace.
    pub(super) fn workloads(&self, namespace: &str) -> &'a [Arc<WorkloadIntent>] {
        self.saw(Fact::Workloads(namespace.to_owned()));
        self.world.workloads(namespace)
    }

    /// The registered instances of a namespace.
    pub(super) fn instances_of(&self, namespace: &'a str) -> impl Iterator<Item = &'a Instance> + use<'a> {
        self.saw(Fact::Workloads(namespace.to_owned()));
        self.world.instances().map(AsRef::as_ref).filter(move |instance| instance.namespace == namespace)
    }

    /// Whether a host is a service's whole name in the mesh's own domain.
    pub(super) fn is_of_the_mesh(&self, host: &Host) -> bool {
        self.world.resolver.split(host).is_some()
    }

    /// All of them; what of each was used is noted by who uses it.
    pub(super) fn services(&self) -> impl Iterator<Item = Seen<'a>> {
        self.saw(Fact::Services);
        self.world.services().map(Seen)
    }

    /// The instances of a service.
    pub(super) fn members(&self, service: Seen<'a>) -> impl Iterator<Item = &'a Instance> {
        self.saw(Fact::Members(service.0.host.clone()));
        service.0.instances.iter().map(AsRef::as_ref)
    }

    /// The port that a target means: its own, or else its service's only one, or else the one that is called.
    pub(super) fn port_of(&self, target: &Target, called: u16) -> u16 {
        let only = || {
            let service = self.service(&target.host)?;
            let mut ports = service.ports().keys().filter(|port| self.offer(service, **port).is_some());
            let first = ports.next()?;
            ports.next().is_none().then_some(*first)
        };
        target.port.or_else(only).unwrap_or(called)
    }

    /// The port of an instance by which it serves one of a service.
    pub(super) fn target_port(&self, service: Seen<'a>, instance: &Instance, port: u16) -> Option<u16> {
        service.0.place(instance, port, self.looking_at(service)).map(|place| place.port())
    }

    /// The port of a service that has this name.
    pub(super) fn port_named(&self, service: Seen<'a>, name: &str) -> Option<u16> {
        self.saw(Fact::Members(service.0.host.clone()));
        service.0.port_named(name)
    }

    /// The service whose virtual address this is.
    pub(super) fn virtual_at(&self, address: IpAddr) -> Option<Seen<'a>> {
        self.saw(Fact::Address(address));
        self.service(self.world.virtual_at(address)?)
    }

    /// The services that an address was said to stand for, the narrowest block first.
    pub(super) fn described_at(&self, address: IpAddr) -> impl Iterator<Item = Seen<'a>> {
        self.saw(Fact::Described);
        self.world.described_at(address).filter_map(|host| self.world.service(host)).map(Seen)
    }

    /// The instances that serve an address of the client's network.
    pub(super) fn workloads_at(&self, address: SocketAddr) -> impl Iterator<Item = &'a Instance> {
        self.saw(Fact::Address(address.ip()));
        let is_there = self.world.instances_at(address.ip()).next().is_some();
        let network = if is_there { self.network() } else { "" };
        self.world.workloads_at(network, address)
    }

    pub(super) fn route_for(&self, host: &Host, carried: Carried) -> Option<Arc<RouteIntent>> {
        self.saw(Fact::Routes(host.clone()));
        // Whose it is decides whether a page has a say.
        self.saw(Fact::Service(host.clone()));
        self.saw_mistaken(host, Fact::Routes);
        if !self.world.is_routed(host) {
            return None;
        }
        self.world.route_known(host, self.namespace(), self.sidecar(), carried)
    }

    /// The routes that are attached to a port of a service and hold for the client, the oldest first, as [`World::attached_to`].
    pub(super) fn attached_to(&self, service: Seen<'_>, port: u16) -> Vec<Arc<AttachedIntent>> {
        self.saw(Fact::Routes(service.0.host.clone()));
        if !self.world.has_attached(&service.0.host) {
            return Vec::new();
        }
        // What a port speaks decides which kinds there are any for; and what ports are called, instances say.
        self.saw(Fact::Service(service.0.host.clone()));
        self.saw(Fact::Members(service.0.host.clone()));
        self.world.attached_to(service.0, port, self.namespace())
    }

    pub(super) fn destination_for(&self, host: &Host) -> Option<Arc<DestinationIntent>> {
        self.saw(Fact::Destinations(host.clone()));
        // Whose it is decides between rules of several namespaces.
        self.saw(Fact::Service(host.clone()));
        self.saw_mistaken(host, Fact::Destinations);
        if !self.world.has_policy(host) {
            return None;
        }
        self.world.destination_for(host, self.namespace())
    }

    /// Rules that say `example.com` were read as a service's of a namespace.
    fn saw_mistaken(&self, host: &Host, fact: impl Fn(Host) -> Fact) {
        if let Some(mistaken) = self.world.resolver.mistaken(host) {
            self.saw(Fact::Service(host.clone()));
            self.saw(Fact::Service(mistaken.clone()));
            self.saw(fact(mistaken));
        }
    }

    pub(super) fn mtls_mode(&self, instance: &Instance, port: u16) -> MtlsMode {
        self.saw(Fact::Mtls(instance.namespace.clone()));
        self.world.mtls_mode(instance, port)
    }

    pub(super) fn mtls_ports(&self, instance: &'a Instance) -> impl Iterator<Item = u16> + use<'a> {
        self.saw(Fact::Mtls(instance.namespace.clone()));
        self.world.mtls_ports(instance)
    }

    /// Whether rules of a namespace may lead the client to its own host: its own may, and the mesh's.
    pub(super) fn may_lead_near(&self, namespace: &str) -> bool {
        namespace == self.namespace() || self.world.settings.roots().any(|root| root == namespace)
    }

    /// The rate limits of an instance.
    pub(super) fn limits_for(&self, instance: &Instance) -> impl Iterator<Item = &'a LimitsIntent> + use<'a> {
        self.saw(Fact::Limits(instance.namespace.clone()));
        self.world.limits_for(instance)
    }

    /// What requests to a port may switch to besides WebSocket: by the word of its instances, and by rules of its namespace.
    pub(super) fn upgrades_of(
        &self,
        service: Seen<'a>,
        port: u16,
    ) -> impl Iterator<Item = &'a String> + use<'a> {
        self.saw(Fact::Limits(service.0.namespace.clone()));
        let by_rules = self.world.limits_of(service.0).flat_map(|intent| &intent.upgrades);
        service.0.upgrades.get(&port).into_iter().flatten().chain(by_rules)
    }

    /// Whose tokens an instance knows.
    pub(super) fn tokens_for(&self, instance: &Instance) -> Vec<&'a Arc<TokensIntent>> {
        self.saw(Fact::Authorization(instance.namespace.clone()));
        self.world.tokens_for(instance)
    }

    /// The keys at a place.
    pub(super) fn keys(&self, source: &KeySource) -> Option<&'a Arc<str>> {
        self.saw(Fact::Keys(source.clone()));
        self.world.keys(source)
    }

    pub(super) fn authorization_for(&self, instance: &Instance) -> Vec<&'a Arc<AuthorizationIntent>> {
        self.saw(Fact::Authorization(instance.namespace.clone()));
        self.world.authorization_for(instance)
    }
}

/// A service without its instances, which change more often than it does.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a>(&'a Service);

impl<'a> Seen<'a> {
    pub(super) fn host(self) -> &'a Host {
        &self.0.host
    }

    pub(super) fn name(self) -> &'a str {
        &self.0.name
    }

    pub(super) fn namespace(self) -> &'a str {
        &self.0.namespace
    }

    /// Whether its name stands for the addresses of who serves it.
    pub(super) fn is_headless(self) -> bool {
        self.0.is_headless()
    }

    pub(super) fn ports(self) -> &'a BTreeMap<u16, crate::instance::Protocol> {
        &self.0.ports
    }
}
