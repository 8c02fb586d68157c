//! Asks a service whether a request may pass. The client is watched meanwhile; of the body as much is read as goes along, and read
//! again when the request is forwarded.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use outrigger_model::ext_authz::{AuthzBody, Edit, How, RouteAuthz};
use outrigger_model::route::Route;

use super::Stop;
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::breakage::{client_gone, downstream_failure};
use crate::http::call;
use crate::http::conn::RequestConfig;
use crate::http::context::RequestCtx;
use crate::http::filter::ResponseEdit;
use crate::http::filter::ext_authz::{Asked, Edits, ExtAuthz, Judgement};
use crate::http::h1::{Framing, H1Response};
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::upgrade::Upgrade;
use crate::http::watch::{self, Idle};

/// Says whether routes are to be looked for again.
pub(super) async fn ask(
    ctx: &mut RequestCtx<'_>,
    view: &RequestConfig,
    authz: &ExtAuthz,
    route: Option<&Route>,
) -> Result<bool, Stop> {
    let of_route = match route.and_then(|route| route.authz.get(&authz.config.name)) {
        Some(RouteAuthz::Off) => return Ok(false),
        Some(RouteAuthz::Asked(settings)) => Some(settings),
        None => None,
    };
    let settings = of_route.map_or(authz.config.body, |settings| settings.body(authz.config.body));
    // What follows the head of an upgrade is the tunnel's, and may never end.
    let settings = settings.filter(|_| ctx.upgrade == Upgrade::None);
    let mut partial = false;
    let mut most = 0;
    if let Some(settings) = settings {
        most = settings.max_bytes as usize;
        partial = read(ctx, settings).await?;
    }
    let came = match view.http.cluster(&authz.config.cluster) {
        Some(cluster) => {
            let size = match ctx.framing {
                // As in Envoy, which counts what it has seen by then.
                _ if settings.is_none() => 0,
                Framing::Length(length) => i64::try_from(length).unwrap_or(i64::MAX),
                Framing::None => 0,
                _ => -1,
            };
            let own = ctx.conn.worker.metrics.local().principal.as_ref();
            let own = own.map(ToString::to_string).unwrap_or_default();
            let call = authz.ask(
                &Asked {
                    connection: ctx.conn.info.view(),
                    own: &own,
                    head: &ctx.head,
                    settings,
                    body: held(ctx, most),
                    context: of_route.map(|settings| &settings.context),
                    partial,
                    size,
                },
                cluster,
            )?;
            let pools = &ctx.conn.worker.pools;
            let calling = async { Ok(call::send(pools, call).await) };
            watch::guarded(ctx, None, calling).await?
        }
        None => {
            let detail = format!("there is no cluster {}", authz.config.cluster);
            Err(Failure::local(Stage::Authorize, FailureKind::NoCluster(503), detail))
        }
    };
    ctx.tick();
    match authz.judge(came, ctx.record.is_grpc) {
        Judgement::Allowed(edits) => apply(ctx, edits)?,
        Judgement::Denied(local) => {
            ctx.record.flags.add("UAEX");
            return Err(Stop::Answered(local, "ext_authz_denied"));
        }
        Judgement::Failed(failure) if authz.config.failure_mode_allow => {
            tracing::debug!(%failure, "a request passes without authorization");
            if authz.config.failure_mode_allow_header {
                let _ = ctx.head.set("x-envoy-auth-failure-mode-allowed", "true");
            }
        }
        Judgement::Failed(failure) => {
            let origin = authz.origin(&ctx.input(None));
            return Err(failure.because_of(origin).into());
        }
    }
    Ok(authz.config.clear_route_cache)
}

/// What of the body goes along.
fn held<'c>(ctx: &'c RequestCtx<'_>, most: usize) -> &'c [u8] {
    let held = ctx.body.held();
    &held[..held.len().min(most)]
}

