//! Destinations: which listener serves what a client asked for, by name or by address.

use outrigger_model::resource::Destination;

use super::names;
use super::scope::Scope;
use crate::world::World;

/// `host:port` or `network/ip:port`; `None` when it is not in the mesh.
pub(super) fn compile(world: &World, scope: &Scope, name: &str) -> Option<Destination> {
    let listener = match name.split_once('/') {
        Some((network, address)) => {
            let address: std::net::SocketAddr = address.parse().ok()?;
            let known = world
                .at_address(address.ip())
                .iter()
                .any(|instance| instance.network == network && instance.port(address.port()).is_some());
            known.then(|| names::outbound(address.port(), "", &address.ip().to_string()))?
        }
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
