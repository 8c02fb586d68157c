//! What comes in, where a Sidecar says so: which ports there are, what is spoken there, and where the application takes it. Without its
//! word the registered ports are.

use std::net::SocketAddr;

use outrigger_model::cluster::{Cluster, Discovery};
use outrigger_model::endpoint::{Endpoint, EndpointSet, Locality, LocalityEndpoints};
use outrigger_rules::intent::{AppAddress, Ingress, SidecarIntent};

use super::lens::Lens;
use super::limits::limits;
pub(super) use super::names::OTHER_PORTS;
use super::{names, origin};
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

/// What is spoken at a port of an address of the workload, where that is said. A port that is bound to another address is here what it
/// would be without the Sidecar, so that the same policies, tokens and limits hold.
pub(super) fn protocol(lens: &Lens<'_>, own: &Instance, address: SocketAddr) -> Option<Protocol> {
    let registered = || own.port(address.port()).map(|port| port.protocol);
    let Some(sidecar) = saying(lens) else { return registered() };
    match sidecar.ingress_at(address.port())? {
        one if is_elsewhere(one, address) => registered(),
        one => Some(described::protocol(one.protocol)),
    }
}

/// The cluster that takes what comes in there: where the Sidecar speaks of another address, the application at this one.
pub(super) fn cluster_name(lens: &Lens<'_>, address: SocketAddr) -> String {
    let one = saying(lens).and_then(|sidecar| sidecar.ingress_at(address.port()));
    let elsewhere = one.is_some_and(|one| is_elsewhere(one, address));
    names::inbound_cluster(if elsewhere { OTHER_PORTS } else { address.port() })
}

fn is_elsewhere(one: &Ingress, address: SocketAddr) -> bool {
    one.bind.is_some_and(|bind| bind != address.ip())
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
