//! The body of an HTTP/2 message.
//!
//! Where nobody takes what comes (a client that does not read, an application that is not there yet), it is taken out of the h2 crate
//! all the same, and what is small is put together. In there each frame takes a hundred bytes besides its own, and too many of
//! them end the connection, with the streams of all who share it. Credit goes back to the peer only for what was sent on: more
//! than the stream's window it cannot make us hold.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;

use super::{BodyError, Frame, KeptOut};
use crate::http::h1::{Limits, OWN_FIELDS, Refusal};
use crate::http::head::Trailers;

/// What is as long is kept as it came, without a copy.
const LONG: usize = 4 * 1024;

/// What HTTP/1 writes around a field.
const FIELD: usize = ": \r\n".len();

/// The body of an HTTP/2 message.
pub struct H2Body {
    recv: RecvStream,
    chunk: Bytes,
    /// What comes behind the chunk, if anything was held.
    held: Option<Box<Held>>,
    /// No data follows but what is held.
    data_ended: bool,
    /// The trailers, if they came while nobody took them.
    behind: Option<Box<Result<HeaderMap, Refusal>>>,
    pub(super) kept_out: KeptOut,
}

/// What came while nobody took it, in order; never empty.
#[derive(Default)]
struct Held {
    pieces: VecDeque<Bytes>,
    /// Small ones behind them.
    last: BytesMut,
}

impl Held {
    fn add(&mut self, piece: Bytes) {
        if piece.len() < LONG {
            return self.last.extend_from_slice(&piece);
        }
        if !self.last.is_empty() {
            self.pieces.push_back(self.last.split().freeze());
        }
        self.pieces.push_back(piece);
    }

    /// The next piece, and whether there are more.
    fn next(&mut self) -> (Bytes, bool) {
        let next = self.pieces.pop_front().unwrap_or_else(|| std::mem::take(&mut self.last).freeze());
        (next, !(self.pieces.is_empty() && self.last.is_empty()))
    }
}

impl H2Body {
    pub(super) fn new(recv: RecvStream) -> Self {
        let (chunk, kept_out) = (Bytes::new(), KeptOut::default());
        Self { recv, chunk, held: None, data_ended: false, behind: None, kept_out }
    }

    pub(super) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, BodyError>> {
        loop {
            if !self.chunk.is_empty() {
                return Poll::Ready(Ok(Frame::Data(self.chunk.len())));
            }
            if let Some(held) = &mut self.held {
                let more;
                (self.chunk, more) = held.next();
                if !more {
                    self.held = None;
                }
                continue;
            }
            if self.data_ended {
                break;
            }
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => self.data_ended = true,
            }
        }
        let trailers = match self.behind.take() {
            Some(behind) => Some((*behind)?),
            None => ready!(self.recv.poll_trailers(cx))?.map(bounded).transpose()?,
        };
        Poll::Ready(Ok(
            trailers.map_or(Frame::End, |map| Frame::Trailers(self.kept_out.of(Trailers::H2(map))))
        ))
    }

    /// Holds what has come.
    pub(super) fn gather(&mut self, cx: &mut Context<'_>) {
        while !self.data_ended {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(piece))) if piece.is_empty() => {}
                Poll::Ready(Some(Ok(piece))) => self.held.get_or_insert_default().add(piece),
                Poll::Ready(None) => self.data_ended = true,
                // An error is there for who reads on, too.
                Poll::Ready(Some(Err(_))) | Poll::Pending => return,
            }
        }
        // In there they may be a hundred times what they were on the wire, and nobody looks at their size.
        if self.behind.is_none()
            && let Poll::Ready(Ok(Some(map))) = self.recv.poll_trailers(cx)
        {
            self.behind = Some(Box::new(bounded(map)));
        }
    }

    pub(super) fn chunk(&self) -> &[u8] {
        &self.chunk
    }

    /// Takes so much of the chunk, and opens the window by it: earlier would let the peer fill our memory.
    pub(super) fn take(&mut self, len: usize) -> Bytes {
        let bytes = self.chunk.split_to(len);
        // It fails only for more than was received.
        let _ = self.recv.flow_control().release_capacity(len);
        bytes
    }

    #[inline]
    pub(super) fn is_end(&self) -> bool {
        self.chunk.is_empty() && self.held.is_none() && self.behind.is_none() && self.recv.is_end_stream()
    }
}

/// Trailers within the limits of HTTP/1, whatever protocol they go on by.
fn bounded(map: HeaderMap) -> Result<HeaderMap, Refusal> {
    let size: usize = map.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum();
    let limits = Limits::default();
    if size > limits.trailers || map.len() > limits.fields + OWN_FIELDS {
        Err(Refusal::TrailersTooLarge)
    } else {
        Ok(map)
    }
}
