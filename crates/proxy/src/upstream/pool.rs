//! A worker's upstream HTTP connections: idle HTTP/1 ones, last in first out, and HTTP/2 ones that requests share.
//!
//! A connection serves only requests for the same cluster, address, identity and protocol, and TLS only while the
//! credentials that it was made with are current. How a connection is made is `connect`; limits are the cluster's.
//!
//! ```text
//! checkout ──idle and alive──> in use ──message ended cleanly──> idle ──sweep: too old, closed, starving──> closed
//!     └──miss──> connect ──────^   └──anything else──> closed
//! ```

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::metrics::ClusterCells;
use crate::protocol::Protocol;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::EndpointState;
use crate::runtime::limits::{ConnectionPermit, PendingPermit};
use crate::upstream::connect::{self, Connected};
use crate::upstream::way::Way;

mod fit;
pub mod h1;
pub mod h2;
mod place;
mod queue;

pub use fit::Fit;
pub use h1::H1Conn;
pub use h2::H2Lease;
use place::Place;
use queue::Queues;

/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(5);

/// How long a connection serves while somebody waits for another, where connections are limited.
const TURN: Duration = Duration::from_millis(100);

type FastMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A connection that counts as active in the metrics while it lives.
pub struct Counted(Arc<ClusterCells>);

impl Counted {
    fn new(cells: Arc<ClusterCells>) -> Self {
        cells.connections.inc();
        cells.connections_active.inc();
        Self(cells)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections_active.dec();
    }
}

/// A connection for one request.
pub enum Leased {
    H1(H1Conn),
    H2(H2Lease),
}

struct Inner {
    way: Rc<Way>,
    h1: RefCell<FastMap<Place, Vec<H1Conn>>>,
    h2: RefCell<FastMap<Place, h2::Siblings>>,
    queues: Queues,
    sweeping: Cell<bool>,
    /// Clusters whose starvation is listened to.
    givers: RefCell<FastMap<u32, ()>>,
}

/// The pools of one worker; a clone is another handle.
#[derive(Clone)]
pub struct Pools(Rc<Inner>);

impl Pools {
    /// Empty.
    pub fn new(way: Rc<Way>) -> Self {
        let (h1, h2, givers) = (RefCell::default(), RefCell::default(), RefCell::default());
        let inner =
            Rc::new(Inner { way, h1, h2, queues: Queues::default(), sweeping: Cell::new(false), givers });
        let weak = Rc::downgrade(&inner);
        let give_up = move |most| {
            if let Some(inner) = weak.upgrade() {
                Self(inner).give_up_idle(most);
            }
        };
        // One pool for each way.
        let _ = inner.way.give_up.set(Box::new(give_up));
        Self(inner)
    }

    /// The way that its connections take.
    pub fn way(&self) -> &Rc<Way> {
        &self.0.way
    }

    /// A connection to this endpoint, at the time `now`. `fresh`: not a pooled HTTP/1 one, because one of those was just found dead.
    ///
    /// # Errors
    /// A limit is reached, or the connection cannot be made.
    pub async fn lease(
        &self,
        cluster: &Arc<ClusterHandle>,
        endpoint: &Arc<EndpointState>,
        (want, fresh): (Protocol, bool),
        now: Instant,
    ) -> Result<Leased, Failure> {
        if let Protocol::Http2 = want {
            return self.lease_h2(cluster, endpoint).await;
        }
        if !fresh && let Some(conn) = self.take_idle(cluster, endpoint, now) {
            return Ok(Leased::H1(conn));
        }
        let _waits = self.waits(cluster)?;
        self.lease_new(cluster, endpoint, fresh).await
    }

