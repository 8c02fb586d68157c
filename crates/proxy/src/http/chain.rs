//! Runs a request through the filters of its listener, in order.

use std::time::Duration;

use outrigger_model::route::table::CompiledRoute;

use super::conn::RequestConfig;
use super::context::RequestCtx;
use super::filter::{self, Filter, Input, Verdict};
use super::watch;
use crate::failure::Failure;

/// Judges an open tunnel by the policy of now.
///
/// # Errors
/// It is forbidden now.
pub fn judge_again(ctx: &RequestCtx<'_>) -> Result<(), Failure> {
    let Some(request) = ctx.judged.as_deref() else { return Ok(()) };
    let view = ctx.conn.view();
    for filter in &view.http.filters {
        let input = Input { connection: ctx.conn.info.view(), request, route_fault: None };
        if let Filter::Rbac(rbac) = filter
            && let Verdict::Fail(failure) = rbac.on_request(&input)
        {
            return Err(failure);
        }
    }
    Ok(())
}

/// Runs the request filters, in order, and the route's own fault where the listener has no fault filter for it.
pub async fn run(
    ctx: &mut RequestCtx<'_>,
    view: &RequestConfig,
    route: &CompiledRoute,
) -> Result<(), Failure> {
    let route_fault = route.config.fault.as_ref();
    let mut drawn = false;
    for filter in &view.http.filters {
        let input = Input { connection: ctx.conn.info.view(), request: &ctx.head, route_fault };
        let verdict = filter.on_request(&input);
        drawn |= matches!(filter, Filter::Fault(_));
        if let Some((delay, then)) = delay_of(verdict)? {
            Box::pin(wait(ctx, delay, then)).await?;
        }
    }
    if let Some(fault) = route_fault.filter(|_| !drawn)
        && let Some((delay, then)) = delay_of(filter::fault::plan(fault))?
    {
        Box::pin(wait(ctx, delay, then)).await?;
    }
    Ok(())
}

fn delay_of(verdict: Verdict) -> Result<Option<(Duration, Option<Failure>)>, Failure> {
    match verdict {
        Verdict::Continue => Ok(None),
        Verdict::Fail(failure) => Err(failure),
        Verdict::Delay(delay, then) => Ok(Some((delay, then))),
    }
}

/// Waits as an injected fault wants it.
async fn wait(ctx: &mut RequestCtx<'_>, delay: Duration, then: Option<Failure>) -> Result<(), Failure> {
    ctx.record.flags.add("DI");
    let sleep = async {
        tokio::time::sleep(delay).await;
        Ok(())
    };
    watch::guarded(ctx, None, sleep).await?;
    ctx.tick();
    then.map_or(Ok(()), Err)
}
