//! Routes that are attached to a port of a service (Gateway API): one list out of all of them, the most specific match first.

use std::cmp::Reverse;
use std::sync::Arc;

use outrigger_model::cluster::NOWHERE;
use outrigger_model::ext_authz::ExtAuthz;
use outrigger_model::route::{Mirror, PathMatch, Route, RouteAction, WeightedCluster};
use outrigger_rules::intent::{AttachedIntent, HttpMatch, HttpRoute, ObjectKind, Target, WeightedTarget};

use super::edits::of_the_only_share;
use super::hashes::{hashes, keep_to_keys};
use super::lens::{Lens, Seen};
use super::names;
use super::origin;

pub(super) mod external;

/// The routes of a port; `None` where nothing is attached to it.
pub(super) fn routes(lens: &Lens<'_>, service: Seen<'_>, port: u16) -> Option<Vec<Route>> {
    let attached = of_requests(lens, service, port);
    if attached.is_empty() {
        return None;
    }
    let mut found = Vec::new();
    for intent in &attached {
        for (index, http) in intent.http.iter().enumerate() {
            let any = [HttpMatch::default()];
            let matches = if http.matches.is_empty() { any.as_slice() } else { &http.matches };
            let route = route(lens, intent, http, index, port);
            for block in matches {
                let route = Route { matches: block.request.clone(), ..route.clone() };
                found.push((specificity(block), intent.age(), route));
            }
        }
    }
    // All are of one namespace, so that names tell them apart. Stable: of one object the first goes first.
    found.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    Some(found.into_iter().map(|(_, _, route)| route).collect())
}

fn of_requests(lens: &Lens<'_>, service: Seen<'_>, port: u16) -> Vec<Arc<AttachedIntent>> {
    let mut attached = lens.attached_to(service, port);
    attached.retain(|route| matches!(route.origin.kind, ObjectKind::HttpRoute | ObjectKind::GrpcRoute));
    attached
}

/// The filters that ask services about the requests of a port, where these are there.
fn asking(lens: &Lens<'_>, service: Seen<'_>, port: u16) -> Vec<ExtAuthz> {
    let mut asking = Vec::new();
    for intent in of_requests(lens, service, port) {
        for (index, http) in intent.http.iter().enumerate() {
            if let Some(auth) = &http.auth
                && let Some(cluster) = cluster(lens, &auth.target, port)
            {
                asking.push(external::filter(auth, (&intent.origin, index), cluster));
            }
        }
    }
    asking
}

/// By the Gateway API: exact paths, then the longer one, then those with a method, then by the number of headers and of query
/// parameters. Where it leaves regular expressions open, they go behind exact paths and before prefixes. Of gRPC the longer service,
/// then the longer method.
fn specificity(block: &HttpMatch) -> impl Ord + use<> {
    let matches = &block.request;
    let (kind, length) = match (&block.grpc, &matches.path) {
        (Some(lengths), _) => (0, *lengths),
        (None, PathMatch::Connect) => (0, (0, 0)),
        (None, PathMatch::Exact(path)) => (1, (path.len(), 0)),
        (None, PathMatch::Regex(pattern)) => (2, (pattern.len(), 0)),
        (None, PathMatch::Prefix(path) | PathMatch::Segments(path)) => (3, (path.len(), 0)),
    };
    let methods = matches.headers.iter().filter(|header| header.name == ":method").count();
    let headers = matches.headers.len() - methods;
    (kind, Reverse((length, methods, headers, matches.query.len())))
}

fn route(lens: &Lens<'_>, intent: &AttachedIntent, http: &HttpRoute, index: usize, port: u16) -> Route {
    let name = match http.route.name.as_str() {
        "" => format!("{}[{index}]", intent.origin.name),
        given => given.to_owned(),
    };
    let mut route = Route { name, origin: Some(origin(&intent.origin)), ..http.route.clone() };
    match &mut route.action {
        RouteAction::Forward(forward) => {
            forward.clusters = shares(lens, &http.targets, http.lost, port);
            forward.mirrors = mirrors(lens, http, port);
            forward.hash = hashes(lens, http, port);
            keep_to_keys(forward, http.said.previous_hosts);
        }
        RouteAction::Redirect(redirect) if http.to_request_port => redirect.port = Some(port),
        RouteAction::Redirect(_) | RouteAction::Direct { .. } => {}
    }
    of_the_only_share(&mut route);
    if let Some(auth) = &http.auth {
        let can_ask = cluster(lens, &auth.target, port).is_some();
        external::ask(&mut route, (&intent.origin, index), can_ask);
    }
    route
}

/// The cluster of a backend that is there.
fn cluster(lens: &Lens<'_>, target: &Target, port: u16) -> Option<String> {
    let port = target.port.unwrap_or(port);
    let there = lens.service(&target.host).is_some_and(|service| lens.offer(service, port).is_some());
    there.then(|| names::outbound(port, "", target.host.as_str()))
}

/// What cannot be sent to keeps its share, and goes nowhere.
pub(super) fn shares(
    lens: &Lens<'_>,
    targets: &[WeightedTarget],
    lost: u32,
    port: u16,
) -> Vec<WeightedCluster> {
    let mut lost = lost;
    let mut shares = Vec::new();
    for weighted in targets {
        match cluster(lens, &weighted.target, port) {
            Some(cluster) => shares.push(WeightedCluster { cluster, ..weighted.share.clone() }),
            None => lost += weighted.share.weight,
        }
    }
    if lost > 0 {
        shares.push(WeightedCluster::share(NOWHERE, lost));
    }
    shares
}

fn mirrors(lens: &Lens<'_>, http: &HttpRoute, port: u16) -> Vec<Mirror> {
    let mirrors = http.mirrors.iter();
    let there = mirrors.filter_map(|mirror| Some((cluster(lens, &mirror.target, port)?, mirror)));
    there.map(|(cluster, mirror)| Mirror { cluster, ..mirror.mirror.clone() }).collect()
}

#[cfg(test)]
mod tests;
