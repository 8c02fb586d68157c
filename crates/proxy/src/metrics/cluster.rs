//! Envoy's cluster statistics, as far as people watch them; per worker, merged at scrape.
//!
//! What describes state rather than events (membership, open breakers) is read from the runtime snapshot at scrape.

use std::time::Duration;

use outrigger_telemetry::metrics::{Counter, Gauge, Histogram, HistogramSnapshot, Labels, Page};

/// The cells of one cluster.
#[derive(Debug, Default)]
pub struct ClusterCells {
    requests: Counter,
    /// By first digit of the status, 1 to 5.
    classes: [Counter; 5],
    time: Histogram,
    pub retries: Counter,
    pub retry_success: Counter,
    pub retry_overflow: Counter,
    pub timeouts: Counter,
    pub pending_overflow: Counter,
    pub connections: Counter,
    pub connections_active: Gauge,
    pub connect_failures: Counter,
}

impl ClusterCells {
    /// Counts one attempt that was sent.
    pub fn attempt(&self) {
        self.requests.inc();
    }

    /// Counts the response of an attempt.
    pub fn response(&self, status: u16, time: Duration) {
        if let Some(class) = self.classes.get(usize::from(status / 100).wrapping_sub(1)) {
            class.inc();
        }
        self.time.observe(time.as_secs_f64() * 1000.0);
    }

    pub(super) fn add_to(&self, total: &mut ClusterTotals) {
        let counters = [
            &self.requests,
            &self.retries,
            &self.retry_success,
            &self.retry_overflow,
            &self.timeouts,
            &self.pending_overflow,
            &self.connections,
            &self.connect_failures,
        ];
        for (sum, cell) in total.counters.iter_mut().zip(counters) {
            *sum += cell.value();
        }
        for (sum, cell) in total.classes.iter_mut().zip(&self.classes) {
            *sum += cell.value();
        }
        self.time.merge_into(&mut total.time);
        total.active += self.connections_active.value();
    }
}

const COUNTERS: [(&str, &str); 8] = [
    ("envoy_cluster_upstream_rq_total", "Attempts sent."),
    ("envoy_cluster_upstream_rq_retry", "Retries."),
    ("envoy_cluster_upstream_rq_retry_success", "Retries that succeeded."),
    ("envoy_cluster_upstream_rq_retry_overflow", "Retries refused by limit or budget."),
    ("envoy_cluster_upstream_rq_timeout", "Requests that timed out waiting for a response."),
    ("envoy_cluster_upstream_rq_pending_overflow", "Requests refused by a limit."),
    ("envoy_cluster_upstream_cx_total", "Connections made."),
    ("envoy_cluster_upstream_cx_connect_fail", "Connections that could not be made."),
];

/// The sum over the workers.
#[derive(Default)]
pub(super) struct ClusterTotals {
    counters: [u64; 8],
    classes: [u64; 5],
    time: HistogramSnapshot,
    active: i64,
}

impl ClusterTotals {
    pub(super) fn write(&self, labels: &Labels, page: &mut Page) {
        for ((name, help), value) in COUNTERS.iter().zip(self.counters) {
            page.counter(name, help).sample(labels, value);
        }
        for (class, value) in (1..).zip(self.classes) {
            if value > 0 {
                let labels = labels.clone().with("envoy_response_code_class", &class.to_string());
                page.counter("envoy_cluster_upstream_rq_xx", "Responses by class.").sample(&labels, value);
            }
        }
        page.histogram("envoy_cluster_upstream_rq_time", "Time to the response, in milliseconds.")
            .sample(labels, &self.time);
        page.gauge("envoy_cluster_upstream_cx_active", "Open connections.").sample(labels, self.active);
    }
}
