//! Circuit-breaker limits: exact, shared by all workers, held as permits that free themselves.
//!
//! Requests and retries are counted by atomics. Connections are rare, so their gate is a lock; it hands a freed permit
//! to the oldest waiter, whichever worker waits. The counts survive a change of the configured values.
//!
//! ```text
//! connection(): free ──> ConnectionPermit ──drop──> oldest waiter, else free
//!               full ──> waiting (at most max_pending) ──> ConnectionPermit
//!                   └──> Overflow{max_pending}
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use outrigger_model::cluster as model;
use outrigger_model::resource::Origin;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot};

use crate::failure::{Failure, FailureKind, Retry, Stage};

/// The limits of one cluster; a clone is another handle to the same counts.
#[derive(Clone)]
pub struct Limits {
    state: Arc<Counts>,
}

struct Counts {
    cluster: Arc<str>,
    values: RwLock<Values>,
    /// Copied out of `values`, because each request reads it.
    max_requests: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
    /// Requests that wait for a connection.
    pending: AtomicU32,
    max_pending: AtomicU32,
    max_connections: AtomicU32,
    gate: Mutex<Gate>,
    /// Rung when somebody begins to wait for a connection, or there are too many: idle ones should be given up.
    starving: Notify,
    overflows: [AtomicU64; 4],
}

struct Values {
    limits: model::Limits,
    origin: Option<Arc<Origin>>,
}

#[derive(Default)]
struct Gate {
    max_connections: u32,
    max_pending: u32,
    active: u32,
    waiters: VecDeque<oneshot::Sender<ConnectionPermit>>,
}

/// Which limit overflowed, as an index of the counters.
#[derive(Clone, Copy)]
enum Which {
    Requests,
    Connections,
    Pending,
    Retries,
}

/// A request in flight.
#[must_use = "the permit counts only while it lives"]
pub struct RequestPermit(Arc<Counts>);

/// A retry in flight.
#[must_use = "the permit counts only while it lives"]
pub struct RetryPermit(Arc<Counts>);

/// A request that waits for a connection, for a place for it or while it is made.
#[must_use = "the permit counts only while it lives"]
pub struct PendingPermit(Arc<Counts>);

/// An open connection.
#[must_use = "the permit counts only while it lives"]
pub struct ConnectionPermit(Arc<Counts>);

/// The counts of one moment, for the admin pages and the metrics.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Usage {
    pub limits: model::Limits,
    pub requests: u32,
    pub retries: u32,
    pub connections: u32,
    pub pending: u32,
    pub request_overflows: u64,
    pub connection_overflows: u64,
    pub pending_overflows: u64,
    pub retry_overflows: u64,
}

impl Limits {
    /// Fresh counts for a cluster.
    pub fn new(cluster: Arc<str>, limits: model::Limits, origin: Option<Arc<Origin>>) -> Self {
        let gate = Gate {
            max_connections: limits.max_connections,
            max_pending: limits.max_pending,
            ..Gate::default()
        };
        let state = Counts {
            cluster,
            max_requests: AtomicU32::new(limits.max_requests),
            values: RwLock::new(Values { limits, origin }),
            requests: AtomicU32::new(0),
            retries: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            max_pending: AtomicU32::new(gate.max_pending),
            max_connections: AtomicU32::new(gate.max_connections),
            gate: Mutex::new(gate),
            starving: Notify::new(),
            overflows: Default::default(),
        };
        Self { state: Arc::new(state) }
    }

    /// Takes new values; what is in flight keeps counting. A raised limit lets waiters in.
    pub fn configure(&self, limits: model::Limits, origin: Option<Arc<Origin>>) {
        self.state.max_requests.store(limits.max_requests, Relaxed);
        self.state.max_pending.store(limits.max_pending, Relaxed);
        self.state.max_connections.store(limits.max_connections, Relaxed);
        *self.state.values.write() = Values { limits, origin };
        let mut gate = self.state.gate.lock();
        gate.max_connections = limits.max_connections;
        gate.max_pending = limits.max_pending;
        let mut admitted = Vec::new();
        while gate.active < gate.max_connections {
            let Some(waiter) = gate.waiters.pop_front() else { break };
            gate.active += 1;
            admitted.push(waiter);
        }
        let is_over = gate.active > gate.max_connections;
        // A permit that nobody takes any more frees itself, which needs the lock.
        drop(gate);
        if is_over {
            self.state.starving.notify_waiters();
        }
        for waiter in admitted {
            let _ = waiter.send(ConnectionPermit(self.state.clone()));
        }
    }

