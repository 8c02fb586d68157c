//! What is remembered of a request that has ended.

use outrigger_model::listener::Direction;
use tokio::time::Instant;

use super::RequestCtx;
use crate::http::redact;
use crate::http::respond::ORIGINAL_PATH;
use crate::recent::Ended;
use crate::record::StreamRecord;
use crate::record::began::began;

/// Of text that a peer chose, so many bytes are kept.
const TEXT: usize = 512;

/// Whether it is one that somebody may ask about.
#[inline]
pub(super) fn has_failed(record: &StreamRecord) -> bool {
    record.status >= 500 || record.failure.is_some() || !record.flags.is_empty()
}

#[cold]
pub(super) fn of(ctx: &RequestCtx<'_>) -> Ended {
    let (record, head, view) = (&ctx.record, &ctx.head, &ctx.view);
    let header = |name: &'static str| head.first(name).map(String::from_utf8_lossy);
    let took = record.ended.unwrap_or_else(Instant::now).saturating_duration_since(record.started);
    // Not this much before now: it may have ended a while ago.
    let began = began(record.started);
    let path = header(ORIGINAL_PATH).filter(|_| record.rewritten).unwrap_or_else(|| head.path().into());
    let routes = &view.http.routes;
    let route = ctx.route.and_then(|id| routes.routes().nth(id as usize)).map(|route| &route.config);
    let (cluster, failure) = (record.cluster.as_deref(), record.failure.as_deref());
    Ended {
        id: cut(&header("x-request-id").unwrap_or_default()),
        began: format!("{began:.6}"),
        millis: took.as_secs_f64() * 1e3,
        outbound: record.conn.direction == Direction::Outbound,
        source: record.conn.source.to_string(),
        peer: record.conn.peer.as_ref().map(ToString::to_string),
        method: cut(head.method()),
        authority: cut(head.authority()),
        path: cut(&redact::path(&path)),
        generation: view.generation(),
        routes: routes.name().to_owned(),
        route: route.map(|route| route.name.clone()),
        route_origin: route.and_then(|route| route.origin.as_ref()).map(ToString::to_string),
        cluster: cluster.map(|cluster| cluster.name.to_string()),
        cluster_origin: cluster.and_then(|cluster| cluster.origin.as_ref()).map(ToString::to_string),
        endpoint: record.endpoint.as_ref().map(|endpoint| endpoint.address.to_string()),
        attempts: record.attempts,
        status: record.status,
        grpc_status: record.grpc_status,
        flags: record.flags.to_string(),
        details: cut(&record.details),
        error: failure.map(|failure| cut(&failure.to_string())),
        error_origin: failure.and_then(|failure| failure.origin.as_ref()).map(ToString::to_string),
    }
}

/// What is kept of text that a peer chose.
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT)].to_owned()
}
