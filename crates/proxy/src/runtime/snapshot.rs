//! One consistent configuration, compiled: listeners by address and name, filter chains, routes, clusters.
//!
//! Immutable, shared by all workers, owns nothing of any of them. How it is made is `build`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_model::listener::{
    ChainInput, Direction, FilterChain, HttpConnection, Listener, ServerTls, TcpProxy, TransportMatch,
};
use outrigger_model::policy::decide::PolicySet;
use outrigger_model::resource::{Host, Origin};
use outrigger_model::route::WeightedCluster;
use outrigger_model::route::table::RouteTable;

use crate::http::filter::{Act, Filter, Tallies};
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::concurrency::Controller;
use crate::runtime::usage::Usage;

/// Names and addresses come from the control plane, so a fast hash is safe.
pub type FastMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// One consistent configuration.
#[derive(Default)]
pub struct Snapshot {
    /// Counts swaps; 0 is the empty snapshot before any configuration.
    pub generation: u64,
    pub(super) by_address: FastMap<(Direction, SocketAddr), Arc<ListenerHandle>>,
    pub(super) by_name: FastMap<String, Arc<ListenerHandle>>,
    pub(super) destinations: FastMap<String, Known<Destination>>,
    pub(super) hosts: FastMap<String, Known<Option<Arc<Host>>>>,
    pub(super) clusters: FastMap<Arc<str>, Arc<ClusterHandle>>,
}

/// Something that the control plane has answered for.
#[derive(Clone)]
pub struct Known<A> {
    /// The answer.
    pub answer: A,
    /// Shared by all snapshots that know it.
    pub usage: Arc<Usage>,
}

/// What the control plane said about a destination.
#[derive(Clone)]
pub enum Destination {
    /// This listener serves it.
    Listener(Arc<ListenerHandle>),
    /// It is not in the mesh.
    NotInMesh,
    /// It is not known, and by the word of this user object refused.
    Refused(Arc<str>),
}

/// A listener.
pub struct ListenerHandle {
    /// What it was built from.
    pub config: Arc<Listener>,
    /// In the order of the configuration; the default chain comes last.
    pub chains: Vec<Arc<ChainHandle>>,
    /// The first bytes must be seen before a chain can be chosen.
    pub needs_first_bytes: bool,
    /// Some connection without TLS could be served.
    pub takes_plain: bool,
}

/// A filter chain.
pub struct ChainHandle {
    /// Its name, unique in its listener.
    pub name: String,
    /// Terminates TLS.
    pub tls: Option<ServerTls>,
    /// Authorization at L4.
    pub authorization: PolicySet,
    /// What happens then.
    pub terminal: TerminalHandle,
    /// The user object that routes its connections.
    pub origin: Option<Arc<Origin>>,
}

/// The end of a filter chain.
pub enum TerminalHandle {
    /// HTTP.
    Http(Arc<HttpHandle>),
    /// Bytes.
    Tcp(TcpHandle),
}

/// HTTP, compiled.
pub struct HttpHandle {
    /// Limits, timeouts, tracing.
    pub config: HttpConnection,
    /// The routes. Empty if they did not arrive in time.
    pub routes: Arc<RouteTable>,
    /// They did not.
    pub(super) is_waiting: bool,
    /// Request filters, in order.
    pub filters: Vec<Filter>,
    pub(super) clusters: FastMap<Arc<str>, Arc<ClusterHandle>>,
}

/// The TCP proxy with its clusters.
pub struct TcpHandle {
    /// What it was built from.
    pub config: TcpProxy,
    /// In the order of the configuration; absent where the cluster did not arrive.
    pub clusters: Vec<Option<Arc<ClusterHandle>>>,
}

impl Snapshot {
    /// The listener for an original destination.
    pub fn listener(&self, direction: Direction, address: SocketAddr) -> Option<&Arc<ListenerHandle>> {
        self.by_address.get(&(direction, address))
    }

    /// The listener for an original destination, or else the one for all other ports of its address.
    pub fn listener_or_other(
        &self,
        direction: Direction,
        address: SocketAddr,
    ) -> Option<&Arc<ListenerHandle>> {
        let other = SocketAddr::new(address.ip(), 0);
        self.listener(direction, address).or_else(|| self.listener(direction, other))
    }

    /// A listener by name.
    pub fn listener_named(&self, name: &str) -> Option<&Arc<ListenerHandle>> {
        self.by_name.get(name)
    }

