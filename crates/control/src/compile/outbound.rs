//! Outbound listeners: by destination for Outrigger and gRPC, by port for Envoy.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use outrigger_model::listener::{ChainMatch, Listener, RouteSource, Terminal};
use outrigger_rules::intent::{Carried, SidecarIntent};
use outrigger_xds::ClientKind;

use super::attached::external;
use super::chains::{chain, detected, http, listener};
use super::cluster;
use super::connections::Ways;
use super::foreign::Gap;
use super::headless;
use super::imports::knows;
use super::lens::{Lens, Seen};
use super::names::{self, Outbound};
use super::route;
use crate::instance::Protocol;

/// The outbound listener of a name.
pub(super) fn compile(lens: &Lens<'_>, name: &str) -> Option<Listener> {
    match lens.kind() {
        ClientKind::Outrigger => for_destination(lens, name, name),
        ClientKind::Grpc => {
            // gRPC asks for the authority of its target and needs a listener of that name.
            let (host, port) = name.rsplit_once(':')?;
            let (host, port) = (lens.resolve(host)?, names::port(port)?);
            lens.service(&host).filter(|service| knows(lens, *service, port))?;
            for_destination(lens, name, &names::outbound(port, "", host.as_str()))
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
    let known = |service: Seen<'_>, port: &u16| knows(lens, service, *port);
    lens.services()
        .flat_map(|service| http_ports(service.ports()).filter(move |port| known(service, port)))
        .collect()
}

const NO_CONNECTIONS: &str = "an Envoy is given no listener for TCP, so TCP and TLS routes have no effect";

/// Rules for what an Envoy is given no listener for.
pub(super) fn envoy_gaps(lens: &Lens<'_>) -> Vec<Gap> {
    let mut gaps: Vec<Gap> = lens.sidecar().map(beside).unwrap_or_default();
    for service in lens.services() {
        let attached = service.ports().keys().flat_map(|port| lens.attached_to(service, *port));
        for route in attached.filter(|route| route.http.is_empty()) {
            gaps.push(Gap { rule: route.origin.to_string(), why: NO_CONNECTIONS.to_owned() });
        }
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
        if !tcp.is_empty() || service.ports().values().any(|p| *p == Protocol::Auto) {
            let of = |carried| lens.route_for(service.host(), carried).map(|route| route.origin.to_string());
            let rules: BTreeSet<String> = [Carried::Tls, Carried::Tcp].into_iter().filter_map(of).collect();
            gaps.extend(rules.into_iter().map(|rule| Gap { rule, why: NO_CONNECTIONS.to_owned() }));
        }
    }
    gaps
}

/// What a Sidecar says of all that is not known; of what comes in, whoever has registered says.
fn beside(sidecar: &SidecarIntent) -> Vec<Gap> {
    let why = "outboundTrafficPolicy: an Envoy decides itself about what it is not sent";
    let gap = Gap { rule: sidecar.origin.to_string(), why: why.to_owned() };
    sidecar.bars().then_some(gap).into_iter().collect()
}

fn http_ports(ports: &std::collections::BTreeMap<u16, Protocol>) -> impl Iterator<Item = u16> {
    ports.iter().filter(|(_, protocol)| protocol.is_http()).map(|(port, _)| *port)
}

fn for_port(lens: &Lens<'_>, port: u16) -> Option<Listener> {
    lens.services()
        .filter(|service| knows(lens, *service, port))
        .find(|service| lens.offer(*service, port).is_some_and(|offer| offer.protocol.is_http()))?;
    let bind = lens.bind().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let http = http(lens, RouteSource::Named(port.to_string()));
    let chain = chain("http", ChainMatch::default(), Terminal::Http(Box::new(http)));
    Some(listener(&format!("outbound_{port}"), vec![SocketAddr::new(bind, port)], vec![chain]))
}

fn for_destination(lens: &Lens<'_>, name: &str, key: &str) -> Option<Listener> {
    let outbound = Outbound::parse(key)?;
    let (protocol, address, services) = if let Some(address) = outbound.address() {
        let instance = lens.workloads_at(address).next()?;
        (cluster::spoken(instance, outbound.port), Some(address), headless::at(lens, address))
    } else {
        let service = lens.service(&lens.resolve(outbound.host)?)?;
        (lens.offer(service, outbound.port)?.protocol, None, vec![(service, outbound.port)])
    };
    let ways = Ways::of(lens, &outbound);
    let tcp = || ways.rest(lens, &outbound, ("tcp", ChainMatch::default()), key);
    let web = |matches| {
        let http = external::connection(lens, key, &services, || route::compile(lens, key));
        chain("http", matches, Terminal::Http(Box::new(http)))
    };
    let chains = match protocol {
        // gRPC knows requests only, whatever the port is routed as.
        _ if ways.are_bytes() && lens.kind() != ClientKind::Grpc => vec![tcp()],
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => vec![web(ChainMatch::default())],
        Protocol::Tcp => vec![tcp()],
        // As Istio: where rules name servers, what asks for another is refused.
        Protocol::Tls => match ways.tls(lens, &outbound) {
            named if named.is_empty() => vec![tcp()],
            named => named,
        },
        Protocol::Auto => {
            let mut chains = ways.tls(lens, &outbound);
            chains.extend(ways.other_tls(lens, &outbound));
            chains.extend([web(detected()), tcp()]);
            chains
        }
    };
    Some(listener(name, address.into_iter().collect(), chains))
}
