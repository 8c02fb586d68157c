//! Upstream HTTP/2 connections of one endpoint, shared by the requests of a worker.
//!
//! Another connection is made when all streams that the peer and the cluster allow are in use. All requests wait for the same attempt, or
//! where a connection takes only few of them for one of as many as they need; and for a stream that is free before.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::{Counted, Fit};
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::http::body::Body;
use crate::http::h1::{Limits, MAX_HEAD};
use crate::http::send::Sender;
use crate::http::turn::{self, Collecting, WriteTurn};
use crate::http::window::{self, MAX_STREAMS, Windows};
use crate::proof::Proof;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::EndpointState;
use crate::upstream::connect::Connected;
use crate::upstream::way::Way;

mod cancel;
mod dial;
mod room;

use cancel::Cancelled;
pub use dial::{Dial, Dialling, Outcome};
use room::{Place, Room};

/// Bytes of one stream that wait in the h2 crate. We send only within granted capacity, so this seldom binds.
pub const SEND_BUFFER: usize = 256 * 1024;

/// Small DATA frames that may wait, in bytes that they lack to 256. Behind each turn, which brings 64 KiB, they are taken out of there, by
/// those who send them on or by those who cannot ([`Body::gather`]). Those of streams that we have ended the h2 crate counts
/// for as long as the connection lives, though they wait nowhere: so there is room for 130,000 of them.
pub const DATA_FRAME_BUDGET: usize = 32 * 1024 * 1024;

/// Largest header list of a server that is no peer: such a response fits into HTTP/1, whatever its lines are.
const HEADER_LIST: u32 = 60 * 1024;

/// Streams that have ended and whose handles wait for the connection's next turn, at most.
const BURIED: usize = 4;

/// Streams that we have reset and whose late frames are known as such, for a second. Beyond them a late frame is answered by
/// one more reset, of which the h2 crate sends only so many in a connection's life.
const REMEMBERED: usize = 512;

struct Conn {
    sender: SendRequest<Bytes>,
    state: Rc<Known>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        // The connection ends when nobody holds any of its streams.
        self.state.retired.set(true);
        self.state.unbury();
    }
}

/// What is known of a connection.
pub struct Known {
    pub local: SocketAddr,
    fit: Fit,
    /// Its task has ended, or a GOAWAY came.
    closed: Cell<bool>,
    begun: Instant,
    /// The peer's SETTINGS have come.
    settled: Cell<bool>,
    settling: Notify,
    active: Cell<u32>,
    requests: Cell<u32>,
    idle_since: Cell<Instant>,
    /// The pool has forgotten it.
    retired: Cell<bool>,
    buried: RefCell<Vec<(Body, Sender)>>,
    cancelled: RefCell<Cancelled>,
    /// Of all connections to the endpoint.
    room: Rc<Room>,
}

impl Known {
    /// Who is there, over the mesh's mTLS.
    #[inline]
    pub fn proof(&self) -> Option<&Rc<Proof>> {
        self.fit.proof.as_ref()
    }

    /// It has lived as long as its cluster lets one; the clock is asked only where there is such a limit.
    fn is_aged(&self) -> bool {
        self.fit.cluster.config.max_connection_duration.is_some()
            && self.fit.is_aged(self.begun, Instant::now())
    }

    fn unbury(&self) {
        let mut buried = self.buried.borrow_mut();
        if !buried.is_empty() {
            buried.clear();
        }
    }

    /// It ended before anybody used it.
    pub(super) fn ended_unused(&self) -> bool {
        self.closed.get() && self.requests.get() == 0
    }

    /// Whether it takes another stream, of so many that are allowed, behind those who wait for one.
    fn has_room(&self, most: usize, ahead: usize) -> bool {
        // Those that the peer still believes to be open count, too.
        let open = self.active.get() as usize + self.cancelled.borrow().waiting();
        open + ahead < most.min(MAX_STREAMS as usize)
    }

    /// One turn of the connection's task.
    fn poll_turn(
        &self,
        cx: &mut Context<'_>,
        connection: &mut Connection<Collecting, Bytes>,
        turn: &WriteTurn,
        pings: &mut Pings,
    ) -> Poll<Result<(), h2::Error>> {
        pings.before(self, cx);
        self.unbury();
        let open = self.active.get() as usize;
        if pings.windows.follow(open, |size| connection.set_initial_window_size(size)).is_err() {
            // Dropping it would not say why, but this peer does not listen anyway.
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(connection).poll(cx);
        pings.behind(self, cx);
        // Pending or not, the next turn goes on with it.
        let _ = turn.poll_end(cx);
        polled
    }
}

/// What the task of a connection keeps.
struct Pings {
    ping: Option<PingPong>,
    windows: Windows,
    /// The first PING has left.
    pinged: bool,
}

impl Pings {
    /// SETTINGS are the peer's first frame: when our PING is answered they have come. Later ones pace the resets.
    fn before(&mut self, state: &Known, cx: &mut Context<'_>) {
        let Some(ping) = &mut self.ping else { return };
        if !state.settled.get() {
            self.pinged = self.pinged || ping.send_ping(Ping::opaque()).is_ok();
            if ping.poll_pong(cx).is_ready() {
                state.settled.set(true);
                state.settling.notify_waiters();
            }
            return;
        }
        let leave = state.cancelled.borrow_mut().next(ping, cx);
        state.room.freed(leave.len());
        drop(leave);
    }

