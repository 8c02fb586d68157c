use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_model::route::{PathMatch, Route, RouteAction};
use outrigger_xds::ClientKind;

use crate::compile::scope::Scope;
use crate::compile::tests::{CATALOG, compiled, get, scope, shop};
use crate::instance::{Instance, Protocol, sample};

const API: &str = "gateway.networking.k8s.io/v1";

/// A route of `shop/catalog` with its metadata and rules.
fn attached(kind: &str, metadata: &str, port: &str, rules: &str) -> String {
    format!(
        "{{apiVersion: {API}, kind: {kind}, metadata: {{{metadata}}}, spec: {{parentRefs: [{{group: '', kind: Service, name: catalog, namespace: shop{port}}}], rules: {rules}}}}}\n---\n"
    )
}

fn mesh() -> Vec<Instance> {
    let mut pay = sample("pay-1", "pay", "v1", "127.0.0.21", 8080, Protocol::Http);
    pay.namespace = "bank".into();
    shop().into_iter().chain([pay]).collect()
}

fn client(namespace: &str) -> Scope {
    Scope { namespace: namespace.into(), ..scope(ClientKind::Outrigger, "web", "web-1") }
}

/// What a client of a namespace has for the port of a service.
fn routes(yaml: &str, namespace: &str, name: &str) -> Vec<Route> {
    let compiled = compiled(mesh(), yaml);
    match get(&compiled, &client(namespace), ResourceKind::Routes, name) {
        Some(Resource::Routes(mut routes)) => routes.virtual_hosts.remove(0).routes,
        other => panic!("{other:?}"),
    }
}

fn names(routes: &[Route]) -> Vec<&str> {
    routes.iter().map(|route| route.name.as_str()).collect()
}

fn shares(route: &Route) -> Vec<(&str, u32)> {
    match &route.action {
        RouteAction::Forward(forward) => {
            forward.clusters.iter().map(|share| (share.cluster.as_str(), share.weight)).collect()
        }
        other => panic!("{other:?}"),
    }
}

const WEB: &str = "outbound|8080||web.shop.svc.cluster.local";
const PAY: &str = "outbound|8080||pay.bank.svc.cluster.local";

#[test]
fn the_most_specific_match_of_all_routes_goes_first() {
    let rule = |name: &str, matches: &str| {
        format!("{{name: {name}, matches: [{matches}], backendRefs: [{{name: web, port: 8080}}]}}")
    };
    let one = [
        rule("all", ""),
        rule("header", "{headers: [{name: a, value: b}]}"),
        rule("query", "{queryParams: [{name: a, value: b}]}"),
        rule("method", "{method: GET}"),
        rule("short", "{path: {value: /a}}"),
        rule("pattern", "{path: {type: RegularExpression, value: '/.*'}}"),
        rule("same-1", "{path: {value: /same}}"),
    ];
    let two = [
        rule("exact", "{path: {type: Exact, value: /a}}"),
        rule("long", "{path: {value: /a/b}}"),
        rule("long-method", "{path: {value: /a/b}, method: GET}"),
        rule("headers", "{headers: [{name: a, value: b}, {name: c, value: d}]}"),
        rule("same-2", "{path: {value: /same/}}"),
    ];
    let list = |rules: &[String]| format!("[{}]", rules.join(", "));
    let yaml = attached("HTTPRoute", "name: b, namespace: shop", "", &list(&one))
        + &attached("HTTPRoute", "name: a, namespace: shop", "", &list(&two));
    let found = routes(&yaml, "shop", CATALOG);
    assert_eq!(
        names(&found),
        [
            "exact",
            "pattern",
            "same-2",
            "same-1",
            "long-method",
            "long",
            "short",
            "method",
            "headers",
            "header",
            "query",
            "all"
        ]
    );
    assert_eq!(found[2].matches.path, PathMatch::Segments("/same".into()));
    // The older one goes first, whatever the names say.
    let old = attached(
        "HTTPRoute",
        "name: b, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'",
        "",
        &list(&one),
    );
    let young = attached(
        "HTTPRoute",
        "name: a, namespace: shop, creationTimestamp: '2026-01-02T00:00:00Z'",
        "",
        &list(&two),
    );
    assert_eq!(names(&routes(&(old + &young), "shop", CATALOG))[2..4], ["same-1", "same-2"]);
}

