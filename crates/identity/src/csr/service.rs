//! The CSR service: who is calling is the policy's word, what is issued is the authority's, the CSR only brings a key.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_model::identity::SpiffeId;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status};

use crate::authority::Authority;
use crate::clock::unix_millis;
use crate::csr::proto::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::csr::proto::{IstioCertificateRequest, IstioCertificateResponse};
use crate::csr::{MAX_CSR_BYTES, ROOTS_METADATA, TIME_METADATA};
use crate::error::IdentityError;
use crate::incoming::PeerInfo;
use crate::pem;
use crate::provider::sha256_hex;

/// Who asks for a certificate, as far as the connection proves or the call claims.
#[derive(Clone)]
pub struct Caller {
    /// The identity of a verified client certificate that is still valid.
    pub certificate: Option<SpiffeId>,
    /// The bearer token, unverified.
    pub bearer: Option<String>,
    /// Where the connection comes from.
    pub remote: SocketAddr,
    /// SHA-256 of the request, hex: whoever asks once more with the same one, since the answer did not come, has it again.
    pub request: String,
}

/// Why a caller gets no certificate; the text reaches the caller, so it holds no secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Denied {
    /// The text.
    pub reason: String,
    /// What the caller showed is nobody's: any stranger can do that.
    pub guess: bool,
    /// Nothing is wrong: the caller has another proof, which it shows next.
    pub expected: bool,
}

impl Denied {
    /// Somebody whom there is a reason for.
    pub fn new(reason: String) -> Self {
        Self { reason, guess: false, expected: false }
    }

    /// A stranger.
    pub fn guess(reason: String) -> Self {
        Self { reason, guess: true, expected: false }
    }

    /// Somebody who is to show something else.
    pub fn expected(reason: String) -> Self {
        Self { reason, guess: false, expected: true }
    }
}

/// Decides which identity a caller may have. Called on the runtime's threads: do not block. None of it has a default, so that a policy
/// around another cannot forget to ask that.
#[tonic::async_trait]
pub trait CallerPolicy: Send + Sync {
    /// The identity that the caller's token (or whatever else it brings) is bound to. Nothing is used up by that.
    ///
    /// # Errors
    /// With the reason when there is none.
    async fn identify(&self, caller: &Caller) -> Result<SpiffeId, Denied>;

    /// Counts one use of what [`CallerPolicy::identify`] took, for a certificate that is made and not yet handed out.
    ///
    /// # Errors
    /// When there is no use left, as another call was quicker, or when it cannot be counted; the certificate is thrown away.
    async fn spend(&self, caller: &Caller) -> Result<(), Denied>;

    /// Whether the holder of a still valid certificate may have the same identity again. Who is revoked does not come so far.
    ///
    /// # Errors
    /// With the reason.
    fn renew(&self, identity: &SpiffeId) -> Result<(), Denied>;
}

/// `istio.v1.auth.IstioCertificateService` over an [`Authority`].
pub struct CertificateService {
    authority: Arc<Authority>,
    policy: Arc<dyn CallerPolicy>,
}

impl CertificateService {
    /// Serves certificates of `authority` to whom `policy` admits.
    pub fn new(authority: Arc<Authority>, policy: Arc<dyn CallerPolicy>) -> Self {
        Self { authority, policy }
    }

