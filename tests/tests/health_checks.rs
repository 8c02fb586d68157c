//! Active health checks through two sidecars, and by a real Envoy: who is not well gets nothing until it is, and nobody's request fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU16, AtomicUsize};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use outrigger_control::instance::Protocol;
use outrigger_tests::app::get;
use outrigger_tests::http::{Body, Client, pieces, whole};
use outrigger_tests::mesh::{Mesh, Sidecar, Spec};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::BINARY;
use crate::foreign::start_envoy;
use crate::thin_thread::{STRICT, catalog, web};

/// An application that serves everything, and says of its health what it is told to say.
pub struct App {
    name: &'static str,
    /// Of `/healthz`; below 300 the health service of gRPC says SERVING.
    pub health: AtomicU16,
    served: AtomicUsize,
    /// The heads of checks, each line of one.
    asked: Mutex<Vec<String>>,
}

impl App {
    pub async fn serve(listen: SocketAddr, name: &'static str) -> Arc<Self> {
        let (health, served, asked) = (200.into(), 0.into(), Mutex::default());
        let app = Arc::new(Self { name, health, served, asked });
        let listener = TcpListener::bind(listen).await.unwrap();
        let shared = app.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let app = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        let response = app.answer(&request);
                        async { Ok::<_, hyper::Error>(response) }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        app
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let well = self.health.load(SeqCst);
        let path = request.uri().path();
        let mut response = match path {
            "/healthz" => {
                let mut response = Response::new(whole(Bytes::new()));
                *response.status_mut() = http::StatusCode::from_u16(well).unwrap();
                response
            }
            "/grpc.health.v1.Health/Check" => grpc(&[0, 0, 0, 0, 2, 8, if well < 300 { 1 } else { 2 }]),
            _ => {
                self.served.fetch_add(1, SeqCst);
                let mut response = grpc(&[0; 5]);
                response.headers_mut().insert("x-app-name", HeaderValue::from_static(self.name));
                return response;
            }
        };
        let agent = request.headers().get("user-agent").and_then(|agent| agent.to_str().ok());
        let host = request.headers().get("host").and_then(|host| host.to_str().ok());
        let host = host.or(request.uri().authority().map(|authority| authority.as_str()));
        self.asked.lock().push(format!(
            "{} {path} {} {}",
            request.method(),
            host.unwrap_or_default(),
            agent.unwrap_or_default()
        ));
        response.headers_mut().insert("x-app-name", HeaderValue::from_static(self.name));
        response
    }
}

