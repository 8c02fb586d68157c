//! The open connections of a worker, and what they have in common. Which of them may stay, `conn` judges.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::Context;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use slab::Slab;

use super::speakers::Speakers;
use super::{Chain, ConnInfo};
use crate::alarm::Place;
use crate::failure::Failure;

/// Addresses remembered as having a sidecar; beyond it the memory starts over.
const MAX_SIDECARS: usize = 4096;

/// The open connections of one worker.
#[derive(Default)]
pub struct Connections {
    open: Rc<RefCell<Slab<Rc<Entry>>>>,
    sidecars: RefCell<HashSet<IpAddr>>,
    chains: RefCell<Chains>,
    /// Where servers speak first.
    pub speakers: Speakers,
}

/// Certificate chains of peers with open connections: those of one peer share theirs.
#[derive(Default)]
struct Chains {
    all: HashSet<Chain>,
    /// Chains that nobody holds any more are looked for at this many.
    sweep_at: usize,
}

/// A connection, as it is judged.
pub struct Entry {
    pub info: Rc<ConnInfo>,
    /// When the peer was verified: its certificate may expire since, which ends no connection.
    pub verified: SystemTime,
    place: Place,
}

/// A connection's place in the registry.
pub struct Open {
    all: Rc<RefCell<Slab<Rc<Entry>>>>,
    key: usize,
    pub entry: Rc<Entry>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.all.borrow_mut().try_remove(self.key);
    }
}

impl Open {
    /// The reason, if the connection is to be closed; the task is woken when there is one, and when the drain goes on.
    pub fn closed(&self, cx: &Context<'_>) -> Option<&Failure> {
        self.entry.place.register(cx);
        self.entry.info.closed_by.get()
    }
}

impl Connections {
    /// Adds a connection, with its place among those that are woken.
    pub fn register(&self, info: &Rc<ConnInfo>, place: Place) -> Open {
        let entry = Entry { info: info.clone(), verified: SystemTime::now(), place };
        let entry = Rc::new(entry);
        let key = self.open.borrow_mut().insert(entry.clone());
        Open { all: self.open.clone(), key, entry }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open.borrow().len()
    }

    /// A source that spoke the mesh's mTLS.
    pub fn note_sidecar(&self, source: IpAddr) {
        let mut sidecars = self.sidecars.borrow_mut();
        if sidecars.len() >= MAX_SIDECARS {
            sidecars.clear();
        }
        sidecars.insert(source);
    }

    /// The chain as it is held already, if another connection came with it.
    pub fn chain(&self, presented: Vec<CertificateDer<'static>>) -> Chain {
        self.chains.borrow_mut().intern(presented)
    }

    /// Whether a source is known to have a sidecar.
    pub fn is_sidecar(&self, source: IpAddr) -> bool {
        self.sidecars.borrow().contains(&source)
    }

    /// Closes those that are not permitted any longer.
    pub fn judge(&self, verdict: impl Fn(&Entry) -> Result<(), Failure>) {
        for (_, entry) in self.open.borrow().iter() {
            if let Err(failure) = verdict(entry) {
                // Set once; a second reason changes nothing.
                let _ = entry.info.closed_by.set(failure);
                entry.place.ring();
            }
        }
    }
}

impl Chains {
    fn intern(&mut self, presented: Vec<CertificateDer<'static>>) -> Chain {
        if let Some(known) = self.all.get(&*presented) {
            return known.clone();
        }
        if self.all.len() >= self.sweep_at {
            self.all.retain(|chain| Rc::strong_count(chain) > 1);
            self.sweep_at = (2 * self.all.len()).max(64);
        }
        let chain = Chain::from(presented);
        self.all.insert(chain.clone());
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_held_once_and_as_long_as_a_connection_needs_it() {
        let mut chains = Chains::default();
        let chain = |n: usize| vec![CertificateDer::from(n.to_be_bytes().to_vec())];
        let first = chains.intern(chain(0));
        assert!(Rc::ptr_eq(&first, &chains.intern(chain(0))));
        (1..1000).for_each(|n| drop(chains.intern(chain(n))));
        assert!(chains.all.len() <= 64, "{} are held", chains.all.len());
        assert!(Rc::ptr_eq(&first, &chains.intern(chain(0))));
    }
}
