//! Two sidecars: mTLS between them, secure naming, PERMISSIVE and STRICT.

use std::net::SocketAddr;

use outrigger_identity::{PeerExpectation, client_config};
use outrigger_model::endpoint::Workload;
use outrigger_model::listener::{Direction, HttpConnection, RouteSource, Terminal, TransportMatch};
use outrigger_model::resource::Resource;
use outrigger_model::route::{
    Forward, Route, RouteAction, RouteConfig, RouteMatch, VirtualHost, WeightedCluster,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::rig::*;
use crate::metrics::{Local, Totals};

/// The sidecar of `stock`, STRICT or PERMISSIVE; its address.
async fn server(authority: &outrigger_identity::Authority, strict: bool) -> (Rig, SocketAddr) {
    let store = credentials(authority, "stock");
    let mut rig = Rig::new(|process| process.credentials = store);
    let address = rig.inbound(echo("").await);
    let mut chains = vec![mesh_chain("mtls-tcp", if strict { &[] } else { &["istio"] }, Vec::new())];
    if !strict {
        chains.push(chain("plain-tcp", TransportMatch::Plain, &[], tcp("app")));
    }
    rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
    (rig, address)
}

/// The sidecar of `web`, which expects `account` at `address`; where `web` connects to.
fn client(
    authority: &outrigger_identity::Authority,
    address: SocketAddr,
    account: &str,
) -> (Rig, SocketAddr) {
    let store = credentials(authority, "web");
    let mut rig = Rig::new(|process| process.credentials = store);
    rig.apply(service("stock", cluster("stock", vec![endpoint(address, Some(id(account)))])));
    let outbound = rig.outbound("stock.shop:8080");
    (rig, outbound)
}

#[tokio::test]
async fn bytes_cross_two_sidecars_over_mtls() {
    local(async {
        let authority = authority();
        let (mut inbound, address) = server(&authority, true).await;
        let (_outbound, entry) = client(&authority, address, "stock");
        let text = "0123456789".repeat(50_000);
        assert_eq!(exchange(entry, &text).await.unwrap(), text);
        let line = inbound.line().await;
        assert_eq!(line["requested_server_name"], "outbound_.8080_._.stock.shop.svc.cluster.local");
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_with_another_identity_is_refused_by_name() {
    local(async {
        let authority = authority();
        let (_inbound, address) = server(&authority, true).await;
        let (mut outbound, entry) = client(&authority, address, "billing");
        assert_eq!(exchange(entry, "secret").await.unwrap_or_default(), "");
        let line = outbound.line().await;
        let error = line["error"].as_str().unwrap();
        assert!(error.contains("sa/billing") && error.contains("sa/stock"), "{error}");
        assert_eq!(line["response_flags"], "UF");
    })
    .await;
}

#[tokio::test]
async fn a_client_of_a_foreign_authority_is_refused() {
    local(async {
        let (ours, theirs) = (authority(), authority());
        let (mut inbound, address) = server(&ours, true).await;
        let (_outbound, entry) = client(&theirs, address, "stock");
        assert_eq!(exchange(entry, "x").await.unwrap_or_default(), "");
        assert!(inbound.line().await["error"].as_str().unwrap().contains("tls_failed"));
    })
    .await;
}

#[tokio::test]
async fn plain_text_is_served_when_permissive_and_refused_when_strict() {
    local(async {
        let authority = authority();
        let (_permissive, address) = server(&authority, false).await;
        assert_eq!(exchange(address, "plain").await.unwrap(), "plain");
        let (_outbound, entry) = client(&authority, address, "stock");
        assert_eq!(exchange(entry, "both at once").await.unwrap(), "both at once");

        let (mut strict, address) = server(&authority, true).await;
        assert_eq!(exchange(address, "plain").await.unwrap_or_default(), "");
        assert!(strict.line().await["error"].as_str().unwrap().contains("STRICT"));
    })
    .await;
}

#[tokio::test]
async fn a_new_certificate_is_used_without_cutting_what_is_open() {
    local(async {
        let authority = authority();
        let (inbound, address) = server(&authority, true).await;
        let (outbound, entry) = client(&authority, address, "stock");
        let mut open = TcpStream::connect(entry).await.unwrap();
        open.write_all(b"a").await.unwrap();
        assert_eq!(read(&mut open, 1).await, "a");
        for (rig, account) in [(&inbound, "stock"), (&outbound, "web")] {
            let fresh = credentials(&authority, account).load();
            let certificate = fresh.certificate.clone().unwrap();
            rig.worker.process.credentials.replace_certificate(certificate);
        }
        assert_eq!(exchange(entry, "new").await.unwrap(), "new");
        open.write_all(b"b").await.unwrap();
        assert_eq!(read(&mut open, 1).await, "b");
    })
    .await;
}

/// A sidecar that is not ours: its TLS with this server name and these ALPN names.
async fn foreign(
    authority: &outrigger_identity::Authority,
    to: SocketAddr,
    name: &str,
    alpn: &[&[u8]],
) -> TlsStream<TcpStream> {
    let credentials = credentials(authority, "web").load();
    let config = client_config(&credentials, PeerExpectation::Exactly(id("stock")), alpn).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let tcp = TcpStream::connect(to).await.unwrap();
    TlsConnector::from(config).connect(name, tcp).await.unwrap()
}

const OURS: &str = "outbound_.8080_._.stock.shop.svc.cluster.local";

#[tokio::test]
async fn tls_with_our_server_name_is_the_meshs_when_permissive() {
    local(async {
        let authority = authority();
        let (mut inbound, address) = server(&authority, false).await;
        for alpn in [&[][..], &[&b"h2"[..]]] {
            let mut tls = foreign(&authority, address, OURS, alpn).await;
            tls.write_all(b"ping").await.unwrap();
            let mut answer = [0; 4];
            tls.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"ping");
            drop(tls);
            assert_eq!(inbound.line().await["requested_server_name"], OURS);
        }
    })
    .await;
}

#[tokio::test]
async fn other_tls_is_the_applications_own_and_passes_through_when_permissive() {
    local(async {
        let authority = authority();
        let store = credentials(&authority, "stock");
        let mut rig = Rig::new(|process| process.credentials = store);
        let address = rig.inbound(echo("").await);
        let chains = vec![
            mesh_chain("mtls-tcp", &["istio"], Vec::new()),
            chain("plain-tcp", TransportMatch::Plain, &[], tcp("app")),
            chain("app-tls", TransportMatch::Tls, &[], tcp("app")),
        ];
        rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
        let config = client_config(
            &credentials(&authority, "web").load(),
            PeerExpectation::Exactly(id("stock")),
            &[b"h2"],
        );
        let name = ServerName::try_from("stock.example.com").unwrap();
        let mut client = rustls::ClientConnection::new(config.unwrap(), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(&hello).await.unwrap();
        // The application echoes: had we answered, it would be a ServerHello.
        let mut answer = vec![0; hello.len()];
        tcp.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, hello);
    })
    .await;
}

/// Answers every request with 204.
pub(super) fn answering() -> Terminal {
    answering_with(204)
}

/// Answers every request with this.
pub(super) fn answering_with(status: u16) -> Terminal {
    http(RouteAction::Direct { status, body: String::new() })
}

/// Sends every request on to a cluster.
pub(super) fn forwarding(cluster: &str) -> Terminal {
    let to = Forward { clusters: vec![WeightedCluster::only(cluster)], ..Forward::default() };
    http(RouteAction::Forward(to))
}

/// Does the same with every request.
pub(super) fn http(action: RouteAction) -> Terminal {
    let route = Route { name: "all".into(), matches: RouteMatch::any(), action, ..Route::default() };
    let host = VirtualHost { domains: vec!["*".into()], routes: vec![route], ..VirtualHost::default() };
    let routes = RouteConfig { name: "r".into(), virtual_hosts: vec![host] };
    Terminal::Http(Box::new(HttpConnection::new(RouteSource::Inline(routes))))
}

#[tokio::test]
async fn inside_of_mesh_tls_first_bytes_decide_where_alpn_does_not() {
    local(async {
        let authority = authority();
        let store = credentials(&authority, "stock");
        let mut rig = Rig::new(|process| process.credentials = store);
        let address = rig.inbound(echo("").await);
        let mut http = mesh_chain("mtls-http", &["istio-http/1.1", "istio-h2"], Vec::new());
        http.terminal = answering();
        let chains = vec![http, mesh_chain("mtls-tcp", &[], Vec::new())];
        rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);

        let mut tls = foreign(&authority, address, OURS, &[b"istio"]).await;
        tls.write_all(b"GET / HTTP/1.1\r\nHost: stock\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        tls.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 204");
        drop(tls);
        assert_eq!(rig.line().await["protocol"], "HTTP/1.1");

        let mut tls = foreign(&authority, address, OURS, &[b"istio"]).await;
        tls.write_all(b"\x00bytes").await.unwrap();
        let mut answer = [0; 6];
        tls.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"\x00bytes");
    })
    .await;
}

#[tokio::test]
async fn a_server_may_speak_first_inside_of_mesh_tls() {
    local(async {
        let authority = authority();
        let store = credentials(&authority, "stock");
        let mut rig = Rig::new(|process| process.credentials = store);
        let address = rig.inbound(echo("220 ready").await);
        let mut http = mesh_chain("mtls-http", &["istio-http/1.1"], Vec::new());
        http.terminal = answering();
        let chains = vec![http, mesh_chain("mtls-tcp", &[], Vec::new())];
        rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
        let mut tls = foreign(&authority, address, OURS, &[b"istio"]).await;
        let mut greeting = [0; 9];
        tls.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 ready");
    })
    .await;
}

#[tokio::test]
async fn sidecars_introduce_themselves_once_per_connection() {
    local(async {
        let authority = authority();
        let store = credentials(&authority, "stock");
        let mut inbound = Rig::new(|process| process.credentials = store);
        let address = inbound.inbound(nobody().await);
        let mut chain = mesh_chain("mtls-http", &[], Vec::new());
        chain.terminal = answering();
        inbound.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), vec![chain])]);

        let store = credentials(&authority, "web");
        let workload = Workload {
            name: "web-v7".into(),
            namespace: "shop".into(),
            service: "web".into(),
            ..Workload::default()
        };
        let mut outbound = Rig::new(|process| {
            process.credentials = store;
            process.metrics = Totals::new(Local { workload, cluster: "home".into(), ..Local::default() });
        });
        let chains = vec![super::rig::chain("http", TransportMatch::Any, &[], forwarding("stock"))];
        outbound.apply([
            Resource::Cluster(cluster("stock", vec![endpoint(address, Some(id("stock")))])),
            listener("out", Direction::Outbound, None, chains),
            destination("stock.shop:8080", "out"),
        ]);
        let mut client = TcpStream::connect(outbound.outbound("stock.shop:8080")).await.unwrap();
        for _ in 0..3 {
            client.write_all(b"GET / HTTP/1.1\r\nHost: stock\r\n\r\n").await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            assert!(head.starts_with(b"HTTP/1.1 204"));
        }
        drop(client);
        for _ in 0..3 {
            assert_eq!(inbound.line().await["response_code"], 204);
        }
        let registry = outrigger_telemetry::metrics::Registry::new();
        registry.register(inbound.worker.process.metrics.clone());
        let page = registry.render();
        let lines: Vec<_> = page.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(line.ends_with(" 3") && line.contains("source_workload=\"web-v7\""), "{line}");
        assert!(line.contains("source_cluster=\"home\""), "{line}");
    })
    .await;
}
