//! Injected faults: `envoy.filters.http.fault`. They act once per request, before the retry loop, as in Envoy.

use outrigger_model::resource::Flaw;
use outrigger_model::route::Fault;

use super::{Act, Build, Input, Place, Verdict};
use crate::failure::{Failure, FailureKind, Stage};

/// The listener-wide fault.
#[derive(Debug, Default)]
pub struct FaultFilter(Fault);

impl Build for FaultFilter {
    type Config = Fault;

    fn build(config: &Fault, _place: &Place<'_>) -> Result<Self, Flaw> {
        Ok(Self(config.clone()))
    }
}

impl Act for FaultFilter {
    /// A route's own replaces it.
    fn on_request(&self, input: &Input<'_>) -> Verdict {
        plan(input.route.and_then(|route| route.config.fault.as_ref()).unwrap_or(&self.0))
    }

    fn judges(&self) -> bool {
        false
    }
}

/// Draws for one request: delay and abort independently, the delay first.
fn plan(fault: &Fault) -> Verdict {
    let abort = fault.abort.as_ref().filter(|abort| hits(abort.percentage)).map(|abort| {
        Failure::local(Stage::Route, FailureKind::FaultAbort(abort.status), "injected by a rule")
    });
    match (fault.delay.as_ref().filter(|delay| hits(delay.percentage)), abort) {
        (Some(delay), abort) => Verdict::Delay(delay.duration, abort),
        (None, Some(failure)) => Verdict::Fail(failure),
        (None, None) => Verdict::Continue,
    }
}

/// Whether this request is one of so many.
pub fn hits(percentage: f64) -> bool {
    percentage >= 100.0 || (percentage > 0.0 && fastrand::f64() * 100.0 < percentage)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_model::route::{FaultAbort, FaultDelay, FaultStatus};

    use super::*;

    #[test]
    fn share_of_faults_follows_the_percentage() {
        let abort = |percentage| Fault {
            delay: None,
            abort: Some(FaultAbort { status: FaultStatus::Http(500), percentage }),
        };
        fastrand::seed(7);
        let count =
            |percentage| (0..10_000).filter(|_| matches!(plan(&abort(percentage)), Verdict::Fail(_))).count();
        assert_eq!(count(0.0), 0);
        assert_eq!(count(100.0), 10_000);
        // Ten percent of 10,000, standard deviation 30.
        assert!((820..1180).contains(&count(10.0)));
    }

    #[test]
    fn delay_goes_before_abort() {
        let fault = Fault {
            delay: Some(FaultDelay { duration: Duration::from_secs(3), percentage: 100.0 }),
            abort: Some(FaultAbort { status: FaultStatus::Grpc(14), percentage: 100.0 }),
        };
        let Verdict::Delay(delay, Some(failure)) = plan(&fault) else { panic!() };
        assert_eq!((delay.as_secs(), failure.kind), (3, FailureKind::FaultAbort(FaultStatus::Grpc(14))));
    }
}
