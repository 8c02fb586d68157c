//! Outbound listeners: by destination for Outrigger and gRPC, by port for Envoy.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use outrigger_model::listener::{
    ChainMatch, Codec, Direction, FilterChain, HttpConnection, Listener, RouteSource, TcpProxy, Terminal,
    Tracing, TransportMatch,
};
use outrigger_model::route::WeightedCluster;
use outrigger_rules::intent::TcpMatch;
use outrigger_xds::ClientKind;

use super::foreign::Gap;
use super::lens::Lens;
use super::names::{self, Outbound};
use super::route::weighted;
use crate::instance::Protocol;
use crate::world::selected;

/// The outbound listener of a name.
pub(super) fn compile(lens: &Lens<'_>, name: &str) -> Option<Listener> {
    match lens.kind() {
        ClientKind::Outrigger => for_destination(lens, name, name),
        ClientKind::Grpc => {
            // gRPC asks for the authority of its target and needs a listener of that name.
            let (host, port) = name.rsplit_once(':')?;
            let host = lens.resolve(host)?;
            for_destination(lens, name, &names::outbound(names::port(port)?, "", host.as_str()))
        }
        ClientKind::Envoy => {
            let port = names::port(name.strip_prefix("outbound_")?)?;
            for_port(lens, port)
        }
    }
}

/// The names of all outbound listeners of an Envoy.
pub(super) fn envoy_names(lens: &Lens<'_>) -> Vec<String> {
    envoy_ports(lens).into_iter().map(|port| format!("outbound_{port}")).collect()
}

/// The ports that an Envoy listens on.
pub(super) fn envoy_ports(lens: &Lens<'_>) -> BTreeSet<u16> {
    lens.services().flat_map(|service| http_ports(service.ports())).collect()
}

/// Rules for what an Envoy is given no listener for.
pub(super) fn envoy_gaps(lens: &Lens<'_>) -> Vec<Gap> {
    let mut gaps = Vec::new();
    for service in lens.services() {
        let tcp: Vec<u16> = service
            .ports()
            .iter()
            .filter(|(_, spoken)| matches!(spoken, Protocol::Tls | Protocol::Tcp))
            .map(|(port, _)| *port)
            .collect();
        let why = |ports: &[u16]| format!("an Envoy is given no listener for TCP (port {ports:?})");
        if let Some(rule) = lens.destination_for(service.host()).filter(|_| !tcp.is_empty()) {
            gaps.extend(rule.origins().map(|rule| Gap { rule: rule.to_string(), why: why(&tcp) }));
        }
        let route = lens.route_for(service.host());
        let route = route.filter(|route| !route.tcp.is_empty() || !route.tls.is_empty());
        if let Some(route) =
            route.filter(|_| !tcp.is_empty() || service.ports().values().any(|p| *p == Protocol::Auto))
        {
            let why =
                "an Envoy is given no listener for TCP, so TCP and TLS routes have no effect".to_owned();
            gaps.push(Gap { rule: route.origin.to_string(), why });
        }
    }
    gaps
}

fn http_ports(ports: &std::collections::BTreeMap<u16, Protocol>) -> impl Iterator<Item = u16> {
    ports.iter().filter(|(_, protocol)| protocol.is_http()).map(|(port, _)| *port)
}

fn for_port(lens: &Lens<'_>, port: u16) -> Option<Listener> {
    lens.services()
        .find(|service| lens.offer(*service, port).is_some_and(|offer| offer.protocol.is_http()))?;
    let bind = lens.bind().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let http = http(lens, RouteSource::Named(port.to_string()));
    let chain = chain("http", ChainMatch::default(), Terminal::Http(Box::new(http)));
    Some(listener(&format!("outbound_{port}"), vec![SocketAddr::new(bind, port)], vec![chain]))
}

fn for_destination(lens: &Lens<'_>, name: &str, key: &str) -> Option<Listener> {
    let outbound = Outbound::parse(key)?;
    let routes = || RouteSource::Named(key.to_owned());
    let (protocol, clusters, address) = if let Some(address) = outbound.address() {
        let instance = lens.workloads_at(address).next()?;
        let protocol = instance.port(outbound.port)?.protocol;
        (protocol, vec![WeightedCluster::only(key)], Some(address))
    } else {
        let host = lens.resolve(outbound.host)?;
        let protocol = lens.offer(lens.service(&host)?, outbound.port)?.protocol;
        (protocol, tcp_clusters(lens, &outbound, key), None)
    };
    let tcp = || tcp(lens, &outbound, clusters.clone());
    let web = || Terminal::Http(Box::new(http(lens, routes())));
    let chains = match protocol {
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
            vec![chain("http", ChainMatch::default(), web())]
        }
        Protocol::Tcp => vec![chain("tcp", ChainMatch::default(), tcp())],
        // As Istio: where rules name servers, what asks for another is refused.
        Protocol::Tls => match tls_chains(lens, &outbound) {
            named if named.is_empty() => vec![chain("tcp", ChainMatch::default(), tcp())],
            named => named,
        },
        Protocol::Auto => {
            let mut chains = tls_chains(lens, &outbound);
            chains.extend([chain("http", detected(), web()), chain("tcp", ChainMatch::default(), tcp())]);
            chains
        }
    };
    Some(listener(name, address.into_iter().collect(), chains))
}

