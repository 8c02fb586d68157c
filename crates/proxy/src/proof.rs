//! What a peer has proved of itself, kept to be judged again when trust changes: whoever was trusted may be revoked by then, by its
//! identity or by its certificate, or the root that vouched for it be one no longer.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::time::SystemTime;

use outrigger_identity::verify::{Role, verify_peer};
use outrigger_identity::{CredentialStore, TrustBundle};
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::failure::{Failure, FailureKind, Retry, Stage};

/// A certificate chain, leaf first.
pub type Chain = Rc<[CertificateDer<'static>]>;

/// Certificate chains of the peers of open connections: those of one peer share theirs.
#[derive(Default)]
pub struct Chains(RefCell<Known>);

#[derive(Default)]
struct Known {
    all: HashSet<Chain>,
    /// Chains that nobody holds any more are looked for at this many.
    sweep_at: usize,
}

impl Chains {
    /// The chain as it is held already, if another connection came with it.
    pub fn intern(&self, presented: Vec<CertificateDer<'static>>) -> Chain {
        let mut known = self.0.borrow_mut();
        if let Some(chain) = known.all.get(&*presented) {
            return chain.clone();
        }
        if known.all.len() >= known.sweep_at {
            known.all.retain(|chain| Rc::strong_count(chain) > 1);
            known.sweep_at = (2 * known.all.len()).max(64);
        }
        let chain = Chain::from(presented);
        known.all.insert(chain.clone());
        chain
    }
}

/// Whom a connection of ours reached, as it has proved.
pub struct Proof {
    certificates: Chain,
    /// When: a certificate may expire since, which ends no connection.
    at: SystemTime,
    /// Of the credentials by which it was verified at the earliest.
    generation: u64,
    /// The number of the trust by which it was judged last: all that goes on over a connection asks.
    judged: Cell<u64>,
}

impl Proof {
    /// A server has proved who it is; the handshake began when the credentials had this generation, and this number of trust.
    pub fn new(certificates: Chain, generation: u64, trust: u64) -> Rc<Self> {
        Rc::new(Self { certificates, at: SystemTime::now(), generation, judged: Cell::new(trust) })
    }

    /// Of the credentials of the handshake.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// By the trust of now, unless that has done so.
    ///
    /// # Errors
    /// It is trusted no longer.
    #[inline]
    pub fn stands(&self, credentials: &CredentialStore) -> Result<(), Failure> {
        let now = credentials.trust();
        if self.judged.get() == now { Ok(()) } else { self.look_again(credentials, now) }
    }

    #[cold]
    fn look_again(&self, credentials: &CredentialStore, now: u64) -> Result<(), Failure> {
        self.judge(&credentials.load().bundle)?;
        self.judged.set(now);
        Ok(())
    }

    /// By this trust. A signature is dear to verify: only for what did change.
    ///
    /// # Errors
    /// It is trusted no longer.
    pub fn judge(&self, bundle: &TrustBundle) -> Result<(), Failure> {
        let at = self.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let judged = verify_peer(bundle, &self.certificates, Role::Server, UnixTime::since_unix_epoch(at));
        judged.map(drop).map_err(|problem| {
            let detail = format!("trust has changed: {problem}");
            Failure::upstream(Stage::Forward, FailureKind::TlsFailed, Retry::Never, detail)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrigger_identity::Revoked;

    use super::*;

    /// The chain is one that nobody would trust who looked.
    #[test]
    fn a_renewal_of_our_own_certificate_verifies_nothing_again() {
        let store = CredentialStore::new(TrustBundle::empty());
        let chain = Chains::default().intern(vec![CertificateDer::from(vec![0])]);
        let proof = Proof::new(chain, store.generation(), store.trust());
        store.replace(None, store.load().bundle.clone());
        assert!(proof.generation() < store.generation());
        proof.stands(&store).unwrap();
        let revoked = Revoked::parse(["spiffe://mesh/ns/shop/sa/load"]).unwrap();
        store.replace_bundle(Arc::new(TrustBundle::empty().with_revoked(Arc::new(revoked))));
        assert!(proof.stands(&store).is_err());
    }

    #[test]
    fn a_chain_is_held_once_and_as_long_as_a_connection_needs_it() {
        let chains = Chains::default();
        let chain = |n: usize| vec![CertificateDer::from(n.to_be_bytes().to_vec())];
        let first = chains.intern(chain(0));
        assert!(Rc::ptr_eq(&first, &chains.intern(chain(0))));
        (1..1000).for_each(|n| drop(chains.intern(chain(n))));
        let held = chains.0.borrow().all.len();
        assert!(held <= 64, "{held} are held");
        assert!(Rc::ptr_eq(&first, &chains.intern(chain(0))));
    }
}
