//! Descriptors of the data path: bounded below the process's limit (which it has raised), so that admin pages, health and xDS always find one.
//!
//! Downstream connections take up to three quarters of them, as each may need one towards an upstream.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Kept for everything but traffic: a quarter of a small limit, no more than this of a large one.
const KEPT: usize = 256;

/// The descriptors that traffic may use; a clone is another handle.
#[derive(Clone)]
pub struct Descriptors {
    free: Arc<Semaphore>,
    /// What downstream connections leave.
    upstream: usize,
}

/// A descriptor in use.
#[derive(Debug)]
#[must_use = "it counts only while it lives"]
pub struct Descriptor {
    _permit: OwnedSemaphorePermit,
}

impl Descriptors {
    /// Of a process with this limit.
    pub fn new(limit: usize) -> Self {
        let free = limit.saturating_sub((limit / 4).min(KEPT)).min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(free)), upstream: free / 4 }
    }

    /// Of this process; without a limit where the system does not tell.
    pub fn of_process() -> Self {
        Self::new(limit().unwrap_or(usize::MAX))
    }

    /// For a connection that is to be accepted.
    pub fn downstream(&self) -> Option<Descriptor> {
        (self.free.available_permits() > self.upstream).then(|| self.upstream()).flatten()
    }

    /// For a connection to an upstream.
    pub fn upstream(&self) -> Option<Descriptor> {
        Some(Descriptor { _permit: self.free.clone().try_acquire_owned().ok()? })
    }
}

/// How many this process may have; nothing where the system does not tell.
pub(crate) fn limit() -> Option<usize> {
    soft(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

/// `Max open files  SOFT  HARD  files`
fn soft(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_kept_for_others_and_some_of_the_rest_for_upstreams() {
        let descriptors = Descriptors::new(64);
        let downstream: Vec<_> = std::iter::from_fn(|| descriptors.downstream()).collect();
        assert_eq!(downstream.len(), 36);
        let mut upstream: Vec<_> = std::iter::from_fn(|| descriptors.upstream()).collect();
        assert_eq!(upstream.len(), 12, "sixteen are nobody's");
        assert!(descriptors.downstream().is_none());
        upstream.clear();
        drop(downstream);
        assert!(descriptors.downstream().is_some());
    }

    #[test]
    fn a_large_limit_keeps_no_more_than_is_needed() {
        assert_eq!(Descriptors::new(1 << 20).free.available_permits(), (1 << 20) - KEPT);
        assert!(Descriptors::of_process().downstream().is_some());
    }

    #[test]
    fn the_soft_limit_is_read() {
        let limits = "Limit  Soft  Hard  Units\nMax open files  1024  524288  files\n";
        assert_eq!(soft(limits), Some(1024));
        assert_eq!(soft("Max open files  unlimited  unlimited  files\n"), None);
    }
}
