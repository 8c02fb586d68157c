//! Services that are described: two that say different things, ones that select nobody, TLS that cannot work.

use std::collections::BTreeMap;

use super::{Scene, finding, joined, seen_from, short};
use crate::finding::{Finding, Severity, code, quote};
use crate::intent::{ClientTlsMode, Host, Intent, Place, ServiceIntent, ServiceProtocol, Visibility};

/// Two that describe one port of one host for the same clients.
pub(super) fn conflicts(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let mut first: BTreeMap<(&Host, u16), &ServiceIntent> = BTreeMap::new();
    let mut services = scene.services.clone();
    services.sort_by(|a, b| a.origin.cmp(&b.origin));
    for service in services {
        for (host, port) in
            service.hosts.iter().flat_map(|host| service.ports.keys().map(move |p| (host, *p)))
        {
            let Some(other) = first.get(&(host, port)) else {
                first.insert((host, port), service);
                continue;
            };
            if apart(other, service) {
                continue;
            }
            let message = format!(
                "{} describes port {port} of {}, as {} does already: clients go by that of their own namespace, or else by the \
                 first by name",
                service.origin,
                short(host),
                seen_from(&service.origin, &other.origin)
            );
            findings.push(finding(
                Severity::Warning,
                code::CONFLICT,
                &service.origin,
                &service.place,
                message,
            ));
        }
    }
}

/// A name of the mesh's own domain is its namespace's, and what others say of it does not count.
pub(super) fn foreign(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for service in &scene.services {
        for host in &service.hosts {
            let owner = host.as_str().split_once(".svc.").and_then(|(name, _)| name.rsplit_once('.'));
            let Some((_, owner)) = owner.filter(|(_, owner)| *owner != service.origin.namespace) else {
                continue;
            };
            let message = format!(
                "{} describes {}, which is namespace {owner}'s: unless {} is the mesh's root namespace it does not count; describe it \
                 in {owner}",
                service.origin,
                quote(short(host)),
                service.origin.namespace
            );
            let found = finding(Severity::Warning, code::NO_EFFECT, &service.origin, &service.place, message);
            findings.push(found);
        }
    }
}

/// Whether no client sees both.
fn apart(one: &ServiceIntent, other: &ServiceIntent) -> bool {
    match (&one.visibility, &other.visibility) {
        (Visibility::Namespaces(ours), Visibility::Namespaces(theirs)) => {
            !ours.iter().any(|namespace| theirs.contains(namespace))
        }
        _ => false,
    }
}

pub(super) fn selectors(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for service in scene.services.iter().filter(|service| !service.selector.is_empty()) {
        let namespace = &service.origin.namespace;
        let chosen = |labels: &BTreeMap<String, String>| {
            service.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        let labelled = || catalog.workloads.iter().filter(|w| w.namespace == *namespace && chosen(&w.labels));
        let registered = labelled().any(|workload| workload.may_be(&service.selector));
        let intents = scene.objects.iter().flat_map(|object| &object.intents);
        let described = intents.filter_map(|intent| match intent {
            Intent::Workload(entry) if entry.origin.namespace == *namespace => Some(&entry.workload.labels),
            _ => None,
        });
        if registered || described.into_iter().any(chosen) {
            continue;
        }
        let wanted = joined(service.selector.iter().map(|(key, value)| format!("{key}={value}")));
        let why = match labelled().next() {
            None => format!("no workload of namespace {namespace} has that"),
            Some(_) => format!(
                "those of namespace {namespace} that have it registered themselves: of these `app` must be selected, and name a service of their \
                 token (or the token allow all)"
            ),
        };
        let message = format!("{} selects {wanted}, but {why}, so it has no endpoints", service.origin);
        let place = Place { path: "spec.workloadSelector".into(), ..service.place.clone() };
        findings.push(finding(Severity::Warning, code::NO_WORKLOADS, &service.origin, &place, message));
    }
}

/// TLS around what is TLS already, and TLS without a name to ask for.
pub(super) fn tls(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for service in &scene.services {
        for host in &service.hosts {
            for rule in scene.destinations.iter().filter(|rule| means(&rule.host, host)) {
                for (number, port) in &service.ports {
                    let policy = rule.effective(None, *number);
                    let Some(tls) = policy
                        .tls
                        .filter(|tls| matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual))
                    else {
                        continue;
                    };
                    let why = if port.protocol == ServiceProtocol::Tls {
                        format!(
                            "the application's own TLS is spoken there, and would be wrapped once more: let it speak HTTP to a port \
                             with targetPort {number}, or leave the rule's TLS out"
                        )
                    } else if host.is_wildcard() && tls.sni.is_none() {
                        format!("{} is no server name to ask for: set sni", quote(host.as_str()))
                    } else {
                        continue;
                    };
                    let message =
                        format!("{} begins TLS to port {number} of {}, but {why}", rule.origin, short(host));
                    findings.push(finding(
                        Severity::Warning,
                        code::DOUBLE_TLS,
                        &rule.origin,
                        &rule.place,
                        message,
                    ));
                }
            }
        }
    }
}

/// Whether a rule's host is that of a described service: `example.com` was read as a service of a namespace.
fn means(rule: &Host, host: &Host) -> bool {
    rule == host || rule.covers(host.as_str()) || short(rule) == host.as_str()
}
