//! Each limit exactly, for 500 requests at once through a sidecar with two workers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use http::{Request, StatusCode};
use outrigger_control::instance::Instance;
use outrigger_tests::app::get;
use outrigger_tests::http::{Body, Client};
use outrigger_tests::mesh::{Mesh, PORT, Sidecar};
use outrigger_tests::wait::eventually;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::BINARY;
use crate::thin_thread::web;

const REQUESTS: usize = 500;

/// An application without a sidecar, so that it sees the very connections of its caller.
struct App {
    connections: AtomicUsize,
    /// Requests at a time, at most so far.
    peak: AtomicUsize,
    /// Requests that wait for leave.
    waiting: AtomicUsize,
    leave: Semaphore,
}

impl App {
    async fn serve(listen: SocketAddr) -> Arc<Self> {
        let none = AtomicUsize::default;
        let app =
            Arc::new(Self { connections: none(), peak: none(), waiting: none(), leave: Semaphore::new(0) });
        let (listener, shared) = (TcpListener::bind(listen).await.unwrap(), app.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let app = shared.clone();
                tokio::spawn(async move {
                    app.connections.fetch_add(1, SeqCst);
                    let _ = app.talk(stream).await;
                    app.connections.fetch_sub(1, SeqCst);
                });
            }
        });
        app
    }

    /// `/fails` is answered with 503 the first time; all else waits for leave.
    async fn talk(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        loop {
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let text = String::from_utf8_lossy(&head);
            let fails =
                text.starts_with("GET /fails") && !text.to_lowercase().contains("x-envoy-attempt-count: 2");
            head.clear();
            if !fails {
                self.peak.fetch_max(self.waiting.fetch_add(1, SeqCst) + 1, SeqCst);
                self.leave.acquire().await.unwrap().forget();
                self.waiting.fetch_sub(1, SeqCst);
            }
            let status = if fails { 503 } else { 200 };
            stream.write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").as_bytes()).await?;
        }
    }
}

/// An application of HTTP/2: of each of its connections the requests at a time, at most. All wait for leave.
struct Streams {
    peaks: Mutex<Vec<usize>>,
    waiting: AtomicUsize,
    leave: Semaphore,
}

impl Streams {
    async fn serve(listen: SocketAddr) -> Arc<Self> {
        let app = Arc::new(Self {
            peaks: Mutex::default(),
            waiting: AtomicUsize::default(),
            leave: Semaphore::new(0),
        });
        let (listener, shared) = (TcpListener::bind(listen).await.unwrap(), app.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(shared.clone().talk(stream));
            }
        });
        app
    }

    async fn talk(self: Arc<Self>, stream: TcpStream) {
        let number = {
            let mut peaks = self.peaks.lock();
            peaks.push(0);
            peaks.len() - 1
        };
        let open = Arc::new(AtomicUsize::default());
        let service = hyper::service::service_fn(|_| {
            let (app, open) = (self.clone(), open.clone());
            async move {
                let now = open.fetch_add(1, SeqCst) + 1;
                {
                    let mut peaks = app.peaks.lock();
                    peaks[number] = peaks[number].max(now);
                }
                app.waiting.fetch_add(1, SeqCst);
                app.leave.acquire().await.unwrap().forget();
                app.waiting.fetch_sub(1, SeqCst);
                open.fetch_sub(1, SeqCst);
                Ok::<_, std::convert::Infallible>(hyper::Response::new(String::new()))
            }
        });
        let executor = hyper_util::rt::TokioExecutor::new();
        let server = hyper::server::conn::http2::Builder::new(executor);
        let _ = server.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
    }
}

/// Two workers, each with connections of its own, and none of these has more streams than allowed.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_each_connection_are_exact_for_five_hundred_requests_at_once() {
    let mut mesh = Mesh::start(BINARY).await;
    mesh.bootstrap = json!({ "workers": 2 });
    let address = mesh.address(11, PORT);
    let app = Streams::serve(address).await;
    mesh.client.register(&stock(address)).await.unwrap();
    let web = mesh.workload(&web(&["stock:8080"])).await;
    let outbound = web.outbound[0];
    mesh.apply(FEW_STREAMS).await;
    let asked: Vec<_> =
        (0..REQUESTS).map(|_| tokio::spawn(async move { get(outbound, "/", "").await.unwrap() })).collect();
    eventually("all are at the application", || async {
        let waiting = app.waiting.load(SeqCst);
        if waiting == REQUESTS { Ok(()) } else { Err(waiting) }
    })
    .await;
    let peaks = app.peaks.lock().clone();
    assert!(peaks.iter().all(|peak| (1..=3).contains(peak)), "{peaks:?}");
    app.leave.add_permits(REQUESTS);
    for asked in asked {
        assert_eq!(asked.await.unwrap().0, 200);
    }
}

