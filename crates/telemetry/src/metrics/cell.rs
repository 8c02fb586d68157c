//! Counter and gauge cells for the hot path.
//!
//! A cell has one writer, the worker that owns the shard, and any number of readers. So an update is a relaxed load,
//! an addition and a relaxed store: plain moves on x86 and Arm, without a locked instruction and without a fence. A
//! second writer would lose updates, never corrupt anything; use [`super::shared`] where several threads write.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// Monotonic count with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`; wraps at 2^64.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The present value; any thread may ask.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Level with one writer; the levels of several shards add up.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// A gauge at zero.
    pub const fn new() -> Self {
        Self(AtomicI64::new(0))
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Subtracts one.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `n`, which may be negative.
    #[inline]
    pub fn add(&self, n: i64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Sets the level.
    #[inline]
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The present level; any thread may ask.
    #[inline]
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}
