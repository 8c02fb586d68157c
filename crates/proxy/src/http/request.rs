//! The life of one request, as a list of calls: identify, route, filter, forward with retries, respond, record.
//!
//! A request reads the runtime once and keeps what it read through its retries.

use std::borrow::Cow;
use std::sync::Arc;

use outrigger_model::cluster::NOWHERE;
use outrigger_model::listener::Direction;
use outrigger_model::route::table::{CompiledRoute, RouteRef};
use outrigger_model::route::{Forward, RetryPolicy, RouteAction};

use super::attempt::turned::note;
use super::attempt::{Live, Plan};
use super::body::Body;
use super::chain;
use super::conn::{HttpConn, RequestConfig};
use super::context::{Done, RequestCtx};
use super::duration;
use super::edit;
use super::exchange;
use super::filter::{By, ResponseEdit, Stop};
use super::h1::Framing;
use super::hash::{self, Hashed};
use super::head::{RequestHead, ResponseHead};
use super::mirror;
use super::respond::{self, Audience, BeginError, Local, Responder};
use super::retry;
use super::session;
use super::timeout::Clock;
use super::trace::{self};
use super::upgrade::Upgrade;
use crate::failure::{Failure, FailureKind, Stage};
use crate::protocol::Protocol;

/// Serves one request to its end. What is seldom needed is boxed: each connection has room for this future.
pub async fn serve(ctx: &mut RequestCtx<'_>) {
    if let Err(stop) = run(ctx).await {
        Box::pin(stopped(ctx, stop)).await;
    }
}

async fn stopped(ctx: &mut RequestCtx<'_>, stop: Stop) {
    let failure = match stop {
        Stop::Failed(failure) => Some(failure),
        Stop::Answered(local, details) => reply(ctx, *local, details).await.err(),
    };
    mirror::finish(ctx, true);
    if let Some(failure) = failure {
        answer(ctx, &failure).await;
    }
}

async fn run(ctx: &mut RequestCtx<'_>) -> Result<(), Stop> {
    edit::identify(ctx);
    let view = ctx.view.clone();
    edit::normalize(&mut ctx.head, view.http.config.path)?;
    let found = match chain::route(ctx, &view) {
        Ok(found) => {
            trace(ctx, found.route);
            duration::begin(ctx, &found.route.config);
            if ctx.upgrade != Upgrade::None {
                chain::tunnel::came(ctx, &view)?;
            }
            chain::run(ctx, &view, Some(found)).await?
        }
        Err(failure) if failure.kind == FailureKind::NoRoute => Box::pin(unrouted(ctx, &view)).await?,
        Err(failure) => return Err(failure.into()),
    };
    if ctx.upgrade != Upgrade::None {
        chain::tunnel::passed(ctx, &view)?;
    }
    match &found.route.config.action {
        RouteAction::Forward(forward) => {
            let host_retry = found.host.retry.as_ref();
            let forwarded = self::forward(ctx, &view, found.route, forward, host_retry).await;
            forwarded.inspect_err(|failure| edit::failed(ctx, found.route, forward, failure))?;
        }
        RouteAction::Redirect(redirect) => {
            let location = found.route.location(redirect, &ctx.head);
            let answer = (redirect.status(), "", Some(&*location));
            Box::pin(direct(ctx, found.route, answer)).await?;
        }
        RouteAction::Direct { status, body } => {
            Box::pin(direct(ctx, found.route, (*status, body, None))).await?;
        }
    }
    Ok(())
}

/// Filters look at a request that no route takes, too, as in an Envoy: who may not call learns nothing of the paths that there are, and
/// what a filter puts into the head may be what a route asks for.
async fn unrouted<'v>(ctx: &mut RequestCtx<'_>, view: &'v RequestConfig) -> Result<RouteRef<'v>, Stop> {
    if ctx.upgrade != Upgrade::None {
        chain::tunnel::came(ctx, view)?;
    }
    let found = chain::run(ctx, view, None).await?;
    trace(ctx, found.route);
    Ok(found)
}

/// The answer that a route gives itself: its status, its body, where else to look.
async fn direct(
    ctx: &mut RequestCtx<'_>,
    route: &CompiledRoute,
    (status, body, location): (u16, &str, Option<&str>),
) -> Result<(), Failure> {
    let asked = (ctx.record.is_grpc, ctx.head.method() == "HEAD");
    let mut local = respond::direct(status, body, asked, location);
    edit::direct(ctx, route, &mut local.head);
    reply(ctx, local, "direct_response").await
}

