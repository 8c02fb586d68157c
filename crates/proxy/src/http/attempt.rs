//! One attempt of a request: pick an endpoint, lease a connection, send the head. What happens until the response head is
//! `exchange`; whether there is another attempt is `retry`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_telemetry::trace::SpanRecord;
use tokio::time::Instant;

use super::authority;
use super::context::RequestCtx;
use super::duration;
use super::exchange;
use super::head::RequestHead;
use super::measure;
use super::respond::{says_not_listening, says_not_reached, says_shed};
use super::session;
use super::timeout::Clock;
use super::trace;
use super::upgrade::Upgrade;
use super::watch;
use crate::failure::{Failure, FailureKind};
use crate::runtime::breaker::{Pass, Turned};
use crate::runtime::cluster::{Left, PickContext};
use crate::runtime::endpoint::{EndpointState, Outcome};
use crate::upstream::pool::Leased;

mod awaited;
pub mod lease;
pub mod live;
pub mod plan;
pub mod race;
pub mod turned;

use lease::{Leases, outcome_of};
pub use live::{Live, Slot};
use live::{Outgoing, upgrade_over_h2};
pub use plan::{Failed, Plan, Tried};

/// Tells the upstream in milliseconds how long its answer is waited for.
const EXPECTED_TIME: &str = "x-envoy-expected-rq-timeout-ms";

/// Runs attempt `number` (from 1) up to its response head, which is then in the slot; after a failure the slot is empty.
pub async fn run(
    ctx: &mut RequestCtx<'_>,
    plan: &Plan<'_>,
    number: u32,
    tried: &mut Tried,
    fresh: bool,
    slot: &mut Slot,
) -> Result<(), Failed> {
    *slot = None;
    let pass = if fresh { turned::admit_again(ctx, plan)? } else { plan.cluster.admit()? };
    let endpoint = match pick(ctx, plan, tried) {
        Ok(endpoint) => endpoint,
        Err(failure) => return Err(turned::unsent(ctx, pass, failure).into()),
    };
    tried.push(endpoint.address);
    ctx.record.endpoint = Some(endpoint.clone());
    let since = ctx.now;
    // Its clock begins with the end of the request, as the route's.
    let per_try = Clock::new(first_byte(plan, true), ctx.body.is_end(), ctx.now);
    let extended = upgrade_over_h2(plan.upgrade, ctx.framing) == Upgrade::Protocol;
    let pools = &ctx.conn.worker.pools;
    let leases = Leases { pools, cluster: plan.cluster, endpoint: &endpoint, fresh, now: ctx.now };
    let leased = match leases.now(&ctx.head, extended) {
        Some(leased) => Ok(leased),
        None => Box::pin(lease(ctx, &leases, extended, per_try.deadline())).await,
    };
    let sent = leased.and_then(|leased| send(ctx, plan, number, leased, &endpoint, slot));
    let result = match sent.and_then(|()| Live::present(slot)) {
        Ok(live) => {
            let result = exchange::until_head(ctx, live, per_try).await;
            arrived(ctx, live, result)
        }
        Err(failure) => Err(failure.into()),
    };
    if result.is_err() {
        *slot = None;
    }
    let mut sent = Sent { endpoint: &endpoint, since, pass };
    let turned = sent.report(plan, &result, slot, ctx.record.is_grpc);
    turned::told(ctx, turned);
    if let Some(pass) = sent.pass {
        turned::keep(ctx, pass);
    }
    result
}

/// How long an attempt may take until its response begins: its time, and that in which nothing comes. Its time may do something else
/// than end it.
fn first_byte(plan: &Plan<'_>, ends: bool) -> Option<Duration> {
    let retry = plan.retry?;
    match (retry.per_try_timeout.filter(|_| ends), retry.per_try_idle) {
        (limit, None) => limit,
        (None, idle) => idle,
        (Some(limit), Some(idle)) => Some(limit.min(idle)),
    }
}

