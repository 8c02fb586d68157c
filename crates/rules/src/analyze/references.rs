//! References to nothing: hosts, ports and subsets that routes name and nobody provides.

use std::collections::BTreeSet;

use super::{Scene, finding, joined, seen_from, short};
use crate::finding::{Finding, Severity, closest, code};
use crate::intent::{DestinationIntent, Host, Place, RouteIntent, Target, Visibility};

/// Beyond so many services, looking for what was meant costs more than it helps.
pub(super) const MOST_CANDIDATES: usize = 2000;

pub(super) fn hosts(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for (route, (target, place)) in scene.targets() {
        let host = &target.host;
        match scene.ports_of(catalog, host) {
            None => {
                let message =
                    format!("{} routes to host {}, but there is no such service", route.origin, quoted(host));
                let mut found = finding(Severity::Error, code::REFERENCE, &route.origin, place, message);
                let names: Vec<&str> = catalog.services.keys().take(MOST_CANDIDATES).map(short).collect();
                found.suggestion = closest(short(host), names);
                findings.push(found);
            }
            Some(known) => {
                if let Some(port) = target.port
                    && !known.contains(&port)
                {
                    let ports = joined(known);
                    let message = format!(
                        "{} routes to port {port} of {}, which has only {ports}",
                        route.origin,
                        short(host)
                    );
                    findings.push(finding(Severity::Error, code::REFERENCE, &route.origin, place, message));
                }
            }
        }
    }
}

pub(super) fn subsets(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for (route, (target, place)) in scene.targets() {
        if let Some(subset) = &target.subset {
            findings.extend(missing_subset(scene, route, target, place, subset));
        }
    }
}

/// The namespaces in which clients may have different rules for a host: those that somebody names, and any other.
fn client_namespaces<'o>(route: &'o RouteIntent, rules: &[&'o DestinationIntent]) -> BTreeSet<&'o str> {
    fn named(visibility: &Visibility) -> &[String] {
        match visibility {
            Visibility::Everyone => &[],
            Visibility::Namespaces(names) => names,
        }
    }
    let mut all = BTreeSet::from(["", route.origin.namespace.as_str()]);
    all.extend(named(&route.visibility).iter().map(String::as_str));
    for rule in rules {
        all.insert(&rule.origin.namespace);
        all.extend(named(&rule.visibility).iter().map(String::as_str));
    }
    all.retain(|namespace| route.visibility.includes(namespace));
    all
}

fn missing_subset(
    scene: &Scene<'_>,
    route: &RouteIntent,
    target: &Target,
    place: &Place,
    subset: &str,
) -> Option<Finding> {
    let origin = &route.origin;
    let host = &target.host;
    let all = scene.destinations_of(host);
    let owner = host.as_str().split_once(".svc.").and_then(|(name, _)| name.split('.').nth(1));
    let lacking = client_namespaces(route, &all).into_iter().find_map(|namespace| {
        let rules = DestinationIntent::in_force(&all, host, owner, namespace);
        (!rules.iter().any(|rule| rule.subset(subset).is_some())).then_some((namespace, rules))
    });
    let (namespace, rules) = lacking?;
    let defined: Vec<String> = rules
        .iter()
        .map(|destination| {
            let names = joined(destination.subsets.iter().map(|subset| &subset.name));
            let names = if names.is_empty() { "no subsets".to_owned() } else { names };
            format!("{} defines {names}", seen_from(origin, &destination.origin))
        })
        .collect();
    let but = match defined.is_empty() {
        true => format!("no DestinationRule defines subsets of {}", short(host)),
        false => defined.join(" and "),
    };
    // Where another rule has it, clients see that one only.
    let hidden = all.iter().find(|rule| rule.subset(subset).is_some()).map(|rule| {
        let clients = if namespace.is_empty() {
            "other namespaces".to_owned()
        } else {
            format!("namespace {namespace}")
        };
        format!(
            ", which is all that clients in {clients} have of {}: {} does not hold for them",
            short(host),
            rule.origin
        )
    });
    let message = format!("{origin} routes to subset \"{subset}\", but {but}{}", hidden.unwrap_or_default());
    let mut found = finding(Severity::Error, code::REFERENCE, origin, place, message);
    let names = rules.iter().flat_map(|destination| &destination.subsets).map(|subset| subset.name.as_str());
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