    /// What is known of a destination (`host:port`, `network/ip:port`); `None`: no answer yet.
    pub fn destination(&self, name: &str) -> Option<&Known<Destination>> {
        self.destinations.get(name)
    }

    /// What is known of a host name; `None`: no answer yet. An answer without a host: it is not in the mesh.
    pub fn host(&self, name: &str) -> Option<&Known<Option<Arc<Host>>>> {
        self.hosts.get(name)
    }

    /// All answers about host names.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, &Known<Option<Arc<Host>>>)> {
        self.hosts.iter().map(|(name, known)| (name.as_str(), known))
    }

    /// A cluster by name.
    pub fn cluster(&self, name: &str) -> Option<&Arc<ClusterHandle>> {
        self.clusters.get(name)
    }

    /// All clusters.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<ClusterHandle>> {
        self.clusters.values()
    }

    /// All listeners.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<ListenerHandle>> {
        self.by_name.values()
    }

    /// All answers about destinations.
    pub fn destinations(&self) -> impl Iterator<Item = (&str, &Known<Destination>)> {
        self.destinations.iter().map(|(name, known)| (name.as_str(), known))
    }

    /// The present form of a listener's chain; `None` if either is gone.
    pub fn chain(&self, listener: &str, chain: &str) -> Option<(&Arc<ListenerHandle>, &Arc<ChainHandle>)> {
        let listener = self.by_name.get(listener)?;
        let chain = listener.chains.iter().find(|c| c.name == chain)?;
        Some((listener, chain))
    }

    /// The HTTP configuration of a listener's chain; `None` if it is gone or no longer HTTP.
    pub fn http(&self, listener: &str, chain: &str) -> Option<Arc<HttpHandle>> {
        match &self.chain(listener, chain)?.1.terminal {
            TerminalHandle::Http(http) => Some(http.clone()),
            TerminalHandle::Tcp(_) => None,
        }
    }
}

impl ListenerHandle {
    /// Of compiled chains, in the order of the configuration, the default chain last.
    pub fn new(config: Arc<Listener>, chains: Vec<Arc<ChainHandle>>) -> Self {
        let plain = |c: &FilterChain| c.matches.transport != TransportMatch::Tls && c.tls.is_none();
        let takes_plain = config.chains.iter().chain(&config.default_chain).any(plain);
        let needs_first_bytes = config.needs_first_bytes();
        Self { config, chains, needs_first_bytes, takes_plain }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The chain for a connection.
    pub fn select(&self, input: &ChainInput<'_>) -> Option<&Arc<ChainHandle>> {
        let found = self.config.select(input)?;
        let index = self.config.chains.iter().position(|chain| std::ptr::eq(chain, found));
        // What is not among the chains is the default chain.
        self.chains.get(index.unwrap_or(self.config.chains.len()))
    }
}

impl HttpHandle {
    /// Limits that follow latency.
    pub fn controllers(&self) -> impl Iterator<Item = &Arc<Controller>> {
        let mut all = Tallies::default();
        self.tally(&mut all);
        all.controllers.into_iter()
    }

    /// What its filters have counted.
    pub fn tally<'t>(&'t self, all: &mut Tallies<'t>) {
        self.filters.iter().for_each(|filter| filter.tally(all));
    }

    /// A cluster that a route names.
    pub fn cluster(&self, name: &str) -> Option<&Arc<ClusterHandle>> {
        self.clusters.get(name)
    }

    /// The same, or the part of it that a route goes to.
    pub fn cluster_of(&self, share: &WeightedCluster) -> Option<&Arc<ClusterHandle>> {
        let name = share.part.as_ref().map_or(&share.cluster, |part| &part.key);
        self.clusters.get(name.as_str())
    }
}

impl TcpHandle {
    /// A cluster by weight, for a random number; `Err` has the name of one that did not arrive.
    ///
    /// # Errors
    /// The chosen cluster is not there, or no cluster has a weight.
    pub fn pick(&self, random: u64) -> Result<&Arc<ClusterHandle>, &str> {
        let total: u64 = self.config.clusters.iter().map(|c| u64::from(c.weight)).sum();
        let mut ticket = random.checked_rem(total).ok_or("(no cluster has a weight)")?;
        for (cluster, handle) in self.config.clusters.iter().zip(&self.clusters) {
            if ticket < u64::from(cluster.weight) {
                return handle.as_ref().ok_or(&cluster.cluster);
            }
            ticket -= u64::from(cluster.weight);
        }
        Err("(no cluster has a weight)")
    }
}
