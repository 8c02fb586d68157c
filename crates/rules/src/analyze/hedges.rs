//! Hedges that are never sent.

use std::time::Duration;

use outrigger_model::matcher::Pattern;
use outrigger_model::route::HedgeDelay;

use super::attached::Known;
use super::{Scene, finding};
use crate::catalog::PortProtocol;
use crate::conditions::Surroundings;
use crate::finding::{Finding, Severity, code};
use crate::intent::{HttpMatch, HttpRoute, RouteIntent};

pub(super) fn unsent(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for rule in &scene.routes {
        for route in &rule.http {
            let Some(forward) = route.forward() else { continue };
            let Some(hedge) = &forward.hedge else { continue };
            let per_try = forward.retry.as_ref().and_then(|retry| retry.per_try_timeout);
            let timeout = forward.timeout.unwrap_or(Duration::MAX);
            let unsafe_alone = || only_once(route) || speaks_grpc_alone(scene, rule);
            let why = match (hedge.delay, per_try) {
                _ if !hedge.all_methods && unsafe_alone() => {
                    "a hedge is never sent: no request of the route has a method that may be repeated (gRPC's is POST); write allMethods if \
                     these may be, too"
                        .to_owned()
                }
                _ if hedge.on_per_try_timeout && per_try.is_none() => {
                    "hedgeOnPerTryTimeout has no effect: the route's retry has no perTryTimeout; write one"
                        .to_owned()
                }
                (Some(HedgeDelay::Fixed(delay)), _) if delay >= timeout => {
                    format!(
                        "a hedge after {delay:?} is never sent: the timeout of the whole request is {timeout:?}"
                    )
                }
                (Some(HedgeDelay::Fixed(delay)), Some(per_try))
                    if delay >= per_try && !hedge.on_per_try_timeout =>
                {
                    format!(
                        "a hedge after {delay:?} is never sent: an attempt ends after {per_try:?}, its perTryTimeout"
                    )
                }
                _ => continue,
            };
            findings.push(finding(Severity::Warning, code::HEDGE, &rule.origin, &route.place, why));
        }
    }
}

/// Whether all its matches let methods through alone that may not be repeated (RFC 9110, section 9.2.2).
fn only_once(route: &HttpRoute) -> bool {
    const REPEATED: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];
    let once = |block: &HttpMatch| {
        let methods =
            block.request.headers.iter().filter(|header| header.name == ":method" && !header.invert);
        methods
            .filter_map(|header| match &header.value.pattern {
                Pattern::Exact(method) => Some(method),
                _ => None,
            })
            .any(|method| !REPEATED.contains(&method.as_str()))
    };
    !route.matches.is_empty() && route.matches.iter().all(once)
}

/// Whether all that a rule's hosts speak is gRPC.
fn speaks_grpc_alone(scene: &Scene<'_>, rule: &RouteIntent) -> bool {
    let Some(catalog) = scene.catalog else { return false };
    let known = Known(scene, catalog);
    let mut hosts = rule.hosts.iter();
    !rule.hosts.is_empty()
        && hosts.all(|host| {
            let ports = known.ports(host).filter(|ports| !ports.is_empty());
            ports.is_some_and(|ports| ports.values().all(|spoken| *spoken == PortProtocol::Grpc))
        })
}
