//! Policies for clients that they are not for: a destination is shaped by the clients' own namespace, its own, and the mesh's.

use std::collections::BTreeSet;

use super::{Scene, finding, short};
use crate::finding::{Finding, Severity, code};
use crate::intent::{Host, ObjectKind, Origin, Visibility};

pub(super) fn destinations(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    // Policies of the Gateway API have conditions of their own.
    let rules = scene.destinations.iter().filter(|rule| rule.backend_tls.is_empty());
    let rules = rules.map(|rule| (&rule.origin, &rule.place, &rule.host, &rule.visibility));
    // A page is for the same clients as a whole.
    let pages = scene.routes.iter().filter(|route| route.origin.kind == ObjectKind::TrafficRules);
    let pages = pages.flat_map(|page| page.hosts.iter().map(move |host| (page, host)));
    let pages = pages.map(|(page, host)| (&page.origin, &page.place, host, &page.visibility));
    let mut seen = BTreeSet::new();
    for (origin, place, host, visibility) in rules.chain(pages) {
        if !seen.insert(origin) {
            continue;
        }
        if let Some(why) = nobody(scene, origin, host, visibility) {
            let message = format!(
                "{origin} is for {}, which is not namespace {}'s, so it holds for clients of its own namespace alone, as in Istio, and \
                 {why}; write it into the namespace of the service, or of its clients",
                short(host),
                origin.namespace
            );
            findings.push(finding(Severity::Warning, code::NO_EFFECT, origin, place, message));
        }
    }
}

/// Why nobody has a rule that is not the host's or the mesh's own, or not all whom it names.
fn nobody(scene: &Scene<'_>, origin: &Origin, host: &Host, visibility: &Visibility) -> Option<String> {
    let own = origin.namespace.as_str();
    let say = scene.say(host, own);
    // A wildcard may cover hosts of its own namespace, and whose a name is that nobody describes nobody knows.
    if say.counts(own) || say.owner.is_none() {
        return None;
    }
    if let Visibility::Namespaces(names) = visibility
        && let Some(other) = names.iter().find(|name| *name != own)
    {
        return Some(format!("not for those of {other}, whom its exportTo names"));
    }
    let catalog = scene.catalog.filter(|catalog| !catalog.workloads.is_empty())?;
    let has_clients = catalog.workloads.iter().any(|workload| workload.namespace == own);
    (!has_clients).then(|| "there is no workload in it".to_owned())
}
