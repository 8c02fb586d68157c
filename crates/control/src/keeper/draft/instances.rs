//! Registrations over the management API: whose they are, and whether their addresses are.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use outrigger_model::identity::SpiffeId;

use super::Draft;
use crate::instance::{Instance, State, Word};
use crate::keeper::{Refused, Registration};
use crate::registry::api::{Caller, MAX_PER_IDENTITY};
use crate::registry::{Source, claim};
use crate::store::Mutation;
use crate::store::records::{Away, Behind, StoredInstance};

/// Ports of a service that workloads may register.
const MAX_PORTS: usize = 64;
/// Processes of one instance that are remembered; the one that was replaced first is forgotten.
const MOST_INCARNATIONS: usize = 16;

impl Draft {
    pub(in crate::keeper) fn register(
        &mut self,
        instance: Instance,
        caller: &Caller,
    ) -> Result<Vec<Mutation>, Refused> {
        instance.validate().map_err(Refused::Invalid)?;
        let mut instance = instance.normalise();
        caller.may_register(&instance).map_err(Refused::Forbidden)?;
        self.has_few_ports(&instance, caller)?;
        instance.word = caller.word(&instance);
        caller.may_say(instance.state).map_err(Refused::Forbidden)?;
        let id = &instance.id;
        if let Some((source, owner)) = self.claims.owner(id) {
            // Whose it is, is not told.
            caller.may_touch(owner).map_err(|_| taken(id))?;
            if !source.is_api() {
                return Err(Refused::Conflict(format!("instance \"{id}\" is registered by {source}")));
            }
        }
        let known = self.registrations.get(id).map(|known| &known.stored);
        let incarnations = succession(known, id, caller)?;
        let (state, behind) = judge(known, instance.state, caller);
        instance.state = state;
        let as_before = |known: &StoredInstance| {
            *known.instance == instance && known.incarnations == incarnations && known.behind == behind
        };
        if known.is_some_and(as_before) {
            return Ok(Vec::new());
        }
        let by = self.claim(&instance, caller)?;
        let (word, instance, at) = (instance.word, Arc::new(instance), Timestamp::now());
        Ok(self.put(StoredInstance { instance, by, at, incarnations, behind, word: Some(word) }))
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
            let owned = self.claims.owned().map(|(_, (_, instance))| &**instance);
            owned.filter(|instance| self.is_revoked(instance))
        });
        there.chain(revoked.into_iter().flatten())
    }

    /// A port of a service is a listener of every proxy that has no interception.
    fn has_few_ports(&self, instance: &Instance, caller: &Caller) -> Result<(), Refused> {
        if matches!(caller, Caller::Operator(_)) {
            return Ok(());
        }
        let ports: BTreeSet<u16> = instance.ports.iter().map(|port| port.number).collect();
        for host in self.world.served_by(instance) {
            let service = self.world.service(&host);
            let known: BTreeSet<u16> =
                service.into_iter().flat_map(|service| service.registered.keys().copied()).collect();
            let own: BTreeSet<u16> = ports.union(&known).copied().collect();
            if own.len() > MAX_PORTS.max(known.len()) {
                return Err(Refused::Forbidden(format!(
                    "instance \"{}\": ports: {host} would have {} ports, a workload may register {MAX_PORTS}: let an operator \
                     register it",
                    instance.id,
                    own.len()
                )));
            }
        }
        Ok(())
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

    fn put(&mut self, stored: StoredInstance) -> Vec<Mutation> {
        self.enter(stored.clone());
        vec![Mutation::PutInstance(Box::new(stored))]
    }

    pub(super) fn enter(&mut self, mut stored: StoredInstance) {
        let id = stored.instance.id.clone();
        let word = stored.word();
        if stored.instance.word != word {
            Arc::make_mut(&mut stored.instance).word = word;
        }
        self.leave(&id);
        if let Some(by) = &stored.by {
            let own = self.of_identity.get(by).copied().unwrap_or(0);
            self.of_identity.insert(by.clone(), own + 1);
        }
        self.claims.put(&source_of(word), &id, stored.instance.clone());
        self.registrations.insert(id.clone(), Registration { stored });
        self.decide(&id);
    }

    /// Whether it was registered; the world still has it.
    fn leave(&mut self, id: &str) -> bool {
        let Some(known) = self.registrations.get(id) else { return false };
        if let Some(by) = known.stored.by.clone() {
            match self.of_identity.get(&by).copied() {
                Some(own) if own > 1 => drop(self.of_identity.insert(by, own - 1)),
                _ => drop(self.of_identity.remove(&by)),
            }
        }
        self.claims.take(&source_of(known.stored.word()), id);
        self.registrations.remove(id).is_some()
    }

    /// A registration that the caller may act on. To a workload what is another's is not there.
    pub(in crate::keeper) fn touchable(&self, id: &str, caller: &Caller) -> Result<&Registration, Refused> {
        let own = |instance: &Instance| caller.may_touch(instance).is_ok();
        let Some(registration) = self.registrations.get(id).filter(|known| own(&known.stored.instance))
        else {
            return Err(match self.claims.owner(id).filter(|(_, instance)| own(instance)) {
                Some((source, _)) => {
                    Refused::Conflict(format!("instance \"{id}\" is registered by {source}; change it there"))
                }
                None => Refused::Unknown(format!("there is no instance \"{id}\"; register it (again)")),
            });
        };
        match (registration.stored.incarnations.first(), caller.incarnation()) {
            (Some(newest), Some(own)) if newest != own => {
                Err(Refused::Replaced { id: id.to_owned(), by: newest.clone() })
            }
            _ => Ok(registration),
        }
    }

    /// Also yields the state that it is in now.
    pub(in crate::keeper) fn set_state(
        &mut self,
        id: &str,
        state: State,
        caller: &Caller,
    ) -> Result<(Vec<Mutation>, State), Refused> {
        let known = &self.touchable(id, caller)?.stored;
        caller.may_say(state).map_err(Refused::Forbidden)?;
        let Behind { said, away } = known.behind;
        let is_out = known.instance.state == State::Maintenance;
        let is_undone = is_out || away.is_some() && known.by.is_some();
        let (state, behind) = match (caller, state) {
            // It is back, and what is true of it holds: its checks may fail, it may have left.
            (Caller::Operator(_), State::Running) if is_undone => match away {
                Some(_) => (State::Stopped, known.behind),
                None => (said, Behind::default()),
            },
            _ => judge(Some(known), state, caller),
        };
        let stored = stated(known, state, behind);
        Ok((self.amend(stored), state))
    }

    pub(in crate::keeper) fn heartbeat(
        &mut self,
        id: &str,
        caller: &Caller,
    ) -> Result<Vec<Mutation>, Refused> {
        let known = &self.touchable(id, caller)?.stored;
        let Behind { said, away } = known.behind;
        let (state, behind) = match (away, known.instance.state) {
            (None, _) => return Ok(Vec::new()),
            (Some(Away::Left), _) => {
                return Err(Refused::Unknown(format!("instance \"{id}\" has left; register it (again)")));
            }
            (Some(Away::Silent), State::Maintenance) => (State::Maintenance, Behind { said, away: None }),
            (Some(Away::Silent), _) => (said, Behind::default()),
        };
        let stored = stated(known, state, behind);
        Ok(self.amend(stored))
    }

    pub(in crate::keeper) fn deregister(
        &mut self,
        id: &str,
        caller: &Caller,
    ) -> Result<Vec<Mutation>, Refused> {
        let known = &self.touchable(id, caller)?.stored;
        let is_out = known.instance.state == State::Maintenance;
        // What an operator took out, or answers for, is the operator's to remove: the workload may come back to it.
        if matches!(caller, Caller::Workload { .. }) && (is_out || known.by.is_none()) {
            let state = if is_out { State::Maintenance } else { State::Stopped };
            let behind = Behind { said: State::Stopped, away: Some(Away::Left) };
            let mut stored = stated(known, state, behind);
            stored.incarnations.clear();
            return Ok(self.amend(stored));
        }
        Ok(self.remove_registration(id))
    }

    /// Its lease has ended. What an operator took out stays so, wherever its sidecar is.
    pub(in crate::keeper) fn expire(&mut self, id: &str) -> Vec<Mutation> {
        match self.registrations.get(id).map(|known| &known.stored) {
            Some(known) if known.instance.state == State::Maintenance => {
                let behind = Behind { away: Some(Away::Silent), ..known.behind };
                let stored = stated(known, State::Maintenance, behind);
                self.amend(stored)
            }
            _ => self.remove_registration(id),
        }
    }

    /// Of a registration that is there.
    fn amend(&mut self, stored: StoredInstance) -> Vec<Mutation> {
        let known = self.registrations.get(&stored.instance.id);
        if known.is_some_and(|known| known.stored == stored) { Vec::new() } else { self.put(stored) }
    }

    pub(in crate::keeper) fn remove_registration(&mut self, id: &str) -> Vec<Mutation> {
        if !self.leave(id) {
            return Vec::new();
        }
        self.decide(id);
        vec![Mutation::DeleteInstance(id.to_owned())]
    }

    /// The registration of this id whose time runs.
    pub(in crate::keeper) fn leased(&self, id: &str) -> Option<&Arc<Instance>> {
        let stored = &self.registrations.get(id)?.stored;
        (!stored.is_kept()).then_some(&stored.instance)
    }

    /// All of them.
    pub(in crate::keeper) fn all_leased(&self) -> impl Iterator<Item = &Arc<Instance>> {
        let all = self.registrations.values().map(|registration| &registration.stored);
        all.filter(|stored| !stored.is_kept()).map(|stored| &stored.instance)
    }
}

