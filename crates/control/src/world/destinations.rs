//! Which client-side policy a client has for a host, and whose word that is.

use std::sync::Arc;

use outrigger_rules::intent::{BackendTls, DestinationIntent, Host, Say};

use super::World;

impl World {
    /// Whether there is client-side policy for a host, for whichever client.
    pub(crate) fn has_policy(&self, host: &Host) -> bool {
        let has = |host: &Host| !self.rules.destinations.of(host).is_empty();
        has(host) || self.mistaken(host).is_some_and(|other| has(&other))
    }

    /// What policies say of TLS towards a service, with the certificates that are there.
    pub(crate) fn backend_tls(&self, host: &Host) -> Vec<BackendTls> {
        let rules = self.rules.destinations.of(host);
        rules.iter().flat_map(|rule| rule.backend_tls.iter().cloned()).collect()
    }

    /// All client-side policy for a host, for whichever client, by origin.
    pub(crate) fn destinations_over(&self, host: &Host) -> Vec<Arc<DestinationIntent>> {
        let mut all = self.rules.destinations.of(host);
        all.extend(self.mistaken(host).iter().flat_map(|other| self.rules.destinations.of(other)));
        all
    }

    /// Whose client-side policy counts for a host, beside that of a client's own namespace. A name of the mesh is its namespace's, any
    /// other of who describes it to the clients of `namespace`.
    pub(crate) fn say<'w>(&'w self, host: &'w Host, namespace: &str) -> Say<'w> {
        let owner = self.resolver.split(host).map(|(_, namespace)| namespace);
        let describes = || {
            let service = self.service(host)?;
            let first = service.described.iter().find(|intent| intent.visibility.includes(namespace));
            Some(first.map_or(service.namespace.as_str(), |intent| intent.origin.namespace.as_str()))
        };
        Say { owner: owner.or_else(describes), roots: self.settings.roots().collect() }
    }

    /// The client-side policy that a client of `namespace` has for a host; the client's own namespace goes first, then the
    /// service's, then a root namespace. Several rules of one namespace for one host are merged.
    pub fn destination_for(&self, host: &Host, namespace: &str) -> Option<Arc<DestinationIntent>> {
        let say = self.say(host, namespace);
        let all = self.rules.destinations.of(host);
        let mut rules = DestinationIntent::in_force(&all, host, &say, namespace);
        let others;
        if let Some(mistaken) = self.mistaken(host).filter(|_| rules.is_empty()) {
            others = self.rules.destinations.of(&mistaken);
            rules = DestinationIntent::in_force(&others, &mistaken, &say, namespace);
        }
        match rules.as_slice() {
            [] => None,
            [only] => Some((*only).clone()),
            several => DestinationIntent::merge(several.iter().map(|rule| &***rule)).map(Arc::new),
        }
    }
}
