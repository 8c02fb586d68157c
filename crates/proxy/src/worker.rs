//! A worker: one thread, one single-threaded runtime, and everything that its connections share without locks.
//!
//! What it shares with others is [`Process`]. Who starts workers is `app`.

use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::alarm::Alarm;
use crate::downstream::Connections;
use crate::http::filter::tokens::Memory;
use crate::http::mirror::copies::UnderWay;
use crate::http::wire::Buffers;
use crate::memory::Ledger;
use crate::metrics;
use crate::process::Process;
use crate::runtime::snapshot::Snapshot;
use crate::upstream::pool::Pools;
use crate::upstream::way::Way;

/// What one worker owns.
pub struct Worker {
    /// From 0.
    pub id: usize,
    pub process: Arc<Process>,
    /// How upstreams are reached.
    pub way: Rc<Way>,
    /// Upstream connections.
    pub pools: Pools,
    /// This worker's metrics.
    pub metrics: Rc<metrics::Shard>,
    /// Spare buffers.
    pub buffers: Rc<Buffers>,
    /// Open downstream connections.
    pub connections: Connections,
    /// Wakes them when the drain begins.
    pub alarm: Alarm,
    /// Copies of requests.
    pub mirrors: Rc<UnderWay>,
    /// What clients hold.
    pub ledger: Ledger,
    /// Tokens that were good.
    pub tokens: RefCell<Memory>,
    current: RefCell<Rc<Current>>,
}

/// A worker's hold on the current snapshot: cloning it touches no shared memory.
pub struct Current(Arc<Snapshot>);

impl Deref for Current {
    type Target = Snapshot;
    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

impl Worker {
    /// A worker; call it on its thread.
    pub fn new(id: usize, process: Arc<Process>) -> Rc<Self> {
        let metrics = Rc::new(process.metrics.shard());
        let current = RefCell::new(Rc::new(Current(process.snapshot.load_full())));
        let (buffers, connections) = (Buffers::new(), Connections::default());
        let (alarm, ledger) = (Alarm::default(), Ledger::new(&process.memory));
        let way = Way::new(&process, metrics.clone(), buffers.clone(), ledger.clone());
        let (pools, mirrors) = (Pools::new(way.clone()), Rc::new(UnderWay::new(process.memory.workers())));
        Rc::new(Self {
            id,
            process,
            way,
            pools,
            metrics,
            buffers,
            connections,
            alarm,
            mirrors,
            ledger,
            tokens: RefCell::default(),
            current,
        })
    }

    /// The current snapshot. One relaxed read while nothing has changed.
    pub fn snapshot(&self) -> Rc<Current> {
        let generation = self.process.generation.load(Ordering::Relaxed);
        let mut current = self.current.borrow_mut();
        if current.generation < generation {
            // Pairs with the store in `swap`: the snapshot of this generation, or a later one.
            self.process.generation.load(Ordering::Acquire);
            *current = Rc::new(Current(self.process.snapshot.load_full()));
        }
        current.clone()
    }
}
