//! One connection to an endpoint: TCP, mesh mTLS where the endpoint has a sidecar, TLS where a rule asks for it.
//!
//! Secure naming is here: the endpoint must prove the identity that the control plane named for it. Pools, retries and
//! what is spoken on the connection are others'.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_identity::{CertificateProblem, IdentityError, PeerExpectation};
use outrigger_model::cluster::Keepalive;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

use crate::descriptors::Descriptor;
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::intercept::APP_PRIORITY;
use crate::listen::make_transparent;
use crate::proof::Proof;
use crate::protocol::Protocol;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::{EndpointState, Reach};
use crate::runtime::limits::ConnectionPermit;
use crate::stream::{Peer, Stream, Tls, rtt};
use crate::upstream::way::Way;

/// A new connection.
pub struct Connected {
    pub stream: Stream,
    pub protocol: Protocol,
    /// Our address.
    pub local: SocketAddr,
    /// Who is there, over the mesh's mTLS.
    pub proof: Option<Rc<Proof>>,
    /// Held for the life of the connection.
    pub permit: Held,
}

/// What a connection holds while it lives.
#[must_use = "it counts only while it lives"]
pub struct Held {
    _connection: ConnectionPermit,
    _descriptor: Descriptor,
}

/// Istio's names first; never `istio-peer-exchange`, which begins a binary preface.
const ALPN_HTTP1: &[&[u8]] = &[b"istio-http/1.1", b"istio", b"http/1.1"];
const ALPN_HTTP2: &[&[u8]] = &[b"istio-h2", b"istio", b"h2"];
const ALPN_TCP: &[&[u8]] = &[b"istio"];

const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Connects to an endpoint, in its turn where connections are limited, or with a permit of its own.
///
/// # Errors
/// A limit is reached, nobody answers in time, or the peer is not whom we wanted.
pub async fn connect(
    way: &Way,
    cluster: &Arc<ClusterHandle>,
    endpoint: &Arc<EndpointState>,
    (want, permit): (Protocol, Option<ConnectionPermit>),
) -> Result<Connected, Failure> {
    if endpoint.reach == Reach::Network {
        way.loops.led(endpoint.address).map_err(|failure| failure.because_of(cluster.origin.clone()))?;
    }
    let config = &cluster.config;
    let until = Instant::now() + config.connect_timeout;
    // Also where there is no limit: one that comes later counts those that are there.
    let _connection = match permit {
        Some(permit) => permit,
        None => match timeout_at(until, cluster.limits.connection()).await {
            Ok(permit) => permit?,
            Err(_) => return Err(cluster.limits.waited_in_vain(config.connect_timeout)),
        },
    };
    let permit = Held { _connection, _descriptor: descriptor(way, cluster)? };
    let left = until.saturating_duration_since(Instant::now());
    let uses_tls = cluster.outside.is_some() || cluster.uses_mesh(endpoint);
    // Before the peer hears of us: it would wait for the ClientHello.
    let turn = if uses_tls { endpoint.turns().take(left).await } else { None };
    let deadline = Instant::now() + left;
    // In boxes, each for as long as it takes: many wait here at once in a burst.
    let attempt = Box::pin(dial(endpoint, way.mark));
    let tcp = match timeout_at(deadline, attempt).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(refused(cluster, endpoint, &error)),
        Err(_) => return Err(too_late(cluster, endpoint, "TCP connect")),
    };
    prepare(&tcp);
    if let Some(keepalive) = &config.keepalive {
        probe(&tcp, keepalive);
    }
    let local = tcp.local_addr().map_err(|error| refused(cluster, endpoint, &error))?;
    if !uses_tls {
        return Ok(Connected { stream: Stream::Tcp(tcp), protocol: want, local, proof: None, permit });
    }
    endpoint.turns().connected(|| rtt::of(&tcp));
    let late = |_| too_late(cluster, endpoint, "TLS handshake");
    // What changes during the handshake did not count in it.
    let (generation, trust) = (way.credentials.generation(), way.credentials.trust());
    let (tls, peer) = match &cluster.outside {
        Some(configs) => {
            let config = configs.wanting(want).clone();
            timeout_at(deadline, Box::pin(outside(cluster, endpoint, config, tcp))).await
        }
        None => timeout_at(deadline, Box::pin(handshake(way, cluster, endpoint, want, tcp))).await,
    }
    .map_err(late)??;
    if let Some(turn) = turn {
        turn.succeeded();
    }
    let protocol = negotiated(want, peer.alpn.as_deref());
    let in_mesh = cluster.outside.is_none();
    let proof = in_mesh.then(|| Proof::new(way.chains.intern(peer.certificates), generation, trust));
    Ok(Connected { stream: Stream::Tls(Box::new(tls)), protocol, local, proof, permit })
}

