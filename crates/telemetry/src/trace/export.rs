//! From the workers' span records to OTLP collectors.
//!
//! ```text
//! worker --try_send--> queue (2,048 spans, 8 MiB) --drain--> batches --> one small queue and task per endpoint
//! ```
//!
//! Nothing upstream of an arrow ever waits for what is downstream of it: what does not fit is dropped and counted.
//! The drain runs on a clock, not on arrival, because waking another thread costs a worker a system call; only a
//! queue that is half full rings. An endpoint that is down loses its own batches, not those of the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::span::SpanRecord;
use crate::metrics::{Page, SharedCounter, Source};

mod otlp;

/// Upper bound of the text held by the queue: attributes are bounded each, but what they add up to is not.
const MAX_QUEUED_BYTES: usize = 8 << 20;

/// A batch is closed at this size, so that it stays below gRPC's usual limit of 4 MiB per message.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// Batches that wait for one endpoint.
const ENDPOINT_QUEUE: usize = 4;

/// Where spans go, and how.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// Collectors (OTLP over gRPC, plain text), e.g. `http://127.0.0.1:4317`. Each gets every span.
    pub endpoints: Vec<String>,
    /// Resource attributes, e.g. `service.name`; one resource per process.
    pub resource: Vec<(String, String)>,
    /// Spans that may wait for the next batch. Default 2,048.
    pub queue: usize,
    /// Spans per message. Default 512.
    pub batch: usize,
    /// Longest time a span waits for its batch. Default 1 s.
    pub interval: Duration,
    /// Time for one batch, all retries included. Default 10 s.
    pub timeout: Duration,
}

impl Default for ExportConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            resource: Vec::new(),
            queue: 2048,
            batch: 512,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Why spans cannot be exported as configured.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No endpoint is configured.
    #[error("no trace collector is configured; give at least one endpoint such as http://127.0.0.1:4317")]
    NoEndpoint,
    /// An endpoint is not usable.
    #[error("trace collector \"{endpoint}\" cannot be used: {reason}; write it as http://host:port")]
    Endpoint {
        /// What was configured.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Makes the two ends. The exporter does nothing until [`Exporter::run`] is spawned on the control runtime.
pub fn exporter(config: ExportConfig) -> Result<(SpanSender, Exporter), ExportError> {
    if config.endpoints.is_empty() {
        return Err(ExportError::NoEndpoint);
    }
    for endpoint in &config.endpoints {
        otlp::check_endpoint(endpoint)?;
    }
    let queue = config.queue.max(2);
    let (spans, receiver) = mpsc::channel(queue);
    let endpoints = config.endpoints.iter().map(|name| EndpointStats::new(name)).collect();
    let shared = Arc::new(ExportQueue {
        ring: Notify::new(),
        queued_bytes: AtomicUsize::new(0),
        stats: ExportStats { overflowed: SharedCounter::default(), endpoints },
    });
    let sender = SpanSender { spans, shared: shared.clone(), ring_at: queue / 2 };
    Ok((sender, Exporter { config, spans: receiver, shared }))
}

struct ExportQueue {
    /// Rung when the queue is half full.
    ring: Notify,
    queued_bytes: AtomicUsize,
    stats: ExportStats,
}

/// The workers' end: cheap to clone, never blocks.
#[derive(Clone)]
pub struct SpanSender {
    spans: mpsc::Sender<SpanRecord>,
    shared: Arc<ExportQueue>,
    ring_at: usize,
}

impl SpanSender {
    /// Hands over a finished span. `false`: there was no room, the span is gone and counted.
    pub fn try_send(&self, span: SpanRecord) -> bool {
        let weight = span.weight();
        let queued = self.shared.queued_bytes.fetch_add(weight, Relaxed);
        if queued + weight > MAX_QUEUED_BYTES || self.spans.try_send(span).is_err() {
            self.shared.queued_bytes.fetch_sub(weight, Relaxed);
            self.shared.stats.overflowed.inc();
            return false;
        }
        if self.spans.capacity() <= self.ring_at {
            self.shared.ring.notify_one();
        }
        true
    }

    /// Spans dropped because the queue was full.
    pub fn overflowed(&self) -> u64 {
        self.shared.stats.overflowed.value()
    }

    /// Spans that a collector has accepted, summed over the endpoints.
    pub fn exported(&self) -> u64 {
        self.shared.stats.endpoints.iter().map(|endpoint| endpoint.exported.value()).sum()
    }

    /// The exporter's own metrics, for the registry.
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::new(StatsSource(self.shared.clone()))
    }
}

struct ExportStats {
    overflowed: SharedCounter,
    endpoints: Vec<Arc<EndpointStats>>,
}

struct EndpointStats {
    endpoint: String,
    exported: SharedCounter,
    /// Given up after retries, refused, or cut off by the shutdown deadline.
    failed: SharedCounter,
    /// Dropped because earlier batches still waited for this endpoint.
    backlog: SharedCounter,
    /// Accepted for this endpoint and not yet decided.
    pending: AtomicU64,
}

impl EndpointStats {
    fn new(endpoint: &str) -> Arc<Self> {
        Arc::new(Self {
            endpoint: endpoint.to_owned(),
            exported: SharedCounter::default(),
            failed: SharedCounter::default(),
            backlog: SharedCounter::default(),
            pending: AtomicU64::new(0),
        })
    }
}

struct StatsSource(Arc<ExportQueue>);

