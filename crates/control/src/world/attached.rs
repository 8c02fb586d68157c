//! Which routes are attached to a port of a service, and what they may refer to.

use std::sync::Arc;

use outrigger_rules::intent::{AttachedIntent, Host, ObjectKind};

use super::{Service, World};

impl World {
    /// Whether routes are attached to a service, for whichever client and port.
    pub(crate) fn has_attached(&self, host: &Host) -> bool {
        !self.rules.attached.of(host).is_empty()
    }

    /// The routes that are attached to a port of a service and hold for a client of `namespace`: those of its own namespace,
    /// and without any those of the service's (GEP-1294). Of several kinds only the most specific holds.
    pub fn attached_to(&self, service: &Service, port: u16, namespace: &str) -> Vec<Arc<AttachedIntent>> {
        let mut routes = self.rules.attached.of(&service.host);
        routes.retain(|route| route.is_at(&service.host, port, |name| service.port_named(name)));
        let consumer = routes.iter().any(|route| route.origin.namespace == namespace);
        let of = if consumer { namespace } else { service.namespace.as_str() };
        routes.retain(|route| route.origin.namespace == of);
        if routes.iter().any(|route| route.origin.kind == ObjectKind::GrpcRoute) {
            routes.retain(|route| route.origin.kind == ObjectKind::GrpcRoute);
        }
        routes
    }

    /// Whether a route may refer to a service: to one of its own namespace, to one that it is attached to (its clients call
    /// that anyway), and to whatever a ReferenceGrant opens to it.
    pub fn may_refer(&self, route: &AttachedIntent, host: &Host) -> bool {
        let Some((service, namespace)) = self.resolver.split(host) else { return false };
        namespace == route.origin.namespace
            || route.hosts.contains(host)
            || self.rules.grants.of(namespace).iter().any(|grant| grant.permits(&route.origin, service))
    }
}

impl Service {
    /// The port of a name, as those say who describe the service, and its instances.
    pub(crate) fn port_named(&self, name: &str) -> Option<u16> {
        let described = self.described.iter().flat_map(|intent| &intent.ports);
        let described = described.map(|(number, port)| (port.name.as_str(), *number));
        let instances = self.instances.iter().flat_map(|instance| &instance.ports);
        let mut all = described.chain(instances.map(|port| (port.name.as_str(), port.number)));
        all.find(|(known, _)| *known == name).map(|(_, number)| number)
    }
}
