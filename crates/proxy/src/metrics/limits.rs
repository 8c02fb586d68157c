//! What rate limits have refused, read from the runtime snapshot at scrape.

use std::sync::Arc;

use outrigger_telemetry::metrics::{Labels, Page};

use crate::http::filter::Filter;
use crate::runtime::rate::Counts;
use crate::runtime::snapshot::{Snapshot, TerminalHandle};

/// One series for each limit that is in force.
pub fn write_limits(snapshot: &Snapshot, page: &mut Page) {
    let mut seen: Vec<&Arc<Counts>> = Vec::new();
    let chains = snapshot.listeners().flat_map(|listener| &listener.chains);
    for chain in chains {
        let TerminalHandle::Http(http) = &chain.terminal else { continue };
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
            let labels = Labels::new().with("rule", &rule).with("limit", &counts.limit.name);
            page.counter("outrigger_rate_limited_total", "Requests that a rate limit has refused.")
                .sample(&labels, counts.refused());
        }
    }
}