/// Decides on recording; opens the server span, which is named after this route, wherever filters lead the request then.
fn trace(ctx: &mut RequestCtx<'_>, route: &CompiledRoute) {
    decide(ctx);
    ctx.leads_to(Some(route));
    let info = &ctx.conn.info;
    if let Some(recording) = ctx.recording.filter(|_| info.direction == Direction::Inbound) {
        let local = ctx.conn.worker.metrics.local();
        ctx.record.span = Some(recording.server(&mut ctx.head, &route.config.name, info, local));
    }
}

/// Whether it is recorded.
fn decide(ctx: &mut RequestCtx<'_>) {
    ctx.recording = trace::decide(&ctx.conn.worker.process, &ctx.view.http.config, &mut ctx.head);
    ctx.decided = true;
}

/// Forwards the request to one of the route's clusters and its response to the client.
async fn forward(
    ctx: &mut RequestCtx<'_>,
    view: &RequestConfig,
    route: &CompiledRoute,
    forward: &Forward,
    host_retry: Option<&RetryPolicy>,
) -> Result<(), Failure> {
    let picked = match &ctx.extras {
        None => route.pick_cluster(forward, fastrand::u64(..)),
        Some(extras) => session::share(extras, view, route, forward),
    };
    let (_, weighted) = picked.ok_or_else(|| no_cluster(route, forward, "a cluster of weight 0"))?;
    let cluster = view.http.cluster_of(weighted);
    let cluster = cluster.ok_or_else(|| no_cluster(route, forward, &weighted.cluster))?;
    ctx.record.cluster = Some(cluster.clone());
    edit::request(ctx, route, forward, weighted)?;
    let limit = forward.timeout.filter(|timeout| !timeout.is_zero());
    ctx.clock = Clock::new(limit, ctx.body.is_end(), ctx.now);
    if let Some(limits) = &forward.limits
        && limits.concern(ctx.record.is_grpc)
    {
        duration::limit(ctx, limits);
    }
    let retry = forward.retry.as_ref().or(host_retry);
    let hashed = match cluster.config.balance.hashes() {
        true => hash::of(&forward.hash, &ctx.head, ctx.conn.info.source),
        false => Hashed::default(),
    };
    if let Some(cookie) = hashed.cookie {
        ctx.extras().response.push(ResponseEdit::cookie(cookie));
    }
    if !forward.mirrors.is_empty() {
        mirror::begin(ctx, view, forward, hashed.hash);
    }
    let plan = Plan { route, forward, retry, cluster, weighted, upgrade: ctx.upgrade, hash: hashed.hash };
    let mut slot = None;
    retry::run(ctx, &plan, &mut slot).await?;
    if let Some(idle) = retry.and_then(|retry| retry.per_try_idle) {
        duration::silent(ctx, idle);
    }
    let live = Live::present(&mut slot)?;
    edit::response(ctx, &plan, live);
    if ctx.extras.is_some() {
        chain::response(ctx, &mut live.head, By::Upstream(route, live.endpoint.address));
        mirror::finish(ctx, false);
    }
    ctx.record.grpc_status = live.grpc_status.or(ctx.record.grpc_status);
    ctx.record.details = Cow::Borrowed("via_upstream");
    exchange::deliver(ctx, live).await?;
    if ctx.extras.is_some() {
        chain::ended(ctx);
        mirror::finish(ctx, true);
    }
    Ok(())
}

#[cold]
fn no_cluster(route: &CompiledRoute, forward: &Forward, name: &str) -> Failure {
    let origin = route.config.origin.clone().map(Arc::new);
    let detail = match name {
        NOWHERE => format!("route \"{}\" has no backend here that is there", route.config.name),
        name => format!("route \"{}\" names {name}", route.config.name),
    };
    let kind = FailureKind::NoCluster(forward.no_cluster.status());
    Failure::local(Stage::Route, kind, detail).because_of(origin)
}

