//! What the feed gives up, and for whom.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::resolve::{Board, Lookup};
use outrigger_xds::NodeInfo;
use outrigger_xds::client::{self, Options};

type Used = Vec<(ResourceKey, Option<Duration>)>;

/// Says what the test says, and notes what is retired.
struct Users {
    used: Arc<Mutex<Used>>,
    retired: mpsc::Sender<String>,
}

impl Publish for Users {
    fn publish(
        &mut self,
        _: u64,
        _: &[Arc<Resource>],
        _: &BTreeSet<ResourceKey>,
    ) -> Vec<(ResourceKey, Invalid)> {
        Vec::new()
    }
    fn trust(&mut self, _: &TrustBundleSecret) {}
    fn revoke(&mut self, _: &TrustBundleSecret) {}
    fn usage(&self) -> Used {
        self.used.lock().clone()
    }
    fn retire(&self, key: &ResourceKey) -> bool {
        self.used.lock().retain(|(known, _)| known != key);
        self.retired.try_send(key.1.clone()).is_ok()
    }
}

struct Scene {
    feed: ConfigFeed<Users>,
    used: Arc<Mutex<Used>>,
    retired: mpsc::Receiver<String>,
    _directory: tempfile::TempDir,
}

/// A feed that keeps two destinations.
fn scene(connected: bool) -> Scene {
    let unreachable = || async { Err("nobody is there".to_owned()) };
    let (client, events, _) = client::start(unreachable, NodeInfo::default(), Options::default());
    let (retired, gone) = mpsc::channel(8);
    let used = Arc::new(Mutex::new(Used::new()));
    let directory = tempfile::tempdir().unwrap();
    let feed = ConfigFeed {
        client,
        events,
        demands: mpsc::channel(1).1,
        resolver: Resolver::new(Lookup::new(Vec::new(), Vec::new(), PathBuf::new()), Board::default()),
        state: Arc::new(Mutex::new(FeedState::new(always(true)))),
        publisher: Users { used: used.clone(), retired },
        bounds: Bounds { most: 2, idle: Duration::from_secs(3600) },
        file: SnapshotFile::new(directory.path(), "test"),
        status: Arc::new(Mutex::new(FeedStatus { connected, ..FeedStatus::default() })),
    };
    Scene { feed, used, retired: gone, _directory: directory }
}

impl Scene {
    /// As the feed does when a worker asks; what is given up for it.
    fn demand(&mut self, name: &str) -> Vec<String> {
        if self.feed.demand((ResourceKind::Destination, name.to_owned())) {
            self.feed.forget_unused();
        }
        self.feed.advance();
        std::iter::from_fn(|| self.retired.try_recv().ok()).collect()
    }
}

fn idle(name: &str, seconds: u64) -> (ResourceKey, Option<Duration>) {
    ((ResourceKind::Destination, name.to_owned()), Some(Duration::from_secs(seconds)))
}

#[test]
fn beyond_the_bound_a_demand_displaces_what_was_unused_for_the_longest() {
    let mut scene = scene(true);
    scene.used.lock().extend([
        idle("a", 10),
        idle("b", 99),
        ((ResourceKind::Destination, "c".to_owned()), None),
    ]);
    assert!(scene.demand("a").is_empty() && scene.demand("b").is_empty());
    assert_eq!(scene.demand("c"), ["b"]);
    assert_eq!(scene.demand("d"), ["a"], "c is in use, d is waited for");
    assert!(scene.demand("e").is_empty(), "the bound gives way to what is in use");
    let status = scene.feed.status.lock();
    assert_eq!((status.destinations, status.forgotten), (3, 2));
}

#[test]
fn while_the_control_plane_is_away_nothing_that_it_answered_is_given_up() {
    let mut scene = scene(false);
    scene.used.lock().extend([idle("a", 10_000), idle("b", 99), idle("c", 5)]);
    for name in ["a", "b", "c", "d"] {
        assert!(scene.demand(name).is_empty());
    }
    scene.feed.status.lock().connected = true;
    assert_eq!(scene.demand("e"), ["a", "b", "c"]);
}
