//! Attacks on what clients and upstreams share: each bounded, with what it costs and what an honest client notices.
//!
//! Those that measure memory run alone, in a process of their own.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderValue, Request, Response};
use outrigger_model::cluster::UpstreamProtocol;
use outrigger_model::route::RetryPolicy;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::rig::*;
use crate::listen::accept::room;
use crate::memory::resident;
use crate::protocol::HttpVersion::{Http1, Http2};

mod sharing;

const MIB: usize = 1 << 20;

/// What an honest client would notice.
const NOTICED: Duration = Duration::from_secs(30);

const ALONE: &str = "OUTRIGGER_TEST_ALONE";

/// Runs a test of this module in a process of its own; true in there.
fn is_alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let name = format!("http::server::tests::attacks::{name}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", &name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().filter(|line| line.starts_with("figure: ")).for_each(|line| println!("{line}"));
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{name} is no test: {said}");
    false
}

async fn client(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    let builder = builder.initial_max_send_streams(4096).max_concurrent_reset_streams(4096);
    let (send, connection) = builder.handshake(stream).await.unwrap();
    spawn_local(async move {
        let _ = connection.await;
    });
    // Not its own connection is what the tests are about.
    let builder = builder.data_frame_budget(usize::MAX);
    send.ready().await.unwrap()
}

/// An application that speaks HTTP/2 with the h2 crate's defaults; counts its connections.
async fn app<F, Fut>(connections: Count, script: F) -> SocketAddr
where
    F: Fn(Request<RecvStream>, h2::server::SendResponse<Bytes>) -> Fut + Clone + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.set(connections.get() + 1);
            let script = script.clone();
            spawn_local(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    spawn_local(script(request, respond));
                }
            });
        }
    });
    address
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://a{path}")).body(()).unwrap()
}

/// Sends as the window allows; ends early if the peer resets.
async fn send_all(stream: &mut SendStream<Bytes>, mut left: usize) {
    while left > 0 {
        stream.reserve_capacity(left.min(16 * 1024));
        let Some(Ok(granted)) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
        left -= granted.min(left);
        if stream.send_data(Bytes::from(vec![b'x'; granted]), left == 0).is_err() {
            return;
        }
    }
}

/// Reads a whole body.
async fn length(mut body: RecvStream) -> usize {
    let mut length = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        let _ = body.flow_control().release_capacity(chunk.len());
        length += chunk.len();
    }
    length
}

/// The longest that an honest client waits for one of so many answers.
async fn honest(send: &mut SendRequest<Bytes>, path: &str, requests: usize) -> Duration {
    let mut worst = Duration::ZERO;
    for _ in 0..requests {
        let began = Instant::now();
        let (response, _) = send.send_request(get(path), true).unwrap();
        let response = timeout(NOTICED, response).await.expect("an honest client waits").unwrap();
        assert_eq!(response.status(), 200);
        timeout(NOTICED, length(response.into_body())).await.expect("an honest client waits");
        worst = worst.max(began.elapsed());
    }
    worst
}

async fn answer(size: usize, mut respond: h2::server::SendResponse<Bytes>) {
    let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return };
    send_all(&mut stream, size).await;
}

fn http2(app: SocketAddr) -> Setup {
    let mut setup = Setup::to(&[app]);
    setup.cluster.protocol = UpstreamProtocol::Http2;
    setup
}

/// A head that is a kilobyte on the wire: its fields are references to the header table.
fn references() -> Request<()> {
    let mut request = get("/held");
    let value = HeaderValue::from_static("b");
    for _ in 0..1500 {
        request.headers_mut().append("a", value.clone());
    }
    request
}

async fn held_or_small() -> SocketAddr {
    app(Rc::default(), |request, respond| async move {
        if request.uri().path() == "/small" {
            return answer(100, respond).await;
        }
        let mut respond = respond;
        let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
    })
    .await
}

