//! When results become a verdict: after so many of a kind in a row, the first verdict too.

use serde::Serialize;

/// What a check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Too few results.
    Unknown,
    /// The application is well.
    Passing,
    /// It is not.
    Failing,
}

/// Counts results in a row.
#[derive(Debug)]
pub(super) struct Threshold {
    healthy: u32,
    unhealthy: u32,
    verdict: Verdict,
    last: Option<bool>,
    row: u32,
}

impl Threshold {
    pub(super) fn new(healthy: u32, unhealthy: u32) -> Self {
        Self { healthy, unhealthy, verdict: Verdict::Unknown, last: None, row: 0 }
    }

    /// A result, and what is to be thought with it.
    pub(super) fn note(&mut self, passed: bool) -> Verdict {
        self.row = if self.last == Some(passed) { self.row.saturating_add(1) } else { 1 };
        self.last = Some(passed);
        match passed {
            true if self.row >= self.healthy => self.verdict = Verdict::Passing,
            false if self.row >= self.unhealthy => self.verdict = Verdict::Failing,
            _ => {}
        }
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Failing, Passing, Unknown};
    use super::*;

    #[test]
    fn only_results_in_a_row_change_a_verdict() {
        for (healthy, unhealthy, results, verdicts) in [
            (1, 3, "+---+", &[Passing, Passing, Passing, Failing, Passing][..]),
            (1, 3, "--+--", &[Unknown, Unknown, Passing, Passing, Passing]),
            (2, 1, "+-++-", &[Unknown, Failing, Failing, Passing, Failing]),
            (1, 1, "-+-", &[Failing, Passing, Failing]),
            (
                3,
                3,
                "++--++---",
                &[Unknown, Unknown, Unknown, Unknown, Unknown, Unknown, Unknown, Unknown, Failing],
            ),
        ] {
            let mut threshold = Threshold::new(healthy, unhealthy);
            let said: Vec<Verdict> = results.chars().map(|result| threshold.note(result == '+')).collect();
            assert_eq!(said, verdicts, "{healthy} {unhealthy} {results}");
        }
    }
}
