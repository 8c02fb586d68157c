//! Subscribed streams: each asks for the listeners, routes, clusters and endpoints of a few services, acknowledges barriers as a
//! sidecar does, and says when it has which state of the endpoints that change.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use outrigger_model::endpoint::{EndpointSet, Health};
use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_xds::NodeInfo;
use outrigger_xds::client::{self, Event, Options};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use super::mesh;

/// What a sidecar asks for of each service.
const KINDS: [ResourceKind; 4] =
    [ResourceKind::Cluster, ResourceKind::Endpoints, ResourceKind::Listener, ResourceKind::Routes];

/// The name of the barrier.
const BARRIER: &str = "barrier";
/// That wait to be counted; beyond it streams wait.
const NEWS: usize = 64 * 1024;
/// After a row of changes: nothing more comes.
const QUIET: Duration = Duration::from_secs(2);

/// The state of a service's endpoints that a stream has.
#[derive(Clone, Copy, Default)]
pub struct Seen {
    pub healthy: usize,
    /// The number of the change.
    pub stamp: u32,
}

/// Changes that were asked for, by service: number and when.
type Asked = Arc<Mutex<HashMap<String, Vec<(u32, Instant)>>>>;

/// Many streams.
pub struct Streams {
    news: mpsc::Receiver<News>,
    /// Of the service that all watch.
    seen: Vec<Option<Seen>>,
    /// Resources that a stream waits for at first.
    missing: Vec<usize>,
    asked: Asked,
    behind: Vec<Duration>,
}

enum News {
    /// So many resources that were asked for came for the first time.
    First(usize, usize),
    /// Of the service that all watch.
    Seen(usize, Seen, Instant),
    /// What changes that were asked for took to come.
    Behind(Vec<Duration>),
    Ended(usize, String),
}

impl Streams {
    /// Starts so many; each subscribes to service 0 and to `names - 1` others.
    pub fn start(xds: SocketAddr, streams: usize, per_connection: usize, names: u32, services: u32) -> Self {
        let (tell, news) = mpsc::channel(NEWS);
        let asked = Asked::default();
        let (mut channel, mut missing) = (None, Vec::new());
        for number in 0..streams {
            if number % per_connection == 0 {
                let endpoint = Endpoint::from_shared(format!("http://{xds}")).ok();
                channel = endpoint.map(|endpoint| endpoint.connect_lazy());
            }
            let Some(channel) = channel.clone() else { continue };
            // Spread over all services, the same in every run; one that comes twice is asked for once.
            let spread = |i: u32| ((number as u64 * 31 + u64::from(i) * 7919) % u64::from(services)) as u32;
            let others: BTreeSet<u32> = (1..names).map(spread).filter(|service| *service != 0).collect();
            let names: Vec<String> = std::iter::once(0).chain(others).map(mesh::resource).collect();
            missing.push(names.len() * KINDS.len());
            let stream = Stream { number, names, tell: tell.clone(), asked: Arc::clone(&asked) };
            tokio::spawn(stream.run(channel));
        }
        Self { news, seen: vec![None; streams], missing, asked, behind: Vec::new() }
    }

    /// Waits until every stream has all that it asked for.
    pub async fn subscribed(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.missing.iter().any(|missing| *missing > 0) {
            self.next(deadline).await?;
        }
        Ok(())
    }

    /// Waits until every stream has a state that is right; how long after `since` each had it.
    pub async fn all(
        &mut self,
        patience: Duration,
        since: Instant,
        right: impl Fn(&Seen) -> bool,
    ) -> Result<Vec<Duration>> {
        let deadline = Instant::now() + patience;
        let is_right = |seen: &Option<Seen>| seen.as_ref().is_some_and(&right);
        let mut at: Vec<Option<Duration>> =
            self.seen.iter().map(|seen| is_right(seen).then_some(Duration::ZERO)).collect();
        let mut left = at.iter().filter(|at| at.is_none()).count();
        while left > 0 {
            let Some((stream, when)) = self.next(deadline).await? else { continue };
            if at[stream].is_none() && is_right(&self.seen[stream]) {
                at[stream] = Some(when.saturating_duration_since(since));
                left -= 1;
            }
        }
        Ok(at.into_iter().flatten().collect())
    }

    /// A change of this service is about to be made.
    pub fn asked(&self, service: &str, number: u32) {
        self.asked.lock().entry(service.to_owned()).or_default().push((number, Instant::now()));
    }

