use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::testing::sockets as pair;

#[tokio::test]
async fn bytes_read_ahead_come_first_and_then_the_stream_is_what_it_wrapped() {
    let (mut client, server) = pair().await;
    client.write_all(b" world").await.unwrap();
    client.shutdown().await.unwrap();
    let mut stream = Stream::rewound(Bytes::from_static(b"hello"), server.into());
    assert_eq!(stream.peeked(), b"hello");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello world");
    assert!(matches!(stream, Stream::Tcp(_)));
}
