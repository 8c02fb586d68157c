//! The metrics of traffic: Istio's families per stream and the short list of Envoy's cluster statistics.
//!
//! Each worker owns a [`Shard`]: cells with a single writer, found by a small key without formatting any label. Labels
//! are made once per series; [`Totals`] merges the shards by their label text when somebody scrapes. Series are bounded.

pub mod cluster;
mod finder;
mod guests;
mod labels;
pub mod limits;
mod published;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use outrigger_model::endpoint::Workload;
use outrigger_model::identity::SpiffeId;
use outrigger_model::listener::Direction;
use outrigger_telemetry::metrics::{Counter, Histogram, HistogramSnapshot, Labels, Page, Source};
use parking_lot::Mutex;
use tokio::runtime::RuntimeMetrics;
use tokio::time::Instant;

pub use cluster::ClusterCells;

use crate::flags::Flags;
use crate::introduction::{self, Introduced};
use crate::protocol::Protocol;

use finder::Finder;
use published::{Cells, Published};

/// Series per worker and family; what comes later shares one series labelled `other`.
pub const MAX_SERIES: usize = 4096;

/// Keys cached per worker; beyond that the cache starts over and finds its series by label text.
const MAX_KEYS: usize = 4 * MAX_SERIES;

/// How often series that nobody needs are looked for where there are too many.
const SWEEP: Duration = Duration::from_secs(60);

type FastMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Who we are: one side of every label set.
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// Our workload.
    pub workload: Workload,
    /// Our identity.
    pub principal: Option<SpiffeId>,
    /// The cluster (of workloads) that we run in, Istio's `source_cluster`.
    pub cluster: String,
    /// `sidecar~ip~name~domain`: in spans.
    pub node_id: String,
    /// Istio's mesh id: in spans.
    pub mesh_id: String,
}

/// What became of a copy of a request.
#[derive(Debug, Clone, Copy)]
pub enum Mirrored {
    Answered,
    Failed,
    /// Not sent: its body was too long, or too many were under way.
    Dropped,
}

/// What tells one series from another.
#[derive(Debug, Clone, Copy)]
pub struct SeriesOf<'a> {
    pub direction: Direction,
    pub protocol: Protocol,
    pub is_grpc: bool,
    pub code: u16,
    pub grpc_status: Option<u32>,
    pub flags: Flags,
    pub mtls: bool,
    /// The identity of the downstream peer (inbound), with its hash by [`Shard::hash_of`].
    pub peer: Option<&'a SpiffeId>,
    /// The host by which a sidecar called us (inbound), hashed with it.
    pub called: Option<&'a str>,
    /// Who the downstream peer says it is.
    pub said: Option<&'a Introduced>,
    pub peer_hash: u64,
    pub cluster: Option<&'a str>,
    pub cluster_id: u32,
    /// Of the endpoint that was picked (outbound).
    pub workload: Option<&'a Arc<Workload>>,
    pub endpoint_identity: Option<&'a SpiffeId>,
}

/// The cells of one request series: the four families have the same labels.
#[derive(Debug, Default)]
pub struct RequestCells {
    pub requests: Counter,
    pub duration: Histogram,
    pub request_bytes: Histogram,
    pub response_bytes: Histogram,
    /// Of gRPC.
    pub request_messages: Counter,
    pub response_messages: Counter,
}

/// The cells of one TCP series.
#[derive(Debug, Default)]
pub struct TcpCells {
    pub opened: Counter,
    pub closed: Counter,
    pub received: Counter,
    pub sent: Counter,
}

impl Cells for RequestCells {
    fn activity(&self) -> u64 {
        self.requests.value()
    }
}

impl Cells for TcpCells {
    fn activity(&self) -> u64 {
        let of = |counter: &Counter| counter.value();
        of(&self.opened) + of(&self.closed) + of(&self.received) + of(&self.sent)
    }
}

impl Cells for ClusterCells {
    // Clusters are the configuration's: shown as long as the process lives.
    const REST: Duration = Duration::MAX;

    fn activity(&self) -> u64 {
        0
    }
}

/// What a shard shows.
#[derive(Default)]
struct ShardTable {
    requests: Published<RequestCells>,
    tcp: Published<TcpCells>,
    clusters: Published<ClusterCells>,
}

/// One worker's metrics.
pub struct Shard {
    totals: Arc<Totals>,
    table: Arc<ShardTable>,
    requests: RefCell<Finder<RequestCells>>,
    tcp: RefCell<Finder<TcpCells>>,
    clusters: RefCell<FastMap<Arc<str>, Arc<ClusterCells>>>,
    hasher: foldhash::fast::RandomState,
}

