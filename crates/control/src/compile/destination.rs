//! Destinations: which listener serves what a client asked for, by name or by address.

use std::net::SocketAddr;

use outrigger_model::resource::Destination;
use outrigger_rules::intent::Resolution;

use super::lens::{Lens, Seen};
use super::{any_host, names};

/// `host:port` or `network/ip:port`; `None` when it is not in the mesh.
pub(super) fn compile(lens: &Lens<'_>, name: &str) -> Option<Destination> {
    let listener = match name.split_once('/') {
        Some((network, address)) => by_address(lens, network, address.parse().ok()?)?,
        None => {
            let (host, port) = name.rsplit_once(':')?;
            let port = names::port(port)?;
            let host = lens.resolve(host)?;
            let service = lens.service_of(&host, |service| lens.offer(*service, port).is_some())?;
            let described = lens.offer(service, port)?.described;
            // Who calls a name was going nowhere yet.
            if described.is_some_and(|intent| intent.resolution == Resolution::None) {
                return None;
            }
            names::outbound(port, "", service.host().as_str())
        }
    };
    Some(Destination { name: name.to_owned(), listener })
}

/// A virtual address stands for its service in every network and for nothing else. Any other is that of the workloads that have it in
/// the client's own network, or else of the service that it was said to stand for. Sidecars do not know what their network is called
/// and leave its name out. What is nobody's may still be for a described host, which only the first bytes will say.
fn by_address(lens: &Lens<'_>, network: &str, address: SocketAddr) -> Option<String> {
    let name = |service: Seen<'_>| names::outbound(address.port(), "", service.host().as_str());
    let offers = |service: &Seen<'_>| lens.offer(*service, address.port()).is_some();
    if let Some(service) = lens.virtual_at(address.ip()) {
        return Some(service).filter(offers).map(name);
    }
    let is_near = network.is_empty() || lens.is_own_network(network);
    if is_near && lens.workloads_at(address).next().is_some() {
        return Some(names::outbound(address.port(), "", &address.ip().to_string()));
    }
    if let Some(service) = lens.described_at(address.ip()).find(offers) {
        return Some(name(service));
    }
    if !is_near {
        return None;
    }
    any_host::exists(lens, address.port()).then(|| names::outbound(address.port(), "", names::ANY_HOST))
}
