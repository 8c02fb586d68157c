//! Rings when files have changed, and now and then without a reason: notifications may be lost, and some file systems send none. It says
//! only when to look, never what has changed.

use std::path::Path;
use std::time::Duration;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// Looked at even without a notification.
const RESCAN: Duration = Duration::from_secs(10);

/// What rings.
pub(crate) struct Bell {
    watcher: Option<RecommendedWatcher>,
    rung: mpsc::Receiver<()>,
    settle: Duration,
}

impl Bell {
    /// Changes come in bursts (write, rename, chmod): it rings so long after the first. `what` is told where the system cannot watch.
    pub(crate) fn new(what: &str, settle: Duration) -> Self {
        Self::but_for(what, settle, |_| false)
    }

    /// The same, but for what happens to those of our own alone.
    pub(crate) fn but_for(what: &str, settle: Duration, is_own: fn(&Path) -> bool) -> Self {
        let (bell, rung) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let paths = event.as_ref().map_or(&[][..], |event| &event.paths);
            let is_own = !paths.is_empty() && paths.iter().all(|path| is_own(path));
            if is_news(&event) && !is_own {
                // Full means that it is ringing already.
                let _ = bell.try_send(());
            }
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, "the system cannot watch {what}: it is looked at every 10 s");
        }
        Self { watcher: watcher.ok(), rung, settle }
    }

    /// Each time before looking: a directory may have appeared or been replaced.
    pub(crate) fn watch(&mut self, directory: &Path) {
        if let Some(watcher) = &mut self.watcher {
            let _ = watcher.watch(directory, RecursiveMode::NonRecursive);
        }
    }

    /// When to look again.
    pub(crate) async fn rings(&mut self) {
        if self.watcher.is_none() {
            return tokio::time::sleep(RESCAN).await;
        }
        if let Ok(Some(())) = tokio::time::timeout(RESCAN, self.rung.recv()).await {
            tokio::time::sleep(self.settle).await;
            let _ = self.rung.try_recv();
        }
    }
}

/// Reading is told as well, ours too: heard as a change, each look would call for the next.
pub(crate) fn is_news(event: &notify::Result<Event>) -> bool {
    event.as_ref().map_or(true, |event| !event.kind.is_access())
}