const FEW_STREAMS: &str = "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: stock, namespace: shop}
spec: {service: stock, connections: {h2Upgrade: true, streamsPerConnection: 3}}
";

/// Without a sidecar, so that it is counted what ours sends.
fn stock(address: SocketAddr) -> Instance {
    serde_json::from_value(json!({
        "id": "stock-1", "service": "stock", "namespace": "shop", "addresses": [address.ip()],
        "ports": [{ "number": PORT, "protocol": "http" }], "sidecar": false,
    }))
    .unwrap()
}

struct Rig {
    mesh: Mesh,
    web: Sidecar,
    app: Arc<App>,
}

impl Rig {
    async fn start() -> Self {
        let mut mesh = Mesh::start(BINARY).await;
        mesh.bootstrap = json!({ "workers": 2 });
        let address = mesh.address(11, PORT);
        let app = App::serve(address).await;
        mesh.client.register(&stock(address)).await.unwrap();
        let web = mesh.workload(&web(&["stock:8080"])).await;
        Self { mesh, web, app }
    }

    async fn limit(&self, pool: &str) {
        self.mesh
            .apply(&format!(
                "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: stock, namespace: shop}}
spec: {{host: stock, trafficPolicy: {{connectionPool: {pool}}}}}
"
            ))
            .await;
    }

    /// Asks all at once, waits until so many are at the application and all others have been refused or wait as well, lets them go,
    /// and says how many got 200; the others got this.
    async fn ask(&self, path: &'static str, at_once: usize, others: &str) -> usize {
        let outbound = self.web.outbound[0];
        let asked: Vec<_> = (0..REQUESTS)
            .map(|_| tokio::spawn(async move { get(outbound, path, "").await.unwrap() }))
            .collect();
        let app = &self.app;
        eventually("the application has as many as it may", || async {
            let waiting = app.waiting.load(SeqCst);
            let refused = asked.iter().filter(|asked| asked.is_finished()).count();
            let all = others.is_empty() || refused + at_once >= REQUESTS;
            if waiting >= at_once.min(7) && all { Ok(()) } else { Err(format!("{waiting}, {refused}")) }
        })
        .await;
        app.leave.add_permits(REQUESTS);
        let mut served = 0;
        for asked in asked {
            let (status, text) = asked.await.unwrap();
            match status {
                200 => served += 1,
                status => assert!(status == 503 && !others.is_empty() && text.contains(others), "{text}"),
            }
        }
        app.leave.forget_permits(2 * REQUESTS);
        served
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_is_exact_for_five_hundred_requests_at_once() {
    let rig = Rig::start().await;
    rig.limit("{http: {http2MaxRequests: 20}}").await;
    assert_eq!(rig.ask("/", 20, "limit=max_requests:20").await, 20);

    // All wait for their turn on seven connections.
    rig.limit("{tcp: {maxConnections: 7}}").await;
    // Those of before may still be there.
    eventually("the connections of before are closed", || async {
        let open = rig.app.connections.load(SeqCst);
        if open <= 7 { Ok(()) } else { Err(open) }
    })
    .await;
    rig.app.peak.store(0, SeqCst);
    assert_eq!(rig.ask("/", 7, "").await, REQUESTS);
    assert_eq!(rig.app.peak.load(SeqCst), 7, "requests at a time, each on a connection");

    rig.limit("{tcp: {maxConnections: 7}, http: {http1MaxPendingRequests: 40}}").await;
    assert_eq!(rig.ask("/", 47, "limit=max_pending:40").await, 47);

    rig.mesh.apply(RETRIED).await;
    rig.limit("{http: {maxRetries: 13}}").await;
    assert_eq!(rig.ask("/fails", 13, "503").await, 13);
    let page = rig.web.page("/stats/prometheus").await;
    let over = page
        .lines()
        .find(|line| line.starts_with("envoy_cluster_upstream_rq_retry_overflow") && line.contains("stock"));
    assert!(over.is_some_and(|line| line.ends_with(" 487")), "{over:?}");
}

/// The same limit where requests are streams: of clients on ten connections, and of two connections to the application, one of each
/// worker.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_exact_for_five_hundred_streams_at_once() {
    let mut mesh = Mesh::start(BINARY).await;
    mesh.bootstrap = json!({ "workers": 2 });
    let address = mesh.address(11, PORT);
    let app = Streams::serve(address).await;
    mesh.client.register(&stock(address)).await.unwrap();
    let web = mesh.workload(&web(&["stock:8080"])).await;
    mesh.apply(FEW_REQUESTS).await;
    let mut asked = Vec::new();
    for _ in 0..10 {
        let Client::H2(client) = Client::h2(web.outbound[0]).await else { unreachable!("it is HTTP/2") };
        for _ in 0..REQUESTS / 10 {
            let mut client = Client::H2(client.clone());
            asked.push(tokio::spawn(async move {
                let request = Request::get("http://stock:8080/").body(Body::default()).unwrap();
                let answer = client.send(request).await.unwrap();
                let error = answer.headers().get("x-outrigger-error").cloned();
                (answer.status(), error.map(|text| text.to_str().unwrap().to_owned()).unwrap_or_default())
            }));
        }
    }
    eventually("the application has as many as it may, and the others are refused", || async {
        let waiting = app.waiting.load(SeqCst);
        let refused = asked.iter().filter(|asked| asked.is_finished()).count();
        if (waiting, refused) == (20, REQUESTS - 20) { Ok(()) } else { Err(format!("{waiting}, {refused}")) }
    })
    .await;
    app.leave.add_permits(REQUESTS);
    let mut served = 0;
    for asked in asked {
        match asked.await.unwrap() {
            (StatusCode::OK, _) => served += 1,
            (status, error) => {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{error}");
                assert!(error.contains("limit=max_requests:20"), "{error}");
            }
        }
    }
    assert_eq!(served, 20);
    assert_eq!(app.peaks.lock().iter().sum::<usize>(), 20, "never more, over all connections");
}

const FEW_REQUESTS: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: stock, namespace: shop}
spec: {host: stock, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 20, h2UpgradePolicy: UPGRADE}}}}
";

