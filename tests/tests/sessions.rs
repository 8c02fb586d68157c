//! Sessions through two sidecars and by a real Envoy: a client stays at the instance that has answered it, whatever weights and balancing say.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use outrigger_control::instance::Protocol;
use outrigger_tests::app::{echo, exchange};
use outrigger_tests::mesh::{Mesh, Sidecar, Spec};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;

use crate::BINARY;
use crate::foreign::start_envoy;
use crate::gateway_api::{apply, run};
use crate::thin_thread::{STRICT, catalog, web};

/// Who answered, and the cookie that was given.
async fn ask(entry: SocketAddr, path: &str, cookie: Option<&str>) -> (String, Option<String>) {
    let cookie = cookie.map(|cookie| format!("Cookie: theirs=1; {cookie}\r\n")).unwrap_or_default();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: catalog.shop:8080\r\nConnection: close\r\n{cookie}\r\n");
    let (status, text) = exchange(entry, &request).await.unwrap();
    let field = |wanted: &str| {
        let head = text.split("\r\n\r\n").next().unwrap_or_default();
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.to_owned())
    };
    let who = if status == 200 { field("x-app-name").unwrap() } else { status.to_string() };
    (who, field("set-cookie"))
}

/// The cookie without its attributes.
fn carried(given: Option<String>) -> String {
    let given = given.expect("a client without a session is given a cookie");
    given.split(';').next().unwrap().to_owned()
}

/// Asks without a cookie until somebody answers who was not met, and gives back his cookie.
async fn meet(entry: SocketAddr, path: &str, met: &mut BTreeSet<String>) -> (String, String) {
    for _ in 0..200 {
        let (who, given) = ask(entry, path, None).await;
        let cookie = carried(given);
        if met.insert(who.clone()) {
            return (who, cookie);
        }
    }
    panic!("only {met:?} answer");
}

async fn stays(entry: SocketAddr, path: &str, cookie: &str, who: &str) {
    for _ in 0..12 {
        assert_eq!(ask(entry, path, Some(cookie)).await, (who.to_owned(), None), "by {cookie}");
    }
}

fn service(service: &'static str, host: u8) -> Spec<'static> {
    Spec { service, version: "v1", host, protocol: Protocol::Http, calls: &[] }
}

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: catalog, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: catalog}]
  rules:
  - matches: [{path: {value: /split}}]
    sessionPersistence: {}
    backendRefs: [{name: old, port: 8080, weight: 50}, {name: new, port: 8080, weight: 50}]
  - sessionPersistence: {sessionName: mine, type: Cookie, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}
    backendRefs: [{name: catalog, port: 8080}]
";

#[tokio::test(flavor = "multi_thread")]
async fn a_route_of_the_gateway_api_keeps_a_client_at_its_backend_whatever_the_weights() {
    let mesh = Mesh::start(BINARY).await;
    let mut sidecars: Vec<Sidecar> = Vec::new();
    for (spec, name) in [
        (catalog("v1", 11), "one"),
        (catalog("v2", 12), "two"),
        (service("old", 13), "old"),
        (service("new", 14), "new"),
    ] {
        let sidecar = mesh.workload(&spec).await;
        echo(sidecar.app, name).await;
        sidecars.push(sidecar);
    }
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.apply(STRICT).await;
    let told = apply(&mesh, ROUTE).await;
    assert!(!told.contains("warning"), "{told}");
    let entry = web.outbound[0];

    let mut met = BTreeSet::new();
    let (first, cookie) = meet(entry, "/split", &mut met).await;
    let (second, other) = meet(entry, "/split", &mut met).await;
    assert_eq!(met, BTreeSet::from(["new".to_owned(), "old".to_owned()]));
    assert!(cookie.starts_with("outrigger-session.shop.catalog.") && cookie != other, "{cookie} {other}");
    stays(entry, "/split", &cookie, &first).await;
    stays(entry, "/split", &other, &second).await;
    // A rule that is written above it ends no session.
    let above =
        "rules:\n  - matches: [{path: {value: /new}}]\n    backendRefs: [{name: catalog, port: 8080}]";
    apply(&mesh, &ROUTE.replace("rules:", above)).await;
    stays(entry, "/split", &cookie, &first).await;
    stays(entry, "/split", &other, &second).await;

    let mut met = BTreeSet::new();
    let (first, cookie) = meet(entry, "/", &mut met).await;
    let (second, other) = meet(entry, "/", &mut met).await;
    assert!(cookie.starts_with("mine=") && first != second);
    stays(entry, "/", &cookie, &first).await;
    stays(entry, "/", &other, &second).await;
    let described = run(&mesh, &["describe", "service", "catalog.shop"]).await;
    assert!(described.contains("keeps a client by the cookie mine"), "{described}");

    // The instance goes: the session goes on elsewhere, with another cookie.
    let gone = if first == "one" { 0 } else { 1 };
    drop(sidecars.remove(gone));
    eventually("the other instance has taken over", || async {
        match ask(entry, "/", Some(&cookie)).await {
            (who, Some(given)) if who == second && given.starts_with("mine=") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    stays(entry, "/", &other, &second).await;
}

const PAGE: &str = "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: catalog, namespace: shop}
spec:
  service: catalog
  loadBalancing: {policy: roundRobin}
  session: {cookie: {name: mine}}
";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sidecar_has_given_a_client_an_envoy_of_the_mesh_understands() {
    let Some(envoy) = require::tool("envoy") else { return };
    let mesh = Mesh::start(BINARY).await;
    let mut sidecars = Vec::new();
    for (version, host, name) in [("v1", 11, "one"), ("v2", 12, "two"), ("v3", 13, "three")] {
        let sidecar = mesh.workload(&catalog(version, host)).await;
        echo(sidecar.app, name).await;
        sidecars.push(sidecar);
    }
    mesh.apply(STRICT).await;
    mesh.apply(PAGE).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let _envoy = start_envoy(&mesh, &envoy, "DELTA_GRPC").await;
    let through_envoy = SocketAddr::new(mesh.address(30, 0).ip(), 8080);
    let request = "GET / HTTP/1.1\r\nHost: catalog.shop:8080\r\nConnection: close\r\n\r\n";
    eventually("a request through Envoy", || async {
        match exchange(through_envoy, request).await {
            Ok((200, _)) => Ok(()),
            Ok((_, text)) => Err(text),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    let ours = web.outbound[0];
    for (given_by, others) in [(ours, through_envoy), (through_envoy, ours)] {
        let mut met = BTreeSet::new();
        for _ in 0..3 {
            let (who, cookie) = meet(given_by, "/", &mut met).await;
            stays(given_by, "/", &cookie, &who).await;
            stays(others, "/", &cookie, &who).await;
        }
        assert_eq!(met.len(), 3);
    }
}
