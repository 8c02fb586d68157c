//! What answers say of endpoints for the policies that go by it: how long they took, and what load they report.

use std::time::Duration;

use tokio::time::Instant;

use super::attempt::live::Live;
use super::load_report::{Awaited, of_head, tell};
use crate::runtime::endpoint::{EndpointState, Outcome};
use crate::runtime::measures::Measures;

/// As long an attempt without an answer counts at least.
const UNANSWERED: Duration = Duration::from_secs(1);

/// An attempt that began at `since` is over, or its response has begun.
#[cold]
pub fn take(
    measures: &Measures,
    endpoint: &EndpointState,
    outcome: Outcome,
    live: Option<&mut Live>,
    since: Instant,
) {
    let now = Instant::now();
    let is_answer = matches!(outcome, Outcome::Status(_));
    match (measures, live) {
        (Measures::Latency { decay, .. }, Some(live)) if is_answer => {
            endpoint.load.latency().note(live.taken(now), *decay, now);
        }
        // Who fails quickly is not quick.
        (Measures::Latency { decay, .. }, _) if outcome.is_unanswered() => {
            let latency = endpoint.load.latency();
            let known = latency.estimate(Duration::MAX, now).unwrap_or_default();
            latency.note(known.max(UNANSWERED), *decay, now);
        }
        // Given up: of who has not answered it is known that an answer takes longer, or nobody would ever know it of who never does.
        (Measures::Latency { decay, initial }, _) if outcome == Outcome::LocalFailure => {
            let took = now.saturating_duration_since(since);
            endpoint.load.latency().at_least(took, *initial, *decay, now);
        }
        (Measures::Reports(reports), Some(live)) if is_answer => match of_head(&live.head) {
            Some(report) => tell(reports, endpoint, report),
            None => {
                live.reports = Some(Box::new(Awaited::new(reports, &live.endpoint)));
            }
        },
        _ => {}
    }
}
