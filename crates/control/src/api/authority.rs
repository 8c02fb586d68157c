//! `/v1/revocations` and `/v1/authority`: who is trusted no longer, and the keys that all trust hangs on.

use std::time::{Duration, SystemTime};

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use outrigger_identity::Revocation;
use outrigger_identity::authority::files::Step;

use super::types::{
    AuthorityBody, ErrorBody, ForgetQuery, ReinstatedBody, RevocationBody, RevocationRequest,
    RevokedEntryBody,
};
use super::{Api, Problem, operator};
use crate::canonical;
use crate::instance::Instance;
use crate::registry::api::Caller;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/revocations", get(revoked).post(revoke).delete(reinstate))
        .route("/v1/authority", get(authority))
        .route("/v1/authority/rotate-root", post(rotate_root))
        .route("/v1/authority/forget-old-roots", post(forget_old_roots))
}

fn entry(api: &Api, request: &RevocationRequest) -> Result<Revocation, Problem> {
    let wrong = |text: String| Problem::new(StatusCode::BAD_REQUEST, text);
    match (&request.namespace, &request.service_account, &request.serial) {
        (Some(namespace), Some(account), None) => {
            super::identities::identity(api, namespace, account).map(Revocation::Identity)
        }
        (None, None, Some(serial)) => Revocation::parse(&format!("serial:{serial}")).map_err(wrong),
        _ => Err(wrong(
            "name an identity by namespace and serviceAccount, or one certificate by serial".to_owned(),
        )),
    }
}

/// All that are revoked.
#[utoipa::path(get, path = "/v1/revocations", responses((status = 200, body = Vec<RevokedEntryBody>)))]
pub(super) async fn revoked(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<RevokedEntryBody>>, Problem> {
    operator(&caller)?;
    let published = api.shared.keeper.published();
    let body = |stored: &crate::store::records::StoredRevocation| RevokedEntryBody {
        entry: stored.entry.clone(),
        by: stored.by.clone(),
        at: stored.at,
    };
    Ok(Json(published.revocations.values().map(body).collect()))
}

/// Cuts off an identity, with its join tokens, or a single certificate. Connections of the control plane end at once,
/// those between sidecars when they have the generation.
#[utoipa::path(post, path = "/v1/revocations", request_body = RevocationRequest,
    responses((status = 200, body = RevocationBody), (status = 400, body = ErrorBody)))]
pub(super) async fn revoke(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<RevocationRequest>, JsonRejection>,
) -> Result<Json<RevocationBody>, Problem> {
    let by = operator(&caller)?;
    let Json(request) = body?;
    let entry = entry(&api, &request)?;
    let generation = api.shared.keeper.revoke(entry.clone(), by).await?;
    let tokens = match &entry {
        Revocation::Identity(identity) => super::identities::revoke_all(&api, identity).await?,
        Revocation::Serial(_) => 0,
    };
    tracing::info!(%entry, by, generation, tokens, "revoked");
    Ok(Json(RevocationBody { entry: entry.to_string(), generation, tokens }))
}

/// Takes a revocation back. Certificates that have not ended are good again; join tokens do not come back.
#[utoipa::path(delete, path = "/v1/revocations", params(RevocationRequest),
    responses((status = 200, body = ReinstatedBody), (status = 404, body = ErrorBody)))]
pub(super) async fn reinstate(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<RevocationRequest>, QueryRejection>,
) -> Result<Json<ReinstatedBody>, Problem> {
    let by = operator(&caller)?;
    let Query(request) = query?;
    let entry = entry(&api, &request)?;
    let generation = api.shared.keeper.reinstate(entry.clone()).await?;
    tracing::info!(%entry, by, generation, "reinstated");
    Ok(Json(ReinstatedBody { entry: entry.to_string(), generation }))
}

/// The roots that workloads trust, the one that signs first.
#[utoipa::path(get, path = "/v1/authority", responses((status = 200, body = AuthorityBody)))]
pub(super) async fn authority(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<AuthorityBody>, Problem> {
    operator(&caller)?;
    Ok(Json(body(&api)))
}

fn body(api: &Api) -> AuthorityBody {
    let authority = &api.shared.authority;
    AuthorityBody {
        trust_domain: authority.trust_domain().to_owned(),
        roots: authority.bundle().fingerprints(),
    }
}

/// Makes a new root and signs with it; the old ones stay trusted until they are forgotten.
#[utoipa::path(post, path = "/v1/authority/rotate-root",
    responses((status = 200, body = AuthorityBody), (status = 409, body = ErrorBody)))]
