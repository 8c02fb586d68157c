//! From model resources to a [`Snapshot`]; and the check that a single resource can be compiled.
//!
//! What did not change since the last build is taken over: clusters by configuration, route tables by the very resource, listeners by
//! that and by the very tables and clusters that they lead to. Which resources go in at all is `config_feed`'s.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_model::cluster::{Balance, ClientTls, Cluster, Discovery};
use outrigger_model::endpoint::EndpointSet;
use outrigger_model::listener::{
    Direction, FilterChain, HttpConnection, Listener, RouteSource, TcpProxy, Terminal,
};
use outrigger_model::policy::decide::PolicySet;
use outrigger_model::resource::{self, Flaw, Invalid, Resource, ResourceKind, Under};
use outrigger_model::route::table::RouteTable;
use outrigger_model::route::{RouteConfig, WeightedCluster};

use crate::http::filter::{self, Place};
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::rate::Rates;
use crate::runtime::snapshot::{
    ChainHandle, Destination, FastMap, HttpHandle, Known, ListenerHandle, Snapshot, TcpHandle, TerminalHandle,
};

mod zones;

pub use outrigger_model::cluster::PASSTHROUGH;
pub use zones::Zones;

/// Resources that are in force, by kind and name.
pub type InForce<'a> = BTreeMap<(ResourceKind, &'a str), &'a Arc<Resource>>;

/// Builds snapshots, one after the other.
#[derive(Default)]
pub struct Builder {
    generation: u64,
    ids: FastMap<String, u32>,
    routes: FastMap<String, (Arc<Resource>, Arc<RouteTable>)>,
    listeners: FastMap<String, (Arc<Resource>, Arc<ListenerHandle>)>,
    endpoints: FastMap<String, Arc<Resource>>,
    /// What rate limits have counted.
    rates: Rates,
    /// What is not in the mesh is not reached.
    registry_only: bool,
    /// Where the client and its peers are.
    zones: Zones,
    /// What could not be compiled and was said so.
    refused: FastMap<(ResourceKind, String), Arc<Resource>>,
}

impl Builder {
    /// For a sidecar that may reach nothing but what the control plane names.
    pub fn registry_only() -> Self {
        Self { registry_only: true, ..Self::default() }
    }

    /// With what is known of the client's place.
    #[must_use]
    pub fn with_zones(self, zones: Zones) -> Self {
        Self { zones, ..self }
    }

