//! One workload's key and certificate, checked when it is read so that everything later may rely on it.
//!
//! x509-parser is used here, off the path of a connection; a handshake never reads more than webpki does.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_model::identity::SpiffeId;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock::from_unix_seconds;
use crate::error::CertificateProblem;
use crate::{pem, provider, verify};

/// A private key and the certificate chain that says whose it is: leaf first, then intermediates, never the root.
pub struct WorkloadCertificate {
    id: SpiffeId,
    key: PrivateKeyDer<'static>,
    certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
}

impl WorkloadCertificate {
    /// Reads key and chain, in any order, from one PEM text, and checks them against the clock `now`.
    ///
    /// # Errors
    /// Names exactly what is wrong: no or several keys, unreadable, no or several URI SANs, not SPIFFE, a CA's,
    /// expired, not yet valid, or a key that is not the certificate's.
    pub fn from_pem(text: &str, now: SystemTime) -> Result<Self, CertificateProblem> {
        Self::from_key_and_chain(text, text, now)
    }

    /// Reads key and chain from two PEM texts.
    ///
    /// # Errors
    /// As [`WorkloadCertificate::from_pem`].
    pub fn from_key_and_chain(key: &str, chain: &str, now: SystemTime) -> Result<Self, CertificateProblem> {
        let chain = pem::certificates(chain).map_err(CertificateProblem::Unreadable)?;
        let mut keys = pem::private_keys(key).map_err(CertificateProblem::BadKey)?;
        match (keys.len(), keys.pop()) {
            (1, Some(key)) => Self::new(key, chain, now),
            (0, _) => Err(CertificateProblem::NoKey),
            (several, _) => Err(CertificateProblem::SeveralKeys(several)),
        }
    }

    /// Puts key and chain together. Trust is not checked here: that is [`crate::verify_peer`]'s, against a bundle.
    ///
    /// # Errors
    /// As [`WorkloadCertificate::from_pem`].
    pub fn new(
        key: PrivateKeyDer<'static>,
        chain: Vec<CertificateDer<'static>>,
        now: SystemTime,
    ) -> Result<Self, CertificateProblem> {
        let id = verify::peer_identity(&chain)?;
        let leaf = chain.first().ok_or(CertificateProblem::Missing)?;
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|error| CertificateProblem::Unreadable(error.to_string()))?;
        if parsed.is_ca() {
            return Err(CertificateProblem::IsAuthority(id));
        }
        let (not_before, not_after) = validity(&parsed);
        let serial = provider::hex(parsed.raw_serial());
        let signer = provider::provider()
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(|error| CertificateProblem::BadKey(error.to_string()))?;
        let certified = CertifiedKey::new(chain, signer);
        if certified.keys_match().is_err() {
            return Err(CertificateProblem::WrongKey(id));
        }
        let certificate = Self { id, key, certified: Arc::new(certified), not_before, not_after, serial };
        certificate.check_validity(now)?;
        Ok(certificate)
    }

    /// Who the certificate says its holder is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Leaf first, then intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Start of validity; usually some minutes before issuance, against clock skew.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Serial number, lower-case hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// How long it is still valid; zero when it is over.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// Whether it may be presented now.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.check_validity(now).is_ok()
    }

    /// Says whether and how `now` is outside its validity.
    ///
    /// # Errors
    /// `Expired` or `NotYetValid`, with both times.
    pub fn check_validity(&self, now: SystemTime) -> Result<(), CertificateProblem> {
        if now > self.not_after {
            return Err(CertificateProblem::Expired {
                id: Some(self.id.clone()),
                not_after: self.not_after,
                now,
            });
        }
        if now < self.not_before {
            let id = Some(self.id.clone());
            return Err(CertificateProblem::NotYetValid { id, not_before: self.not_before, now });
        }
        Ok(())
    }

    /// The chain as PEM.
    pub fn chain_pem(&self) -> String {
        pem::encode_certificates(self.chain())
    }

    /// The private key as PEM. Write it only to files of mode 0600.
    pub fn key_pem(&self) -> String {
        pem::encode_key(&self.key)
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl fmt::Debug for WorkloadCertificate {
    // The key must never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("not_after", &crate::clock::rfc3339(self.not_after))
            .finish_non_exhaustive()
    }
}

fn validity(parsed: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let validity = parsed.validity();
    (from_unix_seconds(validity.not_before.timestamp()), from_unix_seconds(validity.not_after.timestamp()))
}

/// Start and end of a certificate's validity; `None` when it is unreadable.
pub fn validity_of(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    X509Certificate::from_der(certificate).ok().map(|(_, parsed)| validity(&parsed))
}
