//! The life of one request, as a list of calls: identify, route, filter, forward with retries, respond, record.
//!
//! A request reads the runtime once and keeps what it read through its retries.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_model::listener::Direction;
use outrigger_model::route::table::{CompiledRoute, RouteRef};
use outrigger_model::route::{Forward, Redirect, RetryPolicy, RouteAction};
use tokio::time::Instant;

use super::attempt::{Live, Plan};
use super::body::Body;
use super::exchange;
use super::filter::{self, Filter, Input, Verdict};
use super::grpc;
use super::h1::Framing;
use super::hash::{self, Hashed};
use super::head::RequestHead;
use super::respond::{self, Audience, BeginError, ERROR_HEADER, Local, Responder};
use super::retry;
use super::send::Sender;
use super::timeout::Timer;
use super::trace::{self, Recording};
use super::upgrade::{self, Upgrade};
use crate::failure::{Failure, FailureKind, Stage};
use crate::protocol::Protocol;
use crate::record::StreamRecord;
use crate::runtime::limits::RequestPermit;

mod conn;
pub mod edit;

pub use conn::{HttpConn, View};

/// One request.
pub struct RequestCtx<'c> {
    pub conn: &'c HttpConn,
    pub view: Rc<View>,
    pub record: StreamRecord,
    pub head: RequestHead,
    pub framing: Framing,
    pub upgrade: Upgrade,
    /// Of a request for a tunnel: the head that policy saw, to be judged again.
    judged: Option<Box<RequestHead>>,
    pub body: Body,
    /// There never was any byte of it.
    bodyless: bool,
    /// The head stands in for one that could not be read: the record shows none.
    unread: bool,
    /// Until the response begins.
    pub responder: Option<Responder>,
    /// From then on.
    pub sender: Option<Sender>,
    /// The connection's, lent so that its requests need none of their own.
    pub timer: Timer,
    /// The time when the task began to wait for nothing, or a little later: read once per wake-up, not at each look.
    pub now: Instant,
    /// Of the route.
    pub deadline: Option<Instant>,
    pub recording: Option<Recording>,
    /// An attempt has had a span.
    pub attempted: bool,
    /// The head says who we are.
    pub introduced: bool,
    pub permit: Option<RequestPermit>,
    /// The downstream connection can take another request.
    pub keep: bool,
}

/// What is left when a request has ended.
pub struct Done {
    pub body: Body,
    /// Absent if there was no response.
    pub sender: Option<Sender>,
    /// Unused, if there was none.
    pub responder: Option<Responder>,
    pub timer: Timer,
    pub keep: bool,
}

impl Done {
    /// Whether the exchange ended as it should, with nothing left to read.
    pub fn is_clean(&self) -> bool {
        self.keep && self.body.is_end() && self.sender.as_ref().is_some_and(Sender::is_finished)
    }
}

impl Drop for RequestCtx<'_> {
    fn drop(&mut self) {
        // The record writes the request down, also when the task is cancelled.
        self.record.finish((!self.unread).then_some(&self.head));
        if let RequestHead::H1(head) = &mut self.head {
            self.conn.worker.buffers.give_head(&mut head.fields);
        }
    }
}

/// Serves one request to its end. What is seldom needed is boxed: each connection has room for this future.
pub async fn serve(ctx: &mut RequestCtx<'_>) {
    if let Err(failure) = run(ctx).await {
        Box::pin(answer(ctx, &failure)).await;
    }
}

async fn run(ctx: &mut RequestCtx<'_>) -> Result<(), Failure> {
    edit::identify(ctx);
    let view = ctx.view.clone();
    edit::normalize(&mut ctx.head, view.http.config.path)?;
    let found = route(ctx, &view)?;
    trace(ctx, found.route);
    if ctx.upgrade != Upgrade::None {
        upgrade::check(&ctx.head, &found.route.config, &view.http.config.upgrades)?;
        ctx.judged = Some(Box::new(ctx.head.clone()));
    }
    filter(ctx, &view, found.route).await?;
    match &found.route.config.action {
        RouteAction::Forward(forward) => {
            let host_retry = found.host.retry.as_ref();
            self::forward(ctx, &view, found.route, forward, host_retry).await
        }
        RouteAction::Redirect(redirect) => {
            let location = edit::location(&ctx.head, found.route, redirect);
            let status = status_of(redirect);
            let local = respond::direct(status, "", false, Some(&location));
            Box::pin(reply(ctx, local, "direct_response")).await
        }
        RouteAction::Direct { status, body } => {
            let is_head = ctx.head.method() == "HEAD";
            let local = respond::direct(*status, body, is_head, None);
            Box::pin(reply(ctx, local, "direct_response")).await
        }
    }
}