/// One of those that traffic may use: pooled connections that rest give way.
fn descriptor(way: &Way, cluster: &ClusterHandle) -> Result<Descriptor, Failure> {
    let descriptors = &way.descriptors;
    let free = descriptors.upstream().or_else(|| {
        way.make_room();
        descriptors.upstream()
    });
    free.ok_or_else(|| {
        let detail = format!(
            "cluster {}: no descriptor is left for a connection; raise the limit of open files (ulimit -n)",
            cluster.name
        );
        let failure = Failure::local(Stage::Connect, FailureKind::Overload, detail);
        Failure { retry: Retry::Safe, ..failure }
    })
}

/// TCP, as the rules of interception are to see it.
async fn dial(endpoint: &EndpointState, mark: u32) -> io::Result<TcpStream> {
    if endpoint.reach == Reach::Network {
        return TcpStream::connect(endpoint.address).await;
    }
    let socket = if endpoint.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    tell_apart(&SockRef::from(&socket), endpoint, mark)?;
    socket.connect(endpoint.address).await
}

/// The rules know a connection to the application by its priority, and one in the client's name by its mark.
#[cfg(target_os = "linux")]
fn tell_apart(socket: &Socket, endpoint: &EndpointState, mark: u32) -> io::Result<()> {
    socket.set_priority(APP_PRIORITY)?;
    if let Reach::AppFrom(client) = endpoint.reach {
        socket.set_mark(mark)?;
        make_transparent(socket, endpoint.address)?;
        socket.bind(&SocketAddr::new(client, 0).into())?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn tell_apart(_: &Socket, _: &EndpointState, _: u32) -> io::Result<()> {
    Ok(())
}

/// Options of every socket of the data path.
pub fn prepare(tcp: &TcpStream) {
    // Without either the connection still works, so a failure is only worth a word.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    let set = tcp.set_nodelay(true).and_then(|()| SockRef::from(tcp).set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        tracing::debug!(%error, "socket options");
    }
}

/// Probes as the cluster has them; what it does not say stays as it is.
#[cold]
fn probe(tcp: &TcpStream, wanted: &Keepalive) {
    // What the kernel takes: another control plane may send more.
    let seconds = |wanted: Option<u32>, own: Duration| {
        wanted.map_or(own, |seconds| Duration::from_secs(seconds.clamp(1, 32_767).into()))
    };
    let keepalive = TcpKeepalive::new()
        .with_time(seconds(wanted.time, KEEPALIVE_IDLE))
        .with_interval(seconds(wanted.interval, KEEPALIVE_INTERVAL));
    let keepalive = match wanted.probes {
        Some(probes) => keepalive.with_retries(probes.clamp(1, 127)),
        None => keepalive,
    };
    if let Err(error) = SockRef::from(tcp).set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "socket options");
    }
}

async fn handshake(
    way: &Way,
    cluster: &ClusterHandle,
    endpoint: &EndpointState,
    want: Protocol,
    tcp: TcpStream,
) -> Result<(Tls, Peer), Failure> {
    let expected = expectation(way, cluster, endpoint)?;
    let alpn = match want {
        Protocol::Http1 => ALPN_HTTP1,
        Protocol::Http2 => ALPN_HTTP2,
        Protocol::Tcp => ALPN_TCP,
    };
    let config = way.tls.borrow_mut().connect(&expected, alpn).map_err(|error| no_tls(cluster, &error))?;
    let name = server_name(cluster)?;
    let connected = Tls::connect(config, name, tcp).await;
    connected.map_err(|error| untrusted(cluster, endpoint, &expected, &error))
}

/// The handshake with a server outside the mesh.
async fn outside(
    cluster: &ClusterHandle,
    endpoint: &EndpointState,
    config: Arc<ClientConfig>,
    tcp: TcpStream,
) -> Result<(Tls, Peer), Failure> {
    let name = server_name(cluster)?;
    Tls::connect(config, name, tcp).await.map_err(|error| {
        let detail =
            format!("{} of cluster {}: the TLS handshake failed: {error}", endpoint.address, cluster.name);
        Failure::upstream(Stage::Connect, FailureKind::TlsFailed, Retry::Safe, detail)
            .because_of(cluster.origin.clone())
    })
}

fn server_name(cluster: &ClusterHandle) -> Result<ServerName<'static>, Failure> {
    cluster.server_name.clone().ok_or_else(|| {
        let detail = format!("cluster {} has TLS without a server name", cluster.name);
        Failure::local(Stage::Connect, FailureKind::TlsFailed, detail)
    })
}

