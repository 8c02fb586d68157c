//! HTTP/2, and what crosses between it and HTTP/1.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use outrigger_model::cluster::UpstreamProtocol;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::rig::*;
use crate::protocol::HttpVersion::{Http1, Http2};

pub type Send = h2::client::SendRequest<Bytes>;

pub async fn client(address: std::net::SocketAddr) -> Send {
    let stream = TcpStream::connect(address).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    spawn_local(async move {
        let _ = connection.await;
    });
    send.ready().await.unwrap()
}

/// An h2 application: every stream is served by `script`.
pub async fn app<F, Fut>(script: F) -> std::net::SocketAddr
where
    F: Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> Fut + Clone + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let script = script.clone();
            spawn_local(async move {
                let mut builder = h2::server::Builder::new();
                let mut connection = builder.enable_connect_protocol().handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    spawn_local(script(request, respond));
                }
            });
        }
    });
    address
}

async fn body(mut recv: h2::RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut all = Vec::new();
    while let Some(chunk) = recv.data().await {
        let chunk = chunk.unwrap();
        let _ = recv.flow_control().release_capacity(chunk.len());
        all.extend_from_slice(&chunk);
    }
    let trailers = recv.trailers().await.unwrap();
    (all, trailers)
}

fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
}

#[tokio::test]
async fn grpc_messages_and_trailers_cross_h2_to_h2() {
    run(async {
        let app = app(|request, mut respond| async move {
            assert_eq!(request.headers()["te"], "trailers");
            let (data, _) = body(request.into_body()).await;
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(data.into(), false).unwrap();
            send.send_trailers(trailers(&[("grpc-status", "0"), ("grpc-message", "fine")])).unwrap();
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http2).await;
        let mut send = client(rig.address).await;
        let request = Request::post("http://a/pkg.Service/Call")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut stream) = send.send_request(request, false).unwrap();
        stream.send_data(Bytes::from_static(b"message"), true).unwrap();
        let (data, trailers) = body(response.await.unwrap().into_body()).await;
        assert_eq!(data, b"message");
        assert_eq!(trailers.unwrap()["grpc-message"], "fine");
    })
    .await;
}

#[tokio::test]
async fn trailers_only_stays_a_single_frame() {
    run(async {
        let app = app(|_request, mut respond| async move {
            let response = Response::builder().header("grpc-status", "5").body(()).unwrap();
            respond.send_response(response, true).unwrap();
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http2).await;
        let mut send = client(rig.address).await;
        let (response, _) =
            send.send_request(Request::post("http://a/p.S/C").body(()).unwrap(), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "5");
        assert!(response.body().is_end_stream());
    })
    .await;
}

#[tokio::test]
async fn grpc_failure_is_a_grpc_status() {
    run(async {
        let rig = proxy(Setup::to(&[nobody().await]), Http2).await;
        let mut send = client(rig.address).await;
        let request =
            Request::post("http://a/p.S/C").header("content-type", "application/grpc").body(()).unwrap();
        let (response, _) = send.send_request(request, true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert!(response.body().is_end_stream());
    })
    .await;
}

#[tokio::test]
async fn h2_client_reaches_an_http1_application() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            assert!(head.starts_with("POST /x HTTP/1.1\r\n"), "{head}");
            let fields = headers(&head);
            assert_eq!(fields["host"], "a");
            assert_eq!(fields["cookie"], "a=1; b=2");
            assert_eq!(fields["transfer-encoding"], "chunked");
            assert_eq!(wire.until("\r\n\r\n").await, "3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n");
            wire.send(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-End: z\r\n\r\n",
            )
            .await;
            wire.rest().await;
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.protocol = UpstreamProtocol::Http1;
        let rig = proxy(setup, Http2).await;
        let mut send = client(rig.address).await;
        let request =
            Request::post("http://a/x").header("cookie", "a=1").header("cookie", "b=2").body(()).unwrap();
        let (response, mut stream) = send.send_request(request, false).unwrap();
        stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
        stream.send_trailers(trailers(&[("x-t", "1")])).unwrap();
        let (data, trailers) = body(response.await.unwrap().into_body()).await;
        assert_eq!(data, b"hi");
        assert_eq!(trailers.unwrap()["x-end"], "z");
    })
    .await;
}

