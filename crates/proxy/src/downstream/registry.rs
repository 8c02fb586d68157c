//! The open connections of a worker, and what they have in common. Which of them may stay, `conn` judges.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::Context;
use std::time::SystemTime;

use slab::Slab;

use super::ConnInfo;
use super::speakers::Speakers;
use crate::alarm::Place;
use crate::failure::Failure;
use crate::proof::Chains;

/// Addresses remembered as having a sidecar; beyond it the memory starts over.
const MAX_SIDECARS: usize = 4096;

/// The open connections of one worker.
#[derive(Default)]
pub struct Connections {
    open: Rc<RefCell<Slab<Rc<Entry>>>>,
    sidecars: RefCell<HashSet<IpAddr>>,
    /// Of the peers of these connections.
    pub chains: Chains,
    /// Where servers speak first.
    pub speakers: Speakers,
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
