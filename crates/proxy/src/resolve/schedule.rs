//! When a name is asked for again. Pure.

use std::time::Duration;

use outrigger_model::cluster::DnsDiscovery;

use super::lookup::{Addresses, Outcome};

/// However often a cluster wants it.
const LEAST: Duration = Duration::from_millis(100);
/// However short an answer lives.
const SHORTEST: Duration = Duration::from_secs(1);
/// However long an answer lives: who moves a service must not wait for days.
const LONGEST: Duration = Duration::from_secs(3600);

/// How often a cluster wants its names asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Policy {
    respect_ttl: bool,
    refresh: Duration,
    retry: (Duration, Duration),
}

impl Policy {
    pub(super) fn of(dns: &DnsDiscovery) -> Self {
        let retry = dns.retry.unwrap_or((dns.refresh, dns.refresh));
        Self { respect_ttl: dns.respect_ttl, refresh: dns.refresh, retry }
    }
}

/// The pauses of one name.
#[derive(Debug)]
pub(super) struct Schedule {
    policy: Policy,
    /// In a row.
    failures: u32,
}

impl Schedule {
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy, failures: 0 }
    }

    /// How long to wait after this outcome. `random` within 0..1 keeps sidecars that started together from asking together: an
    /// answer is never asked for before it has passed, a failure never later than its pause.
    pub(super) fn after(&mut self, outcome: &Outcome, random: f64) -> Duration {
        let Policy { respect_ttl, refresh, retry: (base, most) } = self.policy;
        match outcome {
            Outcome::Failed(_) | Outcome::Found(Addresses { missing: Some(_), .. }) => {
                let doubled =
                    base.saturating_mul(1_u32.checked_shl(self.failures.min(31)).unwrap_or(u32::MAX));
                self.failures = self.failures.saturating_add(1);
                doubled.min(most).max(LEAST).mul_f64(0.5 + random / 2.0)
            }
            Outcome::Found(_) | Outcome::Absent(_) => {
                self.failures = 0;
                let ttl = match outcome {
                    Outcome::Found(addresses) if respect_ttl => addresses.ttl,
                    _ => Duration::ZERO,
                };
                // Zero says nothing, as in Envoy.
                let pause = if ttl.is_zero() { refresh.max(LEAST) } else { ttl.clamp(SHORTEST, LONGEST) };
                pause.mul_f64(1.0 + random / 20.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(change: impl Fn(&mut DnsDiscovery)) -> Schedule {
        let mut dns = DnsDiscovery { respect_ttl: true, ..DnsDiscovery::default() };
        change(&mut dns);
        Schedule::new(Policy::of(&dns))
    }

    fn found(ttl: u64) -> Outcome {
        Outcome::Found(Addresses { ttl: Duration::from_secs(ttl), ..Addresses::default() })
    }

    fn failed() -> Outcome {
        Outcome::Failed("nobody answers".into())
    }

    #[test]
    fn an_answer_is_asked_for_again_when_it_has_passed_within_bounds() {
        let mut schedule = schedule(|_| {});
        for (ttl, pause) in [(30, 30), (0, 5), (1, 1), (86_400, 3600)] {
            assert_eq!(schedule.after(&found(ttl), 0.0), Duration::from_secs(pause));
        }
        assert_eq!(schedule.after(&Outcome::Absent("no such name".into()), 0.0), Duration::from_secs(5));
        assert!(schedule.after(&found(100), 0.99) < Duration::from_secs(105));
    }

    #[test]
    fn where_the_time_to_live_does_not_count_the_interval_does() {
        let mut schedule = schedule(|dns| dns.respect_ttl = false);
        assert_eq!(schedule.after(&found(86_400), 0.0), Duration::from_secs(5));
    }

    #[test]
    fn failures_are_tried_again_ever_later_and_an_answer_forgives_them() {
        let mut schedule =
            schedule(|dns| dns.retry = Some((Duration::from_secs(1), Duration::from_secs(30))));
        let pauses: Vec<u64> = (0..7).map(|_| schedule.after(&failed(), 1.0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        for _ in 0..100 {
            assert!(schedule.after(&failed(), 0.0) >= Duration::from_secs(15));
        }
        schedule.after(&found(10), 0.0);
        assert_eq!(schedule.after(&failed(), 1.0), Duration::from_secs(1));
    }

    #[test]
    fn without_a_rule_a_failure_is_tried_again_as_often_as_an_answer() {
        let mut schedule = schedule(|_| {});
        assert_eq!(schedule.after(&failed(), 1.0), Duration::from_secs(5));
        assert_eq!(schedule.after(&failed(), 1.0), Duration::from_secs(5));
    }
}
