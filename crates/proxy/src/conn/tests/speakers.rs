//! Who speaks first, and what words decide.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use outrigger_model::listener::{Direction, HttpFilter, Terminal, TransportMatch};
use outrigger_model::policy::{Rbac, RbacAction, RbacPolicy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::mesh::answering;
use super::rig::*;

/// What an HTTP/2 server sends at once.
const SETTINGS: &[u8] = &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];

/// A port without a declared protocol, whose requests are answered with 204 by the sidecar; with policy for them, or none.
fn undeclared(rig: &mut Rig, address: SocketAddr, judged: bool) {
    let mut web = answering();
    if let Terminal::Http(http) = &mut web
        && judged
    {
        let nobody = RbacPolicy { permissions: Vec::new(), principals: Vec::new(), origin: None };
        let deny = Rbac { action: RbacAction::Deny, policies: BTreeMap::from([("p".into(), nobody)]) };
        http.filters = vec![HttpFilter::Rbac(deny)];
    }
    let chains = vec![
        chain("web", TransportMatch::Plain, &["http/1.1", "h2c"], web),
        chain("tcp", TransportMatch::Plain, &[], tcp("app")),
    ];
    rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
}

/// A server that says these words to who comes, tells so, and sends back what it hears.
async fn greeter(words: &'static [u8], told: Rc<Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let told = told.clone();
            spawn_local(async move {
                stream.write_all(words).await.unwrap();
                told.notify_one();
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn words_of_an_http_server_decide_nothing() {
    local(async {
        for words in [SETTINGS, b"HTTP/1.1 408 Request Timeout\r\n\r\n"] {
            let told = Rc::new(Notify::new());
            let mut rig = Rig::new(|_| {});
            let address = rig.inbound(greeter(words, told.clone()).await);
            undeclared(&mut rig, address, false);
            let mut client = TcpStream::connect(address).await.unwrap();
            told.notified().await;
            // Long enough for the words to have been heard, were they listened to.
            (0..100).for_each(|_| std::thread::yield_now());
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            assert_eq!(read(&mut client, 12).await, "HTTP/1.1 204", "after {words:?}");
            // A client that is none of HTTP's hears them.
            let mut client = TcpStream::connect(address).await.unwrap();
            told.notified().await;
            client.write_all(b"\0\0").await.unwrap();
            let mut heard = vec![0; words.len() + 2];
            timeout(LONG, client.read_exact(&mut heard)).await.unwrap().unwrap();
            assert_eq!(heard, [words, b"\0\0"].concat());
        }
    })
    .await;
}

#[tokio::test]
async fn a_failed_early_dial_ends_only_what_is_opaque() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(nobody().await);
        undeclared(&mut rig, address, false);
        let cells = rig.worker.metrics.cluster(&std::sync::Arc::from("app"));
        let mut client = TcpStream::connect(address).await.unwrap();
        while cells.connect_failures.value() == 0 {
            tokio::task::yield_now().await;
        }
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(read(&mut client, 12).await, "HTTP/1.1 204");
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"\0\0").await.unwrap();
        is_reset(client, "bytes, and nobody answers").await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_speaks_is_not_held_up_by_a_dial_that_hangs() {
    local(async {
        let (app, _queue) = full().await;
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(app);
        undeclared(&mut rig, address, false);
        rig.worker.connections.speakers.server("in");
        let mut client = TcpStream::connect(address).await.unwrap();
        busy(&rig, app, true).await;
        let begun = std::time::Instant::now();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(read(&mut client, 12).await, "HTTP/1.1 204");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test]
async fn words_like_those_of_http_are_bytes_to_memcached_and_its_kind() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(echo("").await);
        undeclared(&mut rig, address, true);
        for words in [
            "get key\r\n",
            "delete 1\r\n",
            "put 0 0 60 5\r\nhello\r\n",
            "OPTIONS rtsp://camera/stream RTSP/1.0\r\nCSeq: 1\r\n\r\n",
            "REGISTER sip:a.example SIP/2.0\r\n\r\n",
            "OPTIONS icap://scan/avscan ICAP/1.0\r\n\r\n",
        ] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(words.as_bytes()).await.unwrap();
            assert_eq!(read(&mut client, words.len()).await, words);
        }
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"get /x HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(read(&mut client, 9).await.starts_with("HTTP/1.1 "), "whose methods are told apart by case");
    })
    .await;
}

#[tokio::test]
async fn undecided_at_the_limit_passes_only_where_no_request_is_judged() {
    local(async {
        let line = [b"GET /".to_vec(), vec![b'a'; 40_000]].concat();
        let method = [vec![b'M'; 64], b" /admin HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()].concat();
        for (words, end) in [
            (line, false),
            (b"GET /admin\r\n".to_vec(), false),
            (method, false),
            (b"GET /admin".to_vec(), true),
        ] {
            for judged in [false, true] {
                let mut rig = Rig::new(|_| {});
                let address = rig.inbound(echo("").await);
                undeclared(&mut rig, address, judged);
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(&words).await.unwrap();
                if end {
                    client.shutdown().await.unwrap();
                }
                if !judged {
                    assert_eq!(read(&mut client, words.len()).await.as_bytes(), words);
                    continue;
                }
                is_reset(client, &format!("{} bytes", words.len())).await;
                let line = rig.line().await;
                assert!(line["error"].as_str().unwrap().contains("policy for requests"), "{line}");
            }
        }
    })
    .await;
}
