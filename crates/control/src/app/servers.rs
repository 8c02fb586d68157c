//! Every listener of the control plane, bound before any of them serves.

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use outrigger_identity::accept::ClientAuth;
use outrigger_identity::{CertificateService, PeerInfo, TlsListener};
use outrigger_model::identity::SpiffeId;
use outrigger_telemetry::Drain;
use outrigger_telemetry::admin::AdminServer;
use outrigger_xds::server::AdsService;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpConnectInfo};

use super::{Addresses, Parts, api, http, readiness};
use crate::api::{router, same_site};
use crate::debug;
use crate::traces::{query, receive};
use crate::xds_source::XdsSource;

/// A silent peer is asked this often; xDS streams are quiet for hours.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// h2 closes connections that carry many small DATA frames per window, so the windows are generous.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// A client opens one ADS stream and now and then a CSR.
const STREAMS_PER_CONNECTION: u32 = 100;

async fn bind(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("{what} cannot listen on {address}: choose another address or stop what holds it")
    })
}

/// A socket that a dead control plane left behind is replaced, one that answers is not.
async fn bind_socket(path: &Path) -> anyhow::Result<UnixListener> {
    let shown = path.display();
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            bail!("the management socket {shown} is another kind of file; choose another path");
        }
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            bail!("another control plane answers on the management socket {shown}");
        }
        std::fs::remove_file(path)
            .with_context(|| format!("the old management socket {shown} cannot be removed"))?;
    }
    // Bound under a name that nobody knows in a directory of our own, closed to others, and only then given its name:
    // between bind and chmod a socket has the mode of the umask.
    let aside = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside)
        .with_context(|| format!("the management socket {} cannot be bound", aside.display()))?;
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&aside, path))
        .with_context(|| format!("the management socket {shown} cannot be given its mode and name"))?;
    Ok(listener)
}

/// Counts a server as active until it has ended.
fn spawn(tasks: &mut JoinSet<()>, drain: &Drain, server: impl Future<Output = ()> + Send + 'static) {
    let guard = drain.guard();
    tasks.spawn(async move {
        server.await;
        drop(guard);
    });
}

/// Binds everything, then serves; everything was loaded before, so whoever is answered gets the whole world.
pub(super) async fn start(parts: Parts, tasks: &mut JoinSet<()>) -> anyhow::Result<Addresses> {
    let settings = parts.settings.clone();
    let xds = bind(settings.xds_address, "xDS").await?;
    let plain = match &settings.plaintext_xds {
        Some(plain) => Some((bind(plain.address, "plaintext xDS").await?, plain.identity.clone())),
        None => None,
    };
    let management = bind_optional(settings.management_address, "the management API").await?;
    let otlp = bind_optional(settings.otlp_address, "the OTLP receiver").await?;
    let queries = bind_optional(settings.query_address, "the trace query API").await?;
    let socket = bind_socket(&settings.socket_path()).await?;
    let (drain, credentials) = (parts.drain.clone(), parts.credentials.clone());
    let (traces, registry, logs) = (parts.traces.clone(), parts.registry.clone(), parts.logs.clone());

    let source = XdsSource::new(
        parts.keeper.clone(),
        parts.board.clone(),
        parts.metrics.clone(),
        &settings.trust_domain,
    );
    let csr = CertificateService::new(parts.authority.clone(), Arc::new(parts.tokens.clone())).into_server();
    let mut addresses = Addresses {
        xds: xds.local_addr()?,
        plaintext_xds: plain.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?,
        management: management.as_ref().map(TcpListener::local_addr).transpose()?,
        metrics: settings.metrics_address,
        otlp: otlp.as_ref().map(TcpListener::local_addr).transpose()?,
        query: queries.as_ref().map(TcpListener::local_addr).transpose()?,
    };
    let (api, shared) = api(parts, settings.advertised(addresses.xds));
    let table = debug::table(&shared, registry, readiness(&drain), logs);
    let admin = AdminServer::bind(settings.metrics_address, table).await?;
    addresses.metrics = admin.local_addr();

    let tls = TlsListener::from_store(xds, credentials.clone(), &[b"h2"], ClientAuth::Optional);
    let ads = AdsService::server(Arc::new(source.clone()), peer_of);
    let server = grpc().add_service(ads).add_service(csr);
    let stop = drain.clone();
    spawn(tasks, &drain, async move {
        ended("xDS", server.serve_with_incoming_shutdown(tls, async move { stop.draining().await }).await);
    });
    if let Some((listener, identity)) = plain {
        tracing::warn!("xDS without TLS is open: whoever reaches that port can read the configuration");
        let ads = AdsService::server(Arc::new(source.plaintext(identity)), plain_peer_of);
        serve_plain(tasks, &drain, "plaintext xDS", grpc().add_service(ads), listener);
    }
    if let Some(listener) = otlp {
        let server = grpc().add_service(receive::Receiver::server(traces.clone()));
        serve_plain(tasks, &drain, "OTLP receiver", server, listener);
    }
    if let Some(listener) = management {
        let tls = TlsListener::from_store(listener, credentials, &[b"http/1.1"], ClientAuth::Optional);
        spawn(tasks, &drain, http::serve(tls, router(api.clone(), Some(traces.clone())), drain.clone()));
    }
    if let Some(listener) = queries {
        spawn(
            tasks,
            &drain,
            http::serve(listener, same_site(query::router(traces.clone()), &settings), drain.clone()),
        );
    }
    spawn(tasks, &drain, http::serve(socket, router(api, Some(traces)), drain.clone()));
    let stop = drain.clone();
    spawn(tasks, &drain, admin.serve(async move { stop.draining().await }));
    Ok(addresses)
}

async fn bind_optional(address: Option<SocketAddr>, what: &str) -> anyhow::Result<Option<TcpListener>> {
    match address {
        Some(address) => Ok(Some(bind(address, what).await?)),
        None => Ok(None),
    }
}

fn grpc() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .tcp_nodelay(true)
}

fn serve_plain(
    tasks: &mut JoinSet<()>,
    drain: &Drain,
    what: &'static str,
    server: Router,
    listener: TcpListener,
) {
    let stop = drain.clone();
    let incoming = TcpListenerStream::new(listener);
    spawn(tasks, drain, async move {
        ended(
            what,
            server.serve_with_incoming_shutdown(incoming, async move { stop.draining().await }).await,
        );
    });
}

fn ended(what: &str, result: Result<(), tonic::transport::Error>) {
    if let Err(error) = result {
        tracing::error!(%error, "{what} has stopped");
    }
}

/// The identity that the acceptor left; a certificate that has expired since the handshake does not count.
fn peer_of(extensions: &tonic::Extensions) -> (Option<SpiffeId>, Option<SocketAddr>) {
    let Some(peer) = extensions.get::<PeerInfo>() else { return (None, None) };
    let valid = peer.is_certificate_valid(SystemTime::now());
    (peer.identity.clone().filter(|_| valid), Some(peer.remote))
}

fn plain_peer_of(extensions: &tonic::Extensions) -> (Option<SpiffeId>, Option<SocketAddr>) {
    (None, extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr))
}
