//! rustls configurations for the connecting side, and secure naming: the server must be whom we wanted.
//!
//! The name in SNI is given at connect time and only routes; it proves nothing and is never compared.

use std::fmt;
use std::sync::Arc;

use outrigger_model::identity::SpiffeId;
use rustls::client::{ClientConfig, Resumption};
use rustls::sign::SingleCertAndKey;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::bundle::TrustBundle;
use crate::credentials::Credentials;
use crate::error::{CertificateProblem, IdentityError};
use crate::proof::{Judge, Proof, ServerBy};
use crate::provider::provider;
use crate::verify::{Role, verify_chain};

/// Whom a connection must reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerExpectation {
    /// This identity: the usual case, the endpoint's own.
    Exactly(SpiffeId),
    /// One of these: a foreign control plane's SAN list.
    AnyOf(Vec<SpiffeId>),
    /// Anybody of this trust domain.
    TrustDomain(String),
}

impl PeerExpectation {
    /// Whether this peer is whom we wanted; aliases of a trust domain count as it.
    pub fn accepts(&self, bundle: &TrustBundle, peer: &SpiffeId) -> bool {
        match self {
            Self::Exactly(id) => bundle.same_identity(id, peer),
            Self::AnyOf(ids) => ids.iter().any(|id| bundle.same_identity(id, peer)),
            Self::TrustDomain(name) => bundle.canonical(name) == bundle.canonical(peer.trust_domain()),
        }
    }
}

impl fmt::Display for PeerExpectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(id) => id.fmt(f),
            Self::AnyOf(ids) if ids.is_empty() => f.write_str("one of an empty list of identities"),
            Self::AnyOf(ids) => {
                f.write_str("one of ")?;
                for (i, id) in ids.iter().enumerate() {
                    write!(f, "{}{id}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::TrustDomain(name) => write!(f, "any identity of trust domain \"{name}\""),
        }
    }
}

/// A TLS 1.3 configuration that accepts only the expected peer. Our certificate is presented when there is one.
///
/// # Errors
/// When rustls refuses the parameters.
pub fn client_config(
    credentials: &Credentials,
    expected: PeerExpectation,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, IdentityError> {
    let verifier = ServerBy(Wanted { bundle: credentials.bundle.clone(), expected });
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &credentials.certificate {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.certified()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // A resumed session would skip the check of who answers.
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// Accepts whom the mesh knows as the peer that is wanted.
#[derive(Debug)]
struct Wanted {
    bundle: Arc<TrustBundle>,
    expected: PeerExpectation,
}

impl Judge for Wanted {
    const PROOF: Proof = Proof::Tls13;

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let presented = verify_chain(&self.bundle, leaf, intermediates, Role::Server, now)?;
        if self.expected.accepts(&self.bundle, &presented) {
            return Ok(());
        }
        Err(CertificateProblem::WrongIdentity { expected: self.expected.to_string(), presented }.into())
    }
}
