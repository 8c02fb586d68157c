//! The sink of a body: [`Sender`] takes chunks as far as it has room, then trailers, and ends the message.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};

use super::body::Body;
use super::convert;
use super::h1::{BodyEncoder, EncodeError, Framing};
use super::head::Trailers;
use super::wire::{HIGH_WATER, Outgoing};

/// The first piece of a body goes into the h2 crate without waiting for capacity if it is this short: a stream that was
/// only just asked for has none before its HEADERS were written, and a unary message would leave in two writes. The h2 crate
/// holds it while the peer's window is closed.
const CREDIT: usize = 4 * 1024;

/// A piece that is shorter waits for the next, where that is there already, until they are so much together: each frame costs its
/// reader more than what it carries, and many small ones that nobody reads cost it the connection. With the last of them it is no more than
/// a frame carries (16 KiB).
const SMALL: usize = 1024;
const TOGETHER: usize = 15 * 1024;

/// Where a body goes.
pub enum Sender {
    /// Onto an HTTP/1 connection, whose messages all use one box.
    H1(Box<H1Sender>),
    /// Into an HTTP/2 stream.
    H2(H2Sender),
}

/// Why a body could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The stream was reset, or its connection broke.
    #[error("{0}")]
    H2(#[from] h2::Error),
    /// The peer reset the stream.
    #[error("the stream was reset: {0}")]
    Reset(Reason),
    /// The body does not fit what was announced.
    #[error("{0}")]
    Length(#[from] EncodeError),
}

/// Onto an HTTP/1 connection, with the writing half.
pub struct H1Sender {
    pub outgoing: Outgoing,
    encoder: BodyEncoder,
    /// The end of this body is the end of our side of the connection.
    half_close: bool,
    finished: bool,
}

/// Into an HTTP/2 stream. Without a stream the message has ended with its head.
pub struct H2Sender {
    stream: Option<SendStream<Bytes>>,
    /// Small pieces that wait for others; never beyond the end of a turn.
    held: Bytes,
    /// Something of the body was sent.
    begun: bool,
    reserved: bool,
    finished: bool,
}

impl Sender {
    /// For a message whose head is in `outgoing`'s buffer.
    pub fn h1(mut writer: Box<H1Sender>, framing: Framing) -> Self {
        writer.half_close = framing == Framing::Tunnel;
        writer.encoder = BodyEncoder::new(framing);
        writer.finished = false;
        Self::H1(writer)
    }

    /// For an HTTP/2 message whose head was sent; `stream` is absent if it ended with that.
    pub fn h2(stream: Option<SendStream<Bytes>>) -> Self {
        let finished = stream.is_none();
        Self::H2(H2Sender { stream, held: Bytes::new(), begun: false, reserved: false, finished })
    }

    /// Whether the message was ended (though perhaps not flushed).
    pub fn is_finished(&self) -> bool {
        match self {
            Self::H1(sender) => sender.finished,
            Self::H2(sender) => sender.finished,
        }
    }

    /// How many of `wanted` bytes it takes now. Pending: it flushes meanwhile.
    pub fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, SendError>> {
        match self {
            Self::H1(sender) => {
                if sender.outgoing.room() == 0 {
                    ready!(sender.outgoing.poll_flush(cx))?;
                }
                Poll::Ready(Ok(sender.outgoing.room()))
            }
            Self::H2(sender) => sender.poll_room(cx, wanted),
        }
    }

    /// Sends `len` bytes of what `body` has lent, within the room that was granted. Ends the message if the body does.
    ///
    /// # Errors
    /// When the stream is closed, or the body is longer than announced.
    pub fn send(&mut self, body: &mut Body, len: usize) -> Result<(), SendError> {
        match self {
            Self::H1(sender) => {
                let chunk = body.chunk(len);
                sender.encoder.encode(chunk, sender.outgoing.buffer())?;
                body.consume(len);
            }
            Self::H2(sender) => {
                let data = body.take(len);
                return sender.send(data, body.is_end());
            }
        }
        if body.is_end() { self.finish(None) } else { Ok(()) }
    }

    /// Sends a short text of our own and ends the message. It may wait in the h2 crate's buffer.
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn send_text(&mut self, text: &str) -> Result<(), SendError> {
        match self {
            _ if text.is_empty() => return self.finish(None),
            Self::H1(sender) => {
                sender.encoder.encode(text.as_bytes(), sender.outgoing.buffer())?;
                sender.encoder.finish(sender.outgoing.buffer())?;
                sender.finished = true;
            }
            Self::H2(sender) => {
                if let Some(stream) = &mut sender.stream {
                    stream.send_data(Bytes::copy_from_slice(text.as_bytes()), true)?;
                }
                sender.finished = true;
            }
        }
        Ok(())
    }

    /// Ends the message.
    ///
    /// # Errors
    /// When the stream is closed, or the body is shorter than announced.
    pub fn finish(&mut self, trailers: Option<Trailers>) -> Result<(), SendError> {
        if self.is_finished() {
            return Ok(());
        }
        match self {
            Self::H1(sender) => {
                let out = sender.outgoing.buffer();
                match &trailers {
                    Some(trailers) => sender.encoder.finish_with(convert::trailer_lines(trailers), out)?,
                    None => sender.encoder.finish(out)?,
                }
                sender.finished = true;
            }
            Self::H2(sender) => {
                let Some(trailers) = trailers else { return sender.send(Bytes::new(), true) };
                sender.leave(false)?;
                if let Some(stream) = &mut sender.stream {
                    stream.send_trailers(convert::trailers_to_h2(trailers))?;
                }
                sender.finished = true;
            }
        }
        Ok(())
    }

    /// Sends what is held. HTTP/2 frames are written by the connection's own task.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        match self {
            Self::H1(sender) if sender.finished && sender.half_close => {
                Poll::Ready(Ok(ready!(sender.outgoing.poll_half_close(cx))?))
            }
            Self::H1(sender) => Poll::Ready(Ok(ready!(sender.outgoing.poll_flush(cx))?)),
            Self::H2(sender) => Poll::Ready(sender.leave(false)),
        }
    }

    /// Nothing to send for now, and nothing is held: capacity that is not used goes back to the other streams of the connection.
    pub fn idle(&mut self) {
        if let Self::H2(H2Sender { stream: Some(stream), reserved: reserved @ true, .. }) = self {
            stream.reserve_capacity(0);
            *reserved = false;
        }
    }

    /// Ready when the peer does not want the message any more.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<SendError> {
        match self {
            Self::H2(H2Sender { stream: Some(stream), .. }) => {
                Poll::Ready(match ready!(stream.poll_reset(cx)) {
                    Ok(reason) => SendError::Reset(reason),
                    Err(error) => error.into(),
                })
            }
            _ => Poll::Pending,
        }
    }

    /// Ends the message by force. HTTP/1 has no word for that but the end of the connection: one that nobody can take for
    /// the end of the message.
    pub fn reset(&mut self, reason: Reason) {
        match self {
            Self::H2(H2Sender { stream: Some(stream), .. }) => stream.send_reset(reason),
            Self::H1(sender) if sender.encoder.ends_with_the_connection() => sender.outgoing.reset(),
            _ => {}
        }
    }
}

