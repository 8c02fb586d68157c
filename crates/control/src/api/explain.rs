//! `/v1/explain`: what becomes of a request, and why; `/v1/describe`: what holds for a service.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Extension, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::sync::Semaphore;

use super::types::ErrorBody;
use super::{Api, ApiParts, Problem, operator};
use crate::explain::body::{ExplainRequest, Explanation};
use crate::explain::describe::{self, DescribeQuery, Description};
use crate::explain::{self, Beside, Connected, Unexplained};
use crate::registry::api::Caller;

/// A head of 60 KiB, its every byte escaped.
const MOST_BYTES: usize = 512 << 10;

/// Answers that are made at once: a dashboard that asks in a loop takes no more of the processors and of the blocking threads.
const AT_ONCE: usize = 2;
/// For its turn an answer waits so long.
const TURN: Duration = Duration::from_secs(10);

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
        (status = 404, body = ErrorBody, description = "Nobody is called so"),
        (status = 503, body = ErrorBody, description = "Too many are asked for at once")))]
pub(super) async fn explain(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<ExplainRequest>, JsonRejection>,
) -> Result<Json<Explanation>, Problem> {
    operator(&caller)?;
    let Json(asked) = body?;
    let turns = api.shared.explaining.clone();
    let work = move || {
        let world = api.shared.keeper.published().world.clone();
        explain::explain(&world, &connected(&api.shared, world.generation), &asked)
    };
    Ok(Json(turns.on(work).await??))
}

/// The effective rules of a service as its clients have them: routes, subsets with their endpoints, mTLS modes and policies, each with
/// the object that it comes from; and what is wrong with any of these.
#[utoipa::path(get, path = "/v1/describe", params(DescribeQuery),
    responses((status = 200, body = Description), (status = 404, body = ErrorBody, description = "Nobody is called so"),
        (status = 503, body = ErrorBody, description = "Too many are asked for at once")))]
pub(super) async fn describe(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<DescribeQuery>, QueryRejection>,
) -> Result<Json<Description>, Problem> {
    operator(&caller)?;
    let Query(query) = query?;
    let turns = api.shared.explaining.clone();
    let work = move || {
        let published = api.shared.keeper.published();
        let objects: Vec<_> = published.rules.values().filter_map(|rule| rule.object.clone()).collect();
        describe::describe(&published.world, &objects, &query)
    };
    Ok(Json(turns.on(work).await??))
}

/// Places for answers in the making. One takes seconds with tens of thousands of rules or endpoints, and is not made on the runtime's
/// threads.
#[derive(Clone)]
pub(crate) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Turns {
    /// Does it when there is a place. That is given back when the work has ended, whether or not anybody still waits for it.
    async fn on<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
        let turn = tokio::time::timeout(TURN, self.0.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            let text = format!(
                "{AT_ONCE} others are being explained or described, and none ended in {TURN:?}; ask again, and less often"
            );
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, text));
        };
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        done.await.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    }
}

/// Who stands beside which instance.
fn connected(shared: &ApiParts, generation: u64) -> Connected {
    let stale: HashSet<String> = shared.board.in_force(generation).waiting.into_iter().collect();
    let clients = shared.board.clients().into_iter();
    let beside = clients.filter_map(|client| {
        let in_force = !stale.contains(client.name());
        Some((client.instance?, Beside { scope: client.scope, in_force }))
    });
    beside.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_wait_for_their_turn_and_not_for_ever() {
        let turns = Turns(Arc::new(Semaphore::new(1)));
        let (go, wait) = mpsc::channel::<()>();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let first = turns.clone();
        let first = tokio::spawn(async move {
            let work = move || {
                begun.send(()).unwrap();
                wait.recv().unwrap();
            };
            first.on(work).await
        });
        begins.await.unwrap();
        // Work that runs holds the paused clock, too.
        let (late, ()) = tokio::join!(turns.on(|| ()), tokio::time::advance(TURN));
        let late = late.unwrap_err();
        assert_eq!(late.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(late.body.error.contains("ask again"), "{}", late.body.error);
        // Who goes away leaves the work, and with it the place taken.
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(turns.0.available_permits(), 0);
        go.send(()).unwrap();
        assert_eq!(turns.on(|| 7).await.unwrap(), 7);
    }
}
