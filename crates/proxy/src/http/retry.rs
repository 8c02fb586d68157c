//! The loop over attempts: who may be tried again, when, and how often.
//!
//! ```text
//! attempt ──response or failure──> a condition of the policy holds? ──no──> taken
//!    ^                                   │ yes
//!    │                        attempts left, body replayable, budget, time? ──no──> taken, flagged URX or as it is
//!    └──back-off, full jitter────────────┘ yes
//! ```
//!
//! Apart from the policy, a request is sent once more on a fresh connection when its pooled one turned out to be closed,
//! if nothing was written, or if the method is idempotent (RFC 9110, section 9.2.2): once a byte was written to a reused
//! connection, silence is no proof.

use std::time::Duration;

use outrigger_model::route::{HedgePolicy, RetryOn, RetryPolicy};

use super::attempt::race::{self, Hedging};
use super::attempt::{self, Failed, Live, Plan, Slot, Tried};
use super::context::RequestCtx;
use super::duration;
use super::respond::{RATE_LIMITED, says_not_reached};
use super::upgrade::Upgrade;
use super::watch;
use crate::failure::{Failure, FailureKind, Retry, Side, Stage};

mod answer;
mod wait;

use answer::Answer;

/// Sends the request until there is a response to forward, in the slot, or no more attempt to make.
pub async fn run(ctx: &mut RequestCtx<'_>, plan: &Plan<'_>, slot: &mut Slot) -> Result<(), Failure> {
    // Held until the response is delivered: `ctx` keeps it.
    let permit = plan.cluster.limits.try_request().inspect_err(|_| {
        ctx.conn.worker.metrics.cluster(&plan.cluster.name).pending_overflow.inc();
    })?;
    ctx.permit = Some(permit);
    let policy = plan.retry.filter(|policy| policy.attempts > 0);
    if policy.is_some_and(needs_replay) && plan.upgrade == Upgrade::None && !ctx.is_bodyless() {
        ctx.make_replayable();
    }
    let mut tried = Tried::new();
    let mut number = 1;
    let mut fresh = false;
    let mut hedging = plan.forward.hedge.as_deref().filter(|hedge| may_hedge(ctx, hedge)).map(Hedging::new);
    if hedging.is_some() && !ctx.is_bodyless() {
        ctx.make_replayable();
    }
    // One retry in flight at a time; replaced by the next.
    let mut _retry_permit = None;
    loop {
        ctx.record.attempts = number;
        let mut result = match &mut hedging {
            None => attempt::run(ctx, plan, number, &mut tried, fresh, slot).await,
            Some(hedging) => {
                let is_grpc = ctx.record.is_grpc;
                let is_bad = |live: &Live| is_bad(policy, plan, live, is_grpc);
                let result = Box::pin(race::run(ctx, plan, hedging, &mut tried, fresh, slot, is_bad)).await;
                ctx.record.attempts = hedging.sent();
                result
            }
        };
        if !fresh && revives(ctx, &result) {
            fresh = true;
            duration::between(ctx);
            untry(ctx, &mut tried);
            ctx.body.rewind();
            continue;
        }
        forgo(ctx);
        let Some(policy) = policy.filter(|policy| is_retriable(ctx, policy, plan, &result, slot)) else {
            return taken(ctx, plan, number, result, slot);
        };
        if number > policy.attempts {
            ctx.record.flags.add("URX");
            return taken(ctx, plan, number, result, slot);
        }
        let untouched = untouched(&result, slot);
        if !ctx.can_replay(untouched) {
            unreplayable(ctx, plan, &mut result, slot);
            return taken(ctx, plan, number, result, slot);
        }
        let Some(wait) = wait::before(ctx, policy, number, slot) else {
            return taken(ctx, plan, number, result, slot);
        };
        let cells = ctx.conn.worker.metrics.cluster(&plan.cluster.name);
        // The last one is over: it does not count beside the next.
        _retry_permit = None;
        match plan.cluster.limits.try_retry() {
            Ok(permit) => _retry_permit = Some(permit),
            Err(_) => {
                cells.retry_overflow.inc();
                ctx.record.flags.add("UO");
                return taken(ctx, plan, number, result, slot);
            }
        }
        cells.retries.inc();
        if wait.is_asked {
            cells.retry_rate_limited.inc();
        }
        if let Some(mut live) = slot.take() {
            live.discard(&ctx.conn.worker.pools, ctx.now);
        }
        duration::between(ctx);
        Box::pin(back_off(ctx, wait.time)).await?;
        ctx.body.rewind();
        number += 1;
        fresh = false;
    }
}

