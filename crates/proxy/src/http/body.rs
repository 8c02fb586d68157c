//! The two ends of a body: [`Body`] lends chunks and then trailers, [`super::send::Sender`] takes them.
//!
//! A chunk stays where it arrived (the connection's buffer, h2's `Bytes`) until it is consumed, and it is consumed only
//! when the other side has taken it: that is all there is to back-pressure. Of an HTTP/2 stream that nobody takes anything of,
//! what comes within its window is gathered, since its connection is not its alone.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream};

use super::h1::{BodyDecoder, Framing, Limits, Refusal, Step};
use super::head::Trailers;
use super::wire::Incoming;

mod http2;
mod replay;

pub use http2::H2Body;
pub use replay::{Replay, Room};

/// The largest request body that is copied aside for retries.
pub const REPLAY_LIMIT: usize = 64 * 1024;

/// Where a body comes from.
pub enum Body {
    /// Nothing follows.
    Empty,
    /// From an HTTP/1 connection, whose bodies all use one box.
    H1(Box<H1Body>),
    /// From an HTTP/2 stream.
    H2(H2Body),
    /// Any of them, copied aside while it is read so that it can be read again.
    Replay(Box<Replay>),
}

/// What a body has next.
#[derive(Debug)]
pub enum Frame {
    /// So many bytes: see [`Body::chunk`].
    Data(usize),
    /// The trailers; `End` follows.
    Trailers(Trailers),
    /// Nothing more.
    End,
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Malformed framing, or the end of the connection in the middle.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The stream was reset, or its connection broke.
    #[error("{0}")]
    H2(#[from] h2::Error),
}

/// The body of an HTTP/1 message, with the reading half of the connection that it comes from.
pub struct H1Body {
    pub incoming: Incoming,
    decoder: BodyDecoder,
    kept_out: KeptOut,
}

/// Names that trailers must not have, beyond those that none may have: ours to say in the head.
#[derive(Debug, Default)]
struct KeptOut(Option<Arc<Vec<String>>>);

impl KeptOut {
    fn add(&mut self, names: &Arc<Vec<String>>) {
        match &mut self.0 {
            Some(known) => Arc::make_mut(known).extend_from_slice(names),
            none => *none = Some(names.clone()),
        }
    }

    fn of(&self, mut trailers: Trailers) -> Trailers {
        if let Some(names) = &self.0 {
            trailers.remove_alike(names);
        }
        trailers
    }
}

impl Body {
    /// From here on it is a tunnel's; what was read already belongs to it.
    pub fn make_tunnel(&mut self) {
        *self = match std::mem::replace(self, Self::Empty).into_live() {
            Self::H1(reader) => Self::h1(reader, Framing::Tunnel),
            other => other,
        };
    }

    /// Of an HTTP/1 message with this framing.
    pub fn h1(mut reader: Box<H1Body>, framing: Framing) -> Self {
        reader.begin(framing);
        Self::H1(reader)
    }

    /// Of an HTTP/2 stream.
    pub fn h2(recv: RecvStream) -> Self {
        Self::H2(H2Body::new(recv))
    }

    /// Copies the body aside from now on, as far as there is room, unless it is known to be empty or to be too long.
    pub fn make_replayable(&mut self, room: Room) {
        let hopeless = match self {
            Self::Replay(replay) => {
                let paid = room.paid.max(replay.room.paid);
                let spare = replay.room.spare.take().or(room.spare);
                replay.room = Room { paid, spare };
                return;
            }
            Self::Empty => true,
            Self::H1(body) => body.decoder.remaining().is_some_and(|left| left > REPLAY_LIMIT as u64),
            Self::H2(_) => false,
        };
        if !hopeless && !self.is_end() {
            self.copy_aside(room);
        }
    }

    fn copy_aside(&mut self, room: Room) {
        let live = std::mem::replace(self, Self::Empty);
        *self = Self::Replay(Box::new(Replay { room, ..Replay::of(live) }));
    }

    /// Whether it was copied aside and can be sent once more from its start.
    pub fn can_replay(&self) -> bool {
        matches!(self, Self::Replay(replay) if !replay.lost)
    }

