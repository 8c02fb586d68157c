//! Services that are described: hosts of the world by DNS, TLS to them, nothing else under REGISTRY_ONLY, workloads by label.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use hickory_proto::rr::RecordType;
use outrigger_control::api::types::ApplyQuery;
use outrigger_control::instance::Protocol;
use outrigger_tests::app::{body, echo, get};
use outrigger_tests::mesh::{Mesh, Sidecar, Spec};
use outrigger_tests::names::NameServer;
use outrigger_tests::wait::eventually;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};

use crate::BINARY;
use crate::dns::{question, tcp};
use crate::thin_thread::{STRICT, web};

/// Port 80 of a host of the world, whose servers listen on 8000.
const API: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: shop}
spec:
  hosts: [api.example.com]
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}]
";

/// A mesh whose sidecars ask a name server of the test's.
async fn scene(more: Value) -> (Mesh, NameServer) {
    let mut mesh = Mesh::start(BINARY).await;
    let server = NameServer::start(mesh.address(5, 5353)).await;
    let dns = json!({ "bind": [mesh.address(10, 15053)], "upstream": [server.address], "search": [] });
    mesh.bootstrap = json!({ "dns": dns });
    mesh.bootstrap.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    (mesh, server)
}

fn at(mesh: &Mesh, host: u8) -> IpAddr {
    mesh.address(host, 0).ip()
}

