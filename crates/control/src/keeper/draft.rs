//! The keeper's state, and each command as a function on it that says what to store. Copy on write: a draft that is dropped
//! has changed nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use outrigger_model::identity::SpiffeId;
use outrigger_rules::{Finding, Object, ParseOptions, analyze, parse_with};
use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

use super::revocations::Revocations;
use super::rules::{self, Action, Applied, AppliedObject, Rule, catalog};
use super::{Published, Refused, Registration, Registrations, Removed};
use crate::compile::cache::Compiled;
use crate::instance::{Instance, State};
use crate::registry::Event;
use crate::registry::api::{Caller, Held, MAX_PER_IDENTITY};
use crate::registry::claim;
use crate::registry::file::Problem;
use crate::store::records::{HistoryAction, HistoryEntry, StoredInstance, StoredRule, rule_key};
use crate::store::{Contents, Mutation};
use crate::world::{Change, Fact, MeshSettings, World};

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
        let mut rules = BTreeMap::new();
        for stored in contents.rules {
            rules.insert(stored.key.clone(), Arc::new(reload(stored, &settings)));
        }
        let mut draft = Self {
            world: World::empty(settings.clone()),
            change: Change::default(),
            generation: contents.generation,
            reserved: contents.generation,
            settings,
            roots_pem,
            rules: Arc::new(rules),
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

    pub(super) fn apply(
        &mut self,
        objects: Vec<Object>,
        namespace: &str,
        author: &str,
        dry_run: bool,
    ) -> Result<(Vec<Mutation>, Applied), Refused> {
        let findings = self.judge(&objects)?;
        let mut mutations = Vec::new();
        let mut applied = Vec::new();
        for object in objects {
            let key = rule_key(&object);
            let (kind, ns, name) = (object.kind.to_string(), object.namespace.clone(), object.name.clone());
            let known = self.rules.get(&key);
            let same = known.is_some_and(|rule| rule.object.is_some() && rule.stored.json == object.json);
            let action = match (same, known) {
                (true, _) => Action::Unchanged,
                (false, Some(_)) => Action::Updated,
                (false, None) => Action::Created,
            };
            let last = self.versions.get(&key).copied().unwrap_or(0);
            let version = if same { known.map_or(last, |rule| rule.stored.version) } else { last + 1 };
            applied.push(AppliedObject { kind, namespace: ns, name, version, action });
            if same || dry_run {
                continue;
            }
            let stored = StoredRule {
                key: key.clone(),
                version,
                generation: self.generation,
                author: author.to_owned(),
                at: Timestamp::now(),
                file: object.origin.file.clone(),
                namespace: namespace.to_owned(),
                source: object.source.clone(),
                json: object.json.clone(),
            };
            mutations.push(Mutation::PutRule(Box::new(stored.clone())));
            Arc::make_mut(&mut self.versions).insert(key.clone(), version);
            Arc::make_mut(&mut self.rules)
                .insert(key, Arc::new(Rule { stored, object: Some(object), problem: None }));
        }
        if !mutations.is_empty() {
            self.rule();
        }
        Ok((mutations, Applied { generation: 0, dry_run, objects: applied, findings }))
    }

    /// What the analyzer says of these objects together with all others. What it said before, of others, is not their fault.
    fn judge(&self, objects: &[Object]) -> Result<Vec<Finding>, Refused> {
        let keys: BTreeSet<String> = objects.iter().map(rule_key).collect();
        let findings = self.consequences(&keys, objects);
        if findings.iter().any(Finding::is_error) {
            return Err(Refused::Findings(findings));
        }
        Ok(findings)
    }

    /// What the analyzer finds when the rules of these keys make way for these objects, and did not find before.
    fn consequences(&self, gone: &BTreeSet<String>, new: &[Object]) -> Vec<Finding> {
        let present: Vec<Object> = self.rules.values().filter_map(|rule| rule.object.clone()).collect();
        let mut merged: Vec<Object> =
            present.iter().filter(|object| !gone.contains(&rule_key(object))).cloned().collect();
        merged.extend(new.iter().cloned());
        let catalog = catalog(&self.world);
        let before = analyze(&present, Some(&catalog));
        let ids: BTreeSet<String> = new.iter().map(Object::id).collect();
        let mut findings = analyze(&merged, Some(&catalog));
        findings.retain(|finding| {
            let own = finding.object.as_ref().is_some_and(|object| ids.contains(object));
            own || !before.iter().any(|old| rules::same_finding(old, finding))
        });
        findings
    }

    pub(super) fn delete(
        &mut self,
        key: &str,
        author: &str,
        force: bool,
        dry_run: bool,
    ) -> Result<(Vec<Mutation>, Removed), Refused> {
        if !self.rules.contains_key(key) {
            return Err(Refused::Unknown(format!(
                "there is no rule {key}; `outrigger get` lists those that exist"
            )));
        }
        let findings = self.consequences(&BTreeSet::from([key.to_owned()]), &[]);
        if !force && findings.iter().any(Finding::is_error) {
            return Err(Refused::Findings(findings));
        }
        let version = self.versions.get(key).copied().unwrap_or(0) + 1;
        let removed = Removed { version, generation: 0, findings };
        if dry_run {
            return Ok((Vec::new(), removed));
        }
        Arc::make_mut(&mut self.rules).remove(key);
        self.rule();
        Arc::make_mut(&mut self.versions).insert(key.to_owned(), version);
        let entry = HistoryEntry {
            version,
            action: HistoryAction::Deleted,
            generation: self.generation,
            author: author.to_owned(),
            at: Timestamp::now(),
            source: String::new(),
        };
        let mutation = Mutation::DeleteRule { key: key.to_owned(), entry: Box::new(entry) };
        Ok((vec![mutation], removed))
    }

    /// Also yields the instance as it was registered.
    pub(super) fn register(
        &mut self,
        instance: Instance,
        caller: &Caller,
    ) -> Result<(Vec<Mutation>, Arc<Instance>), Refused> {
        instance.validate().map_err(Refused::Invalid)?;
        let instance = Arc::new(instance.normalise());
        caller.may_register(&instance).map_err(Refused::Forbidden)?;
        if let Some((file, _)) = self.files.iter().find(|(_, instances)| instances.contains_key(&instance.id))
        {
            return Err(Refused::Conflict(format!(
                "instance \"{}\" is registered by the file {file}",
                instance.id
            )));
        }
        if let Some(known) = self.registrations.get(&instance.id) {
            caller.may_touch(&known.stored.instance).map_err(Refused::Conflict)?;
            if known.stored.instance == instance {
                return Ok((Vec::new(), instance));
            }
        }
        let by = self.claim(&instance, caller)?;
        let instance = self.keep_out(instance, caller);
        let stored = StoredInstance { instance: instance.clone(), by, at: Timestamp::now() };
        Ok((self.put(stored), instance))
    }

    /// Whether its addresses may be the instance's. Yields who answers for it: nobody but an operator may for some.
    fn claim(&self, instance: &Instance, caller: &Caller) -> Result<Option<SpiffeId>, Refused> {
        let by = match caller {
            Caller::Operator(_) => None,
            Caller::Workload { identity, reach, .. } => {
                let known = self.registrations.get(&instance.id).map(|known| &known.stored);
                let vouched = known.filter(|known| known.by.is_none()).map(|known| &*known.instance);
                let rests = reach.admits(instance, vouched).map_err(Refused::Forbidden)?;
                let by = (!rests).then(|| identity.clone());
                if by.is_some() && known.is_none_or(|known| known.by != by) {
                    self.has_room(identity)?;
                }
                by
            }
        };
        match claim::held(instance, self.at_addresses_of(instance)) {
            None => Ok(by),
            Some(held) => Err(Refused::Conflict(format!("instance \"{}\": {held}", instance.id))),
        }
    }

    /// Whoever has an address of this instance, in whichever form it is written. Who is revoked is not in the world, and keeps
    /// its addresses: it may be reinstated.
    fn at_addresses_of<'d>(&'d self, instance: &'d Instance) -> impl Iterator<Item = &'d Instance> {
        let forms = instance.addresses.iter().flat_map(|address| {
            let mapped = match address.to_canonical() {
                IpAddr::V4(v4) => Some(IpAddr::V6(v4.to_ipv6_mapped())),
                IpAddr::V6(_) => None,
            };
            mapped.into_iter().chain([address.to_canonical()])
        });
        let there = forms.flat_map(|address| self.world.instances_at(address)).map(AsRef::as_ref);
        let revoked = (!self.revocations.list().is_empty()).then(|| {
            let registered = self.registrations.values().map(|known| &*known.stored.instance);
            let of_files = self.files.values().flat_map(RedBlackTreeMapSync::values).map(AsRef::as_ref);
            registered.chain(of_files).filter(|instance| self.is_revoked(instance))
        });
        there.chain(revoked.into_iter().flatten())
    }

    fn has_room(&self, identity: &SpiffeId) -> Result<(), Refused> {
        let own = self.of_identity.get(identity).copied().unwrap_or(0);
        if own < MAX_PER_IDENTITY {
            return Ok(());
        }
        Err(Refused::Forbidden(format!(
            "{identity} has registered {own} instances, as many as an identity may: deregister those that are gone, give \
             them ttlSeconds, or let an operator register more"
        )))
    }

    /// What an operator took out does not come back because its sidecar was restarted and registers again.
    fn keep_out(&self, mut instance: Arc<Instance>, caller: &Caller) -> Arc<Instance> {
        let known = self.registrations.get(&instance.id).map(|known| known.stored.instance.state);
        if matches!(caller, Caller::Workload { .. }) && known == Some(State::Maintenance) {
            Arc::make_mut(&mut instance).state = State::Maintenance;
        }
        instance
    }

    fn put(&mut self, stored: StoredInstance) -> Vec<Mutation> {
        self.enter(stored.clone());
        vec![Mutation::PutInstance(Box::new(stored))]
    }

    fn enter(&mut self, stored: StoredInstance) {
        let id = stored.instance.id.clone();
        self.leave(&id);
        if let Some(by) = &stored.by {
            let own = self.of_identity.get(by).copied().unwrap_or(0);
            self.of_identity.insert_mut(by.clone(), own + 1);
        }
        self.registrations.insert_mut(id.clone(), Registration { stored });
        self.decide(&id);
    }

    /// Whether it was registered; the world still has it.
    fn leave(&mut self, id: &str) -> bool {
        let Some(known) = self.registrations.get(id) else { return false };
        if let Some(by) = known.stored.by.clone() {
            match self.of_identity.get(&by).copied() {
                Some(own) if own > 1 => self.of_identity.insert_mut(by, own - 1),
                _ => drop(self.of_identity.remove_mut(&by)),
            }
        }
        self.registrations.remove_mut(id)
    }

    /// A registration that the caller may act on.
    pub(super) fn touchable(&self, id: &str, caller: &Caller) -> Result<&Registration, Refused> {
        let Some(registration) = self.registrations.get(id) else {
            let file = self.files.iter().find(|(_, instances)| instances.contains_key(id));
            return Err(match file {
                Some((file, _)) => Refused::Conflict(format!(
                    "instance \"{id}\" is registered by the file {file}; change it there"
                )),
                None => Refused::Unknown(format!("there is no instance \"{id}\"; register it (again)")),
            });
        };
        caller.may_touch(&registration.stored.instance).map_err(Refused::Forbidden)?;
        Ok(registration)
    }

    pub(super) fn set_state(
        &mut self,
        id: &str,
        state: State,
        caller: &Caller,
    ) -> Result<Vec<Mutation>, Refused> {
        let mut stored = self.touchable(id, caller)?.stored.clone();
        if stored.instance.state == state {
            return Ok(Vec::new());
        }
        Arc::make_mut(&mut stored.instance).state = state;
        Ok(self.put(stored))
    }

    pub(super) fn deregister(&mut self, id: &str, caller: &Caller) -> Result<Vec<Mutation>, Refused> {
        self.touchable(id, caller)?;
        Ok(self.remove_registration(id))
    }

    pub(super) fn remove_registration(&mut self, id: &str) -> Vec<Mutation> {
        if !self.leave(id) {
            return Vec::new();
        }
        self.decide(id);
        vec![Mutation::DeleteInstance(id.to_owned())]
    }
}

/// A stored rule is parsed again: what it means is the business of this release, not of the one that stored it.
fn reload(stored: StoredRule, settings: &MeshSettings) -> Rule {
    let options = rules::options(settings, &stored.namespace);
    let mut parsed = parse_again(&stored, &options);
    let object =
        parsed.objects.pop().filter(|object| parsed.objects.is_empty() && rule_key(object) == stored.key);
    let problem = object.is_none().then(|| {
        let errors: Vec<String> =
            parsed.findings.iter().filter(|f| f.is_error()).map(ToString::to_string).collect();
        let problem = format!("this release does not understand the stored rule: {}", errors.join("; "));
        tracing::error!(rule = %stored.key, "{problem}; it is kept, but not in force");
        problem
    });
    Rule { stored, object, problem }
}

fn parse_again(stored: &StoredRule, options: &ParseOptions) -> outrigger_rules::Parsed {
    parse_with(stored.file.as_deref().unwrap_or_default(), &stored.source, options)
}
