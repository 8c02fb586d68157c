//! The OpenAPI document, made from the handlers.

use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi;

use super::{Api, authority, explain, identities, instances, rules, services, status, types};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Outrigger management API",
        description = "Rules, registrations, identities and status of a mesh."
    ),
    paths(
        rules::apply,
        rules::list,
        rules::read,
        rules::history,
        rules::remove,
        rules::analysis,
        instances::list,
        instances::read,
        instances::register,
        instances::heartbeat,
        instances::set_state,
        instances::deregister,
        services::services,
        status::status,
        status::rules,
        status::wait,
        identities::create_token,
        identities::list_tokens,
        identities::revoke_tokens,
        identities::issue,
        identities::trust_bundle,
        authority::revoked,
        authority::revoke,
        authority::reinstate,
        authority::authority,
        authority::rotate_root,
        authority::forget_old_roots,
        explain::explain,
        explain::describe,
    ),
    components(schemas(types::FindingBody))
)]
struct Document;

/// The document.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/openapi.json", get(|| async { Json(document()) }))
}
