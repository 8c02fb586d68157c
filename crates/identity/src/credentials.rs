//! What this process can prove and whom it trusts, and the one place where that changes.
//!
//! Readers never wait: a load is one atomic read. A change is one swap, then a generation number, then the number of trust
//! where that has changed, then a wake-up, in this order, so whoever sees a new generation also sees its credentials, and whoever
//! sees a new number of trust the generation, too.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::bundle::TrustBundle;
use crate::cert::WorkloadCertificate;

/// A consistent pair of certificate and trust bundle.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Counts changes; configurations are cached by it. 0 until the first change.
    pub generation: u64,
    /// Our own certificate, once there is one.
    pub certificate: Option<Arc<WorkloadCertificate>>,
    /// Whom we trust.
    pub bundle: Arc<TrustBundle>,
}

impl Credentials {
    /// Credentials outside a store, of generation 0.
    pub fn new(certificate: Option<Arc<WorkloadCertificate>>, bundle: Arc<TrustBundle>) -> Self {
        Self { generation: 0, certificate, bundle }
    }

    /// The certificate, when it may be presented at this moment.
    pub fn valid_certificate(&self, now: SystemTime) -> Option<&Arc<WorkloadCertificate>> {
        self.certificate.as_ref().filter(|certificate| certificate.is_valid(now))
    }
}

/// The current credentials of this process; a clone is another handle to the same.
#[derive(Clone)]
pub struct CredentialStore {
    shared: Arc<CredentialCell>,
}

struct CredentialCell {
    current: ArcSwap<Credentials>,
    generation: AtomicU64,
    trust: AtomicU64,
    changed: watch::Sender<u64>,
    // Writers only: two at once must not take the same generation.
    writing: Mutex<()>,
}

impl CredentialStore {
    /// A store that trusts `bundle` and has no certificate yet.
    pub fn new(bundle: TrustBundle) -> Self {
        let credentials = Credentials::new(None, Arc::new(bundle));
        let (changed, _) = watch::channel(0);
        let shared = CredentialCell {
            current: ArcSwap::from_pointee(credentials),
            generation: AtomicU64::new(0),
            trust: AtomicU64::new(0),
            changed,
            writing: Mutex::new(()),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The current credentials. Lock-free.
    pub fn load(&self) -> Arc<Credentials> {
        self.shared.current.load_full()
    }

    /// The number of the current credentials: one atomic read, to see whether a cached configuration is still good.
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// Counts changes of whom we trust, which a renewal of our own certificate is not: who was judged since this number came needs not
    /// be judged again.
    pub fn trust(&self) -> u64 {
        self.shared.trust.load(Ordering::Acquire)
    }

    /// Replaces both and returns the new generation.
    pub fn replace(&self, certificate: Option<Arc<WorkloadCertificate>>, bundle: Arc<TrustBundle>) -> u64 {
        self.swap(|_| (certificate, bundle))
    }

    /// Replaces the bundle, keeping the certificate: a push of trust from the control plane.
    pub fn replace_bundle(&self, bundle: Arc<TrustBundle>) -> u64 {
        self.swap(|old| (old.certificate.clone(), bundle))
    }

    /// Replaces the certificate, keeping the bundle.
    pub fn replace_certificate(&self, certificate: Arc<WorkloadCertificate>) -> u64 {
        self.swap(|old| (Some(certificate), old.bundle.clone()))
    }

    /// Replaces both by what `make` says of the current ones; other writers wait meanwhile, readers do not.
    ///
    /// # Errors
    /// The closure's; nothing is changed then.
    pub fn update<E>(
        &self,
        make: impl FnOnce(&Credentials) -> Result<(Option<Arc<WorkloadCertificate>>, Arc<TrustBundle>), E>,
    ) -> Result<u64, E> {
        let _writing = self.shared.writing.lock();
        let old = self.load();
        let (certificate, bundle) = make(&old)?;
        let generation = old.generation + 1;
        let changes_trust = !Arc::ptr_eq(&bundle, &old.bundle) && *bundle != *old.bundle;
        self.shared.current.store(Arc::new(Credentials { generation, certificate, bundle }));
        self.shared.generation.store(generation, Ordering::Release);
        if changes_trust {
            self.shared.trust.fetch_add(1, Ordering::Release);
        }
        self.shared.changed.send_replace(generation);
        Ok(generation)
    }

    fn swap(
        &self,
        make: impl FnOnce(&Credentials) -> (Option<Arc<WorkloadCertificate>>, Arc<TrustBundle>),
    ) -> u64 {
        match self.update(|old| Ok::<_, Infallible>(make(old))) {
            Ok(generation) => generation,
            Err(never) => match never {},
        }
    }

    /// Wakes on every change; holds the latest generation.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Waits until there is a certificate, and returns the credentials that hold it.
    pub async fn ready(&self) -> Arc<Credentials> {
        let mut changed = self.subscribe();
        loop {
            let current = self.load();
            if current.certificate.is_some() {
                return current;
            }
            // The sender lives in `self`, so this cannot fail while we are called.
            if changed.changed().await.is_err() {
                return current;
            }
        }
    }
}

impl Default for CredentialStore {
    fn default() -> Self {
        Self::new(TrustBundle::empty())
    }
}