    /// A new one that is asked for HTTP/1, or where these are limited, one that another request has done with.
    async fn lease_new(
        &self,
        cluster: &Arc<ClusterHandle>,
        endpoint: &Arc<EndpointState>,
        fresh: bool,
    ) -> Result<Leased, Failure> {
        let connecting = || connect(&self.0.way, cluster, endpoint, (Protocol::Http1, None));
        let connected = if fresh || !cluster.limits.few_connections() {
            connecting().await?
        } else {
            let mut turn = self.0.queues.join(Place::of(cluster, endpoint));
            let first = tokio::select! {
                biased;
                conn = turn.handed() => Err(conn),
                connected = connecting() => Ok(connected),
            };
            match first {
                Ok(connected) => connected?,
                Err(mut conn) => {
                    let suits = conn.suits(&self.0.way, cluster, endpoint, Instant::now());
                    if suits && conn.is_alive() {
                        return Ok(Leased::H1(conn));
                    }
                    drop(conn);
                    connecting().await?
                }
            }
        };
        let fit = Fit::new(&connected, cluster, endpoint);
        Ok(match connected.protocol {
            Protocol::Http2 => Leased::H2(self.start(connected, fit, cluster, endpoint).await?),
            _ => Leased::H1(H1Conn::new(&self.0.way, connected, fit, endpoint)),
        })
    }

    /// As [`Pools::lease`], if there is one that needs no waiting.
    pub fn lease_now(
        &self,
        cluster: &Arc<ClusterHandle>,
        endpoint: &Arc<EndpointState>,
        (want, fresh): (Protocol, bool),
        now: Instant,
    ) -> Option<Leased> {
        match want {
            Protocol::Http2 => {
                self.shared(cluster, endpoint).take(&self.0.way, cluster, endpoint).map(Leased::H2)
            }
            _ if fresh => None,
            _ => self.take_idle(cluster, endpoint, now).map(Leased::H1),
        }
    }

    async fn lease_h2(
        &self,
        cluster: &Arc<ClusterHandle>,
        endpoint: &Arc<EndpointState>,
    ) -> Result<Leased, Failure> {
        let shared = self.shared(cluster, endpoint);
        if let Some(lease) = shared.take(&self.0.way, cluster, endpoint) {
            return Ok(Leased::H2(lease));
        }
        let _waits = self.waits(cluster)?;
        let place = shared.join();
        // Where connections are few they are made one after the other: most that wait get a stream before.
        let each = if cluster.limits.few_connections() { u32::MAX } else { h2::streams(cluster) };
        loop {
            let dial = shared.dial(each, |dialling| {
                let dialled = self.clone().dial(cluster.clone(), endpoint.clone());
                tokio::task::spawn_local(Box::pin(async move { dialling.ended(dialled.await) }));
            });
            match place.next(&dial).await {
                Some(h2::Outcome::Failed(failure)) => return Err(failure.clone()),
                Some(h2::Outcome::Http1) => {
                    drop(place);
                    return self.lease_h1(cluster, endpoint).await;
                }
                // All of its streams may be taken already; then the next attempt is for those who are left.
                Some(h2::Outcome::Connected(state)) if state.ended_unused() => {
                    let detail = format!("{} closed a new HTTP/2 connection at once", endpoint.address);
                    let kind = FailureKind::UpstreamClosed;
                    return Err(Failure::upstream(Stage::Connect, kind, Retry::Safe, detail));
                }
                Some(h2::Outcome::Connected(_)) | None => {}
            }
            if let Some(lease) = shared.take_next(&self.0.way, cluster, endpoint) {
                return Ok(Leased::H2(lease));
            }
        }
    }

    /// Makes a connection that is to speak HTTP/2; one that does not goes to the idle ones of HTTP/1.
    async fn dial(self, cluster: Arc<ClusterHandle>, endpoint: Arc<EndpointState>) -> h2::Outcome {
        // All share it, and there is no other way to there: as Envoy's, beyond the limit if need be.
        let is_first = cluster.limits.few_connections() && self.shared(&cluster, &endpoint).is_empty();
        let permit = is_first.then(|| cluster.limits.first_connection());
        let connected = match connect(&self.0.way, &cluster, &endpoint, (Protocol::Http2, permit)).await {
            Ok(connected) => connected,
            Err(failure) => return h2::Outcome::Failed(failure),
        };
        let fit = Fit::new(&connected, &cluster, &endpoint);
        if let Protocol::Http1 = connected.protocol {
            self.keep(H1Conn::new(&self.0.way, connected, fit, &endpoint), Instant::now());
            return h2::Outcome::Http1;
        }
        match self.start(connected, fit, &cluster, &endpoint).await {
            Ok(lease) => h2::Outcome::Connected(lease.into_unused()),
            Err(failure) => h2::Outcome::Failed(failure),
        }
    }

