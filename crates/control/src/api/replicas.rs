//! `/v1/replica`: what replicas ask each other, at the xDS port and by our own identity.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use outrigger_identity::{PeerInfo, control_plane_id};

use super::types::StatusBody;
use super::{Api, Problem, status};
use crate::enforced;
use crate::others::{At, Report};
use crate::replicas::{LOAD, Load, REPORT, Replicas, SHARED, STATUS};

/// For other replicas, and nobody else.
pub(crate) fn router(api: Api) -> Router {
    let routes = Router::new()
        .route(REPORT, get(report))
        .route(STATUS, get(own_status))
        .route(SHARED, get(shared))
        .route(LOAD, get(load));
    routes.with_state(api.clone()).layer(from_fn_with_state(api, replica))
}

async fn replica(State(api): State<Api>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<PeerInfo>();
    let valid = peer.filter(|peer| peer.is_certificate_valid(std::time::SystemTime::now()));
    let identity = valid.and_then(|peer| peer.identity.as_ref());
    let own = control_plane_id(&api.shared.settings.trust_domain).ok();
    if identity.is_none() || identity != own.as_ref() {
        let text = "that is for other replicas of the control plane".to_owned();
        return Problem::new(StatusCode::FORBIDDEN, text).into_response();
    }
    next.run(request).await
}

async fn report(State(api): State<Api>) -> Json<Report> {
    let shared = &api.shared;
    let published = shared.keeper.published();
    let at = |(key, rule): (&String, &std::sync::Arc<crate::keeper::Rule>)| {
        let generation = rule.object.as_ref()?.json["metadata"]["generation"].as_i64();
        Some((key.replacen('/', " ", 1), At { object: generation, since: rule.stored().generation }))
    };
    Json(Report {
        proxies: shared.board.reported(),
        rules: published.rules.iter().filter_map(at).collect(),
        refused: shared.board.refused_rules(),
        gaps: enforced::gaps(&published, &shared.board.clients()),
    })
}

/// Nothing where there are no others.
async fn shared(State(api): State<Api>) -> Json<serde_json::Value> {
    let replicas = api.shared.replicas.as_deref();
    let shared = replicas.map(Replicas::shared);
    Json(shared.unwrap_or_else(|| serde_json::json!({})))
}

/// Likewise.
async fn load(State(api): State<Api>) -> Json<Load> {
    let replicas = api.shared.replicas.as_deref();
    Json(replicas.map(Replicas::load).unwrap_or_default())
}

async fn own_status(State(api): State<Api>) -> Json<StatusBody> {
    Json(status::body(&api.shared))
}

#[cfg(test)]
mod tests;
