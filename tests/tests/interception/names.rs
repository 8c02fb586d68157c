//! Names: unmodified programs ask the resolver that their host's resolv.conf names, the sidecar answers for the mesh with virtual
//! addresses, and what is not the mesh's is answered by the world.

use std::net::SocketAddr;
use std::path::Path;

use outrigger_control::instance::Protocol;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::netns::workload::Workload;
use outrigger_tests::netns::{Host, Net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use serde_json::json;

use super::{MARKER, Pair, able, between, curl, nginx, python, serve};
use crate::BINARY;
use crate::dns::World;
use crate::thin_thread::STRICT;

const PORTS: [(u16, Protocol); 3] = [(80, Protocol::Auto), (6379, Protocol::Auto), (50051, Protocol::Auto)];
const SPELLINGS: [&str; 3] = ["server", "server.shop", "server.shop.svc.cluster.local"];

/// A pair whose hosts ask the resolver of a third one, which ends with it.
pub(super) async fn pair(mode: &str, ports: &[(u16, Protocol)]) -> Option<(Pair, Host)> {
    able()?;
    let net = Net::new();
    let [control, client, server, world] =
        ["control", "client", "server", "world"].map(|name| net.host(name));
    let resolver = SocketAddr::new(world.v4(), 53);
    world.run(async move { World::start(resolver).await }).await;
    for host in [&client, &server] {
        host.resolv_conf(&format!("nameserver {}\nsearch shop.svc.cluster.local\n", world.v4()));
    }
    let mut mesh = Mesh::start_on(BINARY, &control).await;
    mesh.apply(STRICT).await;
    mesh.bootstrap = json!({ "dns": {} });
    let like = Workload { mode, rules: &["--dns"], ..Workload::default() };
    let server = mesh.join(&server, &Workload { service: "server", ports, ..like }).await;
    let client = mesh.join(&client, &Workload { service: "client", ..like }).await;
    Some((Pair { mesh, client, server, net }, world))
}

fn lookup(host: &Host, database: &str, name: &str) -> Result<String, String> {
    host.ask(Path::new("getent"), &[database, name])
}

async fn programs_find_each_other_by_name(mode: &str) {
    let tools = ["nginx", "openssl", "redis-server", "redis-cli"].map(require::tool);
    let ([Some(_), Some(_), Some(redis), Some(redis_cli)], Some((interpreter, script))) = (tools, python())
    else {
        return;
    };
    let Some((pair, _world)) = pair(mode, &PORTS).await else { return };
    let (client, server) = (&pair.client.host, &pair.server.host);
    let _nginx = nginx(&pair.mesh, server).await;
    let mut command = server.command(redis);
    command.args(["--port", "6379", "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", ""]);
    let _redis = serve(&pair.mesh, server, "redis", command, 6379).await;
    let mut command = server.command(&interpreter);
    command.arg(&script).args(["grpc_server", "::", "50051", ""]);
    let _grpc = serve(&pair.mesh, server, "grpc", command, 50051).await;

    for name in SPELLINGS {
        let (v4, v6) = (lookup(client, "ahostsv4", name).unwrap(), lookup(client, "ahostsv6", name).unwrap());
        assert!(v4.starts_with("24") && v6.starts_with("2001:2:"), "{name} has virtual addresses: {v4}{v6}");
    }
    assert!(
        lookup(client, "ahostsv4", "sea.example").unwrap().starts_with("192.0.2.0 "),
        "the world answers"
    );
    lookup(client, "hosts", "nobody.shop").expect_err("the mesh has no such name, and neither has the world");

    let before = between(&pair.server).await;
    let capture = pair.capture().await;
    for name in SPELLINGS {
        for family in ["-4", "-6"] {
            let body = curl(client, &[family, "--data", MARKER, &format!("http://{name}/x")]).unwrap();
            assert!(body.starts_with(&format!("{MARKER} POST /x for ")), "{body}");
        }
        assert_eq!(client.ask(&redis_cli, &["-h", name, "set", "shanty", MARKER]).unwrap(), "OK\n");
        // gRPC's own resolver reads resolv.conf itself.
        let args = [&script.display().to_string(), "grpc_client", name, "50051", MARKER];
        assert_eq!(client.ask(&interpreter, &args).unwrap(), "grpc_client fine\n");
    }
    eventually("the server's sidecar counts them all by the client's identity", || async {
        let now = between(&pair.server).await;
        if now >= before + 15.0 { Ok(()) } else { Err(format!("{before} before, {now} now")) }
    })
    .await;
    let wire = capture.so_far().await;
    for (port, _) in PORTS {
        wire.only_tls(port).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(!wire.contains(MARKER), "what the programs said is on the wire");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_find_each_other_by_name_under_redirect() {
    programs_find_each_other_by_name("redirect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_find_each_other_by_name_under_tproxy() {
    programs_find_each_other_by_name("tproxy").await;
}

async fn a_workload_that_calls_its_own_service_reaches_itself(mode: &str) {
    if require::tool("nginx").is_none() || require::tool("openssl").is_none() {
        return;
    }
    let Some((pair, _world)) = pair(mode, &PORTS).await else { return };
    let server = &pair.server.host;
    let _nginx = nginx(&pair.mesh, server).await;
    let itself = "source_principal=\"spiffe://cluster.local/ns/shop/sa/server\"";
    for family in ["-4", "-6"] {
        let body = curl(server, &[family, "http://server.shop/own"]).unwrap();
        assert!(body.starts_with(&format!("{MARKER} GET /own for ")), "{body}");
    }
    // By way of both sides of its sidecar, with the certificate that any other caller would show.
    eventually("its sidecar counts them by its own identity", || async {
        let samples = pair.server.metric("istio_requests_total").await;
        let own = |series: &str| series.contains(itself) && series.contains("mutual_tls");
        let count: f64 = samples.iter().filter(|(series, _)| own(series)).map(|(_, value)| value).sum();
        if count >= 2.0 { Ok(()) } else { Err(format!("{samples:?}")) }
    })
    .await;
    // Its own addresses are nobody else's business.
    let [v4, v6] = server.addresses();
    for place in ["127.0.0.1", "[::1]", &v4.to_string(), &format!("[{v6}]")] {
        let body = curl(server, &[&format!("http://{place}/direct")]).unwrap();
        assert!(body.starts_with(&format!("{MARKER} GET /direct for ")), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_calls_its_own_service_reaches_itself_under_redirect() {
    a_workload_that_calls_its_own_service_reaches_itself("redirect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_calls_its_own_service_reaches_itself_under_tproxy() {
    a_workload_that_calls_its_own_service_reaches_itself("tproxy").await;
}