    fn behind(&mut self, state: &Known, cx: &mut Context<'_>) {
        if let Some(ping) = self.ping.as_mut().filter(|_| state.settled.get()) {
            state.cancelled.borrow_mut().follow(ping, cx);
        }
    }
}

#[derive(Default)]
struct List {
    conns: RefCell<Vec<Conn>>,
    /// The attempts that are under way.
    dials: RefCell<Vec<Rc<Dial>>>,
    room: Rc<Room>,
}

/// The connections to one endpoint.
#[derive(Clone, Default)]
pub struct Siblings(Rc<List>);

/// A request's share of a connection.
pub struct H2Lease {
    pub sender: SendRequest<Bytes>,
    pub state: Rc<Known>,
    /// The connection has served requests before this one.
    pub reused: bool,
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        self.state.active.set(self.state.active.get().saturating_sub(1));
        self.state.idle_since.set(Instant::now());
        self.state.room.freed(1);
    }
}

impl H2Lease {
    fn new(conn: &Conn) -> Self {
        let state = &conn.state;
        state.active.set(state.active.get() + 1);
        let reused = state.requests.get() > 0;
        state.requests.set(state.requests.get() + 1);
        Self { sender: conn.sender.clone(), state: state.clone(), reused }
    }

    /// As if it had not been taken: whoever comes next is the first.
    pub(super) fn into_unused(self) -> Rc<Known> {
        self.state.requests.set(self.state.requests.get() - 1);
        self.state.clone()
    }

    /// The connection takes no more streams.
    pub fn condemn(&self) {
        self.state.closed.set(true);
    }

    /// The handles of a stream that has ended on both sides. Dropping them at once would wake the connection's task, for
    /// nothing: that is done in its next turn.
    pub fn bury(&self, body: Body, sender: Sender) {
        let mut buried = self.state.buried.borrow_mut();
        if !self.state.retired.get() && !self.state.closed.get() && buried.len() < BURIED {
            buried.push((body, sender));
        }
    }

    /// Nobody waits for this stream any more.
    pub fn cancel(&self, response: Option<ResponseFuture>, sender: Sender) {
        let now = match response {
            Some(response) => self.state.cancelled.borrow_mut().add((response, sender)),
            None => {
                self.state.cancelled.borrow_mut().count();
                return;
            }
        };
        drop(now);
    }

    /// Whether the peer takes extended CONNECT (RFC 8441); waits for its SETTINGS.
    pub async fn takes_extended_connect(&self) -> bool {
        while !self.state.settled.get() && !self.state.closed.get() {
            let settling = self.state.settling.notified();
            if timeout(Duration::from_secs(5), settling).await.is_err() {
                break;
            }
        }
        self.sender.is_extended_connect_protocol_enabled()
    }
}

impl Siblings {
    /// A share of a connection that suits and has a stream to spare, also beside those who wait for one.
    pub(super) fn take(
        &self,
        way: &Way,
        cluster: &Arc<ClusterHandle>,
        endpoint: &EndpointState,
    ) -> Option<H2Lease> {
        self.take_behind(way, cluster, endpoint, self.0.room.waiting())
    }

    /// As [`Siblings::take`], for one who has waited.
    pub(super) fn take_next(
        &self,
        way: &Way,
        cluster: &Arc<ClusterHandle>,
        endpoint: &EndpointState,
    ) -> Option<H2Lease> {
        self.take_behind(way, cluster, endpoint, 0)
    }

    #[inline]
    fn take_behind(
        &self,
        way: &Way,
        cluster: &Arc<ClusterHandle>,
        endpoint: &EndpointState,
        ahead: usize,
    ) -> Option<H2Lease> {
        let mut conns = self.0.conns.borrow_mut();
        conns.retain(|conn| {
            let most = conn.state.fit.cluster.config.max_requests_per_connection;
            let spent = most > 0 && conn.state.requests.get() >= most;
            // What does not suit any more ends when its streams do.
            let spent = spent || conn.state.cancelled.borrow().is_spent() || conn.state.is_aged();
            !conn.state.closed.get() && !spent && conn.state.fit.suits(way, cluster, endpoint)
        });
        let few = streams(cluster) as usize;
        let free = |conn: &&Conn| conn.state.has_room(conn.sender.current_max_send_streams().min(few), ahead);
        conns.iter().find(free).map(H2Lease::new)
    }

