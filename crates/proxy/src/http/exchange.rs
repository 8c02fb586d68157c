//! The exchange of one attempt, in the task of its request: the body goes up while the response is awaited and comes down;
//! the client's close and the deadlines are watched all the while.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};

use h2::Reason;
use tokio::time::Instant;

use super::attempt::Live;
use super::body::{Body, BodyError, reset_reason};
use super::copy::{CopyError, Flow};
use super::h1::{Framing, Refusal};
use super::head::ResponseHead;
use super::request::{self, RequestCtx};
use super::respond::BeginError;
use super::send::Sender;
use super::timeout::{after, earlier};
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::memory::{Account, Parked};

/// Runs `future` while watching the client and the deadlines.
pub async fn guarded<T>(
    ctx: &mut RequestCtx<'_>,
    per_try: Option<Instant>,
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut future = pin!(future);
    // What the client sends meanwhile is not read.
    let _parked = (!ctx.body.is_end()).then(|| ctx.conn.account.park());
    poll_fn(|cx| {
        if let Poll::Ready(result) = future.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if let Poll::Ready(failure) = poll_client(ctx, cx) {
            return Poll::Ready(Err(failure));
        }
        poll_deadline(ctx, cx, per_try, None).map(Err)
    })
    .await
}

/// Ready when the client is gone.
fn poll_client(ctx: &mut RequestCtx<'_>, cx: &mut Context<'_>) -> Poll<Failure> {
    let gone = ctx.body.poll_gone(cx).is_ready()
        || ctx.responder.as_mut().is_some_and(|responder| responder.poll_gone(cx).is_ready());
    if gone { Poll::Ready(client_gone("the client went away")) } else { Poll::Pending }
}

/// Ready when time is up: of the route, of the attempt, or without a byte (`idle`).
fn poll_deadline(
    ctx: &mut RequestCtx<'_>,
    cx: &mut Context<'_>,
    per_try: Option<Instant>,
    idle: Option<Instant>,
) -> Poll<Failure> {
    let next = earlier(earlier(ctx.deadline, per_try), idle);
    if ctx.timer.poll(cx, next).is_pending() {
        return Poll::Pending;
    }
    let passed = |deadline: Option<Instant>| deadline.is_some() && deadline == next;
    let local = |kind, detail| Failure::local(Stage::Forward, kind, detail);
    Poll::Ready(if passed(ctx.deadline) {
        local(FailureKind::UpstreamTimeout, "the route's timeout")
    } else if passed(per_try) {
        local(FailureKind::PerTryTimeout, "the time of one attempt")
    } else {
        local(FailureKind::IdleTimeout, "no byte in either direction")
    })
}

/// Watches for streams in which nothing moves. Looks at the counters only when its time comes, so it is exact to one
/// period.
struct Idle {
    at: Option<Instant>,
    seen: u64,
}

impl Idle {
    fn new(ctx: &RequestCtx<'_>) -> Self {
        Self { at: after(ctx.now, ctx.view.http.config.stream_idle_timeout), seen: 0 }
    }

    /// Whether bytes have moved since the last look; then a new period begins.
    fn moved(&mut self, ctx: &RequestCtx<'_>, bytes: u64) -> bool {
        if bytes == self.seen {
            return false;
        }
        self.seen = bytes;
        self.at = after(Instant::now(), ctx.view.http.config.stream_idle_timeout);
        true
    }

    fn poll(
        &mut self,
        ctx: &mut RequestCtx<'_>,
        cx: &mut Context<'_>,
        per_try: Option<Instant>,
        bytes: u64,
    ) -> Poll<Failure> {
        loop {
            match poll_deadline(ctx, cx, per_try, self.at) {
                Poll::Ready(failure)
                    if failure.kind == FailureKind::IdleTimeout && self.moved(ctx, bytes) => {}
                other => return other,
            }
        }
    }
}

/// Sends the request and waits for the head of its final response; interim ones are forwarded.
pub async fn until_head(
    ctx: &mut RequestCtx<'_>,
    live: &mut Live,
    per_try: Option<Instant>,
) -> Result<(), Failure> {
    let mut idle = Idle::new(ctx);
    let (account, mut parked) = (&ctx.conn.account, None);
    let result = poll_fn(|cx| {
        if let Err(failure) = live.poll_upload(cx, &mut ctx.body) {
            return Poll::Ready(Err(failure));
        }
        follow(&mut parked, account, live.upload.stuck);
        loop {
            match live.poll_head(cx) {
                Poll::Ready(Ok(())) if live.head.is_interim() => {
                    if let Some(responder) = &mut ctx.responder {
                        responder.interim(&mut live.head);
                    }
                }
                Poll::Ready(result) => return Poll::Ready(result),
                Poll::Pending => break,
            }
        }
        if let Some(responder) = &mut ctx.responder
            && let Poll::Ready(Err(_)) = responder.poll_flush(cx)
        {
            return Poll::Ready(Err(client_gone("the client went away")));
        }
        match poll_client(ctx, cx) {
            Poll::Ready(failure) => Poll::Ready(Err(failure)),
            Poll::Pending => idle.poll(ctx, cx, per_try, live.upload.bytes).map(Err),
        }
    })
    .await;
    ctx.record.received = live.upload.bytes;
    result
}

