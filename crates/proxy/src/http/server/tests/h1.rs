//! HTTP/1 to HTTP/1: persistence, framing, interim responses, tunnels.

use std::rc::Rc;
use std::time::Duration;

use outrigger_model::route::PathMatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::rig::*;
use crate::protocol::HttpVersion::Http1;

#[tokio::test]
async fn requests_of_a_connection_share_an_upstream_connection() {
    run(async {
        let app = upstream(|number, mut wire| async move {
            assert_eq!(number, 0, "a second upstream connection");
            for body in ["one", "two"] {
                wire.head().await;
                wire.send(&ok(body)).await;
            }
            wire.rest().await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        for body in ["one", "two"] {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
            assert_eq!(client.bytes(3).await, body);
        }
        assert_eq!(rig.worker.pools.idle(), 1);
    })
    .await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            loop {
                let head = wire.head().await;
                let path = head.split(' ').nth(1).unwrap().to_owned();
                wire.send(&ok(&path)).await;
            }
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client
            .send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await;
        for path in ["/1", "/2", "/3"] {
            client.head().await;
            assert_eq!(client.bytes(2).await, path);
        }
        assert_eq!(client.rest().await, "");
    })
    .await;
}

#[tokio::test]
async fn header_case_order_and_repetition_survive() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            assert!(head.contains("X-CaSe: 1\r\nB: 2\r\nX-CaSe: 3\r\n"), "{head}");
            assert!(!head.contains("Keep-Alive"), "{head}");
            wire.send("HTTP/1.1 299 Fine So Far\r\nWeIrD: x\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 0\r\n\r\n")
                .await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\nKeep-Alive: 5\r\nX-CaSe: 1\r\nB: 2\r\nX-CaSe: 3\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 299 Fine So Far\r\nWeIrD: x\r\nSet-Cookie: a\r\nset-cookie: b\r\n"), "{head}");
    })
    .await;
}

#[tokio::test]
async fn chunked_bodies_and_trailers_cross_both_ways() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            wire.head().await;
            assert_eq!(wire.until("0\r\nX-Sum: 7\r\n\r\n").await, "5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n");
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n").await;
            wire.send("2\r\nde\r\n0\r\nX-End: yes\r\n\r\n").await;
            wire.rest().await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n").await;
        client.head().await;
        let body = client.until("X-End: yes\r\n\r\n").await;
        assert!(body.starts_with("3\r\nabc\r\n"), "{body}");
        assert!(body.ends_with("0\r\nX-End: yes\r\n\r\n"), "{body}");
    })
    .await;
}

#[tokio::test]
async fn bodyless_responses_leave_the_connection_usable() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            for response in [
                "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
                "HTTP/1.1 204 No Content\r\n\r\n",
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            ] {
                wire.head().await;
                wire.send(response).await;
            }
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(client.head().await.contains("Content-Length: 1234\r\n"));
        for status in ["204", "304", "200"] {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert!(client.head().await.starts_with(&format!("HTTP/1.1 {status}")));
        }
        assert_eq!(client.bytes(2).await, "hi");
    })
    .await;
}

#[tokio::test]
async fn expect_and_interim_responses_are_the_applications_business() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            assert!(head.contains("Expect: 100-continue\r\n"), "{head}");
            wire.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
                .await;
            assert_eq!(wire.bytes(4).await, "body");
            wire.send(&ok("done")).await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n"));
        assert!(client.head().await.starts_with("HTTP/1.1 100 Continue\r\n"));
        client.send("body").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        assert_eq!(client.bytes(4).await, "done");
    })
    .await;
}

#[tokio::test]
async fn early_response_ends_the_upload_cleanly() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            wire.head().await;
            wire.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig").await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nstart").await;
        assert!(client.head().await.starts_with("HTTP/1.1 413"));
        assert_eq!(client.bytes(3).await, "big");
        // More of the body does not reset the connection before the client has read the response.
        client.send("more of the body").await;
    })
    .await;
}

#[tokio::test]
async fn upgrade_tunnels_bytes_that_came_with_the_heads() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            assert!(head.contains("Upgrade: websocket\r\n"), "{head}");
            assert!(head.to_ascii_lowercase().contains("connection: upgrade\r\n"), "{head}");
            wire.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfrom-app").await;
            assert_eq!(wire.bytes(11).await, "from-client");
            assert_eq!(wire.rest().await, "!");
            wire.send("bye").await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfrom-client").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        assert_eq!(headers(&head)["connection"], "Upgrade");
        assert_eq!(client.bytes(8).await, "from-app");
        client.send("!").await;
        // Our end is an end of one direction only.
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.rest().await, "bye");
    })
    .await;
}

#[tokio::test]
async fn refused_upgrade_is_an_ordinary_response() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            wire.head().await;
            wire.send(&ok("no")).await;
            wire.rest().await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        assert_eq!(client.bytes(2).await, "no");
    })
    .await;
}