    /// One more request in flight.
    ///
    /// # Errors
    /// `max_requests` is reached.
    pub fn try_request(&self) -> Result<RequestPermit, Failure> {
        let state = &self.state;
        match take(&state.requests, state.max_requests.load(Relaxed)) {
            true => Ok(RequestPermit(state.clone())),
            false => Err(state.overflow(Which::Requests)),
        }
    }

    /// One more request that waits for a connection, whether or not these are limited.
    ///
    /// # Errors
    /// `max_pending` is reached.
    pub fn try_pending(&self) -> Result<PendingPermit, Failure> {
        let state = &self.state;
        // Where none may wait, none waits for another's connection: the gate says so. To make one's own is no waiting then.
        let most = match state.max_pending.load(Relaxed) {
            0 => u32::MAX,
            most => most,
        };
        match take(&state.pending, most) {
            true => Ok(PendingPermit(state.clone())),
            false => Err(state.overflow(Which::Pending)),
        }
    }

    /// One more connection, without waiting.
    ///
    /// # Errors
    /// `max_connections` is reached.
    #[cfg(test)]
    pub fn try_connection(&self) -> Result<ConnectionPermit, Failure> {
        let mut gate = self.state.gate.lock();
        if gate.active < gate.max_connections {
            gate.active += 1;
            return Ok(ConnectionPermit(self.state.clone()));
        }
        drop(gate);
        Err(self.state.overflow(Which::Connections))
    }

    /// One more connection; where none is free, waits for the next that is closed, behind those who came before.
    /// Cancelled by dropping.
    ///
    /// # Errors
    /// `max_connections` is reached and `max_pending` requests wait already.
    pub async fn connection(&self) -> Result<ConnectionPermit, Failure> {
        let waiting = {
            let mut gate = self.state.gate.lock();
            if gate.active < gate.max_connections {
                gate.active += 1;
                return Ok(ConnectionPermit(self.state.clone()));
            }
            gate.waiters.retain(|waiter| !waiter.is_closed());
            if gate.waiters.len() >= gate.max_pending as usize {
                drop(gate);
                return Err(self.state.overflow(Which::Pending));
            }
            let (sender, receiver) = oneshot::channel();
            gate.waiters.push_back(sender);
            receiver
        };
        self.state.starving.notify_waiters();
        // The sender lives in the gate until it is served.
        waiting.await.map_err(|_| self.state.overflow(Which::Connections))
    }

    /// The failure of who has waited for a connection for too long.
    pub fn waited_in_vain(&self, time: Duration) -> Failure {
        let failure = self.state.overflow(Which::Connections);
        let detail = format!("{}: none was closed within {time:?}, the connect timeout", failure.detail);
        Failure { detail: detail.into(), ..failure }
    }

    /// One more retry in flight: within the retry budget where there is one, else within `max_retries`.
    ///
    /// # Errors
    /// The budget or `max_retries` is used up.
    pub fn try_retry(&self) -> Result<RetryPermit, Failure> {
        let state = &self.state;
        let allowed = state.allowed_retries(&state.values.read().limits);
        match take(&state.retries, allowed) {
            true => Ok(RetryPermit(state.clone())),
            false => Err(state.overflow(Which::Retries)),
        }
    }

    /// Whether connections are limited.
    pub fn few_connections(&self) -> bool {
        self.state.max_connections.load(Relaxed) != u32::MAX
    }

