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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::app::gate::{Gate, Limits, Source};

    /// A connection to a page that is never answered, and one that is; when it ends.
    fn open() -> (tokio::io::DuplexStream, tokio::task::JoinHandle<Duration>) {
        let (client, server) = duplex(64 * 1024);
        let router = Router::new()
            .route("/", get(|| async { "yes" }))
            .route("/never", get(std::future::pending::<()>));
        let channel = Channel::Socket { user: "tester".into() };
        let limits = Limits { members: 4, members_per_source: 4, strangers: 4, strangers_per_source: 4 };
        let gate = Gate::new(limits, Arc::new(|_| false));
        let ticket = Arc::new(gate.admit(Source::User(0)));
        let begun = Instant::now();
        let served = tokio::spawn(async move {
            connection(server, channel, ticket, router, Drain::new()).await;
            begun.elapsed()
        });
        (client, served)
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_half_a_head_or_nothing_more_is_not_waited_for() {
        for said in
            ["", "GET / HT", "GET / HTTP/1.1\r\nhost: a\r\nx-a: b", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"]
        {
            let (mut client, served) = open();
            client.write_all(said.as_bytes()).await.unwrap();
            let lasted = served.await.unwrap();
            assert!((HEAD_TIMEOUT..HEAD_TIMEOUT + LINGER * 2).contains(&lasted), "{said:?}: {lasted:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_however_busy_it_is() {
        let (mut client, served) = open();
        let asking = tokio::spawn(async move {
            let mut heard = [0; 1024];
            while client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.is_ok() {
                match client.read(&mut heard).await {
                    Ok(1..) => tokio::time::sleep(Duration::from_secs(10)).await,
                    _ => return,
                }
            }
        });
        let (mut waits, ends_too) = open();
        waits.write_all(b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        for served in [served, ends_too] {
            let lasted = served.await.unwrap();
            assert!(
                (CONNECTION_AGE..CONNECTION_AGE + Duration::from_secs(20)).contains(&lasted),
                "{lasted:?}"
            );
        }
        asking.await.unwrap();
    }
}