#[test]
fn a_route_at_one_port_leaves_the_others_alone() {
    let rules = "[{name: mine, backendRefs: [{name: web, port: 8080}]}]";
    let at = |port: &str| {
        names(&routes(&attached("HTTPRoute", "name: a, namespace: shop", port, rules), "shop", CATALOG))
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(at(""), ["mine"]);
    assert_eq!(at(", port: 8080"), ["mine"]);
    assert_eq!(at(", port: 80"), ["default"]);
    assert_eq!(at(", sectionName: http"), ["default"], "no port is called so");
}

#[test]
fn consumers_have_their_own_routes_and_all_others_the_producer_s() {
    let rules = |name: &str| {
        format!("[{{name: {name}, backendRefs: [{{name: catalog, namespace: shop, port: 8080}}]}}]")
    };
    let yaml = attached("HTTPRoute", "name: a, namespace: shop", "", &rules("producer"))
        + &attached("HTTPRoute", "name: a, namespace: bank", "", &rules("consumer"));
    assert_eq!(names(&routes(&yaml, "shop", CATALOG)), ["producer"]);
    assert_eq!(names(&routes(&yaml, "other", CATALOG)), ["producer"]);
    let own = routes(&yaml, "bank", CATALOG);
    assert_eq!(names(&own), ["consumer"]);
    assert_eq!(shares(&own[0]), [(CATALOG, 1)]);
    let only = attached("HTTPRoute", "name: a, namespace: bank", "", &rules("consumer"));
    assert_eq!(names(&routes(&only, "shop", CATALOG)), ["default"]);
}

#[test]
fn what_is_not_there_keeps_its_share_and_goes_nowhere() {
    let rules = "[{backendRefs: [{name: web, port: 8080, weight: 2}, {name: web, port: 1, weight: 3}, {name: none, port: 80, weight: 4}, {name: pay, namespace: bank, port: 8080, weight: 5}],
        filters: [{type: RequestMirror, requestMirror: {backendRef: {name: pay, namespace: bank, port: 8080}}}]}]";
    let found = routes(&attached("HTTPRoute", "name: a, namespace: shop", "", rules), "shop", CATALOG);
    assert_eq!(shares(&found[0]), [(WEB, 2), (PAY, 5), ("nowhere", 7)]);
    let RouteAction::Forward(forward) = &found[0].action else { panic!("{found:?}") };
    assert_eq!(forward.mirrors.len(), 1);
}

#[test]
fn of_grpc_the_longer_service_goes_first_then_the_longer_method() {
    let rule = |name: &str, matches: &str| {
        format!("{{name: {name}, matches: [{{{matches}}}], backendRefs: [{{name: web, port: 8080}}]}}")
    };
    let rules = [
        rule("method", "method: {method: ReserveManyThings}"),
        rule("service", "method: {service: shop.Stock}"),
        rule("both", "method: {service: shop.Stock, method: Reserve}"),
        rule("headers", "method: {service: shop.Stock}, headers: [{name: a, value: b}]"),
        rule("pattern", "method: {type: RegularExpression, service: 'shop[.].'}"),
    ];
    let yaml = attached("GRPCRoute", "name: a, namespace: shop", "", &format!("[{}]", rules.join(", ")));
    assert_eq!(names(&routes(&yaml, "shop", CATALOG)), ["both", "headers", "service", "pattern", "method"]);
}

#[test]
fn of_several_kinds_at_a_port_the_most_specific_holds_and_a_virtual_service_is_behind_them() {
    let rules = "[{name: web, backendRefs: [{name: web, port: 8080}]}]";
    let http = attached("HTTPRoute", "name: a, namespace: shop", "", rules);
    let grpc = attached(
        "GRPCRoute",
        "name: a, namespace: shop",
        ", port: 8080",
        &rules.replace("name: web,", "name: calls,"),
    );
    let istio = "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: v, namespace: shop}, spec: {hosts: [catalog], http: [{name: istio, route: [{destination: {host: web}}]}]}}\n---\n";
    assert_eq!(names(&routes(istio, "shop", CATALOG)), ["istio"]);
    assert_eq!(names(&routes(&(istio.to_owned() + &http), "shop", CATALOG)), ["web"]);
    assert_eq!(names(&routes(&(http + &grpc), "shop", CATALOG)), ["calls"]);
}

#[test]
fn a_redirect_without_port_and_scheme_keeps_the_port_that_was_asked() {
    let rules = "[{filters: [{type: RequestRedirect, requestRedirect: {hostname: b.example}}]}]";
    let yaml = attached("HTTPRoute", "name: a, namespace: shop", "", rules);
    let found = routes(&yaml, "shop", CATALOG);
    let RouteAction::Redirect(redirect) = &found[0].action else { panic!("{found:?}") };
    assert_eq!((redirect.port, redirect.status), (Some(8080), 302));
}