    /// Goes back to the start; only after [`Body::can_replay`] said so.
    pub fn rewind(&mut self) {
        if let Self::Replay(replay) = self {
            (replay.at, replay.trailers_read) = (0, false);
        }
    }

    /// Reads on where a reading of a copy of the whole body got to: behind so many bytes, and the trailers if it has `ended`.
    pub fn read_on(&mut self, bytes: u64, ended: bool) {
        if let Self::Replay(replay) = self
            && !replay.lost
        {
            replay.at = usize::try_from(bytes).map_or(replay.saved.len(), |at| at.min(replay.saved.len()));
            replay.trailers_read = ended;
        }
    }

    /// Reads up to so many bytes before the body is sent anywhere; says whether that was all. What was read is read again. So many
    /// bytes of memory were taken for it.
    pub fn poll_hold(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        paid: usize,
    ) -> Poll<Result<bool, BodyError>> {
        if self.is_end() {
            return Poll::Ready(Ok(true));
        }
        if !matches!(self, Self::Replay(_)) {
            self.copy_aside(Room::default());
        }
        match self {
            Self::Replay(replay) => {
                replay.room.paid = replay.room.paid.max(paid);
                replay.poll_hold(cx, most)
            }
            _ => Poll::Ready(Ok(true)),
        }
    }

    /// What [`Body::poll_hold`] has read: at most one byte more than was asked for.
    pub fn held(&self) -> &[u8] {
        match self {
            Self::Replay(replay) => &replay.saved,
            _ => &[],
        }
    }

    /// Copies the body aside, for [`Body::kept`]; so many bytes of memory were taken for it.
    pub fn keep(&mut self, paid: usize) {
        self.make_replayable(Room { paid, spare: None });
        if let Self::Replay(replay) = self {
            replay.kept = true;
        }
    }

