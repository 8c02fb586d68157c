//! What requests are hashed by.

use outrigger_model::route::{Forward, HashOn};
use outrigger_rules::intent::{Host, HttpRoute, Preference};

use super::lens::Lens;

/// What the destinations of a route hash: a hash policy belongs to the rule of a destination, and travels on the route.
pub(super) fn hashes(lens: &Lens<'_>, http: &HttpRoute, port: u16) -> Vec<HashOn> {
    let mut found = Vec::new();
    for target in http.targets.iter().map(|weighted| &weighted.target) {
        let port = lens.port_of(target, port);
        let hash = hash_of(lens, &target.host, target.subset.as_deref(), port);
        found.extend(hash.filter(|hash| !found.contains(hash)));
    }
    found
}

/// What a destination alone gets by its key stays with the key's endpoint when it is sent again, as in Istio, unless a rule says otherwise.
pub(super) fn keep_to_keys(forward: &mut Forward, said: bool) {
    if let ([_], false, false) = (forward.clusters.as_slice(), forward.hash.is_empty(), said)
        && let Some(retry) = &mut forward.retry
    {
        retry.avoid_previous_hosts = false;
    }
}

pub(super) fn hash_of(lens: &Lens<'_>, host: &Host, subset: Option<&str>, port: u16) -> Option<HashOn> {
    let rule = lens.destination_for(host);
    match rule.and_then(|rule| rule.effective(subset, port).load_balancing) {
        Some(chosen) => chosen.hash,
        None => preference(lens, host, port).same.then_some(HashOn::SourceAddress),
    }
}

/// Whom of its endpoints a Service of a cluster gives a client, where no rule says so.
pub(super) fn preference(lens: &Lens<'_>, host: &Host, port: u16) -> Preference {
    let service = lens.service(host);
    let described = service.and_then(|service| lens.offer(service, port)?.described);
    described.map(|intent| intent.preference).unwrap_or_default()
}
