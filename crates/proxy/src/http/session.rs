//! Sessions: a client that carries the address of an endpoint goes there again, as long as that is an endpoint of the route's clusters and
//! takes requests; and what a client is given to carry. Only routes with a session come here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_model::ext_authz::How;
use outrigger_model::route::table::CompiledRoute;
use outrigger_model::route::{Forward, Session, SessionBy, WeightedCluster};

use super::attempt::{Plan, Tried};
use super::conn::RequestConfig;
use super::context::{Affinity, Extras, RequestCtx};
use super::filter::ResponseEdit;
use outrigger_model::request::cookie;

use super::hash::set_cookie;
use crate::failure::{Failure, FailureKind, Stage};
use crate::runtime::endpoint::EndpointState;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// Looks at what a client carries.
#[cold]
pub fn look(ctx: &mut RequestCtx<'_>, session: &Session) {
    if !session.by.is_for(ctx.head.path()) {
        return;
    }
    let token = match &session.by {
        SessionBy::Cookie { name, .. } => cookie(&ctx.head, name).and_then(|text| session.read(text, now())),
        SessionBy::Header { name } => ctx.head.first(name).and_then(|text| session.read(text, now())),
    };
    ctx.extras().affinity = Affinity { token, is_on: true };
}

/// The share of a route that a session belongs to: weights are for clients that have none.
#[cold]
pub fn share<'f>(
    extras: &Extras,
    view: &RequestConfig,
    route: &CompiledRoute,
    forward: &'f Forward,
) -> Option<(usize, &'f WeightedCluster)> {
    let has = |address: SocketAddr, share: &WeightedCluster| {
        let cluster = view.http.cluster_of(share);
        share.weight > 0 && cluster.is_some_and(|cluster| cluster.serving_at(address).is_some())
    };
    let token = extras.affinity.token.filter(|_| forward.clusters.len() > 1);
    let kept = token
        .and_then(|token| forward.clusters.iter().enumerate().find(|(_, share)| has(token.address, share)));
    kept.or_else(|| route.pick_cluster(forward, fastrand::u64(..)))
}

/// The endpoint of a session, where its first attempt goes; `None`: any will do.
///
/// # Errors
/// It takes no requests any more, and no other will do.
#[cold]
pub fn endpoint(
    extras: &Extras,
    plan: &Plan<'_>,
    tried: &Tried,
) -> Option<Result<Arc<EndpointState>, Failure>> {
    let token = extras.affinity.token.filter(|_| tried.is_empty())?;
    if let Some(endpoint) = plan.cluster.serving_at(token.address) {
        return Some(Ok(endpoint));
    }
    let status = plan.route.config.session.as_ref()?.strict?;
    let detail = format!("the session's endpoint {} takes no requests any more", token.address);
    let failure = Failure::local(Stage::Pick, FailureKind::SessionLost(status), detail);
    Some(Err(failure.because_of(plan.cluster.origin.clone())))
}

/// What the client is to carry from now on.
#[cold]
pub fn answered(ctx: &mut RequestCtx<'_>, route: &CompiledRoute, address: SocketAddr) {
    let Some(session) = route.config.session.as_deref() else { return };
    let Some(Extras { affinity: Affinity { token, is_on: true }, .. }) = ctx.extras.as_deref() else {
        return;
    };
    let now = now();
    let Some(token) = session.answered(*token, address, now) else { return };
    let text = session.write(&token);
    let (name, value, how) = match &session.by {
        SessionBy::Header { name } => (name.clone(), text, How::Set),
        SessionBy::Cookie { name, path, permanent, attributes } => {
            let left = token.expires.saturating_sub(now);
            let lives = permanent.then(|| std::time::Duration::from_secs(left));
            let value = set_cookie(name, &text, path.as_deref(), lives.unwrap_or_default(), attributes);
            ("set-cookie".to_owned(), value, How::Append)
        }
    };
    ctx.extras().response.push(ResponseEdit { name: name.into(), value: value.into_bytes(), how });
}
