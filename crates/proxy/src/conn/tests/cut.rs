//! Connections that are cut from outside of what serves them: nobody takes the half that came for the whole, nor nothing for an answer.

use std::net::SocketAddr;

use outrigger_model::listener::{Direction, TransportMatch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::mesh::forwarding;
use super::rig::*;

/// To a client of HTTP/1.0 the end of a body without a length is that of the connection.
const OLD: &str = "GET / HTTP/1.0\r\nHost: a\r\n\r\n";
const ENDLESS: &str = "HTTP/1.1 200 OK\r\n\r\n";
const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// What cuts a connection.
type Cut = fn(&mut Rig, SocketAddr);

const CUTS: [(&str, Cut); 2] = [("STRICT", strict), ("a drain's deadline", drained)];

fn strict(rig: &mut Rig, address: SocketAddr) {
    let chains = vec![mesh_chain("mtls-tcp", &[], Vec::new())];
    rig.apply([listener("in", Direction::Inbound, Some(address), chains)]);
}

fn drained(rig: &mut Rig, _: SocketAddr) {
    rig.worker.process.drain.begin();
    rig.worker.process.drain.force();
}

async fn until(stream: &mut TcpStream, end: &str) {
    let mut text = String::new();
    while !text.ends_with(end) {
        text += &read(stream, 1).await;
    }
}

/// Both ends of a request whose answer began with `head` and half of what is to come; the address that it came to.
async fn halfway(rig: &mut Rig, request: &str, head: &str) -> (SocketAddr, TcpStream, TcpStream) {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = rig.inbound(app.local_addr().unwrap());
    let chains = vec![chain("web", TransportMatch::Any, &[], forwarding("app"))];
    rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut there, _) = app.accept().await.unwrap();
    until(&mut there, "\r\n\r\n").await;
    there.write_all(format!("{head}half").as_bytes()).await.unwrap();
    until(&mut client, "\r\n\r\nhalf").await;
    (address, client, there)
}

#[tokio::test]
async fn half_an_answer_that_its_connection_ends_is_cut_by_a_reset() {
    local(async {
        for (way, cut) in CUTS {
            let mut rig = Rig::new(|_| {});
            let (address, client, _there) = halfway(&mut rig, OLD, ENDLESS).await;
            cut(&mut rig, address);
            is_reset(client, way).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_is_cut_by_a_reset_on_both_sides() {
    local(async {
        for (way, cut) in CUTS {
            let mut rig = Rig::new(|_| {});
            let (address, client, there) = halfway(&mut rig, UPGRADE, SWITCHED).await;
            cut(&mut rig, address);
            is_reset(client, way).await;
            is_reset(there, way).await;
        }
    })
    .await;
}

#[tokio::test]
async fn bytes_whose_server_is_still_dialled_are_cut_by_a_reset() {
    local(async {
        let (app, _queue) = full().await;
        for (way, cut) in CUTS {
            let mut rig = Rig::new(|_| {});
            let address = rig.inbound(app);
            let chains = vec![chain("tcp", TransportMatch::Any, &[], tcp("app"))];
            rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
            let client = TcpStream::connect(address).await.unwrap();
            busy(&rig, app, true).await;
            cut(&mut rig, address);
            is_reset(client, way).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_whole_ends_cleanly() {
    local(async {
        for (request, head) in [(OLD, ENDLESS), (UPGRADE, SWITCHED)] {
            let mut rig = Rig::new(|_| {});
            let (_, mut client, mut there) = halfway(&mut rig, request, head).await;
            there.shutdown().await.unwrap();
            client.shutdown().await.unwrap();
            for stream in [&mut client, &mut there] {
                let ended = timeout(LONG, stream.read(&mut [0])).await.expect("it ends");
                assert_eq!(ended.expect("a clean end"), 0, "{head}");
            }
        }
    })
    .await;
}