/// A budget is a part of the requests under way: while from 480 to 500 are, two and a half percent of them are twelve.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_budget_is_exact_for_five_hundred_requests_at_once() {
    let rig = Rig::start().await;
    rig.mesh.apply(RETRIED).await;
    rig.mesh.apply(BUDGET).await;
    let outbound = rig.web.outbound[0];
    let ask = |path: &'static str, count: usize| -> Vec<_> {
        (0..count).map(|_| tokio::spawn(async move { get(outbound, path, "").await.unwrap().0 })).collect()
    };
    let held = ask("/", 480);
    let waiting = |count: usize| {
        let app = &rig.app;
        eventually("so many wait at the application", move || async move {
            let waiting = app.waiting.load(SeqCst);
            if waiting == count { Ok(()) } else { Err(waiting) }
        })
    };
    waiting(480).await;
    let failing = ask("/fails", 20);
    waiting(480 + 12).await;
    eventually("the others have failed", || async {
        let failed = failing.iter().filter(|asked| asked.is_finished()).count();
        if failed == 8 { Ok(()) } else { Err(failed) }
    })
    .await;
    rig.app.leave.add_permits(REQUESTS);
    for (asked, wanted) in [(held, 480), (failing, 12)] {
        let mut served = 0;
        for asked in asked {
            match asked.await.unwrap() {
                200 => served += 1,
                status => assert_eq!(status, 503),
            }
        }
        assert_eq!(served, wanted);
    }
    let page = rig.web.page("/stats/prometheus").await;
    let over = page
        .lines()
        .find(|line| line.starts_with("envoy_cluster_upstream_rq_retry_overflow") && line.contains("stock"));
    assert!(over.is_some_and(|line| line.ends_with(" 8")), "{over:?}");
}

const BUDGET: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: stock, namespace: shop}
spec: {host: stock, trafficPolicy: {retryBudget: {percent: 2.5, minRetryConcurrency: 1}}}
";

const RETRIED: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: stock, namespace: shop}
spec:
  hosts: [stock]
  http: [{route: [{destination: {host: stock}}], retries: {attempts: 1, retryOn: 5xx, backoff: 1ms}}]
";
