//! Loads that endpoints report with their answers, and the weights that these make (gRFC A58).
//!
//! ```text
//! none ──report──▶ fresh, for the blackout ──▶ weighed ──no report for the expiration──▶ none
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use outrigger_model::cluster::LoadReports;
use outrigger_model::load_report::LoadReport;
use tokio::time::Instant;

/// Weights of a round are fractions of this.
const HEAVIEST: f64 = 1000.0;

/// What one endpoint reports.
#[derive(Debug)]
pub struct Reported {
    epoch: Instant,
    /// Bits of a float.
    weight: AtomicU64,
    /// Milliseconds after the epoch, plus one: since when it reports, and when it did last; 0 is never.
    since: AtomicU64,
    last: AtomicU64,
}

/// How reports of a cluster are weighed, and what became of them.
#[derive(Debug)]
pub struct Reports {
    pub rules: LoadReports,
    counts: Arc<Counts>,
}

/// Reports that count, and that do not.
#[derive(Debug, Default)]
pub struct Counts {
    taken: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    /// Those that count, and those that do not.
    pub fn all(&self) -> [u64; 2] {
        [self.taken.load(Relaxed), self.refused.load(Relaxed)]
    }
}

impl Reports {
    pub fn new(rules: LoadReports, counts: Arc<Counts>) -> Self {
        Self { rules, counts }
    }

    /// Takes a report of an endpoint.
    ///
    /// # Errors
    /// It is none, or makes no weight.
    pub fn take(
        &self,
        of: &Reported,
        report: Result<LoadReport, String>,
        now: Instant,
    ) -> Result<(), String> {
        match report.and_then(|report| report.weight(&self.rules).map_err(str::to_owned)) {
            Ok(weight) => {
                of.note(weight, now);
                self.counts.taken.fetch_add(1, Relaxed);
                Ok(())
            }
            Err(why) => {
                self.counts.refused.fetch_add(1, Relaxed);
                Err(why)
            }
        }
    }
}

impl Default for Reported {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self { epoch: Instant::now(), weight: zero(), since: zero(), last: zero() }
    }
}

impl Reported {
    fn at(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64 + 1
    }

    fn note(&self, weight: f64, now: Instant) {
        let at = self.at(now);
        self.weight.store(weight.to_bits(), Relaxed);
        self.last.store(at, Relaxed);
        let _ = self.since.compare_exchange(0, at, Relaxed, Relaxed);
    }

    /// Its weight, where it has one of its own.
    pub fn weight(&self, rules: &LoadReports, now: Instant) -> Option<f64> {
        let at = self.at(now);
        let since = self.since.load(Relaxed).checked_sub(1)? + 1;
        let expiration = rules.expiration.as_millis() as u64;
        if at.saturating_sub(self.last.load(Relaxed)) >= expiration {
            // With the next report the blackout begins anew.
            let _ = self.since.compare_exchange(since, 0, Relaxed, Relaxed);
            return None;
        }
        let fresh = u128::from(at.saturating_sub(since)) < rules.blackout.as_millis();
        (!fresh).then(|| f64::from_bits(self.weight.load(Relaxed)))
    }

    /// What it has reported last, and for how long it has.
    pub fn last(&self, now: Instant) -> (f64, f64) {
        let since = self.since.load(Relaxed);
        let seconds = if since == 0 { 0.0 } else { self.at(now).saturating_sub(since) as f64 / 1000.0 };
        (f64::from_bits(self.weight.load(Relaxed)), seconds)
    }
}

/// Weights for a round, of endpoints of which some have none of their own: they get the middle one. Absent where none has.
pub fn weights(own: &[Option<f64>]) -> Option<Vec<u32>> {
    let mut known: Vec<f64> = own.iter().flatten().copied().collect();
    known.sort_by(f64::total_cmp);
    let (heaviest, middle) = (*known.last()?, known[known.len() / 2]);
    let part = |weight: f64| (weight / heaviest * HEAVIEST).round().max(1.0) as u32;
    Some(own.iter().map(|weight| part(weight.unwrap_or(middle))).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_weight_counts_after_the_blackout_and_until_it_expires() {
        let seconds = Duration::from_secs;
        let rules = LoadReports { blackout: seconds(10), expiration: seconds(60), ..LoadReports::default() };
        let reports = Reports::new(rules.clone(), Arc::default());
        let reported = Reported::default();
        let report = |rps| Ok(LoadReport { rps, cpu: 0.5, ..LoadReport::default() });
        let weight = || reported.weight(&rules, Instant::now());
        assert_eq!(weight(), None);
        reports.take(&reported, report(100.0), Instant::now()).unwrap();
        assert_eq!(weight(), None, "the blackout");
        tokio::time::advance(seconds(10)).await;
        assert_eq!(weight(), Some(200.0));
        reports.take(&reported, report(50.0), Instant::now()).unwrap();
        assert_eq!(weight(), Some(100.0), "the last report counts");
        assert!(reports.take(&reported, report(0.0), Instant::now()).is_err());
        assert!(reports.take(&reported, Err("no report".into()), Instant::now()).is_err());
        tokio::time::advance(seconds(59)).await;
        assert_eq!(weight(), Some(100.0));
        tokio::time::advance(seconds(1)).await;
        assert_eq!(weight(), None, "it has expired");
        reports.take(&reported, report(100.0), Instant::now()).unwrap();
        assert_eq!(weight(), None, "and the blackout begins anew");
        tokio::time::advance(seconds(10)).await;
        assert_eq!(weight(), Some(200.0));
        assert_eq!(reports.counts.all(), [3, 2]);
    }

    #[test]
    fn who_has_no_weight_gets_the_middle_one() {
        assert_eq!(weights(&[None, None]), None);
        assert_eq!(weights(&[Some(100.0), None, Some(400.0), Some(200.0)]), Some(vec![250, 500, 1000, 500]));
        assert_eq!(weights(&[Some(1e-9), Some(1e9)]), Some(vec![1, 1000]));
    }
}
