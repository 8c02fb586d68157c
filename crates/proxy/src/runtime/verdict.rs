//! What active health checks say of one endpoint.
//!
//! ```text
//! presumed ──success──▶ healthy ◀──so many successes in a row── unhealthy
//!     └──so many failures──┴──so many failures in a row──────────▶  ▲
//! waiting ──success──▶ healthy                                      │
//!     └──failure────────────────────────────────────────────────────┘
//! ```
//!
//! Who is there when nothing of the cluster has been judged yet is presumed to be well; who comes later waits for its first success.
//! The state lives beside the endpoint and is kept by address. Who takes requests is a matter of the endpoints' table, which is made anew
//! when a verdict changes: a pick looks at none of this.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use outrigger_model::cluster::HealthCheck;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

/// Bytes of a reason that are kept.
const REASON: usize = 256;

/// What is thought of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Not judged yet, like all others when it came: it takes requests.
    #[default]
    Presumed,
    /// Not judged yet; it takes none unless nobody else does.
    Waiting,
    /// It passes.
    Healthy,
    /// It fails: it takes none.
    Unhealthy,
}

/// Why a check failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub why: String,
    /// It said so itself, by what the check takes for a word: no number of failures is waited for.
    pub at_once: bool,
    /// No answer came.
    pub network: bool,
}

/// What has become of an endpoint by a check.
#[derive(Debug, PartialEq, Eq)]
pub struct Flip {
    pub from: Verdict,
    pub to: Verdict,
}

/// How an endpoint is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    pub verdict: Verdict,
    pub since: Instant,
    /// Why the last check failed; absent if it did not.
    pub why: Option<String>,
    /// Failures in a row, up to now.
    pub failures: u32,
    /// When it was asked last.
    pub asked: Option<Instant>,
}

/// What became of the checks of one cluster.
#[derive(Debug, Default)]
pub struct Counts {
    successes: AtomicU64,
    failures: AtomicU64,
    network: AtomicU64,
}

impl Counts {
    pub(super) fn count(&self, said: &Result<(), Failed>) {
        match said {
            Ok(()) => self.successes.fetch_add(1, Relaxed),
            Err(failed) => {
                self.network.fetch_add(u64::from(failed.network), Relaxed);
                self.failures.fetch_add(1, Relaxed)
            }
        };
    }

    /// Successes, failures, and those of them that were no answer.
    pub fn all(&self) -> [u64; 3] {
        [&self.successes, &self.failures, &self.network].map(|count| count.load(Relaxed))
    }
}

#[derive(Debug)]
struct CheckState {
    verdict: Verdict,
    since: Instant,
    successes: u32,
    failures: u32,
    why: Option<String>,
    asked: Option<Instant>,
    /// Nothing has been heard by the settings of now: the first success counts as enough.
    fresh: bool,
}

/// The state of one endpoint.
#[derive(Debug)]
pub struct Checked(Mutex<CheckState>);

impl Checked {
    /// Of an endpoint that was not checked so far.
    pub fn new(verdict: Verdict) -> Self {
        Self(Mutex::new(CheckState {
            verdict,
            since: Instant::now(),
            successes: 0,
            failures: 0,
            why: None,
            asked: None,
            fresh: true,
        }))
    }

    /// Whether it takes requests.
    pub fn serves(&self) -> bool {
        matches!(self.0.lock().verdict, Verdict::Presumed | Verdict::Healthy)
    }

    /// What is thought of it.
    pub fn verdict(&self) -> Verdict {
        self.0.lock().verdict
    }

    /// How it is.
    pub fn look(&self) -> Look {
        let state = self.0.lock();
        let (verdict, since, why) = (state.verdict, state.since, state.why.clone());
        Look { verdict, since, why, failures: state.failures, asked: state.asked }
    }

    /// It is asked in another way from now on. What is thought of it stays until there is an answer.
    pub fn begin_anew(&self) {
        let mut state = self.0.lock();
        (state.successes, state.failures, state.fresh) = (0, 0, true);
    }

    /// Nobody asks it any more.
    pub fn forget(&self) {
        let mut state = self.0.lock();
        *state = CheckState {
            verdict: Verdict::Presumed,
            since: Instant::now(),
            why: None,
            asked: None,
            ..*state
        };
        (state.successes, state.failures, state.fresh) = (0, 0, true);
    }