impl Source for StatsSource {
    fn collect(&self, out: &mut Page) {
        let stats = &self.0.stats;
        let help = "Spans accepted by a trace collector.";
        let mut exported = out.counter("outrigger_spans_exported_total", help);
        for endpoint in &stats.endpoints {
            exported.sample([("endpoint", endpoint.endpoint.as_str())], endpoint.exported.value());
        }
        let mut dropped =
            out.counter("outrigger_spans_dropped_total", "Spans lost on the way to a trace collector.");
        dropped.sample([("endpoint", "any"), ("reason", "queue_full")], stats.overflowed.value());
        for endpoint in &stats.endpoints {
            let name = endpoint.endpoint.as_str();
            dropped.sample([("endpoint", name), ("reason", "backlog")], endpoint.backlog.value());
            dropped.sample([("endpoint", name), ("reason", "failed")], endpoint.failed.value());
        }
    }
}

/// The control runtime's end.
pub struct Exporter {
    config: ExportConfig,
    spans: mpsc::Receiver<SpanRecord>,
    shared: Arc<ExportQueue>,
}

type Batch = Arc<Vec<SpanData>>;

struct Lane {
    stats: Arc<EndpointStats>,
    batches: mpsc::Sender<Batch>,
}

impl Exporter {
    /// Exports until `stop` resolves or every sender is gone, then flushes for at most `flush`.
    ///
    /// Must run inside the runtime that is to own the collector connections, with time and I/O enabled.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send, flush: Duration) {
        let mut deliveries = JoinSet::new();
        let lanes = self.open_lanes(&mut deliveries);
        let mut ticks = tokio::time::interval(self.config.interval.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = self.shared.clone();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = shared.ring.notified() => {}
                _ = ticks.tick() => {}
            }
            self.drain(&lanes);
            if self.spans.is_closed() && self.spans.is_empty() {
                break;
            }
        }
        // From here on senders are refused (and counted); what is queued still goes out.
        self.spans.close();
        self.drain(&lanes);
        drop(lanes);
        let all = async { while deliveries.join_next().await.is_some() {} };
        if tokio::time::timeout(flush, all).await.is_err() {
            deliveries.abort_all();
            while deliveries.join_next().await.is_some() {}
        }
        self.count_undelivered();
    }

    fn open_lanes(&self, deliveries: &mut JoinSet<()>) -> Vec<Lane> {
        let attributes = self.config.resource.iter().cloned();
        let resource: Resource = otlp::resource(attributes);
        let mut lanes = Vec::new();
        for stats in &self.shared.stats.endpoints {
            match otlp::client(&stats.endpoint, &resource, self.config.timeout) {
                Ok(client) => {
                    let (batches, waiting) = mpsc::channel(ENDPOINT_QUEUE);
                    deliveries.spawn(deliver(client, waiting, stats.clone(), self.config.timeout));
                    lanes.push(Lane { stats: stats.clone(), batches });
                }
                Err(error) => tracing::error!("{error}; no spans go there"),
            }
        }
        lanes
    }

    /// Moves what is queued now into batches. Bounded by the queue's length at entry, so that fast workers cannot
    /// hold it here.
    fn drain(&mut self, lanes: &[Lane]) {
        let mut left = self.spans.len();
        while left > 0 {
            let mut batch = Vec::with_capacity(left.min(self.config.batch));
            let mut bytes = 0;
            while left > 0 && batch.len() < self.config.batch.max(1) && bytes < MAX_BATCH_BYTES {
                left -= 1;
                let Ok(span) = self.spans.try_recv() else { break };
                let weight = span.weight();
                bytes += weight;
                self.shared.queued_bytes.fetch_sub(weight, Relaxed);
                batch.push(otlp::span_data(span));
            }
            if batch.is_empty() {
                break;
            }
            let batch = Arc::new(batch);
            for lane in lanes {
                let count = batch.len() as u64;
                lane.stats.pending.fetch_add(count, Relaxed);
                if lane.batches.try_send(batch.clone()).is_err() {
                    lane.stats.pending.fetch_sub(count, Relaxed);
                    lane.stats.backlog.add(count);
                }
            }
        }
    }

    fn count_undelivered(&self) {
        for stats in &self.shared.stats.endpoints {
            let pending = stats.pending.swap(0, Relaxed);
            stats.failed.add(pending);
            if pending > 0 {
                tracing::warn!("{pending} spans for {} were not delivered before shutdown", stats.endpoint);
            }
        }
    }
}

/// Sends the batches of one endpoint in their order. Retries, with backoff, are the client's; one line in the log
/// says that an endpoint fails, one that it is back.
async fn deliver(
    client: otlp::Client,
    mut batches: mpsc::Receiver<Batch>,
    stats: Arc<EndpointStats>,
    limit: Duration,
) {
    let mut failing = false;
    while let Some(batch) = batches.recv().await {
        let count = batch.len() as u64;
        // The client's own limit decides whether to begin another attempt, it does not end one under way.
        let sent = tokio::time::timeout(limit + Duration::from_secs(1), client.send(batch)).await;
        let sent = sent.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        stats.pending.fetch_sub(count, Relaxed);
        match sent {
            Ok(()) => {
                stats.exported.add(count);
                if failing {
                    tracing::info!("trace collector {} accepts spans again", stats.endpoint);
                }
                failing = false;
            }
            Err(reason) => {
                stats.failed.add(count);
                if !failing {
                    tracing::warn!(
                        "trace collector {} takes no spans: {reason}; spans are dropped and counted in \
                         outrigger_spans_dropped_total until it does",
                        stats.endpoint
                    );
                }
                failing = true;
            }
        }
    }
}

#[cfg(test)]
mod tests;