fn status_of(redirect: &Redirect) -> u16 {
    if redirect.status == 0 { 301 } else { redirect.status }
}

impl<'c> RequestCtx<'c> {
    /// A request whose head has come.
    #[inline(always)] // made where it stays
    pub fn open(
        conn: &'c HttpConn,
        head: RequestHead,
        framing: Framing,
        body: Body,
        responder: Responder,
    ) -> Self {
        let protocol = match &head {
            RequestHead::H1(_) => Protocol::Http1,
            RequestHead::H2(_) => Protocol::Http2,
        };
        let now = Instant::now();
        let mut record = StreamRecord::open(&conn.worker, &conn.info, protocol, now);
        record.http10 = matches!(&head, RequestHead::H1(head) if head.minor() == 0);
        record.is_grpc = head.first("content-type").is_some_and(grpc::is_grpc);
        let upgrade = Upgrade::of(&head);
        Self {
            conn,
            view: conn.view(),
            record,
            head,
            framing,
            upgrade,
            judged: None,
            bodyless: body.is_end(),
            unread: false,
            body,
            responder: Some(responder),
            sender: None,
            timer: Timer::default(),
            now,
            deadline: None,
            recording: None,
            attempted: false,
            introduced: false,
            permit: None,
            keep: true,
        }
    }

    /// What is left at the end.
    pub fn done(&mut self) -> Done {
        Done {
            body: std::mem::replace(&mut self.body, Body::Empty).into_live(),
            sender: self.sender.take(),
            responder: self.responder.take(),
            timer: std::mem::take(&mut self.timer),
            keep: self.keep,
        }
    }

    /// Whether the request can be sent once more. `untouched`: no byte of its body was read.
    pub fn can_replay(&self, untouched: bool) -> bool {
        let is_tunnel = self.upgrade != Upgrade::None && self.framing == Framing::Tunnel;
        self.bodyless || untouched || is_tunnel || self.body.can_replay()
    }

    /// Copies the body aside from now on.
    pub fn make_replayable(&mut self) {
        self.body.make_replayable();
    }

    /// Looks at the clock: the task has waited.
    pub fn tick(&mut self) {
        self.now = Instant::now();
    }

    /// The request's side of a tunnel; it has no time limit of the route any more.
    pub fn open_tunnel(&mut self) {
        exchange::make_tunnel(&mut self.body);
        self.deadline = None;
    }
}

fn route<'v>(ctx: &RequestCtx<'_>, view: &'v View) -> Result<RouteRef<'v>, Failure> {
    view.http.routes.find(&ctx.head).ok_or_else(|| {
        let detail = format!(
            "no route of {} takes {} {}{}",
            view.http.routes.name(),
            ctx.head.method(),
            ctx.head.authority(),
            ctx.head.path().split('?').next().unwrap_or_default()
        );
        Failure::local(Stage::Route, FailureKind::NoRoute, detail)
    })
}

/// Decides on recording; opens the server span.
fn trace(ctx: &mut RequestCtx<'_>, route: &CompiledRoute) {
    ctx.recording = trace::decide(&ctx.conn.worker.process, &ctx.view.http.config, &mut ctx.head);
    let named = ctx.conn.worker.process.access_log.is_on() || ctx.recording.is_some();
    if named && !route.config.name.is_empty() {
        ctx.record.route = Some(route.config.name.as_str().into());
    }
    let info = &ctx.conn.info;
    if let Some(recording) = ctx.recording.filter(|_| info.direction == Direction::Inbound) {
        let local = ctx.conn.worker.metrics.local();
        ctx.record.span = Some(recording.server(&mut ctx.head, &route.config.name, info, local));
    }
}

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
async fn filter(ctx: &mut RequestCtx<'_>, view: &View, route: &CompiledRoute) -> Result<(), Failure> {
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
    exchange::guarded(ctx, None, sleep).await?;
    ctx.tick();
    then.map_or(Ok(()), Err)
}

