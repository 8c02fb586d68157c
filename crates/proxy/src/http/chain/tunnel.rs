//! Open tunnels, which are judged again whenever the configuration changes, as the requests that they stand for would be.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_model::ext_authz::RouteAuthz;
use outrigger_model::route::table::RouteRef;
use outrigger_model::token::{Outcome, Proven, Refusal};

use crate::failure::{Failure, FailureKind, Stage};
use crate::http::conn::RequestConfig;
use crate::http::context::{Asked, RequestCtx};
use crate::http::filter::tokens::{self, Tokens, Vouched, Witness};
use crate::http::filter::{Filter, Input, Verdict};
use crate::http::head::RequestHead;
use crate::http::upgrade::{self, Upgrade};

/// A request for a tunnel has come to the filters. What it looked like then is of interest only where one of them takes tokens out.
///
/// # Errors
/// There is no memory for another copy of its head.
#[cold]
pub fn came(ctx: &mut RequestCtx<'_>, view: &RequestConfig) -> Result<(), Failure> {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ctx.extras().tunnel = Some(Box::new(Asked { at, ..Asked::default() }));
    let looks_at_tokens = view.http.filters.iter().any(|filter| matches!(filter, Filter::Tokens(_)));
    let came = looks_at_tokens.then(|| copy(ctx)).transpose()?;
    if let Some(tunnel) = Asked::of(&mut ctx.extras) {
        tunnel.came = came;
    }
    Ok(())
}

/// A copy of the head, which lives as long as the tunnel, and is paid for.
fn copy(ctx: &mut RequestCtx<'_>) -> Result<RequestHead, Failure> {
    let weight = ctx.head.weight();
    if !ctx.conn.account.take(weight) {
        let detail = "clients hold all memory that is handed out; see memory_limit";
        return Err(Failure::local(Stage::Forward, FailureKind::Overload, detail));
    }
    if let Some(tunnel) = Asked::of(&mut ctx.extras) {
        tunnel.paid += weight;
    }
    Ok(ctx.head.clone())
}

/// A service is asked whether it may pass.
pub(super) fn authorized(ctx: &mut RequestCtx<'_>, filter: &str) {
    if let Some(tunnel) = Asked::of(&mut ctx.extras) {
        tunnel.authorized.push(filter.to_owned());
    }
}

/// A request for a tunnel has passed the filters.
///
/// # Errors
/// There is no memory for a copy of its head.
#[cold]
pub fn passed(ctx: &mut RequestCtx<'_>, view: &RequestConfig) -> Result<(), Failure> {
    let judged = copy(ctx)?;
    if let Some(tunnel) = Asked::of(&mut ctx.extras) {
        tunnel.judged = Some(judged);
        tunnel.by = Some(view.http.clone());
    }
    Ok(())
}

/// Judges an open tunnel by the configuration of now, unless that has done so.
///
/// # Errors
/// It is forbidden now.
pub fn judge_again(ctx: &mut RequestCtx<'_>) -> Result<(), Failure> {
    let view = ctx.conn.view();
    let Some(tunnel) = Asked::of(&mut ctx.extras) else { return Ok(()) };
    if tunnel.by.as_ref().is_some_and(|by| Arc::ptr_eq(by, &view.http)) {
        return Ok(());
    }
    let mut good = std::mem::take(&mut tunnel.good);
    let Some(tunnel) = ctx.extras.as_ref().and_then(|extras| extras.tunnel.as_ref()) else { return Ok(()) };
    judge(ctx, tunnel, &view, &mut good)?;
    if let Some(tunnel) = Asked::of(&mut ctx.extras) {
        (tunnel.good, tunnel.by) = (good, Some(view.http.clone()));
    }
    Ok(())
}

/// What the tokens of a tunnel say by the rules of now.
#[derive(Default)]
struct Said {
    proven: Proven,
    /// There are some that nobody can look at yet: the keys are still to come.
    waits: bool,
}

impl Said {
    /// Whoever it is of and for, and whether it was good when the tunnel was opened, are the rules of now to say. A token whose signature
    /// was good is no worse for other keys until it expires.
    fn look(
        &mut self,
        ctx: &RequestCtx<'_>,
        tunnel: &Asked,
        tokens: &Tokens,
        good: &mut Vouched,
    ) -> Result<(), Failure> {
        // Where nobody looked at tokens when it came, nobody took any out.
        let Some(came) = tunnel.came.as_ref().or(tunnel.judged.as_ref()) else { return Ok(()) };
        let mut memory = ctx.conn.worker.tokens.borrow_mut();
        let mut witness = Witness { memory: &mut memory, good, now: tokens::now() };
        match tokens.0.decide(came, tunnel.at.as_secs(), &mut witness) {
            Outcome::Passes(effects) => self.proven.extend(effects.proven),
            Outcome::Refused { why: Refusal::NoKeys, .. } => self.waits = true,
            Outcome::Refused { why, origin } => return Err(tokens::refused(why, origin)),
        }
        Ok(())
    }
}

fn judge(
    ctx: &RequestCtx<'_>,
    tunnel: &Asked,
    view: &RequestConfig,
    good: &mut Vouched,
) -> Result<(), Failure> {
    let Some(judged) = &tunnel.judged else { return Ok(()) };
    let found = match view.route(judged) {
        Ok(found) => {
            upgrade::check(judged, &found.route.config, &view.http.config.upgrades)?;
            Some(found)
        }
        // Rules that are replaced one by one end no WebSocket; a CONNECT goes nowhere but where a route says so.
        Err(failure) if ctx.upgrade == Upgrade::Connect => return Err(failure),
        Err(_) => None,
    };
    let mut said = Said::default();
    for filter in &view.http.filters {
        let input = Input { request: judged, tokens: Some(&said.proven), ..ctx.input(None) };
        match filter {
            Filter::Tokens(tokens) => said.look(ctx, tunnel, tokens, good)?,
            // What its tokens will say may be what allows it, or what does not deny it.
            Filter::Rbac(rbac) if said.waits => rbac.denies_anyway(&input).map_or(Ok(()), Err)?,
            Filter::Rbac(rbac) => {
                if let Verdict::Fail(failure) = rbac.on_request(&input) {
                    return Err(failure);
                }
            }
            Filter::ExtAuthz(authz) => {
                let name = &authz.config.name;
                if authz.concerns(&input) && !is_off(found, name) && !tunnel.authorized.contains(name) {
                    let detail = format!("{name} must be asked about it now, and was not when it was opened");
                    let failure = Failure::local(Stage::Authorize, FailureKind::Denied, detail);
                    return Err(failure.because_of(authz.origin(&input)));
                }
            }
            // They count requests or delay them, which a tunnel was once.
            Filter::Fault(_)
            | Filter::RateLimit(_)
            | Filter::LocalLimit(_)
            | Filter::GlobalLimit(_)
            | Filter::Concurrency(_)
            | Filter::Session
            | Filter::Cors => {}
        }
    }
    Ok(())
}

/// Whether the route asks no such service.
fn is_off(found: Option<RouteRef<'_>>, filter: &str) -> bool {
    found.is_some_and(|found| matches!(found.route.config.authz.get(filter), Some(RouteAuthz::Off)))
}
