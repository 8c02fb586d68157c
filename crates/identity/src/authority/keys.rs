//! The keys and certificates that sign: making them, replacing them, and what they mean as a bundle.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;

use super::AuthorityOptions;
use crate::bundle::TrustBundle;
use crate::cert::validity_of;
use crate::error::IdentityError;
use crate::provider::{hex, provider};

/// Roots and issuers start this far in the past: hosts with slow clocks join on the first day too.
const BACKDATE: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn authority_error(error: impl ToString) -> IdentityError {
    IdentityError::Authority(error.to_string())
}

fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    provider().secure_random.fill(&mut bytes).map_err(|_| authority_error("the system has no randomness"))?;
    Ok(bytes)
}

/// 127 random bits: positive and unpredictable (RFC 5280, 4.1.2.2).
pub(super) fn random_serial() -> Result<SerialNumber, IdentityError> {
    let mut bytes = random::<16>()?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// A root whose private key we hold.
pub(super) struct Root {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: KeyPair,
}

/// Everything that an authority signs with. Immutable; rotation makes a new one.
pub(super) struct SigningSet {
    /// None when the files were provided: then only whoever provided them can rotate.
    pub(super) root: Option<Root>,
    /// All roots that peers must trust: ours first, then older or provided ones.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// The current root signed by the one before, while both are in use.
    pub(super) cross: Option<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
    /// The issuing certificate, then whatever leads from it to a root.
    issuer_chain: Vec<CertificateDer<'static>>,
    /// What goes along with every leaf.
    intermediates: Vec<CertificateDer<'static>>,
    issuer_not_after: SystemTime,
}

impl SigningSet {
    pub(super) fn new(
        root: Option<Root>,
        roots: Vec<CertificateDer<'static>>,
        cross: Option<CertificateDer<'static>>,
        issuer_chain: Vec<CertificateDer<'static>>,
        issuer_key: KeyPair,
    ) -> Result<Self, IdentityError> {
        let own = issuer_chain.first().ok_or_else(|| authority_error("there is no issuing certificate"))?;
        let (_, issuer_not_after) =
            validity_of(own).ok_or_else(|| authority_error("the issuing certificate is unreadable"))?;
        let issuer = Issuer::from_ca_cert_der(own, issuer_key).map_err(authority_error)?;
        // Roots do not travel: a peer trusts its own copy or none. (A root may itself be the issuer.)
        let intermediates =
            issuer_chain.iter().chain(cross.as_ref()).filter(|der| !roots.contains(der)).cloned().collect();
        Ok(Self { root, roots, cross, issuer, issuer_chain, intermediates, issuer_not_after })
    }

    /// A new root and issuer.
    pub(super) fn generate(options: &AuthorityOptions) -> Result<Self, IdentityError> {
        let root = Root::generate(options)?;
        let (certificate, key) = root.issue_issuer(options)?;
        let roots = vec![root.certificate.clone()];
        Self::new(Some(root), roots, None, vec![certificate], key)
    }

    /// As [`super::Authority::rotate_root`].
    pub(super) fn rotated(&self, options: &AuthorityOptions) -> Result<Self, IdentityError> {
        let old = self.own_root()?;
        let new = Root::generate(options)?;
        let cross = old.cross_sign(&new)?;
        let (certificate, key) = new.issue_issuer(options)?;
        let mut roots = vec![new.certificate.clone()];
        roots.extend_from_slice(&self.roots);
        Self::new(Some(new), roots, Some(cross), vec![certificate], key)
    }

    /// As [`super::Authority::forget_old_roots`].
    pub(super) fn without_old_roots(&self) -> Result<Self, IdentityError> {
        let root = self.own_root()?.try_clone()?;
        let roots = vec![root.certificate.clone()];
        Self::new(Some(root), roots, None, self.issuer_chain.clone(), clone_key(self.issuer.key())?)
    }

    /// The same root with a new issuer.
    pub(super) fn with_new_issuer(&self, options: &AuthorityOptions) -> Result<Self, IdentityError> {
        let root = self.own_root()?.try_clone()?;
        let (certificate, key) = root.issue_issuer(options)?;
        Self::new(Some(root), self.roots.clone(), self.cross.clone(), vec![certificate], key)
    }

    pub(super) fn needs_new_issuer(&self, options: &AuthorityOptions) -> bool {
        let left = self.issuer_not_after.duration_since(SystemTime::now()).unwrap_or_default();
        self.root.is_some() && left < options.issuer_lifetime / 5
    }

    fn own_root(&self) -> Result<&Root, IdentityError> {
        self.root.as_ref().ok_or_else(|| {
            authority_error(
                "the root was provided, so its key is elsewhere: to rotate, put the new root beside the old one into \
                 root.pem, later replace issuer.pem and issuer.key, last take the old root out; restart after each step",
            )
        })
    }

    pub(super) fn bundle(&self, trust_domain: &str) -> Result<TrustBundle, IdentityError> {
        TrustBundle::empty().with_roots(trust_domain, self.roots.iter().cloned())
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    pub(super) fn issuer_chain(&self) -> &[CertificateDer<'static>] {
        &self.issuer_chain
    }

    pub(super) fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates
    }

    pub(super) fn issuer_not_after(&self) -> SystemTime {
        self.issuer_not_after
    }

    /// When the root that signs was made; of a provided one at the latest a day after its start.
    pub(super) fn root_made(&self) -> SystemTime {
        let start = self.roots.first().and_then(validity_of).map(|(start, _)| start);
        start.map_or(SystemTime::UNIX_EPOCH, |start| start + BACKDATE)
    }
}

impl Root {
    fn generate(options: &AuthorityOptions) -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(authority_error)?;
        let params = authority_params("root", &options.trust_domain, options.root_lifetime)?;
        let certificate = params.self_signed(&key).map_err(authority_error)?;
        Ok(Self { certificate: certificate.der().clone(), key })
    }

    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, IdentityError> {
        Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(authority_error)
    }

    fn issue_issuer(
        &self,
        options: &AuthorityOptions,
    ) -> Result<(CertificateDer<'static>, KeyPair), IdentityError> {
        let key = KeyPair::generate().map_err(authority_error)?;
        let mut params = authority_params("issuer", &options.trust_domain, options.issuer_lifetime)?;
        if let Some((_, end)) = validity_of(&self.certificate) {
            params.not_after = params.not_after.min(end.into());
        }
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer()?).map_err(authority_error)?;
        Ok((certificate.der().clone(), key))
    }

    /// The other root's name and key under our signature, until our own end.
    fn cross_sign(&self, other: &Self) -> Result<CertificateDer<'static>, IdentityError> {
        let name = Issuer::from_ca_cert_der(&other.certificate, &other.key).map_err(authority_error)?;
        let mut params = authority_params("root", "", Duration::ZERO)?;
        params.distinguished_name = subject_of(&other.certificate)?;
        if let Some((_, end)) = validity_of(&self.certificate) {
            params.not_after = end.into();
        }
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(name.key(), &self.issuer()?).map_err(authority_error)?;
        Ok(certificate.der().clone())
    }

    fn try_clone(&self) -> Result<Self, IdentityError> {
        Ok(Self { certificate: self.certificate.clone(), key: clone_key(&self.key)? })
    }
}

fn clone_key(key: &KeyPair) -> Result<KeyPair, IdentityError> {
    KeyPair::from_pem(&key.serialize_pem()).map_err(authority_error)
}

fn authority_params(
    kind: &str,
    trust_domain: &str,
    life: Duration,
) -> Result<CertificateParams, IdentityError> {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + life).into();
    params.serial_number = Some(random_serial()?);
    // Each root has a name of its own: two roots of one name make path building guess.
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Outrigger");
    let name = format!("{kind} {} of {trust_domain}", hex(&random::<4>()?));
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn subject_of(certificate: &CertificateDer<'static>) -> Result<DistinguishedName, IdentityError> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(authority_error)?;
    let mut name = DistinguishedName::new();
    let text =
        |value: Result<&str, _>| value.map(str::to_owned).map_err(|_| authority_error("a name is not text"));
    for value in parsed.subject().iter_organization() {
        name.push(DnType::OrganizationName, text(value.as_str())?);
    }
    for value in parsed.subject().iter_common_name() {
        name.push(DnType::CommonName, text(value.as_str())?);
    }
    Ok(name)
}
