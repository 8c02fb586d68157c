//! A connection whose peer has heard nothing from us.

use std::future::pending;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use super::{Stream, left};

/// A connection that is not served yet. Dropped so, for whatever reason, it ends by a reset: an end would look like a whole answer
/// without a byte.
pub struct Unanswered {
    /// Until somebody serves it.
    stream: Option<Stream>,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            stream.reset();
        }
    }
}

impl From<Stream> for Unanswered {
    fn from(stream: Stream) -> Self {
        Self { stream: Some(stream) }
    }
}

impl Unanswered {
    /// Puts bytes back in front.
    pub fn rewound(prefix: Bytes, mut inner: Self) -> Self {
        inner.stream = inner.stream.take().map(|stream| Stream::rewound(prefix, stream));
        inner
    }

    /// The bytes that were read ahead, and the connection without them.
    pub fn split_prefix(mut self) -> (Bytes, Self) {
        match self.stream.take().map(Stream::split_prefix) {
            Some((prefix, stream)) => (prefix, stream.into()),
            None => (Bytes::new(), self),
        }
    }

    /// From here on, how it ends is the matter of who serves it.
    pub fn answer(mut self) -> Stream {
        self.stream.take().unwrap_or_else(Stream::absent)
    }

    /// The connection, to look at.
    pub fn get(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// Ends when the peer has gone. One that has only ended its side still takes an answer, and what it has sent still arrives.
    pub async fn gone(&self) {
        match self.get() {
            Some(stream) => left::gone(stream).await,
            None => pending().await,
        }
    }

    /// The bytes that were read ahead and are not consumed yet.
    pub fn peeked(&self) -> &[u8] {
        self.get().map(Stream::peeked).unwrap_or_default()
    }

    /// The socket underneath.
    pub fn tcp(&self) -> Option<&TcpStream> {
        self.get().and_then(Stream::tcp)
    }
}

impl AsyncRead for Unanswered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Some(stream) => Pin::new(stream).poll_read(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::testing::sockets;

    #[tokio::test]
    async fn what_is_dropped_is_reset_and_what_is_served_ends_as_its_server_says() {
        let (mut client, server) = sockets().await;
        client.write_all(b"read").await.unwrap();
        let mut server = Unanswered::from(Stream::Tcp(server));
        server.read_exact(&mut [0; 4]).await.unwrap();
        drop(Unanswered::rewound(Bytes::from_static(b"read"), server));
        assert_eq!(client.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

        let (mut client, server) = sockets().await;
        let server = Unanswered::rewound(Bytes::from_static(b"read"), Stream::Tcp(server).into());
        let (prefix, server) = server.split_prefix();
        assert_eq!((&*prefix, server.peeked()), (&b"read"[..], &b""[..]));
        drop(server.answer());
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "a clean end");
    }
}
