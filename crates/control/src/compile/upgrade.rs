//! What requests may switch to besides WebSocket, and whether CONNECT is let through: as the ports of the instances and rules of their
//! namespace say.

use outrigger_model::route::{PathMatch, Route, RouteAction, RouteMatch, RouteUpgrade};

use super::lens::Lens;
use crate::instance::Instance;

/// The name by which a port lets CONNECT through.
const CONNECT: &str = "connect";

/// What a port of instances allows.
pub(super) fn allowed<'i>(instances: impl IntoIterator<Item = &'i Instance>, port: u16) -> Vec<String> {
    let ports = instances.into_iter().filter_map(|instance| instance.port(port));
    together(ports.flat_map(|port| &port.upgrades))
}

/// What one's own port allows.
pub(super) fn inbound(lens: &Lens<'_>, own: &Instance, port: u16) -> Vec<String> {
    let by_rules = lens.limits_for(own).flat_map(|intent| &intent.upgrades);
    together(own.port(port).into_iter().flat_map(|port| &port.upgrades).chain(by_rules))
}

/// In lower case, in order, each once.
pub(super) fn together<'u>(upgrades: impl Iterator<Item = &'u String>) -> Vec<String> {
    let mut all: Vec<_> = upgrades.map(|upgrade| upgrade.to_ascii_lowercase()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Lets routes of a port take what it allows. CONNECT goes where a request that no route but the last one takes would go.
pub(super) fn add(routes: &mut Vec<Route>, allowed: &[String]) {
    let (connect, upgrades): (Vec<_>, Vec<_>) = allowed.iter().partition(|upgrade| *upgrade == CONNECT);
    for route in routes.iter_mut() {
        if let RouteAction::Forward(forward) = &mut route.action {
            let upgrade = |protocol: &&String| RouteUpgrade { protocol: (*protocol).clone(), allowed: true };
            forward.upgrades.extend(upgrades.iter().map(upgrade));
        }
    }
    let asks = |route: &Route| route.matches.path == PathMatch::Connect;
    if connect.is_empty() || routes.iter().any(asks) {
        return;
    }
    if let Some(mut route) = routes.iter().find(|route| route.matches == RouteMatch::any()).cloned() {
        route.matches.path = PathMatch::Connect;
        routes.push(route);
    }
}
