//! What a cluster has, and what of it are instances and rules.
//!
//! A Pod is an instance of whatever Services of its namespace select it, at the ports of its containers and those that the Services
//! mean. Services and custom resources are rules, read as if they had been applied.
//!
//! Endpoints that somebody wrote by hand are the word of whoever may write in that namespace. A Pod of the namespace that is named so serves the
//! Service as one that was selected; every other address is an endpoint of that Service and of nothing else: who is at an
//! address that clients call themselves, no slice says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use outrigger_rules::Object;
use outrigger_rules::intent::{Intent, ServiceIntent};

use super::places::{Place, Places};
use super::pod::Pod;
use crate::canonical;
use crate::described;
use crate::inject::Release;
use crate::instance::{Instance, Labels, MAX_OF_POD, MOST_ALIASES, Port, Protocol};
use crate::registry::{Event, Item, Key};
use crate::world::selected;

mod disputed;

/// Namespace and name.
pub(super) type Named = (String, String);

/// A thing of the cluster, with what is said of it.
#[derive(Debug)]
pub(super) enum Thing {
    /// `None`: it has no address, or has ended.
    Pod(Option<Box<Pod>>),
    /// Where it is, and the release of its kubelet.
    Node(Place, Option<Release>),
    /// A rule; `None`: it cannot be read, and what it said before holds.
    Rule(Option<Box<Object>>),
    /// A rule that is another controller's by now, whatever it said before.
    Theirs,
    /// Endpoints that somebody wrote by hand.
    Slice(Vec<Instance>),
}

/// Kinds that are not rules.
pub(super) const POD: &str = "Pod";
pub(super) const NODE: &str = "Node";
pub(super) const SLICE: &str = "EndpointSlice";
pub(super) const SERVICE: &str = "Service";

/// Ports of a Pod that no Service means; a sidecar takes what comes to others as well.
const MOST_OTHERS: usize = 64;

/// The port of a slice that has no name, which is no name that one could have.
pub(super) const UNNAMED: &str = "-";

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    network: String,
    /// Whether Istio's sidecars have our roots.
    istio_peers: bool,
    pods: BTreeMap<String, BTreeMap<String, Pod>>,
    /// Pods by node: that one has moved or gone is not everybody's news.
    on: HashMap<String, BTreeSet<Named>>,
    services: BTreeMap<String, BTreeMap<String, ServiceIntent>>,
    places: Places,
    /// Endpoints that were written by hand, by slice.
    slices: BTreeMap<String, BTreeMap<String, Vec<Instance>>>,
    /// What Pods cannot be instances, and why.
    refused: BTreeMap<String, String>,
    /// What was said, by part and key.
    said: BTreeMap<&'static str, BTreeMap<String, Item>>,
}

