//! Hosts: the addresses that a sidecar's DNS gives for a name of the mesh.

use outrigger_model::resource::Host;

use super::scope::Scope;
use crate::world::World;

/// The service that a name means to this client; `None` when there is none.
pub(super) fn compile(world: &World, scope: &Scope, name: &str) -> Option<Host> {
    let host = world.resolver.resolve(name, &scope.namespace).ok()?;
    let service = world.service(&host)?;
    Some(Host {
        name: name.to_owned(),
        host: service.host.as_str().to_owned(),
        addresses: service.virtual_addresses.iter().collect(),
        names: Vec::new(),
    })
}
