//! Whose an address is.
//!
//! Of those who say that they are at one, the first in this order has it: who has stopped is behind all others, who has a sidecar
//! and so proves who it is goes before who has none, then the management API and the registries go in their order, then ids.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::World;
use crate::instance::{Instance, State};
use crate::sorted::Sorted;

/// Who is at each address.
#[derive(Debug, Clone, Default)]
pub(super) struct Addresses {
    at: Sorted<IpAddr, Here>,
    /// Those with several.
    crowded: Sorted<IpAddr, ()>,
}

/// Who is at an address.
#[derive(Debug, Clone)]
enum Here {
    One(At),
    /// In order; at least two.
    Several(Arc<[At]>),
}

#[derive(Debug, Clone)]
struct At {
    /// Of who says so, in the table of registries.
    place: usize,
    instance: Arc<Instance>,
}

impl At {
    fn order(&self) -> (bool, bool, usize, &str) {
        let instance = &self.instance;
        (instance.state == State::Stopped, !instance.sidecar, self.place, &instance.id)
    }
}

impl Addresses {
    fn of(&self, address: IpAddr) -> &[At] {
        match self.at.get(&address) {
            None => &[],
            Some(Here::One(at)) => std::slice::from_ref(at),
            Some(Here::Several(all)) => all,
        }
    }

    /// Whether an instance is where it says, by the word of this place.
    pub(super) fn is_at(&self, instance: &Instance, place: usize) -> bool {
        let is = |at: &At| at.instance.id == instance.id && at.place == place;
        instance.addresses.iter().all(|address| self.of(*address).iter().any(is))
    }

    /// One is at an address; it was not before.
    pub(super) fn put(&mut self, address: IpAddr, instance: &Arc<Instance>, place: usize) {
        let new = At { place, instance: instance.clone() };
        let mut all = self.of(address).to_vec();
        all.insert(all.partition_point(|other| other.order() < new.order()), new);
        self.set(address, all);
    }

    /// One is there no longer.
    pub(super) fn take(&mut self, address: IpAddr, id: &str) {
        let left = self.of(address).iter().filter(|at| at.instance.id != id).cloned().collect();
        self.set(address, left);
    }

    fn set(&mut self, address: IpAddr, mut all: Vec<At>) {
        let _ = match all.len() > 1 {
            true => self.crowded.insert(address, ()),
            false => self.crowded.remove(&address),
        };
        let here = match (all.len() > 1, all.pop()) {
            (_, None) => return drop(self.at.remove(&address)),
            (false, Some(one)) => Here::One(one),
            (true, Some(last)) => {
                all.push(last);
                Here::Several(all.into())
            }
        };
        self.at.insert(address, here);
    }
}

/// An instance is said to be where another identity is.
#[derive(Debug, Clone, Copy)]
pub struct Contested<'w> {
    /// Where.
    pub address: SocketAddr,
    /// Who is said to be there in vain: calls to the address are not for it.
    pub claimant: &'w Instance,
    /// Who has the address.
    pub holder: &'w Instance,
}

impl World {
    /// The instances that have an address, in any network, in the order in which they have it.
    pub fn instances_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Instance>> {
        self.by_address.of(address).iter().map(|at| &at.instance)
    }

    /// The instances that serve an address of a network, the first of them before the others. Networks may use the same addresses.
    /// Where it has a sidecar they all are of its identity: with another one nobody could be spoken to there. Of a port that none of them
    /// has declared these are the ones whose sidecar takes it all the same.
    pub fn workloads_at(&self, network: &str, address: SocketAddr) -> impl Iterator<Item = &Instance> {
        let port = address.port();
        let is_there = move |i: &&Instance| i.network == network;
        let there = move || self.instances_at(address.ip()).map(AsRef::as_ref).filter(is_there);
        let is_declared = there().any(|i: &Instance| i.port(port).is_some());
        let serves = move |i: &&Instance| match is_declared {
            true => i.port(port).is_some(),
            false => i.takes_in(port),
        };
        let mut all = there().filter(serves);
        let first = all.next();
        let is_one = move |other: &&Instance| first.is_none_or(|first| !is_foreign(first, other));
        first.into_iter().chain(all.filter(is_one))
    }

    /// Who is said to be where another identity is.
    pub fn contested(&self) -> Vec<Contested<'_>> {
        let mut all = Vec::new();
        for address in self.by_address.crowded.keys() {
            let mut holders: HashMap<(&str, u16), &Instance> = HashMap::new();
            let there = self.instances_at(*address).filter(|instance| instance.state != State::Stopped);
            for (instance, port) in there.flat_map(|one| one.ports.iter().map(move |port| (&**one, port))) {
                let holder = *holders.entry((&instance.network, port.number)).or_insert(instance);
                if is_foreign(holder, instance) {
                    let address = SocketAddr::new(*address, port.number);
                    all.push(Contested { address, claimant: instance, holder });
                }
            }
        }
        all.sort_by_key(|one| (one.address, &one.claimant.id));
        all
    }
}

fn is_foreign(holder: &Instance, other: &Instance) -> bool {
    let same = holder.namespace == other.namespace && holder.service_account == other.service_account;
    holder.sidecar && !same
}
