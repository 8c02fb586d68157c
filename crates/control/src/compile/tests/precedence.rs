//! Which of several rules for a host a client has, as in Istio.

use super::*;

/// A client without a workload of its own in a namespace.
fn client_of(namespace: &str) -> Scope {
    Scope { namespace: namespace.into(), instance: None, ..web() }
}

fn rule(kind: &str, (namespace, name): (&str, &str), made: &str, spec: &str) -> String {
    let version = if kind == "TrafficRules" { "outrigger.io/v1" } else { "networking.istio.io/v1" };
    let made = if made.is_empty() { String::new() } else { format!(", creationTimestamp: '{made}'") };
    format!(
        "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}{made}}}\nspec: {{{spec}}}\n"
    )
}

fn requests(compiled: &Compiled, namespace: &str) -> u32 {
    let found = get(compiled, &client_of(namespace), ResourceKind::Cluster, CATALOG);
    let Some(Resource::Cluster(cluster)) = found else { panic!("no cluster") };
    cluster.limits.max_requests
}

fn seconds(compiled: &Compiled, namespace: &str) -> Option<u64> {
    let routes = routes_of(get(compiled, &client_of(namespace), ResourceKind::Routes, CATALOG));
    let RouteAction::Forward(forward) = &routes[0].action else { panic!("{routes:?}") };
    forward.timeout.map(|timeout| timeout.as_secs())
}

fn destination(of: (&str, &str), host: &str, limit: u32) -> String {
    let pool = format!("{{connectionPool: {{http: {{http2MaxRequests: {limit}}}}}}}");
    rule("DestinationRule", of, "", &format!("host: '{host}', trafficPolicy: {pool}"))
}

const WHOLE: &str = "catalog.shop.svc.cluster.local";

#[test]
fn a_destination_rule_holds_for_its_own_namespace_its_service_s_and_the_root_s() {
    let unruled = requests(&compiled(shop(), ""), "shop");
    let foreign = destination(("evil", "catalog"), WHOLE, 7);
    let c = compiled(shop(), &foreign);
    assert_eq!(["evil", "shop", "front"].map(|of| requests(&c, of)), [7, unruled, unruled]);
    for root in ["outrigger-system", "istio-system"] {
        let default = destination((root, "default"), "*.local", 9);
        let c = compiled(shop(), &format!("{foreign}{default}"));
        assert_eq!(["evil", "shop", "front", root].map(|of| requests(&c, of)), [7, 9, 9, 9], "{root}");
        let owner = destination(("shop", "catalog"), "catalog", 11);
        let c = compiled(shop(), &format!("{foreign}{default}{owner}"));
        assert_eq!(["evil", "shop", "front"].map(|of| requests(&c, of)), [7, 11, 11], "{root}");
        assert_eq!(requests(&c, root), 11, "what the root says to all is no word to its own clients");
        let own = destination((root, "own"), "*.local", 13).replace("spec: {", "spec: {exportTo: ['.'], ");
        let c = compiled(shop(), &format!("{default}{owner}{own}"));
        assert_eq!([root, "front"].map(|of| requests(&c, of)), [13, 11], "{root}");
    }
}

#[test]
fn subsets_of_a_rule_for_some_clients_are_for_no_other_namespace() {
    let spec = "host: catalog.shop, workloadSelector: {matchLabels: {app: web}}, subsets: [{name: v1, labels: {version: v1}}]";
    let c = compiled(shop(), &rule("DestinationRule", ("evil", "catalog"), "", spec));
    let name = format!("outbound|8080|v1|{WHOLE}");
    for (namespace, endpoints) in [("evil", 1), ("shop", 0)] {
        let found = get(&c, &client_of(namespace), ResourceKind::Endpoints, &name);
        let Some(Resource::Endpoints(set)) = found else { panic!("none") };
        assert_eq!(set.len(), endpoints, "{namespace}");
    }
}

