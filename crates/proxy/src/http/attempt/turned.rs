//! What an attempt has made of the circuit breaker, as events of its span: that is known only when the span has ended.

use outrigger_telemetry::trace::{SpanEvent, SpanRecord, Value};

use crate::failure::Failure;
use crate::http::context::RequestCtx;
use crate::http::trace;
use crate::runtime::breaker::{Phase, Turned};

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
fn end(ctx: &mut RequestCtx<'_>, span: Box<SpanRecord>, status: Option<u16>, failure: Option<&Failure>) {
    let span = trace::finish_client(*span, status, failure);
    if ctx.record.cluster.as_ref().is_some_and(|cluster| cluster.breaker.is_some()) {
        ctx.extras().ended = Some(Box::new(span));
    } else if let Some(spans) = &ctx.conn.worker.process.spans {
        spans.try_send(span);
    }
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