    /// As a tonic service, for `Server::add_service`. Connections must come from a [`crate::TlsListener`], or no
    /// caller ever has a certificate.
    pub fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(2 * MAX_CSR_BYTES)
    }

    /// Who the caller may be, and whether its token says so.
    async fn decide(&self, caller: &Caller) -> Result<(SpiffeId, bool), Denied> {
        // A token is an explicit wish, so it goes first; if it is stale, the certificate still speaks.
        let by_token = if caller.bearer.is_some() || caller.certificate.is_none() {
            match self.policy.identify(caller).await {
                Ok(identity) => return Ok((identity, true)),
                Err(denied) => Some(denied),
            }
        } else {
            None
        };
        match (&caller.certificate, by_token) {
            (Some(identity), _) if identity.trust_domain() == self.authority.trust_domain() => {
                self.policy.renew(identity).map(|()| (identity.clone(), false))
            }
            (_, Some(denied)) => Err(denied),
            // A certificate of a federated trust domain, without a token: only the policy can know.
            _ => self.policy.identify(caller).await.map(|identity| (identity, true)),
        }
    }

    async fn create(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let refuse = |denied: Denied| {
            if denied.expected {
                tracing::debug!(remote = %caller.remote, reason = %denied, "another proof is asked for");
            } else {
                tracing::warn!(remote = %caller.remote, reason = %denied, "certificate request refused");
            }
            Status::unauthenticated(denied.reason)
        };
        let (identity, by_token) = self.decide(caller).await.map_err(refuse)?;
        if crate::control_plane_id(self.authority.trust_domain()).is_ok_and(|own| own == identity) {
            let reason = format!("{identity} is the control plane's own, which nobody joins as");
            return Err(refuse(Denied::new(reason)));
        }
        if self.authority.bundle().revoked().has_identity(&identity) {
            let reason = format!("{identity} is revoked; `outrigger identity reinstate` takes that back");
            return Err(refuse(Denied::new(reason)));
        }
        if identity.trust_domain() != self.authority.trust_domain() {
            let domain = self.authority.trust_domain();
            return Err(Status::permission_denied(format!(
                "{identity} is not of this authority's trust domain {domain}"
            )));
        }
        if request.csr.len() > MAX_CSR_BYTES {
            return Err(Status::invalid_argument("the certificate request is longer than 64 KiB"));
        }
        let ttl = u64::try_from(request.validity_duration).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let issued =
            self.authority.issue_for_csr(&request.csr, &identity, ttl).map_err(|error| match error {
                IdentityError::Request(reason) => Status::invalid_argument(reason),
                other => {
                    tracing::error!(error = %other, id = %identity, "a certificate could not be issued");
                    Status::internal(other.to_string())
                }
            })?;
        // Only now: a request that came to nothing has used nothing up.
        if by_token {
            self.policy.spend(caller).await.map_err(refuse)?;
        }
        tracing::info!(%identity, remote = %caller.remote, "certificate issued");
        let roots = issued.bundle.roots(self.authority.trust_domain());
        let pem = |certificate| pem::encode("CERTIFICATE", certificate);
        let cert_chain = issued
            .chain
            .iter()
            .map(|der| pem(der.as_ref()))
            .chain(roots.iter().map(|der| pem(der.as_ref())))
            .collect();
        let mut response = Response::new(IstioCertificateResponse { cert_chain });
        response.metadata_mut().insert(ROOTS_METADATA, roots.len().into());
        Ok(response)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let mut caller = caller(request.extensions(), request.metadata(), SystemTime::now());
        caller.request = sha256_hex(request.get_ref().csr.as_bytes());
        let mut answer = self.create(&caller, request.get_ref()).await;
        // Refusals carry the time too: a wrong clock is the usual reason for them.
        let metadata = match &mut answer {
            Ok(response) => response.metadata_mut(),
            Err(status) => status.metadata_mut(),
        };
        metadata.insert(TIME_METADATA, unix_millis(SystemTime::now()).into());
        answer
    }
}

fn caller(extensions: &Extensions, metadata: &MetadataMap, now: SystemTime) -> Caller {
    let peer = extensions.get::<PeerInfo>();
    let bearer = metadata
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim().to_owned());
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    Caller {
        // The handshake may be days ago: the certificate must be valid now.
        certificate: peer
            .filter(|peer| peer.is_certificate_valid(now))
            .and_then(|peer| peer.identity.clone()),
        bearer,
        remote: peer.map_or(nowhere, |peer| peer.remote),
        request: String::new(),
    }
}