/// The processes of an instance once this caller has registered it. The newest has it, and of those that it has replaced none
/// takes it back: an old one that has not ended yet, or does not know that it should have.
fn succession(known: Option<&StoredInstance>, id: &str, caller: &Caller) -> Result<Vec<String>, Refused> {
    let there = known.filter(|known| known.behind.away.is_none());
    let mut all = there.map(|known| known.incarnations.clone()).unwrap_or_default();
    let Some(own) = caller.incarnation() else { return Ok(all) };
    match all.iter().position(|known| known == own) {
        Some(0) => {}
        Some(_) => return Err(Refused::Replaced { id: id.to_owned(), by: all.swap_remove(0) }),
        None => {
            all.insert(0, own.clone());
            all.truncate(MOST_INCARNATIONS);
        }
    }
    Ok(all)
}

/// What a workload says of itself comes after what registries say: it may choose any id.
fn source_of(word: Word) -> Arc<Source> {
    match word {
        Word::Trusted => Source::api(),
        Word::Any | Word::Named | Word::Own => Source::workloads(),
    }
}

fn taken(id: &str) -> Refused {
    Refused::Conflict(format!("the id \"{id}\" is another workload's: register under an id of your own"))
}

/// The state that an instance is in once this caller has said one, and what is behind it. What an operator took out its workload
/// does not bring back, by a restart or its word: that is kept until an operator does.
fn judge(known: Option<&StoredInstance>, said: State, caller: &Caller) -> (State, Behind) {
    let is_out = known.is_some_and(|known| known.instance.state == State::Maintenance);
    match (caller, known) {
        (Caller::Workload { .. }, _) if is_out => (State::Maintenance, Behind { said, away: None }),
        (_, Some(known)) if said == State::Maintenance && (is_out || known.behind.away.is_some()) => {
            (State::Maintenance, known.behind)
        }
        (_, known) if said == State::Maintenance => {
            let said = known.map_or(State::Running, |known| known.instance.state);
            (State::Maintenance, Behind { said, away: None })
        }
        _ => (said, Behind::default()),
    }
}

fn stated(known: &StoredInstance, state: State, behind: Behind) -> StoredInstance {
    let mut stored = StoredInstance { behind, ..known.clone() };
    if stored.instance.state != state {
        Arc::make_mut(&mut stored.instance).state = state;
    }
    stored
}