    /// Builds the next snapshot; what cannot be compiled is named once, and its last good version stays.
    pub fn build<'a>(
        &mut self,
        before: &Snapshot,
        in_force: &InForce<'a>,
        absent: impl IntoIterator<Item = &'a (ResourceKind, String)>,
    ) -> (Snapshot, Vec<Invalid>) {
        self.generation = self.generation.max(before.generation) + 1;
        let mut snapshot = Snapshot { generation: self.generation, ..Snapshot::default() };
        let mut invalid = Vec::new();
        self.clusters(before, in_force, &mut snapshot, &mut invalid);
        self.routes(in_force, &mut invalid);
        self.listeners(in_force, &mut snapshot, &mut invalid);
        on_demand(before, in_force, absent, &mut snapshot);
        invalid.retain(|invalid| self.is_news(invalid, in_force));
        (snapshot, invalid)
    }

    fn is_news(&mut self, invalid: &Invalid, in_force: &InForce<'_>) -> bool {
        let Some(resource) = in_force.get(&(invalid.kind, invalid.name.as_str())) else { return true };
        let told = self.refused.insert((invalid.kind, invalid.name.clone()), (*resource).clone());
        told.is_none_or(|told| !Arc::ptr_eq(&told, resource))
    }

    /// Clusters and their endpoints.
    fn clusters(
        &mut self,
        before: &Snapshot,
        in_force: &InForce<'_>,
        snapshot: &mut Snapshot,
        invalid: &mut Vec<Invalid>,
    ) {
        self.zones.look(in_force);
        let passthrough = Arc::new(Resource::Cluster(passthrough_cluster(self.registry_only)));
        let all = of_kind(in_force, ResourceKind::Cluster).chain([&passthrough]);
        for resource in all {
            let Resource::Cluster(config) = &**resource else { continue };
            let old = before.clusters.get(config.name.as_str());
            let handle = match old.filter(|old| *old.config == *config) {
                Some(same) => same.clone(),
                None => {
                    let next = self.ids.len() as u32;
                    let id = *self.ids.entry(config.name.clone()).or_insert(next);
                    match ClusterHandle::new(id, Arc::new(config.clone()), old.map(|old| &**old)) {
                        Ok(handle) => Arc::new(handle),
                        Err(error) => {
                            invalid.push(error);
                            let Some(last_good) = old else { continue };
                            last_good.clone()
                        }
                    }
                }
            };
            let is_same = old.is_some_and(|old| Arc::ptr_eq(old, &handle));
            if !is_same {
                self.zones.warn_of(&handle.config);
            }
            let fresh = if is_static(&handle.config) { !is_same } else { old.is_none() };
            let anew = self.zones.share_anew(&handle.config, old.map(|old| &*old.config));
            self.feed_endpoints(&handle, fresh || anew, in_force);
            snapshot.clusters.insert(handle.name.clone(), handle);
        }
        self.endpoints.retain(|name, _| snapshot.clusters.contains_key(name.as_str()));
    }

    /// Brings the endpoints of a handle where that is to be done `anew`, or where they are others than before.
    fn feed_endpoints(&mut self, handle: &ClusterHandle, anew: bool, in_force: &InForce<'_>) {
        let Some(name) = handle.config.endpoints_name() else {
            // It brings them itself where it need not know of zones.
            if let Discovery::Static(set) = &handle.config.discovery
                && handle.config.zone_aware.is_some()
                && anew
            {
                handle.update(&self.zones.shared(&handle.config, set));
            }
            // Once it has endpoints from elsewhere again they are to be brought again.
            self.endpoints.remove(&*handle.name);
            return;
        };
        let Some(resource) = in_force.get(&(ResourceKind::Endpoints, &*name)) else { return };
        let known = self.endpoints.get(&*handle.name);
        if !anew && known.is_some_and(|known| Arc::ptr_eq(known, resource)) {
            return;
        }
        if let Resource::Endpoints(set) = &***resource {
            handle.update(&self.zones.shared(&handle.config, set));
        }
        self.endpoints.insert(handle.name.to_string(), (*resource).clone());
    }

    fn routes(&mut self, in_force: &InForce<'_>, invalid: &mut Vec<Invalid>) {
        let mut next = FastMap::default();
        for resource in of_kind(in_force, ResourceKind::Routes) {
            let Resource::Routes(config) = &**resource else { continue };
            let kept = self.routes.get(&config.name).filter(|(known, _)| Arc::ptr_eq(known, resource));
            let table = match kept {
                Some((_, table)) => table.clone(),
                None => match RouteTable::compile(config) {
                    Ok(table) => Arc::new(table),
                    Err(error) => {
                        invalid.push(error);
                        let Some(last_good) = self.routes.get(&config.name) else { continue };
                        next.insert(config.name.clone(), last_good.clone());
                        continue;
                    }
                },
            };
            next.insert(config.name.clone(), (resource.clone(), table));
        }
        self.routes = next;
    }

    fn listeners(&mut self, in_force: &InForce<'_>, snapshot: &mut Snapshot, invalid: &mut Vec<Invalid>) {
        let mut next = FastMap::default();
        let passthrough = Arc::new(Resource::Listener(passthrough_listener()));
        for resource in of_kind(in_force, ResourceKind::Listener).chain([&passthrough]) {
            let Resource::Listener(config) = &**resource else { continue };
            let kept = self.listeners.get(&config.name);
            let kept = kept.filter(|(known, handle)| {
                Arc::ptr_eq(known, resource) && leads_on(handle, &self.routes, &snapshot.clusters)
            });
            let handle = match kept {
                Some((_, handle)) => handle.clone(),
                None => match compile_listener(config, &self.routes, &snapshot.clusters, &self.rates) {
                    Ok(handle) => Arc::new(handle),
                    Err(error) => {
                        invalid.push(error);
                        match self.listeners.get(&config.name) {
                            Some((_, last_good)) => last_good.clone(),
                            None => continue,
                        }
                    }
                },
            };
            for address in &handle.config.addresses {
                snapshot.by_address.insert((handle.config.direction, *address), handle.clone());
            }
            snapshot.by_name.insert(config.name.clone(), handle.clone());
            next.insert(config.name.clone(), (resource.clone(), handle));
        }
        self.listeners = next;
    }
}

fn is_static(config: &Cluster) -> bool {
    matches!(config.discovery, Discovery::Static(_))
}

