//! The control plane's metrics, under the names that Istio's dashboards use.

use std::sync::Arc;

use outrigger_model::resource::ResourceKind;
use outrigger_telemetry::Registry;
use outrigger_telemetry::metrics::{Page, SharedCounter, SharedHistogram, Vector};

use crate::keeper::{Keeper, Published};
use crate::registry::health::{Condition, Registered, Table};
use crate::status::Board;
use crate::traces::TraceStore;

/// Seconds; a push to everybody is expected within some ten milliseconds.
const SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 5.0, 10.0, 30.0];

/// What is counted as it happens.
pub struct Metrics {
    /// `pilot_xds_pushes{type}`.
    pushes: Arc<Vector<SharedCounter, 1>>,
    /// `pilot_total_xds_rejects`.
    pub rejects: Arc<SharedCounter>,
    /// `pilot_xds_rejects{type}`, in Istio `pilot_xds_cds_reject` and so on.
    reject_types: Arc<Vector<SharedCounter, 1>>,
    /// `pilot_proxy_convergence_time`: from the change to a proxy that has it in force.
    pub convergence: Arc<SharedHistogram>,
    /// `galley_validation_passed`.
    pub validation_passed: Arc<SharedCounter>,
    /// `galley_validation_failed`.
    pub validation_failed: Arc<SharedCounter>,
}

impl Metrics {
    /// Registers everything.
    pub fn new(registry: &Registry) -> Arc<Self> {
        Arc::new(Self {
            pushes: registry.counters(
                "pilot_xds_pushes",
                "Responses sent to xDS clients, by type.",
                ["type"],
            ),
            rejects: registry.counter("pilot_total_xds_rejects", "Resources that xDS clients refused."),
            reject_types: registry.counters(
                "pilot_xds_rejects",
                "Resources that xDS clients refused, by type.",
                ["type"],
            ),
            convergence: registry.histogram(
                "pilot_proxy_convergence_time",
                "Seconds from a change until a proxy acknowledged that it is in force.",
                SECONDS,
            ),
            validation_passed: registry
                .counter("galley_validation_passed", "Applications of rules that were accepted."),
            validation_failed: registry
                .counter("galley_validation_failed", "Applications of rules that were refused."),
        })
    }

    /// A response went out.
    pub fn pushed(&self, kind: ResourceKind) {
        self.pushes.with([short(kind)]).inc();
    }

    /// A resource was refused.
    pub fn rejected(&self, kind: ResourceKind) {
        self.rejects.inc();
        self.reject_types.with([short(kind)]).inc();
    }
}

/// What is only looked at when somebody scrapes.
pub fn observe(
    registry: &Registry,
    keeper: Keeper,
    registries: Table,
    board: Arc<Board>,
    traces: TraceStore,
) {
    registry.register_fn(move |page| {
        let published = keeper.published();
        let world = &published.world;
        page.gauge("pilot_xds", "Connected xDS clients.").sample((), board.len());
        page.gauge("pilot_services", "Known services.").sample((), world.service_count());
        page.gauge("outrigger_instances", "Known instances.").sample((), world.instance_count());
        page.gauge("outrigger_rules", "Stored rules.").sample((), published.rules.len());
        page.gauge("outrigger_generation", "Number of the latest world.").sample((), published.generation());
        let held: usize = published.held.iter().map(|held| held.instances.len()).sum();
        page.gauge("outrigger_held_expiries", "Instances that are kept in spite of missing heartbeats.")
            .sample((), held);
        sources(page, &registries, &published);
        let counts = traces.counts();
        page.gauge("outrigger_trace_spans", "Spans in the built-in trace store.").sample((), counts.kept);
        page.gauge("outrigger_trace_bytes", "Bytes of them.").sample((), counts.bytes);
        page.counter("outrigger_trace_spans_received_total", "Spans received.").sample((), counts.received);
        page.counter("outrigger_trace_spans_dropped_total", "Spans pushed out or refused.")
            .sample((), counts.dropped);
    });
}

/// How each registry is.
fn sources(page: &mut Page, registries: &Table, published: &Published) {
    type Read = fn(usize, &Registered, &Published) -> Option<u64>;
    let gauges: [(&str, &str, Read); 8] = [
        ("outrigger_registry_up", "Whether a registry can be reached.", |_, row, _| {
            Some(u64::from(row.condition() != Condition::Away))
        }),
        (
            "outrigger_registry_age_seconds",
            "Seconds since a registry last said something, news or not.",
            |_, row, _| row.health.state().heard.map(|at| at.elapsed().as_secs()),
        ),
        ("outrigger_registry_problems", "Parts of a registry that cannot be read.", |_, row, _| {
            Some(row.health.problems().len() as u64)
        }),
        ("outrigger_registry_instances", "Instances that a registry has.", |place, _, published| {
            Some(published.claims.count(place) as u64)
        }),
        ("outrigger_registry_rules", "Rules that a registry has.", |place, _, published| {
            Some(published.ruled.count(place) as u64)
        }),
        (
            "outrigger_registry_shadowed",
            "What a registry has and another goes before.",
            |place, _, published| {
                Some(
                    (published.claims.shadowed(place).count() + published.ruled.shadowed(place).count())
                        as u64,
                )
            },
        ),
        (
            "outrigger_registry_contested",
            "Addresses that a registry gives to others than who has them.",
            |place, _, published| {
                Some(published.contested().iter().filter(|(of, _)| of.place == place).count() as u64)
            },
        ),
        ("outrigger_registry_failures_total", "Failures of a registry.", |_, row, _| {
            Some(row.health.state().failures)
        }),
    ];
    for (name, help, read) in gauges {
        let mut family =
            if name.ends_with("_total") { page.counter(name, help) } else { page.gauge(name, help) };
        for (place, row) in registries.rows() {
            if let Some(value) = read(place, row, published) {
                family.sample([("registry", &*row.name), ("kind", row.kind)], value);
            }
        }
    }
}

/// Istio's short names.
fn short(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Cluster => "cds",
        ResourceKind::Endpoints => "eds",
        ResourceKind::Listener => "lds",
        ResourceKind::Routes => "rds",
        ResourceKind::Destination => "destination",
        ResourceKind::Host => "host",
        ResourceKind::Secret => "sds",
        ResourceKind::Barrier => "barrier",
    }
}
