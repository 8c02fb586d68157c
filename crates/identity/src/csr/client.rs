//! One certificate request: a new key, a CSR, the call, and a distrustful look at the answer.
//!
//! The key is made here and never leaves the process but into the state directory. When to ask is `renewal`'s.

use std::time::{Duration, SystemTime};

use outrigger_model::identity::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::bundle::is_self_issued;
use crate::cert::WorkloadCertificate;
use crate::clock::unix_millis;
use crate::csr::proto::IstioCertificateRequest;
use crate::csr::proto::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::csr::{ROOTS_METADATA, TIME_METADATA};
use crate::error::IdentityError;
use crate::pem;

/// An answer has some KiB; more is not one.
const MAX_RESPONSE_BYTES: usize = 1 << 20;
/// More certificates than any chain and bundle have.
const MAX_CERTIFICATES: usize = 64;

/// A new private key and the request for a certificate over it.
pub struct KeyAndRequest {
    key: PrivateKeyDer<'static>,
    csr_pem: String,
}

impl KeyAndRequest {
    /// Makes an ECDSA P-256 key and a CSR with the identity as its URI SAN.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn generate(identity: &SpiffeId) -> Result<Self, IdentityError> {
        let failed =
            |error: rcgen::Error| IdentityError::Request(format!("cannot make a key and request: {error}"));
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().map_err(failed)?)];
        let csr = params.serialize_request(&key).map_err(failed)?;
        let csr_pem = pem::encode("CERTIFICATE REQUEST", csr.der());
        Ok(Self { key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(), csr_pem })
    }

    /// The request, PEM.
    pub fn csr_pem(&self) -> &str {
        &self.csr_pem
    }
}

/// What the control plane gave us.
#[derive(Debug)]
pub struct Issued {
    /// Our new key and certificate, checked to be whom we asked for and valid by our clock.
    pub certificate: WorkloadCertificate,
    /// The roots that came with it.
    pub roots: Vec<CertificateDer<'static>>,
    /// Whether those are the whole bundle (our control plane says so) or one of several (a foreign CA).
    pub roots_are_complete: bool,
    /// The control plane's clock minus ours in milliseconds, where it told.
    pub skew_millis: Option<i64>,
}

/// Why there is no certificate.
#[derive(Debug)]
pub struct RequestFailure {
    /// What happened.
    pub error: IdentityError,
    /// As [`Issued::skew_millis`].
    pub skew_millis: Option<i64>,
}

impl RequestFailure {
    fn of(error: IdentityError, skew_millis: Option<i64>) -> Self {
        Self { error, skew_millis }
    }
}

/// Asks once. The proof is the bearer token, or without one the client certificate of the channel's connection.
///
/// # Errors
/// When the call fails, or the answer is not a certificate for this identity over our key.
pub async fn request_certificate(
    channel: Channel,
    identity: &SpiffeId,
    ttl: Duration,
    token: Option<&str>,
) -> Result<Issued, RequestFailure> {
    let pair = KeyAndRequest::generate(identity).map_err(|error| RequestFailure::of(error, None))?;
    request_with(&pair, channel, identity, ttl, token).await
}

/// As [`request_certificate`], with a request that was made before: a token that was spent on it is not spent again.
pub(crate) async fn request_with(
    pair: &KeyAndRequest,
    channel: Channel,
    identity: &SpiffeId,
    ttl: Duration,
    token: Option<&str>,
) -> Result<Issued, RequestFailure> {
    let mut request = Request::new(IstioCertificateRequest {
        csr: pair.csr_pem.clone(),
        validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: None,
    });
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().map_err(|_| {
            let reason = "the token has characters that no HTTP header may have".to_owned();
            RequestFailure::of(IdentityError::Control(reason), None)
        })?;
        request.metadata_mut().insert("authorization", value);
    }
    let mut client =
        IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
    let sent = SystemTime::now();
    let answer = client.create_certificate(request).await;
    let received = SystemTime::now();
    let response = answer.map_err(|status| {
        let skew_millis = skew(status.metadata(), sent, received);
        RequestFailure { error: describe(&status), skew_millis }
    })?;
    let skew_millis = skew(response.metadata(), sent, received);
    let roots_count =
        number(response.metadata(), ROOTS_METADATA).and_then(|count| usize::try_from(count).ok());
    let key = pair.key.clone_key();
    read_answer(&response.into_inner().cert_chain, roots_count, key, identity, received)
        .map(|(certificate, roots)| {
            let roots_are_complete = roots_count.is_some();
            Issued { certificate, roots, roots_are_complete, skew_millis }
        })
        .map_err(|error| RequestFailure::of(with_skew(error, skew_millis), skew_millis))
}

fn describe(status: &Status) -> IdentityError {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    // tonic hides why a connection failed in the chain of sources.
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    IdentityError::Control(text)
}

fn with_skew(error: IdentityError, skew_millis: Option<i64>) -> IdentityError {
    match (error, skew_millis) {
        (IdentityError::Certificate(problem), Some(skew)) if skew.abs() > 1000 => {
            IdentityError::Control(format!(
                "{problem} (this host's clock is {:.0} s {} the control plane's)",
                skew.abs() as f64 / 1000.0,
                if skew > 0 { "behind" } else { "ahead of" }
            ))
        }
        (error, _) => error,
    }
}

fn number(metadata: &MetadataMap, name: &str) -> Option<i64> {
    metadata.get(name)?.to_str().ok()?.parse().ok()
}

/// The control plane stamped its answer somewhere between our sending and receiving: half way is the best guess.
fn skew(metadata: &MetadataMap, sent: SystemTime, received: SystemTime) -> Option<i64> {
    let theirs = number(metadata, TIME_METADATA)?;
    let ours = i64::midpoint(unix_millis(sent), unix_millis(received));
    theirs.checked_sub(ours)
}

type CertificateAndRoots = (WorkloadCertificate, Vec<CertificateDer<'static>>);

/// Takes the answer apart into our chain and the roots, and refuses what we did not ask for.
pub(crate) fn read_answer(
    cert_chain: &[String],
    roots_count: Option<usize>,
    key: PrivateKeyDer<'static>,
    identity: &SpiffeId,
    now: SystemTime,
) -> Result<CertificateAndRoots, IdentityError> {
    let wrong =
        |reason: &str| IdentityError::Control(format!("its answer is not a certificate chain: {reason}"));
    let mut chain = Vec::new();
    for text in cert_chain {
        chain.extend(pem::certificates(text).map_err(|reason| wrong(&reason))?);
        if chain.len() > MAX_CERTIFICATES {
            return Err(wrong("it has more than 64 certificates"));
        }
    }
    let roots_start = match roots_count {
        Some(count) => chain.len().checked_sub(count),
        // A foreign CA: what names itself as issuer at the end is a root; if nothing does, the last one counts as it.
        None => match chain.iter().rev().take_while(|certificate| is_self_issued(certificate)).count() {
            0 => chain.len().checked_sub(1),
            roots => Some(chain.len() - roots),
        },
    };
    let roots_start = roots_start.filter(|start| *start > 0 && *start < chain.len());
    let roots = chain.split_off(roots_start.ok_or_else(|| wrong("it needs a leaf and at least one root"))?);
    let certificate = WorkloadCertificate::new(key, chain, now)?;
    if certificate.id() != identity {
        return Err(IdentityError::Control(format!(
            "it issued a certificate for {}, but this workload is {identity}: was the join file made for another one?",
            certificate.id()
        )));
    }
    Ok((certificate, roots))
}
