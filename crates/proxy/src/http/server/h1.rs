//! A downstream HTTP/1 connection: heads are read one after the other, requests served in order.
//!
//! ```text
//! idle ──first byte──> head ──> request ──kept alive──> idle
//!   └─idle timeout      └─too slow: 408   └─close, early response: linger──> closed
//! ```

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::DRAIN_IDLE;
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::body::{Body, Frame, H1Body};
use crate::http::conn::HttpConn;
use crate::http::context::{Done, RequestCtx};
use crate::http::h1::{Framing, H1Request, Parsed, Refusal, RequestParser};
use crate::http::head::RequestHead;
use crate::http::request;
use crate::http::respond::Responder;
use crate::http::send::{H1Sender, Sender};
use crate::http::timeout::{Timer, after, earlier};
use crate::http::wire::{self, BUFFER, Incoming};
use crate::stream::Stream;

/// After a response that closes the connection, so much of what the client still sends is read and dropped: closing at
/// once would reset the connection, and with it the response (RFC 9112, section 9.6).
const LINGER_BYTES: usize = 256 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(2);

/// What a head takes that is more than half of a buffer: its own bytes, and what it becomes for the upstream.
const LARGE_HEAD: usize = 64 * 1024;

/// How much of a request body that nobody wanted is read to save the connection.
const DRAIN_BODY: usize = 64 * 1024;

/// What the client sent next.
#[allow(clippy::large_enum_variant)] // nearly all are heads, and a box would be an allocation per request
enum Next {
    Head(H1Request),
    Refused(Refusal),
    /// The head began and did not end in time.
    Slow,
    /// It is large, and there is no memory left for such.
    Full,
    /// Nothing more: closed, idle for too long, draining.
    End,
}

/// Serves a connection to its end.
pub async fn serve(conn: &HttpConn, stream: Stream) {
    let (incoming, outgoing) = wire::split(stream, &conn.worker.buffers);
    let limits = conn.limits();
    let (mut reader, mut writer) = (H1Body::new(incoming, limits), H1Sender::new(outgoing));
    let mut parser = RequestParser::new(limits);
    let mut timer = Timer::default();
    let mut large = false;
    loop {
        if std::mem::take(&mut large) {
            conn.account.give(LARGE_HEAD);
        }
        let next = read_head(conn, &mut reader.incoming, &mut parser, &mut timer, &mut large).await;
        conn.account.rest(None);
        let mut done = {
            let mut ctx = match next {
                Next::Head(head) => begin(conn, head, reader, writer, &mut timer),
                other => return Box::pin(end(conn, other, (reader, writer), timer)).await,
            };
            request::serve(&mut ctx).await;
            ctx.done()
        };
        timer = std::mem::take(&mut done.timer);
        let reunited = match done.is_clean() {
            true => halves_of(done),
            false => Box::pin(reunite(done, &mut timer)).await,
        };
        match reunited {
            Reunited::Next(halves) => (reader, writer) = halves,
            Reunited::Close(halves) => return Box::pin(linger(halves, &mut timer)).await,
            Reunited::Gone => return,
        }
    }
}

#[inline(always)] // made where it stays
fn begin<'c>(
    conn: &'c HttpConn,
    mut head: H1Request,
    reader: Box<H1Body>,
    writer: Box<H1Sender>,
    timer: &mut Timer,
) -> RequestCtx<'c> {
    head.set_scheme(conn.scheme());
    let framing = head.framing();
    let responder = Responder::h1(writer, head.minor(), head.keeps_alive());
    let body = Body::h1(reader, framing);
    let mut ctx = RequestCtx::open(conn, RequestHead::H1(head), framing, body, responder);
    ctx.timer = std::mem::take(timer);
    ctx
}

/// The end of a connection, after an answer to a head that could not be read.
async fn end(conn: &HttpConn, next: Next, (reader, mut writer): Halves, mut timer: Timer) {
    let refusal = match next {
        Next::Head(_) | Next::End => {
            // A TLS peer is told; nobody waits for the answer.
            let _ = poll_fn(|cx| writer.outgoing.poll_shutdown(cx)).await;
            return;
        }
        Next::Refused(refusal) => {
            let kind = FailureKind::BadRequest(refusal.status());
            Failure::downstream(Stage::Forward, kind, refusal.to_string())
        }
        Next::Full => {
            let detail = "clients hold all memory that is handed out; see memory_limit";
            Failure::local(Stage::Forward, FailureKind::Overload, detail)
        }
        Next::Slow => Failure::downstream(
            Stage::Forward,
            FailureKind::RequestTimeout,
            "the request head did not come in time",
        ),
    };
    let (body, responder) = (Body::h1(reader, Framing::Close), Responder::h1(writer, 1, false));
    let done = request::refuse(conn, &refusal, body, responder).await;
    if let Reunited::Close(halves) | Reunited::Next(halves) = halves_of(done) {
        linger(halves, &mut timer).await;
    }
}

