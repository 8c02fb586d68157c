//! What of the mesh a client knows: all of it, or what the Sidecar that holds for it names; and what becomes of its connections to all
//! that it does not.
//!
//! Only what a client finds is narrowed (destinations, names, lists of an Envoy). What routes of that lead to is there for it, as in
//! Istio: who may route to a service knows it.

use outrigger_model::resource::Destination;
use outrigger_rules::intent::{SidecarIntent, Unknown};

use super::lens::{Lens, Seen};
use super::names;
use crate::instance::Instance;

/// Whether a client knows a port of a service.
pub(super) fn knows(lens: &Lens<'_>, service: Seen<'_>, port: u16) -> bool {
    let Some(sidecar) = narrowing(lens) else { return true };
    let namespace = lens.owner(service, port).unwrap_or(service.namespace());
    sidecar.imports(own(lens, sidecar), namespace, service.host(), port)
}

/// What `.` means to a client: its namespace, which is looked at only where something says so. Two namespaces may have one Sidecar, the
/// root namespace's, and see something else by it.
fn own<'w>(lens: &Lens<'w>, sidecar: &SidecarIntent) -> &'w str {
    if sidecar.is_relative() { lens.namespace() } else { "" }
}

/// Whether it knows any port of a service.
pub(super) fn knows_any(lens: &Lens<'_>, service: Seen<'_>) -> bool {
    narrowing(lens).is_none() || service.ports().keys().any(|port| knows(lens, service, *port))
}

/// Whether it knows a service of a workload that it calls by its address.
pub(super) fn knows_workload(lens: &Lens<'_>, instance: &Instance, port: u16) -> bool {
    narrowing(lens).is_none_or(|sidecar| {
        let own = own(lens, sidecar);
        let mut hosts = lens.hosts_of(instance);
        hosts.any(|host| sidecar.imports(own, &instance.namespace, &host, port))
    })
}

/// The Sidecar of a client that does not know everything.
pub(super) fn narrowing<'w>(lens: &Lens<'w>) -> Option<&'w SidecarIntent> {
    lens.sidecar().filter(|sidecar| sidecar.egress.is_some())
}

/// Which listener serves what a client does not know, if that is not its sidecar's own matter.
pub(super) fn unknown(lens: &Lens<'_>) -> Option<String> {
    let sidecar = lens.sidecar()?;
    match lens.unknown()? {
        Unknown::Allowed => None,
        Unknown::Refused => Some(format!("{}{}", Destination::REFUSED, sidecar.origin)),
        Unknown::Through(target) => {
            let subset = target.subset.as_deref().unwrap_or_default();
            Some(names::through(target.port?, subset, target.host.as_str()))
        }
    }
}

#[cfg(test)]
mod tests;
