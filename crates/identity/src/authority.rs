//! The certificate authority: a root that only signs issuers, an issuer that signs workloads, and their rotation.
//!
//! Every field of an issued certificate is policy; of a CSR only the public key is taken, and only after the proof
//! that the caller holds its private half. Who may have which identity is the caller's business (`csr::service`).

pub mod files;
mod keys;
mod store;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use outrigger_model::identity::SpiffeId;
use parking_lot::Mutex;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use crate::bundle::TrustBundle;
use crate::cert::WorkloadCertificate;
use crate::clock::{rfc3339, unix_time};
use crate::credentials::CredentialStore;
use crate::error::IdentityError;
use crate::revoked::Revoked;
use crate::schedule::renew_at;
use crate::verify::{Role, verify_peer};

use keys::{SigningSet, authority_error, random_serial};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What an authority issues.
#[derive(Debug, Clone)]
pub struct AuthorityOptions {
    /// The trust domain of every certificate.
    pub trust_domain: String,
    /// Lifetime when nobody asks for another, and the longest that a certificate request gets. Default 24 h.
    pub default_ttl: Duration,
    /// Longest lifetime of a certificate whose key is made here, for an operator. Default 30 days.
    pub max_ttl: Duration,
    /// How far the start of validity lies in the past, against clock skew. Default 5 minutes.
    pub backdate: Duration,
    /// Lifetime of a root that we make. Default 10 years.
    pub root_lifetime: Duration,
    /// Lifetime of an issuer that we make; it is renewed at start in its last fifth. Default 5 years.
    pub issuer_lifetime: Duration,
}

impl AuthorityOptions {
    /// The defaults for a trust domain.
    pub fn new(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            default_ttl: DAY,
            max_ttl: 30 * DAY,
            backdate: Duration::from_secs(300),
            root_lifetime: 3650 * DAY,
            issuer_lifetime: 1825 * DAY,
        }
    }
}

/// A certificate over a CSR's key.
#[derive(Debug, Clone)]
pub struct IssuedChain {
    /// Leaf first, then intermediates, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The bundle to check others with.
    pub bundle: Arc<TrustBundle>,
}

/// A key and certificate made here, for a workload without an agent.
#[derive(Debug)]
pub struct IssuedIdentity {
    /// Key and chain.
    pub certificate: WorkloadCertificate,
    /// The bundle to check others with.
    pub bundle: Arc<TrustBundle>,
}

/// A certificate authority for one trust domain.
pub struct Authority {
    options: AuthorityOptions,
    // None keeps everything in memory.
    directory: Option<PathBuf>,
    current: ArcSwap<Current>,
    // One rotation at a time.
    rotating: Mutex<()>,
    changed: watch::Sender<u64>,
}

struct Current {
    keys: Arc<SigningSet>,
    bundle: Arc<TrustBundle>,
}

impl Authority {
    /// Opens the authority kept in a directory. Provided files are used as they are: `root.pem` (one or several
    /// roots), `issuer.pem` (the issuing certificate, then intermediates if any), `issuer.key`. Without them a root and
    /// an issuer are made at the first start, in a subdirectory per generation, all of mode 0600.
    ///
    /// # Errors
    /// When files are unreadable, incomplete, expired or do not fit together; names the file.
    pub fn open(directory: &Path, options: AuthorityOptions) -> Result<Self, IdentityError> {
        let keys = match store::load(directory, &options.trust_domain)? {
            Some(keys) if keys.needs_new_issuer(&options) => {
                let keys = keys.with_new_issuer(&options)?;
                store::save(directory, &keys)?;
                keys
            }
            Some(keys) => keys,
            None => {
                let keys = SigningSet::generate(&options)?;
                store::save(directory, &keys)?;
                keys
            }
        };
        Self::from_keys(options, Some(directory.to_owned()), keys)
    }

