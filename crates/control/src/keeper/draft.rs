//! The keeper's state, and each command as a function on it that says what to store. Copy on write: a draft that is dropped
//! has changed nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_model::identity::SpiffeId;

use super::claims::Claims;
use super::revocations::Revocations;
use super::rules::Rule;
use super::{Published, Registrations};
use crate::compile::cache::Compiled;
use crate::instance::Instance;
use crate::registry::lease::Held;
use crate::registry::{Event, Item, Key, Source};
use crate::sorted::Sorted;
use crate::store::Contents;
use crate::store::records::rule_key;
use crate::world::{Change, Fact, MeshSettings, World};

mod instances;
mod keys;
mod revocations;
mod rules;

#[derive(Clone)]
pub(super) struct Draft {
    pub(super) generation: u64,
    pub(super) reserved: u64,
    pub(super) settings: MeshSettings,
    pub(super) roots_pem: Arc<str>,
    /// Those in force.
    pub(super) rules: Arc<BTreeMap<String, Arc<Rule>>>,
    /// Who has which rule: what was applied, and what registries say.
    ruled: Claims<Arc<Rule>>,
    pub(super) revocations: Revocations,
    pub(super) registrations: Registrations,
    /// Of each identity that registered for itself, how many.
    of_identity: Sorted<SpiffeId, usize>,
    /// Who has which instance: what was registered, and what registries say.
    claims: Claims<Arc<Instance>>,
    /// The highest version that each object ever had.
    versions: Arc<BTreeMap<String, u64>>,
    /// All of it, as compilation sees it.
    pub(super) world: World,
    /// The world has not got all of [`Draft::rules`] yet.
    unruled: bool,
    /// How it differs from the world of the draft that this one came from.
    pub(super) change: Change,
}

impl Draft {
    pub(super) fn load(contents: Contents, settings: MeshSettings, roots_pem: Arc<str>) -> Self {
        let (mut known, mut ruled) = (BTreeMap::new(), Claims::default());
        for stored in contents.rules {
            let (key, rule) = (stored.key.clone(), Arc::new(rules::reload(stored, &settings)));
            ruled.put(&Source::api(), &key, rule.clone());
            known.insert(key, rule);
        }
        let mut draft = Self {
            world: World::empty(settings.clone()),
            unruled: true,
            change: Change::default(),
            generation: contents.generation,
            reserved: contents.generation,
            settings,
            roots_pem,
            rules: Arc::new(known),
            ruled,
            revocations: Revocations::load(contents.revoked),
            registrations: Registrations::default(),
            of_identity: Sorted::default(),
            claims: Claims::default(),
            versions: Arc::new(contents.versions),
        };
        draft.recall_keys(contents.facts.get(keys::FACT));
        contents.instances.into_iter().for_each(|stored| draft.enter(stored));
        draft
    }

    /// The state to work on, with the number that it will have if something changes.
    pub(super) fn next(&self) -> Self {
        Self { generation: self.generation + 1, change: Change::default(), ..self.clone() }
    }

    /// The world under this draft's number.
    pub(super) fn world(&mut self) -> Arc<World> {
        self.settle();
        let mut world = self.world.clone();
        world.generation = self.generation;
        Arc::new(world)
    }

    pub(super) fn publish(
        &self,
        compiled: &Arc<Compiled>,
        world: &Arc<World>,
        held: &Arc<Vec<Held>>,
    ) -> Published {
        Published {
            compiled: compiled.clone(),
            world: world.clone(),
            revocations: self.revocations.entries().clone(),
            revoked: self.revocations.list().clone(),
            rules: self.rules.clone(),
            registrations: self.registrations.clone(),
            claims: self.claims.clone(),
            ruled: self.ruled.clone(),
            held: held.clone(),
            at: SystemTime::now(),
        }
    }

    /// Brings the rules into the world. All of them are compared with all that were, so once for whatever came together.
    fn settle(&mut self) {
        if !std::mem::take(&mut self.unruled) {
            return;
        }
        let objects = self.rules.values().filter_map(|rule| rule.object.as_ref());
        let intents = objects.flat_map(|object| object.intents.clone());
        self.world.rule(intents, &mut self.change);
    }

    /// What the world has under an id. The world must not depend on who spoke last. Nobody is sent to who would be refused
    /// there.
    fn decide(&mut self, id: &str) {
        let owner = self.claims.owner(id).map(|(source, instance)| (instance.clone(), source.place));
        match owner.filter(|(instance, _)| !self.is_revoked(instance)) {
            Some((instance, place)) => self.world.put(instance, place, &mut self.change),
            None => self.world.take(id, &mut self.change),
        }
    }

    /// The same of rules.
    fn decide_rules(&mut self, keys: &[String]) {
        if keys.is_empty() {
            return;
        }
        let rules = Arc::make_mut(&mut self.rules);
        for key in keys {
            match self.ruled.owner(key) {
                Some((_, rule)) => drop(rules.insert(key.clone(), rule.clone())),
                None => drop(rules.remove(key)),
            }
        }
        self.unruled = true;
    }

    fn is_revoked(&self, instance: &Instance) -> bool {
        let revoked = self.revocations.list();
        !revoked.is_empty()
            && instance.identity(&self.settings.trust_domain).is_ok_and(|id| revoked.has_identity(&id))
    }

    /// Others are revoked now.
    pub(super) fn decide_all(&mut self) {
        self.change.facts.insert(Fact::Trust);
        let ids: Vec<String> = self.claims.owned().map(|(id, _)| id.to_owned()).collect();
        ids.iter().for_each(|id| self.decide(id));
    }

    /// How many instances a `namespace/service` has.
    pub(super) fn members(&self, service: &str) -> usize {
        let Some((namespace, name)) = service.split_once('/') else { return 0 };
        let host = self.world.resolver.service(name, namespace);
        self.world.service(&host).map_or(0, |service| service.instances.len())
    }

    pub(super) fn trust(&mut self, roots_pem: Arc<str>) {
        self.change.facts.insert(Fact::Trust);
        self.roots_pem = roots_pem;
    }

    /// A registry has said this. Whether something changed.
    pub(super) fn registry(&mut self, source: &Arc<Source>, event: Event) -> bool {
        let (mut ids, mut keys) = (Vec::new(), Vec::new());
        match event {
            Event::Reset(all) => {
                let (mut instances, mut rules) = (Vec::new(), Vec::new());
                for item in all {
                    match item {
                        Item::Instance(instance) => instances.push((instance.id.clone(), instance)),
                        Item::Rule(object) => {
                            rules.push((rule_key(&object), self.said_rule(source, *object)));
                        }
                    }
                }
                ids = self.claims.reset(source, instances);
                keys = self.ruled.reset(source, rules);
            }
            Event::Upsert(Item::Instance(instance)) => {
                let id = instance.id.clone();
                ids.extend(self.claims.put(source, &id, instance).then_some(id));
            }
            Event::Upsert(Item::Rule(object)) => {
                let (key, rule) = (rule_key(&object), self.said_rule(source, *object));
                keys.extend(self.ruled.put(source, &key, rule).then_some(key));
            }
            Event::Remove(Key::Instance(id)) => ids.extend(self.claims.take(source, &id).then_some(id)),
            Event::Remove(Key::Rule(key)) => keys.extend(self.ruled.take(source, &key).then_some(key)),
        }
        ids.iter().for_each(|id| self.decide(id));
        self.decide_rules(&keys);
        !(ids.is_empty() && keys.is_empty())
    }
}
