//! Destinations: which listener serves what a client asked for, by name or by address.

use std::net::SocketAddr;

use outrigger_model::resource::{Destination, is_virtual};
use outrigger_rules::intent::{Host, Resolution};

use super::imports::{self, knows, knows_workload};
use super::lens::{Lens, Seen};
use super::{any_host, names};

/// `host:port` or `network/ip:port`; `None` when it is not in the mesh.
pub(super) fn compile(lens: &Lens<'_>, name: &str) -> Option<Destination> {
    let listener = match name.split_once('/') {
        Some((network, address)) => {
            let address: SocketAddr = address.parse().ok()?;
            let found = by_address(lens, network, address);
            // What only the mesh has is nobody's beside it, and what is the workload's own its own matter.
            let passes = || !is_virtual(address.ip()) && !is_own(lens, address);
            found.or_else(|| imports::unknown(lens).filter(|_| passes()))?
        }
        None => {
            let (host, port) = name.rsplit_once(':')?;
            let port = names::port(port)?;
            let host = lens.resolve(host)?;
            match known(lens, &host, port) {
                Some(service) => by_name(lens, service, port)?,
                None => imports::unknown(lens)?,
            }
        }
    };
    Some(Destination { name: name.to_owned(), listener })
}

/// A workload that calls itself goes past its own sidecar's policies as it would without one.
fn is_own(lens: &Lens<'_>, address: SocketAddr) -> bool {
    lens.sidecar().is_some() && lens.own().is_some_and(|own| own.addresses.contains(&address.ip()))
}

/// Whose a name is at a port, of those that the client knows.
fn known<'w>(lens: &Lens<'w>, host: &Host, port: u16) -> Option<Seen<'w>> {
    lens.service_of(host, |service| lens.offer(*service, port).is_some() && knows(lens, *service, port))
}

/// `None`: of what the client knows, but has to find out itself where it is.
fn by_name(lens: &Lens<'_>, service: Seen<'_>, port: u16) -> Option<String> {
    let described = lens.offer(service, port)?.described;
    // Who calls a name was going nowhere yet.
    if described.is_some_and(|intent| intent.resolution == Resolution::None) {
        return None;
    }
    Some(names::outbound(port, "", service.host().as_str()))
}

/// A virtual address stands for its service in every network and for nothing else. Any other is that of the workloads that have it in
/// the client's own network, or else of the service that it was said to stand for; at a port that nobody has declared it is its Pod's
/// last of all. Sidecars do not know what their network is called
/// and leave its name out. What is nobody's may still be for a described host, which only the first bytes will say.
fn by_address(lens: &Lens<'_>, network: &str, address: SocketAddr) -> Option<String> {
    let port = address.port();
    let name = |service: Seen<'_>| names::outbound(port, "", service.host().as_str());
    let offers = |service: &Seen<'_>| lens.offer(*service, port).is_some() && knows(lens, *service, port);
    if let Some(service) = lens.virtual_at(address.ip()) {
        return Some(service).filter(offers).map(name);
    }
    let is_near = network.is_empty() || lens.is_own_network(network);
    let there = if is_near { lens.workloads_at(address).next() } else { None };
    let workload = |workload| {
        let known = knows_workload(lens, workload, port);
        known.then(|| names::outbound(port, "", &address.ip().to_string()))
    };
    if let Some(declared) = there.filter(|there| there.port(port).is_some()) {
        return workload(declared);
    }
    if let Some(service) = lens.described_at(address.ip()).find(offers) {
        return Some(name(service));
    }
    if let Some(other) = there {
        return workload(other);
    }
    if !is_near {
        return None;
    }
    any_host::exists(lens, port).then(|| names::outbound(port, "", names::ANY_HOST))
}
