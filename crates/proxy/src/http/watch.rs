//! The client and the clock, watched while a request waits for anything.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::breakage::client_gone;
use super::context::RequestCtx;
use super::duration;
use super::timeout::{after, earlier};
use crate::failure::{Failure, FailureKind, Stage};
use crate::memory::{Parked, Told};
use crate::protocol::Protocol;

/// Runs `future` while watching the client and the deadlines.
pub async fn guarded<T>(
    ctx: &mut RequestCtx<'_>,
    per_try: Option<Instant>,
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut future = pin!(future);
    ctx.clock.wait();
    // What the client sends meanwhile is not sent on.
    let mut parked = None;
    poll_fn(|cx| {
        if parked.is_none() && !ctx.body.is_end() {
            parked = Some(park(ctx, cx));
        }
        if let Poll::Ready(result) = future.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if let Poll::Ready(failure) = poll_client(ctx, cx) {
            return Poll::Ready(Err(failure));
        }
        ctx.body.gather(cx);
        poll_deadline(ctx, cx, per_try, ctx.ends).map(Err)
    })
    .await
}

/// Bytes of the client's wait that nobody takes: its connection may have to go for them. One of HTTP/2 hears that itself, and
/// of one of HTTP/1 its request does.
#[cold]
pub fn park<'c>(ctx: &RequestCtx<'c>, cx: &Context<'_>) -> Parked<'c> {
    let (account, alone) = (&ctx.conn.account, ctx.record.protocol == Protocol::Http1);
    if alone {
        account.place().register(cx);
    }
    account.park(alone)
}

/// Ready when the client is gone.
pub fn poll_client(ctx: &mut RequestCtx<'_>, cx: &mut Context<'_>) -> Poll<Failure> {
    let gone = ctx.body.poll_gone(cx).is_ready()
        || ctx.responder.as_mut().is_some_and(|responder| responder.poll_gone(cx).is_ready());
    if gone { Poll::Ready(client_gone("the client went away")) } else { Poll::Pending }
}

/// Ready when time is up: of the route, of the attempt, or without a byte (`idle`, or the end of the stream where that is earlier).
/// And when the connection is to go, for the memory that it holds.
fn poll_deadline(
    ctx: &mut RequestCtx<'_>,
    cx: &mut Context<'_>,
    per_try: Option<Instant>,
    idle: Option<Instant>,
) -> Poll<Failure> {
    if ctx.conn.account.told() == Some(Told::Greedy) {
        return Poll::Ready(shed(ctx));
    }
    let next = earlier(earlier(ctx.clock.deadline(), per_try), idle);
    if ctx.timer.poll(cx, next).is_pending() {
        return Poll::Pending;
    }
    Poll::Ready(late(ctx, per_try, next))
}

/// It has much that nobody takes, and others need the memory.
#[cold]
fn shed(ctx: &mut RequestCtx<'_>) -> Failure {
    ctx.keep = false;
    let detail = "memory has come near its limit, and this connection holds more than others that nobody takes; see memory_limit";
    Failure::local(Stage::Forward, FailureKind::Overload, detail)
}

/// What has passed.
#[cold]
fn late(ctx: &RequestCtx<'_>, per_try: Option<Instant>, next: Option<Instant>) -> Failure {
    let passed = |deadline: Option<Instant>| deadline.is_some() && deadline == next;
    let local = |kind, detail| Failure::local(Stage::Forward, kind, detail);
    // As Envoy: of a request that is not whole the client is told so.
    let status = if ctx.body.is_end() { 504 } else { 408 };
    if passed(ctx.clock.deadline()) {
        local(FailureKind::UpstreamTimeout, "the route's timeout")
    } else if passed(per_try) {
        local(FailureKind::PerTryTimeout, "the time of one attempt")
    } else if ctx.ends.is_some_and(|ends| ends <= Instant::now()) {
        match duration::is_of_attempt(ctx) {
            true => local(FailureKind::UpstreamDuration(status), duration::OF_ATTEMPT),
            false => local(
                FailureKind::StreamDuration(status),
                "the stream has lasted as long as its route or listener lets it",
            ),
        }
    } else {
        local(FailureKind::IdleTimeout(status), "no byte in either direction")
    }
}

/// Watches for streams in which nothing moves. Looks at the counters only when its time comes, so it is exact to one
/// period.
pub struct Idle {
    at: Option<Instant>,
    seen: u64,
}

impl Idle {
    /// From now on.
    pub fn new(ctx: &RequestCtx<'_>) -> Self {
        Self { at: earlier(after(ctx.now, ctx.idle), ctx.ends), seen: 0 }
    }

    /// Whether bytes have moved since the last look; then a new period begins.
    fn moved(&mut self, ctx: &RequestCtx<'_>, bytes: u64) -> bool {
        if bytes == self.seen {
            return false;
        }
        self.seen = bytes;
        self.at = earlier(after(Instant::now(), ctx.idle), ctx.ends);
        true
    }

    /// Ready when time is up, after so many bytes.
    pub fn poll(
        &mut self,
        ctx: &mut RequestCtx<'_>,
        cx: &mut Context<'_>,
        per_try: Option<Instant>,
        bytes: u64,
    ) -> Poll<Failure> {
        loop {
            match poll_deadline(ctx, cx, per_try, self.at) {
                Poll::Ready(failure)
                    if matches!(failure.kind, FailureKind::IdleTimeout(_)) && self.moved(ctx, bytes) => {}
                other => return other,
            }
        }
    }
}
