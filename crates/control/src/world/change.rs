//! How a world changes, and what a change is about.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use outrigger_rules::intent::{Host, Intent, KeySource, Origin, ServiceIntent};

use super::rules::{Rules, differing};
use super::{Service, World};
use crate::described::{self, Described};
use crate::instance::{Instance, Protocol};
use crate::virtual_address::Moved;

/// Something that a compiled resource may depend on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fact {
    /// That there is a service, its ports and its addresses.
    Service(Host),
    /// Its instances.
    Members(Host),
    /// Which routing it has.
    Routes(Host),
    /// Which client-side policy it has.
    Destinations(Host),
    /// Who has an address.
    Address(IpAddr),
    /// An instance.
    Instance(String),
    /// The mTLS modes of a namespace's workloads.
    Mtls(String),
    /// The authorization of a namespace's workloads.
    Authorization(String),
    /// The keys of tokens at a place.
    Keys(KeySource),
    /// The rate limits of a namespace's services.
    Limits(String),
    /// That there are these services with these ports and no others.
    Services,
    /// Which services are described, how, and what instances add to that.
    Described,
    /// Which instances and described workloads a namespace has.
    Workloads(String),
    /// Which Sidecars there are.
    Sidecars,
    /// Whom the mesh trusts.
    Trust,
}

/// Many facts at once, known only to whoever knows which there are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wide {
    /// The routing of all hosts that a wildcard covers.
    Routes(Host),
    /// The client-side policy of all of them.
    Destinations(Host),
    /// Every namespace's mTLS modes.
    Mtls,
    /// Every namespace's authorization.
    Authorization,
    /// Which Sidecar holds for whom: of those who see the same, one may have another now than the others.
    Sidecars,
}

/// What changes were about.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// One by one.
    pub facts: BTreeSet<Fact>,
    /// Many at once.
    pub wide: BTreeSet<Wide>,
    /// Instances that came, went, or are not what they were.
    pub instances: BTreeSet<String>,
}

impl Change {
    fn note(&mut self, fact: Fact) {
        self.facts.insert(fact);
    }

    fn moved(&mut self, moved: &Moved) {
        self.note(Fact::Service(moved.host.clone()));
        self.facts.extend(moved.addresses().map(Fact::Address));
    }
}

impl World {
    /// Adds an instance or takes it for the one of the same id. `place`: that of who says so in the table of registries.
    pub(crate) fn put(&mut self, instance: Arc<Instance>, place: usize, change: &mut Change) {
        let before = self.instances.get(&instance.id).cloned();
        let is_placed = || self.by_address.is_at(&instance, place);
        if before.as_ref() == Some(&instance) && is_placed() {
            return;
        }
        let hosts = self.hosts_of(&instance);
        change.note(Fact::Workloads(instance.namespace.clone()));
        if let Some(before) = &before {
            change.note(Fact::Workloads(before.namespace.clone()));
            self.unplace(before, change);
            for old in self.hosts_of(before).iter().filter(|old| !hosts.contains(old)) {
                self.member(old, before, None, change);
            }
        }
        for address in distinct(&instance) {
            self.by_address.put(address, &instance, place);
            change.note(Fact::Address(address));
        }
        self.noted(&instance.id, change);
        self.instances.insert(instance.id.clone(), instance.clone());
        for host in &hosts {
            self.member(host, &instance, Some(&instance), change);
        }
    }

    /// Takes an instance out.
    pub(crate) fn take(&mut self, id: &str, change: &mut Change) {
        let Some(before) = self.instances.get(id).cloned() else { return };
        change.note(Fact::Workloads(before.namespace.clone()));
        self.unplace(&before, change);
        self.instances.remove(id);
        self.noted(id, change);
        for host in self.hosts_of(&before) {
            self.member(&host, &before, None, change);
        }
    }

