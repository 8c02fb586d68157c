//! Subscribed streams: each asks for clusters, endpoints, listeners and routes of its services, acknowledges barriers as a sidecar does, and notes when
//! it has so many endpoints as a change is to leave.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use outrigger_model::endpoint::Health;
use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_xds::NodeInfo;
use outrigger_xds::client::{self, Event, Options};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

const KINDS: [ResourceKind; 4] =
    [ResourceKind::Cluster, ResourceKind::Endpoints, ResourceKind::Listener, ResourceKind::Routes];
const BARRIER: &str = "barrier";
/// The control plane allows 16.
const PER_CONNECTION: usize = 10;
/// For the last changes to come.
const QUIET: Duration = Duration::from_secs(3);

/// A change: its number, when it was begun, and how many endpoints are healthy with it.
#[derive(Clone, Copy)]
struct Change {
    number: u64,
    at: Instant,
    healthy: usize,
}

#[derive(Default)]
struct Seen {
    asked: HashMap<String, Change>,
    changes: u64,
    behind: Vec<Duration>,
    /// Resources that streams wait for.
    missing: usize,
    lost: Option<String>,
}

/// Many streams.
pub struct Streams {
    seen: Arc<Mutex<Seen>>,
}

impl Streams {
    /// One for each list of names.
    pub fn start(xds: SocketAddr, all: Vec<Vec<String>>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        seen.lock().missing = all.iter().map(|names| names.len() * KINDS.len()).sum();
        let mut channel = None;
        for (number, names) in all.into_iter().enumerate() {
            if number % PER_CONNECTION == 0 {
                let endpoint = Endpoint::from_shared(format!("http://{xds}")).ok();
                channel = endpoint.map(|endpoint| endpoint.connect_lazy());
            }
            if let Some(channel) = channel.clone() {
                tokio::spawn(stream(number, names, channel, seen.clone()));
            }
        }
        Self { seen }
    }

    /// Waits until every stream has all that it asked for.
    pub async fn subscribed(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let (missing, lost) = {
                let seen = self.seen.lock();
                (seen.missing, seen.lost.clone())
            };
            match lost {
                Some(why) => bail!("a stream was lost: {why}"),
                None if missing == 0 => return Ok(()),
                None if Instant::now() > deadline => bail!("{missing} resources have not come"),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// A change is about to be made.
    pub fn asked(&self, cluster: &str, healthy: usize) {
        let mut seen = self.seen.lock();
        seen.changes += 1;
        let change = Change { number: seen.changes, at: Instant::now(), healthy };
        seen.asked.insert(cluster.to_owned(), change);
    }

    /// How long each change took to each stream that watches.
    pub async fn behind(&self) -> Result<Vec<Duration>> {
        tokio::time::sleep(QUIET).await;
        let mut seen = self.seen.lock();
        match seen.lost.take() {
            Some(why) => bail!("a stream was lost: {why}"),
            None => Ok(std::mem::take(&mut seen.behind)),
        }
    }
}

async fn stream(number: usize, names: Vec<String>, channel: Channel, seen: Arc<Mutex<Seen>>) {
    let node = NodeInfo {
        id: format!("client-{number}"),
        cluster: "client".into(),
        user_agent: "outrigger".into(),
        ..NodeInfo::default()
    };
    let connect = move || std::future::ready(Ok(channel.clone()));
    let (client, mut events, life) = client::start(connect, node, Options::default());
    tokio::spawn(life);
    client.subscribe(ResourceKind::Barrier, BARRIER);
    for name in &names {
        KINDS.iter().for_each(|kind| client.subscribe(*kind, name));
    }
    let mut missing: HashSet<(ResourceKind, String)> =
        names.iter().flat_map(|name| KINDS.map(|kind| (kind, name.clone()))).collect();
    let mut had: HashMap<String, u64> = HashMap::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Connected => {}
            Event::Update { kind, upserts, .. } => {
                let now = Instant::now();
                let mut seen = seen.lock();
                for (resource, _) in &upserts {
                    if missing.remove(&(kind, resource.name().to_owned())) {
                        seen.missing -= 1;
                    }
                    match resource {
                        Resource::Barrier(barrier) => client.ack_barrier(barrier.generation),
                        Resource::Endpoints(set) => {
                            let healthy = set.iter().filter(|one| one.health == Health::Healthy).count();
                            let Some(change) = seen.asked.get(&set.cluster).copied() else { continue };
                            let is_new = had.get(&set.cluster) != Some(&change.number);
                            if is_new && healthy == change.healthy {
                                had.insert(set.cluster.clone(), change.number);
                                seen.behind.push(now.saturating_duration_since(change.at));
                            }
                        }
                        _ => {}
                    }
                }
            }
            Event::Disconnected { reason } => seen.lock().lost = Some(reason),
            Event::Rejected { invalid, .. } => seen.lock().lost = Some(invalid.to_string()),
        }
    }
}
