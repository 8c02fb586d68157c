//! What was acknowledged survives kill -9; what no parser should accept, on any port, takes nothing down.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_control::api::types::ApplyQuery;
use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::Mesh;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::BINARY;
use crate::thin_thread::{catalog, web};

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_right_after_the_acknowledgement_loses_no_rule() {
    let mut mesh = Mesh::start(BINARY).await;
    for round in 1..=10 {
        let rule = format!(
            "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: round-{round}, namespace: shop}}
spec: {{selector: {{matchLabels: {{app: app-{round}}}}}, mtls: {{mode: STRICT}}}}
"
        );
        mesh.client.apply(&rule, &ApplyQuery::default()).await.expect("the rule is taken");
        mesh.kill_control();
        mesh.start_control().await;
        let rules = mesh.client.rules(&Default::default()).await.unwrap();
        assert_eq!(rules.len(), round, "after kill {round}");
        assert!(rules.iter().any(|rule| rule.name == format!("round-{round}")));
    }
}

/// Writes until refused; `true` when the peer gave up before `limit` bytes went through.
async fn endless(address: SocketAddr, limit: usize) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nX-Endless: ").await;
    let chunk = [b'x'; 16 * 1024];
    let mut sent = 0;
    while sent < limit {
        match timeout(Duration::from_secs(10), stream.write(&chunk)).await {
            Ok(Ok(written)) => sent += written,
            Ok(Err(_)) => return true,
            // Nothing taken and nothing said: buffered without end is excluded, but so is an answer.
            Err(_) => return false,
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_half_closed_slow_and_endless_bytes_on_every_port_take_nothing_down() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(catalog.app, "catalog-v1").await;
    assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200);
    let control = [15012, 15014, 4317, 16686].map(|port| mesh.address(1, port));
    let sidecar = [web.outbound[0], web.inbound, web.admin, catalog.inbound, catalog.admin];
    let mut slow = Vec::new();
    for address in control.into_iter().chain(sidecar) {
        for bytes in [
            &b""[..],
            b"\x16\x03\x01\xff\xff\x01",
            b"\x00\xff\x00\xff\x00\xff\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            // Half-closed: whatever comes back, it ends.
            let mut back = Vec::new();
            let ended = timeout(Duration::from_secs(20), stream.read_to_end(&mut back)).await;
            assert!(ended.is_ok(), "{address} keeps a half-closed connection after {bytes:?}");
        }
        assert!(Box::pin(endless(address, 16 << 20)).await, "{address} reads a header without end");
        for _ in 0..20 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"G").await.unwrap();
            slow.push(stream);
        }
    }
    // Everybody still serves, with the slow ones still there.
    assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200);
    for admin in [web.admin, catalog.admin] {
        assert_eq!(get(admin, "/ready", "").await.unwrap().0, 200);
    }
    mesh.apply(crate::thin_thread::STRICT).await;
    assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200);
    drop(slow);
}
