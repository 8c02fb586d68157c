//! What several objects say of one host, where each has something of its own to say.

use super::*;

const STOCK: &str = "outbound|7000||stock.shop.svc.cluster.local";

fn rule(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

fn tcp(compiled: &Compiled, name: &str) -> (Vec<String>, u64) {
    let Some(Resource::Listener(listener)) = get(compiled, &web(), ResourceKind::Listener, name) else {
        panic!("no listener")
    };
    let Some(Terminal::Tcp(tcp)) = listener.chains.last().map(|chain| &chain.terminal) else { panic!() };
    (tcp.clusters.iter().map(|share| share.cluster.clone()).collect(), tcp.idle_timeout.as_secs())
}

#[test]
fn one_object_routes_the_requests_of_a_host_and_another_its_connections() {
    let http = |host: &str| format!("{{hosts: [{host}], http: [{{directResponse: {{status: 418}}}}]}}");
    let bytes = |host: &str| {
        format!(
            "{{hosts: [{host}], tcp: [{{route: [{{destination: {{host: web, port: {{number: 8080}}}}}}]}}]}}"
        )
    };
    let to_web = vec!["outbound|8080||web.shop.svc.cluster.local".to_owned()];
    for (first, second) in [("a", "b"), ("b", "a")] {
        for host in ["stock", "'*.shop.svc.cluster.local'"] {
            let rules =
                [rule("VirtualService", first, &http("stock")), rule("VirtualService", second, &bytes(host))];
            assert_eq!(tcp(&compiled(shop(), &rules.concat()), STOCK).0, to_web, "{first} {host}");
        }
        for host in ["catalog", "'*.shop.svc.cluster.local'"] {
            let rules = [
                rule("VirtualService", first, &bytes("catalog")),
                rule("VirtualService", second, &http(host)),
            ];
            let compiled = compiled(shop(), &rules.concat());
            let routes = routes_of(get(&compiled, &web(), ResourceKind::Routes, CATALOG));
            let [Route { action: RouteAction::Direct { status: 418, .. }, .. }] = &*routes else {
                panic!("{first} {host}: {routes:?}")
            };
        }
    }
}

#[test]
fn a_connection_is_idle_as_long_as_the_subset_that_it_goes_to_says() {
    let policy =
        |seconds: u32| format!("trafficPolicy: {{connectionPool: {{tcp: {{idleTimeout: {seconds}s}}}}}}");
    let subsets = format!(
        "{{host: stock, {}, subsets: [{{name: a, {}}}, {{name: b, {}}}, {{name: c}}]}}",
        policy(50),
        policy(20),
        policy(30)
    );
    let destination = rule("DestinationRule", "stock", &subsets);
    let to = |names: &[&str]| {
        let share = |name: &&str| format!("{{destination: {{host: stock, subset: {name}}}, weight: 1}}");
        let shares: Vec<String> = names.iter().map(share).collect();
        rule(
            "VirtualService",
            "stock",
            &format!("{{hosts: [stock], tcp: [{{route: [{}]}}]}}", shares.join(", ")),
        )
    };
    for (names, seconds) in [(&["a"][..], 20), (&["b"], 30), (&["b", "a"], 20), (&["c"], 50)] {
        let rules = [destination.clone(), to(names)].concat();
        assert_eq!(tcp(&compiled(shop(), &rules), STOCK).1, seconds, "{names:?}");
    }
    assert_eq!(tcp(&compiled(shop(), &destination), STOCK).1, 50, "without routes");
}

#[test]
fn a_rule_for_some_clients_only_adds_its_subsets() {
    let wide = rule(
        "DestinationRule",
        "z",
        "{host: catalog, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {version: v1}}]}",
    );
    let some = rule(
        "DestinationRule",
        "a",
        "{host: catalog, workloadSelector: {matchLabels: {app: x}}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, \
         subsets: [{name: v1, labels: {version: v2}}, {name: v2, labels: {version: v2}}]}",
    );
    let c = compiled(shop(), &[some, wide].concat());
    let balance = |subset: &str| {
        let name = CATALOG.replace("||", &format!("|{subset}|"));
        let Some(Resource::Cluster(cluster)) = get(&c, &web(), ResourceKind::Cluster, &name) else {
            panic!()
        };
        let Some(Resource::Endpoints(set)) = get(&c, &web(), ResourceKind::Endpoints, &name) else {
            panic!()
        };
        (cluster.balance, set.iter().map(|e| e.address.ip().to_string()).collect::<Vec<_>>())
    };
    let random = outrigger_model::cluster::Balance::Random;
    assert_eq!(balance("v1"), (random, vec!["127.0.0.11".to_owned()]), "the other rule's");
    assert_eq!(balance("v2"), (random, vec!["127.0.0.12".to_owned()]));
}

/// As Istio: the namespace of the client goes first, and the most specific host within it.
#[test]
fn a_wildcard_of_the_clients_own_namespace_goes_before_the_services_own_rule() {
    let of = |namespace: &str, name: &str, host: &str, simple: &str| {
        let spec = format!("{{host: {host}, trafficPolicy: {{loadBalancer: {{simple: {simple}}}}}}}");
        rule("DestinationRule", name, &spec).replace("namespace: shop", &format!("namespace: {namespace}"))
    };
    let wide = "'*.shop.svc.cluster.local'";
    let rules =
        [of("shop", "catalog", "catalog", "ROUND_ROBIN"), of("front", "default", wide, "RANDOM")].concat();
    let own = of("front", "catalog", "catalog.shop.svc.cluster.local", "LEAST_REQUEST");
    let client = |namespace: &str| Scope { namespace: namespace.into(), ..web() };
    let balance = |rules: &str, namespace: &str| {
        let c = compiled(shop(), rules);
        let Some(Resource::Cluster(cluster)) = get(&c, &client(namespace), ResourceKind::Cluster, CATALOG)
        else {
            panic!()
        };
        format!("{:?}", cluster.balance)
    };
    assert_eq!(balance(&rules, "shop"), "RoundRobin");
    assert_eq!(balance(&rules, "front"), "Random");
    assert_eq!(balance(&[rules.clone(), own].concat(), "front"), "LeastRequest");
    assert_eq!(balance(&rules, "elsewhere"), "RoundRobin", "the service's");
}