    /// Whether a copy is being kept that may yet become whole.
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::Replay(replay) if replay.kept && !replay.lost)
    }

    /// The whole body, with its trailers, if it has been read and was short enough to be kept.
    pub fn kept(&self) -> Option<(Bytes, Option<Trailers>)> {
        match self {
            Self::Replay(replay) if replay.lost || !self.is_end() => None,
            Self::Replay(replay) => Some((Bytes::copy_from_slice(&replay.saved), replay.trailers.clone())),
            _ => None,
        }
    }

    /// The whole body, with its trailers, if all of it has come and was short enough to be kept, whoever has read how much of it.
    pub fn whole(&self) -> Option<(Bytes, Option<Trailers>)> {
        match self {
            Self::Replay(replay) if replay.lost || !(replay.ended || replay.live.is_end()) => None,
            Self::Replay(replay) => Some((Bytes::copy_from_slice(&replay.saved), replay.trailers.clone())),
            _ => None,
        }
    }

    /// A body of our own.
    pub fn saved(body: Bytes, trailers: Option<Trailers>) -> Self {
        if body.is_empty() && trailers.is_none() {
            return Self::Empty;
        }
        let saved = BytesMut::from(body);
        Self::Replay(Box::new(Replay { saved, trailers, ended: true, kept: true, ..Replay::of(Self::Empty) }))
    }

    /// No retry will come: nothing more is copied aside, unless somebody wants the copy.
    pub fn stop_recording(&mut self) {
        if let Self::Replay(replay) = self
            && !replay.kept
        {
            replay.lost = true;
            replay.forget_consumed();
        }
    }

    /// The body without the copy; what was read is gone.
    pub fn into_live(self) -> Self {
        match self {
            Self::Replay(replay) => replay.live,
            live => live,
        }
    }

    /// While nobody takes what comes: holds it for later, so that the connection, which others share, is not held up by it, nor ended
    /// for it. Only for HTTP/2, whose windows bound what that may be.
    #[cold]
    #[inline(never)]
    pub fn gather(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::Empty | Self::H1(_) => {}
            Self::H2(body) => body.gather(cx),
            Self::Replay(replay) => replay.live.gather(cx),
        }
    }

    /// From now on its trailers have none of these names, nor what applications take for them.
    #[cold]
    pub fn keep_out(&mut self, names: &Arc<Vec<String>>) {
        match self {
            Self::Empty => {}
            Self::H1(body) => body.kept_out.add(names),
            Self::H2(body) => body.kept_out.add(names),
            Self::Replay(replay) => {
                if let Some(trailers) = &mut replay.trailers {
                    trailers.remove_alike(names);
                }
                replay.live.keep_out(names);
            }
        }
    }

    /// What comes next.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, BodyError>> {
        match self {
            Self::Empty => Poll::Ready(Ok(Frame::End)),
            Self::H1(body) => body.poll_chunk(cx),
            Self::H2(body) => body.poll_chunk(cx),
            Self::Replay(replay) => replay.poll_chunk(cx),
        }
    }

    /// The first `len` bytes that [`Body::poll_chunk`] has lent.
    pub fn chunk(&self, len: usize) -> &[u8] {
        let bytes: &[u8] = match self {
            Self::Empty => &[],
            Self::H1(body) => &body.incoming.buf,
            Self::H2(body) => body.chunk(),
            Self::Replay(replay) if replay.at < replay.saved.len() => &replay.saved[replay.at..],
            Self::Replay(replay) => return replay.live.chunk(len),
        };
        &bytes[..len.min(bytes.len())]
    }

    /// The other side has taken `len` bytes.
    pub fn consume(&mut self, len: usize) {
        match self {
            Self::Empty => {}
            Self::H1(body) => body.decoder.consume(&mut body.incoming.buf, len),
            Self::H2(body) => drop(body.take(len)),
            Self::Replay(replay) => replay.consume(len),
        }
    }

    /// Takes `len` bytes that were lent; without a copy where they came by HTTP/2.
    pub fn take(&mut self, len: usize) -> Bytes {
        match self {
            Self::H2(body) => body.take(len),
            Self::Replay(replay) if replay.at == replay.saved.len() => replay.take(len),
            _ => {
                let bytes = Bytes::copy_from_slice(self.chunk(len));
                self.consume(len);
                bytes
            }
        }
    }

    /// Whether it is known, without waiting, that nothing follows, not even trailers.
    #[inline]
    pub fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::H1(body) => body.decoder.is_done(),
            Self::H2(body) => body.is_end(),
            Self::Replay(replay) => {
                replay.at == replay.saved.len()
                    && (replay.trailers.is_none() || replay.trailers_read)
                    && (replay.ended || replay.live.is_end())
            }
        }
    }

    /// Ready when the client has gone away after its message; one that has only ended its side waits for the answer. Only for
    /// HTTP/1: an HTTP/2 client says so by a reset.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(body) if body.decoder.is_done() => body.incoming.poll_gone(cx),
            Self::Replay(replay) => replay.live.poll_gone(cx),
            _ => Poll::Pending,
        }
    }
}

impl H1Body {
    /// For the messages of one connection; none is being read.
    pub fn new(incoming: Incoming, limits: Limits) -> Box<Self> {
        let decoder = BodyDecoder::new(Framing::None, limits);
        Box::new(Self { incoming, decoder, kept_out: KeptOut::default() })
    }

    /// The next message begins: a body with this framing.
    pub fn begin(&mut self, framing: Framing) {
        self.decoder.begin(framing);
        self.kept_out.0 = None;
    }

    /// Whether the whole message was read.
    pub fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, BodyError>> {
        loop {
            match self.decoder.poll(&mut self.incoming.buf)? {
                Step::Data(len) => return Poll::Ready(Ok(Frame::Data(len))),
                Step::Trailers(fields) => {
                    let trailers = self.kept_out.of(Trailers::H1(fields));
                    return Poll::Ready(Ok(Frame::Trailers(trailers)));
                }
                Step::End => return Poll::Ready(Ok(Frame::End)),
                Step::NeedMore => {
                    if ready!(self.incoming.poll_fill(cx))? == 0 {
                        self.decoder.eof()?;
                    }
                }
            }
        }
    }
}

/// The reset reason behind an error, if there is one.
pub fn reset_reason(error: &BodyError) -> Option<Reason> {
    match error {
        BodyError::H2(error) => error.reason(),
        _ => None,
    }
}
