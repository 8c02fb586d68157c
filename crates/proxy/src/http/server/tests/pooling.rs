//! Upstream connections: how many there are, how long they live, who shares them.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use outrigger_model::cluster::UpstreamProtocol;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::spawn_local;

use super::rig::*;
use crate::protocol::HttpVersion::{Http1, Http2};

/// Answers every request with the number of its connection.
async fn numbered() -> std::net::SocketAddr {
    upstream(|number, mut wire| async move {
        loop {
            wire.head().await;
            wire.send(&ok(&number.to_string())).await;
        }
    })
    .await
}

async fn get(client: &mut Wire) -> String {
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    client.bytes(1).await
}

#[tokio::test]
async fn connection_serves_no_more_requests_than_allowed() {
    run(async {
        let mut setup = Setup::to(&[numbered().await]);
        setup.cluster.max_requests_per_connection = 2;
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let mut numbers = String::new();
        for _ in 0..5 {
            numbers.push_str(&get(&mut client).await);
        }
        assert_eq!(numbers, "00112");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn connection_that_is_old_takes_no_more_requests() {
    run(async {
        let mut setup = Setup::to(&[numbered().await]);
        setup.cluster.max_connection_duration = Some(Duration::from_secs(600));
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let mut numbers = String::new();
        for seconds in [0, 0, 601, 0] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            numbers.push_str(&get(&mut client).await);
        }
        assert_eq!(numbers, "0011");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_connection_is_given_up_after_its_time() {
    run(async {
        let gone = Rc::new(Notify::new());
        let signal = gone.clone();
        let app = upstream(move |_, mut wire| {
            let signal = signal.clone();
            async move {
                wire.head().await;
                wire.send(&ok("x")).await;
                wire.rest().await;
                signal.notify_one();
            }
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.idle_timeout = Duration::from_secs(60);
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let start = tokio::time::Instant::now();
        get(&mut client).await;
        gone.notified().await;
        let elapsed = start.elapsed().as_secs();
        assert!((60..=65).contains(&elapsed), "{elapsed}");
        assert_eq!(rig.worker.pools.idle(), 0);
    })
    .await;
}

#[tokio::test]
async fn request_beyond_the_connection_limit_waits_its_turn() {
    run(async {
        let (arrived, release) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let signals = (arrived.clone(), release.clone());
        let app = upstream(move |number, mut wire| {
            let (arrived, release) = signals.clone();
            async move {
                wire.head().await;
                arrived.notify_one();
                release.notified().await;
                wire.send(&ok(&number.to_string())).await;
                wire.head().await;
                wire.send(&ok(&number.to_string())).await;
                wire.rest().await;
            }
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.limits.max_connections = 1;
        setup.cluster.limits.max_pending = 1;
        let rig = proxy(setup, Http1).await;
        let mut clients = [
            Wire::connect(rig.address).await,
            Wire::connect(rig.address).await,
            Wire::connect(rig.address).await,
        ];
        let [first, second, third] = &mut clients;
        first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        arrived.notified().await;
        let cluster = rig.worker.snapshot().cluster("c").unwrap().clone();
        second.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        while cluster.limits.view().pending == 0 {
            tokio::task::yield_now().await;
        }
        third.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = third.head().await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert!(headers(&head)["x-outrigger-error"].contains("limit=max_pending:1"), "{head}");
        release.notify_one();
        for client in [first, second] {
            assert!(client.head().await.starts_with("HTTP/1.1 200"));
            assert_eq!(client.bytes(1).await, "0", "it is handed on");
        }
    })
    .await;
}

#[tokio::test]
async fn concurrent_h2_requests_share_one_connection() {
    run(async {
        let connections: Count = Rc::default();
        let counted = connections.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = listener.local_addr().unwrap();
        spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.set(counted.get() + 1);
                spawn_local(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        respond.send_response(http::Response::new(()), true).unwrap();
                    }
                });
            }
        });
        let mut setup = Setup::to(&[app]);
        setup.cluster.protocol = UpstreamProtocol::Http2;
        let rig = proxy(setup, Http2).await;
        let stream = TcpStream::connect(rig.address).await.unwrap();
        let (mut send, connection) = h2::client::handshake::<_>(stream).await.unwrap();
        let _: &h2::client::SendRequest<Bytes> = &send;
        spawn_local(async move {
            let _ = connection.await;
        });
        let request = || Request::get("http://a/").body(()).unwrap();
        let responses: Vec<_> = (0..20).map(|_| send.send_request(request(), true).unwrap().0).collect();
        for response in responses {
            assert_eq!(response.await.unwrap().status(), 200);
        }
        assert_eq!(connections.get(), 1);
    })
    .await;
}

/// Answers once it may; of each connection the requests at a time, at most.
async fn holding(peaks: Rc<RefCell<Vec<usize>>>, leave: Rc<Semaphore>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (peaks, leave) = (peaks.clone(), leave.clone());
            let number = peaks.borrow().len();
            peaks.borrow_mut().push(0);
            spawn_local(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let open: Count = Rc::default();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    open.set(open.get() + 1);
                    let peak = open.get().max(peaks.borrow()[number]);
                    peaks.borrow_mut()[number] = peak;
                    let (open, leave) = (open.clone(), leave.clone());
                    spawn_local(async move {
                        leave.acquire().await.unwrap().forget();
                        open.set(open.get() - 1);
                        respond.send_response(http::Response::new(()), true).unwrap();
                    });
                }
            });
        }
    });
    app
}