/// Reads the next head. Between requests the idle timeout runs, within a head the shorter one for heads.
async fn read_head(
    conn: &HttpConn,
    incoming: &mut Incoming,
    parser: &mut RequestParser,
    timer: &mut Timer,
    large: &mut bool,
) -> Next {
    let mut begun: Option<Instant> = None;
    let mut idle: Option<Option<Instant>> = None;
    let mut drained = false;
    let mut drain_idle = None;
    poll_fn(|cx: &mut Context<'_>| {
        loop {
            match parser.parse(&mut incoming.buf) {
                Ok(Parsed::Head(head)) => return Poll::Ready(Next::Head(head)),
                Ok(Parsed::NeedMore) => {}
                Err(refusal) => return Poll::Ready(Next::Refused(refusal)),
            }
            match incoming.poll_fill(cx) {
                Poll::Ready(Ok(0)) if incoming.buf.is_empty() => return Poll::Ready(Next::End),
                Poll::Ready(Ok(0)) => return Poll::Ready(Next::Refused(Refusal::UnexpectedEof)),
                Poll::Ready(Ok(_)) if *large || incoming.buf.len() < BUFFER / 2 => {}
                Poll::Ready(Ok(_)) => {
                    *large = conn.account.take(LARGE_HEAD);
                    if !*large {
                        return Poll::Ready(Next::Full);
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Next::End),
                Poll::Pending => break,
            }
        }
        conn.account.place().register(cx);
        if conn.account.told().is_some() {
            return Poll::Ready(Next::End);
        }
        let view = conn.view();
        let config = &view.http.config;
        let resting = || {
            let now = Instant::now();
            conn.account.rest(Some(now));
            now
        };
        if !parser.is_idle() {
            let since = *begun.get_or_insert_with(resting);
            let limit = config.request_headers_timeout;
            let deadline = (!limit.is_zero()).then(|| since + limit);
            return timer.poll(cx, deadline).map(|()| Next::Slow);
        }
        let idle = *idle.get_or_insert_with(|| after(resting(), config.idle_timeout));
        if !drained && conn.takes_leave() {
            drained = true;
            drain_idle = Some(Instant::now() + DRAIN_IDLE);
        }
        let leaves = if drained { drain_idle } else { conn.ends() };
        if timer.poll(cx, earlier(idle, leaves)).is_pending() {
            return Poll::Pending;
        }
        if drained || idle.is_some_and(|idle| idle <= Instant::now()) {
            return Poll::Ready(Next::End);
        }
        // It has aged: one more request may be on its way.
        drained = true;
        drain_idle = Some(Instant::now() + DRAIN_IDLE);
        timer.poll(cx, earlier(idle, drain_idle)).map(|()| Next::End)
    })
    .await
}

/// A connection with both of its halves at home.
type Halves = (Box<H1Body>, Box<H1Sender>);

/// What can be done with a connection after a request.
enum Reunited {
    Next(Halves),
    Close(Halves),
    Gone,
}

/// Both halves, if both are still there.
fn halves_of(done: Done) -> Reunited {
    let complete = done.sender.as_ref().is_some_and(Sender::is_finished);
    match (done.body, done.sender) {
        (Body::H1(body), Some(Sender::H1(sender))) if complete => {
            let reusable = done.keep && body.is_done();
            let halves = (body, sender);
            if reusable { Reunited::Next(halves) } else { Reunited::Close(halves) }
        }
        // A response that broke off ends with its connection, and without a farewell: the client must notice.
        _ => Reunited::Gone,
    }
}

/// Brings the halves back together. The rest of a short body that nobody read (an early response) is read and dropped.
async fn reunite(mut done: Done, timer: &mut Timer) -> Reunited {
    let complete = done.sender.as_ref().is_some_and(Sender::is_finished);
    if complete && done.keep && !done.body.is_end() {
        let deadline = Some(Instant::now() + LINGER_TIME);
        let mut left = DRAIN_BODY;
        let body = &mut done.body;
        poll_fn(|cx| {
            loop {
                match body.poll_chunk(cx) {
                    Poll::Ready(Ok(Frame::Data(len))) if len <= left => {
                        left -= len;
                        body.consume(len);
                    }
                    Poll::Ready(Ok(Frame::Trailers(_))) => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return timer.poll(cx, deadline),
                }
            }
        })
        .await;
    }
    halves_of(done)
}

/// Ends our side, and drops what the client still sends for a while.
async fn linger((mut reader, mut writer): Halves, timer: &mut Timer) {
    let (incoming, outgoing) = (&mut reader.incoming, &mut writer.outgoing);
    let deadline = Some(Instant::now() + LINGER_TIME);
    let mut left = LINGER_BYTES;
    let mut shut = false;
    poll_fn(|cx| {
        if !shut && outgoing.poll_shutdown(cx).is_ready() {
            shut = true;
        }
        loop {
            incoming.buf.clear();
            match incoming.poll_fill(cx) {
                Poll::Ready(Ok(n)) if n > 0 && n <= left => left -= n,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return timer.poll(cx, deadline),
            }
        }
    })
    .await;
}