/// Forwards the request to one of the route's clusters and its response to the client.
async fn forward(
    ctx: &mut RequestCtx<'_>,
    view: &View,
    route: &CompiledRoute,
    forward: &Forward,
    host_retry: Option<&RetryPolicy>,
) -> Result<(), Failure> {
    let picked = route.pick_cluster(forward, fastrand::u64(..));
    let (_, weighted) = picked.ok_or_else(|| no_cluster(route, "a cluster of weight 0"))?;
    let cluster = view.http.cluster(&weighted.cluster).ok_or_else(|| no_cluster(route, &weighted.cluster))?;
    ctx.record.cluster = Some(cluster.clone());
    edit::request(ctx, route, forward, weighted)?;
    ctx.deadline =
        forward.timeout.filter(|timeout| !timeout.is_zero()).map(|timeout| ctx.record.started + timeout);
    let retry = forward.retry.as_ref().or(host_retry);
    let hashed = match cluster.config.balance.hashes() {
        true => hash::of(&forward.hash, &ctx.head, ctx.conn.info.source),
        false => Hashed::default(),
    };
    let plan = Plan { route, forward, retry, cluster, weighted, upgrade: ctx.upgrade, hash: hashed.hash };
    let mut slot = None;
    retry::run(ctx, &plan, &mut slot).await?;
    let live = Live::present(&mut slot)?;
    edit::response(ctx, &plan, live);
    if let Some(cookie) = hashed.cookie {
        // A head without room goes on without it: the client is given another next time.
        let _ = live.head.append("set-cookie", cookie);
    }
    if let Some(status) = live.head.first("grpc-status").and_then(super::copy::parse_status) {
        ctx.record.grpc_status = Some(status);
    }
    ctx.record.details = Cow::Borrowed("via_upstream");
    exchange::deliver(ctx, live).await
}

fn no_cluster(route: &CompiledRoute, name: &str) -> Failure {
    let origin = route.config.origin.clone().map(Arc::new);
    let detail = format!("route \"{}\" names {name}", route.config.name);
    Failure::local(Stage::Route, FailureKind::NoCluster, detail).because_of(origin)
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
    };
    let local = respond::local(failure, &audience);
    if failure.kind == FailureKind::NoRoute {
        // It was not decided yet: a span has the name of its route.
        ctx.recording = trace::decide(&conn.worker.process, &ctx.view.http.config, &mut ctx.head);
    }
    let details = std::mem::take(&mut ctx.record.details);
    // The client may be gone by now; the failure is recorded either way.
    let _ = reply(ctx, local, "").await;
    ctx.record.details = details;
}

/// The span of a request that is answered here and has none yet; the record ends it, with the reason.
fn open_span(ctx: &mut RequestCtx<'_>) {
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
            recording.unsent(&ctx.head, route, cluster, local)
        }
    });
}

/// Sends a response of our own.
async fn reply(ctx: &mut RequestCtx<'_>, mut local: Local, details: &'static str) -> Result<(), Failure> {
    let Some(responder) = ctx.responder.take() else { return Ok(()) };
    ctx.record.status = local.head.status();
    ctx.record.grpc_status = local.grpc_status;
    ctx.record.details = Cow::Borrowed(details);
    open_span(ctx);
    let drain = ctx.conn.worker.process.drain.is_draining() || !ctx.keep;
    let framing = match &local.head {
        super::head::ResponseHead::H1(head) => head.framing(),
        super::head::ResponseHead::H2(_) => Framing::Chunked,
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

/// The headers that only our own components may set.
pub const OWN_PREFIX: &str = "x-outrigger-";

/// Removes what an application or an outsider must not say in a response.
pub fn strip_forged(head: &mut super::head::ResponseHead, trusted: bool) {
    if !trusted {
        head.remove(ERROR_HEADER);
    }
}