#[test]
fn a_described_host_is_of_who_describes_it_to_a_client() {
    let entry = |namespace: &str, export: &str| {
        let spec = format!(
            "hosts: [api.example.com], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: DNS{export}"
        );
        rule("ServiceEntry", (namespace, "api"), "", &spec)
    };
    let ruled = destination(("bank", "api"), "api.example.com", 7);
    let name = "outbound|80||api.example.com";
    let limit = |rules: String, namespace: &str| {
        let found = get(&compiled(shop(), &rules), &client_of(namespace), ResourceKind::Cluster, name);
        let Some(Resource::Cluster(cluster)) = found else { panic!("no cluster") };
        cluster.limits.max_requests
    };
    let unruled = limit(entry("bank", ""), "shop");
    assert_eq!(limit(format!("{}{ruled}", entry("bank", "")), "shop"), 7);
    // What nobody else sees takes nothing from them.
    let private = entry("aaa", ", exportTo: ['.']");
    assert_eq!(limit(format!("{private}{}{ruled}", entry("bank", "")), "shop"), 7);
    assert_eq!(limit(format!("{}{ruled}", entry("aaa", "")), "shop"), unruled);
}

#[test]
fn a_page_of_another_namespace_is_for_its_own_clients() {
    let page = rule("TrafficRules", ("evil", "catalog"), "", "service: catalog.shop, timeout: 7s");
    let c = compiled(shop(), &page);
    assert_eq!(["evil", "shop", "front"].map(|of| seconds(&c, of)), [Some(7), None, None]);
    let producer = rule("TrafficRules", ("shop", "catalog"), "", "service: catalog, timeout: 3s");
    let c = compiled(shop(), &format!("{page}{producer}"));
    assert_eq!(["evil", "shop", "front"].map(|of| seconds(&c, of)), [Some(7), Some(3), Some(3)]);
}

fn routed(of: (&str, &str), made: &str, export: &str, seconds: u32) -> String {
    let to = "http: [{route: [{destination: {host: catalog.shop.svc.cluster.local}}], timeout: ";
    rule("VirtualService", of, made, &format!("hosts: [{WHOLE}], exportTo: ['{export}'], {to}{seconds}s}}]"))
}

#[test]
fn of_routes_for_a_host_the_client_s_own_go_first_then_what_is_exported_to_it() {
    let public = routed(("shop", "catalog"), "", "*", 1);
    let own = routed(("front", "zzz"), "", ".", 2);
    let named = routed(("aaa", "catalog"), "", "front", 3);
    let c = compiled(shop(), &format!("{public}{own}{named}"));
    assert_eq!(["front", "shop"].map(|of| seconds(&c, of)), [Some(2), Some(1)]);
    let c = compiled(shop(), &format!("{public}{named}"));
    assert_eq!(["front", "shop"].map(|of| seconds(&c, of)), [Some(3), Some(1)]);
    // What is for everyone is nobody's own.
    let c = compiled(shop(), &format!("{public}{}", routed(("front", "a"), "2026-01-02T00:00:00Z", "*", 4)));
    assert_eq!(["front", "shop"].map(|of| seconds(&c, of)), [Some(4), Some(4)], "it says when it was made");
}

#[test]
fn of_routes_for_the_same_clients_the_oldest_holds_and_then_names() {
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
    for (shops, others, wanted) in [(early, late, 1), (late, early, 2), ("", "", 2)] {
        let (one, other) =
            (routed(("shop", "catalog"), shops, "*", 1), routed(("aaa", "catalog"), others, "*", 2));
        for text in [format!("{one}{other}"), format!("{other}{one}")] {
            assert_eq!(seconds(&compiled(shop(), &text), "front"), Some(wanted), "{shops} {others}");
        }
    }
}

#[test]
fn of_destination_rules_of_a_namespace_the_oldest_has_the_policy() {
    let made = |name: &str, made: &str, limit: u32| {
        destination(("shop", name), "catalog", limit)
            .replace("namespace: shop", &format!("namespace: shop, creationTimestamp: '{made}'"))
    };
    let early = made("b", "2026-01-01T00:00:00Z", 7);
    let c = compiled(shop(), &format!("{}{early}", made("a", "2026-01-01T00:00:01Z", 9)));
    assert_eq!(requests(&c, "front"), 7);
    let c = compiled(shop(), &format!("{}{early}", made("a", "2025-01-01T00:00:00Z", 9)));
    assert_eq!(requests(&c, "front"), 9);
}
