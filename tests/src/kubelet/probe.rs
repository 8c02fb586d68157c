//! Probes of containers, with their periods and thresholds.

use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::action::{Action, Entry, Whose};

/// Between two questions of what is waited for: a kubelet asks less often, and tests wait.
const QUICK: Duration = Duration::from_millis(100);

/// A probe and what it has found.
pub(super) struct Checked {
    action: Action,
    entry: Entry,
    period: Duration,
    patience: Duration,
    /// In a row.
    successes: u32,
    failures: u32,
    /// Where what does not pass is waited for, such as readiness.
    waited_for: bool,
    next: Instant,
    asking: Option<JoinHandle<bool>>,
    passes: bool,
    passed: u32,
    failed: u32,
    /// Failures count once in a period, however often is asked.
    counts: Instant,
}

impl Checked {
    /// Of a probe whose first success is waited for.
    pub(super) fn awaited(probe: &core::Probe, whose: &Whose<'_>, entry: &Entry) -> Self {
        Self::new(probe, whose, entry, true)
    }

    /// Of a probe that passes until it has failed.
    pub(super) fn trusting(probe: &core::Probe, whose: &Whose<'_>, entry: &Entry) -> Self {
        Self::new(probe, whose, entry, false)
    }

    fn new(probe: &core::Probe, whose: &Whose<'_>, entry: &Entry, waited_for: bool) -> Self {
        let number = |number: Option<i32>, default| {
            number
                .and_then(|number| u32::try_from(number).ok())
                .filter(|number| *number > 0)
                .unwrap_or(default)
        };
        let seconds = |seconds, default| Duration::from_secs(number(seconds, default).into());
        let delay = Duration::from_secs(number(probe.initial_delay_seconds, 0).into());
        let period = seconds(probe.period_seconds, 10);
        let begin = Instant::now() + delay;
        Self {
            action: Action::of_probe(probe, whose),
            entry: entry.clone(),
            period,
            patience: seconds(probe.timeout_seconds, 1),
            successes: number(probe.success_threshold, 1),
            failures: number(probe.failure_threshold, 3),
            waited_for,
            next: begin,
            asking: None,
            passes: !waited_for,
            passed: 0,
            failed: 0,
            counts: begin,
        }
    }

    /// Asks when it is time to, waits for nobody, and answers what holds.
    pub(super) async fn passes(&mut self) -> bool {
        let now = Instant::now();
        match &mut self.asking {
            Some(asking) if asking.is_finished() => {
                let well = asking.await.unwrap_or(false);
                self.asking = None;
                self.hear(well, now);
                let quick = self.waited_for && !self.passes;
                self.next = now + if quick { QUICK } else { self.period };
            }
            Some(_) => {}
            None if now < self.next => {}
            None => {
                let (action, entry, patience) = (self.action.clone(), self.entry.clone(), self.patience);
                self.asking = Some(tokio::spawn(async move {
                    timeout(patience, action.done(&entry)).await.is_ok_and(|done| done.is_ok())
                }));
            }
        }
        self.passes
    }

    /// It has failed so often in a row as it may.
    pub(super) fn has_failed(&self) -> bool {
        self.failed >= self.failures
    }

    fn hear(&mut self, well: bool, now: Instant) {
        if well {
            (self.passed, self.failed) = (self.passed + 1, 0);
            self.passes |= self.passed >= self.successes;
            self.counts = now;
            return;
        }
        self.passed = 0;
        if now >= self.counts {
            self.failed += 1;
            self.counts = now + self.period;
        }
        self.passes &= !self.has_failed();
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        if let Some(asking) = &self.asking {
            asking.abort();
        }
    }
}