/// News of a part.
pub(super) type Said = (&'static str, Event);

impl Cluster {
    pub(super) fn new(network: String, istio_peers: bool) -> Self {
        Self { network, istio_peers, ..Self::default() }
    }

    /// It was said before this start. Yields the object that it is of.
    pub(super) fn recall(&mut self, kind: &'static str, item: &mut Item) -> Option<Named> {
        let (key, named) = match item {
            Item::Instance(instance) => {
                let of = match kind {
                    // Its id goes on with an address.
                    SLICE => instance.id.find(&format!(".{}:", instance.namespace)),
                    _ => instance.id.len().checked_sub(instance.namespace.len() + 1),
                };
                let name = instance.id.get(..of?)?.to_owned();
                (instance.id.clone(), (instance.namespace.clone(), name))
            }
            Item::Rule(object) => {
                let named = (object.namespace.clone(), object.name.clone());
                if kind == SERVICE {
                    let service = service_of(object).map(|service| (named.1.clone(), service.clone()));
                    self.services.entry(named.0.clone()).or_default().extend(service);
                    as_said(object);
                }
                (written(&named), named)
            }
        };
        self.said.entry(kind).or_default().insert(key, item.clone());
        Some(named)
    }

    /// A thing is now this. Answers what is news.
    pub(super) fn put(&mut self, kind: &'static str, named: &Named, thing: Thing) -> Vec<Said> {
        match thing {
            Thing::Pod(None) => self.take(kind, named),
            Thing::Pod(Some(pod)) => {
                let before =
                    self.pods.entry(named.0.clone()).or_default().insert(named.1.clone(), (*pod).clone());
                let moved = before.as_ref().is_none_or(|before| before.addresses != pod.addresses);
                if before.as_ref().is_none_or(|before| before.node != pod.node) {
                    self.leave(before.as_ref(), named);
                    self.on.entry(pod.node.clone()).or_default().insert(named.clone());
                }
                let mut news = self.pod(named);
                if moved {
                    news.extend(self.written_at(&named.0, [before.as_ref(), Some(&*pod)]));
                }
                news
            }
            Thing::Node(place, _) => self.node(&named.1, Some(place)),
            Thing::Rule(None) => Vec::new(),
            Thing::Theirs => self.take(kind, named),
            Thing::Rule(Some(object)) => self.rule(kind, named, *object),
            Thing::Slice(instances) => self.slice(named, instances),
        }
    }

    /// A thing is there no longer.
    pub(super) fn take(&mut self, kind: &'static str, named: &Named) -> Vec<Said> {
        match kind {
            POD => {
                let before = self.pods.get_mut(&named.0).and_then(|pods| pods.remove(&named.1));
                self.leave(before.as_ref(), named);
                let mut news = self.pod(named);
                news.extend(self.written_at(&named.0, [before.as_ref(), None]));
                news
            }
            NODE => self.node(&named.1, None),
            SLICE => self.slice(named, Vec::new()),
            _ => {
                let mut news = Vec::new();
                if let Some(Item::Rule(object)) = self.said.entry(kind).or_default().remove(&written(named)) {
                    news.push((kind, Event::Remove(Key::Rule(written_whole(&object)))));
                }
                if kind == SERVICE
                    && let Some(before) = self.services.get_mut(&named.0).and_then(|all| all.remove(&named.1))
                {
                    news.extend(self.selected_by(&named.0, &[&before]));
                }
                news
            }
        }
    }

    /// Pods that cannot be instances, and why.
    pub(super) fn refused(&self) -> impl ExactSizeIterator<Item = (&String, &String)> {
        self.refused.iter()
    }

    /// Everything, part by part.
    pub(super) fn all(&self) -> Vec<Said> {
        self.said
            .iter()
            .map(|(part, items)| (*part, Event::Reset(items.values().cloned().collect())))
            .collect()
    }

    fn rule(&mut self, kind: &'static str, named: &Named, mut object: Object) -> Vec<Said> {
        let mut affected = Vec::new();
        if kind == SERVICE {
            let service = service_of(&object);
            let all = self.services.entry(named.0.clone()).or_default();
            affected.extend(all.remove(&named.1));
            if let Some(service) = service {
                all.insert(named.1.clone(), service.clone());
                affected.push(service.clone());
            }
            as_said(&mut object);
        }
        let item = Item::Rule(Box::new(object));
        let known = self.said.entry(kind).or_default();
        let mut news = Vec::new();
        if known.get(&written(named)) != Some(&item) {
            known.insert(written(named), item.clone());
            news.push((kind, Event::Upsert(item)));
        }
        news.extend(self.selected_by(&named.0, &affected.iter().collect::<Vec<_>>()));
        news
    }

    /// Pods that any of these services selects, or selected.
    fn selected_by(&mut self, namespace: &str, services: &[&ServiceIntent]) -> Vec<Said> {
        let Some(pods) = self.pods.get(namespace) else { return Vec::new() };
        let of = |pod: &Pod| services.iter().any(|service| selects(service, pod));
        let names: Vec<String> =
            pods.iter().filter(|(_, pod)| of(pod)).map(|(name, _)| name.clone()).collect();
        names.into_iter().flat_map(|name| self.pod(&(namespace.to_owned(), name))).collect()
    }

    fn node(&mut self, name: &str, place: Option<Place>) -> Vec<Said> {
        let Some(moved) = self.places.put(name, place) else { return Vec::new() };
        let there: Vec<Named> = self.on.get(name).into_iter().flatten().cloned().collect();
        let mut news: Vec<Said> = there.iter().flat_map(|named| self.pod(named)).collect();
        let is_there = |one: &Instance| one.node() == Some(name) || moved.zones.contains(&one.zone);
        let slices =
            self.slices.iter().flat_map(|(namespace, all)| all.iter().map(move |one| (namespace, one)));
        let written: Vec<Named> = slices
            .filter(|(_, (_, all))| all.iter().any(is_there))
            .map(|(namespace, (name, _))| (namespace.clone(), name.clone()))
            .collect();
        news.extend(written.iter().flat_map(|slice| self.say_slice(slice)));
        news
    }

    /// The Pod is no longer on the node where it was.
    fn leave(&mut self, before: Option<&Pod>, named: &Named) {
        let Some(pod) = before else { return };
        if let Some(pods) = self.on.get_mut(&pod.node) {
            pods.remove(named);
            if pods.is_empty() {
                self.on.remove(&pod.node);
            }
        }
    }

    /// What a Pod is now as an instance.
    fn pod(&mut self, named: &Named) -> Vec<Said> {
        let instance = self.pods.get(&named.0).and_then(|pods| pods.get(&named.1)).map(|pod| {
            let none = BTreeMap::new();
            let services = self.services.get(&named.0).unwrap_or(&none);
            let place = pod.place().unwrap_or_else(|| self.places.of(&pod.node));
            let mut instance = instance(named, pod, services, place, &self.network);
            // Whoever has other roots would refuse our certificate: he is called as one without a sidecar.
            instance.sidecar &= self.istio_peers || !pod.is_istio;
            for written in self.slices.get(&named.0).into_iter().flat_map(|slices| slices.values().flatten())
            {
                if is_of(pod, written) {
                    serve(&mut instance, written);
                }
            }
            Arc::new(instance)
        });
        let id = id(named);
        let wrong = instance.as_ref().and_then(|instance| instance.validate_within(MAX_OF_POD).err());
        let instance = instance.filter(|_| wrong.is_none());
        match wrong {
            Some(wrong) => drop(self.refused.insert(format!("Pod {id}"), wrong)),
            None => drop(self.refused.remove(&format!("Pod {id}"))),
        }
        let known = self.said.entry(POD).or_default();
        match instance {
            Some(instance)
                if !known.get(&id).is_some_and(|item| *item == Item::Instance(instance.clone())) =>
            {
                known.insert(id, Item::Instance(instance.clone()));
                vec![(POD, Event::Upsert(Item::Instance(instance)))]
            }
            Some(_) => Vec::new(),
            None if known.remove(&id).is_some() => vec![(POD, Event::Remove(Key::Instance(id)))],
            None => Vec::new(),
        }
    }

    /// The endpoints of a slice are now these.
    fn slice(&mut self, named: &Named, endpoints: Vec<Instance>) -> Vec<Said> {
        let wrong = endpoints.iter().find_map(|endpoint| endpoint.validate().err());
        let key = format!("EndpointSlice {}", id(named));
        match wrong {
            Some(wrong) => drop(self.refused.insert(key, wrong)),
            None => drop(self.refused.remove(&key)),
        }
        let endpoints: Vec<Instance> = endpoints.into_iter().filter(|one| one.validate().is_ok()).collect();
        let slices = self.slices.entry(named.0.clone()).or_default();
        let mut all = endpoints.clone();
        match endpoints.is_empty() {
            true => all.extend(slices.remove(&named.1).into_iter().flatten()),
            false => all.extend(slices.insert(named.1.clone(), endpoints).into_iter().flatten()),
        }
        let mut news = self.say_slice(named);
        let pods = self.pods.get(&named.0).into_iter().flatten();
        let pods = pods.filter(|(_, pod)| all.iter().any(|written| is_of(pod, written)));
        let pods: Vec<Named> = pods.map(|(name, _)| (named.0.clone(), name.clone())).collect();
        news.extend(pods.iter().flat_map(|pod| self.pod(pod)));
        news
    }

    /// Slices of a namespace that name an address of these Pods.
    fn written_at(&mut self, namespace: &str, pods: [Option<&Pod>; 2]) -> Vec<Said> {
        let slices = self.slices.get(namespace).into_iter().flatten();
        let of = |written: &Instance| pods.into_iter().flatten().any(|pod| is_of(pod, written));
        let names: Vec<Named> = slices
            .filter(|(_, all)| all.iter().any(of))
            .map(|(name, _)| (namespace.to_owned(), name.clone()))
            .collect();
        names.iter().flat_map(|slice| self.say_slice(slice)).collect()
    }

    /// What of a slice no Pod of its namespace is.
    fn say_slice(&mut self, named: &Named) -> Vec<Said> {
        let written = self.slices.get(&named.0).and_then(|slices| slices.get(&named.1)).into_iter().flatten();
        let pods = self.pods.get(&named.0);
        let others = written.filter(|one| !pods.is_some_and(|pods| pods.values().any(|pod| is_of(pod, one))));
        let instances: Vec<Instance> = others.map(|one| self.places.placed(one)).collect();
        let known = self.said.entry(SLICE).or_default();
        // Each has the slice's name in front of what no name has.
        let prefix = format!("{}:", id(named));
        let of_it = known.range(prefix.clone()..).take_while(|(id, _)| id.starts_with(&prefix));
        let mut gone: BTreeSet<String> = of_it.map(|(id, _)| id.clone()).collect();
        let mut news = Vec::new();
        for instance in instances {
            gone.remove(&instance.id);
            let item = Item::Instance(Arc::new(instance));
            let Item::Instance(instance) = &item else { continue };
            if known.get(&instance.id) != Some(&item) {
                known.insert(instance.id.clone(), item.clone());
                news.push((SLICE, Event::Upsert(item)));
            }
        }
        for id in gone {
            known.remove(&id);
            news.push((SLICE, Event::Remove(Key::Instance(id))));
        }
        news
    }
}

/// As the instance of a Pod is called: what its sidecar says of itself.
pub(super) fn id((namespace, name): &Named) -> String {
    format!("{name}.{namespace}")
}

fn written((namespace, name): &Named) -> String {
    format!("{namespace}/{name}")
}

fn written_whole(object: &Object) -> String {
    format!("{}/{}/{}", object.kind, object.namespace, object.name)
}

/// A Service without a selector has what somebody writes down for it.
fn selects(service: &ServiceIntent, pod: &Pod) -> bool {
    !service.selector.is_empty() && selected(&service.selector, &pod.labels)
}

fn service_of(object: &Object) -> Option<&ServiceIntent> {
    object.intents.iter().find_map(|intent| match intent {
        Intent::Service(service) => Some(service),
        _ => None,
    })
}

/// A Service as it is said: which Pods it selects we say ourselves, Pod by Pod.
fn as_said(object: &mut Object) {
    for intent in &mut object.intents {
        if let Intent::Service(service) = intent {
            if service.selector.is_empty() {
                by_the_names_of_its_own(service);
            }
            service.selector.clear();
        }
    }
}

/// What somebody writes down for a Service has its ports by the names of the Service's own, whatever the target. A Pod that is meant so may
/// call the port otherwise.
fn by_the_names_of_its_own(service: &mut ServiceIntent) {
    for (number, port) in &mut service.ports {
        port.target = port.target.or(Some(*number));
        port.target_name = if port.name.is_empty() { UNNAMED.to_owned() } else { port.name.clone() };
    }
}

/// Whether a written endpoint is a Pod of its namespace.
fn is_of(pod: &Pod, written: &Instance) -> bool {
    !pod.on_host && written.addresses.iter().any(|address| pod.addresses.contains(address))
}

/// A Pod serves a Service by somebody's word.
fn serve(instance: &mut Instance, written: &Instance) {
    let services = instance.services.get_or_insert_default();
    if !services.contains(&written.service) {
        services.push(written.service.clone());
    }
    let hints = written.metadata.iter().filter(|(key, _)| {
        [canonical::FOR_ZONES, canonical::FOR_NODES].iter().any(|hint| key.starts_with(hint))
    });
    instance.metadata.extend(hints.map(|(key, said)| (key.clone(), said.clone())));
    for port in &written.ports {
        if instance.port(port.number).is_none() {
            instance.ports.push(port.clone());
        }
    }
}

fn instance(
    named: &Named,
    pod: &Pod,
    services: &BTreeMap<String, ServiceIntent>,
    [region, zone, sub_zone]: Place,
    network: &str,
) -> Instance {
    let own: Vec<(&String, &ServiceIntent)> =
        services.iter().filter(|(_, service)| selects(service, pod)).collect();
    let mut metadata = BTreeMap::from([
        (canonical::WORKLOAD.to_owned(), pod.workload.clone()),
        (canonical::NODE.to_owned(), pod.node.clone()),
        (canonical::UID.to_owned(), pod.uid.clone()),
    ]);
    for (name, said) in [(canonical::INBOUND, &pod.inbound), (canonical::ROOTS, &pod.roots)] {
        metadata.extend(said.iter().map(|said| (name.to_owned(), said.clone())));
    }
    if !sub_zone.is_empty() {
        metadata.insert(canonical::SUB_ZONE.to_owned(), sub_zone);
    }
    Instance {
        id: id(named),
        service: pod.name.clone(),
        services: Some(own.iter().map(|(name, _)| (*name).clone()).collect()),
        namespace: named.0.clone(),
        addresses: pod.addresses.clone(),
        network: network.to_owned(),
        ports: ports(pod, own.iter().map(|(_, service)| *service)),
        labels: Labels::from(pod.labels.clone()).shared(),
        metadata,
        tags: Vec::new(),
        version: pod.version.clone(),
        weight: 100,
        zone,
        region,
        service_account: pod.service_account.clone(),
        state: pod.state,
        sidecar: pod.sidecar,
        ttl_seconds: None,
        word: Default::default(),
    }
}

/// Those of its containers, and those that Services mean; what is spoken there the first Service by name says.
fn ports<'s>(pod: &Pod, services: impl Iterator<Item = &'s ServiceIntent>) -> Vec<Port> {
    let port = |number: u16, name: &str, protocol| Port {
        number,
        name: name.to_owned(),
        protocol,
        aliases: Vec::new(),
        upgrades: Vec::new(),
    };
    let mut ports: Vec<Port> = Vec::with_capacity(pod.ports.len());
    for (number, name) in &pod.ports {
        match ports.iter_mut().find(|port| port.number == *number) {
            // One number may have several names, and Services may mean it by any of them.
            Some(port) if port.name.is_empty() => port.name.clone_from(name),
            Some(port) if !name.is_empty() && port.aliases.len() < MOST_ALIASES => {
                port.aliases.push(name.clone())
            }
            Some(_) => {}
            None => ports.push(port(*number, name, Protocol::Auto)),
        }
    }
    let mut said = BTreeSet::new();
    for (own, meant) in services.flat_map(|service| &service.ports) {
        let number = match meant.target_name.as_str() {
            "" => Some(meant.target.unwrap_or(*own)),
            name => pod.ports.iter().find(|(_, own)| own == name).map(|(number, _)| *number),
        };
        let Some(number) = number.filter(|number| said.insert(*number)) else { continue };
        let protocol = described::protocol(meant.protocol);
        match ports.iter_mut().find(|port| port.number == number) {
            Some(port) => port.protocol = protocol,
            None => ports.push(port(number, "", protocol)),
        }
    }
    // Those who hand out a port to each guest declare hundreds.
    let mut others = 0..MOST_OTHERS;
    ports.retain(|port| said.contains(&port.number) || others.next().is_some());
    ports
}

#[cfg(test)]
mod tests;