/// What was asked for one by one, the answer that there is none included.
fn on_demand<'a>(
    before: &Snapshot,
    in_force: &InForce<'a>,
    absent: impl IntoIterator<Item = &'a (ResourceKind, String)>,
    snapshot: &mut Snapshot,
) {
    for resource in of_kind(in_force, ResourceKind::Destination) {
        if let Resource::Destination(destination) = &**resource
            && let Some(answer) = answer(destination, snapshot)
        {
            let known = known(before.destination(&destination.name), answer);
            snapshot.destinations.insert(destination.name.clone(), known);
        }
    }
    for resource in of_kind(in_force, ResourceKind::Host) {
        if let Resource::Host(host) = &**resource {
            let old = before.host(&host.name);
            let same = old.and_then(|known| known.answer.as_ref()).filter(|kept| ***kept == *host);
            let answer = same.cloned().unwrap_or_else(|| Arc::new(host.clone()));
            snapshot.hosts.insert(host.name.clone(), known(old, Some(answer)));
        }
    }
    for (kind, name) in absent {
        if *kind == ResourceKind::Host {
            snapshot.hosts.insert(name.clone(), known(before.host(name), None));
        } else {
            let known = known(before.destination(name), Destination::NotInMesh);
            snapshot.destinations.insert(name.clone(), known);
        }
    }
}

fn answer(destination: &resource::Destination, snapshot: &Snapshot) -> Option<Destination> {
    match destination.refused_by() {
        Some(by) => Some(Destination::Refused(by.into())),
        None => snapshot.by_name.get(&destination.listener).cloned().map(Destination::Listener),
    }
}

/// A new answer; the use of what it is about goes on, unless it was forgotten in between.
fn known<A>(before: Option<&Known<A>>, answer: A) -> Known<A> {
    let usage = before.map(|known| &known.usage).filter(|usage| !usage.is_closed());
    Known { answer, usage: usage.cloned().unwrap_or_default() }
}

/// Whether a resource can be compiled; what is wrong with it becomes a NACK.
///
/// # Errors
/// The field that cannot be taken.
pub fn check(resource: &Resource) -> Result<(), Invalid> {
    match resource {
        Resource::Cluster(config) => ClusterHandle::new(0, Arc::new(config.clone()), None).map(|_| ()),
        Resource::Routes(config) => RouteTable::compile(config).map(|_| ()),
        Resource::Listener(config) => {
            compile_listener(config, &FastMap::default(), &FastMap::default(), &Rates::default()).map(|_| ())
        }
        Resource::Endpoints(_)
        | Resource::Destination(_)
        | Resource::Host(_)
        | Resource::Secret(_)
        | Resource::Barrier(_) => Ok(()),
    }
}

fn of_kind<'i>(
    in_force: &'i InForce<'_>,
    kind: ResourceKind,
) -> impl Iterator<Item = &'i Arc<Resource>> + 'i {
    in_force.range((kind, "")..).take_while(move |((k, _), _)| *k == kind).map(|(_, resource)| *resource)
}

/// Whether a compiled listener leads to the very tables and clusters of now.
fn leads_on(listener: &ListenerHandle, routes: &Routes, clusters: &Clusters) -> bool {
    let same = |name: &str, kept: Option<&Arc<ClusterHandle>>| match (kept, clusters.get(name)) {
        (Some(kept), Some(now)) => Arc::ptr_eq(kept, now),
        (None, None) => true,
        _ => false,
    };
    listener.chains.iter().all(|chain| match &chain.terminal {
        TerminalHandle::Http(http) => {
            let named = |routes: &RouteConfig| {
                let mut names = routes.clusters().chain(http.config.clusters());
                names.all(|name| same(name, http.clusters.get(name)))
            };
            match &http.config.routes {
                RouteSource::Inline(routes) => named(routes),
                RouteSource::Named(name) => match routes.get(name) {
                    Some((resource, table)) => {
                        Arc::ptr_eq(table, &http.routes)
                            && matches!(&**resource, Resource::Routes(routes) if named(routes))
                    }
                    None => {
                        http.is_waiting
                            && http.config.clusters().all(|name| same(name, http.clusters.get(name)))
                    }
                },
            }
        }
        TerminalHandle::Tcp(tcp) => {
            let mut pairs = tcp.config.clusters.iter().zip(&tcp.clusters);
            pairs.all(|(share, kept)| same(&share.cluster, kept.as_ref()))
        }
    })
}

type Routes = FastMap<String, (Arc<Resource>, Arc<RouteTable>)>;
type Clusters = FastMap<Arc<str>, Arc<ClusterHandle>>;

