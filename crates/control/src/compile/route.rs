//! Routes: a service's port as its clients see it, from the route intent of its host or the default.

use std::collections::HashSet;

use outrigger_model::route::{
    Forward, GrpcTimeout, HashOn, Mirror, PathMatch, RetryPolicy, Rewrite, Route, RouteAction, RouteConfig,
    RouteMatch, VirtualHost, WeightedCluster,
};
use outrigger_rules::intent::{
    Carried, HttpMatch, HttpRoute, MirrorTarget, RouteIntent, Target, WeightedTarget,
};
use outrigger_xds::ClientKind;

use super::attached;
use super::edits::of_the_only_share;
use super::hashes::{hash_of, hashes, keep_to_keys};
use super::headless;
use super::imports::knows;
use super::lens::{Lens, Seen};
use super::names::{self, Outbound};
use super::origin;
use super::upgrade;
use crate::world::selected;

/// The route configuration of a name.
pub(super) fn compile(lens: &Lens<'_>, name: &str) -> Option<RouteConfig> {
    if lens.kind() == ClientKind::Envoy
        && let Some(port) = names::port(name)
    {
        return Some(by_port(lens, port));
    }
    let outbound = Outbound::parse(name)?;
    let virtual_hosts = if outbound.host.parse::<std::net::IpAddr>().is_ok() {
        let only = vec![WeightedCluster::only(name)];
        let mut routes = vec![default_route(only, Vec::new())];
        let at = outbound.address().into_iter();
        let instances = at.flat_map(|address| lens.workloads_at(address));
        upgrade::add(&mut routes, &upgrade::allowed(instances, outbound.port));
        let of_service = |service: Seen<'_>, port, mut domains: Vec<String>| {
            domains.extend(short_names(lens, service));
            virtual_host(lens, service, port, domains)
        };
        let address = outbound.address();
        let named = address.map(|address| headless::virtual_hosts(lens, (name, address), of_service));
        let mut all = named.unwrap_or_default();
        all.push(host(name, vec!["*".into()], routes));
        all
    } else {
        let resolved = lens.resolve(outbound.host)?;
        let service = lens.service(&resolved)?;
        vec![virtual_host(lens, service, outbound.port, vec!["*".into()])]
    };
    Some(RouteConfig { name: name.to_owned(), virtual_hosts })
}

/// Envoy binds one listener per port, so its routes tell services apart by authority.
pub(super) fn by_port(lens: &Lens<'_>, port: u16) -> RouteConfig {
    let http = |service: &Seen<'_>| {
        lens.offer(*service, port).is_some_and(|offer| offer.protocol.is_http())
            && knows(lens, *service, port)
    };
    // An Envoy refuses them all where two hosts have a domain; a whole name goes before the short form of another's.
    let whole: HashSet<&str> = lens.services().filter(http).map(|service| service.host().as_str()).collect();
    let virtual_hosts = lens.services().filter(http).map(|service| {
        let mut domains = vec![service.host().as_str().to_owned()];
        let short = short_names(lens, service);
        domains.extend(short.into_iter().filter(|short| !whole.contains(short.as_str())));
        let with_port: Vec<_> = domains.iter().map(|domain| format!("{domain}:{port}")).collect();
        domains.extend(with_port);
        virtual_host(lens, service, port, domains)
    });
    RouteConfig { name: port.to_string(), virtual_hosts: virtual_hosts.collect() }
}

/// What a service is called for short. Names of the world have no short forms.
fn short_names(lens: &Lens<'_>, service: Seen<'_>) -> Vec<String> {
    if !lens.is_of_the_mesh(service.host()) {
        return Vec::new();
    }
    let (name, namespace) = (service.name(), service.namespace());
    let mut short = vec![format!("{name}.{namespace}"), format!("{name}.{namespace}.svc")];
    if namespace == lens.namespace() {
        short.push(name.to_owned());
    }
    short
}

pub(super) fn virtual_host(
    lens: &Lens<'_>,
    service: Seen<'_>,
    port: u16,
    domains: Vec<String>,
) -> VirtualHost {
    let name = format!("{}:{port}", service.host().as_str());
    let intent = lens.route_for(service.host(), Carried::Http);
    let mut routes = match (attached::routes(lens, service, port), intent) {
        (Some(routes), _) => routes,
        (None, None) => {
            let cluster = names::outbound(port, "", service.host().as_str());
            let hash = hash_of(lens, service.host(), None, port).into_iter().collect();
            vec![default_route(vec![WeightedCluster::only(cluster)], hash)]
        }
        (None, Some(intent)) => routes(lens, &intent, port),
    };
    upgrade::add(&mut routes, &upgrade::together(lens.upgrades_of(service, port)));
    host(&name, domains, routes)
}

