//! Runs a request through the filters of its listener, in order.

use std::time::Duration;

use outrigger_model::route::Route;
use outrigger_model::route::table::{CompiledRoute, RouteRef};

use super::conn::RequestConfig;
use super::context::RequestCtx;
use super::duration;
use super::filter::{self, Filter, Verdict, cors};
use super::respond::Local;
use super::session;
use super::upgrade::{self, Upgrade};
use super::watch;
use crate::failure::{Failure, FailureKind, Stage};

mod authorize;
mod bucket;
mod limit;
mod tokens;
pub mod tunnel;

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

/// Runs the filters of the listener, in order, and then what the route itself has; gives back the route, which a filter may have
/// changed, or found where there was none.
pub async fn run<'v>(
    ctx: &mut RequestCtx<'_>,
    view: &'v RequestConfig,
    mut found: Option<RouteRef<'v>>,
) -> Result<RouteRef<'v>, Stop> {
    let mut drawn = false;
    for filter in &view.http.filters {
        drawn |= matches!(filter, Filter::Fault(_));
        match filter.on_request(&ctx.input(found.and_then(|found| found.route.config.fault.as_ref()))) {
            Verdict::Continue => {}
            Verdict::Admitted(permit) => ctx.extras().admitted.push(permit),
            verdict => {
                let again = match filter {
                    Filter::Tokens(tokens) => tokens::look(ctx, tokens)?,
                    Filter::LocalLimit(limits) => {
                        bucket::look(ctx, limits, found.map(|found| found.route)).map(|()| false)?
                    }
                    _ => {
                        let of = found.map(|found| &found.route.config);
                        Box::pin(settle(ctx, view, filter, verdict, of)).await?
                    }
                };
                if again {
                    found = reroute(ctx, view)?;
                }
            }
        }
    }
    // As in an Envoy: what a filter has put into the head counts only where it says that routes are to be looked for again.
    let found = found.ok_or_else(|| view.no_route(&ctx.head))?;
    if found.route.has_filters() {
        Box::pin(of_route(ctx, found.route, drawn)).await?;
    }
    Ok(found)
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

/// What a filter wants but to let pass; says whether routes are to be looked for again.
async fn settle(
    ctx: &mut RequestCtx<'_>,
    view: &RequestConfig,
    filter: &Filter,
    verdict: Verdict,
    route: Option<&Route>,
) -> Result<bool, Stop> {
    match (filter, &verdict) {
        (Filter::ExtAuthz(authz), Verdict::Ask) => {
            tunnel::authorized(ctx, &authz.config.name);
            return authorize::ask(ctx, view, authz, route).await;
        }
        (Filter::GlobalLimit(limits), Verdict::Ask) => {
            limit::ask(ctx, view, limits).await?;
            return Ok(false);
        }
        _ => {}
    }
    if let Some((delay, then)) = delay_of(verdict)? {
        wait(ctx, delay, then).await?;
    }
    Ok(false)
}

/// The route's own fault, where the listener has no filter for it, its session and its policy for other origins.
async fn of_route(ctx: &mut RequestCtx<'_>, route: &CompiledRoute, drawn: bool) -> Result<(), Stop> {
    if let Some(fault) = route.config.fault.as_ref().filter(|_| !drawn)
        && let Some((delay, then)) = delay_of(filter::fault::plan(fault))?
    {
        wait(ctx, delay, then).await?;
    }
    if let Some(session) = &route.config.session {
        session::look(ctx, session);
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
        Verdict::Continue | Verdict::Admitted(_) => Ok(None),
        // Those that ask were settled; what would be asked and is not does not pass.
        Verdict::Ask => Err(Failure::local(
            Stage::Authorize,
            FailureKind::AuthzUnavailable(500),
            "a filter asks that knows nobody",
        )),
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