#[tokio::test]
async fn references_to_the_header_table_hold_no_more_than_is_handed_out() {
    if !is_alone("references_to_the_header_table_hold_no_more_than_is_handed_out") {
        return;
    }
    run(async {
        let rig = proxy(Setup { memory: 64 * MIB, ..http2(held_or_small().await) }, Http2).await;
        let mut other = client(rig.address).await;
        honest(&mut other, "/small", 10).await;
        let before = resident();
        let mut worst = Duration::ZERO;
        let (mut answers, mut senders) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let mut greedy = client(rig.address).await;
            for n in 0..1000 {
                let Ok((response, _)) = greedy.send_request(references(), true) else { break };
                answers.push(spawn_local(response));
                if n % 250 == 0 {
                    worst = worst.max(honest(&mut other, "/small", 3).await);
                }
            }
            senders.push(greedy);
        }
        worst = worst.max(honest(&mut other, "/small", 20).await);
        let (held, grown) = (rig.worker.ledger.held(), resident().saturating_sub(before));
        println!(
            "figure: header references: {} MiB resident more for 3000 requests (client and application included), \
             {} KiB handed out, an honest client waits {worst:?} at most",
            grown / MIB,
            held / 1024
        );
        assert!(held <= 48 * MIB, "{held} bytes are handed out");
        assert!(grown < 250 * MIB, "{} MiB more are resident", grown / MIB);
        drop(senders);
        answers.iter().for_each(tokio::task::JoinHandle::abort);
        until("what was held", || rig.worker.ledger.held() < MIB).await;
    })
    .await;
}

#[tokio::test]
async fn open_streams_of_many_connections_are_shed_and_an_honest_client_is_served() {
    if !is_alone("open_streams_of_many_connections_are_shed_and_an_honest_client_is_served") {
        return;
    }
    run(async {
        let rig = proxy(Setup { memory: 64 * MIB, ..http2(held_or_small().await) }, Http2).await;
        let mut other = client(rig.address).await;
        honest(&mut other, "/small", 10).await;
        let before = resident();
        let (mut open, mut worst) = (Vec::new(), Duration::ZERO);
        for _ in 0..10 {
            let mut greedy = client(rig.address).await;
            for _ in 0..1000 {
                let post = Request::post("http://a/held").body(()).unwrap();
                let Ok(stream) = greedy.send_request(post, false) else { break };
                open.push(stream);
            }
            worst = worst.max(honest(&mut other, "/small", 10).await);
            // What is about to be freed counts as free.
            let held = rig.worker.ledger.held();
            assert!(held <= 48 * MIB, "{held} bytes are handed out");
        }
        let grown = resident().saturating_sub(before);
        println!(
            "figure: open streams: {} MiB resident more for 10000 streams of 10 connections (client and application \
             included), an honest client waits {worst:?} at most",
            grown / MIB
        );
        assert!(grown < 250 * MIB, "{} MiB more are resident", grown / MIB);
        drop(open);
        until("what was held", || rig.worker.ledger.held() < MIB).await;
    })
    .await;
}

/// Takes bodies of 60 KiB and answers nothing.
async fn takes_or_small() -> SocketAddr {
    app(Rc::default(), |request, mut respond| async move {
        if request.uri().path() == "/small" {
            return answer(100, respond).await;
        }
        let mut body = request.into_body();
        while let Some(Ok(chunk)) = body.data().await {
            let _ = body.flow_control().release_capacity(chunk.len());
        }
        let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
    })
    .await
}

