//! Where connections go, before or without a look at requests: what is attached to a port (TCPRoute, TLSRoute), or else what rules for
//! its host say of TLS and TCP.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_model::cluster::NOWHERE;
use outrigger_model::listener::{ChainMatch, FilterChain, TcpProxy, Terminal, TransportMatch};
use outrigger_model::route::WeightedCluster;
use outrigger_rules::intent::{
    AttachedIntent, Carried, ConnectionPool, ObjectKind, Origin, RouteIntent, TcpMatch,
};

use super::attached::shares;
use super::chains::chain;
use super::headless;
use super::lens::Lens;
use super::names::{self, Outbound};
use super::origin;
use super::route::weighted;
use crate::world::selected;

/// What routes the connections of a port of a host.
pub(super) struct Ways {
    /// The port of its service.
    port: u16,
    /// Of a headless service: its own cluster, and that of the address that was called.
    called: Option<(String, String)>,
    attached: Vec<Arc<AttachedIntent>>,
    tls: Option<Arc<RouteIntent>>,
    tcp: Option<Arc<RouteIntent>>,
}

impl Ways {
    /// Of an address that is a workload's nobody routes, unless the name of a headless service stands for it: of several, bytes do not say
    /// which was called, and the first by name holds.
    pub(super) fn of(lens: &Lens<'_>, outbound: &Outbound<'_>) -> Self {
        let (host, port, called) = match outbound.address() {
            None => (lens.resolve(outbound.host), outbound.port, None),
            Some(address) => match headless::at(lens, address).first() {
                Some((service, port)) => {
                    let own = names::outbound(*port, "", service.host().as_str());
                    let called = names::outbound(outbound.port, "", outbound.host);
                    (Some(service.host().clone()), *port, Some((own, called)))
                }
                None => (None, outbound.port, None),
            },
        };
        let nothing = Self { port, called, attached: Vec::new(), tls: None, tcp: None };
        let Some(host) = host else { return nothing };
        let service = lens.service(&host);
        let attached = service.map(|service| lens.attached_to(service, port)).unwrap_or_default();
        // They may be of two objects.
        let rule = |carried| lens.route_for(&host, carried);
        Self { attached, tls: rule(Carried::Tls), tcp: rule(Carried::Tcp), ..nothing }
    }

    /// Of a headless service who was called stands for all of it.
    fn there(&self, mut clusters: Vec<WeightedCluster>) -> Vec<WeightedCluster> {
        if let Some((own, called)) = &self.called {
            headless::to_called(&mut clusters, own, called);
        }
        clusters
    }

    /// The route that is attached to all connections.
    fn bytes(&self) -> Option<&AttachedIntent> {
        self.attached.first().map(AsRef::as_ref).filter(|route| route.origin.kind == ObjectKind::TcpRoute)
    }

    /// Whether all connections are bytes, whatever the port speaks: nobody looks into them.
    pub(super) fn are_bytes(&self) -> bool {
        self.bytes().is_some()
    }

    fn named(&self) -> impl Iterator<Item = &AttachedIntent> {
        self.attached.iter().map(AsRef::as_ref).filter(|route| route.origin.kind == ObjectKind::TlsRoute)
    }

    /// The chain for what no other takes.
    pub(super) fn rest(
        &self,
        lens: &Lens<'_>,
        outbound: &Outbound<'_>,
        (name, matches): (&str, ChainMatch),
        key: &str,
    ) -> FilterChain {
        let (clusters, by) = self.clusters(lens, key);
        let clusters = self.there(clusters);
        FilterChain { origin: by.map(origin), ..chain(name, matches, tcp(lens, outbound, clusters)) }
    }

    /// Where bytes go, and who says so.
    fn clusters(&self, lens: &Lens<'_>, key: &str) -> (Vec<WeightedCluster>, Option<&Origin>) {
        let port = self.port;
        if let Some(route) = self.bytes() {
            let rule = route.tcp.first();
            let shares = rule.map(|rule| shares(lens, &rule.targets, rule.lost, port));
            return (shares.unwrap_or_default(), Some(&route.origin));
        }
        let holds = |matches: &[TcpMatch]| {
            matches.is_empty() || matches.iter().any(|matches| applies(lens, matches, port))
        };
        let rule = self.tcp.as_ref();
        let route = rule.and_then(|rule| rule.tcp.iter().find(|route| holds(&route.matches)));
        match route {
            Some(route) => (weighted(lens, &route.targets, port), rule.map(|rule| &rule.origin)),
            None => (vec![WeightedCluster::only(key)], None),
        }
    }