    /// Takes what a check said; what it changes, if anything.
    pub fn note(&self, rules: &HealthCheck, said: Result<(), Failed>, now: Instant) -> Option<Flip> {
        let mut state = self.0.lock();
        state.asked = Some(now);
        let from = state.verdict;
        let to = match said {
            Ok(()) => {
                (state.failures, state.why) = (0, None);
                state.successes = state.successes.saturating_add(1);
                let enough = state.fresh || state.successes >= rules.healthy_threshold;
                if enough || from != Verdict::Unhealthy { Verdict::Healthy } else { from }
            }
            Err(failed) => {
                state.successes = 0;
                state.failures = state.failures.saturating_add(1);
                let enough = failed.at_once || state.failures >= rules.unhealthy_threshold;
                state.why = Some(shortened(failed.why));
                if enough || from == Verdict::Waiting { Verdict::Unhealthy } else { from }
            }
        };
        state.fresh = false;
        if to == from {
            return None;
        }
        (state.verdict, state.since) = (to, now);
        Some(Flip { from, to })
    }
}

/// The beginning, at a character.
fn shortened(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON));
    reason
}

#[cfg(test)]
mod tests {
    use outrigger_model::cluster::{CheckHow, TcpCheck};

    use super::Verdict::{Healthy, Presumed, Unhealthy, Waiting};
    use super::*;

    fn rules(unhealthy_threshold: u32, healthy_threshold: u32) -> HealthCheck {
        let rules = HealthCheck::new(CheckHow::Tcp(TcpCheck::default()));
        HealthCheck { unhealthy_threshold, healthy_threshold, ..rules }
    }

    /// `+` passes, `-` fails, `!` says that it is not well.
    fn after(checked: &Checked, rules: &HealthCheck, results: &str) -> Vec<Verdict> {
        let note = |result| {
            let failed = || Failed { why: "it is not".into(), at_once: result == '!', network: true };
            let said = if result == '+' { Ok(()) } else { Err(failed()) };
            let turn = checked.note(rules, said, Instant::now());
            assert!(turn.is_none_or(|turn| turn.to == checked.verdict() && turn.from != turn.to));
            checked.verdict()
        };
        results.chars().map(note).collect()
    }

    #[test]
    fn thresholds_decide_but_for_the_first_success() {
        for (first, results, verdicts) in [
            (Presumed, "--+---+", &[Presumed, Presumed, Healthy, Healthy, Healthy, Unhealthy, Unhealthy][..]),
            (Presumed, "---++", &[Presumed, Presumed, Unhealthy, Unhealthy, Healthy]),
            (Presumed, "---+-++", &[Presumed, Presumed, Unhealthy, Unhealthy, Unhealthy, Unhealthy, Healthy]),
            (Waiting, "+-", &[Healthy, Healthy]),
            (Waiting, "-++", &[Unhealthy, Unhealthy, Healthy]),
            (Presumed, "+!+", &[Healthy, Unhealthy, Unhealthy]),
        ] {
            assert_eq!(after(&Checked::new(first), &rules(3, 2), results), verdicts, "{first:?} {results}");
        }
    }

    #[test]
    fn other_settings_keep_the_verdict_and_believe_the_first_success() {
        let checked = Checked::new(Presumed);
        after(&checked, &rules(1, 3), "-");
        checked.begin_anew();
        assert_eq!(checked.verdict(), Unhealthy);
        assert_eq!(after(&checked, &rules(1, 3), "+"), [Healthy]);
        let checked = Checked::new(Waiting);
        after(&checked, &rules(1, 3), "-");
        checked.forget();
        assert!(checked.serves());
        assert_eq!(checked.look().why, None);
    }

    #[test]
    fn a_reason_is_kept_and_bounded() {
        let checked = Checked::new(Presumed);
        let why = "ä".repeat(1000);
        checked.note(&rules(3, 1), Err(Failed { why, at_once: false, network: true }), Instant::now());
        let look = checked.look();
        assert_eq!((look.why.unwrap().len(), look.failures, look.verdict), (256, 1, Presumed));
    }
}
