//! The open connections of a worker: when authorization, mTLS mode or trust changes, exactly those that are now forbidden
//! are closed, with flag and reason.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::SystemTime;

use outrigger_identity::{TrustBundle, verify};
use rustls::pki_types::{CertificateDer, UnixTime};
use slab::Slab;

use super::early::Speakers;
use super::{ConnInfo, authorize, terminate};
use crate::alarm::Place;
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::runtime::snapshot::Snapshot;
use crate::worker::Worker;

/// Addresses remembered as having a sidecar; beyond it the memory starts over.
const MAX_SIDECARS: usize = 4096;

/// The open connections of one worker.
#[derive(Default)]
pub struct Connections {
    open: Rc<RefCell<Slab<Rc<Entry>>>>,
    sidecars: RefCell<HashSet<IpAddr>>,
    chains: RefCell<Chains>,
    /// Where servers speak first.
    pub(super) speakers: Speakers,
}

/// Certificate chains of peers with open connections: those of one peer share theirs.
#[derive(Default)]
struct Chains {
    all: HashSet<Chain>,
    /// Chains that nobody holds any more are looked for at this many.
    sweep_at: usize,
}

/// A certificate chain, leaf first.
pub type Chain = Rc<[CertificateDer<'static>]>;

struct Entry {
    info: Rc<ConnInfo>,
    /// When the peer was verified: its certificate may expire since, which ends no connection.
    verified: SystemTime,
    place: Place,
}

/// A connection's place in the registry.
pub struct Open {
    all: Rc<RefCell<Slab<Rc<Entry>>>>,
    key: usize,
    entry: Rc<Entry>,
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

    /// Judges every connection again.
    fn judge(&self, snapshot: &Snapshot, trust: Option<&TrustBundle>) {
        for (_, entry) in self.open.borrow().iter() {
            if let Err(failure) = verdict(entry, snapshot, trust) {
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

fn verdict(entry: &Entry, snapshot: &Snapshot, trust: Option<&TrustBundle>) -> Result<(), Failure> {
    let info = &*entry.info;
    if let Some(failure) = trust.and_then(|bundle| revoked(info, bundle)) {
        return Err(failure);
    }
    if let Some(bundle) = trust.filter(|_| info.mtls) {
        let now = entry.verified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(now);
        verify::verify_peer(bundle, &info.certificates, verify::Role::Client, now).map_err(|problem| {
            let detail = format!("trust has changed: {problem}");
            Failure::downstream(Stage::Terminate, FailureKind::DownstreamTls, detail)
        })?;
    }
    // A listener that is gone serves what it has until the connection ends.
    let Some(listener) = snapshot.listener_named(info.listener.name()) else { return Ok(()) };
    if Arc::ptr_eq(listener, &info.listener) {
        return Ok(());
    }
    match info.chosen(listener) {
        None if !info.is_tls => Err(terminate::plain_text(info)),
        None => {
            let detail = format!("listener {} has no filter chain for it any more", listener.name());
            Err(Failure::local(Stage::Authorize, FailureKind::NoChain, detail))
        }
        Some(chain) if chain.tls.is_some() != info.mtls => {
            let detail = format!("the mTLS mode of {} has changed", listener.name());
            Err(Failure::local(Stage::Terminate, FailureKind::PlainText, detail))
        }
        Some(chain) => {
            let again = ConnInfo { chain: chain.clone(), ..info.clone() };
            authorize::connection(&again)
        }
    }
}

/// Why a tunnel ends, if whom it reached is trusted no longer.
pub fn revoked(info: &ConnInfo, bundle: &TrustBundle) -> Option<Failure> {
    let identity = info.reached.get().filter(|identity| bundle.revoked().has_identity(identity))?;
    let detail = format!("{identity} is revoked");
    Some(Failure::upstream(Stage::Forward, FailureKind::TlsFailed, Retry::Never, detail))
}

/// Judges the open connections whenever configuration or trust changes; a task of each worker, for its life.
pub async fn watch(worker: Rc<Worker>) {
    let mut swapped = worker.shared.swapped.subscribe();
    let mut credentials = worker.shared.credentials.subscribe();
    let mut known = worker.shared.credentials.load().bundle.clone();
    loop {
        // Neither sender ends before the worker does.
        tokio::select! {
            changed = swapped.changed() => if changed.is_err() { return },
            changed = credentials.changed() => if changed.is_err() { return },
        }
        let bundle = worker.shared.credentials.load().bundle.clone();
        let trust = (*bundle != *known).then_some(&*bundle);
        worker.connections.judge(&worker.snapshot(), trust);
        known = bundle;
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
