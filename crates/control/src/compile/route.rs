//! Routes: a service's port as its clients see it, from the route intent of its host or the default.

use outrigger_model::matcher::{Pattern, StringMatch};
use outrigger_model::route::{
    Fault, FaultAbort, FaultDelay, FaultStatus, Forward, HashOn, HeaderEdits, HeaderMatch, PathMatch,
    QueryMatch, Redirect, RetryOn, RetryPolicy, Rewrite, Route, RouteAction, RouteConfig, RouteMatch,
    VirtualHost, WeightedCluster,
};
use outrigger_rules::intent::{self, HashKey, Host, HttpMatch, HttpRoute, LoadBalancing, RouteIntent};
use outrigger_xds::ClientKind;

use super::names::{self, Outbound};
use super::origin;
use super::scope::Scope;
use super::upgrade;
use crate::instance::Protocol;
use crate::world::{Service, World, selected};

/// The route configuration of a name.
pub(super) fn compile(world: &World, scope: &Scope, name: &str) -> Option<RouteConfig> {
    if scope.kind == ClientKind::Envoy
        && let Ok(port) = name.parse()
    {
        return Some(by_port(world, scope, port));
    }
    let outbound = Outbound::parse(name)?;
    let virtual_hosts = if outbound.host.parse::<std::net::IpAddr>().is_ok() {
        let only = vec![WeightedCluster::only(name)];
        let mut routes = vec![default_route(only, Vec::new())];
        let at = outbound.address().into_iter();
        let instances = at.flat_map(|address| world.workloads_at(scope.network(world), address));
        upgrade::add(&mut routes, &upgrade::allowed(instances, outbound.port));
        vec![host(name, vec!["*".into()], routes)]
    } else {
        let resolved = world.resolver.resolve(outbound.host, &scope.namespace).ok()?;
        let service = world.service(&resolved)?;
        vec![virtual_host(world, scope, service, outbound.port, vec!["*".into()])]
    };
    Some(RouteConfig { name: name.to_owned(), virtual_hosts })
}

/// Envoy binds one listener per port, so its routes tell services apart by authority.
fn by_port(world: &World, scope: &Scope, port: u16) -> RouteConfig {
    let http = |service: &&Service| service.ports.get(&port).is_some_and(|p| *p != Protocol::Tcp);
    let virtual_hosts = world.services().filter(http).map(|service| {
        let full = service.host.as_str();
        let mut domains = vec![full.to_owned(), format!("{}.{}", service.name, service.namespace)];
        domains.push(format!("{}.{}.svc", service.name, service.namespace));
        if service.namespace == scope.namespace {
            domains.push(service.name.clone());
        }
        let with_port: Vec<_> = domains.iter().map(|domain| format!("{domain}:{port}")).collect();
        domains.extend(with_port);
        virtual_host(world, scope, service, port, domains)
    });
    RouteConfig { name: port.to_string(), virtual_hosts: virtual_hosts.collect() }
}

fn virtual_host(
    world: &World,
    scope: &Scope,
    service: &Service,
    port: u16,
    domains: Vec<String>,
) -> VirtualHost {
    let name = format!("{}:{port}", service.host.as_str());
    let intent = world.route_for(&service.host, &scope.namespace).filter(|intent| !intent.http.is_empty());
    let mut routes = match intent {
        None => {
            let cluster = names::outbound(port, "", service.host.as_str());
            let hash = hash_of(world, scope, &service.host, None, port).into_iter().collect();
            vec![default_route(vec![WeightedCluster::only(cluster)], hash)]
        }
        Some(intent) => routes(world, scope, intent, port),
    };
    upgrade::add(&mut routes, &upgrade::allowed(service.instances.iter().map(AsRef::as_ref), port));
    host(&name, domains, routes)
}

fn host(name: &str, domains: Vec<String>, routes: Vec<Route>) -> VirtualHost {
    VirtualHost { name: name.to_owned(), domains, routes, retry: None }
}

fn default_route(clusters: Vec<WeightedCluster>, hash: Vec<HashOn>) -> Route {
    Route {
        name: "default".into(),
        matches: RouteMatch::any(),
        action: RouteAction::Forward(Forward {
            clusters,
            retry: Some(RetryPolicy::default()),
            hash,
            ..Forward::default()
        }),
        ..Route::default()
    }
}

