//! A real Jaeger receives the sidecars' spans, and its query API gives back the whole trace of a request.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use outrigger_control::instance::Protocol;
use outrigger_tests::app::get;
use outrigger_tests::jaeger::{Jaeger, Places};
use outrigger_tests::mesh::{Mesh, Spec};
use outrigger_tests::require;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::BINARY;
use crate::thin_thread::web;

const TRACE: &str = "1af7651916cd43dd8448eb211c80319d";
const ROOT: &str = "b7ad6b7169203331";

const RETRIED: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews}}]
    retries: {attempts: 2, retryOn: 5xx}
";

/// An application that answers 503 so many times, and else calls others in turn, passing `traceparent` on.
async fn app(listen: SocketAddr, calls: Vec<SocketAddr>, mut failures: u32) {
    let listener = TcpListener::bind(listen).await.expect("the application's address is free");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let (mut line, mut parent) = (String::new(), String::new());
            while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
                if line.to_ascii_lowercase().starts_with("traceparent:") {
                    parent.clone_from(&line);
                }
                line.clear();
            }
            let mut status = "200 OK";
            if failures > 0 {
                failures -= 1;
                status = "503 Service Unavailable";
            } else {
                for call in &calls {
                    if !get(*call, "/", &parent).await.is_ok_and(|(code, _)| code == 200) {
                        status = "500 Internal Server Error";
                    }
                }
            }
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.get_mut().write_all(answer.as_bytes()).await;
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn jaeger_gives_back_every_hop_with_its_parent_and_its_attempts() {
    let Some(program) = require::tool("jaeger") else { return };
    // The sidecars of this harness export to the address that the control plane's own store leaves free here.
    let mesh = Mesh::start_with(BINARY, json!({ "otlpAddress": "127.0.0.1:0" })).await;
    let places = Places {
        otlp: mesh.address(1, 4317),
        query: mesh.address(1, 16696),
        query_grpc: mesh.address(1, 16695),
    };
    let jaeger = Jaeger::start(&program, &mesh.path(""), places).await;

    let spec = |service, host, calls| Spec { service, version: "v1", host, protocol: Protocol::Http, calls };
    let pricing = mesh.workload(&spec("pricing", 13, &[])).await;
    let reviews = mesh.workload(&spec("reviews", 12, &[])).await;
    let catalog = mesh.workload(&spec("catalog", 11, &["pricing:8080"])).await;
    let web = mesh.workload(&web(&["catalog:8080", "reviews:8080"])).await;
    app(pricing.app, Vec::new(), 0).await;
    app(reviews.app, Vec::new(), 1).await;
    app(catalog.app, catalog.outbound.clone(), 0).await;
    app(web.app, web.outbound.clone(), 0).await;
    mesh.apply(RETRIED).await;

    let headers = format!("traceparent: 00-{TRACE}-{ROOT}-01\r\n");
    let (status, text) = get(web.inbound, "/", &headers).await.unwrap();
    assert_eq!(status, 200, "{text}");

    let trace = jaeger.trace(TRACE, 9).await;
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    let (mut hops, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    let spans = trace["spans"].as_array().unwrap();
    for span in spans {
        let process = &trace["processes"][span["processID"].as_str().unwrap()];
        let service = process["serviceName"].as_str().unwrap().split(['.', '-']).next().unwrap();
        let tags = span["tags"].as_array().unwrap();
        let kind = tags.iter().find(|t| t["key"] == "span.kind").unwrap()["value"].as_str().unwrap();
        hops.insert(span["spanID"].as_str().unwrap(), service);
        kinds.insert(span["spanID"].as_str().unwrap(), kind);
    }
    for span in spans {
        let (id, parent) = (&span["spanID"], &span["references"][0]["spanID"]);
        let (id, parent) = (id.as_str().unwrap(), parent.as_str().unwrap());
        let above = if parent == ROOT {
            "root".to_owned()
        } else {
            format!("{} {}", hops.get(parent).unwrap_or(&"nobody"), kinds.get(parent).unwrap_or(&"none"))
        };
        *found.entry(format!("{} {} under {above}", hops[id], kinds[id])).or_default() += 1;
    }
    let resent = |span: &&serde_json::Value| {
        span["tags"].as_array().unwrap().iter().any(|tag| tag["key"] == "http.request.resend_count")
    };
    assert_eq!(spans.iter().filter(resent).count(), 1, "the second attempt says that it is one");
    let wanted = [
        ("catalog client under catalog server", 1),
        ("catalog server under web client", 1),
        ("pricing server under catalog client", 1),
        ("reviews server under web client", 2), // one per attempt
        ("web client under web server", 3),
        ("web server under root", 1),
    ];
    assert_eq!(found, wanted.map(|(hop, count)| (hop.to_owned(), count)).into(), "{trace}");
}
