//! A downstream HTTP/2 connection: one task for the connection, which writes and reads frames, and one per stream.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use tokio::time::{Instant, timeout};

use crate::failure::{Failure, FailureKind, Stage};
use crate::http::body::Body;
use crate::http::head::RequestHead;
use crate::http::request::{self, Done, HttpConn, RequestCtx};
use crate::http::respond::Responder;
use crate::http::timeout::{Timer, after};
use crate::http::turn;
use crate::http::window::{self, MAX_STREAMS, Windows};
use crate::stream::Stream;
use crate::upstream::pool::h2::{DATA_FRAME_BUDGET, SEND_BUFFER};

/// Streams that a client may reset before we have looked at them; we do at the end of each turn, and a turn reads a bounded
/// number of bytes ([`turn`]). An honest client's cancellations must not end a connection that others share.
const MAX_UNSEEN_RESETS: usize = 8 * 1024;

/// Timers of ended streams that a connection keeps for the next ones.
const SPARE_TIMERS: usize = 4;

/// The open streams of a connection.
#[derive(Default)]
struct Streams {
    open: Cell<usize>,
    /// Who waits until there is none.
    waiting: RefCell<Option<Waker>>,
    timers: RefCell<Vec<Timer>>,
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

/// One of them.
struct Open(Rc<Streams>);

impl Open {
    fn new(streams: &Rc<Streams>) -> Self {
        streams.open.set(streams.open.get() + 1);
        Self(streams.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        if self.0.open.get() == 0
            && let Some(waker) = &*self.0.waiting.borrow()
        {
            waker.wake_by_ref();
        }
    }
}

/// Serves a connection to its end.
pub async fn serve(conn: &Rc<HttpConn>, stream: Stream) {
    let view = conn.view();
    let config = &view.http.config;
    let (stream, turn) = turn::collecting(stream, &conn.worker.buffers);
    let handshake = Builder::new()
        .initial_window_size(window::STREAM)
        .initial_connection_window_size(window::CONNECTION)
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(config.max_request_headers_kb.saturating_mul(1024))
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .enable_connect_protocol()
        .handshake::<_, Bytes>(stream);
    let limit = config.request_headers_timeout;
    let limit = if limit.is_zero() { Duration::from_secs(3600) } else { limit };
    let Ok(Ok(mut connection)) = timeout(limit, handshake).await else { return };
    turn.collect();

    let drain = &conn.worker.shared.drain;
    let place = conn.worker.alarm.place(drain);
    let mut drained = false;
    let streams = Rc::new(Streams::default());
    let mut timer = Timer::default();
    let mut windows = Windows::default();
    let mut idle: Option<Instant> = None;
    let ended = poll_fn(|cx| {
        place.register(cx);
        if !drained && drain.is_draining() {
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
                Poll::Ready(Some(Ok((request, respond)))) => {
                    idle = None;
                    // Boxed: a task's future is moved several times before its first poll.
                    let serving = serve_stream(conn.clone(), request, respond, Open::new(&streams));
                    tokio::task::spawn_local(Box::pin(serving));
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
            streams.wait(cx);
            return Poll::Pending;
        }
        let deadline = *idle.get_or_insert_with(|| {
            after(Instant::now(), conn.view().http.config.idle_timeout).unwrap_or_else(far)
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

fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

async fn serve_stream(
    conn: Rc<HttpConn>,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
    open: Open,
) {
    let (parts, recv) = request.into_parts();
    let ended = recv.is_end_stream();
    let body = if ended { Body::Empty } else { Body::h2(recv) };
    let responder = Responder::H2(respond);
    let head =
        RequestHead::from_h2(parts).and_then(|head| head.framing(ended).map(|framing| (head, framing)));
    let done = match head {
        Ok((mut head, framing)) => {
            head.set_scheme(conn.scheme());
            let mut ctx = RequestCtx::open(&conn, head, framing, body, responder);
            ctx.timer = open.0.take_timer();
            request::serve(&mut ctx).await;
            ctx.done()
        }
        Err(refusal) => {
            let kind = FailureKind::BadRequest(refusal.status());
            let failure = Failure::downstream(Stage::Forward, kind, refusal.to_string());
            Box::pin(request::refuse(&conn, &failure, body, responder)).await
        }
    };
    // Dropping the rest ends the stream: with NO_ERROR after a whole response (RFC 9113, section 8.1).
    let Done { responder: unused, timer, .. } = done;
    open.0.give_timer(timer);
    if let Some(responder) = unused {
        responder.abort(h2::Reason::CANCEL);
    }
}
