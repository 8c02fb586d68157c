//! Calls beyond the mesh, health probes from beyond it, and a sidecar that notices when nothing is brought to it.

use std::net::SocketAddr;

use outrigger_control::instance::Protocol;
use outrigger_tests::app::{echo, exchange, teller};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::netns::Net;
use outrigger_tests::netns::workload::{Intercepted, Workload};
use outrigger_tests::wait::eventually;
use serde_json::json;

use super::{MARKER, able, at, curl, hears};
use crate::BINARY;
use crate::thin_thread::STRICT;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_mesh_passes_or_is_refused_as_the_policy_says() {
    let Some(()) = able() else { return };
    let net = Net::new();
    let [control, free, bound, world] = ["control", "free", "bound", "world"].map(|name| net.host(name));
    for address in world.addresses() {
        let (web, bytes) = (SocketAddr::new(address, 80), SocketAddr::new(address, 7000));
        world.run(async move { tokio::join!(echo(web, "world"), teller(bytes)) }).await;
    }
    let mut mesh = Mesh::start_on(BINARY, &control).await;
    let free = mesh.join(&free, &Workload { service: "free", ..Workload::default() }).await;
    mesh.bootstrap = json!({ "outbound_policy": "REGISTRY_ONLY" });
    let bound = mesh.join(&bound, &Workload { service: "bound", ..Workload::default() }).await;
    let refused = |to: SocketAddr| {
        let request = "GET / HTTP/1.1\r\nHost: world\r\nConnection: close\r\n\r\n";
        bound.host.run(exchange(to, request))
    };
    for address in world.addresses() {
        let body = curl(&free.host, &[&format!("http://{}/{MARKER}", at(address, 80))]).unwrap();
        assert!(body.starts_with(&format!("world\nGET /{MARKER} HTTP/1.1")), "{body}");
        let said = hears(&free.host, SocketAddr::new(address, 7000)).await.unwrap();
        assert!(said.ends_with(MARKER), "{said}");

        let (status, text) = refused(SocketAddr::new(address, 80)).await.unwrap();
        assert!(status == 502 && text.contains("REGISTRY_ONLY"), "{text}");
        hears(&bound.host, SocketAddr::new(address, 7000)).await.expect_err("bytes are refused too");
    }
    let counted = |sidecar: &Intercepted| {
        let log = sidecar.access_log();
        let passed = log.iter().filter(|line| line["upstream_cluster"] == "PassthroughCluster").count();
        if passed >= 4 { Ok(()) } else { Err(format!("{passed} of {log:?}")) }
    };
    eventually("what passed is in the log", || async { counted(&free) }).await;
    counted(&bound).expect_err("nothing passed here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_without_a_certificate_learns_of_the_application_under_strict() {
    let Some(()) = able() else { return };
    let net = Net::new();
    let [control, server, kubelet] = ["control", "server", "kubelet"].map(|name| net.host(name));
    let mut mesh = Mesh::start_on(BINARY, &control).await;
    mesh.apply(STRICT).await;
    mesh.bootstrap = json!({
        "health": "[::]:15021",
        "probes": { "web": { "http": { "port": 80, "path": "/healthz" } }, "bytes": { "tcp": { "port": 7000 } } },
    });
    let ports = [(80, Protocol::Http), (7000, Protocol::Auto)];
    let workload = Workload { service: "server", ports: &ports, ..Workload::default() };
    let server = mesh.join(&server, &workload).await;
    let probe = |path: &str| curl(&kubelet, &[&format!("http://[{}]:15021{path}", server.host.v6())]);
    probe("/healthz/ready").unwrap();
    for name in ["web", "bytes"] {
        probe(&format!("/app-health/{name}")).expect_err("the application does not run yet");
    }
    for port in [80, 7000] {
        // The sidecar looks for it on loopback.
        server.host.run(echo(SocketAddr::from(([0, 0, 0, 0], port)), "server")).await;
    }
    for name in ["web", "bytes"] {
        probe(&format!("/app-health/{name}")).unwrap();
    }
    curl(&kubelet, &[&format!("http://{}/healthz", at(server.host.v4(), 80))]).expect_err("STRICT holds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_not_registered_obeys_the_workloads_mtls_mode() {
    let Some(()) = able() else { return };
    let net = Net::new();
    let [control, server, client, stranger] =
        ["control", "server", "client", "stranger"].map(|name| net.host(name));
    let mesh = Mesh::start_on(BINARY, &control).await;
    let server = mesh.join(&server, &Workload { service: "server", ..Workload::default() }).await;
    let client = mesh.join(&client, &Workload { service: "client", ..Workload::default() }).await;
    for address in server.host.addresses() {
        server.host.run(teller(SocketAddr::new(address, 7777))).await;
    }
    for address in server.host.addresses() {
        let to = SocketAddr::new(address, 7777);
        for host in [&stranger, &client.host] {
            let said = hears(host, to).await.unwrap();
            assert!(said.ends_with(MARKER), "PERMISSIVE takes plain text: {said}");
        }
    }
    mesh.apply(STRICT).await;
    for address in server.host.addresses() {
        hears(&stranger, SocketAddr::new(address, 7777)).await.expect_err("STRICT takes no plain text");
    }
    let by_other_ports = |line: &serde_json::Value| line["upstream_cluster"] == "inbound|0||";
    eventually("the connections are in the log", || async {
        let log = server.access_log();
        let taken = log.iter().filter(|line| by_other_ports(line)).count();
        if taken >= 4 { Ok(()) } else { Err(format!("{log:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_is_not_ready_while_the_rules_are_absent() {
    let Some(()) = able() else { return };
    let net = Net::new();
    let [control, host] = ["control", "host"].map(|name| net.host(name));
    let mesh = Mesh::start_on(BINARY, &control).await;
    let sidecar = mesh.join(&host, &Workload { service: "server", ..Workload::default() }).await;
    sidecar.ready().await.unwrap();
    sidecar.intercept("remove", &[]);
    let reason = eventually("it notices", || async {
        match sidecar.ready().await {
            Ok(()) => Err("still ready"),
            Err(reason) => Ok(reason),
        }
    })
    .await;
    assert!(reason.contains("intercept apply"), "{reason}");
    sidecar.intercept("apply", &[]);
    eventually("it is ready again", || sidecar.ready()).await;
}