    /// Puts rules in the place of all that there are.
    pub(crate) fn rule(&mut self, intents: impl IntoIterator<Item = Intent>, change: &mut Change) {
        let may = |host: &Host, namespace: &str| {
            self.resolver.has_say(namespace, self.settings.is_root(namespace), host)
        };
        let rules = Rules::new(intents, may);
        let before = std::mem::replace(&mut self.rules, Arc::new(rules));
        self.describe(&before.described, change);
        self.forget_keys();
        let after = &self.rules;
        for rule in differing(&before.routes.all, &after.routes.all) {
            for host in &rule.hosts {
                match host.is_wildcard() {
                    true => drop(change.wide.insert(Wide::Routes(host.clone()))),
                    false => change.note(Fact::Routes(host.clone())),
                }
            }
        }
        for route in differing(&before.attached.all, &after.attached.all) {
            change.facts.extend(route.hosts.iter().cloned().map(Fact::Routes));
        }
        for rule in differing(&before.destinations.all, &after.destinations.all) {
            match rule.host.is_wildcard() {
                true => drop(change.wide.insert(Wide::Destinations(rule.host.clone()))),
                false => change.note(Fact::Destinations(rule.host.clone())),
            }
        }
        for rule in differing(&before.mtls.all, &after.mtls.all) {
            match self.settings.is_root(&rule.origin.namespace) {
                true => drop(change.wide.insert(Wide::Mtls)),
                false => change.note(Fact::Mtls(rule.origin.namespace.clone())),
            }
        }
        // Tokens are looked at, and what they say, by the same listeners.
        let policies =
            differing(&before.authorization.all, &after.authorization.all).map(|rule| &rule.origin);
        let tokens = differing(&before.tokens.all, &after.tokens.all).map(|rule| &rule.origin);
        for Origin { namespace, .. } in policies.chain(tokens) {
            match self.settings.is_root(namespace) {
                true => drop(change.wide.insert(Wide::Authorization)),
                false => change.note(Fact::Authorization(namespace.clone())),
            }
        }
        if differing(&before.sidecars.all, &after.sidecars.all).next().is_some() {
            change.note(Fact::Sidecars);
            let who = |rules: &Rules| -> Vec<_> {
                let all = rules.sidecars.all.iter();
                all.map(|one| (one.origin.clone(), one.selector.clone(), one.created.clone())).collect()
            };
            if who(&before) != who(after) {
                change.wide.insert(Wide::Sidecars);
            }
        }
        for rule in differing(&before.limits.all, &after.limits.all) {
            change.note(Fact::Limits(rule.origin.namespace.clone()));
        }
    }

    /// Keys that no rule wants any more: they may be others when one does again.
    fn forget_keys(&mut self) {
        if !self.keys.is_empty() {
            let wanted = self.key_sources();
            let gone = self.keys.keys().filter(|source| !wanted.contains_key(source));
            let gone: Vec<KeySource> = gone.cloned().collect();
            for source in &gone {
                self.keys.remove(source);
            }
        }
    }

    /// The keys at a place are these.
    pub(crate) fn learn(&mut self, source: KeySource, keys: Arc<str>, change: &mut Change) {
        change.note(Fact::Keys(source.clone()));
        self.keys.insert(source, keys);
    }

    /// What users describe is other than it was.
    fn describe(&mut self, before: &Described, change: &mut Change) {
        let after = self.rules.clone();
        let mut hosts = BTreeSet::new();
        for service in differing(&before.services, &after.described.services) {
            change.note(Fact::Described);
            hosts.extend(service.hosts.iter().cloned());
        }
        for host in &hosts {
            let instances = self.services.get(host).map(|service| service.instances.clone());
            // Which of them belong to it, the description says.
            change.note(Fact::Members(host.clone()));
            self.settle(host, instances.unwrap_or_default(), change);
        }
        for entry in differing(&before.entries, &after.described.entries) {
            change.note(Fact::Workloads(entry.origin.namespace.clone()));
        }
    }

    fn hosts_of(&self, instance: &Instance) -> Vec<Host> {
        instance.serves().iter().map(|name| self.resolver.service(name, &instance.namespace)).collect()
    }

    fn noted(&self, id: &str, change: &mut Change) {
        change.note(Fact::Instance(id.to_owned()));
        change.instances.insert(id.to_owned());
    }

    fn unplace(&mut self, instance: &Instance, change: &mut Change) {
        for address in distinct(instance) {
            self.by_address.take(address, &instance.id);
            change.note(Fact::Address(address));
        }
    }

    /// An instance of a service is now this, or gone.
    fn member(&mut self, host: &Host, of: &Instance, now: Option<&Arc<Instance>>, change: &mut Change) {
        change.note(Fact::Members(host.clone()));
        let before = self.services.get(host);
        let mut instances: Vec<_> = before.map(|service| service.instances.clone()).unwrap_or_default();
        let place = instances.partition_point(|other| other.id < of.id);
        let there = instances.get(place).is_some_and(|other| other.id == of.id);
        match now {
            Some(now) if there => instances[place] = now.clone(),
            Some(now) => instances.insert(place, now.clone()),
            None if there => drop(instances.remove(place)),
            None => {}
        }
        self.settle(host, instances, change);
    }

