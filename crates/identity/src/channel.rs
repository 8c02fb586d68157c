//! The gRPC channel to the control plane: a tonic `Channel` over our own TLS, reconnecting on demand.
//!
//! Credentials are read at each connect, so the first call goes out with server authentication only, and later ones
//! as mTLS. What runs over the channel (CSRs, xDS) is others'.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use http::Uri;
use hyper_util::rt::TokioIo;
use outrigger_model::identity::SpiffeId;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::connect::{PeerExpectation, client_config};
use crate::credentials::{CredentialStore, Credentials};
use crate::error::{CertificateProblem, IdentityError};
use crate::join::split_host_port;
use crate::upstream::{UpstreamTls, upstream_client_config};

/// For one TCP connect, and for one TLS handshake.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// For all addresses together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A silent peer is asked this often, also between calls: xDS streams are quiet for hours.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// h2 closes connections that carry many small DATA frames per window, so the windows are generous.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// How the control plane proves itself.
#[derive(Debug, Clone)]
pub enum ControlPeer {
    /// By SPIFFE id: ours.
    Identity(PeerExpectation),
    /// By the DNS name or IP address that we connect to, under the roots of this trust domain: a foreign CA's server.
    HostName {
        /// Whose roots vouch for the server.
        trust_domain: String,
    },
}

impl ControlPeer {
    /// The Outrigger control plane of a trust domain.
    ///
    /// # Errors
    /// When that is not a trust domain's name.
    pub fn outrigger(trust_domain: &str) -> Result<Self, IdentityError> {
        let id: SpiffeId = crate::control_plane_id(trust_domain)
            .map_err(|error| IdentityError::bundle(trust_domain, error.to_string()))?;
        Ok(Self::Identity(PeerExpectation::Exactly(id)))
    }
}

/// Where the control plane is and how to trust it; makes channels.
#[derive(Clone)]
pub struct ControlPlane {
    shared: Arc<ChannelInner>,
}

struct ChannelInner {
    addresses: Vec<(String, u16)>,
    peer: ControlPeer,
    store: CredentialStore,
    endpoint: Endpoint,
    // The address that answered last is tried first.
    preferred: AtomicUsize,
}

impl ControlPlane {
    /// A control plane at `host:port` addresses, tried in order from the one that answered last.
    ///
    /// # Errors
    /// When there is no address, or one is not `host:port`.
    pub fn new<A: AsRef<str>>(
        addresses: &[A],
        peer: ControlPeer,
        store: CredentialStore,
    ) -> Result<Self, IdentityError> {
        let addresses = addresses
            .iter()
            .map(|address| {
                let (host, port) = split_host_port(address.as_ref()).ok_or_else(|| {
                    IdentityError::Control(format!(
                        "\"{}\" is not an address of the form host:port",
                        address.as_ref()
                    ))
                })?;
                Ok((host.to_owned(), port))
            })
            .collect::<Result<Vec<_>, IdentityError>>()?;
        let (host, port) =
            addresses.first().ok_or_else(|| IdentityError::Control("no address is configured".to_owned()))?;
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let endpoint = Endpoint::from_shared(format!("https://{authority}"))
            .map_err(|error| IdentityError::Control(format!("{authority}: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let shared = ChannelInner { addresses, peer, store, endpoint, preferred: AtomicUsize::new(0) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A new channel. It connects at its first call and again whenever the connection is lost. Call it inside a tokio
    /// runtime. A connection keeps the certificate that it began with; take a new channel to show a new one.
    pub fn channel(&self) -> Channel {
        self.open(true)
    }

    /// As [`ControlPlane::channel`], but without showing our certificate: for a caller with a token whose certificate
    /// is of no use, such as one of an authority that has since been replaced.
    pub fn anonymous_channel(&self) -> Channel {
        self.open(false)
    }

    fn open(&self, show_certificate: bool) -> Channel {
        let shared = self.shared.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let shared = shared.clone();
            async move { shared.connect(show_certificate).await.map(TokioIo::new) }
        });
        self.shared.endpoint.connect_with_connector_lazy(connector)
    }

    /// One authenticated connection with ALPN h2, for callers with an HTTP client of their own.
    ///
    /// # Errors
    /// When no address answers, or the peer is not the control plane; says why for each address.
    pub async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        self.shared.connect(true).await
    }
}

impl ChannelInner {
    async fn connect(&self, show_certificate: bool) -> io::Result<TlsStream<TcpStream>> {
        let config = self.tls_config(show_certificate).map_err(io::Error::other)?;
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for step in 0..self.addresses.len() {
            let index = (first + step) % self.addresses.len();
            let (host, port) = &self.addresses[index];
            match self.connect_to(host, *port, config.clone()).await {
                Ok(stream) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) => failures.push(format!("{host}:{port}: {error}")),
            }
        }
        Err(io::Error::other(failures.join("; ")))
    }

    fn tls_config(&self, show_certificate: bool) -> Result<Arc<ClientConfig>, IdentityError> {
        let current = self.store.load();
        // An expired certificate would only spoil the handshake; without one a token may still convince.
        let certificate = current.valid_certificate(SystemTime::now()).filter(|_| show_certificate).cloned();
        match &self.peer {
            ControlPeer::Identity(expected) => {
                let credentials = Credentials::new(certificate, current.bundle.clone());
                client_config(&credentials, expected.clone(), &[b"h2"])
            }
            ControlPeer::HostName { trust_domain } => upstream_client_config(&UpstreamTls {
                roots_pem: Some(current.bundle.to_pem(trust_domain)),
                client: certificate.map(|own| (own.chain_pem(), own.key_pem())),
                alpn: vec![b"h2".to_vec()],
                ..UpstreamTls::default()
            }),
        }
    }

    async fn connect_to(
        &self,
        host: &str,
        port: u16,
        config: Arc<ClientConfig>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "that is neither a DNS name nor an IP address")
        })?;
        let resolved = timeout(STEP_TIMEOUT, lookup_host((host, port)))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the name was not resolved in time"))??;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in resolved {
            let tcp = match timeout(STEP_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => tcp,
                Ok(Err(error)) => {
                    last = error;
                    continue;
                }
                Err(_) => {
                    last = io::Error::new(io::ErrorKind::TimedOut, "no answer to the TCP connect in 5 s");
                    continue;
                }
            };
            tcp.set_nodelay(true)?;
            let handshake = TlsConnector::from(config.clone()).connect(name.clone(), tcp);
            match timeout(STEP_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = explain(error),
                Err(_) => {
                    last = io::Error::new(io::ErrorKind::TimedOut, "no answer to the TLS handshake in 5 s")
                }
            }
        }
        Err(last)
    }
}

fn explain(error: io::Error) -> io::Error {
    match CertificateProblem::find(&error) {
        Some(problem) => io::Error::new(error.kind(), format!("the control plane is not trusted: {problem}")),
        None => error,
    }
}