/// What is for no host that is known.
pub(super) fn others(route: Route) -> VirtualHost {
    host("other", vec!["*".into()], vec![route])
}

fn host(name: &str, domains: Vec<String>, mut routes: Vec<Route>) -> VirtualHost {
    for route in &mut routes {
        if let RouteAction::Forward(forward) = &mut route.action {
            keep_deadlines(forward);
        }
    }
    VirtualHost { name: name.to_owned(), domains, routes, retry: None }
}

/// A call of gRPC's has the time that it says itself, as far as the route's timeout allows, and its server is told; as in Istio.
fn keep_deadlines(forward: &mut Forward) {
    let max = forward.timeout.unwrap_or_default();
    let limits = forward.limits.get_or_insert_default();
    limits.grpc_timeout.get_or_insert(GrpcTimeout { max, ..GrpcTimeout::default() });
}

pub(super) fn default_route(clusters: Vec<WeightedCluster>, hash: Vec<HashOn>) -> Route {
    let retry = Some(RetryPolicy::default());
    let mut forward = Forward { clusters, retry, hash, ..Forward::default() };
    keep_to_keys(&mut forward, false);
    Route {
        name: "default".into(),
        matches: RouteMatch::any(),
        action: RouteAction::Forward(forward),
        ..Route::default()
    }
}

fn routes(lens: &Lens<'_>, intent: &RouteIntent, port: u16) -> Vec<Route> {
    let mut routes = Vec::new();
    for (index, http) in intent.http.iter().enumerate() {
        let hash = hashes(lens, http, port);
        let name = match http.route.name.as_str() {
            "" => format!("{}[{index}]", intent.origin.name),
            given => given.to_owned(),
        };
        let applies = |m: &&HttpMatch| {
            m.port.is_none_or(|p| p == port)
                && m.source_namespace.as_ref().is_none_or(|n| *n == lens.namespace())
                && (m.source_labels.is_empty()
                    || lens.labels().is_some_and(|labels| selected(&m.source_labels, labels)))
        };
        if http.matches.is_empty() {
            routes.push(route(lens, intent, (http, &name, RouteMatch::any()), port, hash.clone()));
        }
        for m in http.matches.iter().filter(applies) {
            // As Istio, so that logs and traces tell matches of one route apart.
            let of_match = m.name.as_ref().map(|of_match| format!("{name}.{of_match}"));
            let name = of_match.as_deref().unwrap_or(&name);
            routes.push(route(lens, intent, (http, name, m.request.clone()), port, hash.clone()));
        }
    }
    routes
}

fn route(
    lens: &Lens<'_>,
    intent: &RouteIntent,
    (http, name, matches): (&HttpRoute, &str, RouteMatch),
    port: u16,
    hash: Vec<HashOn>,
) -> Route {
    let of = http.of.as_ref().unwrap_or(&intent.origin);
    let mut route = Route { name: name.to_owned(), matches, origin: Some(origin(of)), ..http.route.clone() };
    match &mut route.action {
        RouteAction::Forward(forward) => {
            forward.clusters = weighted(lens, &http.targets, port);
            forward.mirrors = mirrors(lens, &http.mirrors, port);
            forward.hash = hash;
            keep_to_keys(forward, http.said.previous_hosts);
            whole_path(&mut forward.rewrite, &route.matches.path);
        }
        RouteAction::Redirect(redirect) if http.to_request_port => redirect.port = Some(port),
        RouteAction::Redirect(_) | RouteAction::Direct { .. } => {}
    }
    of_the_only_share(&mut route);
    route
}

fn mirrors(lens: &Lens<'_>, targets: &[MirrorTarget], port: u16) -> Vec<Mirror> {
    let mirrors = targets.iter();
    mirrors.map(|m| Mirror { cluster: cluster_of(lens, &m.target, port), ..m.mirror.clone() }).collect()
}

fn cluster_of(lens: &Lens<'_>, target: &Target, port: u16) -> String {
    let subset = target.subset.as_deref().unwrap_or("");
    names::outbound(lens.port_of(target, port), subset, target.host.as_str())
}

/// Targets without a port go to the only one of their service, or else to the port that the request came for.
pub(super) fn weighted(lens: &Lens<'_>, targets: &[WeightedTarget], port: u16) -> Vec<WeightedCluster> {
    let cluster = |t: &WeightedTarget| WeightedCluster {
        cluster: cluster_of(lens, &t.target, port),
        ..t.share.clone()
    };
    targets.iter().map(cluster).collect()
}

/// After a regular expression the whole path is replaced, not a prefix.
fn whole_path(rewrite: &mut Rewrite, path: &PathMatch) {
    if let PathMatch::Regex(_) = path
        && let Some(uri) = rewrite.prefix.take()
    {
        rewrite.regex.get_or_insert_with(|| ("^[^?]*".into(), uri.replace('\\', "\\\\")));
    }
}
