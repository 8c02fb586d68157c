//! Routes that cannot do what they say: weights of nothing, routes behind a catch-all, attempts longer than the request.

use std::collections::HashMap;

use super::{Scene, finding};
use crate::finding::{Finding, Severity, code};
use crate::intent::{HttpMatch, HttpRoute, Place, WeightedTarget};

pub(super) fn no_weight(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for route in &scene.routes {
        let http = route.http.iter().map(|http| (http.targets.as_slice(), &http.place));
        let tls = route.tls.iter().map(|tls| (tls.targets.as_slice(), &tls.place));
        let tcp = route.tcp.iter().map(|tcp| (tcp.targets.as_slice(), &tcp.place));
        for (targets, place) in http.chain(tls).chain(tcp) {
            if !targets.is_empty() && weight(targets) == 0 {
                let message = format!(
                    "{}: the weights of the {} destinations of {} sum to 0, so no request could go anywhere; give at least \
                     one a weight",
                    route.origin,
                    targets.len(),
                    place.path
                );
                findings.push(finding(Severity::Error, code::NO_WEIGHT, &route.origin, place, message));
            }
        }
    }
}

fn weight(targets: &[WeightedTarget]) -> u64 {
    targets.iter().map(|target| u64::from(target.share.weight)).sum()
}

pub(super) fn unreachable(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for route in &scene.routes {
        let mut tell = |place: &Place, before: &Place, why: &str| {
            let message = format!(
                "{}: no request reaches {}, because {} (line {}) {why}; move the narrower route up",
                route.origin, place.path, before.path, before.line
            );
            findings.push(finding(Severity::Warning, code::UNREACHABLE, &route.origin, place, message));
        };
        let mut catch_all: Option<&HttpRoute> = None;
        let mut seen: HashMap<String, &HttpRoute> = HashMap::new();
        for http in &route.http {
            if let Some(before) = catch_all {
                tell(&http.place, &before.place, "matches every request");
                continue;
            }
            // What a delegate takes of it, the delegate says.
            if http.delegate.is_some() {
                continue;
            }
            if http.is_catch_all() {
                catch_all = Some(http);
                continue;
            }
            let shapes: Vec<String> = http.matches.iter().map(shape).collect();
            if let Some(before) = shapes.iter().map(|shape| seen.get(shape)).collect::<Option<Vec<_>>>()
                && let Some(before) = before.first()
            {
                tell(&http.place, &before.place, "has the same matches");
            }
            for shape in shapes {
                seen.entry(shape).or_insert(http);
            }
        }
        let mut catch_all = None;
        for tcp in &route.tcp {
            if let Some(before) = catch_all {
                tell(&tcp.place, before, "matches every connection");
            } else if tcp.matches.is_empty() || tcp.matches.contains(&Default::default()) {
                catch_all = Some(&tcp.place);
            }
        }
    }
}

/// One of several matches, the others of which have something to match: a route that has none left is unreachable.
pub(super) fn repeated(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for route in &scene.routes {
        let mut seen: HashMap<String, &Place> = HashMap::new();
        for http in route.http.iter().filter(|http| http.delegate.is_none()) {
            let shapes: Vec<String> = http.matches.iter().map(shape).collect();
            let all_had = shapes.iter().all(|shape| seen.contains_key(shape));
            for (block, shape) in http.matches.iter().zip(shapes) {
                match seen.get(&shape) {
                    Some(before) if !all_had => {
                        let message = format!(
                            "{}: {} has no effect, because {} (line {}) is the same and goes before it",
                            route.origin, block.place.path, before.path, before.line
                        );
                        let found =
                            finding(Severity::Info, code::SAME_MATCH, &route.origin, &block.place, message);
                        findings.push(found);
                    }
                    Some(_) => {}
                    None => drop(seen.insert(shape, &block.place)),
                }
            }
        }
    }
}

/// A match block without its name and place, comparable.
fn shape(block: &HttpMatch) -> String {
    let plain = HttpMatch { name: None, place: Place::default(), ..block.clone() };
    format!("{plain:?}")
}

pub(super) fn long_attempts(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for route in &scene.routes {
        for http in &route.http {
            let Some(forward) = http.forward() else { continue };
            let Some(retry) = forward.retry.as_ref().filter(|retry| retry.attempts > 0) else { continue };
            let (Some(attempt), Some(whole)) = (retry.per_try_timeout, forward.timeout) else { continue };
            if attempt > whole {
                let message = format!(
                    "{}: an attempt of {} may take {attempt:?}, but the whole request only {whole:?}, so there is never time \
                     for a second one",
                    route.origin, http.place.path
                );
                findings.push(finding(
                    Severity::Warning,
                    code::LONG_ATTEMPT,
                    &route.origin,
                    &http.place,
                    message,
                ));
            }
        }
    }
}