/// HTTP by its first bytes. An application's own TLS may offer http/1.1 as well: what is inside of it is not ours to see.
pub(super) fn detected() -> ChainMatch {
    ChainMatch {
        transport: TransportMatch::Plain,
        application_protocols: vec!["http/1.1".into(), "h2c".into()],
        ..ChainMatch::default()
    }
}

pub(super) fn tcp(lens: &Lens<'_>, outbound: &Outbound<'_>, clusters: Vec<WeightedCluster>) -> Terminal {
    Terminal::Tcp(TcpProxy { clusters, idle_timeout: idle_timeout(lens, outbound) })
}

/// How long a connection may be silent: what the rule of its destination says, or an hour.
fn idle_timeout(lens: &Lens<'_>, outbound: &Outbound<'_>) -> Duration {
    let rule = match outbound.address() {
        None => lens.resolve(outbound.host),
        // A call to the address of a workload obeys the policy of its service.
        Some(address) => lens.workloads_at(address).next().map(|instance| lens.host_of(instance)),
    };
    let rule = rule.and_then(|host| lens.destination_for(&host));
    let pool = rule.and_then(|rule| rule.effective(None, outbound.port).connection_pool);
    match pool.and_then(|pool| pool.tcp_idle_timeout) {
        // Off: ten years.
        Some(Duration::ZERO) => Duration::from_secs(315_360_000),
        found => found.unwrap_or(Duration::from_secs(3600)),
    }
}

pub(super) fn tcp_clusters(lens: &Lens<'_>, outbound: &Outbound<'_>, key: &str) -> Vec<WeightedCluster> {
    let own = || vec![WeightedCluster::only(key)];
    let Some(host) = lens.resolve(outbound.host) else { return own() };
    let Some(intent) = lens.route_for(&host) else { return own() };
    let applies = |m: &TcpMatch| applies(lens, m, outbound.port);
    let route = intent.tcp.iter().find(|route| route.matches.is_empty() || route.matches.iter().any(applies));
    route.map_or_else(own, |route| weighted(&route.targets, outbound.port))
}

/// A chain for each server name that rules route, in their order.
pub(super) fn tls_chains(lens: &Lens<'_>, outbound: &Outbound<'_>) -> Vec<FilterChain> {
    let intent = lens.resolve(outbound.host).and_then(|host| lens.route_for(&host));
    let routes = intent.iter().flat_map(|intent| intent.tls.iter().enumerate());
    let matches = routes.flat_map(|(at, route)| route.matches.iter().map(move |m| (at, route, m)));
    let named = matches.filter(|(_, _, m)| applies(lens, &m.connection, outbound.port));
    let chains = named.map(|(at, route, m)| {
        let any = m.server_names.iter().any(|name| name == "*");
        let server_names = if any { Vec::new() } else { m.server_names.clone() };
        let matches = ChainMatch { transport: TransportMatch::Tls, server_names, ..ChainMatch::default() };
        let clusters = weighted(&route.targets, outbound.port);
        chain(&format!("tls[{at}] {}", m.server_names.join(" ")), matches, tcp(lens, outbound, clusters))
    });
    chains.collect()
}

fn applies(lens: &Lens<'_>, m: &TcpMatch, port: u16) -> bool {
    m.port.is_none_or(|wanted| wanted == port)
        && m.source_namespace.as_ref().is_none_or(|n| *n == lens.namespace())
        && (m.source_labels.is_empty()
            || lens.labels().is_some_and(|labels| selected(&m.source_labels, labels)))
}

/// The HTTP connection manager of every chain that the control plane makes.
pub(super) fn http(lens: &Lens<'_>, routes: RouteSource) -> HttpConnection {
    let mut http = HttpConnection::new(routes);
    http.codec = Codec::Auto;
    http.tracing = Some(Tracing { random_sampling: lens.settings().sampling });
    http.path = lens.settings().path;
    http
}

pub(super) fn chain(name: &str, matches: ChainMatch, terminal: Terminal) -> FilterChain {
    FilterChain { matches, ..FilterChain::new(name, terminal) }
}

pub(super) fn listener(name: &str, addresses: Vec<SocketAddr>, chains: Vec<FilterChain>) -> Listener {
    Listener { addresses, chains, ..Listener::new(name, Direction::Outbound) }
}
