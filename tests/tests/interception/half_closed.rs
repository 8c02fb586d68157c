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

const PORT: u16 = 7000;

/// Hears its client to the end, says so, and answers when it is told to.
async fn patient(listen: SocketAddr, heard: Arc<Notify>, answer: Arc<Notify>) {
    let listener = TcpListener::bind(listen).await.expect("the application's address is free");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client comes");
        stream.read_to_end(&mut Vec::new()).await.expect("it is heard to its end");
        heard.notify_one();
        answer.notified().await;
        stream.write_all(b"at last").await.expect("the client still listens");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_conversation_is_an_established_connection_between_sidecars() {
    let Some(pair) = Pair::start(&[PORT], Workload::default()).await else { return };
    for address in pair.server.host.addresses() {
        let (address, heard, answer) =
            (SocketAddr::new(address, PORT), Arc::new(Notify::new()), Arc::new(Notify::new()));
        pair.server.host.run(patient(address, heard.clone(), answer.clone())).await;
        let talk = async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"word").await?;
            stream.shutdown().await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await.map(|_| text)
        };
        let watch = async {
            heard.notified().await;
            let tracked = pair.server.host.ask(Path::new("cat"), &["/proc/net/nf_conntrack"]);
            answer.notify_one();
            tracked.expect("the kernel lists what it tracks")
        };
        let (said, tracked) = tokio::join!(pair.client.host.run(talk), watch);
        assert_eq!(said.expect("the conversation goes on"), "at last");
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        let between: Vec<_> = tracked
            .lines()
            .filter(|line| line.starts_with(family) && line.contains(&format!("dport={PORT} ")))
            .filter(|line| (15126..=15141).any(|port| line.contains(&format!("sport={port} "))))
            .collect();
        assert_eq!(between.len(), 1, "{tracked}");
        assert!(between[0].contains(" ESTABLISHED "), "{}", between[0]);
    }
}
