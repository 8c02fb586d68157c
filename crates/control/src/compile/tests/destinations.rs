//! What a route makes of its destinations: their port, the edits for them, and which endpoint gets a request once more.

use outrigger_model::route::{Forward, HeaderText};

use super::*;

fn routed(host: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {host}, namespace: shop}}\n\
         spec:\n  hosts: [{host}]\n{rest}\n"
    )
}

fn first(compiled: &Compiled, name: &str) -> (Route, Forward) {
    let route = routes_of(get(compiled, &web(), ResourceKind::Routes, name)).remove(0);
    let RouteAction::Forward(forward) = &route.action else { panic!("{route:?}") };
    let forward = forward.clone();
    (route, forward)
}

#[test]
fn a_destination_without_a_port_means_its_service_s_only_one() {
    let text = routed("catalog", "  http: [{route: [{destination: {host: stock}}], mirror: {host: stock}}]")
        + &routed("stock", "  tcp: [{route: [{destination: {host: catalog}}]}]");
    let stock = "outbound|7000||stock.shop.svc.cluster.local";
    let (there, called) = (compiled(shop(), &text), "outbound|8080||stock.shop.svc.cluster.local");
    let mut instances = shop();
    let port = instances[0].ports[0].clone();
    instances[3].ports.push(port);
    let several = compiled(instances, &text);
    for (c, wanted) in [(&there, stock), (&several, called)] {
        let (_, forward) = first(c, CATALOG);
        assert_eq!((&*forward.clusters[0].cluster, &*forward.mirrors[0].cluster), (wanted, wanted));
        let envoy = scope(ClientKind::Envoy, "web", "envoy");
        let Some(Resource::Routes(routes)) = get(c, &envoy, ResourceKind::Routes, "8080") else { panic!() };
        let host = routes.virtual_hosts.iter().find(|host| host.name.starts_with("catalog.")).unwrap();
        let RouteAction::Forward(forward) = &host.routes[0].action else { panic!() };
        assert_eq!(forward.clusters[0].cluster, wanted, "of an Envoy");
        let Some(Resource::Listener(listener)) = get(c, &web(), ResourceKind::Listener, stock) else {
            panic!()
        };
        let Terminal::Tcp(tcp) = &listener.chains[0].terminal else { panic!() };
        assert_eq!(tcp.clusters[0].cluster, CATALOG, "of bytes, where the called port is another");
    }
}

#[test]
fn edits_for_a_lone_destination_come_after_the_routes() {
    let to = |more: &str| {
        format!(
            "  http:\n  - headers: {{request: {{set: {{x-env: prod, ':authority': a.test}}, remove: [x-user]}}, response: {{set: {{x-a: '1'}}}}}}\n    \
             route:\n    - destination: {{host: catalog}}\n      weight: 1\n      \
             headers: {{request: {{set: {{x-env: canary, x-user: internal, host: b.test}}}}, response: {{set: {{x-a: '2'}}}}}}\n{more}"
        )
    };
    let pair = |name: &str, value: &str| (name.to_owned(), HeaderText::from(value));
    let (route, forward) = first(&compiled(shop(), &routed("catalog", &to(""))), CATALOG);
    assert_eq!(
        route.request_headers.set,
        [pair(":authority", "a.test"), pair("x-env", "canary"), pair("x-user", "internal")],
        "but for the authority, of which the route's word is the last"
    );
    assert_eq!(
        (route.request_headers.remove.as_slice(), route.response_headers.set),
        (&["x-user".to_owned()][..], vec![pair("x-a", "2")])
    );
    assert!(
        forward.clusters[0].request_headers.is_empty() && forward.clusters[0].response_headers.is_empty()
    );
    // Of several the route's come last.
    let two = to("    - {destination: {host: web}, weight: 1}");
    let (route, forward) = first(&compiled(shop(), &routed("catalog", &two)), CATALOG);
    assert_eq!(route.request_headers.set, [pair("x-env", "prod"), pair(":authority", "a.test")]);
    assert_eq!(forward.clusters[0].request_headers.set.len(), 3);
}

#[test]
fn what_a_key_chose_keeps_its_endpoint_in_a_retry_unless_a_rule_says_otherwise() {
    let hashed = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: catalog, namespace: shop}\n\
                  spec: {host: catalog, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}\n";
    let native = |retry: &str| {
        format!(
            "---\napiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {{name: page, namespace: shop}}\n\
             spec: {{service: catalog, retry: {{{retry}}}, loadBalancing: {{hash: {{header: x-user}}}}}}\n"
        )
    };
    let lone = |retries: &str| {
        format!(
            "{hashed}{}",
            routed("catalog", &format!("  http: [{{route: [{{destination: {{host: catalog}}}}]{retries}}}]"))
        )
    };
    let two = "  http: [{route: [{destination: {host: catalog}, weight: 1}, {destination: {host: web}, weight: 1}]}]";
    for (text, avoids) in [
        (hashed.to_owned(), false),
        (lone(""), false),
        (lone(", retries: {attempts: 2}"), false),
        (lone(", retries: {attempts: 2, retryIgnorePreviousHosts: true}"), true),
        (lone(", retries: {attempts: 2, retryIgnorePreviousHosts: false}"), false),
        (format!("{hashed}{}", routed("catalog", two)), true),
        (String::new(), true),
        (lone("").replace(hashed, ""), true),
        (native("attempts: 2"), false),
        (native("attempts: 2, avoidPreviousHosts: true"), true),
    ] {
        let (_, forward) = first(&compiled(shop(), &text), CATALOG);
        assert_eq!(forward.retry.unwrap().avoid_previous_hosts, avoids, "{text}");
    }
}
