//! What must not be one client's alone: a shared connection's windows, its life, and the attempt to make it.

use std::cell::Cell;
use std::task::{Context, Waker};

use h2::Reason;
use h2::client::ResponseFuture;
use http::HeaderMap;
use outrigger_model::listener::Direction;
use tokio::sync::{Barrier, Notify};

use super::*;

/// A client reads none of many large responses; others share the upstream connection.
#[tokio::test]
async fn responses_that_nobody_reads_starve_no_other_client() {
    run(async {
        let connections: Count = Rc::default();
        let app = app(connections.clone(), |request, respond| async move {
            let large = request.uri().path() == "/large";
            answer(if large { 4 * MIB } else { 100 * 1024 }, respond).await;
        })
        .await;
        let rig = proxy(http2(app), Http2).await;
        let mut greedy = client(rig.address).await;
        let held: Vec<_> = (0..24).map(|_| greedy.send_request(get("/large"), true).unwrap().0).collect();
        let mut bodies = Vec::new();
        for response in held {
            bodies.push(response.await.unwrap().into_body());
        }
        let mut other = client(rig.address).await;
        // The larger the window was used up before, the longer the others have to come through.
        let worst = honest(&mut other, "/small", 40).await;
        println!("figure: stuck responses: an honest client waits {worst:?} at most");
        assert_eq!(connections.get(), 1, "all share one connection");
    })
    .await;
}

/// The same the other way: uploads that the application does not take, beside one that it does.
#[tokio::test]
async fn uploads_that_nobody_takes_starve_no_other_stream() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            loop {
                let head = wire.head().await;
                if head.starts_with("POST /stuck") {
                    return std::future::pending().await;
                }
                wire.until("\r\n0\r\n\r\n").await;
                wire.send(&ok("taken")).await;
            }
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.protocol = UpstreamProtocol::Http1;
        let rig = proxy(setup, Http2).await;
        let mut send = client(rig.address).await;
        let post = |path: &str| Request::post(format!("http://a{path}")).body(()).unwrap();
        let mut stuck = Vec::new();
        for _ in 0..16 {
            let (response, mut stream) = send.send_request(post("/stuck"), false).unwrap();
            spawn_local(async move { send_all(&mut stream, 64 * MIB).await });
            stuck.push(response);
        }
        for _ in 0..10 {
            let began = Instant::now();
            let (response, mut stream) = send.send_request(post("/fine"), false).unwrap();
            let uploading = async { send_all(&mut stream, 512 * 1024).await };
            timeout(NOTICED, uploading).await.expect("the upload of an honest stream waits");
            let response = timeout(NOTICED, response).await.expect("no answer").unwrap();
            assert_eq!(length(response.into_body()).await, 5);
            println!("figure: stuck uploads: an honest one takes {:?}", began.elapsed());
        }
    })
    .await;
}

