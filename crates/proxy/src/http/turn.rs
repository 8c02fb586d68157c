//! What the h2 crate writes to: a stream that collects its frames and writes them once per turn of the connection's task.
//!
//! The h2 crate flushes behind every DATA frame that it does not copy; over TLS each flush is a record and a system call,
//! and at the other end another wake-up. Here its flushes wait until the task has polled the connection and calls
//! [`WriteTurn::poll_end`]. Only the handshake, which comes before, writes through.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::wire::{BUFFER, Buffers};
use crate::stream::Stream;

/// Bytes that a turn reads: a bulk transfer pays for one more wake-up in so many.
const READ: usize = 64 * 1024;

/// The connection's end of the writer.
pub struct WriteTurn(Rc<RefCell<Collector>>);

/// The h2 crate's end.
pub struct Collecting(Rc<RefCell<Collector>>);

struct Collector {
    stream: Stream,
    buffers: Rc<Buffers>,
    /// Frames of this turn; without any, there is no buffer behind it.
    buf: BytesMut,
    /// The stream has taken bytes that it may not have sent (TLS).
    unflushed: bool,
    /// Flushes wait for the end of the turn.
    collects: bool,
    /// How much this turn may still read.
    left: usize,
    /// Why the last turn could not be written: the h2 crate is told at its next write.
    failed: Option<io::Error>,
}

/// A stream for the h2 crate, and its end of a turn. Writes through until [`WriteTurn::collect`].
pub fn collecting(stream: Stream, buffers: &Rc<Buffers>) -> (Collecting, WriteTurn) {
    let collector = Rc::new(RefCell::new(Collector {
        stream,
        buffers: buffers.clone(),
        buf: BytesMut::new(),
        unflushed: false,
        collects: false,
        left: READ,
        failed: None,
    }));
    (Collecting(collector.clone()), WriteTurn(collector))
}

impl WriteTurn {
    /// The handshake is over: from now on somebody calls [`WriteTurn::poll_end`] after each poll of the connection.
    pub fn collect(&self) {
        self.0.borrow_mut().collects = true;
    }

    /// Writes what was collected. Pending: the task is woken when the socket takes more. An error is the connection's end,
    /// which it is told when it is polled next.
    pub fn poll_end(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut collector = self.0.borrow_mut();
        collector.left = READ;
        if let Err(error) = ready!(collector.poll_write_out(cx)) {
            collector.buf.clear();
            collector.failed = Some(error);
            cx.waker().wake_by_ref();
        }
        Poll::Ready(())
    }
}

impl Collector {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.buf.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        while !self.buf.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.buf))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.buf.advance(n);
        }
        if self.buf.capacity() > 0 {
            self.buffers.give(std::mem::take(&mut self.buf));
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Room for `len` bytes: what was collected leaves if it must.
    fn poll_room(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if !self.buf.is_empty() && self.buf.len() + len > BUFFER {
            ready!(self.poll_write_out(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.buf.capacity() == 0 {
            self.buf = self.buffers.take();
        }
        self.buf.extend_from_slice(bytes);
    }
}

impl AsyncRead for Collecting {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut collector = self.0.borrow_mut();
        if let Some(error) = collector.failed.take() {
            return Poll::Ready(Err(error));
        }
        if collector.left == 0 {
            // The rest is for the next turn, behind the tasks that this one has woken.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut collector.stream).poll_read(cx, buf);
        if collector.collects {
            collector.left = collector.left.saturating_sub(buf.filled().len() - before);
        }
        polled
    }
}

impl AsyncWrite for Collecting {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut collector = self.0.borrow_mut();
        let len = bufs.iter().map(|buf| buf.len()).sum();
        ready!(collector.poll_room(cx, len))?;
        if !collector.collects || len > BUFFER {
            // A whole record is written from where it is.
            collector.unflushed = true;
            return Pin::new(&mut collector.stream).poll_write_vectored(cx, bufs);
        }
        bufs.iter().for_each(|buf| collector.keep(buf));
        Poll::Ready(Ok(len))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut collector = self.0.borrow_mut();
        if collector.collects {
            return Poll::Ready(Ok(()));
        }
        collector.poll_write_out(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut collector = self.0.borrow_mut();
        ready!(collector.poll_write_out(cx))?;
        Pin::new(&mut collector.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
