//! Sidecars that register their own workloads: what their checks say is the state of the instance, through restarts, and to the end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_control::instance::Protocol;
use outrigger_control::instance::State::{self, Running, Unhealthy};
use outrigger_tests::app::{exchange, get};
use outrigger_tests::mesh::{Mesh, PORT, Sidecar, Spec};
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::BINARY;
use crate::thin_thread::{STRICT, web};

/// An application with a health page; `/slow` answers when it is told to.
#[derive(Clone, Default)]
struct App {
    sick: Arc<AtomicBool>,
    slow: Arc<Notify>,
}

impl App {
    async fn serve(&self, listen: SocketAddr) {
        let (listener, app) = (TcpListener::bind(listen).await.unwrap(), self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let app = app.clone();
                let service = hyper::service::service_fn(move |request| app.clone().answer(request));
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let status = match request.uri().path() {
            "/healthz" if self.sick.load(SeqCst) => 500,
            "/slow" => {
                self.slow.notified().await;
                200
            }
            _ => 200,
        };
        Ok(Response::builder().status(status).body(Full::from("app\n")).unwrap())
    }
}

fn spec<'s>(service: &'s str, host: u8) -> Spec<'s> {
    Spec { service, version: "v1", host, protocol: Protocol::Http, calls: &[] }
}

/// A bootstrap that registers itself, with one check. What ends does not end by its lease.
fn registering(check: (&str, Value), more: Value) -> Value {
    let mut register = json!({
        "ports": [{ "number": PORT, "protocol": "http" }], "ttl": "1h", "checks": { check.0: check.1 },
    });
    register.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "register": register, "grace": "300ms" })
}

