//! What comes in, where a Sidecar says so: which ports there are, what is spoken there, and where the application takes it. Without its
//! word the registered ports are.

use std::net::SocketAddr;

use outrigger_model::cluster::{Cluster, Discovery};
use outrigger_model::endpoint::{Endpoint, EndpointSet, Locality, LocalityEndpoints};
use outrigger_rules::intent::{AppAddress, SidecarIntent};

use super::lens::Lens;
use super::limits::limits;
use super::origin;
use crate::described;
use crate::instance::{Instance, Protocol};

/// The Sidecar that says what comes in.
fn saying<'w>(lens: &Lens<'w>) -> Option<&'w SidecarIntent> {
    lens.sidecar().filter(|sidecar| !sidecar.ingress.is_empty())
}

/// The ports of which is said what they speak.
pub(super) fn ports(lens: &Lens<'_>, own: &Instance) -> Vec<u16> {
    match saying(lens) {
        Some(sidecar) => sidecar.ingress.iter().map(|one| one.port).collect(),
        None => own.ports.iter().map(|port| port.number).collect(),
    }
}

/// What such a port speaks.
pub(super) fn protocol(lens: &Lens<'_>, own: &Instance, port: u16) -> Option<Protocol> {
    match saying(lens) {
        Some(sidecar) => sidecar.ingress_at(port).map(|one| described::protocol(one.protocol)),
        None => own.port(port).map(|port| port.protocol),
    }
}

/// Whether a port is one of this address of the workload, too.
pub(super) fn is_bound(lens: &Lens<'_>, address: SocketAddr) -> bool {
    let ingress = saying(lens).and_then(|sidecar| sidecar.ingress_at(address.port()));
    ingress.and_then(|one| one.bind).is_none_or(|bind| bind == address.ip())
}

/// The cluster of what comes in to a port: the application, where it was asked for unless a Sidecar says otherwise.
pub(super) fn cluster(lens: &Lens<'_>, name: &str, port: u16) -> Cluster {
    let mut cluster = Cluster::new(name);
    cluster.discovery = Discovery::OriginalDestination;
    let Some(sidecar) = lens.sidecar() else { return cluster };
    if let Some(pool) = sidecar.pool_at(port) {
        limits(&mut cluster, pool);
        cluster.origin = Some(origin(&sidecar.origin));
    }
    if let Some(app) = sidecar.ingress_at(port).and_then(|one| one.app) {
        match app {
            AppAddress::Loopback(address) => cluster.discovery = Discovery::Static(alone(name, address)),
            AppAddress::Instance(port) => cluster.original_port = Some(port),
        }
        cluster.origin = Some(origin(&sidecar.origin));
    }
    cluster
}

fn alone(name: &str, address: SocketAddr) -> EndpointSet {
    let endpoints = vec![Endpoint::new(address)];
    let place = LocalityEndpoints { locality: Locality::default(), priority: 0, weight: 0, endpoints };
    EndpointSet { cluster: name.to_owned(), localities: vec![place], trouble: None }
}
