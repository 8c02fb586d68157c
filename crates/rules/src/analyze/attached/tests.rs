use std::collections::BTreeMap;

use super::Known;
use crate::analyze::{Scene, analyze};
use crate::catalog::{CatalogService, PortProtocol, ServiceCatalog};
use crate::conditions;
use crate::finding::Finding;
use crate::host::Resolver;
use crate::intent::{Intent, RouteCondition};
use crate::testing::{objects, virtual_service};

/// `catalog.shop` with port 8080, called `web`, and `pay.bank` with 80; `vault.shop` with TLS at 443, and `stock.shop` with bytes at 90.
fn catalog() -> ServiceCatalog {
    let spoken = |port: u16, name: &str, spoken| CatalogService {
        ports: BTreeMap::from([(port, spoken)]),
        names: BTreeMap::from([(name.to_owned(), port)]),
        ..CatalogService::default()
    };
    let service = |port, name| spoken(port, name, PortProtocol::Http);
    let resolver = Resolver::default();
    ServiceCatalog {
        services: BTreeMap::from([
            (resolver.service("vault", "shop"), spoken(443, "tls", PortProtocol::Tls)),
            (resolver.service("stock", "shop"), spoken(90, "raw", PortProtocol::Tcp)),
            (resolver.service("catalog", "shop"), service(8080, "web")),
            (resolver.service("pay", "bank"), service(80, "api")),
        ]),
        ..ServiceCatalog::default()
    }
}

fn route(kind: &str, namespace: &str, parent: &str, backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: {namespace}}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, {parent}}}]\n  rules:\n  - backendRefs: [{{{backend}}}]\n---\n"
    )
}

fn found(text: &str) -> Vec<String> {
    analyze(&objects(text), Some(&catalog())).iter().map(Finding::to_string).collect()
}

