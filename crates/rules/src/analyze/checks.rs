//! Health checks that cannot find out what they are to find out.

use outrigger_model::cluster::CheckHow;

use super::{Scene, finding, short};
use crate::catalog::PortProtocol;
use crate::finding::{Finding, Severity, code, quote};
use crate::intent::{DestinationIntent, HealthCheckIntent};

fn all<'s>(scene: &Scene<'s>) -> impl Iterator<Item = (&'s DestinationIntent, &'s HealthCheckIntent)> {
    let destinations = scene.destinations.clone().into_iter();
    destinations.filter_map(|rule| rule.policy.health_check.as_ref().map(|check| (rule, check)))
}

/// The next check waits for the last: an endpoint that is silent is asked less often than was meant.
pub(super) fn slow(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for (rule, HealthCheckIntent { check, place, .. }) in all(scene) {
        if check.timeout > check.interval {
            let (timeout, interval) = (check.timeout, check.interval);
            let message = format!(
                "{}.timeout, {timeout:?}, is longer than the interval, {interval:?}: an instance that does not answer is asked only \
                 every {:?}, and gone after {} of them; write a timeout below the interval",
                place.path,
                timeout + interval,
                check.unhealthy_threshold
            );
            findings.push(finding(Severity::Warning, code::CHECK, &rule.origin, place, message));
        }
    }
}

/// A port that does not speak as the check does is not checked.
pub(super) fn unasked(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for (rule, intent) in all(scene) {
        let Some(service) = catalog.services.get(&rule.host) else { continue };
        let asks = |(port, spoken): (&u16, &PortProtocol)| intent.asks(*port, *spoken);
        if service.ports.is_empty() || service.ports.iter().any(asks) {
            continue;
        }
        let host = quote(short(&rule.host));
        let is_http = service.ports.values().any(|spoken| spoken.is_http());
        let why = match intent.port {
            Some(port) if !service.ports.contains_key(&port) => format!("{host} has no port {port}"),
            Some(port) => format!("port {port} of {host} does not speak HTTP"),
            None if !is_http => format!("no port of {host} speaks HTTP"),
            None if matches!(intent.check.how, CheckHow::Grpc(_)) => {
                format!("no port of {host} is declared to speak gRPC or HTTP/2")
            }
            None => format!("all HTTP that {host} speaks is gRPC"),
        };
        let place = &intent.place;
        let message = format!("{} has no effect: {why}; check by tcp, or name another port", place.path);
        findings.push(finding(Severity::Warning, code::CHECK, &rule.origin, place, message));
    }
}
