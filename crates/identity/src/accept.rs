//! rustls configurations for the accepting side: TLS 1.3, no resumption, the client's identity verified.
//!
//! Resumption and tickets are off because a resumed session skips certificate verification: a peer could outlive its
//! certificate or its trust. Early data is off because it can be replayed.

use std::sync::Arc;

use rustls::DistinguishedName;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::sign::SingleCertAndKey;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::bundle::TrustBundle;
use crate::credentials::Credentials;
use crate::error::IdentityError;
use crate::proof::{Proof, proven};
use crate::provider::provider;
use crate::verify::{Role, verify_chain};

/// Whether a client must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientAuth {
    /// No certificate, no connection: between sidecars.
    Required,
    /// A certificate is verified when shown: on the control plane's port, where a joining workload has only a token.
    Optional,
}

/// A configuration that verifies every certificate that a client shows. `alpn` is in order of preference; empty means none.
///
/// # Errors
/// When the credentials hold no certificate.
pub fn server_config(
    credentials: &Credentials,
    alpn: &[&[u8]],
    client_auth: ClientAuth,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let certificate = credentials.certificate.as_ref().ok_or(IdentityError::NoCertificate)?;
    let verifier = PeerVerifier { bundle: credentials.bundle.clone(), client_auth };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.certified())));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct PeerVerifier {
    bundle: Arc<TrustBundle>,
    client_auth: ClientAuth,
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.client_auth == ClientAuth::Required
    }

    // No hints: every client of a mesh has one certificate, and the list would only lengthen the handshake.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        verify_chain(&self.bundle, leaf, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    proven!(Proof::Tls13);
}
