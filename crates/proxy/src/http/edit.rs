//! Edits of heads: what identifies a request, what a route rewrites, what must not pass.

use std::borrow::Cow;

use outrigger_model::listener::Direction;
use outrigger_model::path::PathNormalization;
use outrigger_model::route::edits::Write;
use outrigger_model::route::table::CompiledRoute;
use outrigger_model::route::{Forward, HeaderEdits, Rewrite, WeightedCluster};

use crate::failure::{Failure, FailureKind, Stage};
use crate::http::attempt::{Live, Plan, decimal};
use crate::http::authority::{bad, put, replace};
use crate::http::context::RequestCtx;
use crate::http::facts::{self, About};
use crate::http::h1::{EditError, MAX_HEAD};
use crate::http::head::{RequestHead, ResponseHead, scheme_of};
use crate::http::respond::{ERROR_HEADER, ORIGINAL_PATH};
use crate::http::written;

/// The headers that only our own components may set.
const OWN_PREFIX: &str = "x-outrigger-";

/// Milliseconds from the end of the request to the head of its response; each proxy on the way replaces it by its own, as
/// Envoys do.
const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

const CLIENT_CERT: &str = "x-forwarded-client-cert";

const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// Forwarding headers as an Envoy sidecar sets them, and a request id; what only sidecars may say is removed.
pub fn identify(ctx: &mut RequestCtx<'_>) {
    let conn = ctx.conn;
    let head = &mut ctx.head;
    if let Some(proved) = conn.info.peer.as_ref().filter(|_| conn.info.direction == Direction::Inbound) {
        conn.info.introduction.listen(proved, head);
    }
    head.remove_prefix(OWN_PREFIX);
    if !conn.is_trusted() {
        head.remove_prefix("x-envoy-");
    }
    head.remove_lookalikes();
    // Only what this connection proved may stand here.
    match &conn.client_cert {
        Some(text) => put(head, CLIENT_CERT, text.as_bytes()),
        None => {
            head.remove(CLIENT_CERT);
        }
    }
    settle_scheme(head);
    if !head.has("x-request-id") {
        let mut id = [0; uuid::fmt::Hyphenated::LENGTH];
        let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes())
            .into_uuid()
            .hyphenated()
            .encode_lower(&mut id);
        put(head, "x-request-id", id.as_bytes());
    }
}

/// The scheme is the request's own on its whole way: HTTP/2 says it, and so does an absolute target. HTTP/1 has nowhere else
/// to say it than `x-forwarded-proto`, which the first sidecar sets; as Envoy does.
fn settle_scheme(head: &mut RequestHead) {
    let said = head.first(FORWARDED_PROTO).map(scheme_of);
    match (said, &mut *head) {
        (Some(Some(scheme)), RequestHead::H1(head)) => head.set_scheme(scheme),
        (Some(_), _) => {}
        (None, head) => put(head, FORWARDED_PROTO, head.scheme().as_bytes()),
    }
}

/// Brings the path into its one form, before anything is decided by it: routing, policy and the upstream see the same.
///
/// # Errors
/// It has none.
#[inline]
pub fn normalize(head: &mut RequestHead, mode: PathNormalization) -> Result<(), Failure> {
    match mode.apply(head.path()) {
        Ok(None) => Ok(()),
        Ok(Some(path)) => renamed(head, &path),
        Err(refusal) => Err(bad_path(refusal.to_string())),
    }
}

#[cold]
fn renamed(head: &mut RequestHead, path: &str) -> Result<(), Failure> {
    head.set_path(path).map_err(|error| bad_path(error.to_string()))
}

#[cold]
fn bad_path(why: String) -> Failure {
    Failure::downstream(Stage::Route, FailureKind::BadRequest(400), why)
}

