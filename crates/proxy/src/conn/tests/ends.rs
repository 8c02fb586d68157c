//! How connections end: a reset of one side is a reset for the other, and none leads back to ourselves.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use outrigger_model::listener::{Direction, FilterChain, TransportMatch};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::rig::*;
use crate::bootstrap::OutboundPolicy;
use crate::memory::Budget;

fn plain(rig: &mut Rig, address: SocketAddr) {
    let chains = vec![chain("tcp", TransportMatch::Any, &[], tcp("app"))];
    rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
}

fn abort(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// An application that says something and breaks off.
async fn breaks_off() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            spawn_local(async move {
                stream.write_all(b"half").await.unwrap();
                // Told when the client has it: a reset may overtake what was sent.
                let _ = stream.read_u8().await;
                abort(stream);
            });
        }
    });
    address
}

/// How reading ended after `half`, once the application was told to break off.
async fn end_of(to: SocketAddr) -> std::io::Result<usize> {
    let mut client = TcpStream::connect(to).await.unwrap();
    client.write_all(b"?").await.unwrap();
    let mut rest = Vec::new();
    timeout(LONG, client.read_to_end(&mut rest)).await.expect("it ends")
}

/// The sidecars of `web` and `stock`, and where `web` calls `stock`.
async fn mesh(app: SocketAddr) -> (Rig, Rig, SocketAddr) {
    mesh_by(app, vec![mesh_chain("mtls-tcp", &[], Vec::new())])
}

/// The same, with the chains of `stock`'s sidecar.
fn mesh_by(app: SocketAddr, chains: Vec<FilterChain>) -> (Rig, Rig, SocketAddr) {
    let authority = authority();
    let store = credentials(&authority, "stock");
    let mut server = Rig::new(|process| process.credentials = store);
    let address = server.inbound(app);
    server.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
    let store = credentials(&authority, "web");
    let mut client = Rig::new(|process| process.credentials = store);
    client.apply(service("stock", cluster("stock", vec![endpoint(address, Some(id("stock")))])));
    let entry = client.outbound("stock.shop:8080");
    (server, client, entry)
}