/// Forwards the response. On failure the client has been told as far as its protocol can.
pub async fn deliver(ctx: &mut RequestCtx<'_>, live: &mut Live) -> Result<(), Failure> {
    let tunnel = ctx.upgrade.is_open(&live.head, live.framing);
    if tunnel {
        if live.owes_body() {
            Box::pin(finish_upload(ctx, live)).await?;
        }
        live.open_tunnel();
        ctx.open_tunnel();
    }
    let Some(responder) = ctx.responder.take() else { return Ok(()) };
    let drain = ctx.conn.worker.process.drain.is_draining();
    let ended = live.body.is_end();
    ctx.record.status = live.head.status();
    let begun = responder.begin(&mut live.head, live.framing, ended, drain, Some(&ctx.head));
    let begun = begun.map_err(|error| match error {
        BeginError::Convert(error) => {
            let kind = FailureKind::UpstreamProtocol;
            Failure::upstream(Stage::Forward, kind, Retry::Never, error.to_string())
        }
        BeginError::Send(error) => client_gone(&error.to_string()),
    })?;
    ctx.keep &= begun.keeps && !tunnel;
    match &mut live.head {
        ResponseHead::H1(head) => ctx.conn.worker.buffers.give_head(&mut head.fields),
        head => *head = ResponseHead::absent(),
    }
    let mut sender = begun.sender;
    let mut down = Flow::default();
    down.count_messages(ctx.record.is_grpc);
    let result = match tunnel {
        false => copy(ctx, live, &mut sender, &mut down).await,
        true => Box::pin(self::tunnel(ctx, live, &mut sender, &mut down)).await,
    };
    ctx.record.received = live.upload.bytes;
    ctx.record.sent = down.bytes;
    ctx.record.messages = (live.upload.messages(), down.messages());
    if down.grpc_status.is_some() {
        ctx.record.grpc_status = down.grpc_status;
    }
    match &result {
        Ok(()) => {
            ctx.record.ended = Some(ctx.now);
            live.recycle(ctx);
        }
        Err(Cut { reason, .. }) => {
            ctx.keep = false;
            // What came of the response leaves, as far as it goes at once; then the end shows that it is not all.
            poll_fn(|cx| Poll::Ready(sender.poll_flush(cx).is_ready())).await;
            sender.reset(*reason);
            if tunnel {
                live.sender.reset(Reason::CANCEL);
            }
        }
    }
    ctx.sender = Some(sender);
    result.map_err(|cut| cut.failure)
}

/// Sends the rest of a body whose tunnel was granted early: it begins behind the message (RFC 9110, section 7.8).
async fn finish_upload(ctx: &mut RequestCtx<'_>, live: &mut Live) -> Result<(), Failure> {
    let mut idle = Idle::new(ctx);
    poll_fn(|cx| {
        if let Err(failure) = live.poll_upload(cx, &mut ctx.body) {
            return Poll::Ready(Err(failure));
        }
        if live.upload.is_done() {
            return Poll::Ready(Ok(()));
        }
        if live.upload.is_over() {
            let detail = "the application switched protocols and took no more of the request's body";
            let kind = FailureKind::UpstreamProtocol;
            return Poll::Ready(Err(Failure::upstream(Stage::Forward, kind, Retry::Never, detail)));
        }
        match poll_client(ctx, cx) {
            Poll::Ready(failure) => Poll::Ready(Err(failure)),
            Poll::Pending => idle.poll(ctx, cx, None, live.upload.bytes).map(Err),
        }
    })
    .await
}

/// A response that broke off, and what an HTTP/2 client is told.
struct Cut {
    failure: Failure,
    reason: Reason,
}

impl From<Failure> for Cut {
    fn from(failure: Failure) -> Self {
        Self { failure, reason: Reason::INTERNAL_ERROR }
    }
}

/// A tunnel is judged again whenever the configuration changes, as the requests that it stands for would be; what policy
/// forbids now ends.
async fn tunnel(
    ctx: &mut RequestCtx<'_>,
    live: &mut Live,
    sender: &mut Sender,
    down: &mut Flow,
) -> Result<(), Cut> {
    let mut swapped = ctx.conn.worker.process.swapped.subscribe();
    let mut turns = Turns::new(ctx, true);
    loop {
        // What was swapped in while the tunnel was opened counts, too.
        request::judge_again(ctx).map_err(forbidden)?;
        let mut news = pin!(swapped.changed());
        let ended = poll_fn(|cx| match news.as_mut().poll(cx) {
            // The worker, which sends it, outlives its connections.
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => turns.poll(ctx, cx, live, sender, down).map(Some),
        });
        if let Some(ended) = ended.await {
            return ended;
        }
    }
}