impl Shard {
    /// Who we are.
    pub fn local(&self) -> &Local {
        &self.totals.local
    }

    /// A hash of a peer's identity, of the host by which it called us and of who it says it is, for
    /// [`SeriesOf::peer_hash`].
    pub fn hash_of(&self, peer: Option<&SpiffeId>, called: Option<&str>, said: Option<&Introduced>) -> u64 {
        peer.map_or(0, |peer| self.hasher.hash_one((peer.as_str(), called, said)) | 1)
    }

    /// What we say to peer sidecars of ourselves.
    pub fn introduction(&self) -> Option<&str> {
        self.totals.introduction.as_deref()
    }

    /// Counts a finished request; `messages`: of gRPC, there and back.
    pub fn request(
        &self,
        series: &SeriesOf<'_>,
        millis: f64,
        (received, sent): (u64, u64),
        messages: Option<(u64, u64)>,
    ) {
        let mut finder = self.requests.borrow_mut();
        finder.with(series, (&self.totals.local, &self.table.requests), |cells| {
            cells.requests.inc();
            cells.duration.observe(millis);
            cells.request_bytes.observe(received as f64);
            cells.response_bytes.observe(sent as f64);
            if let Some((request, response)) = messages {
                cells.request_messages.add(request);
                cells.response_messages.add(response);
            }
        });
    }

    /// Calls `update` with the cells of a TCP series.
    pub fn tcp(&self, series: &SeriesOf<'_>, update: impl FnOnce(&TcpCells)) {
        let mut finder = self.tcp.borrow_mut();
        finder.with(series, (&self.totals.local, &self.table.tcp), update);
    }

    /// Counts copies of requests.
    pub fn count_mirrored(&self, came: Mirrored, copies: u64) {
        self.totals.mirrored[came as usize].fetch_add(copies, Relaxed);
    }

    /// The cells of a cluster; keep them where they are used often.
    pub fn cluster(&self, name: &Arc<str>) -> Arc<ClusterCells> {
        let mut clusters = self.clusters.borrow_mut();
        if let Some(cells) = clusters.get(&**name) {
            return cells.clone();
        }
        // Cluster names come from the control plane, not from peers: bounded by the configuration that was in use.
        let cells = Arc::new(ClusterCells::default());
        clusters.insert(name.clone(), cells.clone());
        let labels = Labels::new().with("envoy_cluster_name", name);
        self.table.clusters.add(labels, cells.clone());
        cells
    }
}

/// All shards together: what a scrape shows.
pub struct Totals {
    local: Local,
    introduction: Option<Box<str>>,
    shards: Mutex<Vec<Arc<ShardTable>>>,
    /// Races for the first bytes that the client won, and that the server won.
    raced: [AtomicU64; 2],
    /// Copies of requests, by [`Mirrored`].
    mirrored: [AtomicU64; 3],
    /// The workers' runtimes, in the order of their start.
    runtimes: Mutex<Vec<(usize, RuntimeMetrics)>>,
}

impl Totals {
    /// Without shards yet.
    pub fn new(local: Local) -> Arc<Self> {
        let introduction = introduction::text(&local.workload, &local.cluster);
        let (shards, runtimes) = (Mutex::default(), Mutex::default());
        Arc::new(Self {
            introduction,
            local,
            shards,
            raced: Default::default(),
            mirrored: Default::default(),
            runtimes,
        })
    }

    /// Who we are.
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// Counts a connection on which both sides were waited for.
    pub fn count_race(&self, server_first: bool) {
        self.raced[usize::from(server_first)].fetch_add(1, Relaxed);
    }

    /// Shows how many tasks a worker has.
    pub fn watch(&self, worker: usize, runtime: RuntimeMetrics) {
        self.runtimes.lock().push((worker, runtime));
    }

    /// A shard for one worker. Its counts stay when the worker ends.
    pub fn shard(self: &Arc<Self>) -> Shard {
        let table = Arc::new(ShardTable::default());
        self.shards.lock().push(table.clone());
        Shard {
            totals: self.clone(),
            table,
            requests: RefCell::new(Finder::new()),
            tcp: RefCell::new(Finder::new()),
            clusters: RefCell::default(),
            hasher: foldhash::fast::RandomState::default(),
        }
    }

