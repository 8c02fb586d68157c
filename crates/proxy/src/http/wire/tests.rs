use std::future::poll_fn;

use tokio::io::AsyncWriteExt;

use super::*;
use crate::testing::sockets as pair;

#[tokio::test]
async fn idle_connection_owns_no_buffer() {
    let (client, mut server) = pair().await;
    let buffers = Buffers::new();
    let (mut incoming, outgoing) = split(client.into(), &buffers);
    assert!(poll_fn(|cx| Poll::Ready(incoming.poll_fill(cx).is_pending())).await);
    assert_eq!((incoming.buf.capacity(), outgoing.buf.capacity()), (0, 0));
    assert!(buffers.free.borrow().is_empty(), "none was even taken");
    server.write_all(b"hello").await.unwrap();
    assert_eq!(poll_fn(|cx| incoming.poll_fill(cx)).await.unwrap(), 5);
    assert!(incoming.buf.capacity() >= BUFFER);
    incoming.buf.clear();
    assert!(poll_fn(|cx| Poll::Ready(incoming.poll_fill(cx).is_pending())).await);
    assert_eq!((incoming.buf.capacity(), buffers.free.borrow().len()), (0, 1), "it went back");
}

#[tokio::test]
async fn used_buffers_come_back_whole() {
    let buffers = Buffers::new();
    let mut buffer = buffers.take();
    buffer.extend_from_slice(&[0; BUFFER]);
    buffer.advance(BUFFER / 2);
    buffers.give(buffer);
    assert!(buffers.take().capacity() >= BUFFER);
    let mut grown = BytesMut::with_capacity(4 * BULK);
    grown.extend_from_slice(b"x");
    buffers.give(grown);
    assert!(buffers.free.borrow().is_empty(), "a grown buffer is not kept");
}

#[tokio::test]
async fn early_bytes_are_kept_and_the_close_is_seen() {
    let (client, mut server) = pair().await;
    let (mut incoming, _outgoing) = split(client.into(), &Buffers::new());
    server.write_all(b"next").await.unwrap();
    drop(server);
    poll_fn(|cx| incoming.poll_gone(cx)).await;
    assert_eq!(&incoming.buf[..], b"next");
}

#[tokio::test]
async fn written_bytes_are_counted_when_the_socket_took_them() {
    let (client, _server) = pair().await;
    let (_incoming, mut outgoing) = split(client.into(), &Buffers::new());
    outgoing.buffer().extend_from_slice(b"12345");
    assert_eq!(outgoing.written(), 0);
    poll_fn(|cx| outgoing.poll_flush(cx)).await.unwrap();
    assert_eq!((outgoing.written(), outgoing.is_empty()), (5, true));
}
