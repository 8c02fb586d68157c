//! The keeper's state, and each command as a function on it that says what to store. Copy on write: a draft that is dropped
//! has changed nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_model::identity::SpiffeId;
use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

use super::revocations::Revocations;
use super::rules::Rule;
use super::{Published, Registrations};
use crate::compile::cache::Compiled;
use crate::instance::Instance;
use crate::registry::Event;
use crate::registry::api::Held;
use crate::registry::file::Problem;
use crate::store::Contents;
use crate::world::{Change, Fact, MeshSettings, World};

mod instances;
mod revocations;
mod rules;

type Files = BTreeMap<String, RedBlackTreeMapSync<String, Arc<Instance>>>;

#[derive(Clone)]
pub(super) struct Draft {
    pub(super) generation: u64,
    pub(super) reserved: u64,
    pub(super) settings: MeshSettings,
    pub(super) roots_pem: Arc<str>,
    pub(super) rules: Arc<BTreeMap<String, Arc<Rule>>>,
    pub(super) revocations: Revocations,
    pub(super) registrations: Registrations,
    /// Of each identity that registered for itself, how many.
    of_identity: HashTrieMapSync<SpiffeId, usize>,
    /// By registry source, then by id.
    files: Arc<Files>,
    /// The highest version that each object ever had.
    versions: Arc<BTreeMap<String, u64>>,
    /// All of it, as compilation sees it.
    pub(super) world: World,
    /// How it differs from the world of the draft that this one came from.
    pub(super) change: Change,
}

impl Draft {
    pub(super) fn load(contents: Contents, settings: MeshSettings, roots_pem: Arc<str>) -> Self {
        let mut known = BTreeMap::new();
        for stored in contents.rules {
            known.insert(stored.key.clone(), Arc::new(rules::reload(stored, &settings)));
        }
        let mut draft = Self {
            world: World::empty(settings.clone()),
            change: Change::default(),
            generation: contents.generation,
            reserved: contents.generation,
            settings,
            roots_pem,
            rules: Arc::new(known),
            revocations: Revocations::load(contents.revoked),
            registrations: Registrations::new_sync(),
            of_identity: HashTrieMapSync::new_sync(),
            files: Arc::default(),
            versions: Arc::new(contents.versions),
        };
        contents.instances.into_iter().for_each(|stored| draft.enter(stored));
        draft.rule();
        draft
    }

    /// The state to work on, with the number that it will have if something changes.
    pub(super) fn next(&self) -> Self {
        Self { generation: self.generation + 1, change: Change::default(), ..self.clone() }
    }

    /// The world under this draft's number.
    pub(super) fn world(&self) -> Arc<World> {
        let mut world = self.world.clone();
        world.generation = self.generation;
        Arc::new(world)
    }

    pub(super) fn publish(
        &self,
        compiled: &Arc<Compiled>,
        world: &Arc<World>,
        problems: &Arc<Vec<Problem>>,
        held: Vec<Held>,
    ) -> Published {
        Published {
            compiled: compiled.clone(),
            world: world.clone(),
            revocations: self.revocations.entries().clone(),
            revoked: self.revocations.list().clone(),
            rules: self.rules.clone(),
            registrations: self.registrations.clone(),
            problems: problems.clone(),
            held,
            at: SystemTime::now(),
        }
    }

    /// The rules are others now.
    fn rule(&mut self) {
        let objects = self.rules.values().filter_map(|rule| rule.object.as_ref());
        let intents = objects.flat_map(|object| object.intents.clone());
        self.world.rule(intents, &mut self.change);
    }

    /// What the world has under an id. One that several sources claim belongs to the API, else to the first file: the world
    /// must not depend on who spoke last. Nobody is sent to who would be refused there.
    fn decide(&mut self, id: &str) {
        let registered = self.registrations.get(id).map(|registration| &registration.stored.instance);
        let winner = registered.or_else(|| self.files.values().find_map(|file| file.get(id))).cloned();
        match winner.filter(|instance| !self.is_revoked(instance)) {
            Some(instance) => self.world.put(instance, &mut self.change),
            None => self.world.take(id, &mut self.change),
        }
    }

    fn is_revoked(&self, instance: &Instance) -> bool {
        let revoked = self.revocations.list();
        !revoked.is_empty()
            && instance.identity(&self.settings.trust_domain).is_ok_and(|id| revoked.has_identity(&id))
    }

    /// Others are revoked now.
    pub(super) fn decide_all(&mut self) {
        self.change.facts.insert(Fact::Trust);
        let files = self.files.values().flat_map(RedBlackTreeMapSync::keys);
        let ids: BTreeSet<String> = self.registrations.keys().chain(files).cloned().collect();
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

    /// Whether something changed.
    pub(super) fn registry(&mut self, source: String, event: Event) -> bool {
        let mut file = self.files.get(&source).cloned().unwrap_or_else(RedBlackTreeMapSync::new_sync);
        let mut changed = BTreeSet::new();
        match event {
            Event::Reset(all) => {
                let mut new = RedBlackTreeMapSync::new_sync();
                for instance in all {
                    if file.get(&instance.id) != Some(&instance) {
                        changed.insert(instance.id.clone());
                    }
                    new.insert_mut(instance.id.clone(), instance);
                }
                changed.extend(file.keys().filter(|id| !new.contains_key(*id)).cloned());
                file = new;
            }
            Event::Upsert(instance) => {
                if file.get(&instance.id) != Some(&instance) {
                    changed.insert(instance.id.clone());
                    file.insert_mut(instance.id.clone(), instance);
                }
            }
            Event::Remove(id) => {
                if file.remove_mut(&id) {
                    changed.insert(id);
                }
            }
        }
        let files = Arc::make_mut(&mut self.files);
        if file.is_empty() {
            files.remove(&source)
        } else {
            files.insert(source, file)
        };
        changed.iter().for_each(|id| self.decide(id));
        !changed.is_empty()
    }
}
