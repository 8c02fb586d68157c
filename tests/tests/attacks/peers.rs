//! Peers that make up names, that shake hands without end, and that are not there.

use std::collections::BTreeSet;
use std::time::SystemTime;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_identity::connect::{PeerExpectation, client_config};
use outrigger_identity::{Credentials, TrustBundle, WorkloadCertificate};
use outrigger_tests::attack::NOTICED;
use outrigger_tests::http::{Body, whole};
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::thin_thread::STRICT;

/// Handshakes of each client.
const EACH: usize = 40;

/// What a client of the mesh brings along, or one without a certificate.
async fn tls(mesh: &Mesh, with_certificate: bool) -> TlsConnector {
    let issued = mesh.issue("web").await;
    let bundle = TrustBundle::from_pem("cluster.local", &issued.roots).unwrap();
    let now = SystemTime::now();
    let own = WorkloadCertificate::from_key_and_chain(&issued.key, &issued.certificate, now).unwrap();
    let own = with_certificate.then(|| Arc::new(own));
    let credentials = Credentials::new(own, Arc::new(bundle));
    let anybody = PeerExpectation::TrustDomain("cluster.local".into());
    TlsConnector::from(client_config(&credentials, anybody, &[b"istio-h2", b"istio", b"h2"]).unwrap())
}

/// One request of a connection of its own, which says of itself that it is this workload.
async fn introduced(to: SocketAddr, tls: TlsConnector, name: &str) {
    let tcp = TcpStream::connect(to).await.unwrap();
    let stream = tls.connect("catalog".try_into().unwrap(), tcp).await.unwrap();
    let (mut send, connection) =
        http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://catalog/").header("x-outrigger-peer", format!("1;{name};shop;web;;"));
    let response = send.send_request(request.body(whole(Bytes::new())).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
}

/// The names of workloads that the page has, but for that of the honest one.
fn names(page: &str) -> BTreeSet<&str> {
    let said = page.lines().filter_map(|line| line.split_once("source_workload=\""));
    let said = said.filter_map(|(_, rest)| Some(rest.split_once('"')?.0));
    said.filter(|name| name.starts_with("made-up-")).collect()
}

/// An identity has 16 names, of 253 bytes, in some 100 lines of the page each: some 2 MiB in the page, and in memory.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_a_peer_makes_up_fill_neither_memory_nor_the_page() {
    const NAMES: usize = 200;
    let stage = Stage::with("512Mi").await;
    let tls = tls(&stage.mesh, true).await;
    let attack =
        Attack::begin("200 made-up names of one identity", &[stage.catalog(32, 32)], stage.entry(), "/")
            .await;
    for n in 0..NAMES {
        let name = format!("made-up-{n:0245}");
        introduced(stage.catalog.inbound, tls.clone(), &name).await;
    }
    attack.lasts(50).await;
    let after = attack.end().await;
    let page = stage.catalog.page("/stats/prometheus").await;
    let names = names(&page);
    eprintln!(
        "FIGURES {NAMES} made-up names: {} of them in a page of {} KiB",
        names.len(),
        page.len() / 1024
    );
    assert!((1..=16).contains(&names.len()), "{} names", names.len());
    assert!(page.len() < 4 << 20, "{} bytes", page.len());
    assert!(page.contains("source_workload=\"web-v1\""), "the honest one keeps its own");
    after.calm().await;
}

/// Handshakes of eight clients at a time, without a certificate. Whoever is refused waits to be told.
async fn handshakes(to: SocketAddr, tls: &TlsConnector, is_refused: bool) {
    let crowd: Vec<_> = (0..8)
        .map(|_| {
            let tls = tls.clone();
            tokio::spawn(async move {
                for _ in 0..EACH {
                    let tcp = TcpStream::connect(to).await.unwrap();
                    // In TLS 1.3 the client has finished before the server misses its certificate.
                    let mut stream = tls.connect("catalog".try_into().unwrap(), tcp).await.unwrap();
                    if is_refused {
                        let refused = stream.read(&mut [0; 1]).await;
                        assert!(!matches!(refused, Ok(1..)), "{refused:?}");
                    }
                }
            })
        })
        .collect();
    for one in crowd {
        one.await.unwrap();
    }
}

