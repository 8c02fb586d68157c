//! Destinations: which listener serves what a client asked for, by name or by address.

use std::net::SocketAddr;

use outrigger_model::resource::Destination;

use super::names;
use super::scope::Scope;
use crate::world::World;

/// `host:port` or `network/ip:port`; `None` when it is not in the mesh.
pub(super) fn compile(world: &World, scope: &Scope, name: &str) -> Option<Destination> {
    let listener = match name.split_once('/') {
        Some((network, address)) => by_address(world, scope, network, address.parse().ok()?)?,
        None => {
            let (host, port) = name.rsplit_once(':')?;
            let port: u16 = port.parse().ok()?;
            let host = world.resolver.resolve(host, &scope.namespace).ok()?;
            world.service(&host)?.ports.get(&port)?;
            names::outbound(port, "", host.as_str())
        }
    };
    Some(Destination { name: name.to_owned(), listener })
}

/// A virtual address stands for its service in every network, any other address for the workloads that have it in the
/// client's own. Sidecars do not know what their network is called and leave its name out.
fn by_address(world: &World, scope: &Scope, network: &str, address: SocketAddr) -> Option<String> {
    if let Some(service) = world.service_at(address.ip()) {
        service.ports.get(&address.port())?;
        return Some(names::outbound(address.port(), "", service.host.as_str()));
    }
    if !network.is_empty() && network != scope.network(world) {
        return None;
    }
    world.workloads_at(scope.network(world), address).next()?;
    Some(names::outbound(address.port(), "", &address.ip().to_string()))
}