    /// An authority that forgets everything when dropped: for whoever needs certificates for a while, as tests of other crates do.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn in_memory(options: AuthorityOptions) -> Result<Self, IdentityError> {
        let keys = SigningSet::generate(&options)?;
        Self::from_keys(options, None, keys)
    }

    fn from_keys(
        options: AuthorityOptions,
        directory: Option<PathBuf>,
        keys: SigningSet,
    ) -> Result<Self, IdentityError> {
        let bundle = Arc::new(keys.bundle(&options.trust_domain)?);
        let current = ArcSwap::from_pointee(Current { keys: Arc::new(keys), bundle });
        let (changed, _) = watch::channel(0);
        let authority = Self { options, directory, current, rotating: Mutex::new(()), changed };
        authority.probe()?;
        Ok(authority)
    }

    /// Issues for ourselves and checks as a peer would: provided files that do not fit together fail here, at start.
    fn probe(&self) -> Result<(), IdentityError> {
        let id = self.control_id()?;
        let issued = self.issue_key_and_certificate(&id, Some(Duration::from_secs(60)))?;
        verify_peer(&issued.bundle, issued.certificate.chain(), Role::Server, unix_time(SystemTime::now()))
            .map_err(|problem| authority_error(format!("issuer and root do not fit together: {problem}")))?;
        Ok(())
    }

    /// The trust domain of every certificate issued here.
    pub fn trust_domain(&self) -> &str {
        &self.options.trust_domain
    }

    /// All roots that workloads must trust now.
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.current.load().bundle.clone()
    }

    /// When the root that signs now was made: from then on nothing was issued under an older one.
    pub fn root_made(&self) -> SystemTime {
        self.current.load().keys.root_made()
    }

    /// Wakes when roots, issuer or who is revoked have changed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Issues a certificate over the CSR's key for `identity`. `ttl` is a wish: capped by `default_ttl`, so that who holds
    /// a certificate cannot make itself one that outlives the mesh's setting, and by the issuer's end.
    ///
    /// # Errors
    /// `Request` when the CSR is unreadable or its signature does not prove possession of the key; `Authority` otherwise.
    pub fn issue_for_csr(
        &self,
        csr_pem: &str,
        identity: &SpiffeId,
        ttl: Option<Duration>,
    ) -> Result<IssuedChain, IdentityError> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|error| {
            IdentityError::Request(match error {
                rcgen::Error::InvalidCertificationRequestSignature => {
                    "its signature is wrong: the caller does not hold the private key".to_owned()
                }
                other => format!("it is not a usable PEM-encoded PKCS#10 request: {other}"),
            })
        })?;
        let current = self.current.load();
        let ttl = ttl.map(|ttl| ttl.min(self.options.default_ttl));
        let chain = self.sign(&current, identity, &[], &[], &csr.public_key, ttl)?;
        Ok(IssuedChain { chain, bundle: current.bundle.clone() })
    }

    /// Makes a key and issues a certificate for it.
    ///
    /// # Errors
    /// When the issuer has expired or the crypto library refuses.
    pub fn issue_key_and_certificate(
        &self,
        identity: &SpiffeId,
        ttl: Option<Duration>,
    ) -> Result<IssuedIdentity, IdentityError> {
        self.make(identity, &[], &[], ttl)
    }

    /// The control plane's own certificate: its SPIFFE id as the one URI, and the names by which it is reached.
    ///
    /// # Errors
    /// As [`Authority::issue_key_and_certificate`], or when a DNS name is not one.
    pub fn server_certificate(
        &self,
        dns_names: &[String],
        ips: &[IpAddr],
    ) -> Result<IssuedIdentity, IdentityError> {
        self.make(&self.control_id()?, dns_names, ips, None)
    }

    fn control_id(&self) -> Result<SpiffeId, IdentityError> {
        crate::control_plane_id(&self.options.trust_domain)
            .map_err(|error| authority_error(error.to_string()))
    }

    fn make(
        &self,
        identity: &SpiffeId,
        dns_names: &[String],
        ips: &[IpAddr],
        ttl: Option<Duration>,
    ) -> Result<IssuedIdentity, IdentityError> {
        let key = KeyPair::generate().map_err(authority_error)?;
        let current = self.current.load();
        let chain = self.sign(&current, identity, dns_names, ips, &key, ttl)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let certificate = WorkloadCertificate::new(key, chain, SystemTime::now())?;
        Ok(IssuedIdentity { certificate, bundle: current.bundle.clone() })
    }

    fn sign(
        &self,
        current: &Current,
        identity: &SpiffeId,
        dns_names: &[String],
        ips: &[IpAddr],
        key: &impl PublicKeyData,
        ttl: Option<Duration>,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        if identity.trust_domain() != self.options.trust_domain {
            return Err(authority_error(format!(
                "{identity} is not of trust domain \"{}\", for which this authority speaks",
                self.options.trust_domain
            )));
        }
        let now = SystemTime::now();
        let issuer_end = current.keys.issuer_not_after();
        if issuer_end <= now {
            return Err(authority_error(format!(
                "the issuing certificate expired at {}",
                rfc3339(issuer_end)
            )));
        }
        let ttl =
            ttl.unwrap_or(self.options.default_ttl).min(self.options.max_ttl).max(Duration::from_secs(1));
        let mut params = CertificateParams::default();
        params.not_before = (now - self.options.backdate).into();
        params.not_after = (now + ttl).min(issuer_end).into();
        params.serial_number = Some(random_serial()?);
        // The subject stays empty, so rcgen marks the SAN critical (RFC 5280, 4.2.1.6), as Istio's certificates have it.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names.push(SanType::URI(identity.as_str().try_into().map_err(authority_error)?));
        for name in dns_names {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into().map_err(authority_error)?));
        }
        params.subject_alt_names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, current.keys.issuer()).map_err(authority_error)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend_from_slice(current.keys.intermediates());
        Ok(chain)
    }

    /// Makes a new root and issuer and issues from them at once; the old roots stay in the bundle. The new root is also
    /// signed by the old one and that certificate goes along in every chain, so a peer that knows only the old root
    /// still verifies: no step has to wait for the whole mesh. Follow with [`Authority::forget_old_roots`] when the
    /// longest certificate has been replaced.
    ///
    /// # Errors
    /// When the root's key is not ours (provided files), or files cannot be written; nothing has changed then.
    pub fn rotate_root(&self) -> Result<(), IdentityError> {
        self.change(|keys| keys.rotated(&self.options))
    }

    /// Ends a rotation: certificates of the old roots are no longer trusted once the bundle has reached everybody.
    ///
    /// # Errors
    /// When files cannot be written; nothing has changed then.
    pub fn forget_old_roots(&self) -> Result<(), IdentityError> {
        self.change(SigningSet::without_old_roots)
    }

    fn change(
        &self,
        make: impl FnOnce(&SigningSet) -> Result<SigningSet, IdentityError>,
    ) -> Result<(), IdentityError> {
        let _rotating = self.rotating.lock();
        let old = self.current.load_full();
        let keys = make(&old.keys)?;
        let bundle = keys.bundle(&self.options.trust_domain)?.with_revoked(old.bundle.revoked().clone());
        if let Some(directory) = &self.directory {
            store::save(directory, &keys)?;
        }
        self.current.store(Arc::new(Current { keys: Arc::new(keys), bundle: Arc::new(bundle) }));
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Whom nobody is to trust from now on. Kept by the caller, not in the authority's files.
    pub fn revoke(&self, revoked: Arc<Revoked>) {
        let _rotating = self.rotating.lock();
        let old = self.current.load_full();
        if *old.bundle.revoked() == revoked {
            return;
        }
        let bundle = Arc::new(TrustBundle::clone(&old.bundle).with_revoked(revoked));
        self.current.store(Arc::new(Current { keys: old.keys.clone(), bundle }));
        self.changed.send_modify(|count| *count += 1);
    }
}

/// Keeps the control plane's own certificate and bundle in `store`: now, before each certificate ends, and when the
/// authority's keys rotate. Runs for ever; await `store.ready()` before serving.
pub async fn keep_server_certificate(
    authority: Arc<Authority>,
    store: CredentialStore,
    dns_names: Vec<String>,
    ips: Vec<IpAddr>,
) {
    let mut changed = authority.subscribe();
    loop {
        changed.mark_unchanged();
        let now = SystemTime::now();
        let due = match authority.server_certificate(&dns_names, &ips) {
            Ok(issued) => {
                let due = renew_at(now, issued.certificate.not_after(), fastrand::f64());
                store.replace(Some(Arc::new(issued.certificate)), issued.bundle);
                due
            }
            Err(error) => {
                tracing::error!(%error, "the control plane's own certificate could not be issued; trying again in 60 s");
                now + Duration::from_secs(60)
            }
        };
        // In pieces, so that a jump of the clock is noticed.
        while let Ok(left) = due.duration_since(SystemTime::now()) {
            tokio::select! {
                () = tokio::time::sleep(left.min(Duration::from_secs(60))) => {}
                // `authority` is ours, so its sender lives: this ends only by a change.
                _ = changed.changed() => break,
            }
        }
    }
}