    /// A service has these instances, and what the rules say of it. It is there as long as it has either.
    fn settle(&mut self, host: &Host, instances: Vec<Arc<Instance>>, change: &mut Change) {
        let before = self.services.get(host).cloned();
        let described = self.rules.described.of(host).to_vec();
        let had_address =
            before.as_ref().is_some_and(|before| has_address(host, &before.instances, &before.described));
        let has_address = has_address(host, &instances, &described);
        let now = self.shaped(host, instances, described, before.as_deref());
        let same_shape = match (&before, &now) {
            (Some(before), Some(now)) => {
                (&before.ports, &before.upgrades, &before.namespace, &before.name, &before.described)
                    == (&now.ports, &now.upgrades, &now.namespace, &now.name, &now.described)
                    && (&before.registered, before.instances.is_empty())
                        == (&now.registered, now.instances.is_empty())
            }
            (before, now) => before.is_none() && now.is_none(),
        };
        let is_described = [&before.as_deref(), &now.as_ref()]
            .into_iter()
            .any(|service| service.is_some_and(|service| !service.described.is_empty()));
        let _ = match now {
            Some(now) => self.services.insert(host.clone(), Arc::new(now)),
            None => self.services.remove(host),
        };
        let moved = match (had_address, has_address) {
            (false, true) => self.given.give(host),
            (true, false) => self.given.take(host),
            _ => Vec::new(),
        };
        self.moved(&moved, change);
        if !same_shape {
            change.note(Fact::Service(host.clone()));
            change.note(Fact::Services);
            if is_described {
                change.note(Fact::Described);
            }
        }
    }

    fn shaped(
        &self,
        host: &Host,
        instances: Vec<Arc<Instance>>,
        described: Vec<Arc<ServiceIntent>>,
        before: Option<&Service>,
    ) -> Option<Service> {
        // The names of the first instance: they differ in case at most.
        let (namespace, name) = match (instances.first(), described.first()) {
            (Some(first), _) if first.services.is_none() => (first.namespace.clone(), first.service.clone()),
            (Some(first), None) => {
                let (name, namespace) =
                    self.resolver.split(host).unwrap_or((&first.service, &first.namespace));
                (namespace.to_owned(), name.to_owned())
            }
            (_, Some(first)) => {
                let whole = (host.as_str(), first.origin.namespace.as_str());
                let (name, namespace) = self.resolver.split(host).unwrap_or(whole);
                (namespace.to_owned(), name.to_owned())
            }
            (None, None) => return None,
        };
        let (registered, upgrades) = shape(&instances);
        let mut ports = registered.clone();
        for (number, port) in described.iter().rev().flat_map(|intent| &intent.ports) {
            ports.insert(*number, described::protocol(port.protocol));
        }
        let virtual_addresses = before.map(|service| service.virtual_addresses).unwrap_or_default();
        let host = host.clone();
        Some(Service {
            host,
            namespace,
            name,
            ports,
            registered,
            upgrades,
            instances,
            described,
            virtual_addresses,
        })
    }

    /// Services whose virtual addresses are others now.
    fn moved(&mut self, moved: &[Moved], change: &mut Change) {
        for moved in moved {
            change.moved(moved);
            if let Some(service) = self.services.get(&moved.host) {
                let virtual_addresses = self.given.of(&moved.host);
                let service = Service { virtual_addresses, ..Service::clone(service) };
                self.services.insert(moved.host.clone(), Arc::new(service));
            }
        }
    }
}

/// Whether a virtual address stands for a service.
fn has_address(host: &Host, instances: &[Arc<Instance>], described: &[Arc<ServiceIntent>]) -> bool {
    !described::is_headless(described) && (!instances.is_empty() || described::wants_address(host, described))
}

/// The addresses of an instance, each once.
fn distinct(instance: &Instance) -> BTreeSet<IpAddr> {
    instance.addresses.iter().copied().collect()
}

type Upgrades = BTreeMap<u16, Vec<String>>;

/// What instances in the order of their ids make of their service's ports. Those of described services say nothing of these.
fn shape(instances: &[Arc<Instance>]) -> (BTreeMap<u16, Protocol>, Upgrades) {
    let (mut ports, mut upgrades) = (BTreeMap::new(), Upgrades::new());
    let own = instances.iter().filter(|instance| instance.services.is_none());
    for port in own.flat_map(|instance| &instance.ports) {
        ports.entry(port.number).or_insert(port.protocol);
        if !port.upgrades.is_empty() {
            let lower = port.upgrades.iter().map(|upgrade| upgrade.to_ascii_lowercase());
            upgrades.entry(port.number).or_default().extend(lower);
        }
    }
    for all in upgrades.values_mut() {
        all.sort_unstable();
        all.dedup();
    }
    (ports, upgrades)
}
