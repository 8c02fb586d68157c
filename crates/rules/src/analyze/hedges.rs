//! Hedges that are never sent.

use std::time::Duration;

use outrigger_model::route::HedgeDelay;

use super::{Scene, finding};
use crate::finding::{Finding, Severity, code};

pub(super) fn unsent(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for rule in &scene.routes {
        for route in &rule.http {
            let Some(forward) = route.forward() else { continue };
            let Some(hedge) = &forward.hedge else { continue };
            let per_try = forward.retry.as_ref().and_then(|retry| retry.per_try_timeout);
            let timeout = forward.timeout.unwrap_or(Duration::MAX);
            let why = match (hedge.delay, per_try) {
                _ if hedge.on_per_try_timeout && per_try.is_none() => {
                    "hedgeOnPerTryTimeout has no effect: the route's retry has no perTryTimeout; write one"
                        .to_owned()
                }
                (Some(HedgeDelay::Fixed(delay)), _) if delay >= timeout => {
                    format!(
                        "a hedge after {delay:?} is never sent: the timeout of the whole request is {timeout:?}"
                    )
                }
                (Some(HedgeDelay::Fixed(delay)), Some(per_try))
                    if delay >= per_try && !hedge.on_per_try_timeout =>
                {
                    format!(
                        "a hedge after {delay:?} is never sent: an attempt ends after {per_try:?}, its perTryTimeout"
                    )
                }
                _ => continue,
            };
            findings.push(finding(Severity::Warning, code::HEDGE, &rule.origin, &route.place, why));
        }
    }
}
