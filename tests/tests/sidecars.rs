//! What a Sidecar says: which services real sidecars know, what becomes of all others, and where what comes in goes.

use std::net::SocketAddr;

use outrigger_control::api::types::ApplyQuery;
use outrigger_control::instance::Protocol;
use outrigger_tests::app::{body, echo, exchange, get};
use outrigger_tests::mesh::{Mesh, Spec};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BINARY;
use crate::foreign::start_envoy;
use crate::gateway_api::run;
use crate::thin_thread::{catalog, web};

fn sidecar(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

/// The application that answers, or the status.
async fn answer(entry: SocketAddr) -> String {
    match get(entry, "/", "").await {
        Ok((200, text)) => {
            text.lines().find_map(|line| line.strip_prefix("X-App-Name: ")).unwrap_or("?").to_owned()
        }
        Ok((status, _)) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

async fn until(entry: SocketAddr, wanted: &str) {
    eventually(&format!("{wanted} from {entry}"), || async {
        let found = answer(entry).await;
        if found == wanted { Ok(()) } else { Err(found) }
    })
    .await;
}

async fn delete(mesh: &Mesh, name: &str) {
    let query = ApplyQuery { wait: true, timeout: Some(20.0), ..ApplyQuery::default() };
    mesh.client.delete("Sidecar", "shop", name, &query).await.unwrap();
}

const REFUSING: &str =
    "egress: [{hosts: ['./catalog.shop.svc.cluster.local']}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}";

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_knows_what_its_sidecar_names_and_all_else_is_refused_or_goes_through_a_proxy() {
    let mesh = Mesh::start(BINARY).await;
    let one = mesh.workload(&catalog("v1", 11)).await;
    let spec = Spec { service: "stock", version: "v1", host: 12, protocol: Protocol::Http, calls: &[] };
    let two = mesh.workload(&spec).await;
    echo(one.app, "catalog").await;
    echo(two.app, "stock").await;
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080", "nobody.shop:8080"])).await;
    let [known, other, nobody] = [web.outbound[0], web.outbound[1], web.outbound[2]];
    assert_eq!((answer(known).await, answer(other).await), ("catalog".into(), "stock".into()));

    mesh.apply(&sidecar("default", REFUSING)).await;
    assert_eq!(answer(known).await, "catalog");
    let (status, text) = get(other, "/", "").await.unwrap();
    assert!(status == 502 && text.contains("Sidecar shop/default"), "{text}");
    assert_eq!(answer(nobody).await, "502");
    let shown = run(&mesh, &["status"]).await;
    assert!(shown.contains("web-v1 has what Sidecar shop/default says"), "{shown}");
    let explained = run(&mesh, &["explain", "GET", "http://stock:8080/", "--from", "web"]).await;
    for words in ["Sidecar shop/default", "is not among the hosts", "the outbound policy is REGISTRY_ONLY"] {
        assert!(explained.contains(words), "no {words:?} in {explained}");
    }

    // One that selects goes before it; whoever it does not select keeps the other.
    let narrow =
        "workloadSelector: {labels: {app: web}}, egress: [{hosts: ['./stock.shop.svc.cluster.local']}]";
    mesh.apply(&sidecar("web", narrow)).await;
    assert_eq!(answer(other).await, "stock");
    let described = run(&mesh, &["describe", "service", "stock.shop", "--from", "web"]).await;
    assert!(described.contains("with Sidecar shop/web"), "{described}");
    // Without a word of its own of what is not known the sidecar's setting holds: there is no such name in the world.
    assert_ne!(answer(known).await, "catalog");

    // What is not known goes through a service, as bytes.
    let proxy = "egressProxy: {host: stock, port: {number: 8080}}";
    let through = format!("{narrow}, outboundTrafficPolicy: {{mode: ALLOW_ANY, {proxy}}}");
    mesh.apply(&sidecar("web", &through)).await;
    assert_eq!((answer(known).await, answer(nobody).await), ("stock".into(), "stock".into()));

    delete(&mesh, "web").await;
    assert_eq!((answer(known).await, answer(other).await), ("catalog".into(), "502".into()));
    delete(&mesh, "default").await;
    assert_eq!((answer(known).await, answer(other).await), ("catalog".into(), "stock".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_in_goes_where_the_sidecar_says_within_its_limits() {
    let mesh = Mesh::start(BINARY).await;
    let server = mesh.workload(&catalog("v1", 11)).await;
    echo(server.app, "registered").await;
    // Free a moment ago, and nobody else's in that moment.
    let moved = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap();
    echo(moved, "moved").await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let entry = web.outbound[0];
    assert_eq!(answer(entry).await, "registered");
    let ingress = |protocol: &str, more: &str| {
        sidecar(
            "catalog",
            &format!(
                "workloadSelector: {{labels: {{app: catalog}}}}, ingress: [{{port: {{number: 8080, protocol: {protocol}, name: a}}, \
                 defaultEndpoint: '{moved}'{more}}}]"
            ),
        )
    };
    mesh.apply(&ingress("HTTP", ", connectionPool: {http: {http2MaxRequests: 1}}")).await;
    until(entry, "moved").await;
    // A request that has not ended is the only one that the server takes.
    let mut slow = TcpStream::connect(entry).await.unwrap();
    slow.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    until(entry, "503").await;
    slow.write_all(b"ab").await.unwrap();
    let mut text = String::new();
    slow.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("X-App-Name: moved"), "{text}");
    until(entry, "moved").await;
    // The same port as bytes.
    mesh.apply(&ingress("TCP", "")).await;
    until(entry, "moved").await;
    delete(&mesh, "catalog").await;
    until(entry, "registered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_is_sent_what_its_sidecar_names_and_what_routes_of_that_lead_to() {
    let Some(envoy) = require::tool("envoy") else { return };
    let mesh = Mesh::start(BINARY).await;
    let one = mesh.workload(&catalog("v1", 11)).await;
    let spec = Spec { service: "stock", version: "v1", host: 12, protocol: Protocol::Http, calls: &[] };
    let two = mesh.workload(&spec).await;
    echo(one.app, "catalog").await;
    echo(two.app, "stock").await;
    let _envoy = start_envoy(&mesh, &envoy, "DELTA_GRPC").await;
    let asked = async |service: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: {service}.shop:8080\r\nConnection: close\r\n\r\n");
        match exchange(mesh.address(30, 8080), &request).await {
            Ok((200, text)) => body(&text).lines().next().unwrap_or_default().to_owned(),
            Ok((status, _)) => status.to_string(),
            Err(error) => error.to_string(),
        }
    };
    let until = async |service: &str, wanted: &str| {
        eventually(&format!("{wanted} for {service}"), || async {
            let found = asked(service).await;
            if found == wanted { Ok(()) } else { Err(found) }
        })
        .await;
    };
    let clusters = async || {
        let (_, page) = get(mesh.address(30, 15000), "/clusters", "").await.unwrap();
        ["catalog", "stock"].map(|name| page.contains(&format!("outbound|8080||{name}.shop")))
    };
    until("catalog", "catalog").await;
    until("stock", "stock").await;
    assert_eq!(clusters().await, [true, true]);
    mesh.apply(&sidecar("default", "egress: [{hosts: ['./catalog.shop.svc.cluster.local']}]")).await;
    until("stock", "404").await;
    assert_eq!((asked("catalog").await.as_str(), clusters().await), ("catalog", [true, false]));
    let route = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: catalog, namespace: shop}\nspec: {hosts: \
                 [catalog], http: [{route: [{destination: {host: stock}}]}]}\n";
    mesh.apply(route).await;
    until("catalog", "stock").await;
    assert_eq!((asked("stock").await.as_str(), clusters().await), ("404", [true, true]));
    // What becomes of the rest is Envoy's own matter, and that is said.
    let applied = mesh.try_apply(&sidecar("default", REFUSING)).await.unwrap();
    let unenforced = applied.in_force.unwrap().unenforced;
    assert!(unenforced.iter().any(|why| why.contains("outboundTrafficPolicy")), "{unenforced:?}");
    let (_, stats) = get(mesh.address(30, 15000), "/stats?filter=update_rejected", "").await.unwrap();
    let rejected = stats.lines().filter(|line| line.contains("update_rejected") && !line.ends_with(": 0"));
    assert_eq!(rejected.collect::<Vec<_>>(), [""; 0]);
}
