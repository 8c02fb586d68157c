use std::collections::BTreeSet;

use outrigger_model::resource::ResourceKind;

use super::*;
use crate::compile::cache::Compiled;
use crate::compile::scope::Scope;
use crate::compile::tests::{CATALOG, compiled, get, scope, shop};

const VIRTUAL_SERVICE: &str = "VirtualService shop/catalog";
const DESTINATION_RULE: &str = "DestinationRule shop/catalog";

fn route(fields: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: catalog, namespace: shop}}
spec:
  hosts: [catalog]
  http:
  - {fields}
    route: [{{destination: {{host: catalog}}}}]
  - route: [{{destination: {{host: catalog}}}}]
"
    )
}

fn policy(fields: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: catalog, namespace: shop}}
spec: {{host: catalog, trafficPolicy: {{{fields}}}}}
"
    )
}

fn grpc() -> Scope {
    Scope { secure: true, ..scope(ClientKind::Grpc, "web", "grpc") }
}

fn envoy() -> Scope {
    scope(ClientKind::Envoy, "web", "envoy")
}

fn gaps(compiled: &Compiled, scope: &Scope) -> Vec<(String, String)> {
    let asked = [ResourceKind::Routes, ResourceKind::Cluster].map(|kind| (kind, CATALOG.to_owned()));
    let gaps = compiled.gaps(scope, &BTreeSet::from(asked));
    gaps.into_iter().map(|gap| (gap.rule, gap.why)).collect()
}

fn only(compiled: &Compiled, scope: &Scope) -> (String, String) {
    let mut gaps = gaps(compiled, scope);
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    gaps.remove(0)
}

fn routes_of(compiled: &Compiled, scope: &Scope, name: &str) -> RouteConfig {
    let Some(Resource::Routes(routes)) = get(compiled, scope, ResourceKind::Routes, name) else {
        panic!("none")
    };
    routes
}

#[test]
fn what_a_grpc_client_cannot_do_of_a_route_is_not_sent_and_is_said() {
    for (fields, part) in [
        ("fault: {abort: {httpStatus: 500, percentage: {value: 100}}}", "no faults"),
        ("headers: {request: {set: {x-a: b}}}", "no edits of headers"),
        ("rewrite: {uri: /x}", "no rewrites"),
        ("mirror: {host: stock, port: {number: 7000}}", "no mirrors"),
        ("corsPolicy: {allowOrigins: [{exact: 'https://a.test'}]}", "no policies for other origins"),
        ("retries: {attempts: 2, retryOn: 5xx}", "no retries for these conditions"),
        ("retries: {attempts: 2, retryOn: unavailable, perTryTimeout: 1s}", "no timeout of one attempt"),
        (
            "retries: {attempts: 2, retryOn: unavailable, retryRemoteLocalities: true}",
            "places of another priority",
        ),
    ] {
        let compiled = compiled(shop(), &route(fields));
        let (rule, why) = only(&compiled, &grpc());
        assert_eq!(rule, VIRTUAL_SERVICE);
        assert!(why.contains(part), "{fields}: {why}");
        // What it gets has nothing of it, and says so no more.
        let mut sent = routes_of(&compiled, &grpc(), CATALOG);
        let (world, grpc) = (compiled.world(), grpc());
        assert_eq!(routes(&mut sent, &Lens::new(&world, &grpc)), [], "{fields}");
        assert_eq!(sent.virtual_hosts[0].routes.len(), 2, "the routes stay");
        assert_eq!(gaps(&compiled, &scope(ClientKind::Outrigger, "web", "web-1")), [], "our own does it all");
    }
    for fields in
        ["timeout: 3s", "retries: {attempts: 2, retryOn: unavailable}", "match: [{uri: {prefix: /a}}]"]
    {
        assert_eq!(gaps(&compiled(shop(), &route(fields)), &grpc()), [], "{fields}");
    }
}

#[test]
fn what_a_grpc_client_cannot_do_of_a_cluster_is_not_sent_and_is_said() {
    for (fields, part) in [
        ("outlierDetection: {consecutive5xxErrors: 3}", "outlier detection but by rates"),
        ("connectionPool: {tcp: {maxConnections: 3}}", "limits but of requests in flight"),
        ("connectionPool: {tcp: {maxConnectionDuration: 1h}}", "limits of a connection's age"),
        ("loadBalancer: {simple: RANDOM}", "random choice"),
        ("loadBalancer: {simple: LEAST_REQUEST}", "choice by load"),
        ("loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 30s}}", "warm-up"),
        ("tls: {mode: SIMPLE}", "roots but the mesh's"),
    ] {
        let (rule, why) = only(&compiled(shop(), &policy(fields)), &grpc());
        assert_eq!(rule, DESTINATION_RULE);
        assert!(why.contains(part), "{fields}: {why}");
    }
    assert_eq!(
        gaps(&compiled(shop(), &policy("connectionPool: {http: {http2MaxRequests: 9}}")), &grpc()),
        []
    );
}

