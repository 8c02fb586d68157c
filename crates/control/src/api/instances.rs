//! `/v1/instances`: registrations.

use axum::extract::DefaultBodyLimit;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, Path, State};
use axum::routing::{get, put};
use axum::{Json, Router};

use super::types::{ChangedBody, ErrorBody, InstanceBody, StateBody};
use super::{Api, Problem};
use crate::instance::Instance;
use crate::keeper::{Published, Refused};
use crate::registry::api::Caller;

/// A registration has at most [`crate::instance::MAX_BYTES`]; the rest is for spaces.
const MAX_BODY: usize = 4 * crate::instance::MAX_BYTES;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/instances", get(list).post(register))
        .route("/v1/instances/{id}", get(read).delete(deregister))
        .route("/v1/instances/{id}/heartbeat", put(heartbeat))
        .route("/v1/instances/{id}/state", put(set_state))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

/// All instances, of files too. A workload sees its own.
#[utoipa::path(get, path = "/v1/instances", responses((status = 200, body = Vec<InstanceBody>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Json<Vec<InstanceBody>> {
    let published = api.shared.keeper.published();
    let visible = published.world.instances().filter(|instance| caller.may_touch(instance).is_ok());
    Json(visible.map(|instance| body(&published, instance)).collect())
}

/// One instance. A workload reads its own.
#[utoipa::path(get, path = "/v1/instances/{id}", params(("id" = String, Path)),
    responses((status = 200, body = InstanceBody), (status = 404, body = ErrorBody)))]
pub(super) async fn read(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<InstanceBody>, Problem> {
    let published = api.shared.keeper.published();
    let instance = published.world.instance(&id).filter(|instance| caller.may_touch(instance).is_ok());
    match instance {
        Some(instance) => Ok(Json(body(&published, instance))),
        None => {
            let unknown = Refused::Unknown(format!("there is no instance \"{id}\""));
            Err(refusal(&api, &caller, &id, unknown))
        }
    }
}

/// A refusal on its way out. What a workload was refused the operator sees; whose an instance is that is not the workload's own,
/// only the operator.
fn refusal(api: &Api, caller: &Caller, id: &str, refused: Refused) -> Problem {
    if let Caller::Workload { .. } = caller {
        let published = api.shared.keeper.published();
        let foreign = published.claims.owner(id).and_then(|(_, instance)| caller.may_touch(instance).err());
        let told = matches!(refused, Refused::Forbidden(_) | Refused::Conflict(_) | Refused::Replaced { .. });
        if let Some(why) = foreign.or_else(|| told.then(|| refused.to_string())) {
            api.shared.rejections.note("registration", caller.name(), &why);
        }
    }
    refused.into()
}

fn body(published: &Published, instance: &Instance) -> InstanceBody {
    let registration = published.registrations.get(&instance.id);
    let by = registration.and_then(|registration| registration.stored.by.as_ref());
    let owner = published.claims.owner(&instance.id);
    InstanceBody {
        instance: instance.clone(),
        registry: owner.map_or_else(String::new, |(of, _)| of.registry.to_string()),
        by: by.map(ToString::to_string),
    }
}

/// Registers an instance, or replaces its registration. Also renews its lease.
#[utoipa::path(post, path = "/v1/instances", request_body = Instance,
    responses((status = 200, body = ChangedBody), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn register(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<Instance>, JsonRejection>,
) -> Result<Json<ChangedBody>, Problem> {
    let Json(instance) = body?;
    let id = instance.id.clone();
    let result = api.shared.keeper.register(instance, caller.clone()).await;
    let generation = result.map_err(|refused| refusal(&api, &caller, &id, refused))?;
    Ok(Json(ChangedBody { generation }))
}

/// Renews the lease of an instance. 404 means: register again.
#[utoipa::path(put, path = "/v1/instances/{id}/heartbeat", params(("id" = String, Path)),
    responses((status = 200, body = ChangedBody), (status = 404, body = ErrorBody)))]
pub(super) async fn heartbeat(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<ChangedBody>, Problem> {
    let result = api.shared.keeper.heartbeat(&id, caller.clone()).await;
    let generation = result.map_err(|refused| refusal(&api, &caller, &id, refused))?;
    Ok(Json(ChangedBody { generation }))
}

/// Changes the state of an instance; only `running` takes new requests. `maintenance` is an operator's to begin and to end.
#[utoipa::path(put, path = "/v1/instances/{id}/state", params(("id" = String, Path)), request_body = StateBody,
    responses((status = 200, body = ChangedBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn set_state(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: Result<Json<StateBody>, JsonRejection>,
) -> Result<Json<ChangedBody>, Problem> {
    let Json(StateBody { state }) = body?;
    let result = api.shared.keeper.set_state(&id, state, caller.clone()).await;
    let generation = result.map_err(|refused| refusal(&api, &caller, &id, refused))?;
    Ok(Json(ChangedBody { generation }))
}

/// Ends a registration.
#[utoipa::path(delete, path = "/v1/instances/{id}", params(("id" = String, Path)),
    responses((status = 200, body = ChangedBody), (status = 404, body = ErrorBody)))]
pub(super) async fn deregister(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<ChangedBody>, Problem> {
    let result = api.shared.keeper.deregister(&id, caller.clone()).await;
    let generation = result.map_err(|refused| refusal(&api, &caller, &id, refused))?;
    Ok(Json(ChangedBody { generation }))
}
