//! Upstream HTTP/2 connections of one endpoint, shared by the requests of a worker.
//!
//! Another connection is made when all streams that the peer allows are in use. One request connects, the others wait.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Ping;
use h2::client::{Builder, SendRequest};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::{Counted, Fit};
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::http::body::Body;
use crate::http::send::Sender;
use crate::http::turn;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::EndpointState;
use crate::upstream::connect::Connected;
use crate::worker::Worker;

/// Receive window of a stream: enough for 100 Mbit/s at 20 ms.
pub const STREAM_WINDOW: u32 = 256 * 1024;

/// Receive window of a connection.
pub const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Bytes of one stream that wait in the h2 crate. We send only within granted capacity, so this seldom binds.
pub const SEND_BUFFER: usize = 256 * 1024;

/// Small DATA frames that may wait, in bytes of overhead: gRPC streams of small messages are normal traffic.
pub const DATA_FRAME_BUDGET: usize = 1024 * 1024;

/// Largest header list.
pub const HEADER_LIST: u32 = 60 * 1024;

/// Streams that have ended and whose handles wait for the connection's next turn, at most.
const BURIED: usize = 4;

struct Conn {
    sender: SendRequest<Bytes>,
    state: Rc<State>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        // The connection ends when nobody holds any of its streams.
        self.state.retired.set(true);
        self.state.unbury();
    }
}

/// What is known of a connection.
pub struct State {
    pub local: SocketAddr,
    fit: Fit,
    /// Its task has ended, or a GOAWAY came.
    closed: Cell<bool>,
    /// The peer's SETTINGS have come.
    settled: Cell<bool>,
    settling: Notify,
    active: Cell<u32>,
    requests: Cell<u32>,
    idle_since: Cell<Instant>,
    /// The pool has forgotten it.
    retired: Cell<bool>,
    buried: RefCell<Vec<(Body, Sender)>>,
}

impl State {
    fn unbury(&self) {
        let mut buried = self.buried.borrow_mut();
        if !buried.is_empty() {
            buried.clear();
        }
    }
}

#[derive(Default)]
struct List {
    conns: RefCell<Vec<Conn>>,
    connecting: Cell<bool>,
    connected: Notify,
}

/// The connections to one endpoint.
#[derive(Clone, Default)]
pub struct Shared(Rc<List>);

/// A request's share of a connection.
pub struct H2Lease {
    pub sender: SendRequest<Bytes>,
    pub state: Rc<State>,
    /// The connection has served requests before this one.
    pub reused: bool,
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        self.state.active.set(self.state.active.get().saturating_sub(1));
        self.state.idle_since.set(Instant::now());
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

/// Ends the turn of the one that connects.
pub struct Connecting(Shared);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.0.connecting.set(false);
        self.0.0.connected.notify_waiters();
    }
}

impl Shared {
    /// A share of a connection that suits and has a stream to spare.
    pub(super) fn take(
        &self,
        worker: &Worker,
        cluster: &Arc<ClusterHandle>,
        endpoint: &EndpointState,
    ) -> Option<H2Lease> {
        let mut conns = self.0.conns.borrow_mut();
        conns.retain(|conn| {
            let most = conn.state.fit.cluster.config.max_requests_per_connection;
            let spent = most > 0 && conn.state.requests.get() >= most;
            // What does not suit any more ends when its streams do.
            !conn.state.closed.get() && !spent && conn.state.fit.suits(worker, cluster, endpoint)
        });
        let free = |conn: &&Conn| (conn.state.active.get() as usize) < conn.sender.current_max_send_streams();
        conns.iter().find(free).map(H2Lease::new)
    }

    /// A future that ends when somebody else's attempt to connect does, if there is one.
    pub(super) fn wait(&self) -> Option<impl Future<Output = ()> + '_> {
        self.0.connecting.get().then(|| self.0.connected.notified())
    }

    pub(super) fn connecting(&self) -> Connecting {
        self.0.connecting.set(true);
        Connecting(self.clone())
    }

    /// Drops what is closed or idle for too long; says whether to keep the entry.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut conns = self.0.conns.borrow_mut();
        conns.retain(|conn| {
            let idle = conn.state.fit.cluster.config.idle_timeout;
            let age = now.saturating_duration_since(conn.state.idle_since.get());
            let old = conn.state.active.get() == 0 && !idle.is_zero() && age >= idle;
            !conn.state.closed.get() && !old
        });
        !conns.is_empty() || self.0.connecting.get()
    }
}

/// Speaks HTTP/2 on a new connection and takes the first stream of it.
pub(super) async fn start(
    worker: &Rc<Worker>,
    connected: Connected,
    fit: Fit,
    shared: &Shared,
) -> Result<H2Lease, Failure> {
    let (stream, turn) = turn::collecting(connected.stream, &worker.buffers);
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .enable_push(false)
        .handshake::<_, Bytes>(stream)
        .await;
    let (sender, mut connection) = handshake.map_err(|error| {
        Failure::upstream(Stage::Connect, FailureKind::ConnectFailed, Retry::Safe, format!("HTTP/2: {error}"))
    })?;
    turn.collect();
    let counted = Counted::new(worker.metrics.cluster(&fit.cluster.name));
    let state = Rc::new(State {
        local: connected.local,
        fit,
        closed: Cell::new(false),
        settled: Cell::new(false),
        settling: Notify::new(),
        active: Cell::new(0),
        requests: Cell::new(0),
        idle_since: Cell::new(Instant::now()),
        retired: Cell::new(false),
        buried: RefCell::default(),
    });
    // SETTINGS are the peer's first frame: when our ping is answered they have come.
    let mut ping = connection.ping_pong();
    let (known, permit) = (state.clone(), connected.permit);
    tokio::task::spawn_local(async move {
        let mut connection = std::pin::pin!(connection);
        let mut pinged = false;
        let ended = poll_fn(|cx| {
            if let Some(ping) = ping.as_mut().filter(|_| !known.settled.get()) {
                pinged = pinged || ping.send_ping(Ping::opaque()).is_ok();
                if ping.poll_pong(cx).is_ready() {
                    known.settled.set(true);
                    known.settling.notify_waiters();
                }
            }
            known.unbury();
            let polled = connection.as_mut().poll(cx);
            // Pending or not, the next turn goes on with it.
            let _ = turn.poll_end(cx);
            polled
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "an upstream HTTP/2 connection ended");
        }
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
