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

/// Namespaces and labels that no workload has.
pub(super) fn unknown(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog.filter(|catalog| !catalog.workloads.is_empty()) else { return };
    let namespaces: BTreeSet<&str> = catalog.workloads.iter().map(|of| of.namespace.as_str()).collect();
    // Many rules ask for the same few.
    let mut known: BTreeMap<(&Labels, Option<&str>), bool> = BTreeMap::new();
    for route in &scene.routes {
        for calling in of(route) {
            let path = &calling.place.path;
            let (what, suggestion) =
                match calling.namespace.filter(|namespace| !namespaces.contains(namespace)) {
                    Some(namespace) => (format!("the namespace {}", quote(namespace)), None),
                    None if calling.labels.is_empty() => continue,
                    None => {
                        let Calling { labels, namespace, .. } = calling;
                        let is_known = known
                            .entry((labels, namespace))
                            .or_insert_with(|| anybody(catalog, labels, namespace));
                        if *is_known {
                            continue;
                        }
                        let said: Vec<_> =
                            labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                        (format!("the labels {}", said.join(", ")), nearest(catalog, labels))
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

fn anybody(catalog: &ServiceCatalog, labels: &Labels, namespace: Option<&str>) -> bool {
    let here = |workload: &&CatalogWorkload| namespace.is_none_or(|of| workload.namespace == of);
    catalog.workloads.iter().filter(here).any(|workload| has(workload, labels))
}

/// What a label is, of all workloads that have it.
fn values<'c>(catalog: &'c ServiceCatalog, key: &str) -> BTreeSet<&'c str> {
    let all = catalog.workloads.iter();
    all.filter_map(|workload| workload.labels.get(key)).map(String::as_str).collect()
}

/// What may be meant by the first label that nobody has.
fn nearest(catalog: &ServiceCatalog, labels: &Labels) -> Option<String> {
    let (key, value, known) = labels
        .iter()
        .map(|(key, value)| (key, value, values(catalog, key)))
        .find(|(_, value, known)| !known.contains(value.as_str()))?;
    let value = closest(value, known.into_iter().take(MOST_CANDIDATES))?;
    Some(format!("{key}={value}"))
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
