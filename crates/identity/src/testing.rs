//! What the tests share: a CA that signs anything, handshakes in memory, and a whole control plane on port 0.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_model::identity::SpiffeId;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, SanType};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::accept::ClientAuth;
use crate::csr::service::CallerPolicy;
use crate::provider::provider;
use crate::{
    Authority, AuthorityOptions, CertificateProblem, CertificateService, CredentialStore, Credentials,
    TlsListener, TrustBundle, WorkloadCertificate,
};

pub(crate) const TD: &str = "mesh.test";
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn id(account: &str) -> SpiffeId {
    SpiffeId::workload(TD, "shop", account).unwrap()
}

pub(crate) fn authority() -> Authority {
    Authority::in_memory(AuthorityOptions::new(TD)).unwrap()
}

pub(crate) fn credentials(authority: &Authority, account: &str) -> Credentials {
    let issued = authority.issue_key_and_certificate(&id(account), None).unwrap();
    Credentials::new(Some(Arc::new(issued.certificate)), issued.bundle)
}

/// A root that signs whatever it is given.
pub(crate) struct TestCa {
    pub(crate) root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

pub(crate) type KeyAndChain = (PrivateKeyDer<'static>, Vec<CertificateDer<'static>>);

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::empty().with_roots(TD, [self.root.clone()]).unwrap()
    }

    pub(crate) fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> KeyAndChain {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = (SystemTime::now() - HOUR).into();
        params.not_after = (SystemTime::now() + HOUR).into();
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        (PrivatePkcs8KeyDer::from(key.serialize_der()).into(), vec![leaf.der().clone()])
    }

    pub(crate) fn named(&self, uris: &[&str]) -> KeyAndChain {
        self.leaf(|params| params.subject_alt_names = uris.iter().map(|uri| uri_san(uri)).collect())
    }
}

pub(crate) fn uri_san(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

/// A server that presents anything and asks for nothing.
pub(crate) fn raw_server((key, chain): KeyAndChain) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

/// A client that presents anything and believes anything that `credentials` would for any identity of the mesh.
pub(crate) fn raw_client((key, chain): KeyAndChain, bundle: &TrustBundle) -> Arc<ClientConfig> {
    let trusting = Credentials::new(None, Arc::new(bundle.clone()));
    let anybody = crate::PeerExpectation::TrustDomain(TD.to_owned());
    let mut config = ClientConfig::clone(&crate::client_config(&trusting, anybody, &[]).unwrap());
    let certified = CertifiedKey::from_der(chain, key, &provider()).unwrap();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
    Arc::new(config)
}

type Ends =
    (std::io::Result<server::TlsStream<DuplexStream>>, std::io::Result<client::TlsStream<DuplexStream>>);

pub(crate) async fn handshake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Ends {
    let (near, far) = tokio::io::duplex(64 << 10);
    let name = ServerName::try_from("outbound_.80_._.web.shop").unwrap();
    let accepting = TlsAcceptor::from(server).accept(near);
    let connecting = TlsConnector::from(client).connect(name, far);
    tokio::join!(Box::pin(accepting), Box::pin(connecting))
}

/// What one of our verifiers said, out of a handshake's error.
pub(crate) fn problem<T>(outcome: std::io::Result<T>) -> String {
    let error = outcome.err().expect("the handshake should have been refused");
    match CertificateProblem::find(&error) {
        Some(problem) => problem.to_string(),
        None => format!("(no problem of ours) {error}"),
    }
}

pub(crate) fn certificate((key, chain): KeyAndChain, now: SystemTime) -> WorkloadCertificate {
    WorkloadCertificate::new(key, chain, now).unwrap()
}

/// A control plane's CSR service over real TLS on a port of its own; ends when dropped.
pub(crate) struct ControlPlaneServer {
    pub(crate) authority: Arc<Authority>,
    pub(crate) address: SocketAddr,
    pub(crate) store: CredentialStore,
    task: JoinHandle<()>,
}

impl ControlPlaneServer {
    pub(crate) async fn start(authority: Authority, policy: Arc<dyn CallerPolicy>) -> Self {
        let authority = Arc::new(authority);
        let own = authority.server_certificate(&["localhost".to_owned()], &[[127, 0, 0, 1].into()]).unwrap();
        let store = CredentialStore::default();
        store.replace(Some(Arc::new(own.certificate)), own.bundle);
        Self::start_as(authority, policy, store).await
    }

    pub(crate) async fn start_as(
        authority: Arc<Authority>,
        policy: Arc<dyn CallerPolicy>,
        store: CredentialStore,
    ) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let incoming = TlsListener::from_store(tcp, store.clone(), &[b"h2"], ClientAuth::Optional);
        let service = CertificateService::new(authority.clone(), policy).into_server();
        let task = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self { authority, address, store, task }
    }
}

impl Drop for ControlPlaneServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
