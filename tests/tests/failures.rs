//! Failures of applications: what a timeout answers, and that what was sent is not sent again by default.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use outrigger_tests::app::{exchange, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::BINARY;
use crate::thin_thread::{catalog, web};

/// Counts connections that brought bytes; answers none of them, and closes them at once or never.
async fn silent(listen: SocketAddr, close: bool) -> Arc<AtomicU32> {
    let asked = Arc::new(AtomicU32::new(0));
    let listener = TcpListener::bind(listen).await.expect("the application's address is free");
    let count = asked.clone();
    tokio::spawn(async move {
        let mut kept: Vec<TcpStream> = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            if stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                count.fetch_add(1, SeqCst);
            }
            if !close {
                kept.push(stream);
            }
        }
    });
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_the_application_has_seen_is_never_repeated() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let asked = silent(catalog.app, true).await;
    let post = "POST /buy HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
    let (status, text) = exchange(web.outbound[0], post).await.unwrap();
    assert!(status == 503 || status == 502, "{text}");
    assert!(text.contains("x-outrigger-error: "), "{text}");
    assert_eq!(asked.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_is_answered_504_and_names_itself() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    silent(catalog.app, false).await;
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - route: [{destination: {host: catalog}}]
    timeout: 0.3s
",
    )
    .await;
    let (status, text) = get(web.outbound[0], "/", "").await.unwrap();
    assert!(status == 504 && text.contains("x-outrigger-error: "), "{text}");
    assert!(text.contains("reason=upstream_timeout"), "{text}");
    eventually("the access log's line with its flag", || async {
        let log = std::fs::read_to_string(mesh.path("web-v1.access")).map_err(|e| e.to_string())?;
        if log.contains(" 504 UT ") { Ok(()) } else { Err(log) }
    })
    .await;
}
