//! Hedging: an attempt, and others beside it that go to other endpoints when it is slow. The first good response is taken; the rest are
//! given up, HTTP/2 streams by a reset and HTTP/1 connections by their end.
//!
//! ```text
//! first attempt ──due, body whole, another endpoint, budget, limits──▶ rival ──due…──▶ rival   (at most so many)
//!      └────────────────good: taken, the rest given up────────────────────┘
//!      └──bad, others run: forgotten──┘      └──bad, the last: the loop of `retry` decides──┘
//! ```
//!
//! The first attempt streams the request's body as any does. A rival has a copy, so there is none before the body has been read whole,
//! nor of one that is too long to be kept. `retry` says what is good, and which requests may be hedged.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use outrigger_model::route::HedgeDelay;
use outrigger_telemetry::trace::SpanRecord;
use smallvec::SmallVec;
use tokio::time::{Instant, Sleep, sleep_until};

use super::lease::{Leases, outcome_of};
use super::live::{Live, Slot};
use super::plan::{Failed, Plan, Tried};
use super::{
    Sent, arrived, decimal, expected_time, finish_span, first_byte, outcome_of_head, pick, pick_beside, send,
    tell_time, turned,
};
use crate::failure::Failure;
use crate::http::authority;
use crate::http::body::{Body, REPLAY_LIMIT};
use crate::http::breakage::client_gone;
use crate::http::context::RequestCtx;
use crate::http::duration;
use crate::http::exchange::{clocks, follow, trusted};
use crate::http::h1::Framing;
use crate::http::head::Trailers;
use crate::http::timeout::Clock;
use crate::http::trace;
use crate::http::watch::{Idle, poll_client};
use crate::runtime::breaker::Pass;
use crate::runtime::endpoint::{EndpointState, Outcome};
use crate::runtime::limits::{RequestPermit, RetryPermit};
use crate::upstream::pool::Leased;

mod given_up;
mod hedging;
mod question;

use given_up::{forget, lost};
pub use hedging::Hedging;
use question::Question;

type Boxed<T> = Pin<Box<dyn Future<Output = T>>>;

/// The first attempt.
enum First {
    /// Its connection is being made.
    Connecting(Boxed<Result<Leased, Failure>>),
    /// It is in the slot.
    Sent,
    /// It was bad.
    Over,
}

/// An attempt beside it.
struct Rival {
    endpoint: Arc<EndpointState>,
    pass: Option<Pass>,
    since: Instant,
    span: Option<Box<SpanRecord>>,
    attempt: Boxed<Result<Live, Failed>>,
    _permits: (RequestPermit, RetryPermit),
}

/// All attempts of a moment.
struct Race<'r, 'p, B> {
    plan: &'r Plan<'p>,
    hedging: &'r mut Hedging<'p>,
    tried: &'r mut Tried,
    is_bad: B,
    first: First,
    endpoint: Arc<EndpointState>,
    pass: Option<Pass>,
    started: Instant,
    /// When the time of the first attempt has passed; never where that only sends a rival.
    per_try: Clock,
    rivals: SmallVec<[Rival; 1]>,
    due: Option<Pin<Box<Sleep>>>,
    /// A rival is to be sent as soon as the body is there.
    wanted: bool,
}

/// How it ended.
enum End {
    /// The first attempt, by its response or by what was wrong.
    First(Result<(), Failed>),
    /// A rival, whose response is in the slot.
    Rival(Rival, Box<Live>),
    /// The last rival, by what was wrong with it.
    Lost(Rival, Failed),
    /// What ends all of them: the client or its time.
    All(Failure),
}