/// A retry is wanted, and what was sent of the body is no longer there: it is larger than what is kept, or memory was short.
#[cold]
fn unreplayable(ctx: &mut RequestCtx<'_>, plan: &Plan<'_>, result: &mut Result<(), Failed>, slot: &mut Slot) {
    tracing::debug!("a request is no longer replayable: its body is not kept");
    ctx.conn.worker.metrics.cluster(&plan.cluster.name).retry_unreplayable.inc();
    if let Err(failed) = result {
        failed.failure.unreplayable = true;
    }
    let of_attempt = slot.as_mut().and_then(|live| live.span.as_mut());
    for span in of_attempt.into_iter().chain(ctx.record.span.as_mut()) {
        span.set("outrigger.replay", "lost");
    }
}

/// The last word of the loop.
fn taken(
    ctx: &mut RequestCtx<'_>,
    plan: &Plan<'_>,
    number: u32,
    result: Result<(), Failed>,
    slot: &Slot,
) -> Result<(), Failure> {
    ctx.body.stop_recording();
    if ctx.reserved() > 0 {
        ctx.give_back();
    }
    if number > 1 && slot.as_ref().is_some_and(|live| live.head.status() < 500) {
        ctx.conn.worker.metrics.cluster(&plan.cluster.name).retry_success.inc();
    }
    result.map_err(|failed| Failure { retried: number > 1, ..failed.failure })
}

/// Whether a request may be sent to several at a time: its method may be repeated, or the rule says so. Not one that belongs to an
/// endpoint: another's answer would move its session there.
#[cold]
fn may_hedge(ctx: &RequestCtx<'_>, hedge: &HedgePolicy) -> bool {
    let belongs = ctx.extras.as_ref().is_some_and(|extras| extras.session().is_some());
    ctx.upgrade == Upgrade::None && !belongs && (hedge.all_methods || is_idempotent(ctx.head.method()))
}

/// Whether a response is none to take while others may come.
fn is_bad(policy: Option<&RetryPolicy>, plan: &Plan<'_>, live: &Live, is_grpc: bool) -> bool {
    live.status(is_grpc) >= 500 || policy.is_some_and(|policy| answer_is_retriable(policy, plan, live))
}

/// Whether any condition can hold after bytes of the body were sent.
fn needs_replay(policy: &RetryPolicy) -> bool {
    let before_body = |on: &RetryOn| matches!(on, RetryOn::ConnectFailure | RetryOn::ResetBeforeRequest);
    !policy.statuses.is_empty() || !policy.on.iter().all(before_body)
}

/// Whether the upstream has had nothing of the body.
fn untouched(result: &Result<(), Failed>, slot: &Slot) -> bool {
    match result {
        Ok(()) => slot.as_ref().is_none_or(|live| live.upload.bytes == 0 && !live.upload.is_over()),
        Err(failed) => failed.failure.stage != Stage::Forward,
    }
}

/// A probe that met a dead pooled connection and is not sent on another leaves its place to others.
#[inline]
fn forgo(ctx: &mut RequestCtx<'_>) {
    if let Some(extras) = &mut ctx.extras
        && extras.pass.is_some()
    {
        extras.pass = None;
    }
}

/// The last attempt had nobody at its end. Rivals may have been asked since.
fn untry(ctx: &RequestCtx<'_>, tried: &mut Tried) {
    let last = ctx.record.endpoint.as_ref().map(|endpoint| endpoint.address);
    if let Some(at) = tried.iter().rposition(|address| Some(*address) == last) {
        tried.remove(at);
    }
}

/// A dead pooled connection: sent again at once, on a fresh one.
fn revives(ctx: &RequestCtx<'_>, result: &Result<(), Failed>) -> bool {
    let Err(Failed { failure, stale: true }) = result else { return false };
    let safe = failure.retry == Retry::Safe || is_idempotent(ctx.head.method());
    safe && ctx.can_replay(false)
}

/// RFC 9110, section 9.2.2.
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// Whether a condition of the policy holds.
fn is_retriable(
    ctx: &RequestCtx<'_>,
    policy: &RetryPolicy,
    plan: &Plan<'_>,
    result: &Result<(), Failed>,
    slot: &Slot,
) -> bool {
    let holds = match (result, slot) {
        (Err(failed), _) => policy.on.iter().any(|on| holds_for_failure(*on, &failed.failure)),
        (Ok(()), None) => false,
        (Ok(()), Some(live)) => answer_is_retriable(policy, plan, live),
    };
    // Of those that may be at all.
    holds && plan.route.retry_headers().is_none_or(|headers| headers.lets(&ctx.head))
}

fn answer_is_retriable(policy: &RetryPolicy, plan: &Plan<'_>, live: &Live) -> bool {
    let head = &live.head;
    let status = head.status();
    // Only a peer sidecar's word counts: an application could say anything.
    let peer = plan.cluster.uses_mesh(&live.endpoint);
    let not_reached = peer && live.may_be_failure() && says_not_reached(head);
    let grpc = live.grpc_status;
    let holds = policy.statuses.contains(&status)
        || policy.on.iter().any(|on| match on {
            RetryOn::RetriableHeaders => {
                plan.route.retry_headers().is_some_and(|headers| headers.permit(&Answer::of(head)))
            }
            RetryOn::RateLimited => head.has(RATE_LIMITED),
            on => holds_for_response(*on, status, grpc, not_reached),
        });
    // Who has counted enough counts no less the second time.
    holds && (!head.has(RATE_LIMITED) || policy.on.contains(&RetryOn::RateLimited))
}