fn routes(world: &World, scope: &Scope, intent: &RouteIntent, port: u16) -> Vec<Route> {
    let mut routes = Vec::new();
    for (index, http) in intent.http.iter().enumerate() {
        let hash = hashes(world, scope, http, port);
        let name = http.name.clone().unwrap_or_else(|| format!("{}[{index}]", intent.origin.name));
        let applies = |m: &&HttpMatch| {
            m.port.is_none_or(|p| p == port)
                && m.source_namespace.as_ref().is_none_or(|n| *n == scope.namespace)
                && (m.source_labels.is_empty()
                    || scope.labels(world).is_some_and(|labels| selected(&m.source_labels, labels)))
        };
        if http.matches.is_empty() {
            routes.push(route(intent, http, &name, RouteMatch::any(), port, hash.clone()));
        }
        for m in http.matches.iter().filter(applies) {
            routes.push(route(intent, http, &name, route_match(m), port, hash.clone()));
        }
    }
    routes
}

/// What the destinations of a route hash: a hash policy belongs to the rule of a destination, and travels on the route.
fn hashes(world: &World, scope: &Scope, http: &HttpRoute, port: u16) -> Vec<HashOn> {
    let intent::RouteAction::Forward(targets) = &http.action else { return Vec::new() };
    let mut found = Vec::new();
    for target in targets.iter().map(|weighted| &weighted.target) {
        let port = target.port.unwrap_or(port);
        let hash = hash_of(world, scope, &target.host, target.subset.as_deref(), port);
        found.extend(hash.filter(|hash| !found.contains(hash)));
    }
    found
}

fn hash_of(world: &World, scope: &Scope, host: &Host, subset: Option<&str>, port: u16) -> Option<HashOn> {
    let policy = world.destination_for(host, &scope.namespace)?.effective(subset, port);
    let Some(LoadBalancing::ConsistentHash { key, .. }) = policy.load_balancing else { return None };
    Some(match key {
        HashKey::Header(name) => HashOn::Header(name),
        HashKey::Cookie { name, path, ttl } => HashOn::Cookie { name, path, ttl },
        HashKey::SourceIp => HashOn::SourceAddress,
        HashKey::QueryParameter(name) => HashOn::Query(name),
    })
}

fn route(
    intent: &RouteIntent,
    http: &HttpRoute,
    name: &str,
    matches: RouteMatch,
    port: u16,
    hash: Vec<HashOn>,
) -> Route {
    Route {
        name: name.to_owned(),
        action: action(http, &matches, port, hash),
        matches,
        fault: fault(&http.fault),
        request_headers: edits(&http.headers.request),
        response_headers: edits(&http.headers.response),
        origin: Some(origin(&intent.origin)),
    }
}

fn action(http: &HttpRoute, matches: &RouteMatch, port: u16, hash: Vec<HashOn>) -> RouteAction {
    match &http.action {
        intent::RouteAction::Forward(targets) => RouteAction::Forward(Forward {
            clusters: weighted(targets, port),
            timeout: http.timeout,
            retry: Some(retry(&http.retry)),
            rewrite: http.rewrite.as_ref().map(|r| rewrite(r, matches)).unwrap_or_default(),
            hash,
            upgrades: Vec::new(),
        }),
        intent::RouteAction::Redirect(redirect) => RouteAction::Redirect(Redirect {
            scheme: redirect.scheme.clone(),
            authority: redirect.authority.clone(),
            port: match redirect.port {
                Some(intent::RedirectPort::Fixed(port)) => Some(port),
                Some(intent::RedirectPort::Request) => Some(port),
                Some(intent::RedirectPort::SchemeDefault) | None => None,
            },
            path: redirect.uri.clone(),
            prefix: redirect.prefix_rewrite.clone(),
            status: redirect.code,
        }),
        intent::RouteAction::Respond(respond) => RouteAction::Direct {
            status: respond.status,
            body: String::from_utf8_lossy(&respond.body).into_owned(),
        },
    }
}

/// Targets without a port go to the port that the request came for.
pub(super) fn weighted(targets: &[intent::WeightedTarget], port: u16) -> Vec<WeightedCluster> {
    let cluster = |t: &intent::WeightedTarget| {
        let subset = t.target.subset.as_deref().unwrap_or("");
        WeightedCluster {
            cluster: names::outbound(t.target.port.unwrap_or(port), subset, t.target.host.as_str()),
            weight: t.weight,
            request_headers: edits(&t.headers.request),
            response_headers: edits(&t.headers.response),
        }
    };
    targets.iter().map(cluster).collect()
}

