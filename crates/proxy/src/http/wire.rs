//! The two halves of an HTTP/1 connection: bytes in, bytes out, and the worker's buffers lent to them.
//!
//! A half holds a buffer only while bytes are in flight, so that an idle connection costs no buffer. Each half is owned by
//! whoever reads or writes just now (a body, a sender) and comes back when the message ends; both share the stream.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::h1::H1Fields;
use crate::stream::Stream;
use crate::stream::left::left;

/// Size of a pooled buffer: one TLS record.
pub const BUFFER: usize = 16 * 1024;

/// A bulk transfer earns reads of this size.
const BULK: usize = 64 * 1024;

/// More than this is not put into the output buffer before it was written: back-pressure.
pub const HIGH_WATER: usize = 64 * 1024;

/// Buffers kept by a worker.
const KEPT: usize = 64;

/// A worker's spare buffers.
#[derive(Default)]
pub struct Buffers {
    free: RefCell<Vec<BytesMut>>,
}

impl Buffers {
    /// None yet.
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// An empty buffer with room.
    pub fn take(&self) -> BytesMut {
        self.free.borrow_mut().pop().unwrap_or_else(|| BytesMut::with_capacity(BUFFER))
    }

    /// Takes a buffer back. One that is shared, small or has grown is dropped.
    pub fn give(&self, mut buffer: BytesMut) {
        buffer.clear();
        // Moves a buffer that was advanced back to its start; allocates only if somebody still shares it.
        if (buffer.capacity() < BUFFER && !buffer.try_reclaim(BUFFER)) || buffer.capacity() > BULK {
            return;
        }
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT {
            free.push(buffer);
        }
    }

    /// Takes the buffer of a head back that is done.
    pub fn give_head(&self, fields: &mut H1Fields) {
        if fields.has_lent_buffer() {
            self.give(fields.take_buffer());
        }
    }
}

type Halved = Rc<RefCell<Stream>>;

/// The reading half.
pub struct Incoming {
    stream: Halved,
    buffers: Rc<Buffers>,
    /// Bytes that were read and not used. Without any, there is no buffer behind it.
    pub buf: BytesMut,
    eof: bool,
    /// The last read filled the buffer: the next may be larger.
    bulk: bool,
    /// Ends when the peer, whose side has ended, is gone.
    left: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// The writing half.
pub struct Outgoing {
    stream: Halved,
    buffers: Rc<Buffers>,
    buf: BytesMut,
    /// Bytes that the stream has taken, ever.
    written: u64,
    /// The stream has taken bytes that it may not have sent (TLS).
    unflushed: bool,
}

/// Takes bytes from the front. A buffer of which nothing is left begins at its start again, which saves finding that out.
pub fn consume(buf: &mut BytesMut, n: usize) {
    if n == buf.len() { buf.clear() } else { buf.advance(n) }
}

/// Splits a connection.
pub fn split(stream: Stream, buffers: &Rc<Buffers>) -> (Incoming, Outgoing) {
    let stream = Rc::new(RefCell::new(stream));
    let incoming = Incoming {
        stream: stream.clone(),
        buffers: buffers.clone(),
        buf: BytesMut::new(),
        eof: false,
        bulk: false,
        left: None,
    };
    let buffers = buffers.clone();
    (incoming, Outgoing { stream, buffers, buf: BytesMut::new(), written: 0, unflushed: false })
}

impl Incoming {
    /// Reads more behind what is there; 0 is the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        if self.stream.borrow().poll_news(cx).is_pending() {
            self.release();
            return Poll::Pending;
        }
        if self.buf.is_empty() {
            if self.buf.capacity() < BUFFER {
                self.buf = self.buffers.take();
            }
        } else if self.buf.capacity() - self.buf.len() < 1024 {
            self.buf.reserve(if self.bulk { BULK } else { BUFFER });
        }
        let room = self.buf.capacity() - self.buf.len();
        let polled = {
            let mut stream = self.stream.borrow_mut();
            pin!(stream.read_buf(&mut self.buf)).poll(cx)
        };
        match polled {
            Poll::Ready(Ok(0)) => {
                self.eof = true;
                self.release();
                Poll::Ready(Ok(0))
            }
            Poll::Ready(Ok(n)) => {
                self.bulk = n == room;
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(error)) => {
                self.eof = true;
                self.release();
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                self.release();
                Poll::Pending
            }
        }
    }

    /// Whether there is, or may be, something to read.
    pub fn has_news(&self) -> bool {
        self.eof || !self.buf.is_empty() || self.stream.borrow().has_news()
    }

    /// Gives an empty buffer back to the worker.
    fn release(&mut self) {
        if self.buf.is_empty() && self.buf.capacity() > 0 {
            self.buffers.give(std::mem::take(&mut self.buf));
        }
    }

    /// Ready when the peer has gone while nothing was expected of it. What it sends early is kept, up to a buffer; beyond that
    /// nobody looks until it is wanted. A peer that has ended its side, and no more, still takes an answer.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.eof {
                return self.poll_left(cx);
            }
            if self.buf.len() >= BUFFER {
                return Poll::Pending;
            }
            if ready!(self.poll_fill(cx)).is_err() {
                self.left = Some(Box::pin(std::future::ready(())));
            }
        }
    }

    #[cold]
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stream = &self.stream;
        self.left.get_or_insert_with(|| Box::pin(left(&stream.borrow()))).as_mut().poll(cx)
    }

    /// The worker's buffers.
    pub fn buffers(&self) -> &Rc<Buffers> {
        &self.buffers
    }
}

impl Outgoing {
    /// Where to write heads and framing; [`Outgoing::poll_flush`] sends it.
    pub fn buffer(&mut self) -> &mut BytesMut {
        if self.buf.capacity() == 0 {
            self.buf = self.buffers.take();
        }
        &mut self.buf
    }

    /// Room for body bytes before a flush is needed.
    pub fn room(&self) -> usize {
        HIGH_WATER.saturating_sub(self.buf.len())
    }

    /// Whether bytes wait to be written.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty() && !self.unflushed
    }

    /// Bytes that the stream has taken, ever.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes what is buffered.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut stream = self.stream.borrow_mut();
        while !self.buf.is_empty() {
            let n = ready!(Pin::new(&mut *stream).poll_write(cx, &self.buf))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n as u64;
            self.unflushed = true;
            consume(&mut self.buf, n);
        }
        self.buffers.give(std::mem::take(&mut self.buf));
        ready!(Pin::new(&mut *stream).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Says that no more comes, after a flush, as [`Stream::poll_half_close`] does.
    pub fn poll_half_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        self.stream.borrow_mut().poll_half_close(cx)
    }

    /// The connection will end by a reset.
    pub fn reset(&self) {
        self.stream.borrow().reset();
    }

    /// Ends our side of the connection, after a flush.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
