//! A worker with one listener, made without a control plane.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_identity::{CredentialStore, TrustBundle};
use outrigger_model::identity::SpiffeId;
use outrigger_model::listener::{FilterChain, Listener, Terminal};
use outrigger_model::resource::Resource;
use outrigger_telemetry::Drain;
use outrigger_telemetry::trace::{ExportConfig, exporter};
use tokio::sync::watch;

use super::rig::Setup;
use crate::access_log::Sink;
use crate::bootstrap::{Node, OutboundPolicy};
use crate::conn::Accepted;
use crate::downstream::ConnInfo;
use crate::metrics::{Local, Totals};
use crate::process::{Demand, Process};
use crate::runtime::build::{Builder, InForce};
use crate::runtime::snapshot::{ChainHandle, HttpHandle, ListenerHandle, Snapshot};
use crate::worker::Worker;

const LISTENER: &str = "l";
const CHAIN: &str = "x";

/// A worker with its only chain.
pub struct World {
    pub worker: Rc<Worker>,
    pub http: Arc<HttpHandle>,
    listener: Arc<ListenerHandle>,
    chain: Arc<ChainHandle>,
    peer: Option<SpiffeId>,
}

impl World {
    pub fn new(setup: Setup) -> Self {
        let (log, peer, memory) = (setup.log.clone(), setup.peer.clone(), setup.memory);
        let snapshot = snapshot(setup, &Snapshot::default());
        let worker = Worker::new(0, Arc::new(process(snapshot, log, memory)));
        let current = worker.snapshot();
        let (listener, chain) = current.chain(LISTENER, CHAIN).unwrap();
        let (listener, chain) = (listener.clone(), chain.clone());
        let http = current.http(LISTENER, CHAIN).unwrap();
        Self { worker, http, listener, chain, peer }
    }

    pub fn info(&self, accepted: &Accepted) -> ConnInfo {
        let mut info =
            ConnInfo::early(accepted.source, accepted.destination, accepted.transparent, &accepted.purpose);
        info.direction = self.listener.config.direction;
        (info.listener, info.chain) = (self.listener.clone(), self.chain.clone());
        (info.mtls, info.peer) = (self.peer.is_some(), self.peer.clone());
        info
    }
}

/// The configuration of a test, compiled as one from the control plane.
pub fn snapshot(setup: Setup, before: &Snapshot) -> Snapshot {
    let others = setup.others.clone();
    let (http, cluster, direction) = setup.finish();
    let chain = FilterChain::new(CHAIN, Terminal::Http(Box::new(http)));
    let listener = Listener { chains: vec![chain], ..Listener::new(LISTENER, direction) };
    let clusters = others.into_iter().chain([cluster]).map(Resource::Cluster);
    let resources: Vec<_> = clusters.chain([Resource::Listener(listener)]).map(Arc::new).collect();
    let in_force: InForce<'_> = resources.iter().map(|r| ((r.kind(), r.name()), r)).collect();
    let (snapshot, invalid) = Builder::default().build(before, &in_force, &[]);
    assert!(invalid.is_empty(), "{invalid:?}");
    snapshot
}

fn process(snapshot: Snapshot, access_log: Option<Sink>, memory: usize) -> Process {
    let export = ExportConfig { endpoints: vec!["http://127.0.0.1:9".into()], ..ExportConfig::default() };
    // The exporter is never run: spans wait in its queue.
    let (spans, _exporter) = exporter(export).unwrap();
    let local = Local {
        workload: outrigger_model::endpoint::Workload {
            name: "web-v1".into(),
            namespace: "shop".into(),
            service: "web".into(),
            revision: "v1".into(),
        },
        principal: Some(SpiffeId::parse("spiffe://td/ns/shop/sa/web").unwrap()),
        ..Local::default()
    };
    let node = Node {
        id: "web-1".into(),
        workload: "web-v1".into(),
        address: None,
        namespace: "shop".into(),
        service_account: "web".into(),
        app: "web".into(),
        version: "v1".into(),
        cluster: "default".into(),
        locality: Default::default(),
    };
    Process {
        generation: AtomicU64::new(snapshot.generation),
        snapshot: ArcSwap::from_pointee(snapshot),
        swapped: watch::Sender::new(0),
        credentials: CredentialStore::new(TrustBundle::empty()),
        spans: Some(spans),
        sampling: None,
        access_log: access_log.unwrap_or_else(Sink::off),
        recent: crate::recent::Recent::new(1, false),
        drain: Drain::new(),
        demand: Demand::channel().0,
        node,
        metrics: Totals::new(local),
        outbound_policy: OutboundPolicy::AllowAny,
        pending_timeout: Duration::from_secs(10),
        loops: Default::default(),
        mark: crate::intercept::MARK,
        token: Default::default(),
        memory: crate::memory::Budget::new(Some(memory), 1),
        descriptors: crate::descriptors::Descriptors::new(usize::MAX),
    }
}