    /// Whether somebody waits for a connection, or a lowered limit has not been reached yet: a pool then closes instead of keeping an
    /// idle one.
    pub fn wants_fewer(&self) -> bool {
        let gate = self.state.gate.lock();
        gate.active > gate.max_connections || gate.waiters.iter().any(|waiter| !waiter.is_closed())
    }

    /// How many wait for a connection.
    pub fn waiting(&self) -> usize {
        self.state.gate.lock().waiters.iter().filter(|waiter| !waiter.is_closed()).count()
    }

    /// One more connection, whatever the limit says.
    pub fn first_connection(&self) -> ConnectionPermit {
        self.state.gate.lock().active += 1;
        ConnectionPermit(self.state.clone())
    }

    /// Resolves when somebody begins to wait for a connection after this call.
    pub fn starving(&self) -> impl Future<Output = ()> + '_ {
        self.state.starving.notified()
    }

    /// Requests in flight.
    pub fn requests(&self) -> u32 {
        self.state.requests.load(Relaxed)
    }

    /// All counts.
    pub fn view(&self) -> Usage {
        let state = &self.state;
        let (connections, pending) = {
            let gate = state.gate.lock();
            (gate.active, gate.waiters.iter().filter(|waiter| !waiter.is_closed()).count() as u32)
        };
        let overflows = |which: Which| state.overflows[which as usize].load(Relaxed);
        Usage {
            limits: state.values.read().limits,
            requests: state.requests.load(Relaxed),
            retries: state.retries.load(Relaxed),
            connections,
            pending: pending.max(state.pending.load(Relaxed)),
            request_overflows: overflows(Which::Requests),
            connection_overflows: overflows(Which::Connections),
            pending_overflows: overflows(Which::Pending),
            retry_overflows: overflows(Which::Retries),
        }
    }
}

/// Counts one more where there are fewer than `most`. Who is refused is never counted, not for a moment: it would take the place of somebody
/// who comes when one has just become free.
fn take(count: &AtomicU32, most: u32) -> bool {
    count.fetch_update(Relaxed, Relaxed, |taken| (taken < most).then_some(taken + 1)).is_ok()
}

impl Counts {
    #[cold]
    fn overflow(&self, which: Which) -> Failure {
        self.overflows[which as usize].fetch_add(1, Relaxed);
        let values = self.values.read();
        let limits = &values.limits;
        let (limit, value) = match which {
            Which::Requests => ("max_requests", limits.max_requests),
            Which::Connections => ("max_connections", limits.max_connections),
            Which::Pending => ("max_pending", limits.max_pending),
            Which::Retries if limits.retry_budget.is_some() => ("retry_budget", self.allowed_retries(limits)),
            Which::Retries => ("max_retries", limits.max_retries),
        };
        let detail = format!("cluster {}", self.cluster);
        let kind = FailureKind::Overflow { limit, value };
        let failure = Failure { retry: Retry::Never, ..Failure::local(Stage::Pick, kind, detail) };
        failure.because_of(values.origin.clone())
    }

    fn allowed_retries(&self, limits: &model::Limits) -> u32 {
        limits.retry_budget.map_or(limits.max_retries, |budget| {
            // The cast rounds down and saturates.
            let share = f64::from(self.requests.load(Relaxed)) * budget.percent / 100.0;
            (share as u32).max(budget.min_concurrency)
        })
    }

    /// Gives the place of a closed connection to the oldest waiter that still wants it.
    fn release_connection(self: &Arc<Self>) {
        let mut gate = self.gate.lock();
        let waiter = loop {
            // After a lowered limit closed connections are not replaced until the count fits.
            if gate.active > gate.max_connections {
                break None;
            }
            match gate.waiters.pop_front() {
                Some(waiter) if waiter.is_closed() => {}
                other => break other,
            }
        };
        if waiter.is_none() {
            gate.active -= 1;
        }
        drop(gate);
        if let Some(waiter) = waiter {
            // If the waiter went away just now, the permit comes back in the error and frees itself when dropped.
            let _ = waiter.send(ConnectionPermit(self.clone()));
        }
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Relaxed);
    }
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Relaxed);
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.release_connection();
    }
}

#[cfg(test)]
mod tests;
