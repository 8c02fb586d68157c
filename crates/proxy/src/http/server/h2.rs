//! A downstream HTTP/2 connection: one task for the connection, which writes and reads frames, and one per stream.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
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
use crate::stream::Stream;
use crate::upstream::pool::h2::{CONNECTION_WINDOW, DATA_FRAME_BUDGET, SEND_BUFFER, STREAM_WINDOW};

/// Streams that a client may have open: Envoy's order of magnitude is 2^31, ours bounds memory.
const MAX_STREAMS: u32 = 1024;

/// Counts the open streams of a connection.
struct Open {
    count: Rc<Cell<usize>>,
    changed: Rc<tokio::sync::Notify>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.count.set(self.count.get() - 1);
        if self.count.get() == 0 {
            self.changed.notify_one();
        }
    }
}

/// Serves a connection to its end.
pub async fn serve(conn: &Rc<HttpConn>, stream: Stream) {
    let view = conn.view();
    let config = &view.http.config;
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(config.max_request_headers_kb.saturating_mul(1024))
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .enable_connect_protocol()
        .handshake::<_, Bytes>(stream);
    let limit = config.request_headers_timeout;
    let limit = if limit.is_zero() { Duration::from_secs(3600) } else { limit };
    let Ok(Ok(mut connection)) = timeout(limit, handshake).await else { return };

    let drain = conn.worker.shared.drain.clone();
    let mut draining = pin!(drain.draining());
    let mut drained = false;
    let (count, changed) = (Rc::new(Cell::new(0)), Rc::new(tokio::sync::Notify::new()));
    let mut timer = Timer::default();
    let mut idle: Option<Instant> = None;
    loop {
        let emptied = changed.notified();
        let mut emptied = pin!(emptied);
        let accepted = poll_fn(|cx| {
            if !drained && draining.as_mut().poll(cx).is_ready() {
                drained = true;
                // GOAWAY; streams that are open go on, and the connection ends after the last.
                connection.graceful_shutdown();
            }
            if let Poll::Ready(next) = connection.poll_accept(cx) {
                return Poll::Ready(next);
            }
            while emptied.as_mut().poll(cx).is_ready() {
                emptied.set(changed.notified());
                idle = None;
            }
            if count.get() > 0 {
                idle = None;
                return Poll::Pending;
            }
            let deadline = *idle.get_or_insert_with(|| {
                after(Instant::now(), conn.view().http.config.idle_timeout).unwrap_or_else(far)
            });
            if timer.poll(cx, Some(deadline)).is_ready() {
                idle = Some(far());
                connection.graceful_shutdown();
            }
            Poll::Pending
        })
        .await;
        match accepted {
            Some(Ok((request, respond))) => {
                count.set(count.get() + 1);
                let open = Open { count: count.clone(), changed: changed.clone() };
                tokio::task::spawn_local(serve_stream(conn.clone(), request, respond, open));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, peer = %conn.info.source, "a downstream HTTP/2 connection ended");
                return;
            }
            None => return,
        }
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

async fn serve_stream(
    conn: Rc<HttpConn>,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
    _open: Open,
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
    let Done { responder: unused, .. } = done;
    if let Some(responder) = unused {
        responder.abort(h2::Reason::CANCEL);
    }
}
