//! Attached routes (Gateway API): parents that are not there, backends that cannot be used, rules that go nowhere, and a
//! VirtualService beside them.

use std::collections::BTreeMap;

use super::{Scene, finding, seen_from, short};
use crate::catalog::{PortProtocol, ServiceCatalog};
use crate::conditions::{Surroundings, can_hold, detached, lost, outranks};
use crate::finding::{Finding, Severity, code};
use crate::intent::{AttachedIntent, Host, HttpRoute, ObjectKind, Origin, ServiceProtocol};

/// What is known of the mesh from objects and services.
pub(super) struct Known<'s, 'o>(pub(super) &'s Scene<'o>, pub(super) &'s ServiceCatalog);

impl Surroundings for Known<'_, '_> {
    fn ports(&self, host: &Host) -> Option<BTreeMap<u16, PortProtocol>> {
        let known = self.0.ports_of(self.1, host)?;
        let registered = self.1.services.get(host).map(|service| &service.ports);
        let describing = self.0.services.iter().filter(|service| service.hosts.contains(host));
        let spoken = |port: u16| {
            let described = describing.clone().find_map(|service| service.ports.get(&port));
            let described = described.map(|port| match port.protocol {
                ServiceProtocol::Tls => PortProtocol::Tls,
                ServiceProtocol::Tcp => PortProtocol::Tcp,
                ServiceProtocol::Detect => PortProtocol::Detect,
                ServiceProtocol::Http => PortProtocol::Http,
                ServiceProtocol::Http2 => PortProtocol::Http2,
                ServiceProtocol::Grpc => PortProtocol::Grpc,
            });
            described.or_else(|| registered?.get(&port).copied()).unwrap_or(PortProtocol::Detect)
        };
        Some(known.into_iter().map(|port| (port, spoken(port))).collect())
    }

    fn port_named(&self, host: &Host, name: &str) -> Option<u16> {
        let described = self.0.services.iter().filter(|service| service.hosts.contains(host));
        let described = described.flat_map(|service| &service.ports).find(|(_, port)| port.name == name);
        let registered = || self.1.services.get(host)?.names.get(name).copied();
        described.map(|(number, _)| *number).or_else(registered)
    }

    fn outranked(
        &self,
        route: &AttachedIntent,
        host: &Host,
        port: u16,
        spoken: PortProtocol,
    ) -> Option<Origin> {
        let named = |name: &str| self.port_named(host, name);
        let mut others = self.0.attached.iter().filter(|other| {
            other.origin.namespace == route.origin.namespace
                && can_hold(other.origin.kind, spoken)
                && outranks(other, route)
                && other.is_at(host, port, named)
        });
        others.next().map(|other| other.origin.clone())
    }
}

/// Routes that are not in force where they are attached, and backends that cannot be used.
pub(super) fn conditions(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    let known = Known(scene, catalog);
    for route in &scene.attached {
        let mut tell = |place, message: String| {
            let message = format!("{}: {message}", route.origin);
            findings.push(finding(Severity::Warning, code::ROUTE_CONDITION, &route.origin, place, message));
        };
        // Of kinds that have no routes reading has told.
        for parent in route.parents.iter().filter(|parent| parent.host.is_some()) {
            if let Some((reason, message)) = detached(route, parent, &known) {
                tell(&parent.place, format!("{message}, so it has no effect there (Accepted: {reason})"));
            }
        }
        for lost in lost(route, &known) {
            let becomes = match lost.mirror {
                true => "no copies are sent",
                false if is_of_connections(route) => "its share of the connections is reset",
                false => "its share of the requests is answered with an error",
            };
            let message = format!("{}: {becomes} (ResolvedRefs: {})", lost.message, lost.reason);
            tell(lost.place, message);
        }
    }
}

fn is_of_connections(route: &AttachedIntent) -> bool {
    matches!(route.origin.kind, ObjectKind::TlsRoute | ObjectKind::TcpRoute)
}

/// Rules that send nothing anywhere.
pub(super) fn no_weight(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for route in &scene.attached {
        let tls = route.tls.iter().map(|tls| (&tls.targets, &tls.place));
        let rules = tls.chain(route.tcp.iter().map(|tcp| (&tcp.targets, &tcp.place)));
        for (_, place) in rules.filter(|(targets, _)| targets.iter().all(|target| target.share.weight == 0)) {
            let message = format!(
                "{}: {} has no backend with a weight, so its connections are reset",
                route.origin, place.path
            );
            findings.push(finding(Severity::Warning, code::NO_WEIGHT, &route.origin, place, message));
        }
        for http in route.http.iter().filter(|http| goes_nowhere(http)) {
            let message = format!(
                "{}: {} has no backend with a weight, so its requests are answered with an error",
                route.origin, http.place.path
            );
            findings.push(finding(Severity::Warning, code::NO_WEIGHT, &route.origin, &http.place, message));
        }
    }
}

fn goes_nowhere(http: &HttpRoute) -> bool {
    http.forward().is_some() && http.targets.iter().all(|target| target.share.weight == 0)
}

/// A VirtualService or a native page for the same host has no effect on what the route is about at those ports.
pub(super) fn shadowed(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for route in &scene.attached {
        for parent in &route.parents {
            let Some(host) = &parent.host else { continue };
            let covers = |known: &Host| known == host || (known.is_wildcard() && known.covers(host.as_str()));
            let other = scene.routes.iter().find(|other| {
                route.replaces(other)
                    && other.hosts.iter().any(covers)
                    && other.visibility.includes(&route.origin.namespace)
            });
            let Some(other) = other else { continue };
            let message = format!(
                "{} and {} both route {}; where a route of the Gateway API is attached, it holds and the other does not: \
                 put their routes into one object",
                route.origin,
                seen_from(&route.origin, &other.origin),
                short(host)
            );
            findings.push(finding(Severity::Warning, code::CONFLICT, &route.origin, &parent.place, message));
        }
    }
}

#[cfg(test)]
mod tests;