/// Edits of the route and of the picked cluster.
///
/// # Errors
/// When the result would not be a valid request: the client's own text made it so.
pub fn request(
    ctx: &mut RequestCtx<'_>,
    route: &CompiledRoute,
    forward: &Forward,
    weighted: &WeightedCluster,
) -> Result<(), Failure> {
    let mode = ctx.view.http.config.path;
    for edits in [&weighted.request_headers, &route.config.request_headers] {
        // Nearly always.
        if !edits.is_empty() {
            written::apply_request(ctx, route, edits).map_err(bad)?;
        }
    }
    let head = &mut ctx.head;
    let rewrite = &forward.rewrite;
    // Before the path, of which it may be made.
    if weighted.authority.is_some() || rewrite.authority.is_some() || rewrite.authority_of.is_some() {
        authority(head, route, rewrite, weighted).map_err(bad)?;
    }
    if let Some(path) = route.rewritten(rewrite, head.path()) {
        let original = head.path().to_owned();
        if path != original {
            head.set_path(&path).map_err(bad)?;
            // `/a../b` with its prefix `/a` replaced by `/` must not climb.
            normalize(head, mode)?;
        }
        if head.size() + ORIGINAL_PATH.len() + original.len() <= MAX_HEAD {
            put(head, ORIGINAL_PATH, original.as_bytes());
            ctx.record.rewritten = head.has(ORIGINAL_PATH);
        }
    }
    Ok(())
}

fn authority(
    head: &mut RequestHead,
    route: &CompiledRoute,
    rewrite: &Rewrite,
    weighted: &WeightedCluster,
) -> Result<(), EditError> {
    if let Some(of_share) = &weighted.authority {
        head.set_authority(of_share)?;
    }
    let Some(new) = route.authority(rewrite, head).map(Cow::into_owned) else { return Ok(()) };
    replace(head, rewrite, &new)
}

fn apply_response(head: &mut ResponseHead, edits: &HeaderEdits, about: &About<'_, '_>) {
    for name in &edits.remove {
        head.remove(name);
    }
    let writes = edits.writes(|name| head.has(name));
    if edits.has_commands() {
        for (write, value) in facts::said(writes, &about.with(Some(head))) {
            write_response(head, write, &value);
        }
        return;
    }
    for write in writes {
        write_response(head, write, write.pair().1.plain().unwrap_or_default().as_bytes());
    }
}

fn write_response(head: &mut ResponseHead, write: Write<'_>, value: &[u8]) {
    let (name, done) = match write {
        Write::Set(name, _) => (name, head.set(name, value)),
        Write::Add(name, _) => (name, head.append(name, value)),
    };
    if let Err(error) = done {
        tracing::debug!(header = name, %error, "a response header could not be edited");
    }
}

#[inline(always)]
fn put_response(head: &mut ResponseHead, name: &str, value: &[u8]) {
    if head.set(name, value).is_err() {
        tracing::debug!(header = name, "a response head has no room for a header of ours");
    }
}

/// Edits of a redirect or an answer that the route itself gives.
pub fn direct(ctx: &RequestCtx<'_>, route: &CompiledRoute, head: &mut ResponseHead) {
    if !route.config.response_headers.is_empty() {
        let about = About { details: "direct_response", ..About::request(ctx, route) };
        apply_response(head, &route.config.response_headers, &about);
    }
}

/// Edits of the answer that we make of a failure to forward: they are the route's and the picked share's, as with an Envoy.
#[cold]
pub fn failed(ctx: &mut RequestCtx<'_>, route: &CompiledRoute, forward: &Forward, failure: &Failure) {
    let picked = ctx.record.cluster.as_ref().map(|cluster| &*cluster.name);
    let share = forward.clusters.iter().find(|share| picked.is_none_or(|name| *name == *share.cluster));
    let share = share.filter(|_| picked.is_some() || forward.clusters.len() == 1);
    let all = share.map(|share| &share.response_headers).into_iter().chain([&route.config.response_headers]);
    all.for_each(|edits| written::refused(ctx, route, edits, failure));
}

/// Edits of the response.
pub fn response(ctx: &RequestCtx<'_>, plan: &Plan<'_>, live: &mut Live) {
    let peer = plan.cluster.uses_mesh(&live.endpoint);
    if let Some(time) = ctx.record.upstream_time {
        let mut digits = [0; 10];
        let millis = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        put_response(&mut live.head, SERVICE_TIME, decimal(millis, &mut digits));
    }
    strip_forged(&mut live.head, peer && ctx.conn.info.direction == Direction::Outbound);
    for edits in [&plan.weighted.response_headers, &plan.route.config.response_headers] {
        if !edits.is_empty() {
            let about = About { details: "via_upstream", ..About::request(ctx, plan.route) };
            apply_response(&mut live.head, edits, &about);
        }
    }
}

/// Removes what an application or an outsider must not say in a response.
fn strip_forged(head: &mut ResponseHead, trusted: bool) {
    if !trusted {
        head.remove(ERROR_HEADER);
    }
}
