use std::net::SocketAddr;

use axum::routing::post;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2::{SendRequest, handshake};
use outrigger_model::identity::SpiffeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;
use tokio_stream::pending;

use super::*;

/// HTTP/2's preface and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const CSR: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// `/endless` is answered at once and goes on for ever, like an xDS stream; a CSR when its message has come.
fn served() -> Served {
    let endless = || async { axum::body::Body::from_stream(pending::<Result<Bytes, Infallible>>()) };
    let router = axum::Router::new()
        .route("/endless", post(endless))
        .route(CSR, post(|message: Bytes| async move { message }));
    Served::new(Routes::from(router))
}

fn open(terms: Terms) -> (DuplexStream, tokio::task::JoinHandle<Duration>) {
    let (client, server) = duplex(64 * 1024);
    let identity = SpiffeId::workload("cluster.local", "shop", "web").ok();
    let peer = PeerInfo { identity, remote: SocketAddr::from(([127, 0, 0, 1], 1)), not_after: None };
    let begun = Instant::now();
    let served = tokio::spawn(async move {
        connection(server, peer, terms, served(), Drain::new()).await;
        begun.elapsed()
    });
    (client, served)
}

async fn speak(io: DuplexStream) -> SendRequest<axum::body::Body> {
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(path: &str, body: axum::body::Body) -> Request<axum::body::Body> {
    Request::post(format!("http://control{path}")).body(body).unwrap()
}

fn never() -> axum::body::Body {
    axum::body::Body::from_stream(pending::<Result<Bytes, Infallible>>())
}

#[tokio::test(start_paused = true)]
async fn silence_before_the_first_request_ends_the_connection() {
    for said in [&b""[..], &PREFACE[..10], PREFACE] {
        let (mut client, served) = open(Terms::MEMBER);
        client.write_all(said).await.unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        let lasted = served.await.unwrap();
        assert!(lasted >= FIRST_REQUEST && lasted <= FIRST_REQUEST + LINGER, "{said:?}: {lasted:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_never_comes_is_answered_and_then_the_connection_is_idle() {
    let (client, served) = open(Terms::STRANGER);
    let mut sender = speak(client).await;
    let response = sender.send_request(request(CSR, never())).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4", "deadline exceeded");
    drop(response);
    let lasted = served.await.unwrap();
    assert!(lasted >= ANSWER + IDLE && lasted <= ANSWER + IDLE + LINGER, "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_under_way_keeps_its_connection_and_an_idle_one_is_told_to_go() {
    let (client, mut served) = open(Terms::MEMBER);
    let mut sender = speak(client).await;
    let nothing = axum::body::Body::new(Empty::<Bytes>::new());
    let stream = sender.send_request(request("/endless", nothing)).await.unwrap();
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, &mut served).await.is_err(), "pings are answered, the stream goes on");
    let ended = Instant::now();
    drop(stream);
    served.await.unwrap();
    let after = ended.elapsed();
    assert!(after >= IDLE && after <= IDLE + LINGER, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_ping_is_gone_in_spite_of_its_stream() {
    let (client, served) = open(Terms::MEMBER);
    let (mut reader, mut writer) = tokio::io::split(client);
    // A client that opens a stream by the book and is then only ever silent.
    let mut encoder = PREFACE.to_vec();
    // HEADERS, END_HEADERS, stream 1: POST http /endless of "c", indexed and literal fields (RFC 7541, appendix A).
    let block = b"\x83\x86\x04\x08/endless\x01\x01c";
    encoder.extend([0, 0, block.len() as u8, 1, 4, 0, 0, 0, 1]);
    encoder.extend(block);
    writer.write_all(&encoder).await.unwrap();
    let mut heard = Vec::new();
    reader.read_to_end(&mut heard).await.unwrap();
    let lasted = served.await.unwrap();
    let bound = KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT;
    assert!(lasted >= KEEPALIVE_INTERVAL && lasted <= bound + LINGER, "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_certificate_there_is_only_a_certificate_to_ask_for() {
    let (client, _served) = open(Terms::STRANGER);
    let mut sender = speak(client).await;
    let refused = sender.send_request(request("/endless", never())).await.unwrap();
    assert_eq!(refused.headers()["grpc-status"], "16", "unauthenticated");
    let message = axum::body::Body::new(Empty::<Bytes>::new());
    let answered = sender.send_request(request(CSR, message)).await.unwrap();
    assert!(!answered.headers().contains_key("grpc-status"));
}
