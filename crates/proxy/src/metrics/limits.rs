//! What rate limits have refused, read from the runtime snapshot at scrape.

use std::sync::Arc;

use outrigger_telemetry::metrics::{Labels, Page};

use crate::http::filter::Filter;
use crate::runtime::rate::Counts;
use crate::runtime::rate::tally::{Refusals, Tally};
use crate::runtime::snapshot::{Snapshot, TerminalHandle};

/// One series for each limit that is in force.
pub fn write_limits(snapshot: &Snapshot, page: &mut Page) {
    let mut seen: Vec<&Arc<Counts>> = Vec::new();
    let (mut refusals, mut services) = (Vec::new(), Vec::new());
    let chains = snapshot.listeners().flat_map(|listener| &listener.chains);
    for chain in chains {
        let TerminalHandle::Http(http) = &chain.terminal else { continue };
        global(&http.filters, &mut refusals, &mut services);
        let limits = http.filters.iter().filter_map(|filter| match filter {
            Filter::RateLimit(limits) => Some(limits),
            _ => None,
        });
        for counts in limits.flat_map(|limits| limits.counts()) {
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
    for service in services {
        let labels = Labels::new().with("envoy_cluster_name", &service.cluster);
        for (name, count) in service.counts() {
            page.counter(name, "Questions to a rate limit service, by what came of them.")
                .sample(&labels, count);
        }
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
