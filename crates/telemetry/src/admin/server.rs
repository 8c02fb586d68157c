//! The HTTP/1 server under the table: one task per connection on the control runtime, everything limited.
//!
//! Health checkers and scrapers ask here, so a crowd of slow clients must not keep them out: headers and bodies have deadlines,
//! a connection has a longest life, and at the limit of connections one that is silent makes room, or the newcomer is refused at once
//! with a 503 instead of left waiting.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::listen;
use crate::logging::Throttle;

use super::crowd::{Crowd, Place};
use super::endpoint::{AdminRequest, AdminResponse};
use super::table::{Table, parse_query};

/// What one admin port allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. Default 64.
    pub connections: usize,
    /// Bytes of a request body. Default 1 MiB.
    pub body: usize,
    /// Time for the head of a request, idle time before it included. Default 5 s.
    pub header_timeout: Duration,
    /// Time for the body of a request. Default 10 s.
    pub body_timeout: Duration,
    /// Time for a handler. Default 30 s.
    pub handler_timeout: Duration,
    /// Life of a connection. Default 5 min.
    pub connection_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            body: 1 << 20,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            handler_timeout: Duration::from_secs(30),
            connection_age: Duration::from_secs(300),
        }
    }
}

static FAILED: Throttle = Throttle::new();

/// How long requests under way may take after the server was told to stop.
const LINGER: Duration = Duration::from_secs(1);

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nconnection: close\r\n\
    content-length: 44\r\n\r\nToo many admin connections; try again later\n";

/// Why the admin server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be bound.
    #[error("admin server cannot listen on {addr}: {source}; choose another address or stop what holds it")]
    Bind {
        /// What was asked for.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// A bound admin server that does not serve yet.
pub struct AdminServer {
    listener: TcpListener,
    addr: SocketAddr,
    table: Arc<Table>,
    limits: Limits,
}

impl AdminServer {
    /// Binds; port 0 takes a free one, see [`AdminServer::local_addr`]. `[::]` is both families.
    pub fn bind(addr: SocketAddr, table: Table) -> Result<Self, AdminError> {
        let listener = listen::bind(addr).map_err(|source| AdminError::Bind { addr, source })?;
        let addr = listener.local_addr().map_err(|source| AdminError::Bind { addr, source })?;
        Ok(Self { listener, addr, table: Arc::new(table), limits: Limits::default() })
    }

    /// The same with other limits.
    #[cfg(test)]
    pub(super) fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The address that was really bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop` resolves; requests under way then have a second to end.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send) {
        let crowd = Crowd::new(self.limits.connections);
        let (stopping, stopped) = watch::channel(());
        let mut connections = JoinSet::new();
        let mut stop = pin!(stop);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stop => break,
                // Finished tasks are collected, or the set would grow with every connection.
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = listen::accept(&self.listener) => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(suppressed) = FAILED.admit() {
                        tracing::warn!(suppressed, "admin server on {} cannot accept: {error}", self.addr);
                    }
                    // Usually no file descriptor is free: without a pause this would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match crowd.admit(peer.ip()) {
                Some(place) => {
                    let (table, limits, stopped) = (self.table.clone(), self.limits, stopped.clone());
                    connections.spawn(serve_connection(stream, (peer, place), table, limits, stopped));
                }
                None => refuse(stream),
            }
        }
        drop(self.listener);
        drop(stopping);
        let all = async { while connections.join_next().await.is_some() {} };
        // What is left after that is cut when the set is dropped.
        let _ = timeout(LINGER, all).await;
    }
}

/// A fresh socket's send buffer takes this much; a peer that does not get it sees the close.
fn refuse(stream: TcpStream) {
    let _ = stream.try_write(FULL);
}

async fn serve_connection(
    stream: TcpStream,
    (peer, place): (SocketAddr, Place),
    table: Arc<Table>,
    limits: Limits,
    mut stopped: watch::Receiver<()>,
) {
    // Held while a patient row is asked.
    let patience = Arc::new(Mutex::new(()));
    let held = patience.clone();
    let place = Arc::new(place);
    let asked = place.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (table, patience, asked) = (table.clone(), patience.clone(), asked.clone());
        async move {
            let answer = answer(request, (peer, &asked), &table, limits, &patience).await;
            asked.is_asked(false);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return log_end(peer, ended),
        () = place.lost() => return,
        // The sender is never used, only dropped: that is the signal.
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
        () = tokio::time::sleep(limits.connection_age) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => return log_end(peer, ended),
                _ = stopped.changed() => {}
                _ = held.lock() => {}
            }
        }
    }
    if let Ok(ended) = timeout(LINGER, connection).await {
        log_end(peer, ended);
    }
}

fn log_end(peer: SocketAddr, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!("admin connection from {peer} ended: {error}");
    }
}

async fn answer(
    request: Request<Incoming>,
    (peer, place): (SocketAddr, &Place),
    table: &Table,
    limits: Limits,
    patience: &Mutex<()>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let response = match read_body(body, limits).await {
        Ok(body) => {
            place.is_asked(true);
            let request = AdminRequest {
                method: head.method,
                path: head.uri.path().to_owned(),
                tail: String::new(),
                query: parse_query(head.uri.query().unwrap_or_default()),
                headers: head.headers,
                body,
                peer,
            };
            if let Some(refusal) = table.refuse(&head.uri, &request) {
                return respond(refusal);
            }
            if table.is_patient(&request) {
                let _held = patience.lock().await;
                return respond(table.answer(request).await);
            }
            let path = request.path.clone();
            timeout(limits.handler_timeout, table.answer(request)).await.unwrap_or_else(|_| {
                let text = format!("{path} had no answer within {:?}.\n", limits.handler_timeout);
                AdminResponse::status(StatusCode::GATEWAY_TIMEOUT, text)
            })
        }
        Err(refusal) => refusal,
    };
    respond(response)
}

fn respond(response: AdminResponse) -> Response<Full<Bytes>> {
    let mut out = Response::new(Full::new(response.body));
    *out.status_mut() = response.status;
    *out.headers_mut() = response.headers;
    out
}

async fn read_body(body: Incoming, limits: Limits) -> Result<Bytes, AdminResponse> {
    let collected = timeout(limits.body_timeout, Limited::new(body, limits.body).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("The body is larger than {} bytes.\n", limits.body);
            Err(AdminResponse::status(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Ok(Err(error)) => Err(AdminResponse::bad_request(format!("The body cannot be read: {error}\n"))),
        Err(_) => {
            let text = format!("The body did not arrive within {:?}.\n", limits.body_timeout);
            Err(AdminResponse::status(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}
