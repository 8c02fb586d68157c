//! The feed as a task, with a control plane that never answers.

use std::time::Duration;

use outrigger_xds::NodeInfo;
use outrigger_xds::client::{self, Options};
use tokio::time::timeout;

use super::*;

type Used = Vec<(String, Option<Duration>)>;

/// Says what the test says, and notes what is retired.
struct Users {
    used: Arc<Mutex<Used>>,
    retired: mpsc::Sender<String>,
}

impl Publish for Users {
    fn publish(&mut self, _: u64, _: &[Arc<Resource>], _: &BTreeSet<String>) -> Vec<(Key, Invalid)> {
        Vec::new()
    }
    fn trust(&mut self, _: &str) {}
    fn usage(&self) -> Used {
        self.used.lock().clone()
    }
    fn retire(&self, destination: &str) -> bool {
        self.used.lock().retain(|(name, _)| name != destination);
        self.retired.try_send(destination.to_owned()).is_ok()
    }
}

#[tokio::test]
async fn beyond_the_bound_a_demand_displaces_what_was_unused_for_the_longest() {
    let unreachable = || async { Err("nobody is there".to_owned()) };
    let (client, events, run) = client::start(unreachable, NodeInfo::default(), Options::default());
    tokio::spawn(run);
    let (demand, demands) = mpsc::channel(8);
    let (retired, mut gone) = mpsc::channel(8);
    let used = Arc::new(Mutex::new(Used::new()));
    let directory = tempfile::tempdir().unwrap();
    let status = Arc::new(Mutex::new(FeedStatus::default()));
    let feed = ConfigFeed {
        client,
        events,
        demands,
        state: FeedState::new(always()),
        publisher: Users { used: used.clone(), retired },
        bounds: Bounds { most: 2, idle: Duration::from_secs(3600) },
        file: SnapshotFile::new(directory.path(), "test"),
        status: status.clone(),
    };
    let feed = tokio::spawn(feed.run());
    let idle = |name: &str, seconds| (name.to_owned(), Some(Duration::from_secs(seconds)));
    used.lock().extend([idle("a", 10), idle("b", 99), ("c".to_owned(), None)]);
    for name in ["a", "b", "c"] {
        demand.send(name.to_owned()).await.unwrap();
    }
    let long = Duration::from_secs(20);
    assert_eq!(timeout(long, gone.recv()).await.unwrap().as_deref(), Some("b"));
    demand.send("d".to_owned()).await.unwrap();
    assert_eq!(
        timeout(long, gone.recv()).await.unwrap().as_deref(),
        Some("a"),
        "c is in use, d is waited for"
    );
    demand.send("e".to_owned()).await.unwrap();
    while status.lock().destinations < 3 {
        tokio::task::yield_now().await;
    }
    assert!(gone.try_recv().is_err(), "nothing is left that could go: the bound gives way to what is in use");
    assert_eq!(status.lock().forgotten, 2);
    feed.abort();
}
