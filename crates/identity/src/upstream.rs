//! TLS to servers outside the mesh: a DestinationRule's `SIMPLE` and `MUTUAL`. Names are DNS names and public rules
//! apply (TLS 1.2 is allowed); SPIFFE secure naming is `connect`'s.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::{
    ClientConfig, Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor,
    verify_server_name,
};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use webpki::EndEntityCert;

use crate::error::{CertificateProblem, IdentityError};
use crate::pem;
use crate::proof::{Judge, Proof, ServerBy};
use crate::provider::provider;

/// Where Linux distributions keep the public roots.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How to reach a server outside the mesh.
#[derive(Debug, Clone, Default)]
pub struct UpstreamTls {
    /// Whom to trust, PEM; `None` means the system's public roots.
    pub roots_pem: Option<String>,
    /// The names or URIs of which the server must have one; empty means the SNI's name.
    pub subject_alt_names: Vec<String>,
    /// Our client certificate chain and key, PEM: `MUTUAL`.
    pub client: Option<(String, String)>,
    /// ALPN in order of preference; empty means none.
    pub alpn: Vec<Vec<u8>>,
}

/// A configuration for a server outside the mesh.
///
/// # Errors
/// When roots, certificate or key are unusable.
pub fn upstream_client_config(settings: &UpstreamTls) -> Result<Arc<ClientConfig>, IdentityError> {
    let roots = Arc::new(root_store(settings.roots_pem.as_deref())?);
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = if settings.subject_alt_names.is_empty() {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| IdentityError::bundle("upstream", error.to_string()))?;
        builder.with_webpki_verifier(verifier)
    } else {
        let names = settings.subject_alt_names.clone();
        builder.dangerous().with_custom_certificate_verifier(Arc::new(ServerBy(Named { roots, names })))
    };
    let mut config = match &settings.client {
        Some((chain, key)) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(client_key(chain, key)?)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols.clone_from(&settings.alpn);
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// TLS to an application of one's own host, to hear whether it is well: as with a kubelet's probes, whose certificate it is does not matter. Nothing
/// that is nobody else's business may be sent there.
///
/// # Errors
/// No handshake comes about.
pub async fn connect_unverified<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    address: IpAddr,
) -> std::io::Result<TlsStream<S>> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(std::io::Error::other)?.dangerous();
    let verifier = Arc::new(ServerBy(Anybody));
    let mut config = builder.with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.resumption = Resumption::disabled();
    TlsConnector::from(Arc::new(config)).connect(ServerName::from(address), stream).await
}

/// Whether anybody can be verified by roots: all of them are certificates that can be read.
///
/// # Errors
/// What is wrong with them.
pub fn usable_roots(pem: &str) -> Result<(), IdentityError> {
    root_store(Some(pem)).map(|_| ())
}

/// Whether a server can be asked for by a name.
pub fn is_server_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

fn root_store(text: Option<&str>) -> Result<RootCertStore, IdentityError> {
    let bad = |reason: String| IdentityError::bundle("upstream", reason);
    let mut store = RootCertStore::empty();
    if let Some(text) = text {
        for root in pem::certificates(text).map_err(bad)? {
            store.add(root).map_err(|error| bad(error.to_string()))?;
        }
    } else {
        let text = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read_to_string(path).ok());
        let text = text
            .ok_or_else(|| bad(format!("no system roots found (looked at {})", SYSTEM_ROOTS.join(", "))))?;
        // Public bundles carry roots that webpki does not read; the others must not suffer.
        store.add_parsable_certificates(pem::certificates(&text).map_err(bad)?);
    }
    if store.is_empty() { Err(bad("there is no root certificate in it".to_owned())) } else { Ok(store) }
}

fn client_key(chain: &str, key: &str) -> Result<CertifiedKey, IdentityError> {
    let chain = pem::certificates(chain).map_err(CertificateProblem::Unreadable)?;
    if chain.is_empty() {
        return Err(CertificateProblem::Missing.into());
    }
    let key =
        pem::private_keys(key).map_err(CertificateProblem::BadKey)?.pop().ok_or(CertificateProblem::NoKey)?;
    CertifiedKey::from_der(chain, key, &provider())
        .map_err(|error| CertificateProblem::BadKey(error.to_string()).into())
}

/// Accepts everybody: who does not ask for a name need not look at signatures either, and old certificates could not be read for that.
#[derive(Debug)]
struct Anybody;

impl Judge for Anybody {
    const PROOF: Proof = Proof::Nothing;

    fn judge(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<(), rustls::Error> {
        Ok(())
    }
}

/// Accepts a server that has one of the given names instead of the SNI's.
#[derive(Debug)]
struct Named {
    roots: Arc<RootCertStore>,
    names: Vec<String>,
}

impl Judge for Named {
    const PROOF: Proof = Proof::AnyVersion;

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let named = EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let has = |wanted: &String| match ServerName::try_from(wanted.as_str()) {
            Ok(name) => verify_server_name(&parsed, &name).is_ok(),
            Err(_) => named.valid_uri_names().any(|uri| uri == wanted),
        };
        if self.names.iter().any(has) {
            return Ok(());
        }
        let presented: Vec<&str> = named.valid_dns_names().chain(named.valid_uri_names()).take(8).collect();
        let text =
            format!("expected one of {}, but the server is {}", self.names.join(", "), presented.join(", "));
        Err(CertificateError::Other(rustls::OtherError(Arc::from(
            Box::<dyn std::error::Error + Send + Sync>::from(text),
        )))
        .into())
    }
}