#[tokio::test]
async fn http1_client_reaches_an_h2_application() {
    run(async {
        let app = app(|request, mut respond| async move {
            assert_eq!(request.uri().to_string(), "http://a/y?q");
            assert_eq!(request.headers()["x-up"], "Per");
            let (data, _) = body(request.into_body()).await;
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(data.into(), false).unwrap();
            send.send_trailers(trailers(&[("x-sum", "9")])).unwrap();
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.protocol = UpstreamProtocol::Http2;
        let rig = proxy(setup, Http1).await;
        let mut wire = Wire::connect(rig.address).await;
        for _ in 0..2 {
            wire.send("POST /y?q HTTP/1.1\r\nHost: a\r\nX-Up: Per\r\nContent-Length: 4\r\n\r\nbody").await;
            wire.head().await;
            assert_eq!(wire.until("\r\n\r\n").await, "4\r\nbody\r\n0\r\nx-sum: 9\r\n\r\n");
        }
    })
    .await;
}

#[tokio::test]
async fn websocket_crosses_from_h2_to_http1() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
            assert_eq!(headers(&head)["upgrade"], "websocket");
            wire.send(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
            )
            .await;
            assert_eq!(wire.rest().await, "ping");
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.protocol = UpstreamProtocol::Http1;
        let rig = proxy(setup, Http2).await;
        let mut send = client(rig.address).await;
        while !send.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let mut request = Request::new(());
        *request.method_mut() = http::Method::CONNECT;
        *request.uri_mut() = "http://a/chat".parse().unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, mut stream) = send.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        stream.send_data(Bytes::from_static(b"ping"), true).unwrap();
        let (data, _) = body(response.into_body()).await;
        assert_eq!(data, b"hello");
    })
    .await;
}

