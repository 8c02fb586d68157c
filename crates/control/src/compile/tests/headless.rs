//! Calls to the addresses for which the name of a headless Service stands.

use outrigger_model::route::table::RouteTable;

use super::*;

const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: None, ports: [{port: 80, targetPort: 5432}]}}";
const CALLED: &str = "outbound|5432||10.0.0.7";

fn members(protocol: Protocol) -> Vec<Instance> {
    let member = |id: &str, address: &str, services: &[&str]| {
        let one = sample(id, "db", "v1", address, 5432, protocol);
        Instance { services: Some(services.iter().map(|name| (*name).to_owned()).collect()), ..one }
    };
    let mut all = vec![member("db-0", "10.0.0.7", &["db"]), member("db-1", "10.0.0.8", &["db"])];
    all.push(member("other-0", "10.0.0.9", &["plain"]));
    all.extend(shop());
    all
}

fn rule(list: &str) -> String {
    format!(
        "{SERVICE}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: db, namespace: shop}}\n\
         spec: {{hosts: [db], {list}}}\n"
    )
}

#[test]
fn who_calls_an_instance_by_its_service_s_name_has_that_name_s_routes() {
    let text = rule(
        "http: [{match: [{port: 80, uri: {prefix: /a}}], timeout: 1s, route: [{destination: {host: db}}]}, {route: [{destination: {host: catalog}}]}]",
    );
    let c = compiled(members(Protocol::Http), &text);
    let config = |scope: &Scope, name: &str| {
        let Some(Resource::Routes(config)) = get(&c, scope, ResourceKind::Routes, name) else {
            panic!("{name}")
        };
        RouteTable::compile(&config).unwrap();
        config
    };
    let routes = config(&web(), CALLED);
    let [named, rest] = routes.virtual_hosts.as_slice() else { panic!("{routes:#?}") };
    let whole = "db.shop.svc.cluster.local";
    assert_eq!(named.domains, [whole, "*.db.shop.svc.cluster.local", "db.shop", "db.shop.svc", "db"]);
    let sent = |route: &Route| match &route.action {
        RouteAction::Forward(forward) => (forward.timeout, forward.clusters[0].cluster.clone()),
        other => panic!("{other:?}"),
    };
    let second = std::time::Duration::from_secs(1);
    assert_eq!(sent(&named.routes[0]), (Some(second), CALLED.to_owned()), "the one that was called");
    assert_eq!(sent(&named.routes[1]), (None, CATALOG.to_owned()));
    assert_eq!(
        (rest.domains.as_slice(), sent(&rest.routes[0])),
        (&["*".to_owned()][..], (None, CALLED.to_owned()))
    );
    let far = Scope { namespace: "front".into(), instance: None, ..web() };
    assert!(!config(&far, CALLED).virtual_hosts[0].domains.contains(&"db".to_owned()), "db is front's");
    assert_eq!(
        config(&web(), "outbound|5432||10.0.0.9").virtual_hosts.len(),
        1,
        "its service has an address"
    );
}

#[test]
fn routes_of_connections_hold_for_the_addresses_of_a_headless_service() {
    let clusters = |list: &str| {
        let c = compiled(members(Protocol::Tcp), &rule(list));
        let Some(Resource::Listener(listener)) = get(&c, &web(), ResourceKind::Listener, CALLED) else {
            panic!()
        };
        let Terminal::Tcp(tcp) = &listener.chains[0].terminal else { panic!("{listener:?}") };
        tcp.clusters.iter().map(|share| share.cluster.clone()).collect::<Vec<_>>()
    };
    let stock = "outbound|7000||stock.shop.svc.cluster.local";
    assert_eq!(
        clusters(
            "tcp: [{match: [{port: 80}], route: [{destination: {host: db}, weight: 1}, {destination: {host: stock}, weight: 1}]}]"
        ),
        [CALLED, stock]
    );
    assert_eq!(clusters("tcp: [{match: [{port: 5432}], route: [{destination: {host: stock}}]}]"), [CALLED]);
}
