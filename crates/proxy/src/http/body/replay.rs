//! A body that is copied aside while it is read, so that it can be read again.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};

use super::{Body, BodyError, Frame, REPLAY_LIMIT};
use crate::http::head::Trailers;
use crate::memory::Spare;

/// A body that can be read again as long as it is short.
pub struct Replay {
    pub(super) live: Body,
    pub(super) saved: BytesMut,
    pub(super) trailers: Option<Trailers>,
    pub(super) ended: bool,
    /// How much of `saved` this reading has consumed.
    pub(super) at: usize,
    /// This reading has had the trailers.
    pub(super) trailers_read: bool,
    /// The body outgrew the limit: it can be read on, but not again.
    pub(super) lost: bool,
    /// Somebody wants the copy, retries or not.
    pub(super) kept: bool,
    pub(super) room: Room,
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

impl Replay {
    pub(super) fn of(live: Body) -> Self {
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

    pub(super) fn poll_hold(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Result<bool, BodyError>> {
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

    pub(super) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, BodyError>> {
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

    pub(super) fn consume(&mut self, len: usize) {
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
    pub(super) fn take(&mut self, len: usize) -> Bytes {
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

    pub(super) fn forget_consumed(&mut self) {
        self.saved.advance(self.at);
        self.at = 0;
        if self.saved.is_empty() {
            self.saved = BytesMut::new();
            self.room = Room::default();
        }
    }
}