    /// Speaks HTTP/2 on a new connection, which others share from now on.
    async fn start(
        &self,
        connected: Connected,
        fit: Fit,
        cluster: &Arc<ClusterHandle>,
        endpoint: &EndpointState,
    ) -> Result<H2Lease, Failure> {
        let lease = h2::start(&self.0.way, connected, fit, &self.shared(cluster, endpoint)).await?;
        self.start_sweeping();
        if cluster.limits.few_connections() {
            self.listen_for_starvation(cluster);
        }
        Ok(lease)
    }

    /// A request waits for a connection until this is dropped.
    fn waits(&self, cluster: &Arc<ClusterHandle>) -> Result<PendingPermit, Failure> {
        if cluster.limits.few_connections() {
            self.listen_for_starvation(cluster);
        }
        cluster.limits.try_pending().inspect_err(|_| {
            self.0.way.metrics.cluster(&cluster.name).pending_overflow.inc();
        })
    }

    /// From a peer that was asked for HTTP/2 and speaks HTTP/1. Who takes it counts as waiting already.
    async fn lease_h1(
        &self,
        cluster: &Arc<ClusterHandle>,
        endpoint: &Arc<EndpointState>,
    ) -> Result<Leased, Failure> {
        if let Some(conn) = self.take_idle(cluster, endpoint, Instant::now()) {
            return Ok(Leased::H1(conn));
        }
        Box::pin(self.lease_new(cluster, endpoint, false)).await
    }

    fn shared(&self, cluster: &ClusterHandle, endpoint: &EndpointState) -> h2::Siblings {
        self.0.h2.borrow_mut().entry(Place::of(cluster, endpoint)).or_default().clone()
    }

    fn take_idle(
        &self,
        cluster: &Arc<ClusterHandle>,
        endpoint: &EndpointState,
        now: Instant,
    ) -> Option<H1Conn> {
        let mut pools = self.0.h1.borrow_mut();
        let idle = pools.get_mut(&Place::of(cluster, endpoint))?;
        while let Some(mut conn) = idle.pop() {
            if conn.suits(&self.0.way, cluster, endpoint, now) && conn.is_alive() {
                return Some(conn);
            }
        }
        None
    }

    /// Takes a connection back after a message that ended cleanly.
    pub fn put(&self, conn: H1Conn, now: Instant) {
        if conn.is_spent(now) {
            return;
        }
        if conn.cluster().limits.few_connections() {
            if conn.cluster().limits.wants_fewer() {
                // Who waits for the very same has it; not for ever, where others wait as well.
                let others = || conn.cluster().limits.waiting() > self.0.queues.length(&conn.place());
                if !conn.had_its_turn(now) || !others() {
                    drop(self.0.queues.offer(conn));
                }
                return;
            }
            self.listen_for_starvation(&conn.cluster().clone());
        }
        self.keep(conn, now);
    }

    /// Among those that rest.
    fn keep(&self, mut conn: H1Conn, now: Instant) {
        conn.rest(now);
        let mut pools = self.0.h1.borrow_mut();
        match pools.get_mut(&conn.place()) {
            Some(idle) => idle.push(conn),
            None => drop(pools.insert(conn.place(), vec![conn])),
        }
        drop(pools);
        self.start_sweeping();
    }

    /// Idle HTTP/1 connections, for the admin pages and tests.
    pub fn idle(&self) -> usize {
        self.0.h1.borrow().values().map(Vec::len).sum()
    }

    /// Gives up to so many resting connections up, of any cluster.
    pub fn give_up_idle(&self, most: usize) {
        let mut closed = Vec::new();
        let mut pools = self.0.h1.borrow_mut();
        for idle in pools.values_mut() {
            // The oldest: the bottom of the stack.
            closed.extend(idle.drain(..idle.len().min(most - closed.len())));
        }
        drop(pools);
        for shared in self.0.h2.borrow().values() {
            shared.give_up_idle();
        }
        // Outside of the borrow: it frees permits, and that may wake somebody.
        drop(closed);
    }

