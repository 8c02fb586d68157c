//! Hosts: the addresses that a sidecar's DNS gives for a name of the mesh; and which names of the world it has any for.

use outrigger_model::resource::Host;

use super::imports::knows_any;
use super::lens::{Lens, Seen};

/// The service that a name means to this client; `None` when there is none, or none with an address.
pub(super) fn compile(lens: &Lens<'_>, name: &str) -> Option<Host> {
    if name == Host::OUTSIDE {
        return Some(outside(lens));
    }
    let has_address = |service: &Seen<'_>| !lens.addresses(*service).is_empty() && knows_any(lens, *service);
    let service = lens.service_of(&lens.resolve(name)?, has_address)?;
    let addresses = lens.addresses(service);
    let host = match service.host().is_wildcard() {
        true => name.to_owned(),
        false => service.host().as_str().to_owned(),
    };
    Some(Host { name: name.to_owned(), host, addresses, names: Vec::new() })
}

/// Names beyond the mesh's own domain, so that the control plane need not be asked for every name of the world.
fn outside(lens: &Lens<'_>) -> Host {
    let with_address =
        lens.described().filter(|service| !lens.addresses(*service).is_empty() && knows_any(lens, *service));
    let hosts = with_address.map(|service| service.host());
    let mut names: Vec<String> =
        hosts.filter(|host| !lens.is_of_the_mesh(host)).map(|host| host.as_str().to_owned()).collect();
    names.sort_unstable();
    let name = Host::OUTSIDE.to_owned();
    Host { host: name.clone(), name, addresses: Vec::new(), names }
}