fn only(text: &str) -> String {
    let mut found = found(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

/// Reasons of the first route's conditions at its only parent, of those that are false.
fn reasons(text: &str) -> Vec<(RouteCondition, String)> {
    let (objects, catalog) = (objects(text), catalog());
    let scene = Scene::new(&objects, Some(&catalog));
    let known = Known(&scene, &catalog);
    let mut intents = objects.iter().flat_map(|object| &object.intents);
    let route =
        intents.find_map(|intent| if let Intent::Attached(route) = intent { Some(route) } else { None });
    let mut parents = conditions::of(route.unwrap(), &known);
    assert_eq!(parents.len(), 1);
    let conditions = parents.remove(0).conditions;
    assert_eq!(conditions.len(), 2, "one of each kind");
    conditions.into_iter().filter(|one| !one.holds).map(|one| (one.kind, one.reason)).collect()
}

const FINE: &str = "name: catalog, port: 8080";

#[test]
fn a_route_to_what_is_there_has_both_conditions_and_no_finding() {
    for parent in ["name: catalog", "name: catalog, port: 8080", "name: catalog, sectionName: web"] {
        let text = route("HTTPRoute", "shop", parent, FINE);
        assert_eq!((found(&text), reasons(&text)), (Vec::new(), Vec::new()), "{parent}");
    }
}

#[test]
fn a_parent_that_is_not_there_is_told() {
    for (parent, word) in [
        ("name: nobody", "there is no service nobody.shop"),
        ("name: catalog, port: 1", "catalog.shop has no port 1, only 8080"),
        ("name: catalog, sectionName: api", "catalog.shop has no port \"api\""),
    ] {
        let text = route("HTTPRoute", "shop", parent, FINE);
        let told = only(&text);
        assert!(
            told.contains("warning OUT0109") && told.contains(word) && told.contains("NoMatchingParent"),
            "{told}"
        );
        assert_eq!(reasons(&text), [(RouteCondition::Accepted, "NoMatchingParent".to_owned())]);
    }
}

#[test]
fn a_backend_that_cannot_be_used_is_told_once_and_never_an_error() {
    for backend in ["name: nobody, port: 80", "name: catalog, port: 80"] {
        let text = route("HTTPRoute", "shop", "name: catalog", backend);
        let told = only(&text);
        assert!(told.contains("warning OUT0109") && told.contains("BackendNotFound"), "{told}");
        assert_eq!(reasons(&text), [(RouteCondition::ResolvedRefs, "BackendNotFound".to_owned())]);
    }
    let there = route("HTTPRoute", "shop", "name: catalog", "name: pay, namespace: bank, port: 80");
    assert_eq!(
        (found(&there), reasons(&there)),
        (Vec::new(), Vec::new()),
        "in whichever namespace (GEP-1294)"
    );
    assert_eq!(
        analyze(&objects(&route("HTTPRoute", "shop", "name: nobody", "name: nobody, port: 1")), None),
        []
    );
}

#[test]
fn of_two_kinds_at_a_port_the_less_specific_is_told() {
    let (http, grpc) = (
        route("HTTPRoute", "shop", "name: catalog", FINE),
        route("GRPCRoute", "shop", "name: catalog", FINE),
    );
    let text = http + &grpc;
    let told = only(&text);
    assert!(told.contains("HTTPRoute shop/r") && told.contains("Conflicted"), "{told}");
    assert_eq!(reasons(&text), [(RouteCondition::Accepted, "Conflicted".to_owned())]);
}

#[test]
fn a_virtual_service_beside_a_route_is_told() {
    let istio =
        virtual_service("hosts: [catalog]\nhttp:\n- route:\n  - destination: {host: catalog}\n") + "---\n";
    let told = only(&(route("HTTPRoute", "shop", "name: catalog", FINE) + &istio));
    assert!(told.contains("warning IST0109") && told.contains("VirtualService reviews"), "{told}");
    let elsewhere = istio.replace("hosts: [catalog]", "hosts: [pay.bank]");
    assert_eq!(
        found(&(route("HTTPRoute", "shop", "name: catalog", FINE) + &elsewhere)),
        Vec::<String>::new()
    );
}

#[test]
fn a_rule_without_a_weight_is_told_and_a_redirect_needs_none() {
    let text = route("HTTPRoute", "shop", "name: catalog", "name: catalog, port: 8080, weight: 0");
    let told = only(&text);
    assert!(told.contains("warning OUT0103") && told.contains("spec.rules[0]"), "{told}");
    let redirect = text.replace(
        "backendRefs: [{name: catalog, port: 8080, weight: 0}]",
        "filters: [{type: RequestRedirect, requestRedirect: {hostname: a.example}}]",
    );
    assert_eq!(found(&redirect), Vec::<String>::new());
}

/// The same of connections.
fn of_connections(kind: &str, name: &str, parent: &str, backend: &str) -> String {
    let names = if kind == "TLSRoute" { "hostnames: [a.example]\n  rules:" } else { "rules:" };
    route(kind, "shop", parent, backend)
        .replace("rules:", names)
        .replace("name: r,", &format!("name: {name},"))
}

#[test]
fn a_route_of_connections_holds_where_there_are_such_connections() {
    let tls = |parent: &str| of_connections("TLSRoute", "r", parent, "name: vault, port: 443");
    let tcp = |parent: &str| of_connections("TCPRoute", "r", parent, "name: stock, port: 90");
    assert_eq!((found(&tls("name: vault")), reasons(&tls("name: vault"))), (Vec::new(), Vec::new()));
    for parent in ["name: vault", "name: stock", "name: catalog"] {
        assert_eq!((found(&tcp(parent)), reasons(&tcp(parent))), (Vec::new(), Vec::new()), "{parent}");
    }
    for parent in ["name: stock", "name: catalog"] {
        let told = only(&tls(parent));
        assert!(told.contains("speaks no TLS of its own") && told.contains("NoMatchingParent"), "{told}");
    }
    let told = only(&route("HTTPRoute", "shop", "name: vault", FINE));
    assert!(told.contains("speaks no HTTP at port 443"), "{told}");
    let lost = only(&of_connections("TCPRoute", "r", "name: stock", "name: nobody, port: 1"));
    assert!(lost.contains("its share of the connections is reset (ResolvedRefs: BackendNotFound)"), "{lost}");
    let nowhere = only(&of_connections("TCPRoute", "r", "name: stock", "name: stock, port: 90, weight: 0"));
    assert!(
        nowhere.contains("warning OUT0103") && nowhere.contains("its connections are reset"),
        "{nowhere}"
    );
}

#[test]
fn of_all_kinds_at_a_port_the_most_specific_that_it_has_anything_for_is_in_force() {
    let tls = of_connections("TLSRoute", "r", "name: vault", "name: vault, port: 443");
    let tcp = of_connections("TCPRoute", "r", "name: vault", "name: stock, port: 90");
    let told = only(&(tls.clone() + &tcp));
    assert!(
        told.contains("TCPRoute shop/r") && told.contains("TLSRoute shop/r holds at vault.shop"),
        "{told}"
    );
    // There are no requests, so that the HTTPRoute keeps nobody away.
    let http = route("HTTPRoute", "shop", "name: vault", FINE);
    let told = only(&(http + &tls));
    assert!(told.contains("HTTPRoute shop/r") && told.contains("speaks no HTTP"), "{told}");
    let http = route("HTTPRoute", "shop", "name: catalog", FINE);
    let told = only(&(http + &tcp.replace("name: vault", "name: catalog")));
    assert!(told.contains("TCPRoute shop/r") && told.contains("Conflicted"), "{told}");
    // Of two that have nothing to tell connections by the older one holds.
    let young = tcp.replace("namespace: shop", "namespace: shop, creationTimestamp: '2026-02-01T00:00:00Z'");
    let old = young.replace("name: r,", "name: s,").replace("2026-02", "2026-01");
    let told = only(&(young + &old));
    assert!(
        told.contains("TCPRoute shop/r: TCPRoute shop/s holds at vault.shop, and it is the older one"),
        "{told}"
    );
}

#[test]
fn a_virtual_service_beside_a_route_of_connections_is_told_where_they_meet() {
    let of = |part: &str| virtual_service(&format!("hosts: [vault]\n{part}")) + "---\n";
    let http = of("http:\n- route:\n  - destination: {host: vault}\n");
    let tls = of("tls:\n- match: [{sniHosts: [vault]}]\n  route:\n  - destination: {host: vault}\n");
    let route = |kind| of_connections(kind, "r", "name: vault", "name: vault, port: 443");
    for (rule, kind) in [(&tls, "TLSRoute"), (&tls, "TCPRoute"), (&http, "TCPRoute")] {
        let told = found(&(route(kind) + rule));
        assert!(told[0].contains("warning IST0109"), "{told:?}");
    }
    // Only that there are no requests.
    let told = only(&(route("TLSRoute") + &http));
    assert!(told.contains("OUT0006") && told.contains("speaks no HTTP"), "{told}");
}
