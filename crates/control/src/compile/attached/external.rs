//! Services that are asked about the requests of attached routes (ExternalAuth of the Gateway API): for each rule the listener has a filter,
//! which is off for all other routes.
//!
//! The routes stand in such a listener, so that none ever holds before the filter that it wants. Who has no such listener (Envoys, whose
//! routes of a port are many services', and gRPC clients) is sent routes that lead nowhere, and so is whoever has them by their name: that
//! is a listener which knows nothing of the filter, and serves on until the one with it has all that it leads to.

use std::collections::BTreeMap;

use outrigger_model::cluster::NOWHERE;
use outrigger_model::ext_authz::{AuthzService, CheckSettings, ExtAuthz, RouteAuthz};
use outrigger_model::listener::{HttpConnection, HttpFilter, RouteSource};
use outrigger_model::route::{Forward, NoCluster, Route, RouteAction, RouteConfig, WeightedCluster};
use outrigger_rules::intent::{ExternalAuth, Origin};
use outrigger_xds::ClientKind;

use super::super::chains::http;
use super::super::lens::{Lens, Seen};
use super::asking;

/// What serves the requests for ports of services, by the routes of a name.
pub(in crate::compile) fn connection(
    lens: &Lens<'_>,
    name: &str,
    services: &[(Seen<'_>, u16)],
    routes: impl FnOnce() -> Option<RouteConfig>,
) -> HttpConnection {
    let named = || http(lens, RouteSource::Named(name.to_owned()));
    if lens.kind() != ClientKind::Outrigger {
        return named();
    }
    let filters: Vec<ExtAuthz> =
        services.iter().flat_map(|(service, port)| asking(lens, *service, *port)).collect();
    if filters.is_empty() {
        return named();
    }
    let Some(mut config) = routes() else { return named() };
    for route in config.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
        for filter in &filters {
            // Where it is the route's own, that is said already.
            route.authz.entry(filter.name.clone()).or_insert(RouteAuthz::Off);
        }
    }
    let filters = filters.into_iter().map(Box::new).map(HttpFilter::ExtAuthz).collect();
    HttpConnection { filters, ..http(lens, RouteSource::Inline(config)) }
}

/// The filter of a rule of an object, at that cluster.
pub(super) fn filter(auth: &ExternalAuth, (rule, index): (&Origin, usize), cluster: String) -> ExtAuthz {
    let service = match &auth.filter.service {
        // A gRPC library refuses an authority with a bar; this is Istio's.
        AuthzService::Grpc { metadata, .. } => {
            AuthzService::Grpc { authority: cluster.replace('|', "_."), metadata: metadata.clone() }
        }
        AuthzService::Http(http) => AuthzService::Http(http.clone()),
    };
    ExtAuthz { name: name(rule, index), service, cluster, ..auth.filter.clone() }
}

/// No other rule has it.
fn name(rule: &Origin, index: usize) -> String {
    format!("external-auth/{}/{}/{index}", rule.namespace, rule.name)
}

/// Has the requests of a route asked about by its rule's filter, or answered with an error where nobody can be asked.
pub(super) fn ask(route: &mut Route, rule: (&Origin, usize), can_ask: bool) {
    if can_ask {
        let asked = RouteAuthz::Asked(CheckSettings::default());
        route.authz = BTreeMap::from([(name(rule.0, rule.1), asked)]);
    } else {
        refuse(route);
    }
}

/// Routes that are sent by their name.
pub(in crate::compile) fn by_name(lens: &Lens<'_>, mut config: RouteConfig) -> RouteConfig {
    if lens.kind() == ClientKind::Outrigger {
        for route in config.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            take(route);
        }
    }
    config
}

/// Takes out what a client that has no such filters is sent. Whether there was anything.
pub(in crate::compile) fn take(route: &mut Route) -> bool {
    let asked = !std::mem::take(&mut route.authz).is_empty();
    if asked {
        refuse(route);
    }
    asked
}

/// Unasked no request goes anywhere.
fn refuse(route: &mut Route) {
    let clusters = vec![WeightedCluster::only(NOWHERE)];
    let no_cluster = NoCluster::InternalError;
    route.action = RouteAction::Forward(Forward { clusters, no_cluster, ..Forward::default() });
}
