//! Envoy's cluster statistics, as far as people watch them; per worker, merged at scrape.
//!
//! What describes state rather than events (membership, open breakers) is read from the runtime snapshot at scrape.

use std::sync::Arc;
use std::time::Duration;

use outrigger_model::cluster::Balance;
use outrigger_telemetry::metrics::{Counter, Gauge, Histogram, HistogramSnapshot, Labels, Page};

use tokio::time::Instant;

use crate::runtime::breaker::{Breaker, Phase};
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::EndpointState;
use crate::runtime::snapshot::Snapshot;
use crate::runtime::verdict::Verdict;

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
    pub retry_rate_limited: Counter,
    pub retry_unreplayable: Counter,
    pub hedges: Counter,
    pub hedges_won: Counter,
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
            &self.hedges,
            &self.hedges_won,
            &self.retry_rate_limited,
            &self.retry_unreplayable,
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

const COUNTERS: [(&str, &str); 12] = [
    ("envoy_cluster_upstream_rq_total", "Attempts sent."),
    ("envoy_cluster_upstream_rq_retry", "Retries."),
    ("envoy_cluster_upstream_rq_retry_success", "Retries that succeeded."),
    ("envoy_cluster_upstream_rq_retry_overflow", "Retries refused by limit or budget."),
    ("envoy_cluster_upstream_rq_timeout", "Requests that timed out waiting for a response."),
    ("envoy_cluster_upstream_rq_pending_overflow", "Requests refused by a limit."),
    ("envoy_cluster_upstream_cx_total", "Connections made."),
    ("envoy_cluster_upstream_cx_connect_fail", "Connections that could not be made."),
    ("outrigger_hedges_total", "Attempts beside others that were slow."),
    ("outrigger_hedges_won_total", "Those of them whose response was taken."),
    (
        "envoy_cluster_upstream_rq_retry_backoff_ratelimited",
        "Retries that waited as long as an answer asked for.",
    ),
    (
        "outrigger_retries_unreplayable_total",
        "Retries that were not made because the body was no longer there.",
    ),
];

/// The sum over the workers.
#[derive(Default)]
pub(super) struct ClusterTotals {
    counters: [u64; 12],
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

/// What the clusters of a snapshot are like at this moment: membership, ejections, open breakers.
pub fn write_state(snapshot: &Snapshot, page: &mut Page) {
    for cluster in snapshot.clusters() {
        let labels = Labels::new().with("envoy_cluster_name", &cluster.name);
        let (healthy, total) = cluster.membership();
        let view = cluster.limits.view();
        let now = Instant::now();
        let is_ejected = |e: &&Arc<EndpointState>| cluster.ejections().is_ejected(&e.load.health, now);
        let ejected = cluster.endpoints().all.iter().filter(is_ejected).count();
        let limits = &view.limits;
        let gauges = [
            ("envoy_cluster_membership_healthy", "Endpoints that take requests.", healthy as u64),
            ("envoy_cluster_membership_total", "Endpoints.", total as u64),
            ("envoy_cluster_outlier_detection_ejections_active", "Ejected endpoints.", ejected as u64),
            (
                "envoy_cluster_circuit_breakers_default_cx_open",
                "Whether the connection limit is reached.",
                u64::from(view.connections >= limits.max_connections),
            ),
            (
                "envoy_cluster_circuit_breakers_default_rq_open",
                "Whether the request limit is reached.",
                u64::from(view.requests >= limits.max_requests),
            ),
            (
                "envoy_cluster_circuit_breakers_default_rq_pending_open",
                "Whether the limit of waiting requests is reached.",
                u64::from(view.pending >= limits.max_pending),
            ),
        ];
        for (name, help, value) in gauges {
            page.gauge(name, help).sample(&labels, value);
        }
        if cluster.config.outlier.is_some() {
            write_outliers(cluster, &labels, page);
        }
        if cluster.config.balance == Balance::Reported {
            let [taken, refused] = cluster.reports();
            for (result, value) in [("taken", taken), ("refused", refused)] {
                page.counter("outrigger_load_reports_total", "Reports of load with answers.")
                    .sample(labels.clone().with("result", result), value);
            }
        }
        if cluster.config.health_check.is_some() {
            write_checks(cluster, &labels, page);
        }
        if let Some(breaker) = &cluster.breaker {
            write_breaker(breaker, &labels, page);
        }
    }
}

fn write_outliers(cluster: &ClusterHandle, labels: &Labels, page: &mut Page) {
    let counts = cluster.ejections().counts();
    page.counter("envoy_cluster_outlier_detection_ejections_enforced_total", "Ejections.")
        .sample(labels, counts.total());
    page.counter(
        "envoy_cluster_outlier_detection_ejections_overflow",
        "Outliers that too many were ejected for.",
    )
    .sample(labels, counts.overflows());
    for (cause, found, ejected) in counts.each() {
        for (what, help, value) in [
            ("detected", "Outliers for this cause.", found),
            ("enforced", "Ejections for this cause.", ejected),
        ] {
            let name = format!("envoy_cluster_outlier_detection_ejections_{what}_{cause}");
            page.counter(&name, help).sample(labels, value);
        }
    }
}

fn write_checks(cluster: &ClusterHandle, labels: &Labels, page: &mut Page) {
    let [successes, failures, network] = cluster.checks().all();
    for (name, help, value) in [
        ("envoy_cluster_health_check_attempt", "Health checks that said something.", successes + failures),
        ("envoy_cluster_health_check_success", "Health checks that passed.", successes),
        ("envoy_cluster_health_check_failure", "Health checks that failed.", failures),
        ("envoy_cluster_health_check_network_failure", "Health checks without an answer.", network),
    ] {
        page.counter(name, help).sample(labels, value);
    }
    let endpoints = cluster.endpoints();
    let passes = |e: &&Arc<EndpointState>| {
        e.load.checked().is_some_and(|checked| checked.verdict() == Verdict::Healthy)
    };
    let healthy = endpoints.all.iter().filter(passes).count();
    page.gauge("envoy_cluster_health_check_healthy", "Endpoints whose health checks pass.")
        .sample(labels, healthy as u64);
}

fn write_breaker(breaker: &Breaker, labels: &Labels, page: &mut Page) {
    let look = breaker.look();
    for (phase, times) in Phase::ALL.into_iter().zip(look.transitions) {
        let state = labels.clone().with("state", phase.name());
        page.gauge("outrigger_circuit_breaker_state", "Whether the circuit breaker is in this state.")
            .sample(&state, u64::from(look.phase == phase));
        page.counter("outrigger_circuit_breaker_transitions_total", "How often it has come into this state.")
            .sample(&state, times);
    }
    page.counter("outrigger_circuit_breaker_refused_total", "What was not sent because it was open.")
        .sample(labels, look.refused);
}
