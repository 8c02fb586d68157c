//! Hosts that have no address of their own: what a connection to a port is for, only its first bytes say. The server name of
//! TLS and the authority of HTTP choose among the described services of the port; everything else goes where it was going,
//! if the sidecar's policy lets it.

use std::collections::HashSet;

use outrigger_model::listener::{ChainMatch, FilterChain, Listener, Terminal, TransportMatch};
use outrigger_model::route::{RouteConfig, VirtualHost, WeightedCluster};
use outrigger_rules::intent::{Host, Resolution};
use outrigger_xds::ClientKind;

use super::attached::external;
use super::chains::{self, chain, detected};
use super::connections::{self, Ways};
use super::elsewhere;
use super::imports::knows;
use super::lens::{Lens, Seen};
use super::names::{self, Outbound};
use super::route;
use crate::described::Offer;
use crate::instance::Protocol;

/// Whether there is such a host.
pub(super) fn exists(lens: &Lens<'_>, port: u16) -> bool {
    offers(lens, port).next().is_some()
}

/// The described services of a port that clients find by nothing but their name; bytes have none, and are somebody's only
/// where they go where they were going.
fn offers<'w>(lens: &Lens<'w>, port: u16) -> impl Iterator<Item = (Seen<'w>, Offer<'w>)> {
    lens.described().filter_map(move |service| {
        let offer = lens.offer(service, port)?;
        let intent = offer.described.filter(|intent| intent.addresses.is_empty())?;
        let found = offer.protocol != Protocol::Tcp || intent.resolution == Resolution::None;
        (found && knows(lens, service, port)).then_some((service, offer))
    })
}

/// The port, of a listener's or its routes' name that stands for every such host.
pub(super) fn port_of(lens: &Lens<'_>, name: &str) -> Option<u16> {
    let outbound = Outbound::parse(name).filter(|outbound| outbound.host == names::ANY_HOST)?;
    (lens.kind() == ClientKind::Outrigger).then_some(outbound.port)
}

/// The listener of a port.
pub(super) fn listener(lens: &Lens<'_>, name: &str, port: u16) -> Option<Listener> {
    let mut chains: Vec<FilterChain> = Vec::new();
    let (mut web, mut bytes) = (false, None);
    for (service, offer) in offers(lens, port) {
        let host = service.host().as_str();
        let key = names::outbound(port, "", host);
        match offer.protocol {
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => web = true,
            Protocol::Tls | Protocol::Auto => {
                web |= offer.protocol == Protocol::Auto;
                let outbound = Outbound { port, subset: "", host };
                let ways = Ways::of(lens, &outbound);
                let named = of_its_own(ways.tls(lens, &outbound), service.host());
                // As Istio: where rules name servers, what asks for another is nobody's.
                if !named.is_empty() {
                    chains.extend(named);
                    continue;
                }
                if let Some(mut other) = ways.other_tls(lens, &outbound) {
                    other.matches.server_names = vec![host.to_owned()];
                    chains.push(other);
                    continue;
                }
                let matches = ChainMatch {
                    transport: TransportMatch::Tls,
                    server_names: vec![host.to_owned()],
                    ..ChainMatch::default()
                };
                chains.push(ways.rest(lens, &outbound, (&format!("tls {host}"), matches), &key));
            }
            Protocol::Tcp => {
                bytes.get_or_insert(key);
            }
        }
    }
    if chains.is_empty() && !web && bytes.is_none() {
        return None;
    }
    if web {
        let services: Vec<_> = requests(lens, port).map(|service| (service, port)).collect();
        let http = external::connection(lens, name, &services, || Some(routes(lens, name, port)));
        chains.push(chain("http", detected(), Terminal::Http(Box::new(http))));
    }
    let outbound = Outbound { port, subset: "", host: names::ANY_HOST };
    chains.push(match bytes {
        Some(cluster) => {
            let tcp = connections::tcp(lens, &outbound, vec![WeightedCluster::only(cluster)]);
            chain("other", ChainMatch::default(), tcp)
        }
        None => elsewhere::rest(lens, &outbound),
    });
    Some(chains::listener(name, Vec::new(), chains))
}

/// What is routed by names that are the host's own. Nothing but the name leads here, so a rule of one service that names others, or any,
/// would take what goes to addresses of the world.
fn of_its_own(chains: Vec<FilterChain>, host: &Host) -> Vec<FilterChain> {
    let mut taken = HashSet::new();
    let own = |mut chain: FilterChain| {
        let names = &mut chain.matches.server_names;
        if names.is_empty() {
            names.push(host.as_str().to_owned());
        }
        let below = |name: &str| host.is_wildcard() && host.covers(name.trim_start_matches('*'));
        names.retain(|name| {
            (name == host.as_str() || host.covers(name) || below(name)) && taken.insert(name.clone())
        });
        (!names.is_empty()).then_some(chain)
    };
    chains.into_iter().filter_map(own).collect()
}

/// The services that requests may be for.
fn requests<'w>(lens: &Lens<'w>, port: u16) -> impl Iterator<Item = Seen<'w>> {
    let web = |offer: &Offer<'_>| !matches!(offer.protocol, Protocol::Tls | Protocol::Tcp);
    offers(lens, port).filter(move |(_, offer)| web(offer)).map(|(service, _)| service)
}

/// Its routes.
pub(super) fn routes(lens: &Lens<'_>, name: &str, port: u16) -> RouteConfig {
    let mut virtual_hosts: Vec<VirtualHost> = Vec::new();
    for service in requests(lens, port) {
        let host = service.host().as_str();
        let domains = vec![host.to_owned(), format!("{host}:{port}")];
        virtual_hosts.push(route::virtual_host(lens, service, port, domains));
    }
    virtual_hosts.push(route::others(elsewhere::other_requests(lens)));
    RouteConfig { name: name.to_owned(), virtual_hosts }
}
