//! The two ends of a body: [`Body`] lends chunks and then trailers, [`super::send::Sender`] takes them.
//!
//! A chunk stays where it arrived (the connection's buffer, h2's `Bytes`) until it is consumed, and it is consumed only
//! when the other side has taken it: that is all there is to back-pressure.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream};

use super::h1::{BodyDecoder, Framing, Limits, Refusal, Step};
use super::head::Trailers;
use super::wire::Incoming;
use crate::memory::Spare;

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
}

/// The body of an HTTP/2 message.
pub struct H2Body {
    recv: RecvStream,
    chunk: Bytes,
    data_ended: bool,
}

/// A body that can be read again as long as it is short.
pub struct Replay {
    live: Body,
    saved: BytesMut,
    trailers: Option<Trailers>,
    ended: bool,
    /// How much of `saved` this reading has consumed.
    at: usize,
    /// This reading has had the trailers.
    trailers_read: bool,
    /// The body outgrew the limit: it can be read on, but not again.
    lost: bool,
    /// Somebody wants the copy, retries or not.
    kept: bool,
    room: Room,
}

/// The memory that a copy may take.
#[derive(Default)]
pub struct Room {
    /// So much was taken for it already.
    pub paid: usize,
    /// What is beyond comes from here.
    pub spare: Option<Spare>,
}

impl Room {
    fn covers(&mut self, bytes: usize) -> bool {
        bytes <= self.paid || self.spare.as_mut().is_some_and(|spare| spare.grow_to(bytes - self.paid))
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
        Self::H2(H2Body { recv, chunk: Bytes::new(), data_ended: false })
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
            Self::H2(body) => &body.chunk,
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
            Self::H2(body) => {
                body.chunk.advance(len);
                body.release(len);
            }
            Self::Replay(replay) => replay.consume(len),
        }
    }

    /// Takes `len` bytes that were lent; without a copy where they came by HTTP/2.
    pub fn take(&mut self, len: usize) -> Bytes {
        match self {
            Self::H2(body) => {
                let bytes = body.chunk.split_to(len);
                body.release(len);
                bytes
            }
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
            Self::H2(body) => body.chunk.is_empty() && body.recv.is_end_stream(),
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
        Box::new(Self { incoming, decoder: BodyDecoder::new(Framing::None, limits) })
    }

    /// The next message begins: a body with this framing.
    pub fn begin(&mut self, framing: Framing) {
        self.decoder.begin(framing);
    }

    /// Whether the whole message was read.
    pub fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, BodyError>> {
        loop {
            match self.decoder.poll(&mut self.incoming.buf)? {
                Step::Data(len) => return Poll::Ready(Ok(Frame::Data(len))),
                Step::Trailers(fields) => return Poll::Ready(Ok(Frame::Trailers(Trailers::H1(fields)))),
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

impl H2Body {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, BodyError>> {
        while !self.data_ended {
            if !self.chunk.is_empty() {
                return Poll::Ready(Ok(Frame::Data(self.chunk.len())));
            }
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.recv.poll_trailers(cx))?;
        Poll::Ready(Ok(trailers.map_or(Frame::End, |map| Frame::Trailers(Trailers::H2(map)))))
    }

    /// Opens the window by what the sink has taken: earlier would let the peer fill our memory.
    fn release(&mut self, len: usize) {
        // It fails only for more than was received.
        let _ = self.recv.flow_control().release_capacity(len);
    }
}

impl Replay {
    fn of(live: Body) -> Self {
        Self {
            live,
            saved: BytesMut::new(),
            trailers: None,
            ended: false,
            at: 0,
            trailers_read: false,
            lost: false,
            kept: false,
            room: Room::default(),
        }
    }

    fn poll_hold(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Result<bool, BodyError>> {
        while !self.ended && self.saved.len() <= most {
            match ready!(self.live.poll_chunk(cx))? {
                Frame::Data(len) => {
                    let len = len.min(most + 1 - self.saved.len());
                    if !self.room.covers(self.saved.len() + len) {
                        return Poll::Ready(Ok(false));
                    }
                    self.saved.extend_from_slice(self.live.chunk(len));
                    self.live.consume(len);
                }
                Frame::Trailers(trailers) => self.trailers = Some(trailers),
                Frame::End => self.ended = true,
            }
        }
        Poll::Ready(Ok(self.saved.len() <= most))
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, BodyError>> {
        if self.at < self.saved.len() {
            return Poll::Ready(Ok(Frame::Data(self.saved.len() - self.at)));
        }
        if let Some(trailers) = self.trailers.as_ref().filter(|_| !self.trailers_read) {
            self.trailers_read = true;
            return Poll::Ready(Ok(Frame::Trailers(trailers.clone())));
        }
        if self.ended {
            return Poll::Ready(Ok(Frame::End));
        }
        let frame = ready!(self.live.poll_chunk(cx))?;
        match &frame {
            Frame::Data(_) => {}
            Frame::Trailers(trailers) => {
                self.trailers = Some(trailers.clone());
                self.trailers_read = true;
            }
            Frame::End => self.ended = true,
        }
        Poll::Ready(Ok(frame))
    }

    fn consume(&mut self, len: usize) {
        if self.at < self.saved.len() {
            self.at += len;
            if self.lost {
                self.forget_consumed();
            }
            return;
        }
        if self.has_room(len) {
            self.saved.extend_from_slice(self.live.chunk(len));
            self.at = self.saved.len();
        }
        self.live.consume(len);
    }

    /// Takes `len` bytes of the live body; what was saved has been read.
    fn take(&mut self, len: usize) -> Bytes {
        let keeps = self.has_room(len);
        let bytes = self.live.take(len);
        if keeps {
            self.saved.extend_from_slice(&bytes);
            self.at = self.saved.len();
        }
        bytes
    }

    /// Whether `len` more bytes can be copied aside; if not, nothing is any more.
    fn has_room(&mut self, len: usize) -> bool {
        let bytes = self.saved.len() + len;
        if !self.lost && bytes <= REPLAY_LIMIT && self.room.covers(bytes) {
            return true;
        }
        self.lost = true;
        self.forget_consumed();
        false
    }

    fn forget_consumed(&mut self) {
        self.saved.advance(self.at);
        self.at = 0;
        if self.saved.is_empty() {
            self.saved = BytesMut::new();
            self.room = Room::default();
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