/// How long an attempt has: its own time, but never more than is left of the route's; at least 1 ms, as 0 would mean for ever. As
/// Envoy: with hedges by the time of an attempt, which does not end it, all that is left.
fn expected_time(ctx: &RequestCtx<'_>, plan: &Plan<'_>) -> Option<Duration> {
    let left = ctx.clock.left(ctx.now);
    let goes_on = plan.forward.hedge.as_ref().is_some_and(|hedge| hedge.on_per_try_timeout);
    let own = plan.retry.and_then(|retry| retry.per_try_timeout).filter(|_| !goes_on);
    match (own, left) {
        (Some(own), Some(left)) => Some(own.min(left)),
        (own, left) => own.or(left),
    }
}

/// From the middle of a millisecond on the next: what has passed since the request came is a part of one.
pub fn tell_time(head: &mut RequestHead, time: Duration) {
    let millis = u32::try_from((time + Duration::from_micros(500)).as_millis()).unwrap_or(u32::MAX).max(1);
    let _ = head.set(EXPECTED_TIME, decimal(millis, &mut [0; 10]));
}

#[inline]
fn pick(ctx: &RequestCtx<'_>, plan: &Plan<'_>, tried: &Tried) -> Result<Arc<EndpointState>, Failure> {
    if let Some(extras) = &ctx.extras
        && let Some(found) = session::endpoint(extras, plan, tried)
    {
        return found;
    }
    let avoid = plan.retry.is_none_or(|retry| retry.avoid_previous_hosts);
    pick_beside(ctx, plan, tried, avoid)
}

/// An endpoint after these attempts; `avoid`: one of theirs only where there is no other.
#[inline]
fn pick_beside(
    ctx: &RequestCtx<'_>,
    plan: &Plan<'_>,
    attempts: &[SocketAddr],
    avoid: bool,
) -> Result<Arc<EndpointState>, Failure> {
    let tried = if avoid { attempts } else { &[] };
    let context = PickContext { tried, original: ctx.conn.info.original(), hash: plan.hash };
    if !attempts.is_empty()
        && let Some(every) = plan.retry.map(|retry| retry.leave_priorities as usize)
        && (1..=attempts.len()).contains(&every)
    {
        return plan.cluster.pick_leaving(&context, &Left { attempts, every });
    }
    plan.cluster.pick(&context)
}

/// A connection, made if there is none.
async fn lease(
    ctx: &mut RequestCtx<'_>,
    leases: &Leases<'_>,
    extended: bool,
    per_try: Option<Instant>,
) -> Result<Leased, Failure> {
    // The head is read while the client is watched.
    let want = leases.want(&ctx.head);
    let leased = watch::guarded(ctx, per_try, leases.any(want, extended)).await;
    ctx.tick();
    leased
}

/// Sends the head, or puts it where the next flush does; the attempt is then in the slot.
fn send(
    ctx: &mut RequestCtx<'_>,
    plan: &Plan<'_>,
    number: u32,
    leased: Leased,
    endpoint: &Arc<EndpointState>,
    slot: &mut Slot,
) -> Result<(), Failure> {
    let mut span = None;
    if let Some(recording) = ctx.recording.filter(|_| trace::is_client_side(ctx.conn.info.direction)) {
        let (name, cluster) = (&plan.route.config.name, &plan.cluster.name);
        let local = ctx.conn.worker.metrics.local();
        span = Some(recording.client(&mut ctx.head, name, number, endpoint, cluster, local));
        ctx.attempted = true;
    }
    if plan.names_endpoint() {
        authority::of_endpoint(&mut ctx.head, &plan.forward.rewrite, endpoint).map_err(authority::bad)?;
    }
    if plan.retry.is_some() || plan.forward.hedge.is_some() {
        let mut digits = [0_u8; 10];
        let _ = ctx.head.set("x-envoy-attempt-count", decimal(number, &mut digits));
    }
    if let Some(time) = expected_time(ctx, plan) {
        tell_time(&mut ctx.head, time);
    }
    if matches!(leased, Leased::H2(_)) {
        // An upgrade that HTTP/2 cannot say is ignored, as RFC 9110, section 7.8 permits: no answer switches.
        ctx.upgrade = upgrade_over_h2(plan.upgrade, ctx.framing);
    }
    let mut out = Outgoing {
        head: &mut ctx.head,
        framing: ctx.framing,
        upgrade: plan.upgrade,
        empty: ctx.body.is_end(),
        introduced: &mut ctx.introduced,
        metrics: &ctx.conn.worker.metrics,
        now: ctx.now,
    };
    let live = match Live::send(&mut out, plan.cluster, endpoint, leased) {
        Ok(live) => slot.insert(live),
        Err(failure) => {
            turned::end_span(ctx, span, None, Some(&failure));
            return Err(failure);
        }
    };
    ctx.record.upstream_local = live.local();
    live.span = span;
    live.upload.count_messages(ctx.record.is_grpc);
    live.cells.attempt();
    if let Some(longest) = plan.cluster.config.max_stream_duration {
        duration::attempt(ctx, longest, ctx.now);
    }
    Ok(())
}

