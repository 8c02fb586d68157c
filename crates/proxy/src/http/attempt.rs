//! One attempt of a request: pick an endpoint, lease a connection, send the head. What happens until the response head is
//! `exchange`; whether there is another attempt is `retry`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use outrigger_model::cluster::UpstreamProtocol;
use tokio::time::Instant;

use super::context::RequestCtx;
use super::exchange;
use super::head::{RequestHead, ResponseHead};
use super::respond::says_not_reached;
use super::trace;
use super::upgrade::Upgrade;
use super::watch;
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::protocol::Protocol;
use crate::runtime::cluster::PickContext;
use crate::runtime::endpoint::{EndpointState, Outcome};
use crate::upstream::pool::Leased;

mod live;

pub use live::{Failed, Live, Plan, Slot, Tried};
use live::{finish_span, upgrade_over_h2};

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
    let endpoint = pick(ctx, plan, tried)?;
    tried.push(endpoint.address);
    ctx.record.endpoint = Some(endpoint.clone());
    let per_try = plan.retry.and_then(|retry| retry.per_try_timeout).map(|timeout| ctx.now + timeout);
    let leased = match lease_now(ctx, plan, &endpoint, fresh) {
        Some(leased) => Ok(leased),
        None => Box::pin(lease(ctx, plan, &endpoint, per_try, fresh)).await,
    };
    let sent = leased.and_then(|leased| send(ctx, plan, number, leased, &endpoint, slot));
    let result = match sent.and_then(|()| Live::present(slot)) {
        Ok(live) => {
            let result = exchange::until_head(ctx, live, per_try).await;
            live.arrived(ctx, result)
        }
        Err(failure) => Err(failure.into()),
    };
    if result.is_err() {
        *slot = None;
    }
    report(plan, &endpoint, &result, slot);
    result
}

fn pick(ctx: &RequestCtx<'_>, plan: &Plan<'_>, tried: &Tried) -> Result<Arc<EndpointState>, Failure> {
    let avoid = plan.retry.is_none_or(|retry| retry.avoid_previous_hosts);
    let info = &ctx.conn.info;
    plan.cluster.pick(&PickContext {
        tried: if avoid { tried } else { &[] },
        original: info.original(),
        hash: plan.hash,
    })
}

/// The protocol to ask for.
fn want(protocol: UpstreamProtocol, head: &RequestHead) -> Protocol {
    match protocol {
        UpstreamProtocol::Http1 => Protocol::Http1,
        UpstreamProtocol::Http2 => Protocol::Http2,
        UpstreamProtocol::Follow if head.is_h2() => Protocol::Http2,
        UpstreamProtocol::Follow => Protocol::Http1,
    }
}

/// A connection that is there and free, without waiting: nearly always.
fn lease_now(
    ctx: &RequestCtx<'_>,
    plan: &Plan<'_>,
    endpoint: &Arc<EndpointState>,
    fresh: bool,
) -> Option<Leased> {
    let worker = &ctx.conn.worker;
    let want = want(plan.cluster.config.protocol, &ctx.head);
    let mut leased = worker.pools.lease_now(plan.cluster, endpoint, (want, fresh), ctx.now)?;
    if let Leased::H2(lease) = &mut leased {
        let ready = lease.sender.poll_ready(&mut Context::from_waker(Waker::noop()));
        if upgrade_over_h2(ctx, plan) == Upgrade::Protocol || !matches!(ready, Poll::Ready(Ok(()))) {
            return None;
        }
    }
    Some(leased)
}

/// A connection, made if there is none.
async fn lease(
    ctx: &mut RequestCtx<'_>,
    plan: &Plan<'_>,
    endpoint: &Arc<EndpointState>,
    per_try: Option<Instant>,
    fresh: bool,
) -> Result<Leased, Failure> {
    let worker = ctx.conn.worker.clone();
    let want = want(plan.cluster.config.protocol, &ctx.head);
    let upgrade = upgrade_over_h2(ctx, plan) == Upgrade::Protocol;
    let now = ctx.now;
    let leasing = async {
        let mut leased = worker.pools.lease(plan.cluster, endpoint, (want, fresh), now).await?;
        if let Leased::H2(lease) = &mut leased {
            if upgrade && !lease.takes_extended_connect().await {
                let detail = "the upstream's HTTP/2 takes no extended CONNECT (RFC 8441)";
                return Err(Failure::upstream(
                    Stage::Connect,
                    FailureKind::UpstreamProtocol,
                    Retry::Never,
                    detail,
                ));
            }
            if let Err(error) = poll_fn(|cx| lease.sender.poll_ready(cx)).await {
                lease.condemn();
                let kind = FailureKind::RefusedStream;
                return Err(Failure::upstream(Stage::Forward, kind, Retry::Safe, error.to_string()));
            }
        }
        Ok(leased)
    };
    let leased = watch::guarded(ctx, per_try, leasing).await;
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
    if plan.retry.is_some() {
        let mut digits = [0_u8; 10];
        let _ = ctx.head.set("x-envoy-attempt-count", decimal(number, &mut digits));
    }
    let sent = match leased {
        Leased::H1(conn) => Live::send_h1(ctx, plan, conn, endpoint),
        Leased::H2(lease) => Live::send_h2(ctx, plan, lease, endpoint),
    };
    let live = match sent {
        Ok(live) => slot.insert(live),
        Err(failure) => {
            finish_span(ctx, span, None, Some(&failure));
            return Err(failure);
        }
    };
    live.span = span;
    live.upload.count_messages(ctx.record.is_grpc);
    live.cells.attempt();
    Ok(())
}

/// Tells the endpoint what came of it.
fn report(plan: &Plan<'_>, endpoint: &EndpointState, result: &Result<(), Failed>, slot: &Slot) {
    let head = slot.as_ref().map(|live| &live.head);
    let outcome = match result {
        Ok(()) if head.is_some_and(says_not_reached) && plan.cluster.uses_mesh(endpoint) => {
            Outcome::GatewayError
        }
        Ok(()) => Outcome::Status(head.map_or(0, ResponseHead::status)),
        Err(failed) if failed.stale => return,
        Err(failed) => match (failed.failure.side, &failed.failure.kind) {
            (crate::failure::Side::Upstream, _) => Outcome::GatewayError,
            // Time spent waiting for it is the endpoint's, wherever the clock was.
            (_, FailureKind::PerTryTimeout | FailureKind::UpstreamTimeout) => Outcome::GatewayError,
            _ => Outcome::LocalFailure,
        },
    };
    plan.cluster.report(endpoint, outcome);
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
