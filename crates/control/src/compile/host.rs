//! Hosts: the addresses that a sidecar's DNS gives for a name of the mesh; and which names of the world it has any for.

use outrigger_model::resource::Host;

use super::scope::Scope;
use crate::world::World;

/// The service that a name means to this client; `None` when there is none, or none with an address.
pub(super) fn compile(world: &World, scope: &Scope, name: &str) -> Option<Host> {
    if name == Host::OUTSIDE {
        return Some(outside(world, scope));
    }
    let host = world.resolver.resolve(name, &scope.namespace).ok()?;
    let service = world.service_of(&host)?;
    let addresses = service.addresses(&scope.namespace);
    if addresses.is_empty() {
        return None;
    }
    let host = match service.host.is_wildcard() {
        true => name.to_owned(),
        false => service.host.as_str().to_owned(),
    };
    Some(Host { name: name.to_owned(), host, addresses, names: Vec::new() })
}

/// Names beyond the mesh's own domain, so that the control plane need not be asked for every name of the world.
fn outside(world: &World, scope: &Scope) -> Host {
    let of_the_world = world.services().filter(|service| world.resolver.split(&service.host).is_none());
    let with_address = of_the_world.filter(|service| !service.addresses(&scope.namespace).is_empty());
    let mut names: Vec<String> = with_address.map(|service| service.host.as_str().to_owned()).collect();
    names.sort_unstable();
    let name = Host::OUTSIDE.to_owned();
    Host { host: name.clone(), name, addresses: Vec::new(), names }
}
