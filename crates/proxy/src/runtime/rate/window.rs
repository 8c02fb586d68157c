//! A sliding window: ten parts, and the one that is passing.

use std::time::Duration;

use super::State;

const PARTS: u64 = 10;
/// The parts that count: any stretch of time as long as all ten touches at most one more.
const SLOTS: usize = PARTS as usize + 1;

/// What came in the window, part by part.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The number of the part that is passing, plus one.
    tick: u64,
    /// By the number of the part.
    counts: [u32; SLOTS],
}

impl State for Window {
    fn weight(&self) -> u64 {
        // All alike: the first of them was not asked for the longest.
        0
    }
}

impl Window {
    /// Counts one; or says how long it takes until there is room.
    pub(super) fn take(&mut self, now: u64, limit: u32, per: Duration) -> Result<(), u64> {
        let part = (u64::try_from(per.as_nanos()).unwrap_or(u64::MAX) / PARTS).max(1);
        self.advance(now / part + 1);
        // A worker whose clock was read a little earlier than another's counts for now.
        let total: u32 = self.counts.iter().sum();
        if total < limit {
            self.counts[(self.tick % SLOTS as u64) as usize] += 1;
            return Ok(());
        }
        // When the oldest part that has any leaves.
        let oldest = (0..SLOTS as u64)
            .map(|age| SLOTS as u64 - 1 - age)
            .find(|age| self.tick > *age && self.counts[((self.tick - age) % SLOTS as u64) as usize] > 0);
        let leaves = (self.tick - 1 - oldest.unwrap_or(0) + SLOTS as u64).saturating_mul(part);
        Err(leaves.saturating_sub(now))
    }

    /// Takes the last one back.
    pub(super) fn give(&mut self) {
        let count = &mut self.counts[(self.tick % SLOTS as u64) as usize];
        *count = count.saturating_sub(1);
    }

    fn advance(&mut self, tick: u64) {
        let passed = tick.saturating_sub(self.tick).min(SLOTS as u64);
        for step in 1..=passed {
            self.counts[((tick.max(self.tick) - passed + step) % SLOTS as u64) as usize] = 0;
        }
        self.tick = self.tick.max(tick);
    }
}
