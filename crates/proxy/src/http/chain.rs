//! Runs a request through the filters of its listener, in order.

use std::time::Duration;

use outrigger_model::route::table::RouteRef;

use self::visit::Visiting;
use super::conn::RequestConfig;
use super::context::RequestCtx;
use super::duration;
use super::filter::{Act, After, By, Filter, Stop, Verdict};
use super::head::ResponseHead;
use super::upgrade::{self, Upgrade};
use super::watch;
use crate::failure::{Failure, FailureKind};

pub mod tunnel;
mod visit;

/// The route of a request, which must let it switch to what it asks for.
///
/// # Errors
/// There is none, or it does not.
pub fn route<'v>(ctx: &RequestCtx<'_>, view: &'v RequestConfig) -> Result<RouteRef<'v>, Failure> {
    let found = view.route(&ctx.head)?;
    if ctx.upgrade != Upgrade::None {
        upgrade::check(&ctx.head, &found.route.config, &view.http.config.upgrades)?;
    }
    Ok(found)
}

/// Runs the filters of the listener, in order; gives back the route, which a filter may have changed, or found where there was none.
pub async fn run<'v>(
    ctx: &mut RequestCtx<'_>,
    view: &'v RequestConfig,
    mut found: Option<RouteRef<'v>>,
) -> Result<RouteRef<'v>, Stop> {
    for (number, filter) in view.http.filters.iter().enumerate() {
        let after = match filter.on_request(&ctx.input(found.map(|found| found.route))) {
            Verdict::Continue => continue,
            Verdict::Keep(state) => {
                ctx.extras().filters.push((number, state));
                continue;
            }
            Verdict::Visit => filter.visit(&mut Visiting { ctx: &mut *ctx, view, route: found })?,
            verdict => Box::pin(settle(ctx, view, filter, verdict, found)).await?,
        };
        if after == After::Reroute {
            found = reroute(ctx, view)?;
        }
    }
    // As in an Envoy: what a filter has put into the head counts only where it says that routes are to be looked for again.
    found.ok_or_else(|| view.no_route(&ctx.head).into())
}

/// Looks for the route again; there may be none, which is for the end to say: filters to come may still refuse it, or change that.
fn reroute<'v>(ctx: &mut RequestCtx<'_>, view: &'v RequestConfig) -> Result<Option<RouteRef<'v>>, Failure> {
    let found = route(ctx, view);
    let led = found.as_ref().ok().map(|found| found.route);
    duration::begin_anew(ctx, led.map(|route| &route.config));
    ctx.leads_to(led);
    match found {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.kind == FailureKind::NoRoute => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// What a filter wants but to let pass, and may have to wait for.
async fn settle<'v>(
    ctx: &mut RequestCtx<'_>,
    view: &'v RequestConfig,
    filter: &Filter,
    verdict: Verdict,
    route: Option<RouteRef<'v>>,
) -> Result<After, Stop> {
    match verdict {
        Verdict::Fail(failure) => Err(failure.into()),
        Verdict::Delay(delay, then) => {
            wait(ctx, delay, then).await?;
            Ok(After::Same)
        }
        _ => filter.settle(&mut Visiting { ctx, view, route }).await,
    }
}

/// What filters have for a response, whoever makes it: only requests with extras come here, and who keeps anything has some.
#[cold]
pub fn response(ctx: &mut RequestCtx<'_>, head: &mut ResponseHead, by: By<'_>) {
    let Some(extras) = &mut ctx.extras else { return };
    extras.response.drain(..).for_each(|edit| edit.apply(head));
    for (number, state) in &mut extras.filters {
        if let Some(filter) = ctx.view.http.filters.get(*number) {
            filter.on_response(state, head, by);
        }
    }
}

/// The whole response has left.
#[cold]
pub fn ended(ctx: &mut RequestCtx<'_>) {
    let Some(extras) = &mut ctx.extras else { return };
    for (number, state) in extras.filters.drain(..) {
        if let Some(filter) = ctx.view.http.filters.get(number) {
            filter.on_end(state, ctx.now);
        }
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
