//! References to nothing: hosts, ports and subsets that routes name and nobody provides.

use super::{Scene, finding, joined, seen_from, short};
use crate::finding::{Finding, Severity, closest, code};
use crate::intent::{Host, RouteIntent, WeightedTarget};

/// Beyond so many services, looking for what was meant costs more than it helps.
const MOST_CANDIDATES: usize = 2000;

pub(super) fn hosts(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for (route, weighted) in scene.targets() {
        let host = &weighted.target.host;
        match catalog.services.get(host) {
            None => {
                let message =
                    format!("{} routes to host {}, but there is no such service", route.origin, quoted(host));
                let mut found =
                    finding(Severity::Error, code::REFERENCE, &route.origin, &weighted.place, message);
                let names: Vec<&str> = catalog.services.keys().take(MOST_CANDIDATES).map(short).collect();
                found.suggestion = closest(short(host), names);
                findings.push(found);
            }
            Some(service) => {
                if let Some(port) = weighted.target.port
                    && !service.ports.contains_key(&port)
                {
                    let ports = joined(service.ports.keys());
                    let message = format!(
                        "{} routes to port {port} of {}, which has only {ports}",
                        route.origin,
                        short(host)
                    );
                    findings.push(finding(
                        Severity::Error,
                        code::REFERENCE,
                        &route.origin,
                        &weighted.place,
                        message,
                    ));
                }
            }
        }
    }
}

pub(super) fn subsets(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for (route, weighted) in scene.targets() {
        if let Some(subset) = &weighted.target.subset {
            findings.extend(missing_subset(scene, route, weighted, subset));
        }
    }
}

fn missing_subset(
    scene: &Scene<'_>,
    route: &RouteIntent,
    weighted: &WeightedTarget,
    subset: &str,
) -> Option<Finding> {
    let origin = &route.origin;
    let destinations = scene.destinations_of(&weighted.target.host);
    if destinations.iter().any(|destination| destination.subset(subset).is_some()) {
        return None;
    }
    let host = short(&weighted.target.host);
    let defined: Vec<String> = destinations
        .iter()
        .map(|destination| {
            let names = joined(destination.subsets.iter().map(|subset| &subset.name));
            let names = if names.is_empty() { "no subsets".to_owned() } else { names };
            format!("{} defines {names}", seen_from(origin, &destination.origin))
        })
        .collect();
    let but = match defined.is_empty() {
        true => format!("no DestinationRule defines subsets of {host}"),
        false => defined.join(" and "),
    };
    let message = format!("{origin} routes to subset \"{subset}\", but {but}");
    let mut found = finding(Severity::Error, code::REFERENCE, origin, &weighted.place, message);
    let names =
        destinations.iter().flat_map(|destination| &destination.subsets).map(|subset| subset.name.as_str());
    found.suggestion = closest(subset, names);
    Some(found)
}

pub(super) fn empty_subsets(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for destination in &scene.destinations {
        // Of a service without instances every subset is empty; that is not the rule's fault.
        let Some(service) =
            catalog.services.get(&destination.host).filter(|service| !service.instances.is_empty())
        else {
            continue;
        };
        for subset in &destination.subsets {
            if service.instances.iter().any(|labels| subset.selects(labels)) {
                continue;
            }
            let wanted = joined(subset.labels.iter().map(|(key, value)| format!("{key}={value}")));
            let message = format!(
                "subset \"{}\" of {} wants {wanted}, but none of the {} instances of {} has that",
                subset.name,
                destination.origin,
                service.instances.len(),
                short(&destination.host)
            );
            findings.push(finding(
                Severity::Warning,
                code::EMPTY_SUBSET,
                &destination.origin,
                &subset.place,
                message,
            ));
        }
    }
}

fn quoted(host: &Host) -> String {
    format!("\"{}\"", short(host))
}
