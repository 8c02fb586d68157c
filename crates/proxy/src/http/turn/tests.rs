use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::testing::sockets as pair;

#[tokio::test]
async fn frames_of_a_turn_leave_together_at_its_end() {
    let (ours, mut peer) = pair().await;
    let buffers = Buffers::new();
    let (mut stream, turn) = collecting(ours.into(), &buffers);
    stream.write_all(b"preface ").await.unwrap();
    let mut text = [0; 64];
    assert_eq!(peer.read(&mut text).await.unwrap(), 8, "a handshake writes through");
    turn.collect();
    for frame in ["one ", "two ", "three"] {
        stream.write_all(frame.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
    assert_eq!(peer.try_read(&mut text).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    poll_fn(|cx| turn.poll_end(cx)).await;
    assert_eq!(turn.0.borrow().buf.capacity(), 0, "the buffer went back");
    let n = peer.read(&mut text).await.unwrap();
    assert_eq!(&text[..n], b"one two three");
}

#[tokio::test]
async fn a_whole_record_passes_behind_what_was_collected() {
    let (ours, mut peer) = pair().await;
    let (mut stream, turn) = collecting(ours.into(), &Buffers::new());
    turn.collect();
    let large = vec![b'x'; 3 * BUFFER];
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).await.unwrap();
        all
    });
    stream.write_all(b"head ").await.unwrap();
    stream.write_all(&large).await.unwrap();
    stream.write_all(b" tail").await.unwrap();
    stream.shutdown().await.unwrap();
    let all = reading.await.unwrap();
    assert_eq!(all, [b"head ".as_slice(), &large, b" tail"].concat());
}

#[tokio::test]
async fn a_turn_that_cannot_be_written_ends_the_connection() {
    let (ours, peer) = pair().await;
    let (mut stream, turn) = collecting(ours.into(), &Buffers::new());
    turn.collect();
    // Closed with bytes unread: a reset.
    stream.write_all(b"unread").await.unwrap();
    poll_fn(|cx| turn.poll_end(cx)).await;
    peer.readable().await.unwrap();
    drop(peer);
    let error = loop {
        match stream.write_all(b"more").await {
            Ok(()) => poll_fn(|cx| turn.poll_end(cx)).await,
            Err(error) => break error,
        }
    };
    let kinds = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    assert!(kinds.contains(&error.kind()), "{error}");
}

#[tokio::test]
async fn a_turn_reads_so_much_and_the_next_goes_on() {
    let (ours, mut peer) = pair().await;
    let (mut stream, turn) = collecting(ours.into(), &Buffers::new());
    turn.collect();
    let sending = tokio::spawn(async move { peer.write_all(&vec![b'x'; 4 * READ]).await.map(|()| peer) });
    let mut all = 0;
    while all < 4 * READ {
        let before = all;
        poll_fn(|cx| {
            let mut bytes = vec![0; BUFFER];
            let mut buf = ReadBuf::new(&mut bytes);
            let ended = loop {
                buf.clear();
                match Pin::new(&mut stream).poll_read(cx, &mut buf) {
                    Poll::Ready(read) => {
                        read.unwrap();
                        all += buf.filled().len();
                    }
                    Poll::Pending => break turn.poll_end(cx),
                }
            };
            // Pending with bytes left has woken the task for its next turn.
            if all == before { Poll::Pending } else { ended }
        })
        .await;
        // The last read of a turn may go beyond by a buffer.
        assert!(all - before < READ + BUFFER, "{} bytes in a turn", all - before);
    }
    sending.await.unwrap().unwrap();
}
