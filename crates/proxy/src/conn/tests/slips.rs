//! A change of policy or trust while a connection is still being opened: it is judged by what is in force when it is done.

use std::net::SocketAddr;
use std::rc::Rc;

use outrigger_model::listener::{Direction, FilterChain, TransportMatch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::rig::*;

fn apply(rig: &mut Rig, address: SocketAddr, chains: Vec<FilterChain>) {
    rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
}

fn plain() -> FilterChain {
    chain("plain-tcp", TransportMatch::Plain, &[], tcp("app"))
}

fn mesh() -> FilterChain {
    mesh_chain("mtls-tcp", &["istio"], Vec::new())
}

#[tokio::test]
async fn a_client_that_was_silent_when_strict_came_is_refused_when_it_speaks() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let app = echo("").await;
        let address = rig.inbound(app);
        apply(&mut rig, address, vec![mesh(), plain()]);
        let mut client = TcpStream::connect(address).await.unwrap();
        // It waits for the client to speak: it has tried the server.
        busy(&rig, app, true).await;
        apply(&mut rig, address, vec![mesh()]);
        client.write_all(b"plain text").await.unwrap();
        is_reset(client, "refused").await;
        let line = rig.line().await;
        assert!(line["error"].as_str().unwrap().contains("requires mTLS (STRICT)"), "{line}");
    })
    .await;
}

#[tokio::test]
async fn a_denial_that_comes_while_first_bytes_are_awaited_holds_for_them() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let app = echo("").await;
        let address = rig.inbound(app);
        let web = || chain("web", TransportMatch::Plain, &["http/1.1", "h2c"], super::mesh::answering());
        apply(&mut rig, address, vec![web(), plain()]);
        let mut client = TcpStream::connect(address).await.unwrap();
        // It waits for the client to speak: it has tried the server.
        busy(&rig, app, true).await;
        apply(&mut rig, address, vec![web(), FilterChain { authorization: deny_all(), ..plain() }]);
        client.write_all(b"\0").await.unwrap();
        is_reset(client, "refused").await;
        let line = rig.line().await;
        assert_eq!(line["response_code_details"], "rbac_access_denied", "{line}");
    })
    .await;
}

#[tokio::test]
async fn a_servers_greeting_does_not_pass_once_strict_is_in_force() {
    local(async {
        let (come, greet) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(application.local_addr().unwrap());
        apply(&mut rig, address, vec![mesh(), plain()]);
        let (come_there, greet_there) = (come.clone(), greet.clone());
        spawn_local(async move {
            let (mut stream, _) = application.accept().await.unwrap();
            come_there.notify_one();
            greet_there.notified().await;
            stream.write_all(b"220 ready\n").await.unwrap();
            let _ = stream.read_u8().await;
        });
        let client = TcpStream::connect(address).await.unwrap();
        come.notified().await;
        apply(&mut rig, address, vec![mesh()]);
        greet.notify_one();
        is_reset(client, "refused").await;
        let line = rig.line().await;
        assert!(line["error"].as_str().unwrap().contains("requires mTLS (STRICT)"), "{line}");
    })
    .await;
}

#[tokio::test]
async fn trust_that_is_removed_between_handshake_and_first_bytes_is_gone() {
    local(async {
        let authority = authority();
        let store = credentials(&authority, "stock");
        let mut rig = Rig::new(|process| process.credentials = store);
        let address = rig.inbound(echo("").await);
        let web = FilterChain {
            terminal: super::mesh::answering(),
            ..mesh_chain("mtls-http", &["istio-http/1.1"], Vec::new())
        };
        // Bytes within TLS decide, so the connection waits for them after its handshake.
        apply(&mut rig, address, vec![web, mesh()]);
        let store = credentials(&authority, "web");
        let mut client = Rig::new(|process| process.credentials = store);
        client.apply(service("stock", cluster("stock", vec![endpoint(address, Some(id("stock")))])));
        let mut stream = TcpStream::connect(client.outbound("stock.shop:8080")).await.unwrap();
        while !rig.worker.connections.is_sidecar([127, 0, 0, 1].into()) {
            tokio::task::yield_now().await;
        }
        rig.worker.process.credentials.replace_bundle(super::rig::authority().bundle());
        stream.write_all(b"\0bytes").await.unwrap();
        is_reset(stream, "refused").await;
        let line = rig.line().await;
        assert!(line["error"].as_str().unwrap().contains("trust has changed"), "{line}");
    })
    .await;
}
