//! Open tunnels, which are judged again whenever the configuration changes, as the requests that they stand for would be.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_model::token::Proven;

use crate::failure::{Failure, FailureKind, Stage};
use crate::http::conn::RequestConfig;
use crate::http::context::{Asked, RequestCtx};
use crate::http::filter::tokens::{self, Vouched, Witness};
use crate::http::filter::{Act, Filter, Tunnel};
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
    let takes_tokens = view.http.filters.iter().any(Filter::takes_tokens);
    let came = takes_tokens.then(|| copy(ctx)).transpose()?;
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

fn judge(
    ctx: &RequestCtx<'_>,
    asked: &Asked,
    view: &RequestConfig,
    good: &mut Vouched,
) -> Result<(), Failure> {
    let Some(judged) = &asked.judged else { return Ok(()) };
    let found = match view.route(judged) {
        Ok(found) => {
            upgrade::check(judged, &found.route.config, &view.http.config.upgrades)?;
            Some(found)
        }
        // Rules that are replaced one by one end no WebSocket; a CONNECT goes nowhere but where a route says so.
        Err(failure) if ctx.upgrade == Upgrade::Connect => return Err(failure),
        Err(_) => None,
    };
    let mut memory = ctx.conn.worker.tokens.borrow_mut();
    let mut witness = Witness { memory: &mut memory, good, now: tokens::now() };
    let mut tunnel = Tunnel {
        connection: ctx.conn.info.view(),
        // Where nobody looked at tokens when it came, nobody took any out.
        came: asked.came.as_ref().unwrap_or(judged),
        judged,
        at: asked.at.as_secs(),
        route: found.map(|found| found.route),
        asked: &asked.authorized,
        known: &mut witness,
        proven: Proven::default(),
        waits: false,
    };
    view.http.filters.iter().try_for_each(|filter| filter.judge_again(&mut tunnel))
}