/// A source may shake hands as often as it can: what bounds it are the places of connections and the time of each handshake.
/// Each failure is a line that a stranger causes: 50 at once, then one in 200 ms.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_without_end_cost_a_sidecar_neither_memory_nor_its_log() {
    let stage = Stage::with("512Mi").await;
    stage.mesh.apply(STRICT).await;
    let tls = tls(&stage.mesh, false).await;
    let what = "320 handshakes without a certificate";
    let attack = Attack::begin(what, &[stage.catalog(24, 24)], stage.entry(), "/").await;
    let lines = || stage.catalog.log().lines().filter(|line| line.contains("connection closed")).count();
    let (before, began) = (lines(), Instant::now());
    handshakes(stage.catalog.inbound, &tls, true).await;
    attack.lasts(50).await;
    let after = attack.end().await;
    let (written, seconds) = (lines() - before, began.elapsed().as_secs() as usize + 1);
    eprintln!("FIGURES {what}: {written} lines in {seconds} s");
    assert!((1..=50 + 5 * seconds).contains(&written), "{written} lines in {seconds} s");
    after.calm().await;
}

/// The same at the control plane's port, where who has no certificate yet is no fault.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_without_end_keep_no_rule_from_the_sidecars() {
    let stage = Stage::with("512Mi").await;
    let tls = tls(&stage.mesh, false).await;
    let what = "320 handshakes with the control plane";
    let attack = Attack::begin(what, &[stage.control(32, 24)], stage.mesh.address(1, 15014), "/ready").await;
    let to = stage.mesh.address(1, 15012);
    let flood = tokio::spawn(async move { handshakes(to, &tls, false).await });
    let began = Instant::now();
    let applied = stage.mesh.apply(STRICT).await;
    let in_force = began.elapsed();
    assert_eq!(applied.in_force.unwrap().proxies, 2);
    flood.await.unwrap();
    attack.lasts(50).await;
    let after = attack.end().await;
    eprintln!("FIGURES {what}: a rule in force {in_force:.1?}");
    assert!(in_force < 2 * NOTICED, "a rule was in force after {in_force:?}");
    after.calm().await;
}

/// 2,000 streams of 16 KiB are 32 MiB, and there are 32 more. None waits behind another's attempt: each of the default's
/// three attempts has a second.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_for_the_dead_wait_together() {
    const SHORT: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: stock, namespace: shop}
spec: {host: stock, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1s}}}}
";
    let mut mesh = Mesh::start_with(BINARY, json!({ "sampling": 0.0 })).await;
    mesh.bootstrap = json!({ "memory_limit": "512Mi" });
    let spec = |service, host| Spec { service, version: "v1", host, protocol: Protocol::Http2, calls: &[] };
    let catalog = mesh.workload(&spec("catalog", 11)).await;
    mesh.register(&spec("stock", 12)).await;
    // It takes one connection for the listener, and drops what comes then.
    let dead = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let address = mesh.address(12, 8080);
    dead.bind(&address.into()).unwrap();
    dead.listen(0).unwrap();
    let _taken = TcpStream::connect(address).await.unwrap();
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080"])).await;
    App::serve(catalog.app).await;
    mesh.apply(SHORT).await;

    let what = "2000 requests that wait for a server that is not there";
    let attack = Attack::begin(what, &[victim("web", &web, 64, 32)], web.outbound[0], "/").await;
    let mut crowd = Vec::new();
    for _ in 0..4 {
        let mut frames = Frames::connect(web.outbound[1], true).await.unwrap();
        for _ in 0..500 {
            frames.request(&block(false, "/"), true).await.unwrap();
        }
        crowd.push(frames);
    }
    let began = Instant::now();
    let patience = Duration::from_secs(30);
    let waiting: Vec<_> = (0..20).map(|_| tokio::spawn(asked(web.outbound[1], "/", patience))).collect();
    // Half of the crowd has gone before there is an answer.
    crowd.truncate(2);
    for one in waiting {
        let (status, text) = one.await.unwrap();
        assert_eq!(status, 503, "{text}");
    }
    let waited = began.elapsed();
    attack.lasts(50).await;
    let after = attack.end().await;
    eprintln!("FIGURES {what}: the last of 20 others knew after {waited:.1?}");
    assert!(waited < Duration::from_secs(20), "{waited:?}");
    drop(crowd);
    after.calm().await;
}