#[tokio::test]
async fn a_server_that_breaks_off_is_a_reset_for_the_client() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(breaks_off().await);
        plain(&mut rig, address);
        let (_server, _client, entry) = mesh(breaks_off().await).await;
        for (way, to) in [("one sidecar", address), ("two sidecars and TLS between them", entry)] {
            let error = end_of(to).await.expect_err(way);
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{way}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_breaks_off_is_a_reset_for_the_server() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = listener.local_addr().unwrap();
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(app);
        plain(&mut rig, address);
        let (_server, _client, entry) = mesh(app).await;
        for (way, to) in [("one sidecar", address), ("two sidecars and TLS between them", entry)] {
            let mut client = TcpStream::connect(to).await.unwrap();
            client.write_all(b"half").await.unwrap();
            let (mut there, _) = listener.accept().await.unwrap();
            assert_eq!(read(&mut there, 4).await, "half");
            abort(client);
            let ended = timeout(LONG, there.read(&mut [0])).await.expect("it ends");
            assert_eq!(ended.expect_err(way).kind(), std::io::ErrorKind::ConnectionReset, "{way}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_clean_end_stays_clean() {
    local(async {
        let (_server, _client, entry) = mesh(echo("").await).await;
        assert_eq!(exchange(entry, "whole").await.unwrap(), "whole");
    })
    .await;
}

/// What a client hears that says bytes, and that says nothing more.
async fn is_refused(to: SocketAddr, what: &str) {
    for half_closed in [false, true] {
        let mut client = TcpStream::connect(to).await.unwrap();
        let mut heard = Vec::new();
        // It may be over before anything was said.
        let talk = async {
            client.write_all(b"\0\0").await?;
            if half_closed {
                let _ = client.shutdown().await;
            }
            client.read_to_end(&mut heard).await
        };
        let error = timeout(LONG, talk).await.expect("it ends").expect_err(what);
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{what}");
        assert_eq!(heard, b"", "{what}");
    }
}

/// An end would look like a whole answer without a byte.
#[tokio::test]
async fn what_fails_before_its_tunnel_stands_is_reset() {
    local(async {
        let web = || chain("web", TransportMatch::Plain, &["http/1.1", "h2c"], super::mesh::answering());
        let unseen = || chain("tcp", TransportMatch::Any, &[], tcp("app"));
        let seen = || chain("tcp", TransportMatch::Plain, &[], tcp("app"));
        let denied = |chain: FilterChain| FilterChain { authorization: deny_all(), ..chain };
        let (app, dead) = (echo("").await, nobody().await);
        for (what, app, chains) in [
            ("declared, nobody answers", dead, vec![unseen()]),
            ("undeclared, nobody answers", dead, vec![web(), seen()]),
            ("declared, denied", app, vec![denied(unseen())]),
            ("undeclared, denied", app, vec![web(), denied(seen())]),
            ("STRICT", app, vec![mesh_chain("mtls-tcp", &[], Vec::new())]),
        ] {
            let mut rig = Rig::new(|_| {});
            let address = rig.inbound(app);
            rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
            is_refused(address, what).await;
        }
        let mut rig = Rig::new(|process| process.outbound_policy = OutboundPolicy::RegistryOnly);
        rig.apply([]);
        is_refused(rig.outbound("outside.test:80"), "not known").await;
    })
    .await;
}

/// The sidecar of the client has a tunnel by then.
#[tokio::test]
async fn what_fails_behind_the_other_sidecar_is_reset() {
    local(async {
        let web = || FilterChain {
            terminal: super::mesh::answering(),
            ..mesh_chain("mtls-http", &["istio-http/1.1"], Vec::new())
        };
        let bytes = || mesh_chain("mtls-tcp", &[], Vec::new());
        let denied = || mesh_chain("mtls-tcp", &[], deny_all());
        let (app, dead) = (echo("").await, nobody().await);
        for (what, app, chains) in [
            ("declared, nobody answers", dead, vec![bytes()]),
            ("undeclared, nobody answers", dead, vec![web(), bytes()]),
            ("declared, denied", app, vec![denied()]),
            ("undeclared, denied", app, vec![web(), denied()]),
        ] {
            let (_server, _client, entry) = mesh_by(app, chains);
            is_refused(entry, what).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_passed_through_never_comes_back_to_us() {
    local(async {
        let mut rig = Rig::new(|_| {});
        rig.apply([]);
        let first = rig.outbound("outside.test:80");
        let second = rig.outbound(&first.to_string());
        rig.absent.push(first.to_string());
        rig.apply([]);
        let answer = exchange(second, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("this sidecar itself"), "{answer}");
        // The application's place is ours as well: what comes in would come in again.
        let inner = rig.inbound(first);
        plain(&mut rig, inner);
        assert_eq!(exchange(inner, "x").await.unwrap_or_default(), "");
        rig.line().await;
        let line = rig.line().await;
        assert!(line["error"].as_str().unwrap().contains("this sidecar itself"), "{line}");
    })
    .await;
}

#[tokio::test]
async fn a_loop_over_another_is_broken_before_descriptors_are_gone() {
    local(async {
        // Somebody who sends on to where we pass from.
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = other.local_addr().unwrap();
        let mut rig =
            Rig::new(|process| process.loops = std::sync::Arc::new(crate::loops::Loops::limited(16)));
        rig.absent.push(there.to_string());
        rig.apply([]);
        let entry = rig.outbound(&there.to_string());
        let gone = Rc::new(Notify::new());
        let told = gone.clone();
        spawn_local(async move {
            while let Ok((mut stream, _)) = other.accept().await {
                let told = told.clone();
                spawn_local(async move {
                    let mut next = TcpStream::connect(entry).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut next).await;
                    told.notify_one();
                });
            }
        });
        let mut client = TcpStream::connect(entry).await.unwrap();
        let _ = client.write_all(b"round").await;
        let _ = timeout(LONG, client.read(&mut [0])).await.expect("the loop ends");
        gone.notified().await;
        let line = rig.line().await;
        assert_eq!(line["response_flags"], "UO", "{line}");
    })
    .await;
}

/// Tunnels count for what nobody takes of them, as streams of requests do.
#[tokio::test]
async fn tunnels_whose_bytes_nobody_takes_end_when_memory_does() {
    local(async {
        let mut rig = Rig::new(|process| {
            process.memory = Budget::new(Some(16 << 20), 1);
            process.memory.resident = || usize::MAX;
        });
        // It accepts, and takes nothing; for one that is so far away, as it claims, the kernel keeps little.
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        SockRef::from(&app).set_recv_buffer_size(4096).unwrap();
        SockRef::from(&app).set_tcp_mss(536).unwrap();
        let address = rig.inbound(app.local_addr().unwrap());
        spawn_local(async move {
            let mut taken = Vec::new();
            while let Ok((stream, _)) = app.accept().await {
                taken.push(stream);
            }
        });
        plain(&mut rig, address);
        let mut clients = Vec::new();
        for _ in 0..100 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            clients.push(spawn_local(async move {
                // Until it is cut off.
                let _ = stream.write_all(&vec![0; 1 << 20]).await;
                let _ = stream.read(&mut [0; 1]).await;
            }));
        }
        // A quarter of 8 MiB may wait, of a quarter of one each; and what has come since the last look, which is less than 32.
        for _ in 0..100 - 8 - 31 {
            let line = rig.line().await;
            assert!(line["error"].as_str().unwrap().contains("memory_limit"), "{line}");
        }
        let open = clients.iter().filter(|client| !client.is_finished()).count();
        assert!(open >= 7, "{open} are open");
    })
    .await;
}