fn compile_listener(
    config: &Listener,
    routes: &Routes,
    clusters: &Clusters,
    rates: &Rates,
) -> Result<ListenerHandle, Invalid> {
    let mut chains = Vec::with_capacity(config.chains.len() + 1);
    for (i, chain) in config.chains.iter().chain(&config.default_chain).enumerate() {
        let field = if i < config.chains.len() {
            format!("filter_chains[{i}]")
        } else {
            "default_filter_chain".to_owned()
        };
        let at = |flaw: Flaw| flaw.under(&field).of(ResourceKind::Listener, &config.name);
        let authorization = PolicySet::compile(&chain.authorization).map_err(at)?;
        let terminal = match &chain.terminal {
            Terminal::Http(http) => {
                let place = format!("{} {field}", config.name);
                let http = compile_http(http, routes, clusters, rates, &place);
                TerminalHandle::Http(Arc::new(http.map_err(at)?))
            }
            Terminal::Tcp(tcp) => TerminalHandle::Tcp(TcpHandle {
                config: tcp.clone(),
                clusters: tcp.clusters.iter().map(|c| clusters.get(c.cluster.as_str()).cloned()).collect(),
            }),
        };
        let (name, tls) = (chain.name.clone(), chain.tls.clone());
        let origin = chain.origin.clone().map(Arc::new);
        chains.push(Arc::new(ChainHandle { name, tls, authorization, terminal, origin }));
    }
    Ok(ListenerHandle::new(Arc::new(config.clone()), chains))
}

fn compile_http(
    config: &HttpConnection,
    routes: &Routes,
    clusters: &Clusters,
    rates: &Rates,
    place: &str,
) -> Result<HttpHandle, Flaw> {
    let failed = |invalid: Invalid| Flaw::from(invalid).under("route_config");
    let (table, inline);
    let mut is_waiting = false;
    let used: &RouteConfig = match &config.routes {
        RouteSource::Inline(routes) => {
            table = Arc::new(RouteTable::compile(routes).map_err(failed)?);
            routes
        }
        RouteSource::Named(name) => match routes.get(name) {
            Some((resource, compiled)) => {
                table = compiled.clone();
                match &**resource {
                    Resource::Routes(routes) => routes,
                    _ => return Err(Flaw::new(format!("{name} is not a route configuration")).under("rds")),
                }
            }
            None => {
                is_waiting = true;
                inline = RouteConfig { name: format!("{name} (not received)"), virtual_hosts: Vec::new() };
                table = Arc::new(RouteTable::compile(&inline).map_err(failed)?);
                &inline
            }
        },
    };
    let mut filters = Vec::with_capacity(config.filters.len());
    for (i, filter) in config.filters.iter().enumerate() {
        let field = format!("http_filters[{i}]");
        let name = format!("{place} {field}");
        filters.push(filter::build(filter, &Place { name: &name, routes: &table, rates }).under(field)?);
    }
    filter::of_routes(&mut filters, &table);
    let mut named = Clusters::default();
    for name in used.clusters().chain(config.clusters()) {
        if let Some(handle) = clusters.get(name) {
            named.insert(handle.name.clone(), handle.clone());
        }
    }
    for share in used.shares() {
        if let Some((part, whole)) = share.part.as_ref().zip(clusters.get(share.cluster.as_str())) {
            named.entry(part.key.as_str().into()).or_insert_with(|| Arc::new(whole.part(part)));
        }
    }
    Ok(HttpHandle { config: config.clone(), routes: table, is_waiting, filters, clusters: named })
}

/// Where the control plane's listeners send what they know nothing of, it is the sidecar that says whether that may be.
fn passthrough_cluster(registry_only: bool) -> Cluster {
    let why = "the destination is not in the mesh, and the outbound policy is REGISTRY_ONLY";
    let nothing = || EndpointSet { trouble: Some(why.into()), ..EndpointSet::default() };
    Cluster {
        discovery: match registry_only {
            true => Discovery::Static(nothing()),
            false => Discovery::OriginalDestination,
        },
        balance: Balance::RoundRobin,
        tls: ClientTls::None,
        ..Cluster::new(PASSTHROUGH)
    }
}

fn passthrough_listener() -> Listener {
    let tcp = TcpProxy::new(vec![WeightedCluster::only(PASSTHROUGH)]);
    let chain = FilterChain::new(PASSTHROUGH, Terminal::Tcp(tcp));
    Listener { chains: vec![chain], ..Listener::new(PASSTHROUGH, Direction::Outbound) }
}

#[cfg(test)]
mod tests;
