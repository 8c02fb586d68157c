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

/// The namespaces in which clients may have different rules for a host.
struct Clients<'o> {
    /// That of the route, and those in which somebody has registered.
    there: BTreeSet<&'o str>,
    /// Others that a rule names, and any other.
    thought: BTreeSet<&'o str>,
}

impl<'o> Clients<'o> {
    fn of(scene: &Scene<'o>, route: &'o RouteIntent, rules: &[&'o DestinationIntent]) -> Self {
        fn named(visibility: &Visibility) -> &[String] {
            match visibility {
                Visibility::Everyone => &[],
                Visibility::Namespaces(names) => names,
            }
        }
        let mut thought = BTreeSet::from([""]);
        thought.extend(named(&route.visibility).iter().map(String::as_str));
        for rule in rules {
            thought.insert(&rule.origin.namespace);
            thought.extend(named(&rule.visibility).iter().map(String::as_str));
        }
        let registered = scene.catalog.into_iter().flat_map(|catalog| &catalog.workloads);
        let mut there: BTreeSet<&str> = registered.map(|workload| workload.namespace.as_str()).collect();
        there.insert(&route.origin.namespace);
        let of = route.hosts.first().map(|host| scene.clients_of(route, host));
        let of = of.as_deref().unwrap_or(&route.visibility);
        for all in [&mut there, &mut thought] {
            all.retain(|namespace| of.includes(namespace));
        }
        Self { there, thought }
    }
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
    let lacks = |namespace| {
        let rules = DestinationIntent::in_force(&all, host, &scene.say(host, namespace), namespace);
        (!rules.iter().any(|rule| rule.subset(subset).is_some())).then_some((namespace, rules))
    };
    let clients = Clients::of(scene, route, &all);
    // Who is there has failing calls. Of anybody else the rule may know that nobody comes.
    let there = clients.there.iter().copied().find_map(lacks).map(|found| (Severity::Error, found));
    let thought = || clients.thought.iter().copied().find_map(lacks).map(|found| (Severity::Warning, found));
    let (severity, (namespace, rules)) = there.or_else(thought)?;
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
    let mut found = finding(severity, code::REFERENCE, origin, place, message);
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
