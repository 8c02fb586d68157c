//! What an attempt has made of the circuit breaker, as events of its span: that is known only when the span has ended.

use outrigger_telemetry::trace::{SpanEvent, SpanRecord, Value};

use crate::failure::Failure;
use crate::http::attempt::plan::Plan;
use crate::http::context::RequestCtx;
use crate::http::trace;
use crate::runtime::breaker::{Pass, Phase, Turned};

/// Ends the span of an attempt. Where there is a circuit breaker it is sent when that has been told of the attempt, which is next.
#[inline]
pub(super) fn end_span(
    ctx: &mut RequestCtx<'_>,
    span: Option<Box<SpanRecord>>,
    status: Option<u16>,
    failure: Option<&Failure>,
) {
    if let Some(span) = span {
        end(ctx, span, status, failure);
    }
}

#[inline(never)]
#[allow(clippy::boxed_local, reason = "it comes as a pointer, and few requests have one")]
fn end(ctx: &mut RequestCtx<'_>, span: Box<SpanRecord>, status: Option<u16>, failure: Option<&Failure>) {
    let span = trace::finish_client(*span, status, failure);
    if ctx.record.cluster.as_ref().is_some_and(|cluster| cluster.breaker.is_some()) {
        ctx.extras().ended = Some(Box::new(span));
    } else if let Some(spans) = &ctx.conn.worker.process.spans {
        spans.try_send(span);
    }
}

/// Leave to send once more what met a dead pooled connection: a probe is still the same.
///
/// # Errors
/// There is none.
#[cold]
pub(super) fn admit_again(ctx: &mut RequestCtx<'_>, plan: &Plan<'_>) -> Result<Option<Pass>, Failure> {
    let kept = ctx.extras.as_mut().and_then(|extras| extras.pass.take());
    match kept.filter(Pass::is_probing) {
        Some(pass) => Ok(Some(pass)),
        None => plan.cluster.admit(),
    }
}

/// Keeps the leave of a probe that met a dead pooled connection, for when it is sent once more: another request would take its place
/// otherwise.
#[cold]
pub(super) fn keep(ctx: &mut RequestCtx<'_>, pass: Pass) {
    if pass.is_probing() {
        ctx.extras().pass = Some(pass);
    }
}

/// A request that may be sent has nobody to go to: what it has made of the breaker is not forgotten.
#[cold]
pub(super) fn unsent(ctx: &mut RequestCtx<'_>, pass: Option<Pass>, failure: Failure) -> Failure {
    let turned = pass.map(|mut pass| pass.came()).unwrap_or_default();
    told(ctx, turned);
    failure
}

/// The breaker has been told: sends the span that has waited for that.
#[inline]
pub(super) fn told(ctx: &mut RequestCtx<'_>, turned: Turned) {
    if ctx.extras.is_some() || !turned.is_nothing() {
        send(ctx, turned);
    }
}

#[cold]
fn send(ctx: &mut RequestCtx<'_>, turned: Turned) {
    if ctx.recording.is_none() {
        return;
    }
    let Some(mut span) = ctx.extras().ended.take() else {
        // There was no connection, and so no span: the next one has it, or that of the answer.
        if !turned.is_nothing() {
            ctx.extras().turned.push(turned);
        }
        return;
    };
    let before = std::mem::take(&mut ctx.extras().turned);
    before.into_iter().chain([turned]).for_each(|turned| note(&mut span, turned));
    if let Some(spans) = &ctx.conn.worker.process.spans {
        spans.try_send(*span);
    }
}

/// Adds to a span what its request has made of a circuit breaker.
#[cold]
pub fn note(span: &mut SpanRecord, turned: Turned) {
    let (start, end) = (span.start, span.end);
    let mut add = |phase: Phase, time, why: Option<String>| {
        let name = match phase {
            Phase::Closed => "circuit_breaker.closed",
            Phase::Open => "circuit_breaker.open",
            Phase::HalfOpen => "circuit_breaker.half_open",
        };
        let mut attributes = vec![("outrigger.circuit_breaker.state", Value::from(phase.name().to_owned()))];
        attributes.extend(why.map(|why| ("outrigger.circuit_breaker.reason", Value::from(why))));
        span.add_event(SpanEvent { name, time, attributes });
    };
    if turned.half_opened {
        add(Phase::HalfOpen, start, None);
    }
    if let Some((phase, why)) = turned.to.map(|to| *to) {
        add(phase, end, Some(why).filter(|why| !why.is_empty()));
    }
}