/// Asks so often at once over HTTP/1, each from a client of its own.
async fn ask(rig: &Rig, count: usize) -> Vec<Wire> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn connections_have_no_more_streams_than_allowed_and_there_are_as_many_as_are_needed() {
    run(async {
        let (peaks, leave) = (Rc::<RefCell<Vec<usize>>>::default(), Rc::new(Semaphore::new(0)));
        let mut setup = Setup::to(&[holding(peaks.clone(), leave.clone()).await]);
        setup.cluster.protocol = UpstreamProtocol::Http2;
        setup.cluster.max_streams_per_connection = 3;
        let rig = proxy(setup, Http1).await;
        let clients = ask(&rig, 8).await;
        until("all are there", || peaks.borrow().iter().sum::<usize>() == 8).await;
        let mut all = peaks.borrow().clone();
        all.sort_unstable();
        assert_eq!(all, [2, 3, 3]);
        leave.add_permits(8);
        for mut client in clients {
            assert!(client.head().await.starts_with("HTTP/1.1 200"));
        }
    })
    .await;
}

/// Connections are limited as well: who finds no stream has the next that ends.
#[tokio::test]
async fn a_request_without_a_stream_waits_for_the_next_that_ends() {
    run(async {
        let (peaks, leave) = (Rc::<RefCell<Vec<usize>>>::default(), Rc::new(Semaphore::new(0)));
        let mut setup = Setup::to(&[holding(peaks.clone(), leave.clone()).await]);
        setup.cluster.protocol = UpstreamProtocol::Http2;
        setup.cluster.max_streams_per_connection = 2;
        setup.cluster.limits.max_connections = 1;
        let rig = proxy(setup, Http1).await;
        let clients = ask(&rig, 7).await;
        let cluster = rig.worker.snapshot().cluster("c").unwrap().clone();
        until("the others wait", || *peaks.borrow() == [2] && cluster.limits.view().pending >= 5).await;
        leave.add_permits(7);
        for mut client in clients {
            assert!(client.head().await.starts_with("HTTP/1.1 200"));
        }
        assert_eq!(peaks.borrow()[0], 2);
    })
    .await;
}

#[tokio::test]
async fn retried_response_leaves_its_connection_usable() {
    run(async {
        let app = upstream(|number, mut wire| async move {
            assert_eq!(number, 0, "the connection was thrown away");
            wire.head().await;
            wire.send("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy").await;
            wire.head().await;
            wire.send(&ok("x")).await;
            wire.rest().await;
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.forward().retry = Some(outrigger_model::route::RetryPolicy {
            on: vec![outrigger_model::route::RetryOn::FiveXx],
            ..outrigger_model::route::RetryPolicy::default()
        });
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        assert_eq!(get(&mut client).await, "x");
    })
    .await;
}

/// Requests that wait for a connection are counted whether or not connections are: here one that nobody accepts.
#[tokio::test]
async fn requests_that_wait_for_a_connection_are_limited_in_either_protocol() {
    run(async {
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
            let (app, _taken) = full().await;
            let mut setup = Setup::to(&[app]);
            setup.cluster.protocol = protocol;
            setup.cluster.limits.max_pending = 2;
            setup.cluster.connect_timeout = Duration::from_secs(1);
            let rig = proxy(setup, Http1).await;
            let mut clients = Vec::new();
            for _ in 0..6 {
                let mut client = Wire::connect(rig.address).await;
                client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
                clients.push(client);
            }
            let mut refused = 0;
            for mut client in clients {
                let head = client.head().await;
                assert!(head.starts_with("HTTP/1.1 503"), "{head}");
                refused += usize::from(headers(&head)["x-outrigger-error"].contains("limit=max_pending:2"));
            }
            assert_eq!(refused, 4, "{protocol:?}");
            let used = rig.worker.snapshot().cluster("c").unwrap().limits.view();
            assert_eq!((used.pending, used.pending_overflows), (0, 4));
        }
    })
    .await;
}

/// Without any rules for ejection.
#[tokio::test]
async fn an_endpoint_that_refuses_connections_is_left_alone() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            loop {
                wire.head().await;
                wire.send(&ok("here")).await;
            }
        })
        .await;
        let rig = proxy(Setup::to(&[nobody().await, app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let mut failed = 0;
        for _ in 0..40 {
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
            let head = client.head().await;
            match head.starts_with("HTTP/1.1 200") {
                true => drop(client.bytes(4).await),
                false => {
                    let length: usize = headers(&head)["content-length"].parse().unwrap();
                    client.bytes(length).await;
                    failed += 1;
                }
            }
        }
        // Every second one, if it were asked in its turn; one in each second, then in two, and so on, as it is.
        assert!((1..=5).contains(&failed), "{failed} of 40 failed");
        let refused = rig.worker.metrics.cluster(&"c".into()).connect_failures.value();
        assert!(refused <= 5, "{refused}");
    })
    .await;
}
