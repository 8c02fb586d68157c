//! Delegation that leads nowhere.

use std::collections::BTreeSet;

use super::{Scene, finding};
use crate::finding::{Finding, Severity, closest, code, quote};
use crate::intent::delegate::{Delegates, MOST_MATCHES, count};
use crate::intent::{Delegate, HttpRoute, RouteIntent};

/// Every route that delegates, with its object.
fn delegating<'o>(scene: &Scene<'o>) -> impl Iterator<Item = (&'o RouteIntent, &'o HttpRoute, &'o Delegate)> {
    let routes = scene.routes.iter().flat_map(|rule| rule.http.iter().map(move |http| (*rule, http)));
    routes.filter_map(|(rule, http)| Some((rule, http, http.delegate.as_ref()?)))
}

pub(super) fn missing(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let delegates = Delegates::among(scene.routes.iter().copied());
    for (rule, _, delegate) in delegating(scene) {
        let name = format!("{}/{}", delegate.namespace, delegate.name);
        if delegates.find(delegate, rule).is_none() {
            let known = scene.routes.iter().find(|route| {
                route.origin.namespace == delegate.namespace && route.origin.name == delegate.name
            });
            let why = match known {
                None => "there is no such VirtualService".to_owned(),
                Some(known) if !known.is_for_others() => {
                    "it has hosts of its own, and only one without is delegated to".to_owned()
                }
                Some(_) => format!("its exportTo hides it from namespace {}", rule.origin.namespace),
            };
            let message = format!("{} delegates to {}, but {why}", rule.origin, quote(&name));
            let mut told = finding(Severity::Error, code::REFERENCE, &rule.origin, &delegate.place, message);
            if known.is_none() {
                let others = scene.routes.iter().filter(|route| route.is_for_others());
                told.suggestion = closest(&delegate.name, others.map(|route| route.origin.name.as_str()));
            }
            findings.push(told);
        }
    }
}

/// All that one object delegates is counted together.
pub(super) fn too_much(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let delegates = Delegates::among(scene.routes.iter().copied());
    for rule in &scene.routes {
        let counts = rule.http.iter().filter_map(|http| {
            let found = delegates.find(http.delegate.as_ref()?, rule)?;
            Some(count(http, found))
        });
        if counts.sum::<usize>() > MOST_MATCHES {
            let message = format!(
                "{} and those that it delegates to have more than {MOST_MATCHES} matches together, and what is beyond that would be \
                 answered with an error; delegate with fewer",
                rule.origin
            );
            findings.push(finding(Severity::Error, code::LIMIT, &rule.origin, &rule.place, message));
        }
    }
}

pub(super) fn nobody(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let wanted: BTreeSet<(&str, &str)> =
        delegating(scene).map(|(_, _, to)| (to.namespace.as_str(), to.name.as_str())).collect();
    for rule in scene.routes.iter().filter(|rule| rule.is_for_others()) {
        if !wanted.contains(&(rule.origin.namespace.as_str(), rule.origin.name.as_str())) {
            let message = format!(
                "{} has no hosts, and no other VirtualService delegates to it, so it has no effect; name it in a route's \
                 delegate, or give it hosts",
                rule.origin
            );
            findings.push(finding(Severity::Warning, code::NO_EFFECT, &rule.origin, &rule.place, message));
        }
    }
}
