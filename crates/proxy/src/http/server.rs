//! Downstream connections that speak HTTP: entry from `conn`, one task each.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::conn::HttpConn;
use crate::downstream::ConnInfo;
use crate::protocol::HttpVersion;
use crate::runtime::snapshot::HttpHandle;
use crate::stream::Stream;
use crate::worker::Worker;

pub mod h1;
pub mod h2;

/// A connection that drains is given this long to send another request before it counts as idle.
const DRAIN_IDLE: Duration = Duration::from_secs(2);

/// Serves a connection to its end.
pub async fn serve(
    worker: Rc<Worker>,
    stream: Stream,
    http: Arc<HttpHandle>,
    info: Rc<ConnInfo>,
    version: HttpVersion,
) {
    let conn = Rc::new(HttpConn::new(worker, info, http));
    match version {
        HttpVersion::Http1 => h1::serve(&conn, stream).await,
        HttpVersion::Http2 => Box::pin(h2::serve(&conn, stream)).await,
    }
}

#[cfg(test)]
pub mod tests;
