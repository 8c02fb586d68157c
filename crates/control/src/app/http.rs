//! HTTP/1 connections under an axum router: unix socket, TLS, plain TCP. Heads and connections are limited, so that slow or
//! silent clients cost a bounded amount.

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
use outrigger_telemetry::Drain;
use tokio::io::{AsyncRead, AsyncWrite};
use tower::ServiceExt;

use super::gate::Ticket;
use crate::api::Channel;

/// For the head of a request, idle time before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// For a whole connection; the longest wait of a request is 10 minutes.
const CONNECTION_AGE: Duration = Duration::from_secs(900);
/// For requests under way when the listener stops.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// Serves one connection to its end. Whoever is let in with a request is no stranger any more.
pub(super) async fn connection<I>(io: I, channel: Channel, ticket: Arc<Ticket>, router: Router, drain: Drain)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (router, channel, ticket) = (router.clone(), channel.clone(), ticket.clone());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(channel);
            request.extensions_mut().insert(ticket.clone());
            let response = router.oneshot(request).await.unwrap_or_else(|never| match never {});
            if !response.status().is_client_error() {
                ticket.promote();
            }
            Ok::<_, Infallible>(response)
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
