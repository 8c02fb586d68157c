//! How long the requests of one window took: counts by time, to which all workers add without a lock.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Of each power of two: a time is known to a sixty-fourth.
const STEPS: u64 = 32;
/// Its power of two: below, each microsecond has a bucket.
const EXACT: u32 = 5;
/// Up to more than a day; what is longer counts as that.
const BUCKETS: usize = 33 * STEPS as usize;

/// The samples of a window, 4 KiB of counts.
pub(super) struct Samples {
    counts: Box<[AtomicU32; BUCKETS]>,
    sum: AtomicU32,
}

impl Default for Samples {
    fn default() -> Self {
        let counts = Box::new(std::array::from_fn(|_| AtomicU32::new(0)));
        Self { counts, sum: AtomicU32::new(0) }
    }
}

fn bucket(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    if micros < STEPS {
        return micros as usize;
    }
    let power = micros.ilog2();
    let step = (micros >> (power - EXACT)) - STEPS;
    ((u64::from(power - EXACT + 1) * STEPS + step) as usize).min(BUCKETS - 1)
}

/// The time in the middle of a bucket; never 0, by which nobody could divide.
fn middle(bucket: usize) -> Duration {
    let (row, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    let micros = match row.checked_sub(1) {
        None => step,
        Some(power) => ((STEPS + step) << power) + ((1 << power) - 1) / 2,
    };
    Duration::from_micros(micros.max(1))
}

impl Samples {
    /// One more; how many there are.
    pub(super) fn add(&self, time: Duration) -> u32 {
        self.counts[bucket(time)].fetch_add(1, Relaxed);
        self.sum.fetch_add(1, Relaxed).saturating_add(1)
    }

    /// The time within which this part of them, in percent, was done; nothing where there are none. Then it is empty: who adds
    /// meanwhile adds to what was, or to what comes.
    pub(super) fn take(&self, percentile: f64) -> Option<Duration> {
        let mut counts = [0_u32; BUCKETS];
        let mut all = 0_u64;
        self.sum.store(0, Relaxed);
        for (taken, count) in counts.iter_mut().zip(&*self.counts) {
            // Most are empty, and to read is less than to exchange.
            if count.load(Relaxed) > 0 {
                *taken = count.swap(0, Relaxed);
                all += u64::from(*taken);
            }
        }
        let wanted = ((all as f64 * percentile / 100.0).ceil() as u64).max(1);
        let mut below = 0;
        let found = counts.iter().position(|count| {
            below += u64::from(*count);
            below >= wanted
        });
        found.map(middle)
    }

    /// Forgets them.
    pub(super) fn clear(&self) {
        self.sum.store(0, Relaxed);
        for count in &*self.counts {
            count.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_known_to_a_sixty_fourth() {
        for micros in (0..200).chain((200..3_000_000).step_by(97)).chain([86_400_000_000]) {
            let time = Duration::from_micros(micros);
            let known = middle(bucket(time)).as_secs_f64();
            let off = (known - time.as_secs_f64()).abs();
            assert!(off <= (time.as_secs_f64() / 64.0).max(1e-6), "{time:?} is taken for {known}");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert!(middle(BUCKETS - 1) > Duration::from_secs(24 * 3600));
    }

    #[test]
    fn a_percentile_is_the_time_of_that_place_and_what_is_taken_is_gone() {
        let samples = Samples::default();
        assert_eq!(samples.take(50.0), None);
        for (at, micros) in (1..=10).map(|n| (n, u64::from(n))) {
            assert_eq!(samples.add(Duration::from_micros(micros)), at);
        }
        assert_eq!(samples.take(50.0), Some(Duration::from_micros(5)));
        assert_eq!(samples.take(50.0), None);
        for (percentile, wanted) in [(0.0, 1), (10.0, 1), (90.0, 9), (91.0, 10), (100.0, 10)] {
            for micros in 1..=10 {
                samples.add(Duration::from_micros(micros));
            }
            assert_eq!(samples.take(percentile), Some(Duration::from_micros(wanted)), "p{percentile}");
        }
        samples.add(Duration::from_micros(1));
        samples.clear();
        assert_eq!((samples.take(0.0), samples.add(Duration::ZERO)), (None, 1));
        assert_eq!(samples.take(0.0), Some(Duration::from_micros(1)), "never 0");
    }
}