    fn merged<C: Cells, S: Default>(
        &self,
        published: impl Fn(&ShardTable) -> &Published<C>,
        add: impl Fn(&C, &mut S),
    ) -> BTreeMap<Labels, S> {
        let now = Instant::now();
        let mut merged = BTreeMap::<Labels, (S, bool)>::new();
        for shard in self.shards.lock().iter() {
            published(shard).each(now, |labels, cells, rests| {
                let (total, all_rest) = merged.entry(labels.clone()).or_insert_with(|| (S::default(), true));
                add(cells, total);
                *all_rest &= rests;
            });
        }
        // A series that comes back goes on counting where it was.
        merged
            .into_iter()
            .filter(|(_, (_, rests))| !rests)
            .map(|(labels, (total, _))| (labels, total))
            .collect()
    }
}

#[derive(Default)]
struct RequestTotals {
    requests: u64,
    duration: HistogramSnapshot,
    request_bytes: HistogramSnapshot,
    response_bytes: HistogramSnapshot,
    request_messages: u64,
    response_messages: u64,
}

#[derive(Default)]
struct TcpTotals {
    opened: u64,
    closed: u64,
    received: u64,
    sent: u64,
}

impl Source for Totals {
    fn collect(&self, page: &mut Page) {
        for (speaker, count) in ["client", "server"].into_iter().zip(&self.raced) {
            let help =
                "Connections without a declared protocol, by who spoke first after the upstream was dialled.";
            let labels = Labels::new().with("speaker", speaker);
            page.counter("outrigger_raced_connections_total", help).sample(&labels, count.load(Relaxed));
        }
        for (outcome, count) in ["answered", "failed", "dropped"].into_iter().zip(&self.mirrored) {
            let help = "Copies of requests for mirrors; dropped ones had too long a body, or too many were under way.";
            let labels = Labels::new().with("outcome", outcome);
            page.counter("outrigger_mirrored_requests_total", help).sample(&labels, count.load(Relaxed));
        }
        for (worker, runtime) in &*self.runtimes.lock() {
            let labels = Labels::new().with("worker", &worker.to_string());
            let help = "Tasks of a worker: one per connection and per HTTP/2 stream, and a few of its own.";
            page.gauge("outrigger_worker_tasks", help).sample(&labels, runtime.num_alive_tasks() as u64);
        }
        let requests = self.merged(
            |shard| &shard.requests,
            |cells, total: &mut RequestTotals| {
                total.requests += cells.requests.value();
                cells.duration.merge_into(&mut total.duration);
                cells.request_bytes.merge_into(&mut total.request_bytes);
                cells.response_bytes.merge_into(&mut total.response_bytes);
                total.request_messages += cells.request_messages.value();
                total.response_messages += cells.response_messages.value();
            },
        );
        for (labels, total) in &requests {
            page.counter("istio_requests_total", "Requests.").sample(labels, total.requests);
            page.histogram("istio_request_duration_milliseconds", "Time from request to end of response.")
                .sample(labels, &total.duration);
            page.histogram("istio_request_bytes", "Size of request bodies.")
                .sample(labels, &total.request_bytes);
            page.histogram("istio_response_bytes", "Size of response bodies.")
                .sample(labels, &total.response_bytes);
            if total.request_messages + total.response_messages > 0 {
                page.counter("istio_request_messages_total", "Messages of gRPC requests.")
                    .sample(labels, total.request_messages);
                page.counter("istio_response_messages_total", "Messages of gRPC responses.")
                    .sample(labels, total.response_messages);
            }
        }
        let tcp = self.merged(
            |shard| &shard.tcp,
            |cells, total: &mut TcpTotals| {
                total.opened += cells.opened.value();
                total.closed += cells.closed.value();
                total.received += cells.received.value();
                total.sent += cells.sent.value();
            },
        );
        for (labels, total) in &tcp {
            page.counter("istio_tcp_connections_opened_total", "TCP connections opened.")
                .sample(labels, total.opened);
            page.counter("istio_tcp_connections_closed_total", "TCP connections closed.")
                .sample(labels, total.closed);
            page.counter("istio_tcp_received_bytes_total", "Bytes received from clients.")
                .sample(labels, total.received);
            page.counter("istio_tcp_sent_bytes_total", "Bytes sent to clients.").sample(labels, total.sent);
        }
        let clusters = self.merged(|shard| &shard.clusters, ClusterCells::add_to);
        for (labels, total) in &clusters {
            total.write(labels, page);
        }
    }
}

#[cfg(test)]
mod tests;
