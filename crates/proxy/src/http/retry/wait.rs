//! How long is waited before the next attempt: the back-off, or what the answer asks for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_model::route::RetryPolicy;

use crate::http::attempt::Slot;
use crate::http::context::RequestCtx;
use crate::http::duration;

/// A wait.
#[derive(Debug, PartialEq, Eq)]
pub struct Wait {
    pub time: Duration,
    /// The answer has asked for it.
    pub is_asked: bool,
}

/// Before retry `number` (from 1). `None`: longer than the request has time, so that its answer is the last.
pub fn before(ctx: &RequestCtx<'_>, policy: &RetryPolicy, number: u32, slot: &Slot) -> Option<Wait> {
    let Some(asked) = asked(policy, slot) else {
        // Full jitter: uniformly between nothing and the ceiling, so that retries of many clients spread.
        let time = ceiling(policy, number).mul_f64(fastrand::f64());
        return Some(Wait { time, is_asked: false });
    };
    let ends = duration::ends(ctx).map(|ends| ends.saturating_duration_since(ctx.now));
    let left = ctx.clock.left(ctx.now).into_iter().chain(ends).min();
    let time = jittered(asked, left, fastrand::f64());
    if time.is_none() {
        tracing::debug!(?asked, ?left, "an answer asks for a longer wait than the request has time");
    }
    time.map(|time| Wait { time, is_asked: true })
}

/// Never less than is asked for, up to half as much more, as Envoy; and within the time that is left.
fn jittered(asked: Duration, left: Option<Duration>, random: f64) -> Option<Duration> {
    let most = left.map_or(asked, |left| left.saturating_sub(asked));
    let more = (asked / 2).min(most).mul_f64(random);
    left.is_none_or(|left| asked < left).then(|| asked + more)
}

/// What the answer asks for, if it counts.
fn asked(policy: &RetryPolicy, slot: &Slot) -> Option<Duration> {
    let back_off = policy.rate_limited.as_deref()?;
    let head = &slot.as_ref()?.head;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    back_off.interval(|name| head.first(name), now).filter(|asked| !asked.is_zero())
}

/// The longest back-off before retry `number` (from 1): the base, doubled each time.
fn ceiling(policy: &RetryPolicy, number: u32) -> Duration {
    let doubled = policy.backoff_base.saturating_mul(2_u32.saturating_pow(number - 1));
    doubled.min(policy.backoff_max.max(policy.backoff_base))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        let policy = RetryPolicy::default();
        let millis: Vec<_> = (1..7).map(|number| ceiling(&policy, number).as_millis()).collect();
        assert_eq!(millis, [25, 50, 100, 200, 250, 250]);
    }

    #[test]
    fn what_is_asked_for_is_waited_at_least_and_never_beyond_the_time_that_is_left() {
        let seconds = Duration::from_secs;
        let of = |left: Option<u64>, random| jittered(seconds(2), left.map(seconds), random);
        assert_eq!(of(None, 0.0), Some(seconds(2)));
        assert_eq!(of(None, 1.0), Some(seconds(3)));
        assert_eq!(of(Some(4), 1.0), Some(seconds(3)));
        let tight = jittered(seconds(2), Some(Duration::from_millis(2_500)), 1.0);
        assert_eq!(tight, Some(Duration::from_millis(2_500)));
        assert_eq!(of(Some(2), 0.0), None);
        assert_eq!(of(Some(1), 0.0), None);
    }
}
