//! Policies about what tokens say, where nobody looks at tokens.

use super::{Scene, finding};
use crate::catalog::CatalogWorkload;
use crate::finding::{Finding, Severity, code};
use crate::intent::{AuthorizationAction, AuthorizationIntent};

pub(super) fn unseen(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    let looks = |workload: &CatalogWorkload| {
        scene.tokens.iter().any(|tokens| {
            let mut selected = catalog.selected(&tokens.origin.namespace, &tokens.selector);
            selected.any(|other| std::ptr::eq(other, workload))
        })
    };
    for policy in &scene.authorization {
        let Some(rule) = policy.rules.iter().find(|rule| rule.needs_tokens()) else { continue };
        let mut selected = catalog.selected(&policy.origin.namespace, &policy.selector).peekable();
        if selected.peek().is_none() || !selected.all(|workload| !looks(workload)) {
            continue;
        }
        let message = format!(
            "{} is about what tokens say, but no RequestAuthentication is for its workloads, so {}",
            policy.origin,
            consequence(policy)
        );
        findings.push(finding(Severity::Warning, code::NO_EFFECT, &policy.origin, &rule.place, message));
    }
}

/// Tokens are in requests.
pub(super) fn without_http(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for tokens in &scene.tokens {
        let mut ports = catalog
            .selected(&tokens.origin.namespace, &tokens.selector)
            .flat_map(|workload| &workload.ports)
            .peekable();
        if ports.peek().is_none() || ports.any(|(_, spoken)| spoken.is_http()) {
            continue;
        }
        let message = format!(
            "{} looks for tokens in requests, but its workloads speak no HTTP, so nothing is looked at: say what their ports speak",
            tokens.origin
        );
        findings.push(finding(
            Severity::Warning,
            code::TOKENS_ON_TCP,
            &tokens.origin,
            &tokens.place,
            message,
        ));
    }
}

fn consequence(policy: &AuthorizationIntent) -> &'static str {
    match policy.action {
        AuthorizationAction::Allow => "what it wants of them lets nobody in",
        AuthorizationAction::Deny => "every request counts as one without a token",
        AuthorizationAction::Audit | AuthorizationAction::Custom(_) => "no request has one",
    }
}
