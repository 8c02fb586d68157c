//! One request through two real sidecars under mTLS, by a rule that the real control plane pushed, with its spans exported.

use outrigger_control::instance::Protocol;
use outrigger_tests::app::{body, echo, exchange, get, greeter};
use outrigger_tests::mesh::{Mesh, Spec};
use outrigger_tests::wait::eventually;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BINARY;

pub const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

pub fn web(calls: &'static [&'static str]) -> Spec<'static> {
    Spec { service: "web", version: "v1", host: 10, protocol: Protocol::Http, calls }
}

pub fn catalog(version: &'static str, host: u8) -> Spec<'static> {
    Spec { service: "catalog", version, host, protocol: Protocol::Http, calls: &[] }
}

const MARKED: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - name: marked
    route: [{destination: {host: catalog}, headers: {request: {set: {X-From-Rule: pushed}}}}]
";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_crosses_two_sidecars_by_a_pushed_rule_and_leaves_one_trace() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(catalog.app, "catalog-v1").await;
    mesh.apply(STRICT).await;
    mesh.apply(MARKED).await;

    let headers =
        "X-Mixed-Case: Kept\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let (status, text) = get(web.outbound[0], "/item/7?x=1", headers).await.unwrap();
    assert_eq!(status, 200, "{text}");
    assert!(
        text.contains("GET /item/7?x=1 HTTP/1.1\r\n") && text.contains("X-Mixed-Case: Kept\r\n"),
        "{text}"
    );
    assert!(text.to_ascii_lowercase().contains("x-from-rule: pushed\r\n"), "{text}");
    assert!(text.contains("X-App-Name: catalog-v1\r\n"), "{text}");

    // Plain text is refused by the workload's own address.
    assert!(get(catalog.inbound, "/", "").await.is_err());

    let spans = eventually("both sidecars' spans", || async {
        let (_, text) = get(mesh.address(1, 16686), "/api/traces/0af7651916cd43dd8448eb211c80319c", "")
            .await
            .map_err(|e| e.to_string())?;
        let json: Value = serde_json::from_str(&body(&text)).map_err(|e| format!("{e}: {text}"))?;
        let spans = json["data"][0]["spans"].as_array().cloned().unwrap_or_default();
        if spans.len() == 2 { Ok(spans) } else { Err(format!("{} spans", spans.len())) }
    })
    .await;
    let kind = |kind: &str| {
        let has = |s: &&Value| {
            s["tags"].as_array().unwrap().iter().any(|t| t["key"] == "span.kind" && t["value"] == kind)
        };
        spans.iter().find(has).unwrap_or_else(|| panic!("no {kind} span in {spans:?}"))
    };
    assert_eq!(kind("client")["references"][0]["spanID"], "b7ad6b7169203331");
    assert_eq!(kind("server")["references"][0]["spanID"], kind("client")["spanID"]);

    let metrics = web.page("/stats/prometheus").await;
    let line =
        metrics.lines().find(|l| l.starts_with("istio_requests_total") && l.contains("reporter=\"source\""));
    let line = line.expect("the request is counted");
    assert!(
        line.contains("destination_workload=\"catalog-v1\"") && line.contains("response_code=\"200\""),
        "{line}"
    );
    let log = eventually("the access log", || async {
        std::fs::read_to_string(mesh.path("web-v1.access"))
            .map_err(|e| e.to_string())
            .and_then(|log| if log.contains("/item/7") { Ok(log) } else { Err(log) })
    })
    .await;
    assert!(log.contains("\"GET /item/7?x=1 HTTP/1.1\" 200") && log.trim_end().ends_with("marked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard_and_halves_close_alone() {
    let mesh = Mesh::start(BINARY).await;
    let spec = Spec { service: "stock", version: "v1", host: 12, protocol: Protocol::Tcp, calls: &[] };
    let stock = mesh.workload(&spec).await;
    let web = mesh.workload(&web(&["stock:8080"])).await;
    greeter(stock.app).await;
    mesh.apply(STRICT).await;
    let mut stream = TcpStream::connect(web.outbound[0]).await.unwrap();
    let mut greeting = [0; 6];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello\n");
    stream.write_all(&vec![b'x'; 300_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert_eq!(back.len(), 300_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rfc_9112_leaves_ambiguous_is_refused_and_the_next_request_is_served() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(catalog.app, "catalog-v1").await;
    for bad in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "\u{16}\u{3}garbage\r\n\r\n",
    ] {
        let (status, text) = exchange(web.outbound[0], bad).await.unwrap();
        assert_eq!(status, 400, "{bad:?}: {text}");
    }
    assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200);
}