    /// A chain for each server name that is routed, in their order: of a name the first holds.
    pub(super) fn tls(&self, lens: &Lens<'_>, outbound: &Outbound<'_>) -> Vec<FilterChain> {
        let port = self.port;
        if self.are_bytes() {
            return Vec::new();
        }
        let mut chains = Named { taken: HashSet::new(), chains: Vec::new() };
        if self.named().next().is_some() {
            for route in self.named() {
                for rule in &route.tls {
                    let names = rule.matches.iter().flat_map(|m| &m.server_names);
                    let shares = || self.there(shares(lens, &rule.targets, rule.lost, port));
                    let to = || tcp(lens, outbound, shares());
                    chains.add("tls", names, &route.origin, to);
                }
            }
            return chains.chains;
        }
        let Some(rule) = &self.tls else { return Vec::new() };
        for (at, route) in rule.tls.iter().enumerate() {
            for m in route.matches.iter().filter(|m| applies(lens, &m.connection, port)) {
                let to = || tcp(lens, outbound, self.there(weighted(lens, &route.targets, port)));
                chains.add(&format!("tls[{at}]"), m.server_names.iter(), &rule.origin, to);
            }
        }
        chains.chains
    }

    /// Where TLSRoutes are attached, TLS that asks for another name is nobody's.
    pub(super) fn other_tls(&self, lens: &Lens<'_>, outbound: &Outbound<'_>) -> Option<FilterChain> {
        let route = self.named().next()?;
        let any = |route: &AttachedIntent| {
            let mut names = route.tls.iter().flat_map(|rule| &rule.matches).flat_map(|m| &m.server_names);
            names.any(|name| name == "*")
        };
        if self.named().any(any) {
            return None;
        }
        let matches = ChainMatch { transport: TransportMatch::Tls, ..ChainMatch::default() };
        let nowhere = vec![WeightedCluster::only(NOWHERE)];
        let chain = chain("tls to no route's name", matches, tcp(lens, outbound, nowhere));
        Some(FilterChain { origin: Some(origin(&route.origin)), ..chain })
    }
}

/// Chains by server names.
struct Named<'r> {
    taken: HashSet<&'r str>,
    chains: Vec<FilterChain>,
}

impl<'r> Named<'r> {
    /// One for those names that nobody has taken yet.
    fn add(
        &mut self,
        prefix: &str,
        names: impl Iterator<Item = &'r String>,
        by: &Origin,
        to: impl FnOnce() -> Terminal,
    ) {
        let names: Vec<&str> = names.map(String::as_str).filter(|name| self.taken.insert(name)).collect();
        if names.is_empty() {
            return;
        }
        let any = names.contains(&"*");
        let server_names =
            if any { Vec::new() } else { names.iter().map(|name| (*name).to_owned()).collect() };
        let matches = ChainMatch { transport: TransportMatch::Tls, server_names, ..ChainMatch::default() };
        let chain = chain(&format!("{prefix} {}", names.join(" ")), matches, to());
        self.chains.push(FilterChain { origin: Some(origin(by)), ..chain });
    }
}

fn applies(lens: &Lens<'_>, m: &TcpMatch, port: u16) -> bool {
    m.port.is_none_or(|wanted| wanted == port)
        && m.source_namespace.as_ref().is_none_or(|n| *n == lens.namespace())
        && (m.source_labels.is_empty()
            || lens.labels().is_some_and(|labels| selected(&m.source_labels, labels)))
}

/// A TCP proxy of a destination. A connection is for one of several clusters, and may be silent for the shortest time that the rule of
/// one of them says, or else that of the destination, or an hour. So it is of its age, which else has no end.
pub(super) fn tcp(lens: &Lens<'_>, outbound: &Outbound<'_>, clusters: Vec<WeightedCluster>) -> Terminal {
    // Off: ten years.
    let off = |said: Duration| if said.is_zero() { Duration::from_secs(315_360_000) } else { said };
    let targets = clusters.iter().filter_map(|share| Outbound::parse(&share.cluster));
    let of_targets: Vec<ConnectionPool> = targets.filter_map(|target| pool(lens, &target)).collect();
    let of_all = pool(lens, outbound);
    let shortest = |time: &dyn Fn(&ConnectionPool) -> Option<Duration>| {
        of_targets.iter().filter_map(time).min().or_else(|| of_all.as_ref().and_then(time))
    };
    let silence = shortest(&|pool: &ConnectionPool| pool.tcp_idle_timeout.map(off));
    let max_duration = shortest(&|pool: &ConnectionPool| pool.max_connection_duration);
    let plain = TcpProxy::new(clusters);
    Terminal::Tcp(TcpProxy { idle_timeout: silence.unwrap_or(plain.idle_timeout), max_duration, ..plain })
}

/// What the rule of a destination says of connections.
fn pool(lens: &Lens<'_>, outbound: &Outbound<'_>) -> Option<ConnectionPool> {
    let rule = match outbound.address() {
        None => lens.resolve(outbound.host),
        // A call to the address of a workload obeys the policy of its service.
        Some(address) => lens.workloads_at(address).next().map(|instance| lens.host_of(instance)),
    };
    let subset = Some(outbound.subset).filter(|subset| !subset.is_empty());
    let rule = lens.destination_for(&rule?)?;
    rule.effective(subset, outbound.port).connection_pool
}