/// The response head has come, or will not.
#[inline]
fn arrived(ctx: &mut RequestCtx<'_>, live: &mut Live, result: Result<(), Failure>) -> Result<(), Failed> {
    let Err(failure) = result else {
        ctx.tick();
        ctx.record.upstream_time = Some(live.note_head(ctx.now));
        live.begin_response(ctx.head.method() == "HEAD")?;
        turned::end_span(ctx, live.span.take(), Some(live.head.status()), None);
        return Ok(());
    };
    if failure.kind == FailureKind::UpstreamTimeout || failure.kind.is_time_of_attempt() {
        live.cells.timeouts.inc();
    }
    let silent = matches!(failure.kind, FailureKind::UpstreamClosed | FailureKind::UpstreamReset);
    let stale = silent && live.is_stale();
    turned::end_span(ctx, live.span.take(), None, Some(&failure));
    Err(Failed { failure, stale })
}

/// Whom an attempt is at, since when, and the leave that it was sent with.
struct Sent<'s> {
    endpoint: &'s EndpointState,
    since: Instant,
    pass: Option<Pass>,
}

impl Sent<'_> {
    /// Tells the endpoint what came of it. Of a dead pooled connection nothing is told, and the leave stays here for another one.
    fn report(
        &mut self,
        plan: &Plan<'_>,
        result: &Result<(), Failed>,
        slot: &mut Slot,
        is_grpc: bool,
    ) -> Turned {
        let outcome = match result {
            Ok(()) => slot.as_ref().map_or(Outcome::Status(0), |live| outcome_of_head(plan, live, is_grpc)),
            Err(failed) if failed.stale => return self.pass.as_mut().map(Pass::came).unwrap_or_default(),
            Err(failed) => outcome_of(&failed.failure),
        };
        self.tell(plan, outcome, slot.as_mut())
    }

    /// The same of an attempt that nobody waits for any more.
    #[inline]
    fn tell(&mut self, plan: &Plan<'_>, outcome: Outcome, live: Option<&mut Live>) -> Turned {
        let turned = plan.cluster.report(self.endpoint, outcome, self.pass.take());
        if let Some(measures) = &plan.cluster.measures {
            measure::take(measures, self.endpoint, outcome, live, self.since);
        }
        turned
    }
}

/// What a response tells of an endpoint, or its own sidecar by it.
fn outcome_of_head(plan: &Plan<'_>, live: &Live, is_grpc: bool) -> Outcome {
    let head = &live.head;
    if !(live.may_be_failure() && says_not_reached(head) && plan.cluster.uses_mesh(&live.endpoint)) {
        return Outcome::Status(live.status(is_grpc));
    }
    match () {
        // It is well, and has enough to do.
        () if says_shed(head) => Outcome::LocalFailure,
        () if says_not_listening(head) => Outcome::Refused,
        () => Outcome::Unconnected,
    }
}

fn finish_span(
    ctx: &RequestCtx<'_>,
    span: Option<Box<SpanRecord>>,
    status: Option<u16>,
    failure: Option<&Failure>,
) {
    if let (Some(span), Some(spans)) = (span, &ctx.conn.worker.process.spans) {
        spans.try_send(trace::finish_client(*span, status, failure));
    }
}

/// A number in digits, without an allocation.
pub fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 || at == 0 {
            return &digits[at..];
        }
    }
}