async fn is(mesh: &Mesh, id: &str, state: State) {
    eventually(&format!("{id} is {state:?}"), || async {
        match mesh.client.instance(id).await {
            Ok(body) if body.instance.state == state => Ok(()),
            Ok(body) => Err(format!("{:?}", body.instance.state)),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
}

async fn answers(entry: SocketAddr, status: u16) {
    eventually(&format!("an answer {status}"), || async {
        match get(entry, "/", "").await {
            Ok((got, _)) if got == status => Ok(()),
            Ok((_, text)) => Err(text),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
}

async fn registration(sidecar: &Sidecar) -> Value {
    let page = sidecar.page("/registration").await;
    serde_json::from_str(page.split_once("\r\n\r\n").unwrap().1).unwrap()
}

async fn has_told(sidecar: &Sidecar, state: &str) {
    eventually(&format!("the sidecar has told that it is {state}"), || async {
        let page = registration(sidecar).await;
        if page["told"]["state"] == state { Ok(()) } else { Err(page.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_registers_its_workload_follows_its_checks_and_takes_leave() {
    let mut mesh = Mesh::start(BINARY).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let (entry, app_at) = (web.outbound[0], mesh.address(11, PORT + 1000));
    let http = json!({ "http": { "port": app_at.port(), "address": app_at.ip(), "path": "/healthz" },
        "interval": "100ms", "unhealthy": 2 });
    mesh.bootstrap = registering(("web", http), json!({ "labels": { "tier": "front" }, "weight": 50 }));
    let mut catalog = mesh.sidecar(&spec("catalog", 11)).await;
    mesh.apply(STRICT).await;

    // Nobody listens: it is there, and nobody is sent to it.
    is(&mesh, "catalog-v1", Unhealthy).await;
    let body = mesh.client.instance("catalog-v1").await.unwrap();
    assert_eq!(body.by.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/catalog"));
    let own = &body.instance;
    assert_eq!((own.addresses[0], own.weight, own.ttl_seconds), (catalog.inbound.ip(), 50, Some(3600)));
    assert_eq!((own.version.as_deref(), own.labels["tier"].as_str()), (Some("v1"), "front"));
    answers(entry, 503).await;
    let app = App::default();
    app.serve(app_at).await;
    is(&mesh, "catalog-v1", Running).await;
    answers(entry, 200).await;

    // Sick, and well again.
    app.sick.store(true, SeqCst);
    is(&mesh, "catalog-v1", Unhealthy).await;
    answers(entry, 503).await;
    let page = registration(&catalog).await;
    let reason = page["checks"]["web"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("500") && page["told"]["state"] == "unhealthy", "{page}");
    let metrics = catalog.page("/stats/prometheus").await;
    let lines = ["outrigger_registered 1", "outrigger_check_passing{check=\"web\"} 0"];
    assert!(lines.iter().all(|line| metrics.contains(line)), "{metrics}");
    app.sick.store(false, SeqCst);
    is(&mesh, "catalog-v1", Running).await;
    answers(entry, 200).await;

    // An operator's word holds against the sidecar's.
    mesh.client.set_state("catalog-v1", State::Maintenance).await.unwrap();
    answers(entry, 503).await;
    app.sick.store(true, SeqCst);
    has_told(&catalog, "unhealthy").await;
    app.sick.store(false, SeqCst);
    has_told(&catalog, "running").await;
    is(&mesh, "catalog-v1", State::Maintenance).await;
    mesh.client.set_state("catalog-v1", Running).await.unwrap();
    answers(entry, 200).await;

    // Forgotten, and while the control plane is away it falls sick.
    mesh.client.deregister("catalog-v1").await.unwrap();
    is(&mesh, "catalog-v1", Running).await;
    mesh.kill_control();
    app.sick.store(true, SeqCst);
    eventually("it is not told", || async {
        let page = registration(&catalog).await;
        if page["told"]["error"].is_string() { Ok(()) } else { Err(page.to_string()) }
    })
    .await;
    mesh.start_control().await;
    is(&mesh, "catalog-v1", Unhealthy).await;
    app.sick.store(false, SeqCst);
    is(&mesh, "catalog-v1", Running).await;
    answers(entry, 200).await;

    takes_leave(&mesh, &web, &catalog, &app).await;
    catalog.kill();
}

/// Told to stop: no new calls, those under way end well, and then it is gone.
async fn takes_leave(mesh: &Mesh, web: &Sidecar, catalog: &Sidecar, app: &App) {
    let entry = web.outbound[0];
    let under_way = tokio::spawn(async move { get(entry, "/slow", "").await });
    eventually("a call is under way", || async {
        let page = web.page("/clusters").await;
        if page.contains("\"inFlight\": 1") { Ok(()) } else { Err(page) }
    })
    .await;
    catalog.terminate();
    is(mesh, "catalog-v1", State::Stopping).await;
    answers(entry, 503).await;
    app.slow.notify_one();
    assert_eq!(under_way.await.unwrap().unwrap().0, 200);
    eventually("it is gone", || async {
        match mesh.client.instance("catalog-v1").await {
            Err(error) if error.status() == Some(http::StatusCode::NOT_FOUND) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_token_does_not_allow_is_refused_and_said() {
    let mut mesh = Mesh::start(BINARY).await;
    let beat = || ("beat", json!({ "ttl": "60s" }));
    for (more, words) in [
        (json!({ "service": "bank" }), "may not register service \"bank\""),
        (json!({ "addresses": ["10.9.9.9"] }), "10.9.9.9 is not the caller's"),
        (json!({ "ports": [{ "number": 80, "protocol": "ftp" }] }), "ftp"),
    ] {
        mesh.bootstrap = registering(beat(), more);
        let mut catalog = mesh.sidecar(&spec("catalog", 11)).await;
        eventually(words, || async {
            let page = registration(&catalog).await;
            let error = page["told"]["error"].as_str().unwrap_or_default().to_owned();
            if error.contains("refuses") && error.contains(words) { Ok(()) } else { Err(page.to_string()) }
        })
        .await;
        assert!(catalog.log().contains("the registration is not taken"), "{}", catalog.log());
        assert_eq!(mesh.client.instances().await.unwrap(), []);
        catalog.kill();
    }
}

/// The application's own word for the check `beat`.
async fn says(sidecar: &Sidecar, word: &str) {
    let head = format!("POST /checks/beat/{word} HTTP/1.1\r\nHost: {}\r\n", sidecar.admin);
    let answer =
        exchange(sidecar.admin, &format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.as_ref().is_ok_and(|(status, _)| *status == 200), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_was_replaced_does_not_end_its_successors_registration() {
    let mut mesh = Mesh::start(BINARY).await;
    let beat = || ("beat", json!({ "ttl": "1h" }));
    mesh.bootstrap = registering(beat(), json!({}));
    let old = mesh.sidecar(&spec("catalog", 11)).await;
    says(&old, "pass").await;
    is(&mesh, "catalog-v1", Running).await;
    // Its virtual machine is replaced, with the same node.id, before it has ended.
    mesh.bootstrap["state_dir"] = json!(mesh.path("new.state"));
    let new = mesh.sidecar(&spec("catalog", 12)).await;
    says(&new, "pass").await;
    has_told(&new, "running").await;
    let newer = || async {
        let instance = mesh.client.instance("catalog-v1").await.unwrap().instance;
        assert_eq!((instance.addresses[0], instance.state), (new.inbound.ip(), Running));
    };
    newer().await;

    says(&old, "fail").await;
    eventually("the old one says that it was replaced", || async {
        let page = registration(&old).await;
        let error = page["told"]["error"].as_str().unwrap_or_default();
        if error.contains("registered by a newer process") { Ok(()) } else { Err(page.to_string()) }
    })
    .await;
    newer().await;
    let turned_away = mesh.client.status().await.unwrap().rejections;
    assert!(
        turned_away.iter().any(|one| one.what == "registration" && one.reason.contains("newer process")),
        "{turned_away:?}"
    );
    old.terminate();
    eventually("the old one has ended", || async {
        match get(old.admin, "/ready", "").await {
            Err(_) => Ok(()),
            Ok(answer) => Err(format!("{answer:?}")),
        }
    })
    .await;
    newer().await;
    new.terminate();
    eventually("the new one ends its own", || async {
        match mesh.client.instance("catalog-v1").await {
            Err(error) if error.status() == Some(http::StatusCode::NOT_FOUND) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Makes a check fail, and pass again.
enum Lever {
    Http(App),
    Tcp(SocketAddr, Option<TcpListener>),
    Grpc(Arc<AtomicBool>),
    Script(PathBuf),
    Ttl(Arc<AtomicBool>),
}

impl Lever {
    async fn set(&mut self, well: bool) {
        match self {
            Self::Http(app) => app.sick.store(!well, SeqCst),
            Self::Tcp(_, listener) if !well => *listener = None,
            Self::Tcp(address, listener) => *listener = Some(TcpListener::bind(*address).await.unwrap()),
            Self::Grpc(switch) | Self::Ttl(switch) => switch.store(well, SeqCst),
            Self::Script(file) if well => std::fs::write(file, "").unwrap(),
            Self::Script(file) => std::fs::remove_file(file).unwrap(),
        }
    }
}

/// gRPC's health service, which says SERVING or NOT_SERVING.
async fn grpc_health(listen: SocketAddr, serving: Arc<AtomicBool>) {
    let listener = TcpListener::bind(listen).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serving = serving.clone();
            let service = hyper::service::service_fn(move |_: Request<Incoming>| {
                let status = if serving.load(SeqCst) { 1 } else { 2 };
                let answer = Response::builder()
                    .header("content-type", "application/grpc")
                    .body(Full::new(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status])));
                std::future::ready(answer)
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
}

/// The application's own word, as long as it is well.
async fn beats(admin: SocketAddr, well: Arc<AtomicBool>) {
    let mut beat = tokio::time::interval(Duration::from_millis(100));
    loop {
        beat.tick().await;
        if well.load(SeqCst) {
            let post = format!(
                "POST /checks/ttl/pass HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            // Before the sidecar is there it fails.
            let _ = exchange(admin, &post).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_of_every_kind_take_an_instance_out_and_back_in() {
    let mut mesh = Mesh::start(BINARY).await;
    let web = mesh.workload(&web(&["http:8080", "tcp:8080", "grpc:8080", "script:8080", "ttl:8080"])).await;
    let kinds = ["http", "tcp", "grpc", "script", "ttl"];
    let mut table = String::from("check     out      back\n");
    for (n, kind) in kinds.into_iter().enumerate() {
        let host = 20 + n as u8;
        let (app_at, asked) = (mesh.address(host, PORT + 1000), mesh.address(host, 9999));
        let app = App::default();
        app.serve(app_at).await;
        let (switch, file) = (Arc::new(AtomicBool::new(true)), mesh.path("well"));
        let to = json!({ "port": asked.port(), "address": asked.ip() });
        let (mut lever, what) = match kind {
            "http" => {
                app.serve(asked).await;
                (Lever::Http(app), json!({ "port": asked.port(), "address": asked.ip(), "path": "/healthz" }))
            }
            "tcp" => (Lever::Tcp(asked, None), to),
            "grpc" => {
                grpc_health(asked, switch.clone()).await;
                (Lever::Grpc(switch), to)
            }
            "script" => (Lever::Script(file.clone()), json!({ "command": ["/usr/bin/test", "-e", file] })),
            _ => {
                tokio::spawn(beats(mesh.address(host, 15000), switch.clone()));
                (Lever::Ttl(switch), json!("2s"))
            }
        };
        lever.set(true).await;
        let check = match kind {
            "ttl" => json!({ "ttl": what }),
            _ => json!({ kind: what, "interval": "200ms", "timeout": "2s", "healthy": 2, "unhealthy": 3 }),
        };
        mesh.bootstrap = registering((kind, check), json!({}));
        let (id, entry) = (format!("{kind}-v1"), web.outbound[n]);
        let _sidecar = mesh.sidecar(&spec(kind, host)).await;
        is(&mesh, &id, Running).await;
        answers(entry, 200).await;

        let mut times = Vec::new();
        for (well, state, status) in [(false, Unhealthy, 503), (true, Running, 200)] {
            let began = Instant::now();
            lever.set(well).await;
            is(&mesh, &id, state).await;
            answers(entry, status).await;
            times.push(began.elapsed());
        }
        table += &format!("{kind:<7} {:>7.2} s {:>7.2} s\n", times[0].as_secs_f64(), times[1].as_secs_f64());
        // Two intervals at least lie between the first of three failures and the last.
        let least = Duration::from_millis(if kind == "ttl" { 1000 } else { 400 });
        assert!(times[0] >= least, "{table}");
    }
    eprintln!("{table}");
}
