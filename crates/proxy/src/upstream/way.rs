//! What the way to an upstream takes of a worker: trust, metrics, buffers, descriptors. Neither its configuration nor who is
//! connected downstream.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use outrigger_identity::{CredentialStore, WorkerTls};

use crate::descriptors::Descriptors;
use crate::http::wire::Buffers;
use crate::loops::Loops;
use crate::memory::Ledger;
use crate::metrics;
use crate::process::Process;
use crate::proof::Chains;

/// Resting connections that are given up at once for want of a descriptor.
const SHED: usize = 16;

/// A worker's way to its upstreams.
pub struct Way {
    /// TLS configurations, cached.
    pub tls: RefCell<WorkerTls>,
    pub credentials: CredentialStore,
    /// Of whom we have reached.
    pub chains: Chains,
    pub metrics: Rc<metrics::Shard>,
    pub buffers: Rc<Buffers>,
    pub descriptors: Descriptors,
    /// Of connections to the application in the client's name.
    pub mark: u32,
    ledger: Ledger,
    pub loops: Arc<Loops>,
    /// Gives up to so many pooled connections up.
    pub(super) give_up: OnceCell<Box<dyn Fn(usize)>>,
}

impl Way {
    /// A worker's.
    pub fn new(
        process: &Process,
        metrics: Rc<metrics::Shard>,
        buffers: Rc<Buffers>,
        ledger: Ledger,
    ) -> Rc<Self> {
        let credentials = process.credentials.clone();
        let tls = RefCell::new(WorkerTls::new(credentials.clone()));
        let (descriptors, loops) = (process.descriptors.clone(), process.loops.clone());
        let (mark, give_up) = (process.mark, OnceCell::new());
        let chains = Chains::default();
        Rc::new(Self {
            tls,
            credentials,
            chains,
            metrics,
            buffers,
            descriptors,
            mark,
            ledger,
            loops,
            give_up,
        })
    }

    /// Connections that rest, on either side, make room for others.
    pub fn make_room(&self) {
        if let Some(give_up) = self.give_up.get() {
            give_up(SHED);
        }
        self.ledger.shed_idle(SHED);
    }
}
