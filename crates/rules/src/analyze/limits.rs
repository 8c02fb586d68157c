//! Rate limits that limit nothing, and upgrades that nobody takes.

use std::collections::BTreeMap;

use outrigger_model::rate_limit::MOST_LIMITS;

use super::{Scene, finding, short};
use crate::catalog::PortProtocol;
use crate::finding::{Finding, Severity, code, quote};
use crate::intent::{Host, LimitsIntent};

/// What a rule does to the requests of its service.
fn does(rule: &LimitsIntent) -> &'static str {
    if rule.count() > 0 { "limits requests to" } else { "lets requests switch protocols to" }
}

/// Limits are held by a service's own instances, for what their own namespace says.
pub(super) fn foreign(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for rule in &scene.limits {
        let owner = rule.host.as_str().split_once(".svc.").and_then(|(name, _)| name.rsplit_once('.'));
        let namespace = &rule.origin.namespace;
        // Callers let requests out to what is described.
        let is_described = scene
            .services
            .iter()
            .any(|service| service.origin.namespace == *namespace && service.hosts.contains(&rule.host));
        let message = match owner {
            Some((_, owner)) if owner == namespace => continue,
            None if is_described && rule.count() == 0 => continue,
            Some((_, owner)) => format!(
                "{} {} {}, which is namespace {owner}'s: it has no effect; write it there",
                rule.origin,
                does(rule),
                quote(short(&rule.host))
            ),
            None => format!(
                "{} {} {}, which has no instances with a sidecar to hold it: it has no effect",
                rule.origin,
                does(rule),
                quote(rule.host.as_str())
            ),
        };
        findings.push(finding(Severity::Warning, code::NO_EFFECT, &rule.origin, &rule.place, message));
    }
}

/// Each request goes through all of them: what is beyond is not held.
pub(super) fn too_many(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let mut sums: BTreeMap<(&Host, &str), usize> = BTreeMap::new();
    for rule in &scene.limits {
        let sum = sums.entry((&rule.host, rule.origin.namespace.as_str())).or_default();
        *sum += rule.count();
        if *sum > MOST_LIMITS {
            let message = format!(
                "{} makes {sum} rate limits of {}, and at most {MOST_LIMITS} are held; leave some out",
                rule.origin,
                quote(short(&rule.host))
            );
            findings.push(finding(Severity::Error, code::LIMIT, &rule.origin, &rule.place, message));
        }
    }
}

/// Requests are counted where HTTP is spoken.
pub(super) fn without_http(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for rule in &scene.limits {
        let Some(service) = catalog.services.get(&rule.host) else { continue };
        let bytes = |protocol: &PortProtocol| !protocol.is_http();
        if !service.ports.is_empty() && service.ports.values().all(bytes) {
            let message = format!(
                "{} {} {}, all of whose ports are TCP: it has no effect",
                rule.origin,
                does(rule),
                quote(short(&rule.host))
            );
            findings.push(finding(Severity::Warning, code::HTTP_ON_TCP, &rule.origin, &rule.place, message));
        }
    }
}
