//! Attempts that nobody waits for any more, because another one was first.

use outrigger_telemetry::trace::SpanRecord;
use tokio::time::Instant;

use crate::http::attempt::finish_span;
use crate::http::attempt::live::Live;
use crate::http::context::RequestCtx;

/// A response that is not taken: its connection may serve on.
pub(super) fn forget(ctx: &RequestCtx<'_>, mut live: Live) {
    let now = Instant::now();
    live.note_head(now);
    finish_span(ctx, live.span.take(), Some(live.head.status()), None);
    if live.begin_response(ctx.head.method() == "HEAD").is_ok() {
        live.discard(&ctx.conn.worker.pools, now);
    }
}

/// Ends the span of an attempt that was given up because another one was first.
pub(super) fn lost(ctx: &RequestCtx<'_>, span: Option<Box<SpanRecord>>) {
    let span = span.map(|mut span| {
        span.set("outrigger.hedge.lost", true);
        span
    });
    finish_span(ctx, span, None, None);
}
