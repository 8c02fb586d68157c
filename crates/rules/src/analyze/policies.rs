//! Policies that miss their workloads, or hit more of a connection than their author saw.

use std::collections::BTreeSet;

use super::{Scene, finding, joined};
use crate::catalog::{Labels, ServiceCatalog};
use crate::finding::{Finding, Severity, code};
use crate::intent::{
    AuthorizationAction, AuthorizationIntent, AuthorizationRule, Condition, Operation, Origin, Place,
};

pub(super) fn no_workloads(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    let authorization =
        scene.authorization.iter().map(|policy| (&policy.origin, &policy.selector, &policy.place));
    let mtls = scene.mtls.iter().map(|policy| (&policy.origin, &policy.selector, &policy.place));
    let tokens = scene.tokens.iter().map(|tokens| (&tokens.origin, &tokens.selector, &tokens.place));
    for (origin, selector, place) in authorization.chain(mtls).chain(tokens) {
        findings.extend(unmatched(catalog, origin, selector, place));
    }
}

fn unmatched(catalog: &ServiceCatalog, origin: &Origin, selector: &Labels, place: &Place) -> Option<Finding> {
    // A mesh without workloads says nothing of its rules.
    if catalog.workloads.is_empty() || catalog.selected(&origin.namespace, selector).next().is_some() {
        return None;
    }
    if selector.is_empty() {
        let message = format!(
            "{origin} is for all workloads of namespace {}, but it has none, so it has no effect",
            origin.namespace
        );
        return Some(finding(Severity::Warning, code::NO_WORKLOADS, origin, place, message));
    }
    let wanted = joined(selector.iter().map(|(key, value)| format!("{key}={value}")));
    let message = format!(
        "{origin} selects {wanted}, but no workload of namespace {} has that, so it has no effect",
        origin.namespace
    );
    let place = Place { path: format!("{}.selector", place.path), ..place.clone() };
    Some(finding(Severity::Warning, code::NO_WORKLOADS, origin, &place, message))
}

pub(super) fn http_on_tcp(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for policy in scene.authorization.iter().filter(|policy| policy.action == AuthorizationAction::Deny) {
        let tcp: BTreeSet<u16> = catalog
            .selected(&policy.origin.namespace, &policy.selector)
            .flat_map(|workload| &workload.ports)
            .filter(|(_, protocol)| !protocol.is_http())
            .map(|(port, _)| *port)
            .collect();
        for rule in policy.rules.iter().filter(|rule| rule.needs_http()) {
            findings.extend(hit(policy, rule, &tcp));
        }
    }
}

fn hit(policy: &AuthorizationIntent, rule: &AuthorizationRule, tcp: &BTreeSet<u16>) -> Option<Finding> {
    let hit: Vec<u16> = tcp.iter().copied().filter(|port| reaches(rule, *port)).collect();
    if hit.is_empty() {
        return None;
    }
    let message = format!(
        "{}: {} uses HTTP attributes, which count as matching on TCP, so it denies connections to port {}; name the HTTP \
         ports in the rule",
        policy.origin,
        rule.place.path,
        joined(hit)
    );
    Some(finding(Severity::Warning, code::HTTP_ON_TCP, &policy.origin, &rule.place, message))
}

/// Whether the rule can match a connection to that port of a workload.
pub(super) fn reaches_port(rule: &AuthorizationRule, port: u16) -> bool {
    let by_operation = rule.to.is_empty() || rule.to.iter().any(|operation| names_port(operation, port));
    by_operation && conditions_on_port(rule, port)
}

/// Whether the rule can match a TCP connection to that port because of its HTTP attributes.
fn reaches(rule: &AuthorizationRule, port: u16) -> bool {
    let http_condition = rule.when.iter().any(Condition::needs_http);
    let by_operation = (rule.to.is_empty() && http_condition)
        || rule
            .to
            .iter()
            .any(|operation| (operation.needs_http() || http_condition) && names_port(operation, port));
    by_operation && conditions_on_port(rule, port)
}

fn names_port(operation: &Operation, port: u16) -> bool {
    (operation.ports.is_empty() || operation.ports.contains(&port)) && !operation.not_ports.contains(&port)
}

fn conditions_on_port(rule: &AuthorizationRule, port: u16) -> bool {
    rule.when.iter().all(|condition| match condition {
        Condition::DestinationPort { values, not_values } => {
            (values.is_empty() || values.contains(&port)) && !not_values.contains(&port)
        }
        _ => true,
    })
}