#[tokio::test]
async fn websocket_crosses_from_http1_to_h2() {
    run(async {
        let app = app(|request, mut respond| async move {
            let protocol = request.extensions().get::<h2::ext::Protocol>().unwrap();
            assert_eq!(protocol.as_str(), "websocket");
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            let (data, _) = body(request.into_body()).await;
            send.send_data(data.into(), true).unwrap();
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.protocol = UpstreamProtocol::Http2;
        let rig = proxy(setup, Http1).await;
        let mut wire = Wire::connect(rig.address).await;
        wire.send("GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\necho").await;
        let head = wire.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(headers(&head)["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        tokio::io::AsyncWriteExt::shutdown(&mut wire.stream).await.unwrap();
        assert_eq!(wire.rest().await, "echo");
    })
    .await;
}

#[tokio::test]
async fn refused_stream_is_retried_and_a_reset_is_not() {
    run(async {
        let seen: Count = Default::default();
        let counted = seen.clone();
        let app = app(move |request, mut respond| {
            let counted = counted.clone();
            async move {
                counted.set(counted.get() + 1);
                match (request.uri().path(), counted.get()) {
                    ("/refused", 1) => respond.send_reset(h2::Reason::REFUSED_STREAM),
                    ("/reset", _) => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                    _ => drop(respond.send_response(Response::new(()), true)),
                }
            }
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.forward().retry = Some(outrigger_model::route::RetryPolicy::default());
        let rig = proxy(setup, Http2).await;
        let mut send = client(rig.address).await;
        let request = |path| Request::post(format!("http://a{path}")).body(()).unwrap();
        let (response, _) = send.send_request(request("/refused"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
        assert_eq!(seen.get(), 2);
        let (response, _) = send.send_request(request("/reset"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 503);
        assert_eq!(seen.get(), 3);
    })
    .await;
}

#[tokio::test]
async fn cancelled_stream_cancels_its_upstream_request() {
    run(async {
        let gone = std::rc::Rc::new(tokio::sync::Notify::new());
        let signal = gone.clone();
        let app = app(move |_request, mut respond| {
            let signal = signal.clone();
            async move {
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                std::future::poll_fn(|cx| send.poll_reset(cx)).await.unwrap();
                signal.notify_one();
            }
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http2).await;
        let mut send = client(rig.address).await;
        let (response, stream) =
            send.send_request(Request::post("http://a/").body(()).unwrap(), false).unwrap();
        let response = response.await.unwrap();
        drop((response, stream));
        gone.notified().await;
    })
    .await;
}

#[tokio::test]
async fn short_message_waits_while_the_window_is_closed() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::Builder::new()
                .initial_window_size(0)
                .handshake::<_, Bytes>(stream)
                .await
                .unwrap();
            // The first request, without a body, sees to it that our SETTINGS have arrived before the second.
            let (_, mut respond) = connection.accept().await.unwrap().unwrap();
            respond.send_response(Response::new(()), true).unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            connection.set_initial_window_size(64).unwrap();
            spawn_local(async move {
                let (data, _) = body(request.into_body()).await;
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                send.send_data(Bytes::from(data), true).unwrap();
            });
            while connection.accept().await.is_some() {}
        });
        let rig = proxy(Setup::to(&[address]), Http2).await;
        let mut send = client(rig.address).await;
        let (response, _) = send.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
        let request = Request::post("http://a/p.S/C").body(()).unwrap();
        let (response, mut stream) = send.send_request(request, false).unwrap();
        stream.send_data(Bytes::from_static(b"message"), true).unwrap();
        assert_eq!(body(response.await.unwrap().into_body()).await.0, b"message");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_of_a_client_ends_behind_what_it_has_under_way() {
    run(async {
        let [arrive, release] = [(); 2].map(|()| std::rc::Rc::new(tokio::sync::Notify::new()));
        let signals = (arrive.clone(), release.clone());
        let app = app(move |_, mut respond| {
            let (arrived, released) = signals.clone();
            async move {
                arrived.notify_one();
                released.notified().await;
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                send.send_data(Bytes::from_static(b"x"), true).unwrap();
            }
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.protocol = UpstreamProtocol::Http2;
        setup.http.max_connection_duration = Some(std::time::Duration::from_secs(60));
        let rig = proxy(setup, Http2).await;
        let stream = TcpStream::connect(rig.address).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        let ended = spawn_local(connection);
        let mut send = send.ready().await.unwrap();
        let (response, _) = send.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
        arrive.notified().await;
        let start = tokio::time::Instant::now();
        tokio::time::advance(std::time::Duration::from_secs(61)).await;
        assert!(!ended.is_finished(), "a stream is open");
        release.notify_one();
        assert_eq!(body(response.await.unwrap().into_body()).await.0, b"x");
        let _ = ended.await.unwrap();
        // Idle it might be for an hour.
        let elapsed = start.elapsed().as_secs();
        assert!((61..=66).contains(&elapsed), "{elapsed}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn upstream_connection_that_is_idle_or_old_closes_though_its_last_stream_just_ended() {
    let minute = std::time::Duration::from_secs(60);
    for (idle_timeout, max_connection_duration) in [(minute, None), (60 * minute, Some(minute))] {
        ends_within_a_minute(idle_timeout, max_connection_duration).await;
    }
}

async fn ends_within_a_minute(
    idle_timeout: std::time::Duration,
    max_connection_duration: Option<std::time::Duration>,
) {
    run(async {
        let gone = std::rc::Rc::new(tokio::sync::Notify::new());
        let signal = gone.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                send.send_data(Bytes::from_static(b"x"), true).unwrap();
            }
            signal.notify_one();
        });
        let mut setup = Setup::to(&[address]);
        setup.cluster.idle_timeout = idle_timeout;
        setup.cluster.max_connection_duration = max_connection_duration;
        let rig = proxy(setup, Http2).await;
        let mut send = client(rig.address).await;
        for _ in 0..3 {
            let (response, _) = send.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
            assert_eq!(body(response.await.unwrap().into_body()).await.0, b"x");
        }
        let start = tokio::time::Instant::now();
        gone.notified().await;
        let elapsed = start.elapsed().as_secs();
        assert!((60..=66).contains(&elapsed), "{elapsed}");
    })
    .await;
}

#[tokio::test]
async fn slow_reader_holds_the_application_back() {
    run(async {
        const SIZE: usize = 8 * 1024 * 1024;
        let sent: Count = Default::default();
        let counted = sent.clone();
        let app = upstream(move |_, mut wire| {
            let counted = counted.clone();
            async move {
                wire.head().await;
                wire.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
                let chunk = "x".repeat(64 * 1024);
                for _ in 0..SIZE / chunk.len() {
                    wire.send(&chunk).await;
                    counted.set(counted.get() + chunk.len());
                }
                wire.rest().await;
            }
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.protocol = UpstreamProtocol::Http1;
        let rig = proxy(setup, Http2).await;
        let mut send = client(rig.address).await;
        let (response, _) = send.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
        let response = response.await.unwrap();
        // Until nothing moves any more: the client has read nothing, so only windows and socket buffers are full.
        let mut before = usize::MAX;
        while before != sent.get() {
            before = sent.get();
            for _ in 0..2000 {
                tokio::task::yield_now().await;
            }
        }
        assert!(sent.get() < SIZE, "the proxy took everything");
        let (data, _) = body(response.into_body()).await;
        assert_eq!(data.len(), SIZE);
    })
    .await;
}
