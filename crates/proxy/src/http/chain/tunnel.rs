//! Open tunnels, which are judged again whenever the configuration changes, as the requests that they stand for would be.

use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_model::ext_authz::RouteAuthz;
use outrigger_model::route::table::RouteRef;
use outrigger_model::token::Outcome;

use super::tokens;
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::context::{Asked, RequestCtx};
use crate::http::filter::{Filter, Input, Verdict};
use crate::http::upgrade::{self, Upgrade};

/// A request for a tunnel has come to the filters.
#[cold]
pub fn came(ctx: &mut RequestCtx<'_>) {
    let (came, at) =
        (Some(ctx.head.clone()), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    ctx.extras().tunnel = Some(Box::new(Asked { came, at, ..Asked::default() }));
}

/// A service is asked whether it may pass.
pub(super) fn authorized(ctx: &mut RequestCtx<'_>, filter: &str) {
    if let Some(tunnel) = ctx.extras.as_mut().and_then(|extras| extras.tunnel.as_mut()) {
        tunnel.authorized.push(filter.to_owned());
    }
}

/// Judges an open tunnel by the configuration of now.
///
/// # Errors
/// It is forbidden now.
pub fn judge_again(ctx: &RequestCtx<'_>) -> Result<(), Failure> {
    let Some(extras) = &ctx.extras else { return Ok(()) };
    let Some(tunnel) = &extras.tunnel else { return Ok(()) };
    let (Some(came), Some(judged)) = (&tunnel.came, &tunnel.judged) else { return Ok(()) };
    let view = ctx.conn.view();
    let found = match view.route(judged) {
        Ok(found) => {
            upgrade::check(judged, &found.route.config, &view.http.config.upgrades)?;
            Some(found)
        }
        // Rules that are replaced one by one end no WebSocket; a CONNECT goes nowhere but where a route says so.
        Err(failure) if ctx.upgrade == Upgrade::Connect => return Err(failure),
        Err(_) => None,
    };
    for filter in &view.http.filters {
        let input = Input { request: judged, tokens: Some(&extras.proven), ..ctx.input(None) };
        match filter {
            Filter::Rbac(rbac) => {
                if let Verdict::Fail(failure) = rbac.on_request(&input) {
                    return Err(failure);
                }
            }
            Filter::Tokens(all) => {
                let mut memory = ctx.conn.worker.tokens.borrow_mut();
                if let Outcome::Refused { why, origin } =
                    all.0.decide(came, tunnel.at.as_secs(), &mut *memory)
                {
                    return Err(tokens::refused(why, origin));
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
            Filter::Fault(_) | Filter::RateLimit(_) | Filter::GlobalLimit(_) => {}
        }
    }
    Ok(())
}

/// Whether the route asks no such service.
fn is_off(found: Option<RouteRef<'_>>, filter: &str) -> bool {
    found.is_some_and(|found| matches!(found.route.config.authz.get(filter), Some(RouteAuthz::Off)))
}