/// Runs an attempt and its rivals up to the head of the response that is taken, which is then in the slot. `is_bad`: others are
/// waited for.
pub async fn run<'p>(
    ctx: &mut RequestCtx<'_>,
    plan: &Plan<'p>,
    hedging: &mut Hedging<'p>,
    tried: &mut Tried,
    fresh: bool,
    slot: &mut Slot,
    is_bad: impl Fn(&Live) -> bool,
) -> Result<(), Failed> {
    *slot = None;
    let pass = if fresh { turned::admit_again(ctx, plan)? } else { plan.cluster.admit()? };
    let endpoint = match pick(ctx, plan, tried) {
        Ok(endpoint) => endpoint,
        Err(failure) => return Err(turned::unsent(ctx, pass, failure).into()),
    };
    tried.push(endpoint.address);
    ctx.record.endpoint = Some(endpoint.clone());
    hedging.begin(fresh);
    let started = ctx.now;
    let due = hedging.wait(plan, started).map(|wait| Box::pin(sleep_until(started + wait)));
    let limit = first_byte(plan, !hedging.policy.on_per_try_timeout);
    let per_try = Clock::new(limit, ctx.body.is_end(), started);
    let connecting = connecting(ctx, plan, &endpoint, fresh);
    let mut race = Race {
        plan,
        hedging,
        tried,
        is_bad,
        first: First::Connecting(connecting),
        endpoint,
        pass,
        started,
        per_try,
        rivals: SmallVec::new(),
        due,
        wanted: false,
    };
    let end = race.decided(ctx, slot).await;
    race.settle(ctx, slot, end)
}

fn connecting(
    ctx: &RequestCtx<'_>,
    plan: &Plan<'_>,
    endpoint: &Arc<EndpointState>,
    fresh: bool,
) -> Boxed<Result<Leased, Failure>> {
    let (pools, cluster) = (ctx.conn.worker.pools.clone(), plan.cluster.clone());
    let (endpoint, now) = (endpoint.clone(), ctx.now);
    let leases = Leases { pools: &pools, cluster: &cluster, endpoint: &endpoint, fresh, now };
    let want = leases.want(&ctx.head);
    Box::pin(async move {
        let leases = Leases { pools: &pools, cluster: &cluster, endpoint: &endpoint, fresh, now };
        leases.any(want, false).await
    })
}