fn grpc(message: &[u8]) -> Response<Body> {
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let mut response = Response::new(pieces(&Bytes::copy_from_slice(message), 64, Some(trailers)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn page(check: &str) -> String {
    format!(
        "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {{name: catalog, namespace: shop}}
spec:
  service: catalog
  loadBalancing: {{policy: roundRobin}}
  healthCheck: {{{check}, interval: 100ms, timeout: 2s, unhealthyThreshold: 2, healthyThreshold: 2, noTrafficInterval: 100ms}}
"
    )
}

/// Who answers ten requests in a row; none of them may fail.
async fn who(entry: SocketAddr) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..10 {
        let (status, text) = get(entry, "/", "").await.unwrap();
        assert_eq!(status, 200, "{text}");
        names.push(app_of(&text));
    }
    names.sort();
    names.dedup();
    names
}

fn app_of(text: &str) -> String {
    let line = text.lines().find(|line| line.to_ascii_lowercase().starts_with("x-app-name: "));
    line.map_or("nobody", |line| &line["x-app-name: ".len()..]).to_owned()
}

async fn only(entry: SocketAddr, wanted: &[&str]) {
    eventually(&format!("requests go to {wanted:?}"), || async {
        let names = who(entry).await;
        if names == wanted { Ok(()) } else { Err(format!("they go to {names:?}")) }
    })
    .await;
}

/// Calls until it is aborted, and counts what fails.
fn load(entry: SocketAddr) -> (Arc<[AtomicUsize; 2]>, AbortHandle) {
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let counted = counts.clone();
    let task = tokio::spawn(async move {
        loop {
            let good = matches!(get(entry, "/", "").await, Ok((200, _)));
            counted[usize::from(!good)].fetch_add(1, SeqCst);
        }
    });
    (counts, task.abort_handle())
}

fn counted(page: &str, name: &str) -> u64 {
    let label = "{envoy_cluster_name=\"outbound|8080||catalog.shop.svc.cluster.local\"} ";
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(label));
    line.unwrap_or_else(|| panic!("no {name}: {page}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_well_gets_nothing_until_it_is_and_no_request_fails() {
    let mesh = Mesh::start(BINARY).await;
    let (one, two) = (mesh.workload(&catalog("v1", 11)).await, mesh.workload(&catalog("v2", 12)).await);
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let (v1, _v2) = (App::serve(one.app, "v1").await, App::serve(two.app, "v2").await);
    mesh.apply(STRICT).await;
    mesh.apply(&page("http: {path: '/healthz'}")).await;
    let entry = web.outbound[0];
    only(entry, &["v1", "v2"]).await;
    let (counts, load) = load(entry);
    eventually("a check", || async { v1.asked.lock().first().cloned().ok_or("nobody asks") }).await;
    let asked = v1.asked.lock().first().cloned().unwrap();
    assert_eq!(asked, "GET /healthz catalog.shop.svc.cluster.local:8080 Outrigger/HC");

    v1.health.store(503, SeqCst);
    only(entry, &["v2"]).await;
    let before = v1.served.load(SeqCst);
    let clusters = web.page("/clusters").await;
    for part in ["unhealthy", "GET /healthz was answered 503"] {
        assert!(clusters.contains(part), "no {part}: {clusters}");
    }
    let numbers = web.page("/stats/prometheus").await;
    assert_eq!(counted(&numbers, "envoy_cluster_health_check_healthy"), 1);
    assert_eq!(counted(&numbers, "envoy_cluster_membership_healthy"), 1);
    assert!(counted(&numbers, "envoy_cluster_health_check_failure") >= 2);
    assert_eq!(counted(&numbers, "envoy_cluster_health_check_network_failure"), 0);
    let log = web.log();
    let line = "endpoint is unhealthy by its checks";
    assert_eq!(log.lines().filter(|log| log.contains(line)).count(), 1, "one line: {log}");
    // A push that leaves it as it was leaves it away.
    mesh.apply(DENY).await;
    assert_eq!(who(entry).await, ["v2"]);
    assert_eq!(v1.served.load(SeqCst), before, "it has had nothing since");

    v1.health.store(200, SeqCst);
    only(entry, &["v1", "v2"]).await;
    // What another sidecar registers waits for its first success, and then has its share.
    let three = mesh.workload(&catalog("v3", 13)).await;
    let v3 = App::serve(three.app, "v3").await;
    only(entry, &["v1", "v2", "v3"]).await;
    assert!(!v3.asked.lock().is_empty());
    load.abort();
    let [good, bad] = [0, 1].map(|at| counts[at].load(SeqCst));
    assert!(good > 0 && bad == 0, "{bad} of {} requests failed", good + bad);
    println!("{good} requests, {bad} failed");
}

/// Nobody may ask `/denied`.
pub(crate) const DENY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: denied, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/denied]}}]}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_is_well_requests_are_refused_with_the_reason() {
    let mesh = Mesh::start(BINARY).await;
    let one = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let v1 = App::serve(one.app, "v1").await;
    // A check is a request like any other: what policy denies is not well.
    mesh.apply(DENY).await;
    mesh.apply(&page("http: {path: /denied}")).await;
    let text = eventually("it is refused", || async {
        match get(web.outbound[0], "/", "").await.unwrap() {
            (503, text) => Ok(text),
            (_, text) => Err(text),
        }
    })
    .await;
    for part in ["health checks of 1 fail", "403", "TrafficRules shop/catalog"] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    mesh.apply(&page("http: {path: '/healthz', expectedStatuses: 200-204}")).await;
    eventually("a rule that asks for what is allowed", || async {
        match get(web.outbound[0], "/", "").await.unwrap() {
            (200, _) => Ok(()),
            (_, text) => Err(text),
        }
    })
    .await;
    assert!(!v1.asked.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_that_checks_meet_takes_nobody_away() {
    let mesh = Mesh::start(BINARY).await;
    let one = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let _v1 = App::serve(one.app, "v1").await;
    mesh.apply(STRICT).await;
    let checked = page("http: {path: '/healthz'}");
    mesh.apply(&checked).await;
    only(web.outbound[0], &["v1"]).await;
    mesh.apply(&format!("{checked}  rateLimit: {{requests: 1, per: 1h}}\n")).await;
    eventually("more checks are refused than a verdict needs", || async {
        let numbers = one.page("/stats/prometheus").await;
        let of = |line: &str| {
            line.strip_prefix("outrigger_rate_limited_total{")?.rsplit(' ').next()?.parse::<u64>().ok()
        };
        let refused = numbers.lines().find_map(of);
        if refused >= Some(5) { Ok(()) } else { Err(format!("{refused:?}")) }
    })
    .await;
    let (status, text) = get(web.outbound[0], "/", "").await.unwrap();
    assert_eq!(status, 429, "it sheds, and is not sick: {text}");
    assert!(!web.page("/clusters").await.contains("unhealthy"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_service_of_grpc_is_asked() {
    let mesh = Mesh::start(BINARY).await;
    let spec = |version, host| Spec { protocol: Protocol::Grpc, ..catalog(version, host) };
    let (one, two) = (mesh.workload(&spec("v1", 11)).await, mesh.workload(&spec("v2", 12)).await);
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let (v1, _v2) = (App::serve(one.app, "v1").await, App::serve(two.app, "v2").await);
    mesh.apply(STRICT).await;
    mesh.apply(&page("grpc: {serviceName: shop.Catalog}")).await;
    let mut client = Client::h2(web.outbound[0]).await;
    let mut wait_for = async |wanted: &[&str]| {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let mut names: Vec<String> = Vec::new();
            for _ in 0..10 {
                let request = Request::post("http://catalog:8080/shop.Catalog/List")
                    .header("content-type", "application/grpc");
                let response =
                    client.send(request.body(whole(Bytes::from_static(&[0; 5]))).unwrap()).await.unwrap();
                let name = response.headers().get("x-app-name").map(|name| name.to_str().unwrap().to_owned());
                names.push(name.unwrap_or_else(|| format!("{:?}", response.headers())));
            }
            names.sort();
            names.dedup();
            if names == wanted {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "wanted {wanted:?}, they go to {names:?}");
        }
    };
    wait_for(&["v1", "v2"]).await;
    v1.health.store(503, SeqCst);
    wait_for(&["v2"]).await;
    let clusters = web.page("/clusters").await;
    assert!(clusters.contains("it says that it is not SERVING"), "{clusters}");
    v1.health.store(200, SeqCst);
    wait_for(&["v1", "v2"]).await;
    let asked = v1.asked.lock().first().cloned().unwrap();
    assert_eq!(asked, "POST /grpc.health.v1.Health/Check catalog.shop.svc.cluster.local:8080 Outrigger/HC");
}

/// A TCP application that says its name to whoever says PING.
fn pong(listener: TcpListener, name: &'static str, word: Arc<AtomicU16>) -> AbortHandle {
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let word = word.clone();
            tokio::spawn(async move {
                let mut ping = [0; 5];
                stream.read_exact(&mut ping).await?;
                let word = if word.load(SeqCst) == 0 { "PONG" } else { "BUSY" };
                stream.write_all(format!("{word} {name}\n").as_bytes()).await
            });
        }
    });
    task.abort_handle()
}

/// Who answers ten connections in a row.
async fn who_pongs(entry: SocketAddr) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(entry).await.unwrap();
        let mut answer = String::new();
        let talked = async {
            stream.write_all(b"PING\n").await?;
            stream.read_to_string(&mut answer).await
        };
        let name = match talked.await {
            Ok(_) => answer.split_whitespace().last().unwrap_or("nobody").to_owned(),
            Err(_) => "nobody".to_owned(),
        };
        names.push(name);
    }
    names.sort();
    names.dedup();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_checked_by_what_they_say_and_by_whether_they_stand() {
    let mesh = Mesh::start(BINARY).await;
    let spec = |version, host| Spec { protocol: Protocol::Tcp, ..catalog(version, host) };
    let (one, two) = (mesh.workload(&spec("v1", 11)).await, mesh.workload(&spec("v2", 12)).await);
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let [busy, well] = [Arc::<AtomicU16>::default(), Arc::default()];
    let v1 = pong(TcpListener::bind(one.app).await.unwrap(), "v1", busy.clone());
    let _v2 = pong(TcpListener::bind(two.app).await.unwrap(), "v2", well);
    mesh.apply(STRICT).await;
    mesh.apply(&page(r#"tcp: {send: "PING\n", receive: PONG}"#)).await;
    let entry = web.outbound[0];
    let wait_for = |wanted: &'static [&'static str]| {
        eventually("connections go where they should", move || async move {
            let names = who_pongs(entry).await;
            if names == wanted { Ok(()) } else { Err(format!("wanted {wanted:?}, they go to {names:?}")) }
        })
    };
    wait_for(&["v1", "v2"]).await;
    busy.store(1, SeqCst);
    wait_for(&["v2"]).await;
    busy.store(0, SeqCst);
    wait_for(&["v1", "v2"]).await;
    // Whether they stand: the sidecar takes the connection, and its application, which has gone, does not.
    mesh.apply(&page("tcp: {}")).await;
    wait_for(&["v1", "v2"]).await;
    v1.abort();
    wait_for(&["v2"]).await;
    let clusters = web.page("/clusters").await;
    assert!(
        clusters.contains("the application takes none") || clusters.contains("broke at once"),
        "{clusters}"
    );
    pong(TcpListener::bind(one.app).await.unwrap(), "v1", busy);
    wait_for(&["v1", "v2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_envoy_does_the_same() {
    let Some(envoy) = require::tool("envoy") else { return };
    let mesh = Mesh::start(BINARY).await;
    let (one, two) = (mesh.workload(&catalog("v1", 11)).await, mesh.workload(&catalog("v2", 12)).await);
    let (v1, _v2) = (App::serve(one.app, "v1").await, App::serve(two.app, "v2").await);
    mesh.apply(STRICT).await;
    mesh.apply(&page("http: {path: '/healthz'}")).await;
    let _envoy = start_envoy(&mesh, &envoy, "DELTA_GRPC").await;
    let entry = SocketAddr::new(mesh.address(30, 0).ip(), 8080);
    let wait_for = |wanted: &'static [&'static str]| {
        eventually("requests through Envoy go where they should", move || async move {
            let mut names = Vec::new();
            for _ in 0..10 {
                let request = "GET / HTTP/1.1\r\nHost: catalog.shop:8080\r\nConnection: close\r\n\r\n";
                let answer = outrigger_tests::app::exchange(entry, request).await;
                let (status, text) = answer.map_err(|error| error.to_string())?;
                names.push(if status == 200 { app_of(&text) } else { text });
            }
            names.sort();
            names.dedup();
            if names == wanted { Ok(()) } else { Err(format!("wanted {wanted:?}, they go to {names:?}")) }
        })
    };
    wait_for(&["v1", "v2"]).await;
    v1.health.store(503, SeqCst);
    wait_for(&["v2"]).await;
    assert_rejects_nothing(&mesh).await;
    v1.health.store(200, SeqCst);
    wait_for(&["v1", "v2"]).await;
    let asked = v1.asked.lock().first().cloned().unwrap();
    assert_eq!(asked, "GET /healthz catalog.shop.svc.cluster.local:8080 Envoy/HC");
}

async fn assert_rejects_nothing(mesh: &Mesh) {
    let (_, stats) = get(mesh.address(30, 15000), "/stats?filter=update_rejected", "").await.unwrap();
    let rejected: Vec<&str> =
        stats.lines().filter(|line| line.contains("update_rejected") && !line.ends_with(": 0")).collect();
    assert!(rejected.is_empty() && stats.contains("update_rejected"), "{rejected:?}");
}

/// What a workload's sidecar says of an endpoint is nobody else's: the check is each caller's.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_is_taken_back_brings_everybody_back() {
    let mesh = Mesh::start(BINARY).await;
    let (one, two) = (mesh.workload(&catalog("v1", 11)).await, mesh.workload(&catalog("v2", 12)).await);
    let web: Sidecar = mesh.workload(&web(&["catalog:8080"])).await;
    let (v1, _v2) = (App::serve(one.app, "v1").await, App::serve(two.app, "v2").await);
    mesh.apply(&page("http: {path: '/healthz'}")).await;
    v1.health.store(503, SeqCst);
    only(web.outbound[0], &["v2"]).await;
    mesh.client.delete("TrafficRules", "shop", "catalog", &Default::default()).await.unwrap();
    only(web.outbound[0], &["v1", "v2"]).await;
    assert!(!web.page("/stats/prometheus").await.contains("envoy_cluster_health_check_attempt"));
    eventually("nobody asks any more", || async {
        let before = v1.asked.lock().len();
        tokio::time::timeout(std::time::Duration::from_millis(500), std::future::pending::<()>()).await.ok();
        let more = v1.asked.lock().len() - before;
        if more == 0 { Ok(()) } else { Err(format!("{more} checks in half a second")) }
    })
    .await;
}
