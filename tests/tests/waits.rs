//! What answers ask for and how long streams last, through two sidecars and by a real Envoy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use outrigger_tests::app::exchange;
use outrigger_tests::http::{Body, whole};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use tokio::net::TcpListener;

use crate::BINARY;
use crate::foreign::start_envoy;
use crate::thin_thread::{STRICT, catalog, web};

/// Asks the first of each two to come again in a second; never answers where the path is `/never`.
async fn serve(listen: SocketAddr, seen: &Arc<AtomicUsize>) {
    let listener = TcpListener::bind(listen).await.unwrap();
    let seen = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, seen.clone()));
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

async fn answer(request: Request<Incoming>, seen: Arc<AtomicUsize>) -> Result<Response<Body>, hyper::Error> {
    let mut response = Response::new(whole(Bytes::new()));
    match request.uri().path() {
        "/never" => std::future::pending().await,
        "/busy" if seen.fetch_add(1, SeqCst).is_multiple_of(2) => {
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            response.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
        }
        _ => {}
    }
    Ok(response)
}

const PAGE: &str = "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: catalog, namespace: shop}
spec:
  service: catalog
  retry: {attempts: 2, retryOn: [429], rateLimitedBackoff: {maxInterval: 5s}}
  streams: {maxDuration: 4s}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_comes_when_the_application_asks_for_it_and_no_stream_lasts_longer_than_it_may() {
    let Some(envoy) = require::tool("envoy") else { return };
    let mesh = Mesh::start(BINARY).await;
    let seen = Arc::default();
    let app = mesh.workload(&catalog("v1", 11)).await;
    serve(app.app, &seen).await;
    mesh.apply(STRICT).await;
    mesh.apply(PAGE).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let _envoy = start_envoy(&mesh, &envoy, "DELTA_GRPC").await;
    let through_envoy = SocketAddr::new(mesh.address(30, 0).ip(), 8080);
    let request =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: catalog.shop:8080\r\nConnection: close\r\n\r\n");
    eventually("a request through Envoy", || async {
        match exchange(through_envoy, &request("/")).await {
            Ok((200, _)) => Ok(()),
            Ok((_, text)) => Err(text),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    for entry in [web.outbound[0], through_envoy] {
        let began = Instant::now();
        let (status, text) = exchange(entry, &request("/busy")).await.unwrap();
        let took = began.elapsed();
        assert_eq!(status, 200, "{text}");
        // Never less than a second, and half as much more at most, beside what the way takes.
        assert!(took >= Duration::from_secs(1), "{took:?}");
        let began = Instant::now();
        let (status, text) = exchange(entry, &request("/never")).await.unwrap();
        let took = began.elapsed();
        assert_eq!(status, 504, "{text}");
        assert!(took >= Duration::from_millis(3900), "{took:?}");
        assert!(text.ends_with("downstream duration timeout"), "{text}");
    }
    assert_eq!(seen.load(SeqCst), 4, "one retry each");
    let (_, text) = exchange(web.outbound[0], &request("/never")).await.unwrap();
    assert!(text.contains("stage=forward; reason=stream_duration"), "{text}");
    let numbers = web.page("/stats/prometheus").await;
    let waited = "envoy_cluster_upstream_rq_retry_backoff_ratelimited{envoy_cluster_name=\"outbound|8080||catalog.shop.svc.cluster.local\"} 1";
    assert!(numbers.contains(waited), "{numbers}");
}