#[test]
fn a_grpc_client_without_certificates_is_not_sent_to_where_mtls_is_required() {
    let compiled = compiled(shop(), &policy("tls: {mode: ISTIO_MUTUAL}"));
    let plain = Scope { secure: false, ..grpc() };
    assert_eq!(get(&compiled, &plain, ResourceKind::Cluster, CATALOG), None, "never in plain text");
    assert!(only(&compiled, &plain).1.contains("mTLS is required"));
    assert!(get(&compiled, &grpc(), ResourceKind::Cluster, CATALOG).is_some());
}

#[test]
fn a_route_that_an_envoy_would_refuse_is_left_out_alone() {
    for (pattern, part) in [
        ("/static/[a-zA-Z0-9._-]{0,200}/", "instructions of RE2, and this Envoy takes 100"),
        (r"/a(?<name>b)", "(?P<name>"),
    ] {
        let compiled = compiled(shop(), &route(&format!("match: [{{uri: {{regex: '{pattern}'}}}}]")));
        let (rule, why) = only(&compiled, &envoy());
        assert_eq!(rule, VIRTUAL_SERVICE);
        assert!(why.contains("is left out") && why.contains(part), "{why}");
        let sent = routes_of(&compiled, &envoy(), "8080");
        let routes =
            |host: &str| sent.virtual_hosts.iter().find(|h| h.name.starts_with(host)).map(|h| h.routes.len());
        assert_eq!((routes("catalog."), routes("web.")), (Some(1), Some(1)), "all others stay");
        assert_eq!(
            routes_of(&compiled, &scope(ClientKind::Outrigger, "web", "web-1"), CATALOG).virtual_hosts[0]
                .routes
                .len(),
            2
        );
    }
    let compiled = compiled(shop(), &route("match: [{uri: {regex: '/static/[a-zA-Z0-9._-]{0,200}/'}}]"));
    let generous = Scope { regex_limit: 32_768, ..envoy() };
    assert_eq!(gaps(&compiled, &generous), [], "an Envoy may say that it takes more");
    assert_eq!(gaps(&compiled, &grpc()), [], "gRPC has no such limit");
}

#[test]
fn an_authority_that_is_set_is_a_rewrite_for_an_envoy() {
    let compiled = compiled(shop(), &route("headers: {request: {set: {':authority': other.test}}}"));
    let sent = routes_of(&compiled, &envoy(), "8080");
    let host = sent.virtual_hosts.iter().find(|host| host.name.starts_with("catalog.")).unwrap();
    let RouteAction::Forward(forward) = &host.routes[0].action else { panic!() };
    assert_eq!(forward.rewrite.authority.as_deref(), Some("other.test"));
    assert!(host.routes[0].request_headers.is_empty());
    assert_eq!(gaps(&compiled, &envoy()), []);
}

#[test]
fn an_authority_of_one_of_several_destinations_is_its_own_for_an_envoy() {
    let new = "headers: {request: {set: {':authority': new.test, x-a: b}}}";
    let split = format!(
        "route: [{{destination: {{host: catalog}}, weight: 9}}, {{destination: {{host: stock, port: {{number: 7000}}}}, weight: 1, {new}}}]"
    );
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: catalog, namespace: shop}}\n\
         spec: {{hosts: [catalog], http: [{{{split}}}]}}\n"
    );
    let compiled = compiled(shop(), &rule);
    let sent = routes_of(&compiled, &envoy(), "8080");
    let host = sent.virtual_hosts.iter().find(|host| host.name.starts_with("catalog.")).unwrap();
    let RouteAction::Forward(forward) = &host.routes[0].action else { panic!() };
    let shares: Vec<_> = forward.clusters.iter().map(|share| share.authority.as_deref()).collect();
    assert_eq!((shares, &forward.rewrite.authority), (vec![None, Some("new.test")], &None));
    assert_eq!(forward.clusters[1].request_headers.set, [("x-a".to_owned(), "b".into())]);
    assert_eq!(gaps(&compiled, &envoy()), []);
    let (_, why) = only(&compiled, &grpc());
    assert!(why.contains("no edits of headers for a share"), "{why}");
}

#[test]
fn rules_for_tcp_are_not_enforced_by_an_envoy() {
    let rule = policy("connectionPool: {tcp: {maxConnections: 3}}").replace("catalog", "stock");
    let (rule, why) = only(&compiled(shop(), &rule), &envoy());
    assert_eq!(rule, "DestinationRule shop/stock");
    assert!(why.contains("no listener for TCP (port [7000])"), "{why}");
}