fn rewrite(rewrite: &intent::Rewrite, matches: &RouteMatch) -> Rewrite {
    let mut out = Rewrite { authority: rewrite.authority.clone(), ..Rewrite::default() };
    match (&rewrite.uri, &matches.path) {
        // After a regular expression the whole path is replaced.
        (Some(uri), PathMatch::Regex(_)) => out.regex = Some(("^[^?]*".into(), uri.replace('\\', "\\\\"))),
        (Some(uri), _) => out.prefix = Some(uri.clone()),
        (None, _) => {}
    }
    if let Some(regex) = &rewrite.uri_regex {
        out.regex = Some((regex.pattern.clone(), regex.substitution.clone()));
    }
    out
}

fn retry(retry: &intent::RetryIntent) -> RetryPolicy {
    let condition = |c: &intent::RetryCondition| RetryOn::parse(c.as_str());
    let base = retry.backoff.base;
    RetryPolicy {
        on: retry.on.conditions.iter().filter_map(condition).collect(),
        statuses: retry.on.statuses.iter().copied().collect(),
        attempts: retry.attempts,
        per_try_timeout: retry.per_try_timeout,
        backoff_base: base,
        backoff_max: retry.backoff.max.unwrap_or(base * 10),
        avoid_previous_hosts: retry.ignore_previous_hosts,
    }
}

fn fault(fault: &intent::FaultIntent) -> Option<Fault> {
    let delay =
        fault.delay.as_ref().map(|d| FaultDelay { duration: d.duration, percentage: d.percent.percentage() });
    let abort = fault.abort.as_ref().map(|a| FaultAbort {
        status: match a.status {
            intent::AbortStatus::Http(status) => FaultStatus::Http(status),
            intent::AbortStatus::Grpc(status) => FaultStatus::Grpc(status),
        },
        percentage: a.percent.percentage(),
    });
    (delay.is_some() || abort.is_some()).then_some(Fault { delay, abort })
}

fn edits(ops: &intent::HeaderOps) -> HeaderEdits {
    HeaderEdits { remove: ops.remove.clone(), set: ops.set.clone(), add: ops.add.clone() }
}

fn route_match(m: &HttpMatch) -> RouteMatch {
    // Whoever names the method asks for tunnels; no other match takes one.
    let connect = matches!(&m.method, Some(intent::StringMatch::Exact(method)) if method == "CONNECT");
    let path = match &m.uri {
        None if connect => PathMatch::Connect,
        None | Some(intent::StringMatch::Present) => PathMatch::Prefix("/".into()),
        Some(intent::StringMatch::Exact(path)) => PathMatch::Exact(path.clone()),
        Some(intent::StringMatch::Prefix(path)) => PathMatch::Prefix(path.clone()),
        Some(intent::StringMatch::Regex(path)) => PathMatch::Regex(path.clone()),
        Some(intent::StringMatch::Suffix(path)) => PathMatch::Regex(format!(".*{}", escape(path))),
    };
    let pseudo = [(":method", &m.method), (":authority", &m.authority), (":scheme", &m.scheme)];
    let mut headers: Vec<_> = pseudo
        .into_iter()
        .filter_map(|(name, value)| {
            let value = text(value.as_ref()?, name == ":authority");
            Some(HeaderMatch { name: name.into(), value, invert: false })
        })
        .collect();
    headers.extend(m.headers.iter().map(|named| HeaderMatch {
        name: named.name.clone(),
        value: text(&named.value, false),
        invert: named.invert,
    }));
    let query = m.query.iter().map(|q| QueryMatch { name: q.name.clone(), value: text(&q.value, false) });
    RouteMatch { path, ignore_case: m.ignore_uri_case, headers, query: query.collect() }
}

/// The model's form of a text match.
pub(super) fn text(value: &intent::StringMatch, ignore_case: bool) -> StringMatch {
    let pattern = match value {
        intent::StringMatch::Exact(t) => Pattern::Exact(t.clone()),
        intent::StringMatch::Prefix(t) => Pattern::Prefix(t.clone()),
        intent::StringMatch::Suffix(t) => Pattern::Suffix(t.clone()),
        intent::StringMatch::Regex(t) => Pattern::Regex(t.clone()),
        intent::StringMatch::Present => Pattern::Present,
    };
    StringMatch { pattern, ignore_case }
}

/// Text as a regular expression.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
