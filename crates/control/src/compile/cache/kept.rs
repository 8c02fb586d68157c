//! What is kept of names, by what it depends on.
//!
//! A mesh has tens of thousands of these, so they refer to each other by number: a fact that is looked at by all costs each of them
//! four bytes, and a client that was the first to see something is noted once.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use outrigger_model::resource::ResourceKind;
use outrigger_xds::server::{Holders, Name};

use super::{Fresh, Variant};
use crate::compile::scope::Scope;
use crate::world::{Change, Fact, Wide, World};

/// A name; with an instance, as nobody but the clients beside it see the name: every sidecar has its own `*`, and what changes one is
/// no matter of the others.
pub(super) type VariantKey = (Name, Option<Arc<str>>);

/// The number of what is kept under a key.
type Place = u32;
/// The number of a fact.
type Number = u32;

/// Scopes that nobody needs any more stay until there are so many more than there were.
const SPARE_SCOPES: usize = 64;

/// Resources that are kept whoever holds them, the last that were compiled. Of all others that only one stream holds, and that has
/// them by then, the version is kept; they are compiled again for the next that asks, and then kept for both.
const REMEMBERED: usize = 4_096;

/// Everything that is kept.
pub(super) struct Shelf {
    names: HashMap<ResourceKind, HashMap<Arc<str>, Entry>>,
    all: Numbered<Kept>,
    numbers: HashMap<Arc<Fact>, Number>,
    facts: Numbered<Dependents>,
    by_owner: HashMap<Arc<str>, BTreeSet<Place>>,
    scopes: HashSet<Arc<Scope>>,
    /// When those that nobody needs are looked for.
    most_scopes: usize,
    /// Where resources are, the oldest first, and when that was.
    remembered: VecDeque<(Place, u64)>,
    pub(super) most_remembered: usize,
    /// Counts what is kept.
    now: u64,
}

impl Default for Shelf {
    fn default() -> Self {
        Self {
            names: HashMap::new(),
            all: Numbered::default(),
            numbers: HashMap::new(),
            facts: Numbered::default(),
            by_owner: HashMap::new(),
            scopes: HashSet::new(),
            most_scopes: SPARE_SCOPES,
            remembered: VecDeque::new(),
            most_remembered: REMEMBERED,
            now: 0,
        }
    }
}

/// Where what a name is to those who see the same is, and to those who see it as nobody else.
#[derive(Default)]
struct Entry {
    shared: Option<Place>,
    #[allow(clippy::box_collection, reason = "few names have any, and an entry is of every name")]
    own: Option<Box<HashMap<Arc<str>, Place>>>,
}

struct Kept {
    key: VariantKey,
    facts: Box<[Number]>,
    variants: Vec<Variant>,
    /// When the last of them was compiled.
    at: u64,
}

/// A fact, and in order what depends on it.
struct Dependents {
    fact: Arc<Fact>,
    places: Vec<Place>,
}

impl Shelf {
    /// What a client sees of a name, if that is known.
    pub(super) fn find(
        &self,
        scope: &Scope,
        world: &World,
        kind: ResourceKind,
        name: &str,
    ) -> Option<&Variant> {
        let entry = self.names.get(&kind)?.get(name)?;
        let own = scope.instance.as_deref().zip(entry.own.as_ref());
        let own = own.and_then(|(instance, own)| own.get(instance));
        let kept = own.into_iter().chain(&entry.shared).filter_map(|place| self.all.get(*place));
        kept.flat_map(|kept| &kept.variants).find(|variant| variant.facets.fit(scope, world))
    }

    /// Keeps what was compiled.
    pub(super) fn keep(
        &mut self,
        scope: &Scope,
        (kind, name): (ResourceKind, &Arc<str>),
        fresh: Fresh,
        holders: &Holders<'_>,
    ) {
        let Fresh { outcome, facts, facets } = fresh;
        let owner: Option<Arc<str>> = facets.owner().map(Arc::from);
        let place = self.place(kind, name, owner);
        let scope = self.shared(scope);
        let mut new = Vec::new();
        for fact in facts {
            let number = self.number(fact);
            if let Some(of) = self.facts.get_mut(number)
                && let Err(at) = of.places.binary_search(&place)
            {
                of.places.insert(at, place);
                new.push(number);
            }
        }
        let Some(kept) = self.all.get_mut(place) else { return };
        if !new.is_empty() {
            kept.facts = kept.facts.iter().copied().chain(new).collect();
        }
        let is_there = outcome.resource.is_some();
        match kept.variants.iter_mut().find(|known| known.facets == facets) {
            Some(known) => known.outcome = outcome,
            None => {
                // Most names are the same for all.
                kept.variants.reserve_exact(1);
                kept.variants.push(Variant { facets, scope, outcome });
            }
        }
        if is_there {
            self.now += 1;
            kept.at = self.now;
            self.remembered.push_back((place, self.now));
        }
        self.forget_resources(holders);
    }

    /// Of those that are no longer among the last the version is enough where one stream alone holds the name.
    fn forget_resources(&mut self, holders: &Holders<'_>) {
        while self.remembered.len() > self.most_remembered {
            let Some((place, at)) = self.remembered.pop_front() else { return };
            let kept = self.all.get_mut(place).filter(|kept| kept.at == at);
            // What is one client's own has no other holder, however many hold something of that name.
            let is_ones = |kept: &&mut Kept| kept.key.1.is_some() || !holders.are_several(&kept.key.0);
            if let Some(kept) = kept.filter(is_ones) {
                kept.variants.iter_mut().for_each(|variant| variant.outcome.resource = None);
            }
        }
    }

