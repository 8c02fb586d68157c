//! Runs a request through the filters of its listener, in order.

use std::time::Duration;

use outrigger_model::route::table::CompiledRoute;

use super::conn::RequestConfig;
use super::context::RequestCtx;
use super::filter::{self, Filter, Input, Verdict, cors};
use super::respond::Local;
use super::watch;
use crate::failure::Failure;

/// Judges an open tunnel by the policy of now.
///
/// # Errors
/// It is forbidden now.
pub fn judge_again(ctx: &RequestCtx<'_>) -> Result<(), Failure> {
    let judged = ctx.extras.as_ref().and_then(|extras| extras.judged.as_ref());
    let Some(request) = judged else { return Ok(()) };
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

/// Why a request goes no further.
pub enum Stop {
    Failed(Failure),
    /// A filter has answered it.
    Answered(Box<Local>, &'static str),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Runs the filters of the listener, in order, and then what the route itself has.
pub async fn run(ctx: &mut RequestCtx<'_>, view: &RequestConfig, route: &CompiledRoute) -> Result<(), Stop> {
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
    if route.has_filters() {
        Box::pin(of_route(ctx, route, drawn)).await?;
    }
    Ok(())
}

/// The route's own fault, where the listener has no filter for it, and its policy for other origins.
async fn of_route(ctx: &mut RequestCtx<'_>, route: &CompiledRoute, drawn: bool) -> Result<(), Stop> {
    if let Some(fault) = route.config.fault.as_ref().filter(|_| !drawn)
        && let Some((delay, then)) = delay_of(filter::fault::plan(fault))?
    {
        wait(ctx, delay, then).await?;
    }
    let Some(policy) = &route.config.cors else { return Ok(()) };
    match cors::look(policy, route, &ctx.head) {
        cors::Verdict::Pass => {}
        cors::Verdict::Edit(edits) => ctx.extras().response.extend(edits),
        cors::Verdict::Answer(local, edits) => {
            ctx.extras().response.extend(edits);
            return Err(Stop::Answered(Box::new(local), "cors_response"));
        }
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
