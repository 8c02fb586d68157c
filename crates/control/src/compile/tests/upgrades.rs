//! What requests may switch to, and CONNECT.

use outrigger_model::route::PathMatch;

use super::*;

#[test]
fn a_port_says_what_requests_may_switch_to_and_whether_connect_passes() {
    let takes = |routes: &[Route], protocol: &str| {
        routes.iter().any(|route| match &route.action {
            RouteAction::Forward(forward) => forward.allows_upgrade(protocol, &[]),
            _ => false,
        })
    };
    let connects = |routes: &[Route]| routes.iter().filter(|r| r.matches.path == PathMatch::Connect).count();
    let catalog = scope(ClientKind::Outrigger, "catalog", "catalog-v1");
    let inbound = "inbound|127.0.0.11:8080";
    let plain = compiled(shop(), "");
    for routes in [
        routes_of(get(&plain, &web(), ResourceKind::Routes, CATALOG)),
        routes_of(get(&plain, &catalog, ResourceKind::Listener, inbound)),
    ] {
        assert!(!takes(&routes, "tcp") && connects(&routes) == 0);
    }
    let mut instances = shop();
    instances[1].ports[0].upgrades = vec!["TCP".into(), "connect".into()];
    for yaml in ["", CANARY] {
        let open = compiled(instances.clone(), yaml);
        for routes in [
            routes_of(get(&open, &web(), ResourceKind::Routes, CATALOG)),
            routes_of(get(&open, &catalog, ResourceKind::Listener, inbound)),
        ] {
            assert!(takes(&routes, "tcp") && connects(&routes) == 1, "{routes:?}");
        }
    }
    // By a rule of its namespace, without a word of the port; one of another namespace has none.
    let rule = |namespace: &str| {
        format!(
            "apiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {{name: u, namespace: {namespace}}}\n\
             spec: {{service: catalog.shop, upgrades: [TCP, connect]}}\n"
        )
    };
    for (namespace, wanted) in [("shop", true), ("other", false)] {
        let ruled = compiled(shop(), &rule(namespace));
        for routes in [
            routes_of(get(&ruled, &web(), ResourceKind::Routes, CATALOG)),
            routes_of(get(&ruled, &catalog, ResourceKind::Listener, inbound)),
        ] {
            assert_eq!(
                (takes(&routes, "tcp"), connects(&routes)),
                (wanted, usize::from(wanted)),
                "{routes:?}"
            );
        }
    }
    // Another version's instance has its own say about what reaches it.
    let open = compiled(instances.clone(), "");
    let v2 = scope(ClientKind::Outrigger, "catalog", "catalog-v2");
    assert!(!takes(&routes_of(get(&open, &v2, ResourceKind::Listener, "inbound|127.0.0.12:8080")), "tcp"));
    instances[1].ports[0].upgrades = vec!["a b".into()];
    assert!(instances[1].validate().unwrap_err().contains("upgrades"));
}

#[test]
fn a_rule_that_names_connect_asks_for_it() {
    let rule = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http: [{match: [{method: {exact: CONNECT}}], route: [{destination: {host: catalog}}]}]
";
    let routes = routes_of(get(&compiled(shop(), rule), &web(), ResourceKind::Routes, CATALOG));
    assert_eq!(routes[0].matches.path, PathMatch::Connect);
}
