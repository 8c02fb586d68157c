//! When to renew and when to try again: pure arithmetic, so that tables can test it.

use std::time::{Duration, SystemTime};

/// Never sooner than this after a certificate was obtained, however short its life: a busy loop helps nobody.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(500);
/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// When to renew a certificate obtained at `obtained`: between half and two thirds of its life, as `random` in 0..1
/// says, so that sidecars started together do not renew together.
pub fn renew_at(obtained: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let life = not_after.duration_since(obtained).unwrap_or_default();
    let share = 0.5 + random.clamp(0.0, 1.0) / 6.0;
    obtained + life.mul_f64(share).max(SHORTEST_RENEWAL)
}

/// How long to wait after the `failures`-th failure in a row (from 1): doubling from 1 s to 60 s, of which `random`
/// in 0..1 takes away up to half. Never beyond a third of the certificate's `remaining` life, while it has any.
pub fn retry_pause(failures: u32, remaining: Duration, random: f64) -> Duration {
    let doubled =
        FIRST_PAUSE.saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    let pause = doubled.min(LONGEST_PAUSE).mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0);
    if remaining.is_zero() { pause } else { pause.min((remaining / 3).max(Duration::from_millis(100))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn renewal_falls_between_half_and_two_thirds_of_the_life() {
        let end = UNIX_EPOCH + Duration::from_secs(600);
        assert_eq!(renew_at(UNIX_EPOCH, end, 0.0), UNIX_EPOCH + Duration::from_secs(300));
        assert_eq!(renew_at(UNIX_EPOCH, end, 1.0), UNIX_EPOCH + Duration::from_secs(400));
    }

    #[test]
    fn an_already_ended_life_still_leaves_a_pause() {
        let late = UNIX_EPOCH + Duration::from_secs(900);
        assert_eq!(renew_at(late, UNIX_EPOCH, 0.3), late + SHORTEST_RENEWAL);
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_keep_half_under_jitter() {
        let none = Duration::ZERO;
        let seconds = |n, r| retry_pause(n, none, r).as_secs_f64();
        assert_eq!(
            [seconds(1, 0.0), seconds(2, 0.0), seconds(5, 0.0), seconds(7, 0.0)],
            [1.0, 2.0, 16.0, 60.0]
        );
        assert_eq!(seconds(40, 1.0), 30.0);
        assert_eq!(seconds(u32::MAX, 0.0), 60.0);
    }

    #[test]
    fn a_dying_certificate_is_retried_sooner() {
        assert_eq!(retry_pause(10, Duration::from_secs(30), 0.0), Duration::from_secs(10));
        assert_eq!(retry_pause(10, Duration::from_millis(3), 0.0), Duration::from_millis(100));
    }
}
