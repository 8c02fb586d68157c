//! `/v1/explain`: what becomes of a request, and why; `/v1/describe`: what holds for a service.

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Extension, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::types::ErrorBody;
use super::{Api, Problem, Shared, operator};
use crate::explain::body::{ExplainRequest, Explanation};
use crate::explain::describe::{self, DescribeQuery, Description};
use crate::explain::{self, Beside, Connected, Unexplained};
use crate::registry::api::Caller;

/// A head of 60 KiB, its every byte escaped.
const MOST_BYTES: usize = 512 << 10;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/explain", post(explain))
        .route("/v1/describe", get(describe))
        .layer(DefaultBodyLimit::max(MOST_BYTES))
}

impl From<Unexplained> for Problem {
    fn from(unexplained: Unexplained) -> Self {
        match unexplained {
            Unexplained::Invalid(text) => Self::new(StatusCode::BAD_REQUEST, text),
            Unexplained::Unknown(text) => Self::new(StatusCode::NOT_FOUND, text),
        }
    }
}

/// What becomes of a request of a workload, and why: the listener, route, clusters, endpoints and policies that take it, and the
/// rules that do not. Nothing is sent.
#[utoipa::path(post, path = "/v1/explain", request_body = ExplainRequest,
    responses((status = 200, body = Explanation), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "Nobody is called so")))]
pub(super) async fn explain(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<ExplainRequest>, JsonRejection>,
) -> Result<Json<Explanation>, Problem> {
    operator(&caller)?;
    let Json(asked) = body?;
    let world = api.shared.keeper.published().world.clone();
    let connected = connected(&api.shared, world.generation);
    // A service of thousands of endpoints takes its time: not on the runtime's threads.
    let explained = tokio::task::spawn_blocking(move || explain::explain(&world, &connected, &asked)).await;
    let explained =
        explained.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(explained?))
}

/// The effective rules of a service as its clients have them: routes, subsets with their endpoints, mTLS modes and policies, each with
/// the object that it comes from; and what is wrong with any of these.
#[utoipa::path(get, path = "/v1/describe", params(DescribeQuery),
    responses((status = 200, body = Description), (status = 404, body = ErrorBody, description = "Nobody is called so")))]
pub(super) async fn describe(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<DescribeQuery>, QueryRejection>,
) -> Result<Json<Description>, Problem> {
    operator(&caller)?;
    let Query(query) = query?;
    let published = api.shared.keeper.published();
    // Seconds for tens of thousands of rules: not on the runtime's threads.
    let described = tokio::task::spawn_blocking(move || {
        let objects: Vec<_> = published.rules.values().filter_map(|rule| rule.object.clone()).collect();
        describe::describe(&published.world, &objects, &query)
    });
    let described = described
        .await
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(described?))
}

/// Who stands beside which instance.
fn connected(shared: &Shared, generation: u64) -> Connected {
    let stale = shared.board.in_force(generation).waiting;
    let clients = shared.board.clients().into_iter();
    let beside = clients.filter_map(|client| {
        let in_force = !stale.iter().any(|name| name == client.name());
        Some((client.instance?, Beside { scope: client.scope, in_force }))
    });
    beside.collect()
}