fn holds_for_failure(on: RetryOn, failure: &Failure) -> bool {
    let timed_out = failure.kind.is_time_of_attempt();
    if failure.side != Side::Upstream && !timed_out {
        return false;
    }
    match on {
        RetryOn::ConnectFailure => failure.stage == Stage::Connect,
        RetryOn::RefusedStream => failure.kind == FailureKind::RefusedStream,
        RetryOn::ResetBeforeRequest => failure.retry == Retry::Safe,
        // No response at all, or none in time.
        RetryOn::FiveXx | RetryOn::GatewayError | RetryOn::Reset => true,
        _ => false,
    }
}

fn holds_for_response(on: RetryOn, status: u16, grpc: Option<u32>, not_reached: bool) -> bool {
    match on {
        RetryOn::FiveXx => status >= 500,
        RetryOn::GatewayError => matches!(status, 502..=504),
        RetryOn::Retriable4xx => status == 409,
        RetryOn::RefusedStream | RetryOn::ResetBeforeRequest | RetryOn::ConnectFailure => not_reached,
        RetryOn::Cancelled => grpc == Some(1),
        RetryOn::DeadlineExceeded => grpc == Some(4),
        RetryOn::ResourceExhausted => grpc == Some(8),
        RetryOn::Internal => grpc == Some(13),
        RetryOn::Unavailable => grpc == Some(14),
        RetryOn::Reset | RetryOn::RetriableStatusCodes | RetryOn::RetriableHeaders | RetryOn::RateLimited => {
            false
        }
    }
}

async fn back_off(ctx: &mut RequestCtx<'_>, wait: Duration) -> Result<(), Failure> {
    if wait.is_zero() {
        return Ok(());
    }
    let sleep = async {
        tokio::time::sleep(wait).await;
        Ok(())
    };
    let slept = watch::guarded(ctx, None, sleep).await;
    ctx.tick();
    slept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(stage: Stage, kind: FailureKind, retry: Retry) -> Failure {
        Failure::upstream(stage, kind, retry, "")
    }

    #[test]
    fn default_policy_retries_only_what_never_reached_the_application() {
        let policy = RetryPolicy::default();
        let any = |failure: &Failure| policy.on.iter().any(|on| holds_for_failure(*on, failure));
        assert!(any(&upstream(Stage::Connect, FailureKind::ConnectFailed, Retry::Safe)));
        assert!(any(&upstream(Stage::Forward, FailureKind::RefusedStream, Retry::Safe)));
        assert!(any(&upstream(Stage::Forward, FailureKind::UpstreamClosed, Retry::Safe)));
        assert!(!any(&upstream(Stage::Forward, FailureKind::UpstreamClosed, Retry::Never)));
        assert!(!any(&Failure::local(Stage::Forward, FailureKind::PerTryTimeout, "")));
        let response = |status, reached: bool| {
            policy.on.iter().any(|on| holds_for_response(*on, status, None, !reached))
        };
        assert!(!response(503, true));
        assert!(response(503, false));
    }

    #[test]
    fn conditions_hold_for_what_they_name() {
        let timeout = Failure::local(Stage::Forward, FailureKind::PerTryTimeout, "");
        assert!(holds_for_failure(RetryOn::FiveXx, &timeout));
        assert!(holds_for_failure(RetryOn::Reset, &timeout));
        assert!(!holds_for_failure(RetryOn::ConnectFailure, &timeout));
        let gone = Failure::downstream(Stage::Forward, FailureKind::DownstreamClosed, "");
        assert!(!holds_for_failure(RetryOn::FiveXx, &gone));
        let overflow =
            Failure::local(Stage::Pick, FailureKind::Overflow { limit: "max_requests", value: 1 }, "");
        assert!(!holds_for_failure(RetryOn::FiveXx, &overflow));
        for (on, code) in [(RetryOn::Cancelled, 1), (RetryOn::Unavailable, 14), (RetryOn::Internal, 13)] {
            assert!(holds_for_response(on, 200, Some(code), false));
            assert!(!holds_for_response(on, 200, Some(0), false));
        }
        assert!(holds_for_response(RetryOn::Retriable4xx, 409, None, false));
        assert!(!holds_for_response(RetryOn::GatewayError, 500, None, false));
    }

    #[test]
    fn post_and_patch_are_not_idempotent() {
        assert!(
            ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"].iter().all(|method| is_idempotent(method))
        );
        assert!(!["POST", "PATCH", "CONNECT", "get"].iter().any(|method| is_idempotent(method)));
    }
}