/// Reads as much of the body as goes along; whether there is more.
async fn read(ctx: &mut RequestCtx<'_>, settings: AuthzBody) -> Result<bool, Failure> {
    let most = settings.max_bytes as usize;
    if !ctx.reserve(most + 1) {
        let detail = "no memory for the body that goes along to be authorized";
        return Err(Failure::local(Stage::Authorize, FailureKind::Overload, detail));
    }
    // The application, which could tell the client to go on, has not heard of it yet.
    let waits = ctx.head.first("expect").is_some_and(|expect| expect.eq_ignore_ascii_case(b"100-continue"));
    if waits && let Some(responder) = &mut ctx.responder {
        ctx.head.remove("expect");
        responder.interim(&mut ResponseHead::H1(H1Response::new(100, Framing::None)));
    }
    let mut told = !waits;
    let mut idle = Idle::new(ctx);
    let mut parked = None;
    let paid = ctx.reserved();
    let whole = poll_fn(|cx| {
        if parked.is_none() {
            parked = Some(watch::park(ctx, cx));
        }
        if let Some(responder) = ctx.responder.as_mut().filter(|_| !told) {
            match responder.poll_flush(cx) {
                Poll::Ready(Ok(())) => told = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(client_gone(&error.to_string()))),
                Poll::Pending => return idle.poll(ctx, cx, None, 0).map(Err),
            }
        }
        match ctx.body.poll_hold(cx, most, paid) {
            Poll::Ready(Ok(whole)) => return Poll::Ready(Ok(whole)),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(downstream_failure(&error))),
            Poll::Pending => {}
        }
        let held = ctx.body.held().len() as u64;
        idle.poll(ctx, cx, None, held).map(Err)
    })
    .await?;
    ctx.tick();
    if !whole && !settings.allow_partial {
        let detail = format!("the body is longer than the {most} bytes that go along to be authorized");
        return Err(Failure::downstream(Stage::Authorize, FailureKind::BadRequest(413), detail));
    }
    Ok(!whole)
}

fn apply(ctx: &mut RequestCtx<'_>, edits: Edits) -> Result<(), Failure> {
    // What routing and framing are made of is not the service's to change.
    let is_ours =
        |name: &str| name.starts_with(':') || matches!(name, "host" | "content-length" | "transfer-encoding");
    // What the service says is not for the client to say in what applications take for it. The service itself may say both.
    let names = edits.request.iter().map(|edit| &edit.name).chain(&edits.remove);
    let own: Vec<String> = names.filter(|name| !is_ours(&name.to_ascii_lowercase())).cloned().collect();
    if !own.is_empty() {
        ctx.head.remove_lookalikes_of(&own);
        ctx.body.keep_out(&Arc::new(own));
    }
    // In Envoy's order: what is set, then what is added to what is there, then what is taken out.
    let (added, put): (Vec<&Edit>, Vec<&Edit>) =
        edits.request.iter().filter(|edit| !is_ours(&edit.name)).partition(|edit| edit.how == How::Append);
    for edit in put.into_iter().chain(added) {
        set(&mut ctx.head, edit).map_err(|why| {
            let detail = format!("the service that authorizes set {}: {why}", edit.name);
            Failure::local(Stage::Authorize, FailureKind::BadRequest(400), detail)
        })?;
    }
    for name in edits.remove.iter().filter(|name| !is_ours(&name.to_ascii_lowercase())) {
        ctx.head.remove(name);
    }
    if !edits.response.is_empty() {
        let response = edits.response.into_iter().filter(|edit| !is_ours(&edit.name));
        let response =
            response.map(|Edit { name, value, how }| ResponseEdit { name: name.into(), value, how });
        ctx.extras().response.extend(response);
    }
    Ok(())
}

fn set(head: &mut RequestHead, edit: &Edit) -> Result<(), String> {
    let (name, value) = (edit.name.as_str(), edit.value.as_slice());
    let done = match edit.how {
        How::Append if head.has(name) => head.append(name, value),
        How::Append => Ok(()),
        How::Set | How::IfAbsent | How::IfPresent => head.set(name, value),
    };
    done.map_err(|error| error.to_string())
}
