//! The hot-path histogram with Istio's bucket bounds, and the snapshot into which shards are merged.
//!
//! One writer per histogram, as in [`super::cell`]. The count is not stored: it is the sum of the buckets, so that
//! count and buckets of a snapshot always agree even when it is taken between two stores of an update.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::cell::Counter;

/// Istio's upper bounds, in the unit of the metric (milliseconds or bytes); `+Inf` follows implicitly.
pub const ISTIO_BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0,
    300000.0, 600000.0, 1800000.0, 3600000.0,
];

/// Buckets including `+Inf`.
pub const CELLS: usize = ISTIO_BUCKETS.len() + 1;

/// For each binary exponent from -1 to 22, how many bounds lie below 2^exponent. There is at most one bound per
/// power of two, so that a table entry and one or two comparisons find the bucket.
const FIRST_BY_EXPONENT: [u8; 24] = {
    let mut table = [0_u8; 24];
    let mut exponent = 0;
    let mut power = 0.5;
    while exponent < table.len() {
        let mut below = 0;
        while below < ISTIO_BUCKETS.len() && ISTIO_BUCKETS[below] < power {
            below += 1;
        }
        table[exponent] = below as u8;
        power *= 2.0;
        exponent += 1;
    }
    table
};

/// Index of the first bucket whose bound is at least `value`.
#[inline]
fn bucket_of(value: f64) -> usize {
    // IEEE 754: the biased exponent of 0.5 is 1022. Smaller and larger values clamp to the ends of the table.
    let biased = (value.to_bits() >> 52) as i64;
    let entry = (biased - 1022).clamp(0, FIRST_BY_EXPONENT.len() as i64 - 1) as usize;
    let mut bucket = FIRST_BY_EXPONENT[entry] as usize;
    while bucket < ISTIO_BUCKETS.len() && value > ISTIO_BUCKETS[bucket] {
        bucket += 1;
    }
    bucket
}

/// Distribution over [`ISTIO_BUCKETS`] with one writer.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; CELLS],
    /// Bits of an f64.
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty histogram.
    pub const fn new() -> Self {
        Self { buckets: [const { Counter::new() }; CELLS], sum: AtomicU64::new(0) }
    }

    /// Adds one observation; a negative value or NaN counts as zero.
    #[inline]
    pub fn observe(&self, value: f64) {
        let value = if value > 0.0 { value } else { 0.0 };
        self.buckets[bucket_of(value)].inc();
        let sum = f64::from_bits(self.sum.load(Relaxed)) + value;
        self.sum.store(sum.to_bits(), Relaxed);
    }

    /// What was observed so far; any thread may ask.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut snapshot = HistogramSnapshot::default();
        self.merge_into(&mut snapshot);
        snapshot
    }

    /// Adds this shard to `total`.
    pub fn merge_into(&self, total: &mut HistogramSnapshot) {
        for (cell, sum) in self.buckets.iter().zip(&mut total.buckets) {
            *sum += cell.value();
        }
        total.sum += f64::from_bits(self.sum.load(Relaxed));
    }
}

/// A moment of one histogram, or of several shards together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HistogramSnapshot {
    /// Observations per bucket, not cumulative; the last is `+Inf`.
    pub buckets: [u64; CELLS],
    /// Sum of all observed values.
    pub sum: f64,
}

impl HistogramSnapshot {
    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds another shard.
    pub fn merge(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += more;
        }
        self.sum += other.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_finds_the_same_bucket_as_a_linear_search() {
        let mut values = vec![0.0, f64::MIN_POSITIVE, 0.49, 0.6, 7.0e9, f64::MAX, f64::INFINITY];
        for bound in ISTIO_BUCKETS {
            values.extend([bound, bound * (1.0 + f64::EPSILON), bound * (1.0 - f64::EPSILON), bound + 0.3]);
        }
        let mut power = 0.125;
        while power < 1e8 {
            values.extend([power, power * 1.3, power * 1.999]);
            power *= 2.0;
        }
        for value in values {
            let linear = ISTIO_BUCKETS.iter().position(|bound| value <= *bound).unwrap_or(CELLS - 1);
            assert_eq!(bucket_of(value), linear, "{value}");
        }
    }

    #[test]
    fn shards_merge_into_one_distribution() {
        let (left, right) = (Histogram::new(), Histogram::new());
        for value in [0.2, 0.5, 3.0] {
            left.observe(value);
        }
        for value in [3.0, 4_000_000.0, -7.0, f64::NAN] {
            right.observe(value);
        }
        let mut total = left.snapshot();
        total.merge(&right.snapshot());
        assert_eq!(total.count(), 7);
        assert_eq!(total.buckets[0], 4, "0.2, 0.5, and what is not a positive number");
        assert_eq!(total.buckets[2], 2);
        assert_eq!(total.buckets[CELLS - 1], 1);
        assert!((total.sum - 4_000_006.7).abs() < 1e-6);

        let mut merged = HistogramSnapshot::default();
        left.merge_into(&mut merged);
        right.merge_into(&mut merged);
        assert_eq!(merged, total);
    }
}