impl<B: Fn(&Live) -> bool> Race<'_, '_, B> {
    async fn decided(&mut self, ctx: &mut RequestCtx<'_>, slot: &mut Slot) -> End {
        let mut idle = Idle::new(ctx);
        let mut parked = None;
        let end = poll_fn(|cx| {
            let ends = ctx.ends;
            if let Poll::Ready(end) = self.poll_first(ctx, cx, slot) {
                return Poll::Ready(end);
            }
            if ctx.ends != ends {
                // The first attempt has been sent just now, or is over.
                idle = Idle::new(ctx);
            }
            clocks(ctx, &mut self.per_try, slot.as_ref());
            follow(ctx, cx, &mut parked, slot.as_ref().is_some_and(|live| live.upload.stuck));
            self.poll_due(ctx, cx);
            if let Poll::Ready(end) = self.poll_rivals(ctx, cx) {
                return Poll::Ready(end);
            }
            if let Some(responder) = &mut ctx.responder
                && let Poll::Ready(Err(_)) = responder.poll_flush(cx)
            {
                return Poll::Ready(End::All(client_gone("the client went away")));
            }
            if let Poll::Ready(failure) = poll_client(ctx, cx) {
                return Poll::Ready(End::All(failure));
            }
            if slot.is_none() {
                ctx.body.gather(cx);
            }
            let bytes = slot.as_ref().map_or(0, |live| live.upload.bytes);
            match idle.poll(ctx, cx, self.per_try.deadline(), bytes) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(failure) if failure.kind.is_time_of_attempt() => {
                    // Its rivals have clocks of their own; woken at once to look at what is left.
                    cx.waker().wake_by_ref();
                    let end = self.first_failed(ctx, slot, failure);
                    idle = Idle::new(ctx);
                    end
                }
                Poll::Ready(failure) => Poll::Ready(End::All(failure)),
            }
        })
        .await;
        ctx.tick();
        end
    }

    fn poll_first(&mut self, ctx: &mut RequestCtx<'_>, cx: &mut Context<'_>, slot: &mut Slot) -> Poll<End> {
        if let First::Connecting(connecting) = &mut self.first {
            let leased = ready!(connecting.as_mut().poll(cx));
            ctx.tick();
            let sent = leased
                .and_then(|leased| send(ctx, self.plan, self.hedging.number, leased, &self.endpoint, slot));
            if let Err(failure) = sent {
                return self.first_failed(ctx, slot, failure);
            }
            self.first = First::Sent;
        }
        let (First::Sent, Some(live)) = (&self.first, slot.as_mut()) else { return Poll::Pending };
        if let Err(failure) = trusted(ctx, live) {
            return self.first_failed(ctx, slot, failure);
        }
        if let Err(failure) = live.poll_upload(cx, &mut ctx.body) {
            return Poll::Ready(End::All(failure));
        }
        ctx.record.received = live.upload.bytes;
        loop {
            match ready!(live.poll_head(cx)) {
                Ok(()) if live.head.is_interim() => {
                    if let Some(responder) = &mut ctx.responder {
                        responder.interim(&mut live.head);
                    }
                }
                Ok(()) if !self.rivals.is_empty() && (self.is_bad)(live) => break,
                Ok(()) => return Poll::Ready(End::First(Ok(()))),
                Err(failure) => return self.first_failed(ctx, slot, failure),
            }
        }
        (self.first, self.per_try) = (First::Over, Clock::default());
        duration::between(ctx);
        self.report(ctx, slot, &Ok(()));
        if let Some(live) = slot.take() {
            forget(ctx, live);
        }
        Poll::Pending
    }

    /// The first attempt was bad: where others run, they are waited for.
    fn first_failed(&mut self, ctx: &mut RequestCtx<'_>, slot: &mut Slot, failure: Failure) -> Poll<End> {
        (self.first, self.per_try) = (First::Over, Clock::default());
        duration::between(ctx);
        let result = match slot {
            // Its span, and whether its connection was dead, come of it.
            Some(live) => arrived(ctx, live, Err(failure)),
            None => Err(failure.into()),
        };
        if self.rivals.is_empty() {
            return Poll::Ready(End::First(result));
        }
        self.report(ctx, slot, &result);
        *slot = None;
        Poll::Pending
    }

    /// Sends a rival when it is time, if it can be.
    fn poll_due(&mut self, ctx: &mut RequestCtx<'_>, cx: &mut Context<'_>) {
        while self.hedging.left > 0
            && let Some(due) = &mut self.due
            && due.as_mut().poll(cx).is_ready()
        {
            self.wanted = true;
            let now = Instant::now();
            match self.hedging.wait(self.plan, now) {
                Some(wait) => due.as_mut().reset(now + wait),
                None => self.due = None,
            }
        }
        if self.wanted
            && self.hedging.left > 0
            && let Some((body, trailers)) = self.whole(ctx, cx)
        {
            self.wanted = false;
            match self.challenge(ctx, body, trailers) {
                Some(rival) => self.rivals.push(rival),
                // No room, or nobody else to ask: nor will there be in the time that this takes.
                None => self.hedging.left = 0,
            }
        }
    }

    /// The whole body, if it is there.
    fn whole(&self, ctx: &mut RequestCtx<'_>, cx: &mut Context<'_>) -> Option<(Bytes, Option<Trailers>)> {
        if matches!(self.first, First::Connecting(_)) {
            // Nobody reads it meanwhile.
            let _ = ctx.body.poll_hold(cx, REPLAY_LIMIT, 0);
        }
        ctx.whole_body()
    }

    /// Another attempt, at an endpoint that has had none.
    #[cold]
    fn challenge(
        &mut self,
        ctx: &mut RequestCtx<'_>,
        body: Bytes,
        trailers: Option<Trailers>,
    ) -> Option<Rival> {
        let plan = self.plan;
        let endpoint = pick_beside(ctx, plan, self.tried, true).ok();
        let endpoint = endpoint.filter(|one| !self.tried.contains(&one.address))?;
        let cells = ctx.conn.worker.metrics.cluster(&plan.cluster.name);
        let Ok(retry) = plan.cluster.limits.try_retry() else {
            cells.retry_overflow.inc();
            return None;
        };
        let _permits = (plan.cluster.limits.try_request().ok()?, retry);
        let mut head = ctx.head.clone();
        if plan.names_endpoint() {
            authority::of_endpoint(&mut head, &plan.forward.rewrite, &endpoint).ok()?;
        }
        let pass = plan.cluster.admit().ok()?;
        self.tried.push(endpoint.address);
        self.hedging.left -= 1;
        self.hedging.sent += 1;
        cells.hedges.inc();
        head.remove("expect");
        let mut span = None;
        if let Some(recording) = ctx.recording.filter(|_| trace::is_client_side(ctx.conn.info.direction)) {
            let (name, cluster) = (&plan.route.config.name, &plan.cluster.name);
            let local = ctx.conn.worker.metrics.local();
            let mut begun = recording.client(&mut head, name, self.hedging.sent, &endpoint, cluster, local);
            begun.set("outrigger.hedge", true);
            span = Some(begun);
        }
        let _ = head.set("x-envoy-attempt-count", decimal(self.hedging.sent, &mut [0; 10]));
        if let Some(time) = expected_time(ctx, plan) {
            tell_time(&mut head, time);
        }
        let framing = match (ctx.framing, &trailers) {
            (Framing::None, None) => Framing::None,
            (Framing::Length(_), None) => Framing::Length(body.len() as u64),
            _ => Framing::Chunked,
        };
        let question =
            Question { head, framing, body: Body::saved(body, trailers), introduced: ctx.introduced };
        let (pools, cluster, one) = (ctx.conn.worker.pools.clone(), plan.cluster.clone(), endpoint.clone());
        let is_grpc = ctx.record.is_grpc;
        let limit = first_byte(plan, !self.hedging.policy.on_per_try_timeout);
        let attempt =
            Box::pin(async move { question.ask_within(limit, &pools, &cluster, &one, is_grpc).await });
        Some(Rival { endpoint, pass, since: Instant::now(), span, attempt, _permits })
    }

    fn poll_rivals(&mut self, ctx: &mut RequestCtx<'_>, cx: &mut Context<'_>) -> Poll<End> {
        let mut at = 0;
        while at < self.rivals.len() {
            let Poll::Ready(came) = self.rivals[at].attempt.as_mut().poll(cx) else {
                at += 1;
                continue;
            };
            let mut rival = self.rivals.remove(at);
            let others = !self.rivals.is_empty() || !matches!(self.first, First::Over);
            match came {
                Ok(live) if !(others && (self.is_bad)(&live)) => {
                    return Poll::Ready(End::Rival(rival, Box::new(live)));
                }
                Err(failed) if !others => return Poll::Ready(End::Lost(rival, failed)),
                Ok(mut live) => {
                    let outcome = outcome_of_head(self.plan, &live, ctx.record.is_grpc);
                    rival.tell(self.plan, outcome, Some(&mut live));
                    live.span = rival.span.take();
                    forget(ctx, live);
                }
                Err(failed) => {
                    rival.tell(self.plan, outcome_of(&failed.failure), None);
                    finish_span(ctx, rival.span.take(), None, Some(&failed.failure));
                }
            }
        }
        Poll::Pending
    }

    /// Gives up who has not won, and tells everybody what came of it.
    fn settle(mut self, ctx: &mut RequestCtx<'_>, slot: &mut Slot, end: End) -> Result<(), Failed> {
        let taken = ctx.now.saturating_duration_since(self.started);
        let measures = matches!(self.hedging.policy.delay, Some(HedgeDelay::Percentile { .. }));
        let good = match &end {
            End::First(Ok(())) => slot.as_ref().is_some_and(|live| !(self.is_bad)(live)),
            End::Rival(..) => !matches!(self.first, First::Over),
            _ => false,
        };
        // Of one that lost it is known that it takes longer.
        if measures && good {
            self.plan.cluster.latencies().note(taken, ctx.now);
        }
        // A request that is too slow speaks against one, as without hedging: whoever had the longest time.
        let mut longest = matches!(self.first, First::Over);
        for mut rival in std::mem::take(&mut self.rivals) {
            let outcome = match &end {
                End::All(failure) if std::mem::take(&mut longest) => outcome_of(failure),
                _ => Outcome::LocalFailure,
            };
            rival.tell(self.plan, outcome, None);
            lost(ctx, rival.span.take());
        }
        match end {
            End::First(Ok(())) => {
                let result =
                    Live::present(slot).map_err(Failed::from).and_then(|live| arrived(ctx, live, Ok(())));
                self.close(ctx, slot, result)
            }
            End::First(result) => self.close(ctx, slot, result),
            End::All(failure) => {
                let result = match slot {
                    Some(live) => arrived(ctx, live, Err(failure)),
                    None => Err(failure.into()),
                };
                if matches!(self.first, First::Over) { result } else { self.close(ctx, slot, result) }
            }
            End::Lost(mut rival, failed) => {
                rival.tell(self.plan, outcome_of(&failed.failure), None);
                finish_span(ctx, rival.span.take(), None, Some(&failed.failure));
                Err(failed)
            }
            End::Rival(mut rival, live) => {
                if let Some(mut first) = slot.take() {
                    lost(ctx, first.span.take());
                }
                if !matches!(self.first, First::Over) {
                    let mut asked =
                        Sent { endpoint: &self.endpoint, since: self.started, pass: self.pass.take() };
                    let turned = asked.tell(self.plan, Outcome::LocalFailure, None);
                    turned::told(ctx, turned);
                }
                if let Some(longest) = self.plan.cluster.config.max_stream_duration {
                    duration::attempt(ctx, longest, rival.since);
                }
                let live = slot.insert(*live);
                // The head may come before the body has left: the rest does.
                ctx.body.read_on(live.upload.bytes, live.upload.is_done() || live.sender.is_finished());
                live.span = rival.span.take();
                live.cells.hedges_won.inc();
                ctx.record.endpoint = Some(rival.endpoint.clone());
                ctx.record.upstream_local = live.local();
                let result = arrived(ctx, live, Ok(()));
                let mut sent =
                    Sent { endpoint: &rival.endpoint, since: rival.since, pass: rival.pass.take() };
                let turned = sent.report(self.plan, &result, slot, ctx.record.is_grpc);
                turned::told(ctx, turned);
                if result.is_err() {
                    *slot = None;
                }
                result
            }
        }
    }

    /// The first attempt is the one that counts.
    fn close(
        mut self,
        ctx: &mut RequestCtx<'_>,
        slot: &mut Slot,
        result: Result<(), Failed>,
    ) -> Result<(), Failed> {
        if result.is_err() {
            *slot = None;
        }
        self.report(ctx, slot, &result);
        result
    }

    /// Tells what came of the first attempt.
    fn report(&mut self, ctx: &mut RequestCtx<'_>, slot: &mut Slot, result: &Result<(), Failed>) {
        let mut sent = Sent { endpoint: &self.endpoint, since: self.started, pass: self.pass.take() };
        let turned = sent.report(self.plan, result, slot, ctx.record.is_grpc);
        turned::told(ctx, turned);
        if let Some(pass) = sent.pass {
            turned::keep(ctx, pass);
        }
    }
}