/// What only the end of the connection ends, a clean end would make a whole of. A message that breaks off has been reset by then; but a
/// connection may also be cut from outside of its request: when policy or trust changes, or at the end of a drain.
impl Drop for H1Sender {
    fn drop(&mut self) {
        let whole = self.finished && self.outgoing.is_empty();
        if !whole && self.encoder.ends_with_the_connection() {
            self.outgoing.reset();
        }
    }
}

impl H1Sender {
    /// For the messages of one connection; none is being written.
    pub fn new(outgoing: Outgoing) -> Box<Self> {
        let encoder = BodyEncoder::new(Framing::None);
        Box::new(Self { outgoing, encoder, half_close: false, finished: true })
    }
}

impl H2Sender {
    /// Sends a piece, or holds it. Never an empty one that is not the last: the h2 crate takes a hundred of those, in the whole life of
    /// a connection.
    fn send(&mut self, data: Bytes, end: bool) -> Result<(), SendError> {
        self.begun = true;
        let small = data.len() < SMALL;
        if !small && !self.held.is_empty() {
            self.leave(false)?;
        }
        if self.held.is_empty() {
            self.held = data;
        } else if !data.is_empty() {
            let mut together = BytesMut::from(std::mem::take(&mut self.held));
            together.extend_from_slice(&data);
            self.held = together.freeze();
        }
        if small && !end && self.held.len() < TOGETHER {
            return Ok(());
        }
        self.leave(end)
    }

    /// Sends what is held.
    fn leave(&mut self, end: bool) -> Result<(), SendError> {
        if self.held.is_empty() && !end {
            return Ok(());
        }
        let data = std::mem::take(&mut self.held);
        if let Some(stream) = &mut self.stream {
            stream.send_data(data, end)?;
        }
        self.finished = end;
        Ok(())
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, SendError>> {
        let held = self.held.len();
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(wanted)) };
        if !self.begun && wanted <= CREDIT {
            return Poll::Ready(Ok(wanted));
        }
        let wanted = wanted.min(HIGH_WATER);
        self.reserved = true;
        if held > 0 {
            stream.reserve_capacity(held + wanted);
            let beside = stream.capacity().saturating_sub(held);
            if beside > 0 {
                return Poll::Ready(Ok(beside.min(wanted)));
            }
            self.leave(false)?;
        }
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(wanted)) };
        stream.reserve_capacity(wanted);
        loop {
            // send_data beyond the granted capacity would be buffered without limit.
            match stream.capacity() {
                0 => match ready!(stream.poll_capacity(cx)) {
                    Some(granted) => {
                        granted?;
                    }
                    // The stream is not writable any more; a reset says why, if there was one.
                    None => {
                        let reason = ready!(stream.poll_reset(cx))?;
                        return Poll::Ready(Err(SendError::Reset(reason)));
                    }
                },
                granted => return Poll::Ready(Ok(granted.min(wanted))),
            }
        }
    }
}