    fn place(&mut self, kind: ResourceKind, name: &Arc<str>, owner: Option<Arc<str>>) -> Place {
        let entry = self.names.entry(kind).or_default().entry(name.clone()).or_default();
        let known = match &owner {
            None => entry.shared,
            Some(owner) => entry.own.as_ref().and_then(|own| own.get(owner).copied()),
        };
        if let Some(known) = known {
            return known;
        }
        let key = ((kind, name.clone()), owner.clone());
        let place = self.all.put(Kept { key, facts: Box::default(), variants: Vec::new(), at: 0 });
        match owner {
            None => entry.shared = Some(place),
            Some(owner) => {
                entry.own.get_or_insert_default().insert(owner.clone(), place);
                self.by_owner.entry(owner).or_default().insert(place);
            }
        }
        place
    }

    fn number(&mut self, fact: Fact) -> Number {
        if let Some(known) = self.numbers.get(&fact) {
            return *known;
        }
        let fact = Arc::new(fact);
        let number = self.facts.put(Dependents { fact: fact.clone(), places: Vec::with_capacity(1) });
        self.numbers.insert(fact, number);
        number
    }

    /// The same scope for all that was compiled for it.
    fn shared(&mut self, scope: &Scope) -> Arc<Scope> {
        if let Some(known) = self.scopes.get(scope) {
            return known.clone();
        }
        if self.scopes.len() > self.most_scopes {
            self.scopes.retain(|known| Arc::strong_count(known) > 1);
            self.most_scopes = 2 * self.scopes.len() + SPARE_SCOPES;
        }
        let scope = Arc::new(scope.clone());
        self.scopes.insert(scope.clone());
        scope
    }

    /// Forgets what is kept at a place, and yields it.
    pub(super) fn forget(&mut self, place: Place) -> Option<(VariantKey, Vec<Variant>)> {
        let Kept { key, facts, variants, .. } = self.all.take(place)?;
        let ((kind, name), owner) = &key;
        if let Some(of) = self.names.get_mut(kind)
            && let Some(entry) = of.get_mut(name)
        {
            match owner {
                None => entry.shared = None,
                Some(owner) => {
                    let own = entry.own.take().map(|mut own| {
                        own.remove(owner);
                        own
                    });
                    entry.own = own.filter(|own| !own.is_empty());
                }
            }
            if entry.shared.is_none() && entry.own.is_none() {
                of.remove(name);
            }
        }
        if let Some(owner) = owner
            && let Some(places) = self.by_owner.get_mut(owner)
        {
            places.remove(&place);
            if places.is_empty() {
                self.by_owner.remove(owner);
            }
        }
        for number in facts {
            let Some(of) = self.facts.get_mut(number) else { continue };
            if let Ok(at) = of.places.binary_search(&place) {
                of.places.remove(at);
            }
            if of.places.is_empty()
                && let Some(of) = self.facts.take(number)
            {
                self.numbers.remove(&of.fact);
            }
        }
        Some((key, variants))
    }

    /// Where the places of a name are, for all who see it.
    pub(super) fn of_name(&self, kind: ResourceKind, name: &str) -> Vec<Place> {
        let entry = self.names.get(&kind).and_then(|of| of.get(name));
        let own = entry.into_iter().filter_map(|entry| entry.own.as_ref()).flat_map(|own| own.values());
        entry.and_then(|entry| entry.shared.as_ref()).into_iter().chain(own).copied().collect()
    }

    /// Where that is which only the clients of an instance see.
    pub(super) fn of_owner(&self, owner: &str) -> Vec<Place> {
        self.by_owner.get(owner).into_iter().flatten().copied().collect()
    }

    /// Where that is which a change may concern.
    pub(super) fn concerned(&self, change: &Change) -> BTreeSet<Place> {
        let mut found = BTreeSet::new();
        let mut add = |number: &Number| {
            found.extend(self.facts.get(*number).into_iter().flat_map(|of| &of.places).copied());
        };
        change.facts.iter().filter_map(|fact| self.numbers.get(fact)).for_each(&mut add);
        for wide in &change.wide {
            let covered = |fact: &Fact| match (wide, fact) {
                (Wide::Routes(wide), Fact::Routes(host))
                | (Wide::Destinations(wide), Fact::Destinations(host)) => {
                    wide == host || wide.covers(host.as_str())
                }
                (Wide::Mtls, Fact::Mtls(_)) | (Wide::Authorization, Fact::Authorization(_)) => true,
                _ => false,
            };
            self.numbers.iter().filter(|(fact, _)| covered(fact)).for_each(|(_, number)| add(number));
        }
        found
    }

    /// How many names are kept.
    pub(super) fn len(&self) -> usize {
        self.names.values().map(HashMap::len).sum()
    }

    /// For how many instances something is kept that only their clients see.
    #[cfg(test)]
    pub(super) fn owners(&self) -> usize {
        self.by_owner.len()
    }
}

/// Things with numbers; those that are free are given again.
struct Numbered<T> {
    all: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self { all: Vec::new(), free: Vec::new() }
    }
}

impl<T> Numbered<T> {
    fn put(&mut self, thing: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self.all[number as usize] = Some(thing);
            return number;
        }
        self.all.push(Some(thing));
        #[allow(clippy::cast_possible_truncation)] // there is no memory for four billion of them
        let number = (self.all.len() - 1) as u32;
        number
    }

    fn get(&self, number: u32) -> Option<&T> {
        self.all.get(number as usize)?.as_ref()
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.all.get_mut(number as usize)?.as_mut()
    }

    fn take(&mut self, number: u32) -> Option<T> {
        let taken = self.all.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(taken)
    }
}
