//! `/v1/explain`: what becomes of a request, and why.

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};

use super::types::ErrorBody;
use super::{Api, Problem, Shared, operator};
use crate::explain::body::{ExplainRequest, Explanation};
use crate::explain::{self, Beside, Connected, Unexplained};
use crate::registry::api::Caller;

/// A head of 60 KiB, its every byte escaped.
const MOST_BYTES: usize = 512 << 10;

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/v1/explain", post(explain)).layer(DefaultBodyLimit::max(MOST_BYTES))
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

/// Who stands beside which instance.
pub(super) fn connected(shared: &Shared, generation: u64) -> Connected {
    let stale = shared.board.in_force(generation).waiting;
    let clients = shared.board.clients().into_iter();
    let beside = clients.filter_map(|client| {
        let in_force = !stale.iter().any(|name| name == client.name());
        Some((client.instance?, Beside { scope: client.scope, in_force }))
    });
    beside.collect()
}
