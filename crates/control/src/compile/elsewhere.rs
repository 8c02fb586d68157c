//! Where a client goes that knows not everything: past the mesh, nowhere, through an egress proxy; and to what routes lead that it knows.

use std::collections::BTreeSet;

use outrigger_model::cluster::{NOWHERE, PASSTHROUGH};
use outrigger_model::listener::{ChainMatch, FilterChain, Listener};
use outrigger_model::route::{Route, RouteAction, RouteMatch, WeightedCluster};
use outrigger_rules::intent::{SidecarIntent, Unknown};

use super::chains::{chain, listener};
use super::imports::{knows, narrowing, unknown};
use super::lens::{Lens, Seen};
use super::names::{self, Outbound};
use super::{connections, origin, outbound, route};

/// The listener of an egress proxy: all that comes goes there, as bytes.
pub(super) fn through(lens: &Lens<'_>, name: &str) -> Option<Listener> {
    let to = names::parse_through(name)?;
    let sidecar = lens.sidecar()?;
    // Only of who is told to go there.
    unknown(lens).filter(|told| told == name)?;
    let cluster = WeightedCluster::only(names::outbound(to.port, to.subset, to.host));
    let chain = chain("egress proxy", ChainMatch::default(), connections::tcp(lens, &to, vec![cluster]));
    let chain = FilterChain { origin: Some(origin(&sidecar.origin)), ..chain };
    Some(listener(name, Vec::new(), vec![chain]))
}

/// Where connections go whose first bytes name nobody that the client knows.
pub(super) fn rest(lens: &Lens<'_>, outbound: &Outbound<'_>) -> FilterChain {
    let (cluster, by) = elsewhere(lens);
    let tcp = connections::tcp(lens, outbound, vec![WeightedCluster::only(cluster)]);
    FilterChain { origin: by.map(|by| origin(&by.origin)), ..chain("other", ChainMatch::default(), tcp) }
}

/// The same of requests.
pub(super) fn other_requests(lens: &Lens<'_>) -> Route {
    let (cluster, by) = elsewhere(lens);
    let Some(by) = by else { return route::default_route(vec![WeightedCluster::only(cluster)], Vec::new()) };
    let origin = Some(origin(&by.origin));
    if cluster != NOWHERE {
        let route = route::default_route(vec![WeightedCluster::only(cluster)], Vec::new());
        return Route { origin, ..route };
    }
    let body = format!("the host is not known, and by {} the outbound policy is REGISTRY_ONLY", by.origin);
    let action = RouteAction::Direct { status: 502, body };
    Route { name: "REGISTRY_ONLY".into(), matches: RouteMatch::any(), action, origin, ..Route::default() }
}

fn elsewhere<'w>(lens: &Lens<'w>) -> (String, Option<&'w SidecarIntent>) {
    let sidecar = lens.sidecar();
    match lens.unknown() {
        None | Some(Unknown::Allowed) => (PASSTHROUGH.to_owned(), None),
        Some(Unknown::Refused) => (NOWHERE.to_owned(), sidecar),
        Some(Unknown::Through(target)) => {
            let subset = target.subset.as_deref().unwrap_or_default();
            (names::outbound(target.port.unwrap_or_default(), subset, target.host.as_str()), sidecar)
        }
    }
}

/// The clusters of an Envoy: every port that it knows with every subset, and whatever their routes lead to.
pub(super) fn envoy_clusters(lens: &Lens<'_>) -> Vec<String> {
    let mut all = Vec::new();
    let mut add = |service: Seen<'_>, port: u16| {
        let rule = lens.destination_for(service.host());
        let subsets = rule.as_deref().map(|rule| rule.subsets.as_slice()).unwrap_or_default();
        let name = |subset: &str| names::outbound(port, subset, service.host().as_str());
        all.push(name(""));
        all.extend(subsets.iter().map(|subset| name(&subset.name)));
    };
    for service in lens.services() {
        let ports = service.ports().keys().filter(|port| knows(lens, service, **port));
        ports.for_each(|port| add(service, *port));
    }
    if narrowing(lens).is_some() {
        let routes = outbound::envoy_ports(lens).into_iter().map(|port| route::by_port(lens, port));
        let named: BTreeSet<String> =
            routes.flat_map(|routes| routes.clusters().map(str::to_owned).collect::<Vec<_>>()).collect();
        let known: BTreeSet<&str> = all.iter().map(String::as_str).collect();
        let others: Vec<String> =
            named.iter().filter(|name| *name != NOWHERE && !known.contains(name.as_str())).cloned().collect();
        all.extend(others);
    }
    all
}