fn expectation(
    way: &Way,
    cluster: &ClusterHandle,
    endpoint: &EndpointState,
) -> Result<PeerExpectation, Failure> {
    if let Some(id) = &endpoint.identity {
        return Ok(PeerExpectation::Exactly(id.clone()));
    }
    if let Some(expected) = &cluster.expected {
        return Ok(expected.clone());
    }
    let mut tls = way.tls.borrow_mut();
    let own = tls.credentials().certificate.as_ref();
    let own = own.ok_or_else(|| no_tls(cluster, &IdentityError::NoCertificate))?;
    Ok(PeerExpectation::TrustDomain(own.id().trust_domain().to_owned()))
}

/// The peer's answer decides; `istio` alone, or no answer, leaves it at what we wanted.
fn negotiated(want: Protocol, alpn: Option<&[u8]>) -> Protocol {
    match alpn {
        Some(b"h2" | b"istio-h2") => Protocol::Http2,
        Some(b"http/1.1" | b"istio-http/1.1") => Protocol::Http1,
        _ => want,
    }
}

fn refused(cluster: &ClusterHandle, endpoint: &EndpointState, error: &io::Error) -> Failure {
    let detail = format!("{} of cluster {}: {error}", endpoint.address, cluster.name);
    // Out of descriptors or ports is ours, not the endpoint's.
    let ours = matches!(error.raw_os_error(), Some(libc_errno::EMFILE | libc_errno::ENFILE));
    if ours || error.kind() == io::ErrorKind::AddrNotAvailable {
        let failure = Failure::local(Stage::Connect, FailureKind::Internal, detail);
        return Failure { retry: Retry::Safe, ..failure };
    }
    let kind = match error.kind() {
        io::ErrorKind::ConnectionRefused => FailureKind::ConnectRefused,
        _ => FailureKind::ConnectFailed,
    };
    Failure::upstream(Stage::Connect, kind, Retry::Safe, detail)
}

/// The two numbers that Linux and the BSDs share.
pub(crate) mod libc_errno {
    pub(crate) const ENFILE: i32 = 23;
    pub(crate) const EMFILE: i32 = 24;
}

fn too_late(cluster: &ClusterHandle, endpoint: &EndpointState, step: &str) -> Failure {
    let limit = cluster.config.connect_timeout;
    let detail =
        format!("{} of cluster {}: {step} not finished within {limit:?}", endpoint.address, cluster.name);
    Failure::upstream(Stage::Connect, FailureKind::ConnectTimeout, Retry::Safe, detail)
}

fn no_tls(cluster: &ClusterHandle, error: &IdentityError) -> Failure {
    let detail = format!("cluster {}: {error}", cluster.name);
    Failure { retry: Retry::Safe, ..Failure::local(Stage::Connect, FailureKind::TlsFailed, detail) }
}

/// Names both identities, whom we wanted and who answered.
fn untrusted(
    cluster: &ClusterHandle,
    endpoint: &EndpointState,
    expected: &PeerExpectation,
    error: &io::Error,
) -> Failure {
    let reason = match CertificateProblem::find(error) {
        Some(problem @ CertificateProblem::WrongIdentity { .. }) => problem.to_string(),
        Some(problem) => format!("expected {expected}, but {problem}"),
        None => format!("expected {expected}, and the TLS handshake failed: {error}"),
    };
    let detail = format!("{} of cluster {}: {reason}", endpoint.address, cluster.name);
    Failure::upstream(Stage::Connect, FailureKind::TlsFailed, Retry::Safe, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "local")]
    async fn probes_are_the_clusters_and_else_our_own() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&tcp);
        let set = || {
            let socket = SockRef::from(&tcp);
            let seconds = |time: Duration| time.as_secs();
            let times = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
            (seconds(times.0), seconds(times.1), socket.tcp_keepalive_retries().unwrap())
        };
        let own = set();
        assert_eq!((own.0, own.1), (60, 15));
        probe(&tcp, &Keepalive { probes: Some(3), time: Some(7), interval: None });
        assert_eq!(set(), (7, 15, 3));
        probe(&tcp, &Keepalive { probes: Some(1000), time: None, interval: Some(u32::MAX) });
        assert_eq!(set(), (60, 32_767, 127));
    }

    #[test]
    fn the_peers_answer_decides_what_is_spoken() {
        assert_eq!(negotiated(Protocol::Http1, Some(b"istio-h2")), Protocol::Http2);
        assert_eq!(negotiated(Protocol::Http2, Some(b"http/1.1")), Protocol::Http1);
        assert_eq!(negotiated(Protocol::Http2, Some(b"istio")), Protocol::Http2);
        assert_eq!(negotiated(Protocol::Tcp, None), Protocol::Tcp);
    }
}