#[tokio::test]
async fn connect_goes_to_the_routed_upstream() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            assert!(wire.head().await.starts_with("CONNECT elsewhere.example:443 HTTP/1.1\r\n"));
            wire.send("HTTP/1.1 200 OK\r\n\r\nhello").await;
            assert_eq!(wire.bytes(4).await, "ping");
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.route.matches.path = PathMatch::Connect;
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example:443\r\n\r\n").await;
        client.head().await;
        assert_eq!(client.bytes(5).await, "hello");
        client.send("ping").await;
        assert_eq!(client.rest().await, "");
    })
    .await;
}

#[tokio::test]
async fn response_that_breaks_off_is_not_passed_on_as_whole() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            wire.head().await;
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.head().await;
        let body = client.rest().await;
        assert!(!body.contains("0\r\n\r\n"), "{body}");
    })
    .await;
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    run(async {
        const SIZE: usize = 3_000_000;
        let app = upstream(|_, mut wire| async move {
            wire.head().await;
            let body = wire.bytes(SIZE).await;
            assert!(body.bytes().all(|b| b == b'u'));
            wire.send(&ok(&"d".repeat(SIZE))).await;
            wire.rest().await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client
            .send(&format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n{}",
                "u".repeat(SIZE)
            ))
            .await;
        client.head().await;
        assert!(client.bytes(SIZE).await.bytes().all(|b| b == b'd'));
    })
    .await;
}

#[tokio::test]
async fn what_only_sidecars_may_say_is_removed() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            assert!(!head.to_ascii_lowercase().contains("x-outrigger"), "{head}");
            assert!(!head.to_ascii_lowercase().contains("x-forwarded-client-cert"), "{head}");
            assert_eq!(headers(&head)["x-request-id"].len(), 36);
            assert_eq!(headers(&head)["x-forwarded-proto"], "http");
            wire.send("HTTP/1.1 200 OK\r\nX-Outrigger-Error: side=forged; reached=no\r\nContent-Length: 0\r\n\r\n").await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Outrigger-Peer: x\r\nx-forwarded-client-cert: URI=spiffe://td/admin\r\n\r\n").await;
        assert!(!headers(&client.head().await).contains_key("x-outrigger-error"));
    })
    .await;
}

#[tokio::test]
async fn a_client_that_ends_its_side_after_the_request_gets_the_answer_and_then_the_end() {
    run(async {
        let ended = Rc::new(Notify::new());
        let told = ended.clone();
        let app = upstream(move |_, mut wire| {
            let told = told.clone();
            async move {
                loop {
                    wire.head().await;
                    told.notified().await;
                    wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
                    wire.send("3\r\ntwo\r\n0\r\n\r\n").await;
                }
            }
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        for request in
            ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"]
        {
            let mut client = Wire::connect(rig.address).await;
            client.send(request).await;
            client.stream.shutdown().await.unwrap();
            while !is_half_closed(&client) {
                tokio::task::yield_now().await;
            }
            ended.notify_one();
            let answer = client.rest().await;
            assert!(
                answer.starts_with("HTTP/1.1 200 OK")
                    && answer.contains("two")
                    && answer.ends_with("0\r\n\r\n"),
                "{answer}"
            );
        }
    })
    .await;
}

/// The other side has taken our end: the kernel says FIN-WAIT-2.
fn is_half_closed(client: &Wire) -> bool {
    let port = client.stream.local_addr().unwrap().port();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table
        .lines()
        .any(|line| line.contains(&format!(":{port:04X} ")) && line.split_whitespace().nth(3) == Some("05"))
}

#[tokio::test]
async fn an_answer_whose_end_is_that_of_the_connection_breaks_off_by_a_reset() {
    run(async {
        let heard = Rc::new(Notify::new());
        let told = heard.clone();
        let app = upstream(move |_, mut wire| {
            let told = told.clone();
            async move {
                let head = wire.head().await;
                let switched = head.contains("websocket");
                wire.send(if switched {
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhalf"
                } else {
                    "HTTP/1.0 200 OK\r\n\r\nhalf"
                })
                .await;
                told.notified().await;
                socket2::SockRef::from(&wire.stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        for request in [
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ] {
            let mut client = Wire::connect(rig.address).await;
            client.send(request).await;
            client.until("half").await;
            heard.notify_one();
            let error = client.stream.read(&mut [0]).await.expect_err("it is not the whole");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{request}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_breaks_off_a_tunnel_is_a_reset_for_the_server() {
    run(async {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rig = proxy(Setup::to(&[app.local_addr().unwrap()]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        let mut there = Wire::new(app.accept().await.unwrap().0);
        there.head().await;
        there
            .send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        client.head().await;
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        let error = there.stream.read(&mut [0]).await.expect_err("it broke off");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    })
    .await;
}
