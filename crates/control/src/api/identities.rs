//! `/v1/tokens`, `/v1/identities`, `/v1/trust-bundle`: how workloads come to an identity.

use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use outrigger_identity::JoinFile;
use outrigger_model::identity::SpiffeId;

use super::types::{
    ErrorBody, IdentityBody, IdentityRequest, RevokedBody, TokenBody, TokenRequest, TrustBundleBody,
};
use super::{Api, Problem, operator};
use crate::registry::api::Caller;
use crate::tokens::Grant;

/// A join file lies around; after a day it proves nothing any more.
const DEFAULT_TTL: u64 = 24 * 3600;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/tokens", post(create_token).get(list_tokens))
        .route("/v1/tokens/{namespace}/{service_account}", delete(revoke_tokens))
        .route("/v1/identities", post(issue))
        .route("/v1/trust-bundle", get(trust_bundle))
}

pub(super) fn identity(api: &Api, namespace: &str, service_account: &str) -> Result<SpiffeId, Problem> {
    let wrong = |text: String| Problem::new(StatusCode::BAD_REQUEST, text);
    if namespace.is_empty() || service_account.is_empty() {
        return Err(wrong("namespace and serviceAccount: both are needed".to_owned()));
    }
    SpiffeId::workload(&api.shared.settings.trust_domain, namespace, service_account)
        .map_err(|error| wrong(error.to_string()))
}

/// By it replicas know each other.
fn not_our_own(identity: &SpiffeId) -> Result<(), Problem> {
    match outrigger_identity::control_plane_id(identity.trust_domain()) {
        Ok(control) if control == *identity => {
            Err(Problem::new(StatusCode::FORBIDDEN, format!("{identity} is the control plane's own")))
        }
        _ => Ok(()),
    }
}

/// Makes a join token; answers the join file, which holds its secret.
#[utoipa::path(post, path = "/v1/tokens", request_body = TokenRequest,
    responses((status = 200, body = Object, description = "The join file"), (status = 400, body = ErrorBody)))]
pub(super) async fn create_token(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<TokenRequest>, JsonRejection>,
) -> Result<Json<JoinFile>, Problem> {
    let by = operator(&caller)?;
    let Json(request) = body?;
    let identity = identity(&api, &request.namespace, &request.service_account)?;
    not_our_own(&identity)?;
    let ttl =
        Some(request.ttl_seconds.unwrap_or(DEFAULT_TTL)).filter(|ttl| *ttl > 0).map(Duration::from_secs);
    let ranges = request.ranges.iter().map(|range| range.parse()).collect::<Result<_, String>>();
    let ranges = ranges.map_err(|why| Problem::new(StatusCode::BAD_REQUEST, format!("ranges: {why}")))?;
    let (services, uses) = (request.services, request.uses);
    let grant = Grant { identity: identity.clone(), services, ranges, ttl, uses };
    let (secret, token) = api.shared.tokens.create(grant).await?;
    tracing::info!(id = %identity, by, expires = ?token.expires, "join token made");
    let address = request.address.unwrap_or_else(|| api.shared.advertised.clone());
    let roots = api.shared.authority.bundle().to_pem(&api.shared.settings.trust_domain);
    Ok(Json(JoinFile::new(&address, roots, secret, identity)))
}

/// All join tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", responses((status = 200, body = Vec<TokenBody>)))]
pub(super) async fn list_tokens(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<TokenBody>>, Problem> {
    operator(&caller)?;
    let body = |token: crate::store::records::StoredToken| TokenBody {
        identity: token.identity.to_string(),
        services: token.services,
        ranges: token.ranges.iter().map(ToString::to_string).collect(),
        created: token.created,
        expires: token.expires,
        uses_left: token.uses_left,
    };
    Ok(Json(api.shared.tokens.list().into_iter().map(body).collect()))
}

/// Revokes all join tokens of an identity. Its certificates stay good until they end.
#[utoipa::path(delete, path = "/v1/tokens/{namespace}/{service_account}",
    params(("namespace" = String, Path), ("service_account" = String, Path)),
    responses((status = 200, body = RevokedBody)))]
pub(super) async fn revoke_tokens(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path((namespace, service_account)): Path<(String, String)>,
) -> Result<Json<RevokedBody>, Problem> {
    let by = operator(&caller)?;
    let identity = identity(&api, &namespace, &service_account)?;
    let revoked = revoke_all(&api, &identity).await?;
    tracing::info!(id = %identity, by, revoked, "join tokens revoked");
    Ok(Json(RevokedBody { revoked }))
}

/// Those that another replica has just made, too.
pub(super) async fn revoke_all(api: &Api, identity: &SpiffeId) -> Result<usize, Problem> {
    if let Some(replicas) = &api.shared.replicas {
        let away = |why: String| Problem::new(StatusCode::SERVICE_UNAVAILABLE, why);
        replicas.refresh_tokens().await.map_err(away)?;
    }
    Ok(api.shared.tokens.revoke(identity).await?)
}

/// Makes a key and a certificate, for a workload without an agent.
#[utoipa::path(post, path = "/v1/identities", request_body = IdentityRequest,
    responses((status = 200, body = IdentityBody), (status = 400, body = ErrorBody)))]
pub(super) async fn issue(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<IdentityRequest>, JsonRejection>,
) -> Result<Json<IdentityBody>, Problem> {
    let by = operator(&caller)?;
    let Json(request) = body?;
    let identity = identity(&api, &request.namespace, &request.service_account)?;
    not_our_own(&identity)?;
    let ttl = request.ttl_seconds.map(Duration::from_secs);
    let issued = api.shared.authority.issue_key_and_certificate(&identity, ttl);
    let issued =
        issued.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    tracing::info!(id = %identity, by, "key and certificate issued");
    let not_after = Timestamp::try_from(issued.certificate.not_after())
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(IdentityBody {
        identity: identity.to_string(),
        key: issued.certificate.key_pem(),
        certificate: issued.certificate.chain_pem(),
        roots: issued.bundle.to_pem(identity.trust_domain()),
        not_after,
    }))
}

/// Whom the mesh trusts. Everybody who gets this far may know it.
#[utoipa::path(get, path = "/v1/trust-bundle", responses((status = 200, body = TrustBundleBody)))]
pub(super) async fn trust_bundle(State(api): State<Api>) -> Json<TrustBundleBody> {
    let trust_domain = api.shared.settings.trust_domain.clone();
    let roots = api.shared.authority.bundle().to_pem(&trust_domain);
    Json(TrustBundleBody { trust_domain, roots })
}