/// What is copied for a retry counts as held.
#[tokio::test]
async fn bodies_that_are_kept_for_a_retry_hold_no_more_than_is_handed_out() {
    if !is_alone("bodies_that_are_kept_for_a_retry_hold_no_more_than_is_handed_out") {
        return;
    }
    run(async {
        let mut setup = Setup { memory: 64 * MIB, ..http2(takes_or_small().await) };
        setup.forward().retry = Some(RetryPolicy { attempts: 2, ..RetryPolicy::default() });
        let rig = proxy(setup, Http2).await;
        let mut other = client(rig.address).await;
        honest(&mut other, "/small", 10).await;
        let before = resident();
        let (mut open, mut worst) = (Vec::new(), Duration::ZERO);
        for _ in 0..4 {
            let mut greedy = client(rig.address).await;
            for _ in 0..500 {
                let post = Request::post("http://a/held").body(()).unwrap();
                let Ok((response, mut stream)) = greedy.send_request(post, false) else { break };
                open.push(spawn_local(async move {
                    send_all(&mut stream, 60 * 1024).await;
                    let _ = response.await;
                }));
            }
            worst = worst.max(honest(&mut other, "/small", 10).await);
            assert!(rig.worker.ledger.held() <= 48 * MIB, "{} bytes are handed out", rig.worker.ledger.held());
        }
        let grown = resident().saturating_sub(before);
        println!(
            "figure: bodies kept for retries: {} MiB resident more for 2000 bodies of 60 KiB (client and application \
             included), an honest client waits {worst:?} at most",
            grown / MIB
        );
        assert!(grown < 80 * MIB, "{} MiB more are resident", grown / MIB);
        open.iter().for_each(tokio::task::JoinHandle::abort);
    })
    .await;
}

/// Heads of HTTP/1 that come slowly.
#[tokio::test]
async fn slow_large_heads_make_way_for_others() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            wire.head().await;
            wire.send(&ok("x")).await;
            wire.rest().await;
        })
        .await;
        let rig = proxy(Setup { memory: 16 * MIB, ..Setup::to(&[app]) }, Http1).await;
        let mut slow = Vec::new();
        for _ in 0..200 {
            let mut wire = Wire::connect(rig.address).await;
            let part = "x".repeat(12 * 1024);
            wire.send(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-A: {part}\r\nX-B: {part}")).await;
            slow.push(wire);
        }
        until("the heads", || rig.worker.ledger.held() > 4 * MIB).await;
        let mut honest = Wire::connect(rig.address).await;
        let large = "y".repeat(30 * 1024);
        honest.send(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-Large: {large}\r\n\r\n")).await;
        assert!(honest.head().await.starts_with("HTTP/1.1 200"));
        assert!(rig.worker.ledger.held() <= 9 * MIB);
    })
    .await;
}

/// What never becomes HTTP/2.
#[tokio::test(start_paused = true)]
async fn a_connection_without_a_preface_is_closed() {
    run(async {
        let mut setup = http2(nobody().await);
        setup.http.request_headers_timeout = Duration::ZERO;
        let rig = proxy(setup, Http2).await;
        let began = tokio::time::Instant::now();
        let mut silent = Wire::connect(rig.address).await;
        silent.rest().await;
        assert_eq!(began.elapsed().as_secs(), 10);
    })
    .await;
}

/// At a limit of connections or descriptors those that rest make room, of clients and of upstreams.
#[tokio::test]
async fn resting_connections_make_room_for_new_ones() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            for length in [0, 1] {
                wire.head().await;
                wire.bytes(length).await;
                wire.send(&ok("x")).await;
            }
            wire.rest().await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let permits = Arc::new(Semaphore::new(1));
        let taken = room(&rig.worker, &permits).await.unwrap();
        let (mut busy, mut resting) = (Wire::connect(rig.address).await, Wire::connect(rig.address).await);
        resting.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(resting.head().await.starts_with("HTTP/1.1 200"));
        resting.bytes(1).await;
        busy.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n").await;
        until("the request", || rig.worker.pools.idle() == 0).await;
        let full = room(&rig.worker, &permits);
        spawn_local(async move {
            resting.rest().await;
            drop(taken);
        });
        assert!(full.await.is_some(), "the resting one went");
        busy.send("x").await;
        assert!(busy.head().await.starts_with("HTTP/1.1 200"), "the busy one did not");
    })
    .await;
}
