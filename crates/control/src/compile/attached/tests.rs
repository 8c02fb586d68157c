use outrigger_model::cluster::NOWHERE;
use outrigger_model::ext_authz::RouteAuthz;
use outrigger_model::listener::{FilterChain, HttpFilter, RouteSource, Terminal, TransportMatch};
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

/// A sidecar's listener for a service of `shop`.
fn listener(yaml: &str, port: u16, service: &str) -> Vec<FilterChain> {
    let tls = sample("vault-1", "vault", "v1", "127.0.0.31", 443, Protocol::Tls);
    let auto = sample("any-1", "any", "v1", "127.0.0.32", 9000, Protocol::Auto);
    let compiled = compiled(mesh().into_iter().chain([tls, auto]).collect(), yaml);
    let name = format!("outbound|{port}||{service}.shop.svc.cluster.local");
    match get(&compiled, &client("shop"), ResourceKind::Listener, &name) {
        Some(Resource::Listener(listener)) => listener.chains,
        other => panic!("{other:?}"),
    }
}

fn sent(chain: &FilterChain) -> Vec<(&str, u32)> {
    match &chain.terminal {
        Terminal::Tcp(tcp) => {
            tcp.clusters.iter().map(|share| (share.cluster.as_str(), share.weight)).collect()
        }
        Terminal::Http(_) => vec![("http", 0)],
    }
}

/// A route of connections; `names` of a TLSRoute.
fn of_connections(kind: &str, metadata: &str, parent: &str, names: &str, backends: &str) -> String {
    let names = if names.is_empty() { String::new() } else { format!("hostnames: [{names}], ") };
    format!(
        "{{apiVersion: {API}, kind: {kind}, metadata: {{{metadata}}}, spec: {{parentRefs: [{{group: '', kind: Service, name: {parent}, namespace: shop}}], {names}rules: [{{backendRefs: [{backends}]}}]}}}}\n---\n"
    )
}

const STOCK: &str = "outbound|7000||stock.shop.svc.cluster.local";
const VAULT: &str = "outbound|443||vault.shop.svc.cluster.local";

#[test]
fn connections_have_shares_and_a_backend_that_is_not_there_keeps_its_own() {
    let backends =
        "{name: stock, port: 7000, weight: 3}, {name: stock, port: 1, weight: 2}, {name: none, port: 1}";
    let yaml = of_connections("TCPRoute", "name: a, namespace: shop", "stock", "", backends);
    let chains = listener(&yaml, 7000, "stock");
    let [chain] = chains.as_slice() else { panic!("{chains:?}") };
    assert_eq!(sent(chain), [(STOCK, 3), ("nowhere", 3)]);
    assert_eq!(chain.origin.as_ref().unwrap().to_string(), "TCPRoute shop/a");
    // Whatever the port speaks: nobody looks into its connections.
    for (service, port) in [("web", 8080), ("vault", 443), ("any", 9000)] {
        let yaml =
            of_connections("TCPRoute", "name: a, namespace: shop", service, "", "{name: stock, port: 7000}");
        let chains = listener(&yaml, port, service);
        assert_eq!((chains.len(), sent(&chains[0])), (1, vec![(STOCK, 1)]), "{service}");
    }
}

#[test]
fn tls_goes_by_its_name_and_of_a_name_the_older_route_holds() {
    let route = |name: &str, day: u8, names: &str, backend: &str| {
        let metadata =
            format!("name: {name}, namespace: shop, creationTimestamp: '2026-01-0{day}T00:00:00Z'");
        of_connections("TLSRoute", &metadata, "vault", names, &format!("{{name: {backend}}}"))
    };
    let yaml = route("a", 2, "a.example, '*.example'", "stock, port: 7000")
        + &route("b", 1, "a.example", "vault, port: 443");
    let chains = listener(&yaml, 443, "vault");
    let found: Vec<_> =
        chains.iter().map(|chain| (chain.matches.server_names.clone(), sent(chain))).collect();
    let names = |name: &str| vec![name.to_owned()];
    assert_eq!(found, [(names("a.example"), vec![(VAULT, 1)]), (names("*.example"), vec![(STOCK, 1)])]);
    // On a port that said nothing, TLS to another name is nobody's; what is no TLS goes on.
    let chains = listener(&yaml.replace("name: vault, namespace", "name: any, namespace"), 9000, "any");
    let found: Vec<_> = chains.iter().map(|chain| (chain.matches.transport, sent(chain)[0].0)).collect();
    let any = "outbound|9000||any.shop.svc.cluster.local";
    use TransportMatch::{Any, Plain, Tls};
    assert_eq!(found, [(Tls, VAULT), (Tls, STOCK), (Tls, "nowhere"), (Plain, "http"), (Any, any)]);
}

#[test]
fn a_route_that_a_port_has_nothing_for_leaves_it_to_the_others() {
    let backend = "{name: stock, port: 7000}";
    let http =
        attached("HTTPRoute", "name: a, namespace: shop", "", "[{backendRefs: [{name: web, port: 8080}]}]");
    let http = |service: &str| http.replace("name: catalog", &format!("name: {service}"));
    let tls = of_connections("TLSRoute", "name: a, namespace: shop", "vault", "a.example", backend);
    assert_eq!(sent(&listener(&(http("vault") + &tls), 443, "vault")[0]), [(STOCK, 1)]);
    let tcp = |service: &str| of_connections("TCPRoute", "name: a, namespace: shop", service, "", backend);
    // The more specific kind where it has anything: requests.
    assert_eq!(sent(&listener(&(http("web") + &tcp("web")), 8080, "web")[0]), [("http", 0)]);
    assert_eq!(sent(&listener(&(tls.clone() + &tcp("vault")), 443, "vault")[0]), [(STOCK, 1)]);
    let chains = listener(&(tls + &tcp("vault")), 443, "vault");
    assert_eq!(chains[0].matches.server_names, ["a.example"]);
    // The older of two that take everything.
    let aged = |name: &str, day: u8, backend: &str| {
        let metadata =
            format!("name: {name}, namespace: shop, creationTimestamp: '2026-01-0{day}T00:00:00Z'");
        of_connections("TCPRoute", &metadata, "stock", "", backend)
    };
    let two = aged("a", 2, "{name: web, port: 8080}") + &aged("b", 1, "{name: vault, port: 443}");
    assert_eq!(sent(&listener(&two, 7000, "stock")[0]), [(VAULT, 1)]);
}

