//! Attempts that nobody waits for any more, because another one was first, and what endpoints are told of those beside the first.

use outrigger_telemetry::trace::SpanRecord;
use tokio::time::Instant;

use super::Rival;
use crate::http::attempt::live::Live;
use crate::http::attempt::plan::Plan;
use crate::http::attempt::{Sent, finish_span, turned};
use crate::http::context::RequestCtx;
use crate::runtime::endpoint::Outcome;

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

impl Rival {
    /// Tells its endpoint what came of it.
    pub(super) fn tell(&mut self, plan: &Plan<'_>, outcome: Outcome, live: Option<&mut Live>) {
        let mut sent = Sent { endpoint: &self.endpoint, since: self.since, pass: self.pass.take() };
        let turned = sent.tell(plan, outcome, live);
        if let Some(span) = self.span.as_mut().filter(|_| !turned.is_nothing()) {
            // Its span is still open.
            span.finish();
            turned::note(span, turned);
        }
    }
}
