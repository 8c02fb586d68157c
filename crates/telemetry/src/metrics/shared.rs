//! Cells that several threads may write, for what happens rarely: pushes, refusals, exports, admin requests.
//!
//! An update costs a locked instruction, and finding the child of a [`Vector`] a mutex and a map. Not for requests:
//! those use the single-writer cells of [`super::cell`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::page::{HistogramFamily, LabelText, Labels};

/// Monotonic count.
#[derive(Debug, Default)]
pub struct SharedCounter(AtomicU64);

impl SharedCounter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The present value.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Level; holds an f64.
#[derive(Debug, Default)]
pub struct SharedGauge(AtomicU64);

impl SharedGauge {
    /// Sets the level.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: f64) {
        let add = |bits| Some((f64::from_bits(bits) + n).to_bits());
        // The closure never refuses, so the update never fails.
        let _ = self.0.fetch_update(Relaxed, Relaxed, add);
    }

    /// The present level.
    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

/// Distribution over bounds of one's own choice.
#[derive(Debug)]
pub struct SharedHistogram {
    bounds: &'static [f64],
    buckets: Box<[AtomicU64]>,
    sum: SharedGauge,
}

impl SharedHistogram {
    /// Empty, over ascending upper bounds; `+Inf` is added.
    pub fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum: SharedGauge::default() }
    }

    /// Adds one observation; a negative value or NaN counts as zero.
    pub fn observe(&self, value: f64) {
        let value = if value > 0.0 { value } else { 0.0 };
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.add(value);
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    /// Writes the distribution to a page.
    pub fn write(&self, labels: impl LabelText, family: &mut HistogramFamily<'_>) {
        let buckets: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        family.sample_with_bounds(labels, self.bounds, &buckets, self.sum.value());
    }
}

/// Children beyond this number share one child whose label values all read `other`: a label that follows what a
/// peer sends must not grow the process.
pub const MAX_CHILDREN: usize = 4096;

/// A metric with `N` labels: one child per combination of values.
pub struct Vector<T, const N: usize> {
    names: [&'static str; N],
    make: Box<dyn Fn() -> T + Send + Sync>,
    children: Mutex<BTreeMap<[String; N], Arc<T>>>,
}

impl<T, const N: usize> Vector<T, N> {
    /// No children yet; `make` makes them.
    pub fn new(names: [&'static str; N], make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self { names, make: Box::new(make), children: Mutex::new(BTreeMap::new()) }
    }

    /// The child with these label values, in the order of the names; keep it where it is used often.
    pub fn with(&self, values: [&str; N]) -> Arc<T> {
        let mut children = self.children.lock();
        let key = values.map(str::to_owned);
        if let Some(child) = children.get(&key) {
            return child.clone();
        }
        let key = if children.len() >= MAX_CHILDREN { values.map(|_| "other".to_owned()) } else { key };
        children.entry(key).or_insert_with(|| Arc::new((self.make)())).clone()
    }

    /// Forgets a child, for instance of a client that is gone.
    pub fn remove(&self, values: [&str; N]) {
        self.children.lock().remove(&values.map(str::to_owned));
    }

    /// Visits all children in the order of their label values.
    pub fn each(&self, mut visit: impl FnMut(&Labels, &T)) {
        let children = self.children.lock().clone();
        for (values, child) in children {
            let mut labels = Labels::new();
            for (name, value) in self.names.iter().zip(&values) {
                labels.push(name, value);
            }
            visit(&labels, &child);
        }
    }
}
