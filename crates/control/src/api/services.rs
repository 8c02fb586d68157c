//! `/v1/services`: what instances and descriptions add up to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use axum::extract::{Extension, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Api, Problem, operator};
use crate::instance::{Protocol, State as InstanceState};
use crate::registry::api::Caller;

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/v1/services", get(services))
}

/// A service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceBody {
    /// Its host.
    pub host: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its ports and what they speak.
    pub ports: BTreeMap<u16, Protocol>,
    /// Its instances, by id, and their states.
    pub instances: BTreeMap<String, InstanceState>,
    /// What stands for it in DNS answers of sidecars, IPv4 first.
    #[schema(value_type = Vec<String>)]
    #[serde(default)] // an older control plane has none
    pub virtual_addresses: Vec<IpAddr>,
    /// The objects that describe it, as `ServiceEntry shop/pay`.
    #[serde(default)]
    pub described_by: Vec<String>,
    /// The registries that its instances are from, as status calls them; `api` is the management API.
    #[serde(default)]
    pub registries: BTreeSet<String>,
}

/// All services.
#[utoipa::path(get, path = "/v1/services", responses((status = 200, body = Vec<ServiceBody>)))]
pub(super) async fn services(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<ServiceBody>>, Problem> {
    operator(&caller)?;
    let published = api.shared.keeper.published();
    let registry = |id: &str| Some(published.claims.owner(id)?.0.registry.to_string());
    let body = |service: &crate::world::Service| ServiceBody {
        host: service.host.to_string(),
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        ports: service.ports.clone(),
        instances: service.instances.iter().map(|instance| (instance.id.clone(), instance.state)).collect(),
        virtual_addresses: service.virtual_addresses.iter().collect(),
        described_by: service.described.iter().map(|intent| intent.origin.to_string()).collect(),
        registries: service.instances.iter().filter_map(|instance| registry(&instance.id)).collect(),
    };
    Ok(Json(published.world.services().map(body).collect()))
}
