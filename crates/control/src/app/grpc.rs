//! gRPC over HTTP/2 with a deadline on every stage, for whoever may connect: xDS, certificate requests, OTLP.
//!
//! ```text
//! TLS handshake 10 s -> preface and first request 10 s -> answer's head 30 s -> ... -> idle 60 s -> GOAWAY
//!                       pings every 30 s, answered within 10 s
//! ```
//!
//! Between requests a connection costs its peer nothing, so it is not kept: a client that wants another opens one.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use outrigger_identity::PeerInfo;
use outrigger_telemetry::Drain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt;

use super::gate::Ticket;
use crate::xds_source::WITHOUT_CERTIFICATE;

/// From the end of the handshake to the first request: HTTP/2's preface, SETTINGS and HEADERS come in one flight.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Without any request.
const IDLE: Duration = Duration::from_secs(60);
/// For the head of an answer; a unary call has to bring its whole message by then. xDS answers at once and goes on.
const ANSWER: Duration = Duration::from_secs(30);
/// A silent peer is asked this often; xDS streams are quiet for hours.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// For what is under way when the listener stops or the connection is to end.
pub(super) const LINGER: Duration = Duration::from_secs(3);

/// What one connection may hold of our memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    stream_window: u32,
    connection_window: u32,
    streams: u32,
    /// Only calls of this service.
    only: Option<&'static str>,
}

impl Terms {
    /// With a certificate of somewhere else.
    pub(super) const FOREIGNER: Self = Self { only: None, ..Self::STRANGER };
    /// Without a certificate there is one thing to ask for: a certificate. A request for one has a few KiB.
    pub(super) const STRANGER: Self = Self {
        stream_window: 64 * 1024,
        connection_window: 128 * 1024,
        streams: 4,
        only: Some("/istio.v1.auth.IstioCertificateService/"),
    };
    /// A sidecar has one ADS stream and now and then a CSR. h2 closes connections that carry many small DATA frames per
    /// window, so the windows are generous.
    pub(super) const MEMBER: Self =
        Self { stream_window: 2 << 20, connection_window: 8 << 20, streams: 16, only: None };
    /// Exporters send batch after batch, one at a time.
    pub(super) const EXPORTER: Self =
        Self { stream_window: 256 * 1024, connection_window: 512 * 1024, streams: 16, only: None };
}

/// Requests under way on a connection.
#[derive(Default)]
struct Activity {
    active: AtomicUsize,
    /// Told at the beginning and at the end of each request.
    changed: Notify,
}

/// A request under way, to the end of its answer's body.
struct Active(Arc<Activity>);

impl Active {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.active.fetch_add(1, Ordering::Relaxed);
        activity.changed.notify_one();
        Self(activity.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

/// What is served, and how many calls of it at once over all connections.
#[derive(Clone)]
pub(super) struct Served {
    routes: Routes,
    calls: Arc<Semaphore>,
    patience: Duration,
    /// Of a listener where no certificate tells members from strangers: a good call does.
    ticket: Option<Arc<Ticket>>,
}

impl Served {
    /// As many calls as connections and streams allow.
    pub(super) fn new(routes: Routes) -> Self {
        let calls = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { routes: routes.prepare(), calls, patience: ANSWER, ticket: None }
    }

    /// So many calls at once, for what holds whole messages; each with less time to bring its own.
    pub(super) fn limited(routes: Routes, calls: usize, patience: Duration) -> Self {
        Self { routes: routes.prepare(), calls: Arc::new(Semaphore::new(calls)), patience, ticket: None }
    }

    /// The same for a connection that becomes a member with its first good call.
    pub(super) fn promoting(self, ticket: Arc<Ticket>) -> Self {
        Self { ticket: Some(ticket), ..self }
    }

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let called = async {
            let _place = self.calls.acquire().await;
            self.routes.oneshot(request).await
        };
        match tokio::time::timeout(self.patience, called).await {
            Ok(Ok(response)) => {
                // A refusal has its status in the head; a good answer's comes behind its messages.
                if let Some(ticket) = self.ticket.filter(|_| !response.headers().contains_key("grpc-status"))
                {
                    ticket.promote();
                }
                response.map(Body::new)
            }
            Ok(Err(error)) => Status::internal(error.to_string()).into_http(),
            Err(_) => Status::deadline_exceeded("the request did not arrive in time").into_http(),
        }
    }
}

/// Serves one connection to its end.
pub(super) async fn connection<I>(io: I, peer: PeerInfo, terms: Terms, served: Served, drain: Drain)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::default());
    let remote = peer.remote;
    let service = service_fn({
        let activity = activity.clone();
        move |request: Request<Incoming>| {
            let (active, served, peer) = (Active::begin(&activity), served.clone(), peer.clone());
            async move {
                let mut request = request.map(Body::new);
                let response = if terms.only.is_some_and(|only| !request.uri().path().starts_with(only)) {
                    Status::unauthenticated(WITHOUT_CERTIFICATE).into_http()
                } else {
                    request.extensions_mut().insert(peer);
                    served.answer(request).await
                };
                // The closure, and with it the count, lives as long as the body.
                let counted = response.map(|body| {
                    body.map_frame(move |frame| {
                        let _ = &active;
                        frame
                    })
                });
                Ok::<_, Infallible>(counted)
            }
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(KEEPALIVE_INTERVAL))
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .initial_stream_window_size(terms.stream_window)
        .initial_connection_window_size(terms.connection_window)
        .max_concurrent_streams(terms.streams)
        .max_header_list_size(16 * 1024)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%remote, %error, "a gRPC connection ended");
            }
            return;
        }
        () = drain.draining() => {}
        () = idle(&activity) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(LINGER, connection).await;
}

/// Resolves when the connection has been without a request for too long.
async fn idle(activity: &Activity) {
    let mut patience = FIRST_REQUEST;
    loop {
        let changed = activity.changed.notified();
        if activity.active.load(Ordering::Relaxed) == 0 {
            if tokio::time::timeout(patience, changed).await.is_err() {
                return;
            }
        } else {
            changed.await;
        }
        // The first change is the beginning of the first request.
        patience = IDLE;
    }
}

#[cfg(test)]
mod tests;