/// Tells the client what failed, if it can still be told.
async fn answer(ctx: &mut RequestCtx<'_>, failure: &Failure) {
    ctx.record.fail(failure);
    if failure.kind == FailureKind::DownstreamClosed {
        ctx.keep = false;
        // A response that was sent before stays in the record; else this is what Envoy logs.
        if ctx.record.status == 0 {
            ctx.responder = None;
        }
        return;
    }
    if ctx.responder.is_none() {
        // The response had begun: `deliver` has broken it off.
        ctx.keep = false;
        return;
    }
    if matches!(failure.kind, FailureKind::BadRequest(_)) {
        ctx.keep = false;
    }
    let conn = ctx.conn;
    let audience = Audience {
        trusted: conn.is_trusted(),
        is_grpc: ctx.record.is_grpc,
        is_head: ctx.head.method() == "HEAD",
        request_id: ctx.head.first("x-request-id"),
        hop: &conn.worker.metrics.local().workload.name,
        inbound: ctx.conn.info.direction == Direction::Inbound,
    };
    let local = respond::local(failure, &audience);
    let details = std::mem::take(&mut ctx.record.details);
    // The client may be gone by now; the failure is recorded either way.
    let _ = reply(ctx, local, "").await;
    ctx.record.details = details;
}

/// The span of a request that is answered here and has none yet; the record ends it, with the reason.
fn open_span(ctx: &mut RequestCtx<'_>) {
    if !ctx.decided {
        // No route took it first.
        decide(ctx);
    }
    let Some(recording) = ctx.recording.filter(|_| !ctx.attempted && ctx.record.span.is_none()) else {
        return;
    };
    let info = &ctx.conn.info;
    let local = ctx.conn.worker.metrics.local();
    let route = ctx.record.route.as_deref().unwrap_or_default();
    ctx.record.span = Some(match info.direction {
        Direction::Inbound => recording.server(&mut ctx.head, route, info, local),
        Direction::Outbound => {
            let cluster = ctx.record.cluster.as_ref().map(|cluster| &cluster.name);
            let mut span = recording.unsent(&ctx.head, route, cluster, local);
            let turned = ctx.extras.as_mut().map(|extras| std::mem::take(&mut extras.turned));
            turned.into_iter().flatten().for_each(|turned| note(&mut span, turned));
            span
        }
    });
}

/// Sends a response of our own.
async fn reply(ctx: &mut RequestCtx<'_>, mut local: Local, details: &'static str) -> Result<(), Failure> {
    let Some(responder) = ctx.responder.take() else { return Ok(()) };
    ctx.record.status = local.head.status();
    ctx.record.grpc_status = local.grpc_status;
    // Whoever made it may not know: such a response ends with its head (RFC 9112, section 6.3).
    if ctx.head.method() == "HEAD" || matches!(ctx.record.status, 204 | 304) {
        local.body = "".into();
    }
    ctx.record.details = Cow::Borrowed(details);
    chain::response(ctx, &mut local.head, By::Us);
    open_span(ctx);
    let drain = ctx.conn.takes_leave() || !ctx.keep;
    let framing = match &local.head {
        ResponseHead::H1(head) => head.framing(),
        ResponseHead::H2(_) => Framing::Chunked,
    };
    // A response to HEAD has the length but not the body.
    let framing =
        if local.body.is_empty() && framing != Framing::Length(0) { Framing::None } else { framing };
    let begun = responder.begin(&mut local.head, framing, local.body.is_empty(), drain, Some(&ctx.head));
    let mut begun = begun.map_err(|error| client_lost(&error))?;
    ctx.keep &= begun.keeps;
    let sent = begun.sender.send_text(&local.body);
    ctx.record.sent = local.body.len() as u64;
    let result = match sent {
        Ok(()) => std::future::poll_fn(|cx| begun.sender.poll_flush(cx)).await,
        Err(error) => Err(error),
    };
    ctx.sender = Some(begun.sender);
    result.map_err(|error| client_lost(&BeginError::Send(error)))
}

fn client_lost(error: &BeginError) -> Failure {
    Failure::downstream(Stage::Forward, FailureKind::DownstreamClosed, format!("{error:?}"))
}

/// A request that could not even be read: answered and recorded like any other.
pub async fn refuse(conn: &HttpConn, failure: &Failure, body: Body, responder: Responder) -> Done {
    let protocol = match &responder {
        Responder::H1(_) => Protocol::Http1,
        Responder::H2(_) => Protocol::Http2,
    };
    let nothing = RequestHead::H2(http::Request::new(()).into_parts().0);
    let mut ctx = RequestCtx::open(conn, nothing, Framing::None, body, responder);
    ctx.record.protocol = protocol;
    ctx.unread = true;
    ctx.keep = false;
    answer(&mut ctx, failure).await;
    ctx.done()
}
