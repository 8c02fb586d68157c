use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::http::body::{H1Body, REPLAY_LIMIT, Room};
use crate::http::h1::{Framing, Limits};
use crate::http::send::H1Sender;
use crate::http::wire::{Buffers, split};
use crate::testing::sockets as pair;

async fn body_of(text: &[u8], framing: Framing) -> Body {
    let (mut peer, ours) = pair().await;
    peer.write_all(text).await.unwrap();
    let (incoming, _outgoing) = split(ours.into(), &Buffers::new());
    Body::h1(H1Body::new(incoming, Limits::default()), framing)
}

async fn copied(mut body: Body, framing: Framing) -> (Result<(), CopyError>, String, Body) {
    let (mut peer, ours) = pair().await;
    let (_incoming, outgoing) = split(ours.into(), &Buffers::new());
    let mut sender = Sender::h1(H1Sender::new(outgoing), framing);
    let mut flow = Flow::default();
    let result = poll_fn(|cx| flow.poll(cx, &mut body, &mut sender, None)).await;
    drop((sender, _incoming));
    let mut text = String::new();
    peer.read_to_string(&mut text).await.unwrap();
    (result, text, body)
}

#[tokio::test]
async fn length_becomes_chunks_and_back() {
    let (result, text, _) = copied(body_of(b"hello", Framing::Length(5)).await, Framing::Chunked).await;
    result.unwrap();
    assert_eq!(text, "5\r\nhello\r\n0\r\n\r\n");
    let chunked = body_of(b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", Framing::Chunked).await;
    let (result, text, _) = copied(chunked, Framing::Length(5)).await;
    result.unwrap();
    assert_eq!(text, "hello");
}

#[tokio::test]
async fn body_that_does_not_fit_its_announcement_is_an_error() {
    let (result, ..) = copied(body_of(b"hello", Framing::Length(5)).await, Framing::Length(4)).await;
    assert!(matches!(result, Err(CopyError::Write(SendError::Length(_)))));
    let (result, ..) = copied(body_of(b"hello", Framing::Length(5)).await, Framing::Length(6)).await;
    assert!(matches!(result, Err(CopyError::Write(SendError::Length(_)))));
}

#[tokio::test]
async fn end_in_the_middle_is_a_read_error() {
    let (result, text, _) = copied(body_of(b"3\r\nab", Framing::Chunked).await, Framing::Chunked).await;
    assert!(matches!(result, Err(CopyError::Read(_))));
    assert!(!text.contains("0\r\n\r\n"));
}

#[tokio::test]
async fn replayed_body_is_the_same_trailers_included() {
    let text = b"3\r\nabc\r\n2\r\nde\r\n0\r\nx-t: 1\r\n\r\n";
    let mut body = body_of(text, Framing::Chunked).await;
    body.make_replayable(Room { paid: REPLAY_LIMIT, spare: None });
    let (result, first, mut body) = copied(body, Framing::Chunked).await;
    result.unwrap();
    assert!(first.ends_with("0\r\nx-t: 1\r\n\r\n"), "{first}");
    assert!(body.can_replay());
    body.rewind();
    let (result, second, mut body) = copied(body, Framing::Chunked).await;
    result.unwrap();
    assert_eq!(second, "5\r\nabcde\r\n0\r\nx-t: 1\r\n\r\n");
    body.stop_recording();
    assert!(!body.can_replay());
}

#[tokio::test]
async fn grpc_status_is_read_from_trailers() {
    let text = b"0\r\nGrpc-Status: 14\r\n\r\n";
    let mut body = body_of(text, Framing::Chunked).await;
    let (_peer, ours) = pair().await;
    let (_incoming, outgoing) = split(ours.into(), &Buffers::new());
    let mut sender = Sender::h1(H1Sender::new(outgoing), Framing::Chunked);
    let mut flow = Flow::default();
    poll_fn(|cx| flow.poll(cx, &mut body, &mut sender, None)).await.unwrap();
    assert_eq!((flow.grpc_status, flow.bytes, flow.is_done()), (Some(14), 0, true));
}