pub(super) async fn rotate_root(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<AuthorityBody>, Problem> {
    let by = operator(&caller)?;
    change(&api, Step::RotateRoot).await?;
    let body = body(&api);
    tracing::info!(by, roots = ?body.roots, "the root was rotated");
    Ok(Json(body))
}

/// Ends a rotation: certificates under old roots are trusted no longer. Refused while some may be in use.
#[utoipa::path(post, path = "/v1/authority/forget-old-roots", params(ForgetQuery),
    responses((status = 200, body = AuthorityBody), (status = 409, body = ErrorBody)))]
pub(super) async fn forget_old_roots(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<ForgetQuery>, QueryRejection>,
) -> Result<Json<AuthorityBody>, Problem> {
    let by = operator(&caller)?;
    let Query(ForgetQuery { force }) = query?;
    let authority = api.shared.authority.clone();
    let life = Duration::from_secs(api.shared.settings.certificate_ttl_seconds);
    let since = authority.root_made();
    let left = (since + life).duration_since(SystemTime::now()).unwrap_or_default();
    if !force && !left.is_zero() {
        let text = format!(
            "certificates under the old roots may be in use for another {} s, and all would be refused; wait, or force it",
            left.as_secs() + 1
        );
        return Err(Problem::new(StatusCode::CONFLICT, text));
    }
    let published = api.shared.keeper.published();
    let newest = authority.fingerprints().into_iter().next().unwrap_or_default();
    let instances = published.world.instances().map(AsRef::as_ref);
    if let Some(text) = left_behind(instances, &newest).filter(|_| !force) {
        return Err(Problem::new(StatusCode::CONFLICT, text));
    }
    // Looked at once more where replicas share it: another may have rotated it since.
    change(&api, Step::ForgetOldRoots(if force { Duration::ZERO } else { life })).await?;
    let body = body(&api);
    tracing::info!(by, roots = ?body.roots, "old roots were forgotten");
    Ok(Json(body))
}

/// Pods told by their names.
const MOST_TOLD: usize = 5;

/// Pods that were given the old roots alone: once they lose their memory, as when their node is started anew, they would find no control plane
/// that they trust, and not start.
fn left_behind<'i>(instances: impl Iterator<Item = &'i Instance>, newest: &str) -> Option<String> {
    let knows = |roots: &String| roots.split(',').any(|root| !root.is_empty() && newest.starts_with(root));
    let old = |one: &&Instance| one.metadata.get(canonical::ROOTS).is_some_and(|roots| !knows(roots));
    let mut all: Vec<&str> = instances.filter(old).map(|one| one.id.as_str()).collect();
    all.sort_unstable();
    (!all.is_empty()).then(|| {
        let told = all.iter().take(MOST_TOLD).copied().collect::<Vec<_>>().join(", ");
        let more = if all.len() > MOST_TOLD { ", …" } else { "" };
        format!(
            "{} Pods were made before the rotation and were given the old roots alone ({told}{more}): they would not start again once their node has. \
             Make them anew (kubectl rollout restart), or force it",
            all.len()
        )
    })
}

/// Where replicas share the authority, for all of them.
async fn change(api: &Api, step: Step) -> Result<(), Problem> {
    let failed = |text: String| Problem::new(StatusCode::CONFLICT, text);
    let authority = api.shared.authority.clone();
    if let Some(replicas) = &api.shared.replicas
        && let Some(done) = replicas.step(step, &authority).await
    {
        return done.map_err(failed);
    }
    // Keys are made and files written, which takes its time.
    let work = move || match step {
        Step::ForgetOldRoots(_) => authority.forget_old_roots(),
        _ => authority.rotate_root(),
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| failed(error.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{Protocol, sample};

    #[test]
    fn pods_that_know_old_roots_alone_are_told_before_these_are_forgotten() {
        let pod = |id: &str, roots: Option<&str>| {
            let mut one = sample(id, "web", "v1", "10.0.0.1", 80, Protocol::Http);
            one.metadata.extend(roots.map(|roots| (canonical::ROOTS.to_owned(), roots.to_owned())));
            one
        };
        let left = |all: &[Instance]| left_behind(all.iter(), "abcdef0123456789ffff");
        let new = [
            pod("a", None),
            pod("b", Some("abcdef0123456789")),
            pod("c", Some("0000000000000000,abcdef0123456789")),
        ];
        assert_eq!(left(&new), None);
        let old: Vec<Instance> = (0..7).map(|n| pod(&format!("old-{n}"), Some("0000000000000000"))).collect();
        let told = left(&[&new[..], &old[..]].concat()).unwrap();
        assert!(
            told.starts_with("7 Pods ") && told.contains("(old-0, old-1, old-2, old-3, old-4, …)"),
            "{told}"
        );
        let told = left(&[pod("d", Some(""))]).unwrap();
        assert!(told.starts_with("1 Pods ") && told.contains("(d)"), "{told}");
    }
}
