//! Who is an outlier by what became of its requests in an interval: far below the average, or above a percentage of failures. Requests
//! only count; once in an interval somebody looks, on the control runtime.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use outrigger_model::cluster::{FailurePercentage, Outlier, SuccessRate};
use tokio::time::Instant;

use super::{Cause, Ejections, Health, Peer};

/// A failure, in the upper half of a tally; the lower counts all.
const FAILURE: u64 = 1 << 32;

/// Requests of an interval and failures among them, in one word: no worker's count is lost, and none counts in two intervals.
#[derive(Debug, Default)]
pub struct Tally {
    now: AtomicU64,
    /// Of the interval before, in ten thousandths, plus one; 0: too few.
    rate: AtomicU64,
}

/// What the endpoints of a cluster had in common in an interval, in percent.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Rate {
    pub average: f64,
    /// Who is below is an outlier.
    pub threshold: f64,
}

/// Somebody was ejected: who, by its place, for what, and what its rate of success was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    pub at: usize,
    pub cause: Cause,
    pub rate: f64,
}

impl Tally {
    #[inline]
    pub(super) fn count(&self, rules: &Outlier, failed: bool) {
        if rules.needs_rates() {
            self.now.fetch_add(if failed { FAILURE + 1 } else { 1 }, Relaxed);
        }
    }

    /// Ends the interval: how many there were, and how many of a hundred succeeded.
    fn take(&self) -> Option<(u64, f64)> {
        let counted = self.now.swap(0, Relaxed);
        let (all, failed) = (counted % FAILURE, counted / FAILURE);
        (all > 0).then(|| (all, all.saturating_sub(failed) as f64 * 100.0 / all as f64))
    }

    /// Nothing was counted.
    pub(super) fn clear(&self) {
        self.now.store(0, Relaxed);
        self.rate.store(0, Relaxed);
    }

    fn keep(&self, rate: Option<f64>) {
        self.rate.store(rate.map_or(0, |rate| (rate * 10_000.0) as u64 + 1), Relaxed);
    }

    fn kept(&self) -> Option<f64> {
        self.rate.load(Relaxed).checked_sub(1).map(|rate| rate as f64 / 10_000.0)
    }
}

impl Health {
    /// Of a hundred requests of the last interval, how many were answered well, and of how many there was an answer.
    pub fn success_rates(&self) -> [Option<f64>; 2] {
        [self.answers.kept(), self.connections.kept()]
    }
}

impl Ejections {
    /// What was found in the last interval, of answers and of connections.
    pub fn rates(&self) -> [Option<Rate>; 2] {
        *self.found.lock()
    }

