//! How many requests are under way, as latency allows: `envoy.filters.http.adaptive_concurrency`. The controller lives beside the
//! configuration (`runtime/concurrency.rs`).

use std::sync::Arc;

use outrigger_model::concurrency::AdaptiveConcurrency;
use outrigger_model::resource::Flaw;
use tokio::time::Instant;

use super::act::add;
use super::{Act, Build, Input, Place, State, Tallies, Verdict};
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::runtime::concurrency::Controller;

/// The limit of a listener.
#[derive(Debug)]
pub struct Limit(Arc<Controller>);

impl Build for Limit {
    type Config = AdaptiveConcurrency;

    fn build(config: &AdaptiveConcurrency, place: &Place<'_>) -> Result<Self, Flaw> {
        Ok(Self(place.rates.controllers.of(config, place.name)))
    }
}

impl Act for Limit {
    fn on_request(&self, _input: &Input<'_>) -> Verdict {
        match self.0.admit(Instant::now()) {
            Ok(permit) => Verdict::Keep(State::Permit(permit)),
            Err(limit) => Verdict::Fail(self.failure(limit)),
        }
    }

    fn on_end(&self, state: State, now: Instant) {
        if let State::Permit(permit) = state {
            permit.answered(now);
        }
    }

    fn tally<'t>(&'t self, all: &mut Tallies<'t>) {
        add(&mut all.controllers, &self.0);
    }
}

impl Limit {
    /// Nobody behind has seen the request: a caller may try another instance.
    #[cold]
    fn failure(&self, limit: u32) -> Failure {
        let controller = &self.0;
        let kind = FailureKind::ConcurrencyLimit { limit, status: controller.rules.status };
        let failure = Failure::local(Stage::Authorize, kind, controller.place.clone());
        Failure { retry: Retry::Safe, ..failure }.because_of(controller.origin.clone())
    }
}
