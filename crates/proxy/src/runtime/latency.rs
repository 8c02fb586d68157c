//! How long first attempts of late took, for hedges at a percentile: counts by time in slices of the last minute, shared by all workers.
//! Only routes that hedge so write and read them.
//!
//! ```text
//! slice ──10 s──▶ slice ──10 s──▶ … seven of them; the six before the present one and it are a minute
//! ```

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::time::Instant;

const SLICES: usize = 7;
const SLICE: Duration = Duration::from_secs(10);
/// Of each power of two: a time is known to a sixteenth.
const STEPS: u64 = 16;
/// From 64 µs, below which all is one, to more than an hour.
const LOWEST: u32 = 6;
const BUCKETS: usize = 27 * STEPS as usize;
/// How long an answer holds: looking at all counts takes microseconds.
const HOLDS: Duration = Duration::from_millis(100);

/// Times of one cluster.
#[derive(Debug)]
pub struct Latencies {
    epoch: Instant,
    slices: Box<[Slice; SLICES]>,
    answer: ArcSwapOption<Answer>,
    looking: Mutex<()>,
}

#[derive(Debug)]
struct Slice {
    /// Which one since the epoch, plus one; 0: unused.
    number: AtomicU64,
    counts: [AtomicU32; BUCKETS],
}

#[derive(Debug)]
struct Answer {
    until: Instant,
    percent: f64,
    least: u32,
    time: Option<Duration>,
}

impl Default for Latencies {
    fn default() -> Self {
        let slice =
            || Slice { number: AtomicU64::new(0), counts: std::array::from_fn(|_| AtomicU32::new(0)) };
        let slices = Box::new(std::array::from_fn(|_| slice()));
        Self { epoch: Instant::now(), slices, answer: ArcSwapOption::empty(), looking: Mutex::new(()) }
    }
}

/// The bucket of a time, and the longest time that is in a bucket.
fn bucket(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let power = micros.checked_ilog2().unwrap_or(0);
    if power < LOWEST {
        return 0;
    }
    let step = (micros >> (power - 4)) - STEPS;
    ((u64::from(power - LOWEST) * STEPS + step) as usize).min(BUCKETS - 1)
}

fn longest_in(bucket: usize) -> Duration {
    let (power, step) = (LOWEST + bucket as u32 / STEPS as u32, bucket as u64 % STEPS);
    Duration::from_micros((STEPS + step + 1) << (power - 4))
}

impl Latencies {
    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_secs() / SLICE.as_secs() + 1
    }

    /// Counts a first attempt: the time that it took, or had taken when another one was first.
    pub fn note(&self, time: Duration, now: Instant) {
        let number = self.number(now);
        let slice = &self.slices[number as usize % SLICES];
        let seen = slice.number.load(Relaxed);
        // Who finds it old empties it; what others count meanwhile may be lost.
        if seen != number && slice.number.compare_exchange(seen, number, Relaxed, Relaxed).is_ok() {
            slice.counts.iter().for_each(|count| count.store(0, Relaxed));
        }
        slice.counts[bucket(time)].fetch_add(1, Relaxed);
    }

    /// The time within which this part of them was done, to a sixteenth above; `None` while there are fewer than `least`.
    pub fn percentile(&self, percent: f64, least: u32, now: Instant) -> Option<Duration> {
        let kept = self.answer.load();
        if let Some(kept) = &*kept
            && (kept.percent, kept.least) == (percent, least)
        {
            // Whoever else finds it old goes by it once more.
            let Some(_looking) = (now >= kept.until).then(|| self.looking.try_lock()).flatten() else {
                return kept.time;
            };
            return self.look(percent, least, now);
        }
        self.look(percent, least, now)
    }

    #[cold]
    fn look(&self, percent: f64, least: u32, now: Instant) -> Option<Duration> {
        let number = self.number(now);
        let recent = |slice: &&Slice| number.saturating_sub(slice.number.load(Relaxed)) < SLICES as u64;
        let mut sums = [0_u64; BUCKETS];
        for slice in self.slices.iter().filter(|slice| slice.number.load(Relaxed) > 0).filter(recent) {
            for (sum, count) in sums.iter_mut().zip(&slice.counts) {
                *sum += u64::from(count.load(Relaxed));
            }
        }
        let all: u64 = sums.iter().sum();
        let time = (all >= u64::from(least.max(1))).then(|| {
            let wanted = (all as f64 * percent / 100.0).ceil() as u64;
            let mut below = 0;
            let found = sums.iter().position(|sum| {
                below += sum;
                below >= wanted
            });
            longest_in(found.unwrap_or(BUCKETS - 1))
        });
        self.answer.store(Some(std::sync::Arc::new(Answer { until: now + HOLDS, percent, least, time })));
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn a_bucket_has_what_it_says() {
        for micros in (0..200).chain([999, 1000, 65_535, 65_536, 1 << 20, (1 << 32) - 1]) {
            let time = Duration::from_micros(micros);
            let (at, longest) = (bucket(time), longest_in(bucket(time)));
            assert!(time <= longest, "{time:?} {longest:?}");
            assert!(at == 0 || longest_in(at - 1) <= time, "{time:?}");
            assert!(
                micros < 64 || longest <= time.mul_f64(1.0625) + Duration::from_micros(1),
                "{time:?} {longest:?}"
            );
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_percentile_is_of_the_last_minute_and_of_enough() {
        let latencies = Latencies::default();
        let p95 = |least| latencies.percentile(95.0, least, Instant::now());
        for n in 1..=99 {
            latencies.note(MILLI * n, Instant::now());
        }
        assert_eq!(p95(100), None);
        latencies.note(MILLI * 100, Instant::now());
        assert_eq!(p95(100), None, "what was found holds for a while");
        tokio::time::advance(HOLDS).await;
        let found = p95(100).unwrap();
        assert!((MILLI * 95..=MILLI * 101).contains(&found), "{found:?}");
        tokio::time::advance(SLICE * 3).await;
        for _ in 0..10_000 {
            latencies.note(MILLI, Instant::now());
        }
        assert!(p95(100).unwrap() < MILLI * 2);
        let slow = latencies.percentile(99.9, 100, Instant::now()).unwrap();
        assert!(slow > MILLI * 80, "they are still among the last: {slow:?}");
        tokio::time::advance(SLICE * 5).await;
        assert!(latencies.percentile(99.9, 100, Instant::now()).unwrap() < MILLI * 2, "no longer");
        tokio::time::advance(SLICE * 9).await;
        assert_eq!(p95(1), None);
    }
}
