//! Hints of EndpointSlices: for the clients of which zones or nodes an endpoint is meant, followed as kube-proxy follows them.
//!
//! They hold only where each endpoint that is ready has one, and one of them is meant for the client's own node or zone; else all are
//! everybody's.

use std::net::SocketAddr;

use super::lens::Lens;
use crate::canonical;
use crate::instance::{Instance, State};

type Found<'a> = (&'a Instance, SocketAddr);

/// Leaves the endpoints of a service that are meant for the client. Those for its node go before those for its zone.
pub(super) fn meant<'a>(lens: &Lens<'_>, service: &str, mut all: Vec<Found<'a>>) -> Vec<Found<'a>> {
    for hint in [canonical::FOR_NODES, canonical::FOR_ZONES] {
        // Nobody has any nearly always, which the first one shows.
        let mut ready = all.iter().filter(|(instance, _)| instance.state == State::Running).peekable();
        if ready.peek().is_none() || !ready.all(|(instance, _)| said(instance, hint, service).is_some()) {
            continue;
        }
        let Some(own) = own(lens, hint) else { continue };
        let is_meant = |(instance, _): &Found<'_>| {
            said(instance, hint, service).is_some_and(|said| said.split(',').any(|one| one == own))
        };
        if all.iter().any(|found| found.0.state == State::Running && is_meant(found)) {
            all.retain(is_meant);
            return all;
        }
    }
    all
}

/// The client's own node or zone, where it is known.
fn own(lens: &Lens<'_>, hint: &str) -> Option<String> {
    match hint {
        canonical::FOR_NODES => lens.node().map(str::to_owned),
        _ => lens.locality().map(|own| own.zone).filter(|zone| !zone.is_empty()),
    }
}

/// What is said of an instance as an endpoint of this service.
fn said<'a>(instance: &'a Instance, hint: &str, service: &str) -> Option<&'a str> {
    let of_service = |(key, said): (&'a String, &'a String)| {
        (key.strip_prefix(hint)? == service && !said.is_empty()).then_some(said.as_str())
    };
    instance.metadata.iter().find_map(of_service)
}
