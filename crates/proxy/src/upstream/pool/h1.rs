//! One upstream HTTP/1 connection: its two halves, its parser, and what it was made for.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use tokio::time::Instant;

use super::{Counted, Fit, Place, TURN};
use crate::http::body::H1Body;
use crate::http::h1::{Limits, MAX_HEAD, ResponseParser};
use crate::http::send::H1Sender;
use crate::http::wire;
use crate::metrics::ClusterCells;
use crate::proof::Proof;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::EndpointState;
use crate::upstream::connect::{Connected, Held};
use crate::upstream::way::Way;

/// A connection with both of its halves at home.
pub struct H1Conn {
    pub reader: Box<H1Body>,
    pub writer: Box<H1Sender>,
    pub meta: Box<Meta>,
}

/// What stays together while the halves are out.
pub struct Meta {
    pub parser: ResponseParser,
    pub local: Option<SocketAddr>,
    /// Requests that it has served, the current one included.
    pub requests: u32,
    place: Place,
    fit: Fit,
    idle_since: Instant,
    begun: Instant,
    counted: Counted,
    _permit: Held,
}

impl Meta {
    /// Who is there, over the mesh's mTLS.
    #[inline]
    pub fn proof(&self) -> Option<&Rc<Proof>> {
        self.fit.proof.as_ref()
    }
}

impl H1Conn {
    pub(super) fn new(way: &Way, connected: Connected, fit: Fit, endpoint: &EndpointState) -> Self {
        let (incoming, outgoing) = wire::split(connected.stream, &way.buffers);
        let limits = Limits::heads(MAX_HEAD, fit.mesh);
        let counted = Counted::new(way.metrics.cluster(&fit.cluster.name));
        let meta = Meta {
            parser: ResponseParser::new(limits),
            local: Some(connected.local),
            requests: 0,
            place: Place::of(&fit.cluster, endpoint),
            fit,
            idle_since: Instant::now(),
            begun: Instant::now(),
            counted,
            _permit: connected.permit,
        };
        let reader = H1Body::new(incoming, limits);
        Self { reader, writer: H1Sender::new(outgoing), meta: Box::new(meta) }
    }

    /// Where its cluster is counted.
    pub fn cells(&self) -> &Arc<ClusterCells> {
        &self.meta.counted.0
    }

    pub(super) fn place(&self) -> Place {
        self.meta.place
    }

    pub(super) fn cluster(&self) -> &Arc<ClusterHandle> {
        &self.meta.fit.cluster
    }

    pub(super) fn suits(
        &self,
        way: &Way,
        cluster: &Arc<ClusterHandle>,
        endpoint: &EndpointState,
        now: Instant,
    ) -> bool {
        self.meta.fit.suits(way, cluster, endpoint) && !self.is_too_old(now)
    }

    /// Whether nothing came while it was idle: neither the end nor bytes that nobody asked for. Costs a system call only
    /// if something did.
    pub(super) fn is_alive(&mut self) -> bool {
        let incoming = &mut self.reader.incoming;
        // News may be TLS's own: then a read finds nothing.
        !incoming.has_news()
            || (incoming.buf.is_empty()
                && incoming.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending())
    }

    pub(super) fn is_spent(&self, now: Instant) -> bool {
        let most = self.meta.fit.cluster.config.max_requests_per_connection;
        (most > 0 && self.meta.requests >= most) || self.meta.fit.is_aged(self.meta.begun, now)
    }

    /// It has been idle for too long, or there for too long.
    pub(super) fn is_too_old(&self, now: Instant) -> bool {
        let idle = self.meta.fit.cluster.config.idle_timeout;
        (!idle.is_zero() && self.meta.idle_since.checked_add(idle).is_some_and(|end| now >= end))
            || self.meta.fit.is_aged(self.meta.begun, now)
    }

    /// Whether it has served for as long as one may while others wait.
    pub(super) fn had_its_turn(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.meta.begun) >= TURN
    }

    pub(super) fn rest(&mut self, now: Instant) {
        self.meta.idle_since = now;
    }
}
