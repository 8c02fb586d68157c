//! TLS on the accepting side of a server of ours: [`Handshaker`] for whoever accepts and counts connections itself,
//! [`TlsListener`] as a stream for tonic.
//!
//! Bounded: so many handshakes at once, each for so long. No accept error ends the loop, no failed handshake is fatal.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use outrigger_model::identity::SpiffeId;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::accept::ClientAuth;
use crate::cert::validity_of;
use crate::credentials::CredentialStore;
use crate::distrust::distrusted;
use crate::error::{CertificateProblem, IdentityError};
use crate::verify::peer_identity;
use crate::worker::AcceptConfigs;

/// A client that has not finished its handshake by then is gone or means harm.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at once; further connections wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 512;
/// After an accept error such as EMFILE: retrying at once would only burn the CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is on the other side of an accepted connection; found in the request extensions of tonic's handlers.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The identity of its verified certificate; `None` when it showed none.
    pub identity: Option<SpiffeId>,
    /// Where it connected from.
    pub remote: SocketAddr,
    /// When its certificate ends.
    pub not_after: Option<SystemTime>,
}

impl PeerInfo {
    /// Whether the certificate of the handshake is still valid: connections outlive certificates.
    pub fn is_certificate_valid(&self, now: SystemTime) -> bool {
        self.identity.is_some() && self.not_after.is_some_and(|end| now <= end)
    }
}

type ConfigSource = dyn FnMut() -> Result<Arc<ServerConfig>, IdentityError> + Send;
type Handshaken = Result<(TlsStream<TcpStream>, PeerInfo), Refused>;

/// A connection that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Where it came from.
    pub remote: SocketAddr,
    /// Why, as far as we know; a peer's alert in rustls' words.
    pub reason: String,
    /// One side did not like the other's certificate: what an operator wants to know, and no port scanner causes.
    pub of_certificates: bool,
}

impl Refused {
    fn new(remote: SocketAddr, reason: impl Into<String>) -> Self {
        Self { remote, reason: reason.into(), of_certificates: false }
    }

    fn failed(remote: SocketAddr, error: &io::Error) -> Self {
        if let Some(problem) = CertificateProblem::find(error) {
            return Self { of_certificates: true, ..Self::new(remote, problem.to_string()) };
        }
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::AlertReceived(alert)) => Self {
                of_certificates: true,
                ..Self::new(
                    remote,
                    format!(
                        "it refuses our certificate ({alert:?}): it trusts another authority, or a clock is wrong"
                    ),
                )
            },
            Some(rustls::Error::InvalidCertificate(_)) => {
                Self { of_certificates: true, ..Self::new(remote, error.to_string()) }
            }
            _ => Self::new(remote, error.to_string()),
        }
    }
}

/// Shakes hands on accepted connections, each with the configuration of its moment and within a time.
pub struct Handshaker {
    config: Box<ConfigSource>,
}

impl Handshaker {
    /// Asks `config` for the configuration of each new connection, so that rotation needs nothing further.
    pub fn new(config: impl FnMut() -> Result<Arc<ServerConfig>, IdentityError> + Send + 'static) -> Self {
        Self { config: Box::new(config) }
    }

    /// The usual source: this store's current certificate, with this ALPN list.
    pub fn from_store(store: CredentialStore, alpn: &'static [&'static [u8]], auth: ClientAuth) -> Self {
        let mut configs = AcceptConfigs::default();
        Self::new(move || configs.find_or_build(&store.load(), alpn, auth))
    }

    /// The handshake of a connection.
    pub fn shake(
        &mut self,
        tcp: TcpStream,
        remote: SocketAddr,
    ) -> impl Future<Output = Handshaken> + Send + use<> {
        let config = (self.config)();
        async move {
            let config =
                config.map_err(|error| Refused::new(remote, format!("no TLS configuration: {error}")))?;
            let handshake = async {
                tcp.set_nodelay(true)?;
                TlsAcceptor::from(config).accept(tcp).await
            };
            match timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => {
                    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
                    let info = peer_info(shown, remote);
                    Ok((stream, info))
                }
                Ok(Err(error)) => Err(Refused::failed(remote, &error)),
                Err(_) => Err(Refused::new(remote, "the TLS handshake was not finished within 10 s")),
            }
        }
    }
}

/// A TCP listener that yields connections after their TLS handshake.
pub struct TlsListener {
    tcp: TcpListener,
    handshaker: Handshaker,
    /// Whose trust connections for tonic need all along.
    store: CredentialStore,
    handshakes: JoinSet<Handshaken>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl TlsListener {
    /// Shakes hands with this store's current certificate and this ALPN list.
    pub fn from_store(
        tcp: TcpListener,
        store: CredentialStore,
        alpn: &'static [&'static [u8]],
        auth: ClientAuth,
    ) -> Self {
        let handshaker = Handshaker::from_store(store.clone(), alpn, auth);
        Self { tcp, handshaker, store, handshakes: JoinSet::new(), pause: None }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next connection whose handshake is done. Cancel-safe: handshakes under way go on.
    pub async fn accept(&mut self) -> (TlsStream<TcpStream>, PeerInfo) {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<(TlsStream<TcpStream>, PeerInfo)> {
        loop {
            // Finished handshakes first: that frees room for new ones.
            while let Poll::Ready(Some(joined)) = self.handshakes.poll_join_next(cx) {
                match joined {
                    Ok(Ok(connection)) => return Poll::Ready(connection),
                    // Anybody can cause these, so they are not warnings.
                    Ok(Err(Refused { remote, reason, .. })) => {
                        tracing::info!(%remote, reason, "TLS handshake failed");
                    }
                    Err(_) => {}
                }
            }
            if self.handshakes.len() >= MAX_HANDSHAKES {
                return Poll::Pending; // woken by the next handshake to finish
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.tcp.poll_accept(cx)) {
                Ok((tcp, remote)) => drop(self.handshakes.spawn(self.handshaker.shake(tcp, remote))),
                Err(error) => {
                    tracing::warn!(%error, "accept failed; going on in 50 ms");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

fn peer_info(certificates: &[CertificateDer<'_>], remote: SocketAddr) -> PeerInfo {
    let identity = peer_identity(certificates).ok();
    let not_after = certificates.first().and_then(validity_of).map(|(_, end)| end);
    PeerInfo { identity, remote, not_after }
}

impl Stream for TlsListener {
    type Item = io::Result<PeerStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let (stream, info) = ready!(this.poll_accept(cx));
        let shown = stream
            .get_ref()
            .1
            .peer_certificates()
            .map(|all| all.iter().cloned().map(CertificateDer::into_owned).collect());
        let distrust = shown.map(|shown| Box::pin(distrusted(this.store.clone(), shown)) as Pin<Box<_>>);
        Poll::Ready(Some(Ok(PeerStream { stream, info, distrust })))
    }
}

/// A connection for tonic's `serve_with_incoming`, which carries its peer's identity into every request.
pub struct PeerStream {
    stream: TlsStream<TcpStream>,
    info: PeerInfo,
    /// Ends the connection.
    distrust: Option<Pin<Box<dyn Future<Output = CertificateProblem> + Send>>>,
}

impl Connected for PeerStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(distrust) = &mut self.distrust
            && let Poll::Ready(problem) = distrust.as_mut().poll(cx)
        {
            tracing::warn!(remote = %self.info.remote, reason = %problem, "connection ended");
            self.distrust = None;
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, problem)));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
