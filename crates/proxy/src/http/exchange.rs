//! The exchange of one attempt, in the task of its request: the body goes up while the response is awaited and comes down;
//! the client's close and the deadlines are watched all the while.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};

use h2::Reason;
use outrigger_telemetry::logging::Throttle;

use super::attempt::Live;
use super::breakage::{Cut, client_gone, upstream_cut};
use super::chain;
use super::context::RequestCtx;
use super::copy::{CopyError, Flow};
use super::head::ResponseHead;
use super::respond::BeginError;
use super::send::Sender;
use super::timeout::Clock;
use super::watch::{self, Idle, poll_client};
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::memory::Parked;

/// Sends the request and waits for the head of its final response; interim ones are forwarded.
pub async fn until_head(
    ctx: &mut RequestCtx<'_>,
    live: &mut Live,
    mut per_try: Clock,
) -> Result<(), Failure> {
    let mut idle = Idle::new(ctx);
    let mut parked = None;
    let result = poll_fn(|cx| {
        trusted(ctx, live)?;
        if let Err(failure) = live.poll_upload(cx, &mut ctx.body) {
            return Poll::Ready(Err(failure));
        }
        follow(ctx, cx, &mut parked, live.upload.stuck);
        clocks(ctx, &mut per_try, Some(live));
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
            Poll::Pending => idle.poll(ctx, cx, per_try.deadline(), live.upload.bytes).map(Err),
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
    let drain = ctx.conn.takes_leave();
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
            live.recycle(&ctx.conn.worker.pools, ctx.now);
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
        trusted(ctx, live)?;
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

/// As [`Live::trusted`]; whoever is not is told of.
#[inline]
pub(super) fn trusted(ctx: &RequestCtx<'_>, live: &Live) -> Result<(), Failure> {
    live.trusted(&ctx.conn.worker.process.credentials).inspect_err(untrusted)
}

#[cold]
fn untrusted(failure: &Failure) {
    if let Some(suppressed) = CLOSED.admit() {
        tracing::info!(%failure, suppressed, "a request is ended: whoever serves it is trusted no longer");
    }
}

/// A tunnel is judged again whenever the configuration changes, as the requests that it stands for would be, and whom it has reached
/// whenever trust does; what is forbidden now ends.
async fn tunnel(
    ctx: &mut RequestCtx<'_>,
    live: &mut Live,
    sender: &mut Sender,
    down: &mut Flow,
) -> Result<(), Cut> {
    let process = &ctx.conn.worker.process;
    let (mut swapped, mut trust) = (process.swapped.subscribe(), process.credentials.subscribe());
    let mut turns = Turns::new(ctx, true);
    loop {
        // What was swapped in while the tunnel was opened counts, too.
        chain::tunnel::judge_again(ctx).map_err(forbidden)?;
        let mut news = pin!(swapped.changed());
        let mut trusted = pin!(trust.changed());
        let ended = poll_fn(|cx| {
            // The worker, which sends both, outlives its connections.
            if news.as_mut().poll(cx).is_ready() || trusted.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            turns.poll(ctx, cx, live, sender, down).map(Some)
        });
        if let Some(ended) = ended.await {
            return ended;
        }
    }
}

static CLOSED: Throttle = Throttle::new();

fn forbidden(failure: Failure) -> Cut {
    if let Some(suppressed) = CLOSED.admit() {
        tracing::info!(%failure, suppressed, "a tunnel is closed: the configuration has changed");
    }
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
    parked: Option<Parked<'c>>,
    waited: bool,
    tunnel: bool,
}

impl<'c> Turns<'c> {
    fn new(ctx: &RequestCtx<'_>, tunnel: bool) -> Self {
        // A tunnel looks at once: trust may have changed before it began to hear of that.
        Self { idle: Idle::new(ctx), parked: None, waited: tunnel, tunnel }
    }

    #[inline]
    fn poll(
        &mut self,
        ctx: &mut RequestCtx<'c>,
        cx: &mut Context<'_>,
        live: &mut Live,
        sender: &mut Sender,
        down: &mut Flow,
    ) -> Poll<Result<(), Cut>> {
        // Most bodies are there with their heads, and then it is still the same moment.
        if std::mem::replace(&mut self.waited, true) {
            ctx.tick();
            if let Err(failure) = trusted(ctx, live) {
                // As where a connection in place of the stream would be reset (RFC 8441, section 5).
                let reason = if self.tunnel { Reason::CANCEL } else { Reason::INTERNAL_ERROR };
                return Poll::Ready(Err(Cut { failure, reason }));
            }
        }
        if let Err(failure) = live.poll_upload(cx, &mut ctx.body) {
            return Poll::Ready(Err(failure.into()));
        }
        ctx.clock.follow(live.upload.is_over(), live.upload.stuck, live.upload.bytes);
        match down.poll(cx, &mut live.body, sender, live.reports.as_deref()) {
            Poll::Ready(Ok(())) if !self.tunnel || live.upload.is_over() => return Poll::Ready(Ok(())),
            Poll::Ready(Err(CopyError::Read(error))) => return Poll::Ready(Err(upstream_cut(&error))),
            Poll::Ready(Err(CopyError::Write(error))) => {
                return Poll::Ready(Err(client_gone(&error.to_string()).into()));
            }
            _ => {}
        }
        follow(ctx, cx, &mut self.parked, down.stuck || live.upload.stuck);
        // In a tunnel the end of one direction is not the end of the other.
        if !self.tunnel && ctx.body.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(client_gone("the client went away").into()));
        }
        let bytes = live.upload.bytes + down.bytes;
        self.idle.poll(ctx, cx, None, bytes).map(|failure| Err(failure.into()))
    }
}

/// The clocks of route and attempt follow the upload; of nobody yet, or any more, time passes.
pub(super) fn clocks(ctx: &mut RequestCtx<'_>, per_try: &mut Clock, live: Option<&Live>) {
    let Some(Live { upload, .. }) = live else { return ctx.clock.wait() };
    ctx.clock.follow(upload.is_over(), upload.stuck, upload.bytes);
    per_try.follow(upload.is_over(), upload.stuck, upload.bytes);
}

/// Counts the stream as parked while bytes wait in it that nobody takes.
#[inline]
pub(super) fn follow<'c>(
    ctx: &RequestCtx<'c>,
    cx: &Context<'_>,
    parked: &mut Option<Parked<'c>>,
    stuck: bool,
) {
    if stuck {
        match parked {
            Some(_) => ctx.conn.account.waits(),
            None => *parked = Some(watch::park(ctx, cx)),
        }
    } else if parked.is_some() {
        *parked = None;
    }
}
