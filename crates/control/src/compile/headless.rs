//! Calls to the addresses of who serves a headless Service, which is what its name stands for: they obey the rules of that name, and
//! what those send to the service itself goes to the instance that was called.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use outrigger_model::route::{RouteAction, VirtualHost, WeightedCluster};
use outrigger_rules::intent::Host;

use super::imports::knows;
use super::lens::{Lens, Seen};
use super::names;

/// The headless services that the workload at an address serves there, with their port, by host.
pub(super) fn at<'w>(lens: &Lens<'w>, address: SocketAddr) -> Vec<(Seen<'w>, u16)> {
    let mut seen: BTreeSet<Host> = BTreeSet::new();
    let mut found = Vec::new();
    for instance in lens.workloads_at(address) {
        for host in lens.hosts_of(instance) {
            let service = lens.service(&host).filter(|service| service.is_headless());
            let Some(service) = service.filter(|_| seen.insert(host)) else { continue };
            let is_served = |port: &u16| lens.target_port(service, instance, *port) == Some(address.port());
            let port = service.ports().keys().copied().find(is_served);
            found.extend(port.filter(|port| knows(lens, service, *port)).map(|port| (service, port)));
        }
    }
    found.sort_by(|one, other| one.0.host().cmp(other.0.host()));
    found
}

/// The routes of each of them, for who calls by its name. `name` is the cluster of the address; `routes` are those of a service's port.
pub(super) fn virtual_hosts(
    lens: &Lens<'_>,
    (name, address): (&str, SocketAddr),
    routes: impl Fn(Seen<'_>, u16, Vec<String>) -> VirtualHost,
) -> Vec<VirtualHost> {
    let of = |(service, port): (Seen<'_>, u16)| {
        let whole = service.host().as_str();
        // One of its instances has a name of its own below it.
        let mut found = routes(service, port, vec![whole.to_owned(), format!("*.{whole}")]);
        for route in &mut found.routes {
            if let RouteAction::Forward(forward) = &mut route.action {
                to_called(&mut forward.clusters, &names::outbound(port, "", whole), name);
            }
        }
        found
    };
    at(lens, address).into_iter().map(of).collect()
}

/// What goes to the whole of a service goes to the address that was called.
pub(super) fn to_called(clusters: &mut [WeightedCluster], service: &str, called: &str) {
    for share in clusters.iter_mut().filter(|share| share.cluster == service) {
        share.cluster = called.to_owned();
    }
}
