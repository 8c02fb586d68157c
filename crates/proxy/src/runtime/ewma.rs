//! How long an endpoint's answers take: an average that jumps to each peak and then comes down with time.
//!
//! In one word, so that workers neither wait for each other nor see halves: microseconds as a float, and when that was.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// Times are ticks since the first use of this module.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Of a tick; all of them are more than six days, after which an endpoint without answers is new again.
const TICK: u64 = 128;

/// So many ticks another worker's moment may be later: a second.
const LATER: u32 = (1_000_000 / TICK) as u32;

/// The average of one endpoint; 0: nobody has answered yet.
#[derive(Debug, Default)]
pub struct PeakEwma(AtomicU64);

fn tick(now: Instant) -> u32 {
    (now.saturating_duration_since(*EPOCH).as_micros() as u64 / TICK) as u32
}

fn pack(micros: f32, at: u32) -> u64 {
    u64::from(micros.max(1.0).to_bits()) << 32 | u64::from(at)
}

/// What is left of the average that was kept, in microseconds, and what part that is.
fn left(kept: u64, decay: Duration, at: u32) -> (f32, f64) {
    let ago = at.wrapping_sub(kept as u32);
    // Another worker's moment may be a little later.
    let ago = if ago > u32::MAX - LATER { 0 } else { ago };
    let micros = (u64::from(ago) * TICK) as f64;
    let decay = decay.as_micros() as f64;
    let part = if decay > 0.0 { (-micros / decay).exp() } else { 0.0 };
    (f32::from_bits((kept >> 32) as u32), part)
}

impl PeakEwma {
    /// An answer took so long.
    pub fn note(&self, took: Duration, decay: Duration, now: Instant) {
        let (took, at) = (took.as_secs_f64() * 1e6, tick(now));
        let next = |kept: u64| {
            let (average, part) = left(kept, decay, at);
            let average = f64::from(average);
            if kept == 0 || took > average {
                return Some(pack(took as f32, at));
            }
            // Of what comes within a tick only a peak counts.
            (kept as u32 != at).then(|| pack((average * part + took * (1.0 - part)) as f32, at))
        };
        let _ = self.0.fetch_update(Relaxed, Relaxed, next);
    }

    /// An answer that has not come takes longer than this: it counts where it is more than was expected, of nobody yet `initial`.
    pub fn at_least(&self, took: Duration, initial: Duration, decay: Duration, now: Instant) {
        if took > self.estimate(decay, now).unwrap_or(initial) {
            self.note(took, decay, now);
        }
    }

    /// How long an answer is expected to take: while none comes, ever shorter, so that it is asked again. `None`: nobody knows.
    pub fn estimate(&self, decay: Duration, now: Instant) -> Option<Duration> {
        let kept = self.0.load(Relaxed);
        let (average, part) = left(kept, decay, tick(now));
        (kept != 0).then(|| Duration::from_secs_f64(f64::from(average) * part / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: Duration = Duration::from_secs(10);
    const MILLI: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_peak_counts_at_once_and_better_times_only_with_time() {
        let ewma = PeakEwma::default();
        let estimate = || ewma.estimate(DECAY, Instant::now()).unwrap();
        assert_eq!(ewma.estimate(DECAY, Instant::now()), None);
        ewma.note(MILLI * 10, DECAY, Instant::now());
        assert_eq!(estimate(), MILLI * 10);
        ewma.note(MILLI * 200, DECAY, Instant::now());
        assert_eq!(estimate(), MILLI * 200, "a peak");
        ewma.note(MILLI * 10, DECAY, Instant::now());
        assert_eq!(estimate(), MILLI * 200, "within the same moment it is all that counts");
        tokio::time::advance(DECAY).await;
        let third = MILLI.mul_f64(200.0 / std::f64::consts::E);
        let near = |wanted: Duration| estimate().abs_diff(wanted) < MILLI;
        assert!(near(third), "{:?}", estimate());
        ewma.note(MILLI * 10, DECAY, Instant::now());
        assert!(near(third + MILLI.mul_f64(10.0 * (1.0 - 1.0 / std::f64::consts::E))), "{:?}", estimate());
        for _ in 0..100 {
            tokio::time::advance(DECAY / 10).await;
            ewma.note(MILLI * 10, DECAY, Instant::now());
        }
        assert!(near(MILLI * 10), "{:?}", estimate());
        ewma.at_least(MILLI * 5, MILLI, DECAY, Instant::now());
        assert!(near(MILLI * 10), "less than was expected says nothing: {:?}", estimate());
        ewma.at_least(MILLI * 300, MILLI, DECAY, Instant::now());
        assert_eq!(estimate(), MILLI * 300);
        tokio::time::advance(Duration::from_hours(24 * 5)).await;
        assert_eq!(estimate(), Duration::ZERO, "after days without an answer it is asked again");
        let new = PeakEwma::default();
        new.at_least(MILLI, MILLI * 10, DECAY, Instant::now());
        assert_eq!(new.estimate(DECAY, Instant::now()), None, "who is given up at once is not quick");
        new.at_least(MILLI * 11, MILLI * 10, DECAY, Instant::now());
        assert_eq!(new.estimate(DECAY, Instant::now()), Some(MILLI * 11));
    }
}