/// Each of them is a frame of its own to the connection that it shares with others.
#[tokio::test]
async fn small_messages_that_nobody_reads_end_nobodys_connection() {
    run(async {
        const MESSAGES: usize = 10_000;
        let (connections, sent): (Count, Count) = Default::default();
        let seen = sent.clone();
        let app = app(connections.clone(), move |request, mut respond| {
            let sent = seen.clone();
            async move {
                if request.uri().path() == "/small" {
                    return answer(100, respond).await;
                }
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                for n in 0..MESSAGES {
                    stream.reserve_capacity(25);
                    while stream.capacity() < 25 {
                        let Some(Ok(_)) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
                    }
                    if stream.send_data(format!("{n:025}").into(), n + 1 == MESSAGES).is_err() {
                        return;
                    }
                    sent.set(n + 1);
                    if n % 32 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            }
        })
        .await;
        let rig = proxy(http2(app), Http2).await;
        let (mut stuck, mut other) = (client(rig.address).await, client(rig.address).await);
        let (response, _) = stuck.send_request(get("/messages"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let worst = honest(&mut other, "/small", 20).await;
        until("all messages", || sent.get() == MESSAGES).await;
        let worst = worst.max(honest(&mut other, "/small", 20).await);
        println!("figure: {MESSAGES} unread messages of 25 bytes: an honest client waits {worst:?} at most");
        assert_eq!(connections.get(), 1, "all share one connection");
        // And who reads after all gets them all.
        let mut all = Vec::new();
        while let Some(chunk) = timeout(NOTICED, body.data()).await.expect("no more comes") {
            let chunk = chunk.unwrap();
            let _ = body.flow_control().release_capacity(chunk.len());
            all.extend_from_slice(&chunk);
        }
        let wanted: String = (0..MESSAGES).map(|n| format!("{n:025}")).collect();
        assert!(all == wanted.as_bytes(), "{} bytes came", all.len());
    })
    .await;
}

/// The same the other way, where there is no application yet that could take them.
#[tokio::test]
async fn small_pieces_of_uploads_that_wait_end_nobodys_connection() {
    run(async {
        let (app, _held) = full().await;
        let mut setup = Setup { direction: Direction::Inbound, ..Setup::to(&[app]) };
        setup.cluster.connect_timeout = Duration::from_secs(600);
        let rig = proxy(setup, Http2).await;
        let mut send = client(rig.address).await;
        let post = Request::post("http://a/").body(()).unwrap();
        let (_response, mut stream) = send.send_request(post, false).unwrap();
        for n in 0..20_000 {
            stream.reserve_capacity(1);
            while stream.capacity() == 0 {
                poll_fn(|cx| stream.poll_capacity(cx)).await.expect("the stream ended").unwrap();
            }
            stream.send_data(Bytes::from_static(b"x"), false).expect("the connection ended");
            if n % 32 == 0 {
                tokio::task::yield_now().await;
            }
        }
        // Another stream of it is answered: by the sidecar, since there is no application.
        let (response, _) = send.send_request(get("/a%00"), true).unwrap();
        let response = timeout(NOTICED, response).await.expect("no answer").expect("the connection ended");
        assert_eq!(response.status(), 400);
    })
    .await;
}

/// Chunks are a frame each to nobody: what is there together leaves together.
#[tokio::test]
async fn small_chunks_that_come_together_are_few_frames() {
    run(async {
        const CHUNKS: usize = 5_000;
        let (frames, bytes): (Count, Count) = Default::default();
        let seen = (frames.clone(), bytes.clone());
        let app = app(Rc::default(), move |request, respond| {
            let (frames, bytes) = seen.clone();
            async move {
                let mut body = request.into_body();
                while let Some(Ok(chunk)) = body.data().await {
                    let _ = body.flow_control().release_capacity(chunk.len());
                    frames.set(frames.get() + 1);
                    bytes.set(bytes.get() + chunk.len());
                }
                answer(10, respond).await;
            }
        })
        .await;
        let rig = proxy(http2(app), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let chunks = "1\r\nx\r\n".repeat(CHUNKS);
        client
            .send(&format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
            ))
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        assert_eq!(bytes.get(), CHUNKS);
        // One for what each read of the client brings.
        assert!(frames.get() <= CHUNKS / 50, "{} frames", frames.get());
    })
    .await;
}

/// A peer's limit on resets must not end the connection that all share.
#[tokio::test]
async fn one_clients_cancellations_end_nobody_elses_requests() {
    run(async {
        let (release, slow) = (Rc::new(Notify::new()), Rc::new(Cell::new(0)));
        let connections = Count::default();
        let app = app(connections.clone(), {
            let (release, slow) = (release.clone(), slow.clone());
            move |request, mut respond| {
                let (release, slow) = (release.clone(), slow.clone());
                async move {
                    if request.uri().path() == "/held" {
                        release.notified().await;
                        return answer(10, respond).await;
                    }
                    slow.set(slow.get() + 1);
                    let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
                }
            }
        })
        .await;
        let rig = proxy(http2(app), Http2).await;
        let mut honest = client(rig.address).await;
        let held: Vec<ResponseFuture> =
            (0..20).map(|_| honest.send_request(get("/held"), true).unwrap().0).collect();
        let mut hasty = client(rig.address).await;
        for _ in 0..10 {
            let streams: Vec<_> = (0..200).map(|_| hasty.send_request(get("/slow"), true).unwrap()).collect();
            // Cancelled are requests that the application has, not only the sidecar.
            let before = slow.get();
            until("one of them", || slow.get() > before).await;
            for (response, mut stream) in streams {
                stream.send_reset(Reason::CANCEL);
                drop(response);
            }
            tokio::task::yield_now().await;
        }
        until("the end of what was cancelled", || rig.worker.ledger.held() <= 20 * 17 * 1024).await;
        release.notify_waiters();
        // Those that reach the application only now.
        let release = async {
            loop {
                release.notify_one();
                tokio::task::yield_now().await;
            }
        };
        let mut lost = 0;
        let count = async {
            for response in held {
                let response = timeout(NOTICED, response).await.expect("no answer");
                lost += usize::from(!response.is_ok_and(|response| response.status() == 200));
            }
        };
        tokio::select! { () = count => {}, () = release => {} }
        assert_eq!(lost, 0, "of 20 held requests");
        let made = connections.get();
        println!("figure: 2000 cancellations by one client: {made} connections to the application, none of 20 other requests lost");
        // A connection takes no new streams once 128 resets wait.
        assert!(made <= 2000 / 128 + 4, "{made}");
    })
    .await;
}

/// Two sidecars in a row, as between two workloads; every other request is cancelled at once.
#[tokio::test]
async fn an_honest_client_that_cancels_thousands_loses_nothing() {
    run(async {
        let connections = Count::default();
        let app = app(connections.clone(), |request, respond| async move {
            if request.uri().path() == "/small" {
                return answer(10, respond).await;
            }
            let mut respond = respond;
            let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
        })
        .await;
        let inbound = proxy(Setup { direction: Direction::Inbound, ..http2(app) }, Http2).await;
        let outbound = proxy(http2(inbound.address), Http2).await;
        let mut send = client(outbound.address).await;
        let began = Instant::now();
        let (mut lost, cancels) = (0, 3000);
        for _ in 0..cancels / 30 {
            let mut wanted = Vec::new();
            for _ in 0..30 {
                wanted.push(send.send_request(get("/small"), true).unwrap().0);
                let (response, mut stream) = send.send_request(get("/slow"), true).unwrap();
                if fastrand::bool() {
                    tokio::task::yield_now().await;
                }
                stream.send_reset(Reason::CANCEL);
                drop(response);
            }
            for response in wanted {
                let response = timeout(NOTICED, response).await.expect("no answer");
                lost += usize::from(!response.is_ok_and(|response| response.status() == 200));
            }
        }
        println!(
            "figure: {cancels} cancellations in {:?}, {lost} of {cancels} other requests lost, {} connections to the application",
            began.elapsed(),
            connections.get()
        );
        assert!(connections.get() <= cancels / 128 + 4, "{}", connections.get());
        assert_eq!(lost, 0);
    })
    .await;
}

/// Interim responses without end, towards a client that reads nothing.
#[tokio::test]
async fn endless_interim_responses_are_cut_off() {
    run(async {
        const ENDLESS: usize = 20_000;
        let (sent, ended): (Count, Count) = Default::default();
        let seen = (sent.clone(), ended.clone());
        let app = app(Rc::default(), move |_, mut respond| {
            let (sent, ended) = seen.clone();
            async move {
                while sent.get() < ENDLESS {
                    let early = Response::builder().status(103).header("x-n", sent.get()).body(()).unwrap();
                    let reset = respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready();
                    if reset || respond.send_informational(early).is_err() {
                        break;
                    }
                    sent.set(sent.get() + 1);
                    if sent.get() % 8 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                ended.set(1);
            }
        })
        .await;
        let rig = proxy(http2(app), Http2).await;
        let mut send = client(rig.address).await;
        let (response, _) = send.send_request(get("/"), true).unwrap();
        let response = timeout(NOTICED, response).await.expect("no answer").unwrap();
        assert_eq!(response.status(), 502);
        let error: &HeaderMap = response.headers();
        assert!(error["x-outrigger-error"].to_str().unwrap().contains("too many interim"), "{error:?}");
        until("the end of the application's patience", || ended.get() == 1).await;
        assert!(sent.get() < ENDLESS, "all were taken");
        println!("figure: endless interim responses: the stream was reset after {}", sent.get());
    })
    .await;
}

/// All that wait for a connection learn from the one attempt that it failed.
#[tokio::test]
async fn requests_that_wait_for_the_dead_share_one_attempt() {
    run(async {
        let rig = proxy(http2(nobody().await), Http2).await;
        let mut send = client(rig.address).await;
        let responses: Vec<_> = (0..100).map(|_| send.send_request(get("/"), true).unwrap().0).collect();
        for response in responses {
            assert_eq!(response.await.unwrap().status(), 503);
        }
        let attempts = rig.worker.metrics.cluster(&"c".into()).connect_failures.value();
        // The requests may come in a few pieces.
        assert!((1..=5).contains(&attempts), "{attempts} attempts for 100 requests");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_connections_place_ends_with_the_connect_timeout() {
    run(async {
        let (arrived, signal) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let told = arrived.clone();
        let app = upstream(move |_, mut wire| {
            let (told, signal) = (told.clone(), signal.clone());
            async move {
                wire.head().await;
                told.notify_one();
                signal.notified().await;
            }
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.limits.max_connections = 1;
        setup.cluster.connect_timeout = Duration::from_secs(3);
        let rig = proxy(setup, Http1).await;
        let (mut first, mut second) = (Wire::connect(rig.address).await, Wire::connect(rig.address).await);
        first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        arrived.notified().await;
        let began = tokio::time::Instant::now();
        second.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = second.head().await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert!(headers(&head)["x-outrigger-error"].contains("limit=max_connections:1"), "{head}");
        assert_eq!(began.elapsed().as_secs(), 3);
    })
    .await;
}

/// Fewer connections than there are endpoints: an idle one gives its place up, and where none is idle each endpoint has its first.
#[tokio::test]
async fn limited_http2_connections_are_given_up_for_who_waits_for_another() {
    run(async {
        let connections: Count = Rc::default();
        let mut apps = Vec::new();
        // All are there before the first is answered.
        let all = Rc::new(Barrier::new(30));
        for _ in 0..3 {
            let all = all.clone();
            let script = move |request: Request<RecvStream>, respond| {
                let all = all.clone();
                async move {
                    if request.uri().path() == "/slow" {
                        all.wait().await;
                    }
                    answer(10, respond).await;
                }
            };
            apps.push(app(connections.clone(), script).await);
        }
        let mut setup = Setup::to(&apps);
        setup.cluster.protocol = UpstreamProtocol::Http2;
        setup.cluster.limits.max_connections = 2;
        let rig = proxy(setup, Http2).await;
        let mut send = client(rig.address).await;
        let worst = honest(&mut send, "/", 30).await;
        println!(
            "figure: 2 HTTP/2 connections for 3 endpoints: {worst:?} at most, {} were made",
            connections.get()
        );
        // All at once, more than any two connections are for.
        let slow: Vec<_> = (0..30).map(|_| send.send_request(get("/slow"), true).unwrap().0).collect();
        for response in slow {
            assert_eq!(timeout(NOTICED, response).await.expect("it waits").unwrap().status(), 200);
        }
        let used = || rig.worker.snapshot().cluster("c").unwrap().limits.view();
        assert_eq!(used().connection_overflows, 0, "{:?}", used());
        until("no more connections than there may be", || used().connections <= 2).await;
    })
    .await;
}
