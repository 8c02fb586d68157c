//! What rate limits have refused, and limits that follow latency, read from the runtime snapshot at scrape.

use std::sync::Arc;

use outrigger_telemetry::metrics::{Labels, Page};

use crate::http::filter::Filter;
use crate::runtime::concurrency::Controller;
use crate::runtime::rate::Counts;
use crate::runtime::rate::tally::{Refusals, Tally};
use crate::runtime::snapshot::{Snapshot, TerminalHandle};

/// One series for each limit that is in force.
pub fn write_limits(snapshot: &Snapshot, page: &mut Page) {
    let mut seen: Vec<&Arc<Counts>> = Vec::new();
    let (mut refusals, mut services) = (Vec::new(), Vec::new());
    let mut controllers: Vec<&Arc<Controller>> = Vec::new();
    let chains = snapshot.listeners().flat_map(|listener| &listener.chains);
    for chain in chains {
        let TerminalHandle::Http(http) = &chain.terminal else { continue };
        global(&http.filters, &mut refusals, &mut services);
        for controller in http.controllers() {
            if !controllers.iter().any(|known| Arc::ptr_eq(known, controller)) {
                controllers.push(controller);
            }
        }
        for counts in http.filters.iter().flat_map(counts) {
            // The chains of a listener, and its listeners, share them.
            if seen.iter().any(|known| Arc::ptr_eq(known, counts)) {
                continue;
            }
            seen.push(counts);
            let rule = counts.origin.as_ref().map(ToString::to_string).unwrap_or_default();
            sample(page, &rule, &counts.limit.name, counts.refused());
        }
    }
    for one in refusals {
        let rule = one.limit.origin.as_ref().map(ToString::to_string).unwrap_or_default();
        sample(page, &rule, &one.limit.name, one.refused());
    }
    controllers.into_iter().for_each(|controller| write_controller(controller, page));
    for service in services {
        let labels = Labels::new().with("envoy_cluster_name", &service.cluster);
        for (name, count) in service.counts() {
            page.counter(name, "Questions to a rate limit service, by what came of them.")
                .sample(&labels, count);
        }
    }
}

fn write_controller(controller: &Controller, page: &mut Page) {
    let look = controller.look();
    let labels = Labels::new().with("rule", &controller.scope());
    page.counter("outrigger_concurrency_limited_total", "Requests beyond a limit that follows latency.")
        .sample(&labels, look.refused);
    for (name, help, value) in [
        ("outrigger_concurrency_limit", "So many requests may be under way now.", f64::from(look.limit)),
        ("outrigger_concurrency_requests", "Requests under way.", f64::from(look.requests)),
        (
            "outrigger_concurrency_min_rtt_milliseconds",
            "How long an answer takes where there is little to do; 0 while it is not known.",
            look.min_rtt_millis,
        ),
        (
            "outrigger_concurrency_sample_rtt_milliseconds",
            "How long answers took in the last window.",
            look.sample_rtt_millis,
        ),
        ("outrigger_concurrency_gradient", "What the last window changed the limit by.", look.gradient),
        (
            "outrigger_concurrency_min_rtt_calculation_active",
            "Whether the minRTT is being measured.",
            f64::from(u8::from(look.measuring)),
        ),
    ] {
        page.gauge(name, help).sample(&labels, value);
    }
}

fn counts(filter: &Filter) -> Vec<&Arc<Counts>> {
    match filter {
        Filter::RateLimit(limits) => limits.counts().collect(),
        Filter::LocalLimit(limits) => limits.counts().collect(),
        _ => Vec::new(),
    }
}

fn sample(page: &mut Page, rule: &str, limit: &str, refused: u64) {
    let labels = Labels::new().with("rule", rule).with("limit", limit);
    page.counter("outrigger_rate_limited_total", "Requests that a rate limit has refused.")
        .sample(&labels, refused);
}

/// Those that a service keeps, each once.
fn global<'s>(
    filters: &'s [Filter],
    refusals: &mut Vec<&'s Arc<Refusals>>,
    services: &mut Vec<&'s Arc<Tally>>,
) {
    for filter in filters {
        let Filter::GlobalLimit(limits) = filter else { continue };
        for one in limits.refusals() {
            if !refusals.iter().any(|known| Arc::ptr_eq(known, one)) {
                refusals.push(one);
            }
        }
        if !services.iter().any(|known| Arc::ptr_eq(known, &limits.tally)) {
            services.push(&limits.tally);
        }
    }
}
