//! What the rules hold back, through two sidecars: exact limits, ejection and return, faults, denials, modes of mTLS, and how each
//! is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::time::Duration;

use outrigger_control::instance::{Protocol, State};
use outrigger_tests::app::{exchange, get, greeter};
use outrigger_tests::mesh::{Mesh, Spec};
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::BINARY;
use crate::thin_thread::{STRICT, catalog, web};

/// An application that answers with this status once it is let to.
pub struct Gate {
    pub status: AtomicU16,
    pub open: Semaphore,
    name: &'static str,
}

impl Gate {
    pub async fn serve(listen: SocketAddr, name: &'static str, status: u16, open: usize) -> Arc<Self> {
        let gate = Arc::new(Self { status: status.into(), open: Semaphore::new(open), name });
        let listener = TcpListener::bind(listen).await.unwrap();
        let shared = gate.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(shared.clone().talk(stream));
            }
        });
        gate
    }

    async fn talk(self: Arc<Self>, mut stream: TcpStream) {
        let mut head = Vec::new();
        loop {
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            head.clear();
            self.open.acquire().await.unwrap().forget();
            let (status, name) = (self.status.load(SeqCst), self.name);
            let answer = format!("HTTP/1.1 {status} X\r\nx-app: {name}\r\nContent-Length: 0\r\n\r\n");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

pub fn plenty() -> usize {
    Semaphore::MAX_PERMITS / 2
}

pub async fn log_has(mesh: &Mesh, workload: &str, what: &str) {
    eventually(&format!("{workload}'s access log has {what:?}"), || async {
        let log = std::fs::read_to_string(mesh.path(&format!("{workload}.access"))).unwrap_or_default();
        if log.contains(what) { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_beyond_a_limit_is_refused_with_limit_value_and_scope() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let gate = Gate::serve(catalog.app, "v1", 200, 0).await;
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 3}}}}
",
    )
    .await;
    let held: Vec<_> = (0..3).map(|_| tokio::spawn(get(web.outbound[0], "/", ""))).collect();
    eventually("three requests are held", || async {
        let page = web.page("/stats/prometheus").await;
        let active = page
            .lines()
            .find(|line| line.starts_with("envoy_cluster_upstream_cx_active") && line.contains("catalog"));
        if active.is_some_and(|line| line.ends_with(" 3")) { Ok(()) } else { Err(format!("{active:?}")) }
    })
    .await;
    let (status, text) = get(web.outbound[0], "/", "").await.unwrap();
    assert_eq!(status, 503, "{text}");
    for part in
        ["x-outrigger-error: ", "reason=overflow", "limit=max_requests:3", "DestinationRule shop/catalog"]
    {
        assert!(text.contains(part), "no {part}: {text}");
    }
    log_has(&mesh, "web-v1", " 503 UO ").await;
    gate.open.add_permits(4);
    for held in held {
        assert_eq!(held.await.unwrap().unwrap().0, 200, "those within the limit are served");
    }
    assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200, "and so is the next one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_endpoint_is_ejected_and_comes_back_and_the_last_one_never_goes() {
    let mesh = Mesh::start(BINARY).await;
    let (first, second) = (mesh.workload(&catalog("v1", 11)).await, mesh.workload(&catalog("v2", 12)).await);
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let bad = Gate::serve(first.app, "bad", 500, plenty()).await;
    let good = Gate::serve(second.app, "good", 200, plenty()).await;
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 3, interval: 0.2s, baseEjectionTime: 5s, maxEjectionPercent: 100}
",
    )
    .await;
    let ask = || async { get(web.outbound[0], "/", "").await.unwrap().0 };
    let mut failed = 0;
    for _ in 0..20 {
        failed += u32::from(ask().await == 500);
    }
    assert_eq!(failed, 3, "the third in a row ejects it");
    bad.status.store(200, SeqCst);
    eventually("it serves again", || async {
        let (_, text) = get(web.outbound[0], "/", "").await.map_err(|error| error.to_string())?;
        if text.contains("x-app: bad") { Ok(()) } else { Err(text) }
    })
    .await;
    bad.status.store(500, SeqCst);
    good.status.store(500, SeqCst);
    for _ in 0..30 {
        assert_eq!(ask().await, 500, "the application's own answer, not one that nobody is left");
    }
}

