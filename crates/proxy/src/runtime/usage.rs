//! Whether a destination is in use, and since when it is not: what the feed forgets by.
//!
//! Workers begin and end uses, the feed closes what nobody uses. Both go by one word, so that a destination cannot be
//! forgotten in the moment in which a connection begins: whoever comes after the closing asks for the destination anew.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// In place of a count: forgotten.
const CLOSED: u32 = u32::MAX;

/// Times are milliseconds since the first use of this module.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The use of one destination, kept while configuration changes.
#[derive(Debug)]
pub struct Usage {
    /// Open connections, or [`CLOSED`].
    open: AtomicU32,
    last: AtomicU64,
}

/// A connection that uses a destination.
#[derive(Debug)]
#[must_use = "it counts only while it lives"]
pub struct InUse(Arc<Usage>);

fn now() -> u64 {
    u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Default for Usage {
    fn default() -> Self {
        Self { open: AtomicU32::new(0), last: AtomicU64::new(now()) }
    }
}

impl Usage {
    /// Begins a use; `None` once the destination is forgotten.
    pub fn begin(self: &Arc<Self>) -> Option<InUse> {
        let more = |open| (open < CLOSED - 1).then(|| open + 1);
        self.open.fetch_update(Relaxed, Relaxed, more).ok().map(|_| InUse(self.clone()))
    }

    /// How long nobody has used it; `None` while somebody does.
    pub fn idle(&self) -> Option<Duration> {
        let unused = matches!(self.open.load(Relaxed), 0 | CLOSED);
        unused.then(|| Duration::from_millis(now().saturating_sub(self.last.load(Relaxed))))
    }

    /// Forgets it, unless somebody uses it; says whether it is forgotten.
    pub fn close(&self) -> bool {
        self.open.compare_exchange(0, CLOSED, Relaxed, Relaxed).is_ok() || self.is_closed()
    }

    /// Whether it is forgotten.
    pub fn is_closed(&self) -> bool {
        self.open.load(Relaxed) == CLOSED
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.last.store(now(), Relaxed);
        self.0.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_cannot_be_closed_and_what_is_closed_cannot_be_used() {
        let usage = Arc::new(Usage::default());
        let (first, second) = (usage.begin().unwrap(), usage.begin().unwrap());
        assert!(usage.idle().is_none() && !usage.close());
        drop(first);
        assert!(!usage.close(), "one is left");
        drop(second);
        assert!(usage.idle().is_some() && usage.close());
        assert!(usage.begin().is_none() && usage.is_closed());
    }
}
