//! How many requests are under way, as latency allows: `envoy.filters.http.adaptive_concurrency`. The controller lives beside the
//! configuration (`runtime/concurrency.rs`).

use std::sync::Arc;

use tokio::time::Instant;

use super::{State, Verdict};
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::runtime::concurrency::Controller;

/// The limit of a listener.
#[derive(Debug)]
pub struct Limit(pub Arc<Controller>);

impl Limit {
    pub fn on_request(&self) -> Verdict {
        match self.0.admit(Instant::now()) {
            Ok(permit) => Verdict::Keep(State::Permit(permit)),
            Err(limit) => Verdict::Fail(self.failure(limit)),
        }
    }

    /// Nobody behind has seen the request: a caller may try another instance.
    #[cold]
    fn failure(&self, limit: u32) -> Failure {
        let controller = &self.0;
        let kind = FailureKind::ConcurrencyLimit { limit, status: controller.rules.status };
        let failure = Failure::local(Stage::Authorize, kind, controller.place.clone());
        Failure { retry: Retry::Safe, ..failure }.because_of(controller.origin.clone())
    }
}
