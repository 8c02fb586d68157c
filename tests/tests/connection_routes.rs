//! Routes of connections of the Gateway API, TCPRoute and TLSRoute, with a Service as parent: obeyed by real sidecars.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;

use outrigger_control::instance::Protocol;
use outrigger_tests::app::echo;
use outrigger_tests::mesh::{Mesh, Spec};
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BINARY;
use crate::gateway_api::{apply, run};
use crate::services::tls_server;
use crate::thin_thread::web;
use crate::virtual_services::over_tls;

fn service(service: &'static str, host: u8, protocol: Protocol) -> Spec<'static> {
    Spec { service, version: "v1", host, protocol, calls: &[] }
}

/// Who answers a connection: an application's name.
async fn answer(entry: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(entry).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    // The application ends when we have: nobody between looks at requests.
    stream.shutdown().await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let name = text.lines().find_map(|line| line.strip_prefix("X-App-Name: "));
    name.map(str::to_owned).ok_or_else(|| std::io::Error::other(format!("no answer: {text:?}")))
}

/// Who answered how many connections; those that were reset stand for themselves.
async fn answers(entry: SocketAddr, count: usize) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for _ in 0..count {
        let who = match answer(entry).await {
            Ok(name) => name,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => "reset".to_owned(),
            Err(error) => error.to_string(),
        };
        *found.entry(who).or_default() += 1;
    }
    found
}

fn route(parent: &str, backends: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: bytes, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: {parent}}}]
  rules: [{{backendRefs: [{backends}]}}]
"
    )
}

/// An HTTPRoute for the same port.
const REQUESTS: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: requests, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: catalog}]
  rules: [{backendRefs: [{name: catalog, port: 8080}]}]