    /// Ends an interval: ejects the outliers of it.
    pub fn look(&self, rules: &Outlier, peers: &[Peer<'_>], now: Instant) -> Vec<Found> {
        let mut found = Vec::new();
        let answers = self.look_at(rules, peers, now, false, &mut found);
        let connections = match rules.local_apart {
            true => self.look_at(rules, peers, now, true, &mut found),
            false => None,
        };
        *self.found.lock() = [answers, connections];
        found
    }

    fn look_at(
        &self,
        rules: &Outlier,
        peers: &[Peer<'_>],
        now: Instant,
        local: bool,
        found: &mut Vec<Found>,
    ) -> Option<Rate> {
        let share = rules.failure_percentage;
        let volumes =
            (rules.success_rate.map(|rule| rule.request_volume), share.map(|rule| rule.request_volume));
        let least = volumes.0.into_iter().chain(volumes.1).min().unwrap_or(u32::MAX);
        let mut rates = Vec::with_capacity(peers.len());
        for (at, (health, serves)) in peers.iter().enumerate() {
            let tally = if local { &health.connections } else { &health.answers };
            let taken = tally.take();
            let counts = *serves && !self.is_ejected(health, now);
            let taken = taken.filter(|(all, _)| counts && *all >= u64::from(least));
            tally.keep(taken.map(|(_, rate)| rate));
            rates.extend(taken.map(|(all, rate)| (at, all, rate)));
        }
        let mut eject = |cause, (at, rate): (usize, f64)| {
            let (health, _) = peers[at];
            // Who is ejected by now has no second cause.
            let ejected = self.eject(rules, health, cause, now, peers.iter().copied());
            found.extend(ejected.map(|cause| Found { at, cause, rate }));
        };
        let enough = |volume: u32, hosts: u32| {
            let with = rates.iter().filter(|(_, all, _)| *all >= u64::from(volume));
            let with: Vec<(usize, f64)> = with.map(|(at, _, rate)| (*at, *rate)).collect();
            (!with.is_empty() && with.len() as u64 >= u64::from(hosts)).then_some(with)
        };
        let mut common = None;
        if let Some(rule) = rules.success_rate
            && acts(local, rule.enforcing, rule.enforcing_local)
            && let Some(with) = enough(rule.request_volume, rule.minimum_hosts)
        {
            let rate = common_rate(&rule, &with);
            let cause = if local { Cause::SuccessRateLocal } else { Cause::SuccessRate };
            with.into_iter().filter(|(_, own)| *own < rate.threshold).for_each(|one| eject(cause, one));
            common = Some(rate);
        }
        if let Some(rule) = share
            && acts(local, rule.enforcing, rule.enforcing_local)
            && let Some(with) = enough(rule.request_volume, rule.minimum_hosts)
        {
            let cause = if local { Cause::FailurePercentageLocal } else { Cause::FailurePercentage };
            with.into_iter().filter(|(_, own)| fails(&rule, *own)).for_each(|one| eject(cause, one));
        }
        common
    }
}

fn acts(local: bool, enforcing: u32, enforcing_local: u32) -> bool {
    (if local { enforcing_local } else { enforcing }) > 0
}

/// The average, and so many standard deviations below it.
fn common_rate(rule: &SuccessRate, rates: &[(usize, f64)]) -> Rate {
    let count = rates.len() as f64;
    let average = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates.iter().map(|(_, rate)| (rate - average).powi(2)).sum::<f64>() / count;
    Rate { average, threshold: average - f64::from(rule.stdev_factor) / 1000.0 * variance.sqrt() }
}

fn fails(rule: &FailurePercentage, rate: f64) -> bool {
    100.0 - rate >= f64::from(rule.threshold)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn rules() -> Outlier {
        Outlier { consecutive_5xx: 0, max_ejection_percent: 100, ..Outlier::default() }
    }

    struct Cluster {
        rules: Outlier,
        ejections: Ejections,
        endpoints: Vec<Health>,
        now: Instant,
    }

    impl Cluster {
        fn of(n: usize, rules: Outlier) -> Self {
            let (ejections, now) = (Ejections::default(), Instant::now());
            Self { rules, ejections, endpoints: (0..n).map(|_| Health::default()).collect(), now }
        }

        fn peers(&self) -> Vec<Peer<'_>> {
            self.endpoints.iter().map(|health| (health, true)).collect()
        }

        fn report(&self, i: usize, outcome: Outcome, times: u32) {
            for _ in 0..times {
                let peers = self.peers();
                let health = &self.endpoints[i];
                let _ = self.ejections.record(&self.rules, health, outcome, self.now, peers.into_iter());
            }
        }

        fn look(&self) -> Vec<(usize, Cause)> {
            let found = self.ejections.look(&self.rules, &self.peers(), self.now);
            found.into_iter().map(|found| (found.at, found.cause)).collect()
        }
    }

    #[test]
    fn who_is_far_below_the_average_is_ejected_and_others_are_not() {
        let rate = SuccessRate { request_volume: 100, ..SuccessRate::default() };
        let cluster = Cluster::of(5, Outlier { success_rate: Some(rate), ..rules() });
        for i in 0..5 {
            cluster.report(i, Outcome::Status(200), if i == 0 { 50 } else { 100 });
        }
        cluster.report(0, Outcome::Status(500), 49);
        assert_eq!(cluster.look(), [], "one request is lacking, so only four hosts have enough");
        assert_eq!(cluster.ejections.rates(), [None, None]);
        for i in 0..5 {
            cluster.report(i, Outcome::Status(200), if i == 0 { 50 } else { 100 });
        }
        cluster.report(0, Outcome::GatewayError, 50);
        // Envoy's own example: 50, and four times 100.
        assert_eq!(cluster.look(), [(0, Cause::SuccessRate)]);
        let Some(Rate { average, threshold }) = cluster.ejections.rates()[0] else { panic!() };
        assert!((average - 90.0).abs() < 1e-9 && (threshold - 52.0).abs() < 1e-9, "{average} {threshold}");
        assert_eq!(cluster.endpoints[0].success_rates(), [Some(50.0), None]);
        assert_eq!(cluster.look(), [], "an interval without requests says nothing");
        assert_eq!(cluster.endpoints[0].success_rates(), [None, None]);
    }

    #[test]
    fn a_percentage_of_failures_ejects_but_never_all() {
        let share =
            FailurePercentage { threshold: 40, minimum_hosts: 3, request_volume: 10, ..Default::default() };
        let cluster = Cluster::of(3, Outlier { failure_percentage: Some(share), ..rules() });
        for i in 0..3 {
            cluster.report(i, Outcome::Status(503), 4);
            cluster.report(i, Outcome::Status(404), 6);
        }
        let cause = Cause::FailurePercentage;
        assert_eq!(cluster.look(), [(0, cause), (1, cause)], "the last stays");
        assert_eq!(cluster.ejections.counts().overflows(), 1);
        let counts: Vec<_> = cluster.ejections.counts().each().filter(|(_, found, _)| *found > 0).collect();
        assert_eq!(counts, [("failure_percentage", 3, 2)]);
    }

    #[test]
    fn what_brings_no_answer_has_a_rate_of_its_own() {
        let share =
            FailurePercentage { threshold: 50, minimum_hosts: 1, request_volume: 10, ..Default::default() };
        let apart =
            Outlier { failure_percentage: Some(share), local_apart: true, consecutive_local: 0, ..rules() };
        let cluster = Cluster::of(3, apart);
        cluster.report(0, Outcome::Unconnected, 10);
        cluster.report(1, Outcome::Status(500), 10);
        // A connection that stood is a success before the reset.
        cluster.report(2, Outcome::GatewayError, 4);
        cluster.report(2, Outcome::Status(200), 10);
        assert_eq!(cluster.look(), [(1, Cause::FailurePercentage), (0, Cause::FailurePercentageLocal)]);
        assert_eq!(
            cluster.endpoints[2].success_rates(),
            [Some(100.0), Some(14.0 * 100.0 / 18.0).map(|rate: f64| (rate * 10_000.0).floor() / 10_000.0)]
        );
    }

    #[test]
    fn rules_that_are_enforced_for_a_part_eject_a_part() {
        fastrand::seed(7);
        let share =
            FailurePercentage { minimum_hosts: 1, request_volume: 1, enforcing: 30, ..Default::default() };
        let mut ejected = 0;
        for _ in 0..1000 {
            let cluster = Cluster::of(2, Outlier { failure_percentage: Some(share), ..rules() });
            cluster.report(0, Outcome::Status(500), 1);
            ejected += cluster.look().len();
        }
        // Thirty of a hundred, standard deviation 14.5.
        assert!((240..360).contains(&ejected), "{ejected}");
    }

    #[test]
    fn no_count_is_lost_between_workers_and_intervals() {
        let share =
            FailurePercentage { minimum_hosts: 1, request_volume: 1, threshold: 100, ..Default::default() };
        let rules = Outlier { failure_percentage: Some(share), ..rules() };
        let tally = Tally::default();
        let (mut all, mut good) = (0, 0.0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..2)
                .map(|worker| {
                    let (tally, rules) = (&tally, &rules);
                    scope.spawn(move || (0..100_000).for_each(|n| tally.count(rules, n % 4 == worker)))
                })
                .collect();
            loop {
                let over = workers.iter().all(std::thread::ScopedJoinHandle::is_finished);
                if let Some((counted, rate)) = tally.take() {
                    all += counted;
                    good += rate * counted as f64 / 100.0;
                }
                if over {
                    break;
                }
            }
        });
        assert_eq!((all, good.round() as u64), (200_000, 150_000));
    }
}
