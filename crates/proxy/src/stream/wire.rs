//! The socket below TLS, read in large steps.
//!
//! rustls reads 4 KiB at a time; here one system call takes up to [`READ_SIZE`]. The buffer belongs to the thread and is
//! borrowed only while it holds bytes that rustls has not taken, so an idle connection owns none.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of one read.
pub const READ_SIZE: usize = 32 * 1024;

/// Spare buffers that a thread keeps.
const MAX_SPARE: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn borrow_buffer() -> Box<[u8]> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; READ_SIZE].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < MAX_SPARE {
            spare.push(buffer);
        }
    });
}

/// A TCP socket with bytes read ahead for rustls.
pub struct Wire {
    tcp: TcpStream,
    ahead: Option<Ahead>,
}

struct Ahead {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Wire {
    /// Over a socket.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, ahead: None }
    }

    /// Over a socket of which some bytes were read already; they come first.
    pub fn with_prefix(tcp: TcpStream, prefix: &[u8]) -> Self {
        if prefix.is_empty() {
            return Self::new(tcp);
        }
        let mut buffer = if prefix.len() <= READ_SIZE {
            borrow_buffer()
        } else {
            vec![0; prefix.len()].into_boxed_slice()
        };
        buffer[..prefix.len()].copy_from_slice(prefix);
        Self { tcp, ahead: Some(Ahead { buffer, start: 0, end: prefix.len() }) }
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Whether there are bytes that rustls has not taken.
    pub fn is_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    fn take_ahead(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let Some(ahead) = &mut self.ahead else { return false };
        let n = buf.remaining().min(ahead.end - ahead.start);
        buf.put_slice(&ahead.buffer[ahead.start..ahead.start + n]);
        ahead.start += n;
        if ahead.start == ahead.end
            && let Some(done) = self.ahead.take()
            && done.buffer.len() == READ_SIZE
        {
            give_back(done.buffer);
        }
        true
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(ahead) = self.ahead.take()
            && ahead.buffer.len() == READ_SIZE
        {
            give_back(ahead.buffer);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 || this.take_ahead(buf) {
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() >= READ_SIZE {
            return Pin::new(&mut this.tcp).poll_read(cx, buf);
        }
        let mut buffer = borrow_buffer();
        let mut large = ReadBuf::new(&mut buffer);
        let polled = Pin::new(&mut this.tcp).poll_read(cx, &mut large);
        let end = large.filled().len();
        match polled {
            Poll::Ready(Ok(())) if end > 0 => {
                this.ahead = Some(Ahead { buffer, start: 0, end });
                this.take_ahead(buf);
                Poll::Ready(Ok(()))
            }
            other => {
                give_back(buffer);
                other
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
