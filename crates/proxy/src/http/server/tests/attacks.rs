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
use outrigger_model::listener::HttpFilter;
use outrigger_model::route::RetryPolicy;
use outrigger_model::token::{JwtAuthn, JwtProvider};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
    // Not its own connection is what the tests are about.
    let builder = builder.data_frame_budget(usize::MAX);
    let (send, connection) = builder.handshake(stream).await.unwrap();
    spawn_local(async move {
        let _ = connection.await;
    });
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

/// Of a tunnel the head is held as long as it lasts, once more as it was judged, and once more as it came where tokens are taken out.
#[tokio::test]
async fn heads_of_tunnels_are_paid_for_as_often_as_they_are_held() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            wire.head().await;
            wire.send("HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
            wire.rest().await;
        })
        .await;
        let asked = |kib: usize| {
            let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
            format!("{head}X-Large: {}\r\n\r\n", "x".repeat(kib * 1024))
        };
        let tokens = HttpFilter::Tokens(Box::new(JwtAuthn {
            providers: [("p".to_owned(), JwtProvider::new("i", r#"{"keys":[]}"#))].into(),
            rules: Vec::new(),
            bypass_preflight: false,
        }));
        for (filters, copies) in [(vec![], 1), (vec![tokens], 2)] {
            let mut setup = Setup { memory: 16 * MIB, ..Setup::to(&[app]) };
            setup.http.filters = filters;
            let rig = proxy(setup, Http1).await;
            let mut small = Wire::connect(rig.address).await;
            small.send(&asked(1)).await;
            assert!(small.head().await.starts_with("HTTP/1.1 101"));
            let held = rig.worker.ledger.held();
            assert!((copies * 1024..copies * 2048).contains(&held), "{held} bytes for {copies} of a KiB");
            // 8 MiB are handed out; each head is 64 KiB in its buffer, and 48 in each copy.
            let (mut open, mut refused) = (Vec::new(), 0);
            for _ in 0..100 {
                let mut wire = Wire::connect(rig.address).await;
                wire.send(&asked(48)).await;
                let head = wire.head().await;
                match head.starts_with("HTTP/1.1 101") {
                    true => open.push(wire),
                    false => {
                        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
                        refused += 1;
                    }
                }
            }
            let most = 8 * 1024 / (64 + 48 * copies);
            assert!((most - 2..=most).contains(&open.len()), "{} are open, {refused} refused", open.len());
            assert!(rig.worker.ledger.held() <= 8 * MIB);
            drop((small, open));
            until("what was held", || rig.worker.ledger.held() == 0).await;
        }
    })
    .await;
}

/// Uploads over HTTP/1 that the application does not take: none holds much, but there are many.
#[tokio::test]
async fn many_small_uploads_that_nobody_takes_end_before_memory_does() {
    if !is_alone("many_small_uploads_that_nobody_takes_end_before_memory_does") {
        return;
    }
    run(async {
        // For an application that has little room and is far away, as it claims, the kernel keeps little.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.set_tcp_mss(536).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(1024).unwrap();
        socket.set_nonblocking(true).unwrap();
        let app = TcpListener::from_std(socket.into()).unwrap();
        let address = app.local_addr().unwrap();
        spawn_local(async move {
            loop {
                let mut stream = app.accept().await.unwrap().0;
                spawn_local(async move {
                    let mut begins = [0; 3];
                    if stream.read_exact(&mut begins).await.is_ok() && &begins == b"GET" {
                        let _ = stream.write_all(ok("x").as_bytes()).await;
                    }
                    std::future::pending::<()>().await;
                });
            }
        });
        let limit = resident() + 64 * MIB;
        let rig = proxy(Setup { memory: limit, ..Setup::to(&[address]) }, Http1).await;
        let (mut most, clients) = (0, 1000);
        let body: Rc<[u8]> = vec![b'x'; 512 * 1024].into();
        let refused: Count = Rc::default();
        for _ in 0..clients {
            let mut wire = Wire::connect(rig.address).await;
            wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n").await;
            let (body, refused) = (body.clone(), refused.clone());
            spawn_local(async move {
                let _ = wire.stream.write_all(&body).await;
                let answer = wire.rest().await;
                refused.set(refused.get() + usize::from(answer.starts_with("HTTP/1.1 503")));
            });
            tokio::task::yield_now().await;
            most = most.max(resident());
        }
        let mut honest = Wire::connect(rig.address).await;
        honest.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = timeout(NOTICED, honest.head()).await.expect("an honest client waits");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        most = most.max(resident());
        println!(
            "figure: {clients} uploads over HTTP/1 that nobody takes: {} MiB of {} MiB, {} refused",
            most / MIB,
            limit / MIB,
            refused.get()
        );
        assert!(most <= limit, "{} MiB are resident of {}", most / MIB, limit / MIB);
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
