//! Destinations: which listener serves what a client asked for, by name or by address.

use std::net::SocketAddr;

use outrigger_model::resource::Destination;
use outrigger_rules::intent::Resolution;

use super::scope::Scope;
use super::{any_host, names};
use crate::world::World;

/// `host:port` or `network/ip:port`; `None` when it is not in the mesh.
pub(super) fn compile(world: &World, scope: &Scope, name: &str) -> Option<Destination> {
    let listener = match name.split_once('/') {
        Some((network, address)) => by_address(world, scope, network, address.parse().ok()?)?,
        None => {
            let (host, port) = name.rsplit_once(':')?;
            let port: u16 = port.parse().ok()?;
            let host = world.resolver.resolve(host, &scope.namespace).ok()?;
            let service = world.service_of(&host)?;
            let described = service.offer(port, &scope.namespace)?.described;
            // Who calls a name was going nowhere yet.
            if described.is_some_and(|intent| intent.resolution == Resolution::None) {
                return None;
            }
            names::outbound(port, "", service.host.as_str())
        }
    };
    Some(Destination { name: name.to_owned(), listener })
}

/// A virtual or described address stands for its service in every network, any other address for the workloads that have it
/// in the client's own. Sidecars do not know what their network is called and leave its name out. What is nobody's may still
/// be for a described host, which only the first bytes will say.
fn by_address(world: &World, scope: &Scope, network: &str, address: SocketAddr) -> Option<String> {
    let mut any = false;
    for service in world.services_at(address.ip()) {
        if service.offer(address.port(), &scope.namespace).is_some() {
            return Some(names::outbound(address.port(), "", service.host.as_str()));
        }
        any = true;
    }
    if any {
        return None;
    }
    if !network.is_empty() && network != scope.network(world) {
        return None;
    }
    if world.workloads_at(scope.network(world), address).next().is_some() {
        return Some(names::outbound(address.port(), "", &address.ip().to_string()));
    }
    any_host::exists(world, scope, address.port())
        .then(|| names::outbound(address.port(), "", names::ANY_HOST))
}
