//! Bodies through two sidecars, from one source over HTTP/1.1, HTTP/2 and gRPC: sizes, framings, trailers, and that nothing
//! waits for the end of anything.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::BodyExt;
use hyper::body::Frame;
use outrigger_control::instance::Protocol;
use outrigger_tests::http::{Body, Client, echo, pieces, streamed, whole};
use outrigger_tests::mesh::{Mesh, Sidecar, Spec};

use crate::BINARY;
use crate::thin_thread::{STRICT, web};

const SIZES: [usize; 6] = [0, 1, 1024, 16 << 10, (64 << 10) + 1, 3 << 20];

/// A mesh in which web calls catalog by this protocol.
async fn pair(protocol: Protocol) -> (Mesh, Sidecar, Sidecar) {
    let mesh = Mesh::start(BINARY).await;
    let spec = Spec { service: "catalog", version: "v1", host: 11, protocol, calls: &[] };
    let catalog = mesh.workload(&spec).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(catalog.app).await;
    mesh.apply(STRICT).await;
    (mesh, web, catalog)
}

fn post(body: Body, kind: &str) -> Request<Body> {
    Request::post("http://catalog:8080/echo")
        .header("host", "catalog:8080")
        .header("content-type", kind)
        .header("te", "trailers")
        .header("trailer", "x-digest")
        .body(body)
        .unwrap()
}

/// Bytes of which no two places look alike.
fn bytes(size: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(size as u64);
    std::iter::repeat_with(|| random.u8(..)).take(size).collect()
}

fn digest(bytes: &Bytes) -> HeaderValue {
    let sum = bytes.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    HeaderValue::from_str(&format!("{sum:x}")).unwrap()
}

async fn every_body_comes_back(client: &mut Client, kind: &str) {
    for size in SIZES {
        let sent = bytes(size);
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-digest"), digest(&sent))]);
        let bodies = [
            ("its length announced", whole(sent.clone()), None),
            ("in pieces", pieces(&sent, 4000, None), None),
            ("in pieces, with trailers", pieces(&sent, 20_000, Some(trailers.clone())), Some(trailers)),
        ];
        for (what, body, trailers) in bodies {
            let response = client.send(post(body, kind)).await.unwrap();
            assert_eq!(response.status(), 200, "{size} bytes, {what}");
            let collected = response.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers(), trailers.as_ref(), "{size} bytes, {what}");
            assert!(collected.to_bytes() == sent, "{size} bytes, {what}: others came back");
        }
    }
}

/// Each message is answered before the next one is written: whoever waits for the end of a body waits for ever.
async fn messages_are_answered_one_by_one(client: &mut Client, kind: &str) {
    let (send, body) = streamed();
    send.send(Frame::data(Bytes::from_static(b"0"))).await.unwrap();
    let mut response = client.send(post(body, kind)).await.unwrap().into_body();
    for message in 0..50 {
        let mut back = Bytes::new();
        while back.is_empty() {
            back = response.frame().await.unwrap().unwrap().into_data().unwrap();
        }
        assert_eq!(back, message.to_string());
        send.send(Frame::data(Bytes::from((message + 1).to_string()))).await.unwrap();
    }
    drop(send);
    assert_eq!(response.collect().await.unwrap().to_bytes(), "50");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_over_http_1() {
    let (_mesh, web, _catalog) = pair(Protocol::Http).await;
    let mut client = Client::h1(web.outbound[0]).await;
    every_body_comes_back(&mut client, "application/octet-stream").await;
    messages_are_answered_one_by_one(&mut client, "application/octet-stream").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_over_http_2() {
    let (_mesh, web, _catalog) = pair(Protocol::Http2).await;
    let mut client = Client::h2(web.outbound[0]).await;
    every_body_comes_back(&mut client, "application/octet-stream").await;
    messages_are_answered_one_by_one(&mut client, "application/octet-stream").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_over_grpc_and_many_streams_at_once() {
    let (_mesh, web, _catalog) = pair(Protocol::Grpc).await;
    let mut client = Client::h2(web.outbound[0]).await;
    every_body_comes_back(&mut client, "application/grpc").await;
    messages_are_answered_one_by_one(&mut client, "application/grpc").await;

    let Client::H2(send) = client else { unreachable!("it was made so") };
    let mut streams = tokio::task::JoinSet::new();
    for number in 0..200 {
        let mut client = Client::H2(send.clone());
        streams.spawn(async move {
            let sent = bytes(5000 + number);
            let response = client.send(post(pieces(&sent, 700, None), "application/grpc")).await.unwrap();
            response.into_body().collect().await.unwrap().to_bytes() == sent
        });
    }
    assert!(streams.join_all().await.into_iter().all(|same| same));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_on_one_side_and_http_2_on_the_other_carry_the_same_bodies() {
    let (_mesh, web, _catalog) = pair(Protocol::Http2).await;
    let mut client = Client::h1(web.outbound[0]).await;
    every_body_comes_back(&mut client, "application/octet-stream").await;
}
