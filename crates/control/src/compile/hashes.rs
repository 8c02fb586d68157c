//! What requests are hashed by.

use outrigger_model::route::HashOn;
use outrigger_rules::intent::{Host, HttpRoute};

use super::lens::Lens;

/// What the destinations of a route hash: a hash policy belongs to the rule of a destination, and travels on the route.
pub(super) fn hashes(lens: &Lens<'_>, http: &HttpRoute, port: u16) -> Vec<HashOn> {
    let mut found = Vec::new();
    for target in http.targets.iter().map(|weighted| &weighted.target) {
        let port = target.port.unwrap_or(port);
        let hash = hash_of(lens, &target.host, target.subset.as_deref(), port);
        found.extend(hash.filter(|hash| !found.contains(hash)));
    }
    found
}

pub(super) fn hash_of(lens: &Lens<'_>, host: &Host, subset: Option<&str>, port: u16) -> Option<HashOn> {
    let policy = lens.destination_for(host)?.effective(subset, port);
    policy.load_balancing?.hash
}