fn forbidden(failure: Failure) -> Cut {
    tracing::info!(%failure, "a tunnel is closed: policy has changed");
    Cut { failure, reason: Reason::CANCEL }
}

async fn copy(
    ctx: &mut RequestCtx<'_>,
    live: &mut Live,
    sender: &mut Sender,
    down: &mut Flow,
) -> Result<(), Cut> {
    let mut turns = Turns::new(ctx, false);
    poll_fn(|cx| turns.poll(ctx, cx, live, sender, down)).await
}

/// Both directions of an exchange, each time that its task is woken.
struct Turns<'c> {
    idle: Idle,
    account: &'c Account,
    parked: Option<Parked<'c>>,
    waited: bool,
    tunnel: bool,
}

impl<'c> Turns<'c> {
    fn new(ctx: &RequestCtx<'c>, tunnel: bool) -> Self {
        let conn = ctx.conn;
        Self { idle: Idle::new(ctx), account: &conn.account, parked: None, waited: false, tunnel }
    }

    #[inline]
    fn poll(
        &mut self,
        ctx: &mut RequestCtx<'_>,
        cx: &mut Context<'_>,
        live: &mut Live,
        sender: &mut Sender,
        down: &mut Flow,
    ) -> Poll<Result<(), Cut>> {
        // Most bodies are there with their heads, and then it is still the same moment.
        if std::mem::replace(&mut self.waited, true) {
            ctx.tick();
        }
        if let Err(failure) = live.poll_upload(cx, &mut ctx.body) {
            return Poll::Ready(Err(failure.into()));
        }
        match down.poll(cx, &mut live.body, sender) {
            Poll::Ready(Ok(())) if !self.tunnel || live.upload.is_over() => return Poll::Ready(Ok(())),
            Poll::Ready(Err(CopyError::Read(error))) => return Poll::Ready(Err(upstream_cut(&error))),
            Poll::Ready(Err(CopyError::Write(error))) => {
                return Poll::Ready(Err(client_gone(&error.to_string()).into()));
            }
            _ => {}
        }
        follow(&mut self.parked, self.account, down.stuck || live.upload.stuck);
        // In a tunnel the end of one direction is not the end of the other.
        if !self.tunnel && ctx.body.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(client_gone("the client went away").into()));
        }
        let bytes = live.upload.bytes + down.bytes;
        self.idle.poll(ctx, cx, None, bytes).map(|failure| Err(failure.into()))
    }
}

/// Counts the stream as parked while bytes wait in it that nobody takes.
fn follow<'a>(parked: &mut Option<Parked<'a>>, account: &'a Account, stuck: bool) {
    if stuck != parked.is_some() {
        *parked = stuck.then(|| account.park());
    }
}

/// From here on the body is a tunnel's; what was read already belongs to it.
pub fn make_tunnel(body: &mut Body) {
    *body = match std::mem::replace(body, Body::Empty).into_live() {
        Body::H1(reader) => Body::h1(reader, Framing::Tunnel),
        other => other,
    };
}

fn client_gone(detail: &str) -> Failure {
    Failure::downstream(Stage::Forward, FailureKind::DownstreamClosed, detail.to_owned())
}

/// A request body that broke off.
pub fn downstream_failure(error: &BodyError) -> Failure {
    match error {
        BodyError::Refused(Refusal::UnexpectedEof) | BodyError::Io(_) | BodyError::H2(_) => {
            client_gone(&error.to_string())
        }
        BodyError::Refused(refusal) => {
            let kind = FailureKind::BadRequest(refusal.status());
            Failure::downstream(Stage::Forward, kind, refusal.to_string())
        }
    }
}

/// A response body that broke off.
fn upstream_cut(error: &BodyError) -> Cut {
    let kind = match error {
        BodyError::Refused(Refusal::UnexpectedEof) => FailureKind::UpstreamClosed,
        BodyError::Refused(_) => FailureKind::UpstreamProtocol,
        BodyError::Io(_) | BodyError::H2(_) => FailureKind::UpstreamReset,
    };
    let failure = Failure::upstream(Stage::Forward, kind, Retry::Never, error.to_string());
    Cut { failure, reason: reset_reason(error).unwrap_or(Reason::INTERNAL_ERROR) }
}

/// An HTTP/2 stream that ended before its response.
pub fn h2_failure(error: &h2::Error) -> Failure {
    // RFC 9113, sections 6.8 and 8.7: REFUSED_STREAM, and a GOAWAY below this stream (the only ones that the h2 crate
    // reports it to), say that the request was not processed.
    let refused = error.reason() == Some(Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote());
    let (kind, retry) = match refused {
        true => (FailureKind::RefusedStream, Retry::Safe),
        false if error.is_io() => (FailureKind::UpstreamClosed, Retry::Never),
        false if error.is_reset() && error.is_remote() => (FailureKind::UpstreamReset, Retry::Never),
        false => (FailureKind::UpstreamProtocol, Retry::Never),
    };
    Failure::upstream(Stage::Forward, kind, retry, error.to_string())
}
