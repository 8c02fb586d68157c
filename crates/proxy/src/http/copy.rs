//! The one copy loop: any [`Body`] into any [`Sender`], with back-pressure, polled from the task of the request.
//!
//! Both directions of a request are two `Flow`s in one task. A flow flushes when it has nothing more to read, so that a
//! head and the first bytes of its body leave in one write.

use std::task::{Context, Poll, ready};

use super::body::{Body, BodyError, Frame};
use super::grpc::Messages;
use super::head::Trailers;
use super::load_report::Awaited;
use super::send::{SendError, Sender};

/// One direction of a request.
#[derive(Debug, Default)]
pub struct Flow {
    state: Phase,
    /// Body bytes that went through.
    pub bytes: u64,
    /// `grpc-status` of the trailers.
    pub grpc_status: Option<u32>,
    /// There are bytes that the sink does not take.
    pub stuck: bool,
    /// Where messages of gRPC are counted.
    messages: Option<Messages>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Flowing,
    Flushing,
    Done,
    /// The sink is gone; nothing is read any more.
    Cut,
}

/// Why a flow stopped, and which end is to blame.
#[derive(Debug)]
pub enum CopyError {
    Read(BodyError),
    Write(SendError),
}

impl Flow {
    /// Counts messages from now on, if this is gRPC.
    pub fn count_messages(&mut self, is_grpc: bool) {
        self.messages = is_grpc.then(Messages::default);
    }

    /// Messages that went through.
    pub fn messages(&self) -> u64 {
        self.messages.as_ref().map_or(0, |messages| messages.count)
    }

    /// Whether the whole body has left.
    pub fn is_done(&self) -> bool {
        self.state == Phase::Done
    }

    /// Whether it neither has nor will have anything to do.
    pub fn is_over(&self) -> bool {
        matches!(self.state, Phase::Done | Phase::Cut)
    }

    /// The tunnel behind a body.
    pub fn reopen(&mut self) {
        self.state = Phase::Flowing;
    }

    /// Stops for good.
    pub fn cut(&mut self) {
        self.state = Phase::Cut;
    }

    /// Moves what can be moved. Ready when all has left. `reports`: who waits for a report of load in the trailers.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Body,
        to: &mut Sender,
        reports: Option<&Awaited>,
    ) -> Poll<Result<(), CopyError>> {
        while self.state == Phase::Flowing {
            if to.is_finished() {
                self.state = Phase::Flushing;
                break;
            }
            match from.poll_chunk(cx) {
                Poll::Pending => {
                    if let Poll::Ready(error) = to.poll_reset(cx) {
                        return Poll::Ready(Err(CopyError::Write(error)));
                    }
                    let flushed = to.poll_flush(cx);
                    to.idle();
                    return match flushed {
                        Poll::Ready(Err(error)) => Poll::Ready(Err(CopyError::Write(error))),
                        _ => Poll::Pending,
                    };
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(CopyError::Read(error))),
                Poll::Ready(Ok(Frame::Data(len))) => {
                    let room = to.poll_room(cx, len);
                    self.stuck = room.is_pending();
                    if self.stuck {
                        from.gather(cx);
                    }
                    let room = ready!(room).map_err(CopyError::Write)?;
                    let len = len.min(room);
                    if let Some(messages) = &mut self.messages {
                        messages.feed(from.chunk(len));
                    }
                    to.send(from, len).map_err(CopyError::Write)?;
                    self.bytes += len as u64;
                }
                Poll::Ready(Ok(Frame::Trailers(trailers))) => {
                    self.grpc_status = grpc_status(&trailers);
                    if let Some(awaited) = reports {
                        awaited.trailers(&trailers);
                    }
                    to.finish(Some(trailers)).map_err(CopyError::Write)?;
                }
                Poll::Ready(Ok(Frame::End)) => to.finish(None).map_err(CopyError::Write)?,
            }
        }
        if self.state == Phase::Flushing {
            ready!(to.poll_flush(cx)).map_err(CopyError::Write)?;
            self.state = Phase::Done;
        }
        Poll::Ready(Ok(()))
    }
}

/// The `grpc-status` of a trailer section.
pub fn grpc_status(trailers: &Trailers) -> Option<u32> {
    trailers.first("grpc-status").and_then(parse_status)
}

/// A gRPC status code.
pub fn parse_status(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests;
