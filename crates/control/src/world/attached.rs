//! Which routes are attached to a port of a service.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_rules::catalog::PortProtocol;
use outrigger_rules::conditions::{Surroundings, can_hold, outranks};
use outrigger_rules::intent::{AttachedIntent, Host, Origin};

use super::{Service, World};

impl World {
    /// Whether routes are attached to a service, for whichever client and port.
    pub(crate) fn has_attached(&self, host: &Host) -> bool {
        !self.rules.attached.of(host).is_empty()
    }

    /// All routes that are attached to a service, for whichever client and port.
    pub(crate) fn attached_over(&self, host: &Host) -> Vec<Arc<AttachedIntent>> {
        self.rules.attached.of(host)
    }

    /// The routes, the oldest first, that are attached to a port of a service and hold for a client of `namespace`: those of its own namespace,
    /// and without any those of the service's (GEP-1294). Of several kinds only the most specific holds of those that the port, as that
    /// client sees it, has anything for.
    pub fn attached_to(&self, service: &Service, port: u16, namespace: &str) -> Vec<Arc<AttachedIntent>> {
        let mut routes = self.rules.attached.of(&service.host);
        let Some(offer) = service.offer(port, namespace) else { return Vec::new() };
        let spoken = offer.protocol.in_catalog();
        routes.retain(|route| {
            can_hold(route.origin.kind, spoken)
                && route.is_at(&service.host, port, |name| service.port_named(name))
        });
        let consumer = routes.iter().any(|route| route.origin.namespace == namespace);
        let of = if consumer { namespace } else { service.namespace.as_str() };
        routes.retain(|route| route.origin.namespace == of);
        let all = routes.clone();
        routes.retain(|route| !all.iter().any(|other| outranks(other, route)));
        routes.sort_by(|a, b| a.age().cmp(&b.age()));
        routes
    }
}

impl Service {
    /// The port of a name, as those say who describe the service, and its instances.
    pub(crate) fn port_named(&self, name: &str) -> Option<u16> {
        self.port_names().find(|(known, _)| *known == name).map(|(_, number)| number)
    }

    /// What ports are called, where they have names; the first word counts.
    pub(crate) fn port_names(&self) -> impl Iterator<Item = (&str, u16)> {
        let described = self.described.iter().flat_map(|intent| &intent.ports);
        let described = described.map(|(number, port)| (port.name.as_str(), *number));
        let instances = self.instances.iter().flat_map(|instance| &instance.ports);
        let all = described.chain(instances.map(|port| (port.name.as_str(), port.number)));
        all.filter(|(name, _)| !name.is_empty())
    }
}

impl Surroundings for World {
    fn ports(&self, host: &Host) -> Option<BTreeMap<u16, PortProtocol>> {
        let ports = self.service(host)?.ports.iter();
        Some(ports.map(|(port, spoken)| (*port, spoken.in_catalog())).collect())
    }

    fn port_named(&self, host: &Host, name: &str) -> Option<u16> {
        self.service(host)?.port_named(name)
    }

    fn outranked(
        &self,
        route: &AttachedIntent,
        host: &Host,
        port: u16,
        spoken: PortProtocol,
    ) -> Option<Origin> {
        let named = |name: &str| Surroundings::port_named(self, host, name);
        let all = self.rules.attached.of(host);
        let mut others = all.iter().filter(|other| {
            other.origin.namespace == route.origin.namespace
                && can_hold(other.origin.kind, spoken)
                && outranks(other, route)
                && other.is_at(host, port, named)
        });
        others.next().map(|other| other.origin.clone())
    }
}