";

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_route_splits_connections_and_resets_the_share_of_what_is_not_there() {
    let mesh = Mesh::start(BINARY).await;
    let stock = mesh.workload(&service("stock", 11, Protocol::Tcp)).await;
    let old = mesh.workload(&service("old", 12, Protocol::Tcp)).await;
    let new = mesh.workload(&service("new", 13, Protocol::Tcp)).await;
    let catalog = mesh.workload(&service("catalog", 14, Protocol::Http)).await;
    let web = mesh.workload(&web(&["stock:8080", "catalog:8080"])).await;
    for (app, name) in [(stock.app, "stock"), (old.app, "old"), (new.app, "new"), (catalog.app, "catalog")] {
        echo(app, name).await;
    }
    let [entry, requests] = [web.outbound[0], web.outbound[1]];
    let all = |name: &str, count| BTreeMap::from([(name.to_owned(), count)]);
    assert_eq!(answers(entry, 1).await, all("stock", 1));

    let split = "{name: old, port: 8080, weight: 90}, {name: new, port: 8080, weight: 10}";
    apply(&mesh, &route("stock", split)).await;
    // 300 connections, 10 %: below 6 or above 66 once in a billion runs (Chernoff).
    let found = answers(entry, 300).await;
    let (old, new) = (found.get("old").copied().unwrap_or(0), found.get("new").copied().unwrap_or(0));
    assert!(old + new == 300 && (6..=66).contains(&new), "{found:?}");
    let shown = run(&mesh, &["describe", "service", "stock.shop"]).await;
    assert!(shown.contains("TCPRoute shop/bytes"), "{shown}");

    // The backend that does not exist keeps its half.
    let told = apply(&mesh, &route("stock", "{name: old, port: 8080}, {name: nobody, port: 8080}")).await;
    assert!(
        told.contains("warning OUT0109") && told.contains("its share of the connections is reset"),
        "{told}"
    );
    let found = answers(entry, 100).await;
    let (old, lost) = (found.get("old").copied().unwrap_or(0), found.get("reset").copied().unwrap_or(0));
    assert!(old + lost == 100 && (18..=82).contains(&lost), "{found:?}");
    let explained = run(&mesh, &["explain", "GET", "http://stock:8080/", "--from", "web"]).await;
    for words in ["TCPRoute shop/bytes", "the backend of this share is not there"] {
        assert!(explained.contains(words), "no {words:?} in {explained}");
    }
    let get_yaml = ["get", "tcproutes", "bytes", "-n", "shop", "-o", "yaml"];
    let shown = run(&mesh, &get_yaml).await;
    assert!(
        shown.contains("reason: \"BackendNotFound\"\n") && shown.contains("reason: \"Accepted\"\n"),
        "{shown}"
    );
    // What is shown is taken back.
    assert!(apply(&mesh, &shown).await.contains("TCPRoute shop/bytes version 3"));
    let nobody = mesh.workload(&service("nobody", 15, Protocol::Tcp)).await;
    echo(nobody.app, "nobody").await;
    eventually("the new backend", || async {
        let found = answers(entry, 20).await;
        let served = found.contains_key("nobody") && !found.contains_key("reset");
        if served { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;

    // A port of HTTP is bytes, too, until a route of requests holds there.
    apply(&mesh, &route("catalog", "{name: nobody, port: 8080}")).await;
    assert_eq!(answers(requests, 3).await, all("nobody", 3));
    assert_eq!(answers(entry, 1).await, all("stock", 1));
    let told = apply(&mesh, REQUESTS).await;
    assert!(told.contains("Accepted: Conflicted") && told.contains("TCPRoute shop/bytes"), "{told}");
    assert_eq!(answers(requests, 3).await, all("catalog", 3));
    assert!(run(&mesh, &get_yaml).await.contains("reason: \"Conflicted\"\n"));
    run(&mesh, &["delete", "httproute", "requests", "-n", "shop", "--wait"]).await;
    assert_eq!(answers(requests, 3).await, all("nobody", 3));
    run(&mesh, &["delete", "tcproute", "bytes", "-n", "shop", "--wait"]).await;
    assert_eq!(answers(requests, 3).await, all("catalog", 3));
}

const NAMES: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: names, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: vault, port: 443}]
  hostnames: [vault.example.com, '*.spare.example.com']
  rules: [{backendRefs: [{name: spare, port: 443}]}]
";

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_route_goes_by_the_name_that_is_asked_for() {
    let mesh = Mesh::start(BINARY).await;
    let (own, other) = (mesh.path("own.pem"), mesh.path("other.pem"));
    tls_server(mesh.address(40, 8000), "vault.example.com", &own).await;
    tls_server(mesh.address(41, 8000), "vault.example.com", &other).await;
    let described = |name: &str, host: u8| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{hosts: \
             [{name}.shop.svc.cluster.local], resolution: STATIC, ports: [{{number: 443, name: tls, protocol: TLS, targetPort: 8000}}], \
             endpoints: [{{address: {}}}]}}\n---\n",
            mesh.address(host, 0).ip()
        )
    };
    let web = mesh.workload(&web(&["vault:443"])).await;
    let entry = web.outbound[0];
    mesh.apply(&(described("vault", 40) + &described("spare", 41))).await;
    let says = |certificate| over_tls(entry, "vault.example.com", certificate);
    eventually("the server itself", || says(&own)).await;
    apply(&mesh, NAMES).await;
    // The other server's certificate: the sidecar has opened nothing, and sent the whole stream there.
    assert_eq!(says(&other).await.unwrap(), "asked for vault.example.com");
    // A name that no route has comes to no server, one below the wildcard does.
    for (name, server) in
        [("www.example.net", false), ("a.b.spare.example.com", true), ("spare.example.com", false)]
    {
        let refused = over_tls(entry, name, &other).await.unwrap_err();
        assert_eq!(refused.contains("certificate"), server, "{name}: {refused}");
    }
    let explained = run(&mesh, &["explain", "GET", "https://vault.shop:443/", "--from", "web"]).await;
    assert!(explained.contains("has no chain for such a connection"), "{explained}");
    // Routes of less specific kinds are behind it.
    let told = apply(&mesh, &route("vault", "{name: vault, port: 443}")).await;
    assert!(told.contains("TLSRoute shop/names holds at vault.shop"), "{told}");
    assert_eq!(says(&other).await.unwrap(), "asked for vault.example.com");
    run(&mesh, &["delete", "tlsroute", "names", "-n", "shop", "--wait"]).await;
    assert_eq!(says(&own).await.unwrap(), "asked for vault.example.com");
    assert_eq!(over_tls(entry, "vault.example.com", &own).await.unwrap(), "asked for vault.example.com");
}