#[test]
fn a_circuit_breaker_that_trips_is_for_sidecars_only() {
    let page = "
apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: catalog, namespace: shop}
spec: {service: catalog, circuitBreaker: {trip: {consecutiveFailures: 3}}}
";
    let compiled = compiled(shop(), page);
    let breaker = |scope: &Scope| match get(&compiled, scope, ResourceKind::Cluster, CATALOG) {
        Some(Resource::Cluster(cluster)) => cluster.breaker,
        _ => panic!("none"),
    };
    let ours = breaker(&scope(ClientKind::Outrigger, "web", "web-1")).unwrap();
    assert_eq!((ours.consecutive_failures, ours.failure_percent), (3, 0.0));
    for scope in [grpc(), envoy()] {
        assert_eq!(breaker(&scope), None);
        let (rule, why) = only(&compiled, &scope);
        assert_eq!(rule, "TrafficRules shop/catalog");
        assert!(why.contains("circuit breaker that opens and closes"), "{why}");
    }
}

#[test]
fn a_health_check_is_an_envoys_too_and_no_grpc_clients() {
    let page = "
apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: catalog, namespace: shop}
spec: {service: catalog, healthCheck: {http: {path: /healthz}}}
";
    let compiled = compiled(shop(), page);
    let check = |scope: &Scope| match get(&compiled, scope, ResourceKind::Cluster, CATALOG) {
        Some(Resource::Cluster(cluster)) => cluster.health_check,
        _ => panic!("none"),
    };
    let ours = check(&scope(ClientKind::Outrigger, "web", "web-1"));
    assert!(ours.is_some());
    assert_eq!(check(&envoy()), ours);
    assert_eq!(gaps(&compiled, &envoy()), []);
    assert_eq!(check(&grpc()), None);
    let (rule, why) = only(&compiled, &grpc());
    assert_eq!(rule, "TrafficRules shop/catalog");
    assert!(why.contains("health checks of endpoints"), "{why}");
}

#[test]
fn of_hedges_an_envoy_has_what_it_knows_and_is_told_to_do_no_more() {
    let page = |spec: &str| {
        format!(
            "apiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {{name: catalog, namespace: shop}}\nspec: {{service: catalog, {spec}}}\n"
        )
    };
    let hedge = |compiled: &Compiled, scope: &Scope| {
        let sent = routes_of(compiled, scope, "8080");
        let host = sent.virtual_hosts.iter().find(|host| host.name.starts_with("catalog.")).unwrap();
        let RouteAction::Forward(forward) = &host.routes[0].action else { panic!() };
        forward.hedge.clone()
    };
    let per_try = "retry: {perTryTimeout: 1s}, hedge: {hedgeOnPerTryTimeout: true";
    for (spec, kept, wanted) in [
        (format!("{per_try}, allMethods: true}}"), true, None),
        (format!("{per_try}, delay: 50ms, allMethods: true}}"), true, Some("no hedge after a delay")),
        (format!("{per_try}}}"), false, Some("would hedge every method")),
        (format!("{per_try}}}, routes: [{{match: {{method: GET}}}}]"), true, None),
        (
            format!("{per_try}, allMethods: true}}").replace("{perTry", "{attempts: 0, perTry"),
            false,
            Some("has none"),
        ),
        ("hedge: {delay: p95}".to_owned(), false, Some("no hedge after a delay")),
    ] {
        let compiled = compiled(shop(), &page(&spec));
        assert_eq!(hedge(&compiled, &envoy()).is_some(), kept, "{spec}");
        match wanted {
            None => assert_eq!(gaps(&compiled, &envoy()), [], "{spec}"),
            Some(wanted) => assert!(only(&compiled, &envoy()).1.contains(wanted), "{spec}"),
        }
        assert!(gaps(&compiled, &grpc()).iter().any(|(_, why)| why.contains("no hedges")), "{spec}");
    }
}

#[test]
fn of_sessions_an_envoy_has_those_that_end_with_their_cookie() {
    let page = |spec: &str| {
        format!(
            "apiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {{name: catalog, namespace: shop}}\nspec: {{service: catalog, {spec}}}\n"
        )
    };
    let split = "routes: [{to: [{version: v1, weight: 1}, {version: v2, weight: 1}]}]";
    for (spec, wanted) in [
        ("session: {}".to_owned(), None),
        ("session: {cookie: {lifetime: permanent}, absoluteTimeout: 1h}".to_owned(), None),
        ("session: {absoluteTimeout: 1h}".to_owned(), Some("but that of a permanent cookie")),
        ("session: {header: x-a, idleTimeout: 1m}".to_owned(), Some("no end of a session by silence")),
        (format!("session: {{}}, {split}"), Some("pick the destination by weight")),
    ] {
        let compiled = compiled(shop(), &page(&spec));
        let sent = routes_of(&compiled, &envoy(), "8080");
        let host = sent.virtual_hosts.iter().find(|host| host.name.starts_with("catalog.")).unwrap();
        let session = host.routes[0].session.as_ref().unwrap();
        assert_eq!(session.idle, None, "{spec}");
        match wanted {
            None => assert_eq!(gaps(&compiled, &envoy()), [], "{spec}"),
            Some(wanted) => assert!(only(&compiled, &envoy()).1.contains(wanted), "{spec}"),
        }
        assert!(gaps(&compiled, &grpc()).iter().any(|(_, why)| why.contains("no sessions")), "{spec}");
    }
}