/// Until an answer comes from this server.
async fn answered_by(entry: SocketAddr, name: &str) {
    eventually(&format!("an answer of {name}"), || async {
        match get(entry, "/", "").await {
            Ok((200, text)) if text.contains(&format!("X-App-Name: {name}\r\n")) => Ok(()),
            Ok((_, text)) => Err(text),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
}

async fn delete(mesh: &Mesh, kind: &str, name: &str) {
    let query = ApplyQuery { wait: true, timeout: Some(20.0), ..ApplyQuery::default() };
    mesh.client.delete(kind, "shop", name, &query).await.unwrap();
}

async fn metric(sidecar: &Sidecar, name: &str) -> Option<f64> {
    let page = sidecar.page("/stats/prometheus").await;
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Requests one after the other, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU32>,
    failed: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn on(entry: SocketAddr) -> Self {
        let (stop, served, failed) = (Arc::<AtomicBool>::default(), Arc::default(), Arc::default());
        let task = tokio::spawn({
            let (stop, served, failed): (_, Arc<AtomicU32>, Arc<AtomicU32>) =
                (stop.clone(), Arc::clone(&served), Arc::clone(&failed));
            async move {
                while !stop.load(SeqCst) {
                    match get(entry, "/", "").await {
                        Ok((200, _)) => served.fetch_add(1, SeqCst),
                        _ => failed.fetch_add(1, SeqCst),
                    };
                }
            }
        });
        Self { stop, served, failed, task }
    }

    async fn more(&self) {
        let before = self.served.load(SeqCst);
        eventually("requests go on", || {
            let enough = self.served.load(SeqCst) > before + 30;
            async move { if enough { Ok(()) } else { Err("too few") } }
        })
        .await;
    }

    async fn failures(self) -> u32 {
        self.stop.store(true, SeqCst);
        self.task.await.unwrap();
        self.failed.load(SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_the_world_is_reached_by_dns_through_changes_failures_and_restarts() {
    let (mesh, server) = scene(json!({})).await;
    echo(mesh.address(40, 8000), "one").await;
    echo(mesh.address(41, 8000), "two").await;
    server.has("api.example.com", &[at(&mesh, 40)]);
    let mut web = mesh.workload(&web(&["api.example.com:80"])).await;
    mesh.apply(API).await;
    let entry = web.outbound[0];
    answered_by(entry, "one").await;

    // The workload's own lookups: an address that stands for the service, and for others what the world says.
    let resolver = mesh.address(10, 15053);
    eventually("a virtual address for the host", || async {
        let answer = tcp(resolver, &question("api.example.com.", RecordType::A)).await;
        let given = answer.answers.iter().any(|record| record.data.to_string().starts_with("240."));
        if given { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    server.has("www.example.net", &[at(&mesh, 40)]);
    let answer = tcp(resolver, &question("www.example.net.", RecordType::A)).await;
    assert_eq!(answer.answers[0].data.to_string(), at(&mesh, 40).to_string());

    let load = Load::on(entry);
    load.more().await;
    server.has("api.example.com", &[at(&mesh, 41)]);
    answered_by(entry, "two").await;
    load.more().await;
    server.has("api.example.com", &[at(&mesh, 40), at(&mesh, 41)]);
    answered_by(entry, "one").await;
    load.more().await;
    // The name server fails, and then is gone: the last addresses serve.
    server.fails("api.example.com");
    eventually("a failure is noticed", || async {
        match metric(&web, "outrigger_dns_names_failing ").await {
            Some(1.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    load.more().await;
    drop(server);
    let page = web.page("/clusters").await;
    let clusters: Value = serde_json::from_str(&body(&page)).unwrap_or_default();
    let cluster = &clusters["outbound|80||api.example.com"];
    assert!(cluster["origin"].as_str().is_some_and(|o| o == "ServiceEntry shop/api"), "{page}");
    let name = &cluster["dns"]["api.example.com"];
    assert!(name["failuresInARow"].as_u64() > Some(0) && !name["trouble"].is_null(), "{page}");
    assert_eq!(name["addresses"].as_array().map(Vec::len), Some(2), "{page}");
    load.more().await;
    assert_eq!(load.failures().await, 0);

    // And in a restart without a name server, what was stored.
    let file = mesh.path("web-v1.state/snapshot.json");
    eventually("the stored addresses", || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let there = text.contains("dns|outbound|80||api.example.com")
            && text.contains(&format!("{}:8000", at(&mesh, 41)));
        async move { if there { Ok(()) } else { Err("not written yet") } }
    })
    .await;
    web.kill();
    web.start(&mesh).await;
    let (status, text) = get(entry, "/", "").await.unwrap();
    assert_eq!(status, 200, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_addresses_is_an_error_that_says_why() {
    let (mesh, server) = scene(json!({})).await;
    let web = mesh.workload(&web(&["api.example.com:80"])).await;
    mesh.apply(API).await;
    let (status, text) = get(web.outbound[0], "/", "").await.unwrap();
    assert!(status == 503 && text.contains("api.example.com: there is no such name"), "{text}");
    assert!(text.contains("ServiceEntry shop/api"), "{text}");
    // As soon as it has one it is served.
    echo(mesh.address(40, 8000), "one").await;
    server.has("api.example.com", &[at(&mesh, 40)]);
    delete(&mesh, "ServiceEntry", "api").await;
    mesh.apply(API).await;
    answered_by(web.outbound[0], "one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_registry_only_described_hosts_are_reached_and_no_others() {
    let (mesh, server) = scene(json!({ "outbound_policy": "REGISTRY_ONLY" })).await;
    echo(mesh.address(40, 8000), "one").await;
    server.has("api.example.com", &[at(&mesh, 40)]);
    server.has("www.example.net", &[at(&mesh, 40)]);
    let web = mesh.workload(&web(&["api.example.com:80", "www.example.net:8000"])).await;
    mesh.apply(API).await;
    answered_by(web.outbound[0], "one").await;
    let (status, text) = get(web.outbound[1], "/", "").await.unwrap();
    assert!(status != 200 && text.contains("REGISTRY_ONLY"), "{text}");
    delete(&mesh, "ServiceEntry", "api").await;
    eventually("what is described no longer is refused", || async {
        let (status, text) = get(web.outbound[0], "/", "").await.map_err(|error| error.to_string())?;
        if status != 200 && text.contains("REGISTRY_ONLY") { Ok(()) } else { Err(text) }
    })
    .await;
}

/// A server with a certificate for that name, which is written to a file; it says by which name it was asked for.
pub async fn tls_server(listen: SocketAddr, name: &str, file: &Path) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(file, certificate.pem()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(listen).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let asked = stream.get_ref().1.server_name().unwrap_or("nobody").to_owned();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let text = format!("asked for {asked}");
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_speaks_tls_to_a_host_of_the_world_and_believes_only_its_name() {
    let (mesh, server) = scene(json!({})).await;
    let (good, other) = (mesh.path("good.pem"), mesh.path("other.pem"));
    tls_server(mesh.address(40, 8000), "api.example.com", &good).await;
    tls_server(mesh.address(41, 8000), "www.example.net", &other).await;
    server.has("api.example.com", &[at(&mesh, 40)]);
    let web = mesh.workload(&web(&["api.example.com:80"])).await;
    let rule = |file: &Path| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: api, namespace: shop}}\nspec:\n  host: \
             api.example.com\n  trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {}}}}}\n",
            file.display()
        )
    };
    mesh.apply(API).await;
    mesh.apply(&rule(&good)).await;
    eventually("an answer over TLS", || async {
        let (status, text) = get(web.outbound[0], "/", "").await.map_err(|error| error.to_string())?;
        if (status, body(&text).as_str()) == (200, "asked for api.example.com") { Ok(()) } else { Err(text) }
    })
    .await;
    // Somebody else has the address now: a good certificate, and the wrong name.
    server.has("api.example.com", &[at(&mesh, 41)]);
    mesh.apply(&rule(&other)).await;
    eventually("the wrong name is refused", || async {
        let (status, text) = get(web.outbound[0], "/", "").await.map_err(|error| error.to_string())?;
        if status == 503 && text.contains("certificate") { Ok(()) } else { Err(text) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_join_and_leave_a_service_by_their_labels() {
    let (mut mesh, _server) = scene(json!({})).await;
    let service = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: jobs, namespace: shop}
spec:
  hosts: [jobs.shop.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: jobs}}
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
";
    let web = mesh.workload(&web(&["jobs:80"])).await;
    mesh.apply(service).await;
    let (status, text) = get(web.outbound[0], "/", "").await.unwrap();
    assert_eq!(status, 503, "{text}");
    echo(mesh.address(42, 9000), "machine").await;
    let entry = format!(
        "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: machine, namespace: shop, labels: {{app: jobs}}}}
spec: {{address: {}, ports: {{http: 9000}}}}
",
        at(&mesh, 42)
    );
    mesh.apply(&entry).await;
    answered_by(web.outbound[0], "machine").await;
    delete(&mesh, "WorkloadEntry", "machine").await;
    // A registered instance of another service with the label is one, too, behind its sidecar.
    mesh.apply(&service.replace("app: jobs", "app: worker")).await;
    mesh.bootstrap = json!({});
    let spec = Spec { service: "worker", version: "v1", host: 12, protocol: Protocol::Http, calls: &[] };
    let worker = mesh.workload(&spec).await;
    echo(worker.app, "worker").await;
    mesh.apply(STRICT).await;
    answered_by(web.outbound[0], "worker").await;
}
