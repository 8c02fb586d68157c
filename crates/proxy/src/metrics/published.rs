//! The series of one kind that a worker publishes to the scraper, and which of them are worth a line.

use std::sync::Arc;
use std::time::Duration;

use outrigger_telemetry::metrics::Labels;
use parking_lot::Mutex;
use tokio::time::Instant;

/// A series' cells.
pub(super) trait Cells: Default {
    /// A series in which nothing happens for so long is not shown: a scraper has seen it, and nobody asks for it.
    const REST: Duration = Duration::from_secs(3600);

    /// A number that changes when something happens.
    fn activity(&self) -> u64;
}

struct Shown<C> {
    labels: Labels,
    cells: Arc<C>,
    activity: u64,
    /// When it was last seen to change.
    since: Instant,
}

impl<C: Cells> Shown<C> {
    /// Whether nothing has happened for long.
    fn rests(&mut self, now: Instant) -> bool {
        let activity = self.cells.activity();
        if activity != self.activity {
            (self.activity, self.since) = (activity, now);
        }
        now.saturating_duration_since(self.since) >= C::REST
    }
}

/// The series of one kind.
pub(super) struct Published<C>(Mutex<Vec<Shown<C>>>);

impl<C> Default for Published<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C: Cells> Published<C> {
    pub fn add(&self, labels: Labels, cells: Arc<C>) {
        self.0.lock().push(Shown { labels, cells, activity: 0, since: Instant::now() });
    }

    /// Calls `show` with each series, and whether it rests.
    pub fn each(&self, now: Instant, mut show: impl FnMut(&Labels, &C, bool)) {
        for shown in self.0.lock().iter_mut() {
            let rests = shown.rests(now);
            show(&shown.labels, &shown.cells, rests);
        }
    }

    /// Forgets the series that rest.
    pub fn forget(&self, now: Instant) -> Vec<Labels> {
        let mut all = self.0.lock();
        let mut forgotten = Vec::new();
        all.retain_mut(|shown| {
            let rests = shown.rests(now);
            if rests {
                forgotten.push(std::mem::take(&mut shown.labels));
            }
            !rests
        });
        forgotten
    }
}
