//! What may still be done for a request that is hedged.

use outrigger_model::route::{HedgeDelay, HedgePolicy};
use tokio::time::{Duration, Instant};

use crate::http::attempt::plan::Plan;

/// What may still be done for a request, over all of its attempts.
pub struct Hedging<'h> {
    pub(super) policy: &'h HedgePolicy,
    /// Rivals that may still be sent.
    pub(super) left: u32,
    /// Attempts so far.
    pub(super) sent: u32,
    /// Which of them the present one is, of which the others are rivals.
    pub(super) number: u32,
}

impl<'h> Hedging<'h> {
    /// Attempts so far.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// For a request.
    pub fn new(policy: &'h HedgePolicy) -> Self {
        Self { policy, left: policy.attempts.saturating_sub(1), sent: 0, number: 0 }
    }

    /// An attempt begins that is nobody's rival. What met a dead pooled connection is the same one on a fresh connection.
    pub(super) fn begin(&mut self, fresh: bool) {
        if !fresh {
            self.sent += 1;
            self.number = self.sent;
        }
    }

    /// How long the others are waited for; `None`: for ever.
    pub(super) fn wait(&self, plan: &Plan<'_>, now: Instant) -> Option<Duration> {
        let by_time = match self.policy.delay {
            Some(HedgeDelay::Fixed(delay)) => Some(delay),
            Some(HedgeDelay::Percentile { percent, min_samples }) => {
                plan.cluster.latencies().percentile(percent, min_samples, now)
            }
            None => None,
        };
        let per_try = per_try(plan).filter(|_| self.policy.on_per_try_timeout);
        by_time.into_iter().chain(per_try).min()
    }
}

fn per_try(plan: &Plan<'_>) -> Option<Duration> {
    plan.retry.and_then(|retry| retry.per_try_timeout)
}
