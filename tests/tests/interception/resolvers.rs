//! Resolvers: port 53 is captured, and a program that knows nothing of the mesh reaches a service by its name, in mTLS.

use std::net::SocketAddr;
use std::path::Path;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use outrigger_control::instance::Protocol;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::netns::workload::Workload;
use outrigger_tests::netns::{Host, Net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use serde_json::json;

use super::{MARKER, Pair, between, curl, nginx};
use crate::BINARY;
use crate::dns::{World, addresses, ask, is_virtual, question, tcp};
use crate::thin_thread::STRICT;

/// As [`Pair::start`], with a resolver of the world on a host of its own, which the client's queries are for, and never reach.
async fn pair_with_names() -> Option<(Pair, Host)> {
    if !require::netns() {
        return None;
    }
    for tool in ["nft", "setpriv", "tcpdump", "curl", "nginx", "openssl"] {
        require::tool(tool)?;
    }
    let net = Net::new();
    let (control, world) = (net.host("control"), net.host("world"));
    let (client, server) = (net.host("client"), net.host("server"));
    for address in world.addresses() {
        world.run(World::start(SocketAddr::new(address, 53))).await;
    }
    let [v4, v6] = world.addresses();
    client.resolv_conf(&format!(
        "search shop.svc.cluster.local corp.example\nnameserver {v4}\nnameserver {v6}\n"
    ));
    let mut mesh = Mesh::start_on(BINARY, &control).await;
    mesh.apply(STRICT).await;
    let ports = [(80, Protocol::Auto)];
    let server =
        mesh.join(&server, &Workload { service: "server", ports: &ports, ..Workload::default() }).await;
    mesh.bootstrap = json!({ "dns": {} });
    let rules = ["--dns"];
    let client =
        mesh.join(&client, &Workload { service: "client", rules: &rules, ..Workload::default() }).await;
    Some((Pair { mesh, client, server, net }, world))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_reaches_a_service_by_name_through_the_resolvers_that_it_always_had() {
    let Some((pair, world)) = pair_with_names().await else { return };
    let (host, _nginx) = (&pair.client.host, nginx(&pair.mesh, &pair.server.host).await);
    let mut virtual_addresses = Vec::new();
    for resolver in world.addresses().map(|address| SocketAddr::new(address, 53)) {
        for kind in [RecordType::A, RecordType::AAAA] {
            let over_udp = addresses(&host.run(async move { ask(resolver, "server", kind).await }).await);
            assert!(over_udp.len() == 1 && is_virtual(over_udp[0]), "{resolver} {kind}: {over_udp:?}");
            let query = question("server.shop.svc.cluster.local", kind);
            let over_tcp = host.run(async move { tcp(resolver, &query).await }).await;
            assert_eq!(addresses(&over_tcp), over_udp);
            virtual_addresses.extend(over_udp);
        }
        let outside = host.run(async move { ask(resolver, "www.example", RecordType::A).await }).await;
        assert_eq!(addresses(&outside).len(), 1, "the sidecar has asked the world: {outside}");
        let nobody = host.run(async move { ask(resolver, "nobody", RecordType::A).await }).await;
        assert_eq!(nobody.response_code, ResponseCode::NXDomain);
    }

    let (sent, received) = (between(&pair.client).await, between(&pair.server).await);
    let capture = pair.capture().await;
    for name in ["server", "server.shop", "server.shop.svc.cluster.local"] {
        for family in ["--ipv4", "--ipv6"] {
            let body = curl(host, &[family, "--data", MARKER, &format!("http://{name}/x")]).unwrap();
            assert!(body.contains(MARKER), "{name} {family}: {body}");
        }
    }
    let wire = capture.so_far().await;
    wire.only_tls(80).unwrap_or_else(|error| panic!("{error}"));
    assert!(!wire.contains(MARKER), "what the programs said is on the wire");
    for (sidecar, before) in [(&pair.client, sent), (&pair.server, received)] {
        eventually("six calls between the two identities", || async {
            let now = between(sidecar).await;
            if now >= before + 6.0 { Ok(()) } else { Err(format!("{before} before, {now} now")) }
        })
        .await;
    }
    // A port that the service does not have: nobody is at such an address who could refuse.
    for address in &virtual_addresses[..2] {
        let url = format!("http://{}/", SocketAddr::new(*address, 81));
        let error = curl(host, &["--max-time", "5", &url]).unwrap_err();
        assert!(error.contains("502"), "{error}");
    }
    let known = host.ask(Path::new("getent"), &["ahosts", "www.example"]).unwrap();
    assert!(known.starts_with("192.0.2.0 "), "{known}");
    let dns = pair.client.metric("outrigger_dns_requests_total").await;
    let of = |source: &str| -> f64 {
        dns.iter()
            .filter(|(series, _)| series.contains(&format!("source=\"{source}\"")))
            .map(|(_, n)| n)
            .sum()
    };
    assert!(of("mesh") >= 8.0 && of("forward") >= 4.0, "{dns:?}");
}