const POLICIES: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/admin*]}}]}, {to: [{operation: {methods: [DELETE]}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - match: [{uri: {prefix: /teapot}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: catalog}}]
  - match: [{uri: {prefix: /slow}}]
    fault: {delay: {fixedDelay: 0.4s, percentage: {value: 100}}}
    route: [{destination: {host: catalog}}]
  - route: [{destination: {host: catalog}}]
";

#[tokio::test(flavor = "multi_thread")]
async fn denials_and_faults_say_that_they_are() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    Gate::serve(catalog.app, "v1", 200, plenty()).await;
    mesh.apply(STRICT).await;
    mesh.apply(POLICIES).await;
    let entry = web.outbound[0];
    assert_eq!(get(entry, "/", "").await.unwrap().0, 200);
    for (what, request) in [
        ("path", "GET /admin/x HTTP/1.1\r\nHost: catalog\r\nConnection: close\r\n\r\n"),
        ("method", "DELETE /x HTTP/1.1\r\nHost: catalog\r\nConnection: close\r\n\r\n"),
    ] {
        let (status, text) = exchange(entry, request).await.unwrap();
        assert_eq!(status, 403, "{what}: {text}");
        assert!(text.contains("hop=catalog-v1") && text.contains("no-admin"), "{what}: {text}");
    }
    log_has(&mesh, "catalog-v1", "rbac_access_denied").await;
    let (status, text) = get(entry, "/teapot", "").await.unwrap();
    assert!(status == 418 && text.contains("hop=web-v1"), "{text}");
    log_has(&mesh, "web-v1", " 418 FI ").await;
    let since = tokio::time::Instant::now();
    assert_eq!(get(entry, "/slow", "").await.unwrap().0, 200);
    assert!(since.elapsed() >= Duration::from_millis(400), "{:?}", since.elapsed());
    log_has(&mesh, "web-v1", " 200 DI ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_tcp_client_is_closed_and_an_allowed_one_is_served() {
    let mesh = Mesh::start(BINARY).await;
    let spec = Spec { service: "stock", version: "v1", host: 12, protocol: Protocol::Tcp, calls: &[] };
    let stock = mesh.workload(&spec).await;
    let web = mesh.workload(&web(&["stock:8080"])).await;
    greeter(stock.app).await;
    mesh.apply(STRICT).await;
    let policy = |caller: &str| {
        format!(
            "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: stock, namespace: shop}}
spec: {{action: ALLOW, rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/{caller}]}}}}]}}]}}
"
        )
    };
    let heard = || async {
        let mut stream = TcpStream::connect(web.outbound[0]).await.unwrap();
        let mut bytes = [0; 6];
        let read = stream.read(&mut bytes).await.unwrap_or(0);
        bytes[..read].to_vec()
    };
    mesh.apply(&policy("nobody")).await;
    assert_eq!(heard().await, b"", "closed without a byte");
    log_has(&mesh, "stock-v1", "rbac_access_denied").await;
    mesh.apply(&policy("web")).await;
    assert_eq!(heard().await, b"hello\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn permissive_takes_plain_text_and_mtls_on_one_port_and_strict_only_mtls() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    Gate::serve(catalog.app, "v1", 200, plenty()).await;
    let page = || async { catalog.page("/stats/prometheus").await };
    let counted = |page: &str, policy: &str| {
        let wanted = format!("connection_security_policy=\"{policy}\"");
        page.lines().any(|line| line.starts_with("istio_requests_total") && line.contains(&wanted))
    };
    assert_eq!(get(catalog.inbound, "/", "").await.unwrap().0, 200, "plain text");
    assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200, "mTLS");
    let text = page().await;
    assert!(counted(&text, "none") && counted(&text, "mutual_tls"), "{text}");
    mesh.apply(STRICT).await;
    assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200, "mTLS");
    assert!(get(catalog.inbound, "/", "").await.is_err(), "plain text is refused");
    log_has(&mesh, "catalog-v1", "requires mTLS (STRICT)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_instances_are_in_maintenance_is_answered_uh() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    Gate::serve(catalog.app, "v1", 200, plenty()).await;
    assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200);
    mesh.client.set_state("catalog-v1", State::Maintenance).await.unwrap();
    let text = eventually("nobody is left", || async {
        let (status, text) = get(web.outbound[0], "/", "").await.map_err(|error| error.to_string())?;
        if status == 503 { Ok(text) } else { Err(text) }
    })
    .await;
    assert!(text.contains("x-outrigger-error: ") && text.contains("outbound|8080||catalog"), "{text}");
    log_has(&mesh, "web-v1", " 503 UH ").await;
    mesh.client.set_state("catalog-v1", State::Running).await.unwrap();
    eventually("it serves again", || async {
        let (status, text) = get(web.outbound[0], "/", "").await.map_err(|error| error.to_string())?;
        if status == 200 { Ok(()) } else { Err(text) }
    })
    .await;
}