    /// Gives one idle connection of a cluster up.
    fn give_up_one(&self, cluster: u32) {
        let found = {
            let mut pools = self.0.h1.borrow_mut();
            let mut of_cluster =
                pools.iter_mut().filter(|(place, idle)| place.cluster == cluster && !idle.is_empty());
            // The oldest: the bottom of the stack.
            of_cluster.next().map(|(_, idle)| idle.remove(0))
        };
        // Dropped outside of the borrow: it frees a permit, and that may wake somebody.
        if found.is_none() {
            let _ = self.shared_of(cluster).iter().any(h2::Siblings::give_up_one);
        }
    }

    /// Those of HTTP/2 of a cluster.
    fn shared_of(&self, cluster: u32) -> Vec<h2::Siblings> {
        let all = self.0.h2.borrow();
        all.iter().filter(|(place, _)| place.cluster == cluster).map(|(_, shared)| shared.clone()).collect()
    }

    /// Whether a cluster has any connection.
    fn has_any(&self, cluster: u32) -> bool {
        let h1 = self.0.h1.borrow();
        h1.iter().any(|(place, idle)| place.cluster == cluster && !idle.is_empty())
            || self.shared_of(cluster).iter().any(|shared| !shared.is_empty())
    }

    /// When anybody on any worker waits for a connection, or there are more than the cluster allows by now, one of ours goes.
    fn listen_for_starvation(&self, cluster: &Arc<ClusterHandle>) {
        if self.0.givers.borrow_mut().insert(cluster.id, ()).is_some() {
            return;
        }
        let (inner, limits, id) = (Rc::downgrade(&self.0), cluster.limits.clone(), cluster.id);
        tokio::task::spawn_local(async move {
            loop {
                // Who begins to wait from here on is heard.
                let heard = limits.starving();
                let is_starving = limits.wants_fewer();
                {
                    let Some(inner) = inner.upgrade() else { return };
                    let pools = Self(inner);
                    if is_starving {
                        pools.give_up_one(id);
                    }
                    if !pools.has_any(id) {
                        pools.0.givers.borrow_mut().remove(&id);
                        return;
                    }
                }
                // It must not outlive the pool.
                let _ = timeout(if is_starving { TURN } else { SWEEP }, heard).await;
            }
        });
    }

    fn start_sweeping(&self) {
        if self.0.sweeping.replace(true) {
            return;
        }
        let inner = Rc::downgrade(&self.0);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(inner) = inner.upgrade() else { return };
                if Self(inner).sweep() {
                    return;
                }
            }
        });
    }

    /// Closes what is closed by the peer or idle for too long; says whether nothing is left to watch.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut closed = Vec::new();
        // A limit may be newer than they are.
        let few = self.few();
        let mut pools = self.0.h1.borrow_mut();
        for idle in pools.values_mut() {
            let mut at = 0;
            while at < idle.len() {
                let gone = idle[at].is_too_old(now) || !idle[at].is_alive();
                if gone { closed.push(idle.remove(at)) } else { at += 1 }
            }
        }
        pools.retain(|_, idle| !idle.is_empty());
        let mut shared = self.0.h2.borrow_mut();
        shared.retain(|_, shared| shared.sweep(now));
        let empty = pools.is_empty() && shared.is_empty();
        if empty {
            self.0.sweeping.set(false);
        }
        drop((pools, shared));
        drop(closed);
        few.iter().for_each(|cluster| self.listen_for_starvation(cluster));
        empty
    }

    /// The clusters with a connection limit that there are connections of.
    fn few(&self) -> Vec<Arc<ClusterHandle>> {
        let h1 = self.0.h1.borrow();
        let h2 = self.0.h2.borrow();
        let first = h1.values().filter_map(|idle| idle.first().map(|conn| conn.cluster().clone()));
        let all = first.chain(h2.values().filter_map(h2::Siblings::cluster));
        all.filter(|cluster| cluster.limits.few_connections()).collect()
    }
}

/// Connects and counts.
async fn connect(
    way: &Way,
    cluster: &Arc<ClusterHandle>,
    endpoint: &Arc<EndpointState>,
    how: (Protocol, Option<ConnectionPermit>),
) -> Result<Connected, Failure> {
    let connected = connect::connect(way, cluster, endpoint, how).await;
    if let Err(failure) = &connected {
        let cells = way.metrics.cluster(&cluster.name);
        match failure.kind {
            FailureKind::Overflow { .. } => cells.pending_overflow.inc(),
            _ => cells.connect_failures.inc(),
        }
    }
    connected
}