    /// A place in the queue for a stream.
    pub(super) fn join(&self) -> Place {
        Place::new(self.0.room.clone())
    }

    /// An attempt that is under way and that fewer than so many wait for, else a new one, which `begin` is to end.
    pub(super) fn dial(&self, most: u32, begin: impl FnOnce(Dialling)) -> Rc<Dial> {
        if let Some(dial) = self.0.dials.borrow().iter().find(|dial| dial.claims() < most) {
            return dial.clone();
        }
        let dial = Rc::<Dial>::default();
        self.0.dials.borrow_mut().push(dial.clone());
        begin(Dialling::new(self.clone(), dial.clone()));
        dial
    }

    /// Whose they are.
    pub(super) fn cluster(&self) -> Option<Arc<ClusterHandle>> {
        self.0.conns.borrow().first().map(|conn| conn.state.fit.cluster.clone())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.conns.borrow().is_empty()
    }

    /// Drops one that was used and is idle.
    pub(super) fn give_up_one(&self) -> bool {
        let mut conns = self.0.conns.borrow_mut();
        let is_idle = |state: &Known| state.active.get() == 0 && state.requests.get() > 0;
        let at = conns.iter().position(|conn| is_idle(&conn.state));
        let found = at.map(|at| conns.remove(at));
        // Dropped outside of the borrow.
        drop(conns);
        found.is_some()
    }

    /// Drops what nobody uses just now.
    pub(super) fn give_up_idle(&self) {
        self.0.conns.borrow_mut().retain(|conn| conn.state.active.get() > 0);
    }

    /// Drops what is closed or idle for too long; says whether to keep the entry.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut conns = self.0.conns.borrow_mut();
        conns.retain(|conn| {
            let idle = conn.state.fit.cluster.config.idle_timeout;
            let age = now.saturating_duration_since(conn.state.idle_since.get());
            let old = conn.state.active.get() == 0 && !idle.is_zero() && age >= idle;
            // One that has aged ends when its streams do.
            !conn.state.closed.get() && !old && !conn.state.fit.is_aged(conn.state.begun, now)
        });
        !conns.is_empty() || !self.0.dials.borrow().is_empty() || self.0.room.waiting() > 0
    }
}

/// Streams that a cluster has at a time on one connection.
pub(super) fn streams(cluster: &ClusterHandle) -> u32 {
    match cluster.config.max_streams_per_connection {
        0 => u32::MAX,
        most => most,
    }
}

/// Speaks HTTP/2 on a new connection and takes the first stream of it.
pub(super) async fn start(
    way: &Way,
    connected: Connected,
    fit: Fit,
    shared: &Siblings,
) -> Result<H2Lease, Failure> {
    // A peer's has room for what its sidecar added.
    let header_list = if fit.mesh { Limits::heads(MAX_HEAD, true).header_list() } else { HEADER_LIST };
    let (stream, turn) = turn::collecting(connected.stream, &way.buffers);
    let handshake = Builder::new()
        .initial_window_size(window::STREAM)
        .initial_connection_window_size(window::CONNECTION)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(header_list)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_concurrent_reset_streams(REMEMBERED)
        .enable_push(false)
        .handshake::<_, Bytes>(stream)
        .await;
    let (sender, mut connection) = handshake.map_err(|error| {
        Failure::upstream(Stage::Connect, FailureKind::ConnectFailed, Retry::Safe, format!("HTTP/2: {error}"))
    })?;
    turn.collect();
    let counted = Counted::new(way.metrics.cluster(&fit.cluster.name));
    let state = Rc::new(Known {
        local: connected.local,
        fit,
        closed: Cell::new(false),
        begun: Instant::now(),
        settled: Cell::new(false),
        settling: Notify::new(),
        active: Cell::new(0),
        requests: Cell::new(0),
        idle_since: Cell::new(Instant::now()),
        retired: Cell::new(false),
        buried: RefCell::default(),
        cancelled: RefCell::default(),
        room: shared.0.room.clone(),
    });
    let mut pings = Pings { ping: connection.ping_pong(), windows: Windows::default(), pinged: false };
    let (known, permit) = (state.clone(), connected.permit);
    tokio::task::spawn_local(async move {
        let ended = poll_fn(|cx| known.poll_turn(cx, &mut connection, &turn, &mut pings));
        if let Err(error) = ended.await {
            tracing::debug!(%error, "an upstream HTTP/2 connection ended");
        }
        drop(connection);
        known.closed.set(true);
        known.unbury();
        known.settling.notify_waiters();
        drop((permit, counted));
    });
    let conn = Conn { sender, state };
    let lease = H2Lease::new(&conn);
    shared.0.conns.borrow_mut().push(conn);
    Ok(lease)
}