#[test]
fn clients_that_know_requests_only_are_told_to_lack_routes_of_connections() {
    let yaml = of_connections("TCPRoute", "name: a, namespace: shop", "web", "", "{name: stock, port: 7000}");
    let compiled = compiled(mesh(), &yaml);
    let name = "outbound|8080||web.shop.svc.cluster.local";
    let grpc = scope(ClientKind::Grpc, "web", "web-1");
    let Some(Resource::Listener(listener)) =
        get(&compiled, &grpc, ResourceKind::Listener, "web.shop.svc.cluster.local:8080")
    else {
        panic!("no listener")
    };
    assert!(matches!(listener.chains[0].terminal, Terminal::Http(_)), "{listener:?}");
    let asked = [(ResourceKind::Routes, name.to_owned())].into();
    for kind in [ClientKind::Grpc, ClientKind::Envoy] {
        let gaps = compiled.gaps(&scope(kind, "web", "web-1"), &asked);
        assert!(gaps.iter().any(|gap| gap.rule == "TCPRoute shop/a"), "{kind:?}: {gaps:?}");
    }
}

/// A rule that asks a service, and one that does not.
fn asking(service: &str) -> String {
    let auth = format!("{{protocol: GRPC, grpc: {{}}, backendRef: {{name: {service}, port: 8080}}}}");
    let rules = format!(
        "[{{matches: [{{path: {{value: /a}}}}], filters: [{{type: ExternalAuth, externalAuth: {auth}}}], \
          backendRefs: [{{name: web, port: 8080}}]}}, {{backendRefs: [{{name: catalog, port: 8080}}]}}]"
    );
    attached("HTTPRoute", "name: a, namespace: shop", "", &rules)
}

#[test]
fn a_service_is_asked_about_the_requests_of_its_rule_and_about_no_others() {
    let compiled = compiled(mesh(), &asking("web"));
    let found = get(&compiled, &client("shop"), ResourceKind::Listener, CATALOG);
    let Some(Resource::Listener(listener)) = &found else { panic!("{found:?}") };
    let Terminal::Http(http) = &listener.chains[0].terminal else { panic!("{listener:?}") };
    let [HttpFilter::ExtAuthz(authz)] = http.filters.as_slice() else { panic!("{:?}", http.filters) };
    assert_eq!((authz.name.as_str(), authz.cluster.as_str()), ("external-auth/shop/a/0", WEB));
    let RouteSource::Inline(config) = &http.routes else { panic!("a route could hold before the filter") };
    let is_off = |route: &Route| route.authz["external-auth/shop/a/0"] == RouteAuthz::Off;
    let routes = &config.virtual_hosts[0].routes;
    assert_eq!(routes.iter().map(is_off).collect::<Vec<_>>(), [false, true]);
    assert_eq!(shares(&routes[0]), [(WEB, 1)]);
    // The listener that was there before has its routes by their name, and nobody to ask.
    let Some(Resource::Routes(config)) = get(&compiled, &client("shop"), ResourceKind::Routes, CATALOG)
    else {
        panic!()
    };
    let routes = &config.virtual_hosts[0].routes;
    assert_eq!((shares(&routes[0]), shares(&routes[1])), (vec![(NOWHERE, 1)], vec![(CATALOG, 1)]));
    assert!(routes.iter().all(|route| route.authz.is_empty()));
}

#[test]
fn where_nobody_can_be_asked_nothing_passes() {
    let found = routes(&asking("nobody"), "shop", CATALOG);
    assert_eq!((shares(&found[0]), shares(&found[1])), (vec![(NOWHERE, 1)], vec![(CATALOG, 1)]));
    // Who has no filters that ask is sent the same, and it is said.
    for (kind, who, name) in [(ClientKind::Envoy, "envoy", "8080"), (ClientKind::Grpc, "grpc", CATALOG)] {
        let compiled = compiled(mesh(), &asking("web"));
        let scope = Scope { secure: true, ..scope(kind, "web", who) };
        let found = get(&compiled, &scope, ResourceKind::Routes, name);
        let Some(Resource::Routes(config)) = &found else { panic!("{found:?}") };
        let host = config.virtual_hosts.iter().find(|host| host.name.starts_with("catalog.")).unwrap();
        assert_eq!(shares(&host.routes[0]), [(NOWHERE, 1)], "{kind:?}");
        assert_eq!(shares(&host.routes[1]), [(CATALOG, 1)], "{kind:?}");
        assert!(host.routes.iter().all(|route| route.authz.is_empty()), "{kind:?}");
        let asked = std::collections::BTreeSet::from([(ResourceKind::Routes, name.to_owned())]);
        let gaps: Vec<_> = compiled.gaps(&scope, &asked).into_iter().map(|gap| (gap.rule, gap.why)).collect();
        let told =
            |(rule, why): &(String, String)| rule == "HTTPRoute shop/a" && why.contains("ExternalAuth");
        assert!(gaps.iter().any(told), "{kind:?}: {gaps:?}");
    }
}
