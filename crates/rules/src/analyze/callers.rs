//! Conditions of routes on who calls and where: labels, a namespace or a port that nobody has.

use std::collections::{BTreeMap, BTreeSet};

use super::effect::asked_at;
use super::references::MOST_CANDIDATES;
use super::{Scene, finding, joined, short};
use crate::catalog::{CatalogWorkload, Labels, ServiceCatalog};
use crate::finding::{Finding, Severity, closest, code, quote};
use crate::intent::{Host, Place, RouteIntent};

/// What a match asks of a connection.
struct Calling<'o> {
    place: &'o Place,
    port: Option<u16>,
    labels: &'o Labels,
    namespace: Option<&'o str>,
}

fn of<'o>(route: &'o RouteIntent) -> impl Iterator<Item = Calling<'o>> {
    let http = route.http.iter().flat_map(|http| &http.matches).map(|block| Calling {
        place: &block.place,
        port: block.port,
        labels: &block.source_labels,
        namespace: block.source_namespace.as_deref(),
    });
    let tls =
        route.tls.iter().flat_map(|tls| tls.matches.iter().map(move |block| (&tls.place, &block.connection)));
    let tcp = route.tcp.iter().flat_map(|tcp| tcp.matches.iter().map(move |block| (&tcp.place, block)));
    http.chain(tls.chain(tcp).map(|(place, block)| Calling {
        place,
        port: block.port,
        labels: &block.source_labels,
        namespace: block.source_namespace.as_deref(),
    }))
}

/// Label sets whose workloads are looked for, and that something else is suggested for. One object may ask for as many as its bytes hold, and each
/// costs a look at workloads: others are taken for known.
const MOST_LOOKED_FOR: usize = 1_000;
const MOST_SUGGESTED: usize = 100;

/// Workloads by what they are labelled with.
#[derive(Default)]
struct Labelled<'c>(BTreeMap<&'c str, BTreeMap<&'c str, Vec<&'c CatalogWorkload>>>);

impl<'c> Labelled<'c> {
    fn of(catalog: &'c ServiceCatalog) -> Self {
        let mut labelled = Self::default();
        for workload in &catalog.workloads {
            for (key, value) in &workload.labels {
                labelled.0.entry(key).or_default().entry(value).or_default().push(workload);
            }
        }
        labelled
    }

    fn with(&self, key: &str, value: &str) -> &[&'c CatalogWorkload] {
        self.0.get(key).and_then(|values| values.get(value)).map_or(&[], Vec::as_slice)
    }

    fn anybody(&self, labels: &Labels, namespace: Option<&str>) -> bool {
        let is = |workload: &&CatalogWorkload| {
            namespace.is_none_or(|of| workload.namespace == of) && has(workload, labels)
        };
        // Of those with the rarest label: where there is one that nobody has, there are none.
        let rarest = labels.iter().map(|(key, value)| self.with(key, value)).min_by_key(|all| all.len());
        rarest.is_some_and(|all| all.iter().any(is))
    }

    /// What may be meant by the first label that nobody has.
    fn nearest(&self, labels: &Labels) -> Option<String> {
        let (key, value) = labels.iter().find(|(key, value)| self.with(key, value).is_empty())?;
        let known = self.0.get(key.as_str()).into_iter().flat_map(|known| known.keys().copied());
        let value = closest(value, known.take(MOST_CANDIDATES))?;
        Some(format!("{key}={value}"))
    }
}

/// Namespaces and labels that no workload has.
pub(super) fn unknown(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog.filter(|catalog| !catalog.workloads.is_empty()) else { return };
    let namespaces: BTreeSet<&str> = catalog.workloads.iter().map(|of| of.namespace.as_str()).collect();
    let labelled = Labelled::of(catalog);
    // Many rules ask for the same few.
    let mut known: BTreeMap<(&Labels, Option<&str>), bool> = BTreeMap::new();
    let mut suggested = 0;
    for route in &scene.routes {
        for calling in of(route) {
            let path = &calling.place.path;
            let (what, suggestion) =
                match calling.namespace.filter(|namespace| !namespaces.contains(namespace)) {
                    Some(namespace) => (format!("the namespace {}", quote(namespace)), None),
                    None if calling.labels.is_empty() => continue,
                    None => {
                        let Calling { labels, namespace, .. } = calling;
                        let is_full = known.len() >= MOST_LOOKED_FOR;
                        let is_known = known.get(&(labels, namespace)).copied().unwrap_or_else(|| {
                            is_full
                                || *known
                                    .entry((labels, namespace))
                                    .or_insert(labelled.anybody(labels, namespace))
                        });
                        if is_known {
                            continue;
                        }
                        suggested += 1;
                        let meant = if suggested <= MOST_SUGGESTED { labelled.nearest(labels) } else { None };
                        let said: Vec<_> =
                            labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                        (format!("the labels {}", said.join(", ")), meant)
                    }
                };
            let message = format!(
                "{}: {path} names {what}, but no registered workload is so, so it matches nobody",
                route.origin
            );
            let mut found = finding(Severity::Warning, code::NOBODY, &route.origin, calling.place, message);
            found.suggestion = suggestion;
            findings.push(found);
        }
    }
}

fn has(workload: &CatalogWorkload, labels: &Labels) -> bool {
    labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
}

/// Ports that none of a route's hosts has.
pub(super) fn ports(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for route in scene.routes.iter().filter(|route| of(route).any(|calling| calling.port.is_some())) {
        // Whom a wildcard stands for, nobody knows, nor what a host has that is not there.
        let is_known = |host: &Host| !host.is_wildcard() && scene.ports_of(catalog, host).is_some();
        let asked = asked_at(scene, catalog, route);
        if asked.is_empty() || !route.hosts.iter().all(is_known) {
            continue;
        }
        for (calling, port) in of(route).filter_map(|calling| calling.port.map(|port| (calling, port))) {
            if asked.contains(&port) {
                continue;
            }
            let message = format!(
                "{}: {} names the port {port}, but {} has only {}, so it matches nobody",
                route.origin,
                calling.place.path,
                joined(route.hosts.iter().map(short)),
                joined(&asked)
            );
            findings.push(finding(Severity::Warning, code::NOBODY, &route.origin, calling.place, message));
        }
    }
}
