//! The one stream type of the data path: plain, TLS, or either with bytes that were read ahead.
//!
//! The only place that knows which rustls API is underneath. Decides nothing.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

pub(crate) mod left;
pub(crate) mod region;
pub(crate) mod rtt;
mod tls;
mod unanswered;

#[cfg(any(test, fuzzing))]
pub use tls::fuzz_records;
pub use tls::{Peer, Tls};
pub use unanswered::Unanswered;

/// A connection.
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS, our side of it finished.
    Tls(Box<Tls>),
    /// Bytes that were read ahead come first. Turns into what it wraps once they are consumed.
    Rewound(Box<Rewound>),
}

/// What is left of the bytes that were read ahead, and the stream that follows.
pub struct Rewound {
    prefix: Bytes,
    /// Taken out when the prefix is empty.
    inner: Option<Stream>,
}

impl Stream {
    /// Puts bytes back in front.
    pub fn rewound(prefix: Bytes, inner: Self) -> Self {
        if prefix.is_empty() {
            return inner;
        }
        Self::Rewound(Box::new(Rewound { prefix, inner: Some(inner) }))
    }

    /// One that was never there: whoever uses it hears so.
    fn absent() -> Self {
        Self::Rewound(Box::new(Rewound { prefix: Bytes::new(), inner: None }))
    }

    /// The bytes that were read ahead and are not consumed yet.
    pub fn peeked(&self) -> &[u8] {
        match self {
            Self::Rewound(rewound) => &rewound.prefix,
            _ => &[],
        }
    }

    /// The bytes that were read ahead, and the stream without them.
    pub fn split_prefix(self) -> (Bytes, Self) {
        match self {
            Self::Rewound(mut rewound) => match rewound.inner.take() {
                Some(inner) => (std::mem::take(&mut rewound.prefix), inner),
                None => (Bytes::new(), Self::Rewound(rewound)),
            },
            other => (Bytes::new(), other),
        }
    }

    /// The socket underneath.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::Tls(tls) => Some(tls.tcp()),
            Self::Rewound(rewound) => rewound.inner.as_ref().and_then(Self::tcp),
        }
    }

    /// Our address.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().ok_or(io::ErrorKind::NotConnected)?.local_addr()
    }

    /// The peer's address.
    ///
    /// # Errors
    /// What the system says.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().ok_or(io::ErrorKind::NotConnected)?.peer_addr()
    }

    /// Whether a read may bring something. Nobody is woken when that changes.
    pub fn has_news(&self) -> bool {
        match self.quiet_socket() {
            Some(tcp) => tcp.try_io(Interest::READABLE, || Ok(())).is_ok(),
            None => true,
        }
    }

    /// The socket, if nothing was read ahead from it.
    fn quiet_socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::Tls(tls) => tls.is_quiet().then(|| tls.tcp()),
            Self::Rewound(_) => None,
        }
    }

    /// Pending (and `cx` is woken) while a read would surely have to wait. Ready promises nothing. It costs a tenth of a read
    /// that finds nothing.
    pub fn poll_news(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.quiet_socket() {
            Some(tcp) => tcp.poll_read_ready(cx).map(|_| ()),
            None => Poll::Ready(()),
        }
    }

    /// Tells the peer that nothing more comes, while it may go on for long: under TLS without a FIN, after which connection
    /// trackers on the way would keep a silent connection for a minute only, and one whose port their NAT has changed may
    /// lose that port to another as soon as the FIN was sent twice.
    pub fn poll_half_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => tls.poll_farewell(cx),
            Self::Rewound(rewound) => match &mut rewound.inner {
                Some(inner) => inner.poll_half_close(cx),
                None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            },
        }
    }

    /// The connection will end by a reset, whatever is still to be sent: the peer must not take what it has for the whole.
    pub fn reset(&self) {
        if let Some(tcp) = self.tcp() {
            // One that is gone already needs none.
            let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }

    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            Self::Tls(_) => true,
            Self::Rewound(rewound) => rewound.inner.as_ref().is_some_and(Self::is_tls),
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::Tcp(tcp)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, buf),
            Self::Rewound(rewound) => {
                if rewound.prefix.has_remaining() {
                    let n = rewound.prefix.len().min(buf.remaining());
                    buf.put_slice(&rewound.prefix[..n]);
                    rewound.prefix.advance(n);
                    return Poll::Ready(Ok(()));
                }
                let Some(inner) = rewound.inner.take() else {
                    return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
                };
                *this = inner;
                Pin::new(this).poll_read(cx, buf)
            }
        }
    }
}

/// Calls the same method of whichever stream it is.
macro_rules! on_writer {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp(tcp) => {
                let $stream = Pin::new(tcp);
                $call
            }
            Stream::Tls(tls) => {
                let $stream = Pin::new(&mut **tls);
                $call
            }
            Stream::Rewound(rewound) => match &mut rewound.inner {
                Some(inner) => {
                    let $stream = Pin::new(inner);
                    $call
                }
                None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            },
        }
    };
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_writer!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_writer!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_writer!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_writer!(self, stream => stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests;
