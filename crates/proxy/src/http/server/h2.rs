//! A downstream HTTP/2 connection: one task for the connection, which writes and reads frames, and one per stream.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::failure::{Failure, FailureKind, Stage};
use crate::http::body::Body;
use crate::http::conn::HttpConn;
use crate::http::context::{Done, RequestCtx};
use crate::http::h1::Limits;
use crate::http::head::RequestHead;
use crate::http::request;
use crate::http::respond::Responder;
use crate::http::timeout::{Timer, after};
use crate::http::turn;
use crate::http::window::{self, MAX_STREAMS, Windows};
use crate::memory;
use crate::stream::Stream;
use crate::upstream::pool::h2::{DATA_FRAME_BUDGET, SEND_BUFFER};

/// Streams that a client may reset before we have looked at them; we do at the end of each turn, and a turn reads a bounded
/// number of bytes ([`turn`]). An honest client's cancellations must not end a connection that others share.
const MAX_UNSEEN_RESETS: usize = 8 * 1024;

/// Without a preface for so long a connection is none, where the listener does not say.
const PREFACE: Duration = Duration::from_secs(10);

/// Timers of ended streams that a connection keeps for the next ones.
const SPARE_TIMERS: usize = 4;

/// The open streams of a connection.
#[derive(Default)]
struct Streams {
    open: Cell<usize>,
    /// Who waits until there is none.
    waiting: RefCell<Option<Waker>>,
    timers: RefCell<Vec<Timer>>,
    limits: Limits,
}

impl Streams {
    fn take_timer(&self) -> Timer {
        self.timers.borrow_mut().pop().unwrap_or_default()
    }

    fn give_timer(&self, timer: Timer) {
        let mut timers = self.timers.borrow_mut();
        if timers.len() < SPARE_TIMERS {
            timers.push(timer);
        }
    }

    fn wait(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
    }
}

/// One of them, with what it holds of the connection's account.
struct Open {
    streams: Rc<Streams>,
    conn: Rc<HttpConn>,
    holds: usize,
}

impl Open {
    /// `None` if there is no memory for it.
    fn new(streams: &Rc<Streams>, conn: &Rc<HttpConn>, request: &http::Request<RecvStream>) -> Option<Self> {
        let holds = memory::STREAM + weight(request);
        if !conn.account.take(holds) {
            return None;
        }
        streams.open.set(streams.open.get() + 1);
        Some(Self { streams: streams.clone(), conn: conn.clone(), holds })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let streams = &self.streams;
        self.conn.account.give(self.holds);
        streams.open.set(streams.open.get() - 1);
        if streams.open.get() == 0
            && let Some(waker) = &*streams.waiting.borrow()
        {
            waker.wake_by_ref();
        }
    }
}

/// What a head holds in memory. References to the header table are short on the wire.
fn weight(request: &http::Request<RecvStream>) -> usize {
    let headers = request.headers();
    let text: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    headers.len() * memory::FIELD + 2 * (text + path)
}

/// Serves a connection to its end.
pub async fn serve(conn: &Rc<HttpConn>, stream: Stream) {
    let view = conn.view();
    let (config, limits) = (&view.http.config, conn.limits());
    let (stream, turn) = turn::collecting(stream, &conn.worker.buffers);
    let handshake = Builder::new()
        .initial_window_size(window::STREAM)
        .initial_connection_window_size(window::CONNECTION)
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(limits.header_list())
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .enable_connect_protocol()
        .handshake::<_, Bytes>(stream);
    let limit = config.request_headers_timeout;
    let limit = if limit.is_zero() { PREFACE } else { limit };
    let Ok(Ok(mut connection)) = timeout(limit, handshake).await else { return };
    turn.collect();

    let drain = &conn.worker.process.drain;
    let mut drained = false;
    let streams = Rc::new(Streams { limits, ..Streams::default() });
    let mut timer = Timer::default();
    let mut windows = Windows::default();
    let mut idle: Option<Instant> = None;
    let mut aged = conn.ends().map(|ends| Box::pin(sleep_until(ends)));
    let ended = poll_fn(|cx| {
        conn.account.place().register(cx);
        if let Some(told) = conn.account.told() {
            // The peer need not listen, so nobody waits for its farewell.
            connection.abrupt_shutdown(told.reason());
            let _ = connection.poll_closed(cx);
            let _ = turn.poll_end(cx);
            return Poll::Ready(None);
        }
        if !drained && (drain.is_draining() || is_over(aged.as_mut(), cx)) {
            drained = true;
            // GOAWAY; streams that are open go on, and the connection ends after the last.
            connection.graceful_shutdown();
        }
        let open = streams.open.get();
        if windows.follow(open, |size| connection.set_initial_window_size(size)).is_err() {
            connection.abrupt_shutdown(h2::Reason::SETTINGS_TIMEOUT);
        }
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, mut respond)))) => {
                    idle = None;
                    let Some(open) = Open::new(&streams, conn, &request) else {
                        // The request was not looked at, so it can be sent again (RFC 9113, section 8.7).
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                        continue;
                    };
                    // Boxed: a task's future is moved several times before its first poll.
                    tokio::task::spawn_local(Box::pin(serve_stream(request, respond, open)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(error)),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        // Pending or not, the next turn goes on with it.
        let _ = turn.poll_end(cx);
        if streams.open.get() > 0 {
            idle = None;
            conn.account.rest(None);
            streams.wait(cx);
            return Poll::Pending;
        }
        let deadline = *idle.get_or_insert_with(|| {
            let now = Instant::now();
            conn.account.rest(Some(now));
            after(now, conn.view().http.config.idle_timeout).unwrap_or_else(far)
        });
        if timer.poll(cx, Some(deadline)).is_ready() {
            idle = Some(far());
            connection.graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    });
    if let Some(error) = ended.await {
        tracing::debug!(%error, peer = %conn.info.source, "a downstream HTTP/2 connection ended");
    }
}

/// Whether a connection is as old as it may be, where there is such an age.
fn is_over(age: Option<&mut Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> bool {
    age.is_some_and(|age| age.as_mut().poll(cx).is_ready())
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

async fn serve_stream(request: http::Request<RecvStream>, respond: SendResponse<Bytes>, open: Open) {
    let conn = &open.conn;
    let (parts, recv) = request.into_parts();
    let ended = recv.is_end_stream();
    let body = if ended { Body::Empty } else { Body::h2(recv) };
    let responder = Responder::H2(respond);
    let head = RequestHead::from_h2(parts, conn.scheme(), &open.streams.limits)
        .and_then(|head| head.framing(ended).map(|framing| (head, framing)));
    let done = match head {
        Ok((head, framing)) => {
            let mut ctx = RequestCtx::open(conn, head, framing, body, responder);
            ctx.timer = open.streams.take_timer();
            request::serve(&mut ctx).await;
            ctx.done()
        }
        Err(refusal) => {
            let kind = FailureKind::BadRequest(refusal.status());
            let failure = Failure::downstream(Stage::Forward, kind, refusal.to_string());
            Box::pin(request::refuse(conn, &failure, body, responder)).await
        }
    };
    // Dropping the rest ends the stream: with NO_ERROR after a whole response (RFC 9113, section 8.1).
    let Done { responder: unused, timer, .. } = done;
    open.streams.give_timer(timer);
    if let Some(responder) = unused {
        responder.abort(h2::Reason::CANCEL);
    }
}
