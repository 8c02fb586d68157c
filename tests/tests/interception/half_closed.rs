//! A conversation of which one half has ended, and what the kernel makes of the connection between the sidecars.
//!
//! A connection tracker that has seen a FIN forgets a silent connection after a minute. Where its NAT has changed the port, which
//! `redirect` does when a client uses one port towards two servers' ports, a FIN that came twice is enough for it to give that port to
//! the next who asks, in mid-conversation.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use outrigger_tests::netns::workload::Workload;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::Pair;

/// Of a conversation in bytes, and of one that begins as HTTP/1 and switches to another protocol.
const PORTS: [u16; 2] = [BYTES, SWITCHES];
const BYTES: u16 = 7000;
const SWITCHES: u16 = 7001;

const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

async fn head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Says a word and ends its side; what is answered then.
async fn converse(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    if address.port() == SWITCHES {
        let asks =
            format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        stream.write_all(asks.as_bytes()).await?;
        let answer = head(&mut stream).await?;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    }
    stream.write_all(b"word").await?;
    stream.shutdown().await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.map(|_| text)
}

/// Hears its client to the end, says so, and answers when it is told to.
async fn patient(listen: SocketAddr, heard: Arc<Notify>, answer: Arc<Notify>) {
    let listener = TcpListener::bind(listen).await.expect("the application's address is free");
    tokio::spawn(async move {
        let mut stream = loop {
            let (mut stream, _) = listener.accept().await.expect("a client comes");
            if listen.port() != SWITCHES {
                break stream;
            }
            // A sidecar may have come before its client had said that it speaks HTTP, and go again.
            if head(&mut stream).await.is_ok() {
                stream.write_all(SWITCHED.as_bytes()).await.expect("the client waits for it");
                break stream;
            }
        };
        stream.read_to_end(&mut Vec::new()).await.expect("it is heard to its end");
        heard.notify_one();
        answer.notified().await;
        stream.write_all(b"at last").await.expect("the client still listens");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_conversation_is_an_established_connection_between_sidecars() {
    let Some(pair) = Pair::start(&PORTS, Workload::default()).await else { return };
    let addresses = pair.server.host.addresses();
    for address in PORTS.into_iter().flat_map(|port| addresses.map(|ip| SocketAddr::new(ip, port))) {
        let (heard, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        pair.server.host.run(patient(address, heard.clone(), answer.clone())).await;
        let watch = async {
            heard.notified().await;
            let tracked = pair.server.host.ask(Path::new("cat"), &["/proc/net/nf_conntrack"]);
            answer.notify_one();
            tracked.expect("the kernel lists what it tracks")
        };
        let (said, tracked) = tokio::join!(pair.client.host.run(converse(address)), watch);
        assert_eq!(said.expect("the conversation goes on"), "at last");
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        // Beside it there may be one that was made before the client had said that it speaks HTTP, and that has ended.
        let between = tracked
            .lines()
            .filter(|line| line.starts_with(family) && line.contains(&format!("dport={} ", address.port())))
            .filter(|line| (15126..=15141).any(|port| line.contains(&format!("sport={port} "))))
            .filter(|line| line.contains(" ESTABLISHED "));
        assert_eq!(between.count(), 1, "{address}: {tracked}");
    }
}
