//! Serves an axum router on whatever accepts: unix socket, TLS, plain TCP. Heads and connections are limited, so that slow
//! or silent clients cost a bounded amount.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_identity::TlsListener;
use outrigger_telemetry::Drain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::api::Channel;

/// Connections of one listener.
const CONNECTIONS: usize = 256;
/// For the head of a request, idle time before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// For a whole connection; the longest wait of a request is 10 minutes.
const CONNECTION_AGE: Duration = Duration::from_secs(900);
/// After an accept error such as EMFILE.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// For requests under way when the listener stops.
const LINGER: Duration = Duration::from_secs(1);

/// What a listener yields.
pub(super) trait Accept: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn accept(&mut self) -> impl Future<Output = std::io::Result<(Self::Io, Channel)>> + Send;
}

impl Accept for UnixListener {
    type Io = tokio::net::UnixStream;
    async fn accept(&mut self) -> std::io::Result<(Self::Io, Channel)> {
        let (stream, _) = Self::accept(self).await?;
        Ok((stream, Channel::Socket))
    }
}

impl Accept for TlsListener {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    async fn accept(&mut self) -> std::io::Result<(Self::Io, Channel)> {
        let (stream, peer) = Self::accept(self).await;
        Ok((stream, Channel::Tls { identity: peer.identity, not_after: peer.not_after, remote: peer.remote }))
    }
}

/// Without TLS nobody is anybody; the query API does not ask.
impl Accept for TcpListener {
    type Io = tokio::net::TcpStream;
    async fn accept(&mut self) -> std::io::Result<(Self::Io, Channel)> {
        let (stream, remote) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((stream, Channel::Tls { identity: None, not_after: None, remote }))
    }
}

/// Serves until the drain begins.
pub(super) async fn serve<L: Accept>(mut listener: L, router: Router, drain: Drain) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = drain.draining() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&mut listener, &permits) => accepted,
        };
        match accepted {
            Ok((io, channel, permit)) => {
                let (router, drain) = (router.clone(), drain.clone());
                connections.spawn(async move {
                    connection(io, channel, router, drain).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the management API cannot accept; going on in 50 ms");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // What is left is cut when the set is dropped.
    let _ = tokio::time::timeout(LINGER, all).await;
}

async fn accept<L: Accept>(
    listener: &mut L,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(L::Io, Channel, tokio::sync::OwnedSemaphorePermit)> {
    // The permit first: what is over the limit waits in the kernel's queue.
    let permit = permits.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (io, channel) = listener.accept().await?;
    Ok((io, channel, permit))
}

async fn connection<I>(io: I, channel: Channel, router: Router, drain: Drain)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (router, channel) = (router.clone(), channel.clone());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(channel);
            let response = router.oneshot(request).await;
            Ok::<_, Infallible>(response.unwrap_or_else(|never| match never {}))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a management connection ended");
            }
            return;
        }
        () = drain.draining() => {}
        () = tokio::time::sleep(CONNECTION_AGE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(LINGER, connection).await;
}
