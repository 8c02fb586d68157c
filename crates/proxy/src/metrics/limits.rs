//! What rate limits have refused, and limits that follow latency, read from the runtime snapshot at scrape.

use outrigger_telemetry::metrics::{Labels, Page};

use crate::http::filter::Tallies;
use crate::runtime::concurrency::Controller;
use crate::runtime::snapshot::{Snapshot, TerminalHandle};

/// One series for each limit that is in force.
pub fn write_limits(snapshot: &Snapshot, page: &mut Page) {
    let mut all = Tallies::default();
    for chain in snapshot.listeners().flat_map(|listener| &listener.chains) {
        if let TerminalHandle::Http(http) = &chain.terminal {
            http.tally(&mut all);
        }
    }
    for counts in all.counts {
        let rule = counts.origin.as_ref().map(ToString::to_string).unwrap_or_default();
        sample(page, &rule, &counts.limit.name, counts.refused());
    }
    for one in all.refusals {
        let rule = one.limit.origin.as_ref().map(ToString::to_string).unwrap_or_default();
        sample(page, &rule, &one.limit.name, one.refused());
    }
    all.controllers.into_iter().for_each(|controller| write_controller(controller, page));
    for service in all.services {
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

fn sample(page: &mut Page, rule: &str, limit: &str, refused: u64) {
    let labels = Labels::new().with("rule", rule).with("limit", limit);
    page.counter("outrigger_rate_limited_total", "Requests that a rate limit has refused.")
        .sample(&labels, refused);
}
