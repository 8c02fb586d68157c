//! The wait before a reconnect: exponential, with full jitter, so that a fleet does not come back as one wave.

use std::time::Duration;

/// `base` after a stream that lasted; twice as long after each that did not, up to `longest`.
pub(super) struct Backoff {
    base: Duration,
    longest: Duration,
    bound: Duration,
}

impl Backoff {
    pub(super) fn new(base: Duration, longest: Duration) -> Self {
        Self { base, longest, bound: base }
    }

    /// A stream ended after it was open so long. One that lasted longer than the longest wait starts over; what it received proves
    /// nothing, as a server may answer and end every stream at once.
    pub(super) fn ended(&mut self, lasted: Duration) {
        if lasted > self.longest {
            self.bound = self.base;
        }
    }

    pub(super) fn next(&mut self) -> Duration {
        let bound = self.bound.min(self.longest);
        self.bound = bound.saturating_mul(2);
        bound.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_the_longest_and_starts_over() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(350));
        for bound in [100, 200, 350, 350] {
            assert_eq!(backoff.bound.min(backoff.longest), ms(bound));
            assert!(backoff.next() <= ms(bound));
        }
        backoff.ended(ms(350));
        assert_eq!(backoff.bound.min(backoff.longest), ms(350), "it did not last");
        backoff.ended(ms(351));
        assert!(backoff.next() <= ms(100));
    }
}
