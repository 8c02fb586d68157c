//! Registrations over the management API: whose they are, and whether their addresses are.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use outrigger_model::identity::SpiffeId;

use super::Draft;
use crate::instance::{Instance, State};
use crate::keeper::{Refused, Registration};
use crate::registry::api::{Caller, MAX_PER_IDENTITY};
use crate::registry::{Source, claim};
use crate::store::Mutation;
use crate::store::records::StoredInstance;

/// Processes of one instance that are remembered; the one that was replaced first is forgotten.
const MOST_INCARNATIONS: usize = 16;

impl Draft {
    /// Also yields the instance as it was registered.
    pub(in crate::keeper) fn register(
        &mut self,
        instance: Instance,
        caller: &Caller,
    ) -> Result<(Vec<Mutation>, Arc<Instance>), Refused> {
        instance.validate().map_err(Refused::Invalid)?;
        let instance = Arc::new(instance.normalise());
        caller.may_register(&instance).map_err(Refused::Forbidden)?;
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
        let instance = self.keep_out(instance, caller);
        if let Some(known) =
            known.filter(|known| known.instance == instance && known.incarnations == incarnations)
        {
            return Ok((Vec::new(), known.instance.clone()));
        }
        let by = self.claim(&instance, caller)?;
        let stored = StoredInstance { instance: instance.clone(), by, at: Timestamp::now(), incarnations };
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
            let owned = self.claims.owned().map(|(_, (_, instance))| &**instance);
            owned.filter(|instance| self.is_revoked(instance))
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
        let known = self.registrations.get(&instance.id);
        if known.is_some_and(|known| is_kept_out(known.stored.instance.state, caller)) {
            self.said.lock().insert(instance.id.clone(), instance.state);
            Arc::make_mut(&mut instance).state = State::Maintenance;
        }
        instance
    }

    fn put(&mut self, stored: StoredInstance) -> Vec<Mutation> {
        self.enter(stored.clone());
        vec![Mutation::PutInstance(Box::new(stored))]
    }

    pub(super) fn enter(&mut self, stored: StoredInstance) {
        let id = stored.instance.id.clone();
        self.leave(&id);
        if let Some(by) = &stored.by {
            let own = self.of_identity.get(by).copied().unwrap_or(0);
            self.of_identity.insert_mut(by.clone(), own + 1);
        }
        self.claims.put(&Source::api(), &id, stored.instance.clone());
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
        self.claims.take(&Source::api(), id);
        self.registrations.remove_mut(id)
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

    pub(in crate::keeper) fn set_state(
        &mut self,
        id: &str,
        state: State,
        caller: &Caller,
    ) -> Result<Vec<Mutation>, Refused> {
        let mut stored = self.touchable(id, caller)?.stored.clone();
        let before = stored.instance.state;
        if is_kept_out(before, caller) {
            self.said.lock().insert(id.to_owned(), state);
            return Ok(Vec::new());
        }
        if before == state {
            return Ok(Vec::new());
        }
        let mut state = state;
        if matches!(caller, Caller::Operator(_)) && stored.by.is_some() {
            match (before, state) {
                (said, State::Maintenance) => drop(self.said.lock().insert(id.to_owned(), said)),
                // It is back, and what it has said of itself meanwhile holds: its checks may fail.
                (State::Maintenance, State::Running) => {
                    state = self.said.lock().get(id).copied().unwrap_or(state)
                }
                _ => {}
            }
        }
        Arc::make_mut(&mut stored.instance).state = state;
        Ok(self.put(stored))
    }

    pub(in crate::keeper) fn deregister(
        &mut self,
        id: &str,
        caller: &Caller,
    ) -> Result<Vec<Mutation>, Refused> {
        let mut stored = self.touchable(id, caller)?.stored.clone();
        if let Caller::Workload { .. } = caller {
            // What an operator took out, or answers for, is the operator's to remove: the workload may come back to it.
            if stored.instance.state == State::Maintenance {
                return Ok(self.vacate(stored));
            }
            if stored.by.is_none() {
                Arc::make_mut(&mut stored.instance).state = State::Stopped;
                stored.incarnations.clear();
                return Ok(self.put(stored));
            }
        }
        Ok(self.remove_registration(id))
    }

    /// Nobody has it, and whoever comes may.
    fn vacate(&mut self, mut stored: StoredInstance) -> Vec<Mutation> {
        if stored.incarnations.is_empty() {
            return Vec::new();
        }
        stored.incarnations.clear();
        self.put(stored)
    }

    /// Its lease has ended. What an operator took out stays so, wherever its sidecar is.
    pub(in crate::keeper) fn expire(&mut self, id: &str) -> Vec<Mutation> {
        match self.registrations.get(id).map(|known| &known.stored) {
            Some(stored) if stored.instance.state == State::Maintenance => self.vacate(stored.clone()),
            _ => self.remove_registration(id),
        }
    }

    pub(in crate::keeper) fn remove_registration(&mut self, id: &str) -> Vec<Mutation> {
        if !self.leave(id) {
            return Vec::new();
        }
        self.said.lock().remove(id);
        self.decide(id);
        vec![Mutation::DeleteInstance(id.to_owned())]
    }
}

/// The processes of an instance once this caller has registered it. The newest has it, and of those that it has replaced none
/// takes it back: an old one that has not ended yet, or does not know that it should have.
fn succession(known: Option<&StoredInstance>, id: &str, caller: &Caller) -> Result<Vec<String>, Refused> {
    let mut all = known.map(|known| known.incarnations.clone()).unwrap_or_default();
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

fn taken(id: &str) -> Refused {
    Refused::Conflict(format!("the id \"{id}\" is another workload's: register under an id of your own"))
}

/// Whether an operator took it out, and it is not the workload's to come back: only an operator, or its end, ends that.
fn is_kept_out(state: State, caller: &Caller) -> bool {
    matches!(caller, Caller::Workload { .. }) && state == State::Maintenance
}
