//! Why an endpoint is ejected, and how often that was.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use outrigger_model::cluster::Outlier;

/// Why an endpoint was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Cause {
    /// So many 5xx in a row.
    Consecutive5xx,
    /// So many gateway errors in a row.
    ConsecutiveGateway,
    /// It refuses connections.
    Refused,
    /// So often in a row no answer, where that counts apart.
    ConsecutiveLocal,
    /// It succeeds much less often than the others.
    SuccessRate,
    /// The same of what brings no answer.
    SuccessRateLocal,
    /// It fails too often.
    FailurePercentage,
    /// The same of what brings no answer.
    FailurePercentageLocal,
}

/// All, in the order of their numbers, with the names of Envoy's statistics.
const ALL: [(Cause, &str); 8] = [
    (Cause::Consecutive5xx, "consecutive_5xx"),
    (Cause::ConsecutiveGateway, "consecutive_gateway_failure"),
    (Cause::Refused, "refused"),
    (Cause::ConsecutiveLocal, "consecutive_local_origin_failure"),
    (Cause::SuccessRate, "success_rate"),
    (Cause::SuccessRateLocal, "local_origin_success_rate"),
    (Cause::FailurePercentage, "failure_percentage"),
    (Cause::FailurePercentageLocal, "local_origin_failure_percentage"),
];

impl Cause {
    /// Of its number, plus one.
    pub(super) fn of(number: u32) -> Self {
        let index = number.saturating_sub(1) as usize;
        ALL.get(index).map_or(Self::Consecutive5xx, |(cause, _)| *cause)
    }

    /// Of a hundred cases, in how many it has consequences.
    pub(super) fn enforcing(self, rules: &Outlier) -> u32 {
        let rate = rules.success_rate.unwrap_or_default();
        let share = rules.failure_percentage.unwrap_or_default();
        match self {
            Self::Consecutive5xx => rules.enforcing.consecutive_5xx,
            Self::ConsecutiveGateway => rules.enforcing.consecutive_gateway,
            Self::ConsecutiveLocal => rules.enforcing.consecutive_local,
            Self::Refused => 100,
            Self::SuccessRate => rate.enforcing,
            Self::SuccessRateLocal => rate.enforcing_local,
            Self::FailurePercentage => share.enforcing,
            Self::FailurePercentageLocal => share.enforcing_local,
        }
    }
}

/// How often something was found, and how often somebody was ejected for it.
#[derive(Debug, Default)]
pub struct Counts {
    by_cause: [[AtomicU64; 2]; ALL.len()],
    overflow: AtomicU64,
}

impl Counts {
    pub(super) fn found(&self, cause: Cause) {
        self.by_cause[cause as usize][0].fetch_add(1, Relaxed);
    }

    pub(super) fn ejected(&self, cause: Cause) {
        self.by_cause[cause as usize][1].fetch_add(1, Relaxed);
    }

    pub(super) fn overflow(&self) {
        self.overflow.fetch_add(1, Relaxed);
    }

    /// Ejections.
    pub fn total(&self) -> u64 {
        self.by_cause.iter().map(|[_, ejected]| ejected.load(Relaxed)).sum()
    }

    /// What was found, and did not lead to an ejection because too many are ejected.
    pub fn overflows(&self) -> u64 {
        self.overflow.load(Relaxed)
    }

    /// Name, found, ejected of each cause that rules have.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let named = ALL.iter().zip(&self.by_cause).filter(|((cause, _), _)| *cause != Cause::Refused);
        named.map(|((_, name), [found, ejected])| (*name, found.load(Relaxed), ejected.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_has_the_number_of_its_place() {
        for (number, (cause, _)) in (0..).zip(ALL) {
            assert_eq!((cause as u32, Cause::of(number + 1)), (number, cause));
        }
    }
}