    /// Waits until nothing has come for a while: how long each change that was asked for took to each stream that watches.
    pub async fn behind(&mut self, patience: Duration) -> Result<Vec<Duration>> {
        let deadline = Instant::now() + patience;
        while let Ok(news) = tokio::time::timeout(QUIET, self.next(deadline)).await {
            news?;
        }
        Ok(std::mem::take(&mut self.behind))
    }

    async fn next(&mut self, deadline: Instant) -> Result<Option<(usize, Instant)>> {
        let Ok(news) = tokio::time::timeout_at(deadline.into(), self.news.recv()).await else {
            let waiting = self.missing.iter().filter(|missing| **missing > 0).count();
            bail!("the streams do not get what they wait for; {waiting} still lack resources");
        };
        match news {
            Some(News::First(stream, count)) => {
                self.missing[stream] = self.missing[stream].saturating_sub(count);
                Ok(None)
            }
            Some(News::Seen(stream, seen, when)) => {
                self.seen[stream] = Some(seen);
                Ok(Some((stream, when)))
            }
            Some(News::Behind(times)) => {
                self.behind.extend(times);
                Ok(None)
            }
            Some(News::Ended(stream, reason)) => bail!("stream {stream} was lost: {reason}"),
            None => bail!("all streams have ended"),
        }
    }
}

struct Stream {
    number: usize,
    names: Vec<String>,
    tell: mpsc::Sender<News>,
    asked: Asked,
}

impl Stream {
    async fn run(self, channel: Channel) {
        let node = NodeInfo {
            id: format!("client-{}", self.number),
            cluster: "client".into(),
            user_agent: "outrigger".into(),
            ..NodeInfo::default()
        };
        let connect = move || std::future::ready(Ok(channel.clone()));
        let (client, mut events, life) = client::start(connect, node, Options::default());
        tokio::spawn(life);
        client.subscribe(ResourceKind::Barrier, BARRIER);
        for name in &self.names {
            KINDS.iter().for_each(|kind| client.subscribe(*kind, name));
        }
        let mut missing: HashSet<(ResourceKind, String)> =
            self.names.iter().flat_map(|name| KINDS.map(|kind| (kind, name.clone()))).collect();
        let mut had = HashMap::new();
        while let Some(event) = events.recv().await {
            let mut news = Vec::new();
            match event {
                Event::Connected => {}
                Event::Update { kind, upserts, .. } => {
                    let now = Instant::now();
                    let mut first = 0;
                    for (resource, _) in &upserts {
                        first += usize::from(missing.remove(&(kind, resource.name().to_owned())));
                        match resource {
                            Resource::Endpoints(set) => self.note(set, now, &mut had, &mut news),
                            Resource::Barrier(barrier) => client.ack_barrier(barrier.generation),
                            _ => {}
                        }
                    }
                    if first > 0 {
                        news.push(News::First(self.number, first));
                    }
                }
                Event::Disconnected { reason } => news.push(News::Ended(self.number, reason)),
                Event::Rejected { invalid, .. } => news.push(News::Ended(self.number, invalid.to_string())),
            }
            for told in news {
                if self.tell.send(told).await.is_err() {
                    return;
                }
            }
        }
    }

    /// `had`: the last change of each service that this stream has.
    fn note(&self, set: &EndpointSet, now: Instant, had: &mut HashMap<String, u32>, news: &mut Vec<News>) {
        let weight = set.iter().map(|endpoint| endpoint.weight).max().unwrap_or_default();
        let stamp = weight.saturating_sub(mesh::WEIGHT);
        let before = had.insert(set.cluster.clone(), stamp).unwrap_or_default();
        let service = set.cluster.rsplit('|').next().and_then(|host| host.split('.').next());
        let behind: Vec<Duration> = {
            let asked = self.asked.lock();
            let changes = service.and_then(|service| asked.get(service)).map_or(&[][..], |changes| changes);
            let new = changes.iter().rev().skip_while(|(number, _)| *number > stamp);
            let new = new.take_while(|(number, _)| *number > before);
            new.map(|(_, when)| now.saturating_duration_since(*when)).collect()
        };
        if !behind.is_empty() {
            news.push(News::Behind(behind));
        }
        if set.cluster == self.names[0] {
            let healthy = set.iter().filter(|endpoint| endpoint.health == Health::Healthy).count();
            news.push(News::Seen(self.number, Seen { healthy, stamp }, now));
        }
    }
}
