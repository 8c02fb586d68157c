//! What is known of a downstream connection, shared by everything that happens on it. How it comes to be known, and what
//! follows from it, is `conn`'s.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use outrigger_identity::TrustBundle;
use outrigger_model::identity::SpiffeId;
use outrigger_model::listener::{ChainInput, Direction, Listener, TcpProxy};
use outrigger_model::policy::decide::PolicySet;
use outrigger_model::request::ConnectionView;
use tokio::time::Instant;

use crate::detect::{Detected, tls};
use crate::failure::Failure;
use crate::introduction::Introduction;
use crate::listen::Purpose;
use crate::metrics::Shard;
use crate::proof::{Chain, Proof};
use crate::protocol::HttpVersion;
use crate::runtime::endpoint::Reach;
use crate::runtime::snapshot::{ChainHandle, ListenerHandle, Snapshot, TcpHandle, TerminalHandle};

pub mod registry;
pub mod speakers;

pub use registry::Connections;

/// One downstream connection.
#[derive(Clone)]
pub struct ConnInfo {
    pub direction: Direction,
    /// The peer's address.
    pub source: SocketAddr,
    /// The original destination. Outbound in explicit mode: the bound address with the destination's port.
    pub destination: SocketAddr,
    /// Where the application is, if it is not at the original destination.
    pub app: Option<SocketAddr>,
    /// How what is sent on reaches it.
    pub reach: Reach,
    /// The identity that the peer proved.
    pub peer: Option<SpiffeId>,
    /// Of the ClientHello.
    pub server_name: Option<Box<str>>,
    /// Mesh mTLS was terminated.
    pub mtls: bool,
    pub listener: Arc<ListenerHandle>,
    pub chain: Arc<ChainHandle>,
    pub started: Instant,
    /// Why the connection is being closed, if a change of policy or trust does it.
    pub closed_by: Rc<OnceCell<Failure>>,
    /// Whom a tunnel reached over the mesh's mTLS.
    pub reached: OnceCell<Rc<Proof>>,
    /// Who the peer says it is, beyond what it proved.
    pub introduction: Introduction,
    /// Where the called host begins in the server name; found when the first stream ends.
    pub(crate) called_from: OnceCell<usize>,
    /// Hash of what tells its series from others, once it is known.
    pub(crate) series_hash: Cell<u64>,
    /// It began with a ClientHello.
    pub(crate) is_tls: bool,
    /// ALPN names offered, or what was detected in plain text: what the chain was chosen by.
    pub(crate) protocols: Rc<[Box<str>]>,
    /// What the peer presented, to be judged again when trust changes.
    pub(crate) certificates: Chain,
    /// The number of the trust by which that was verified.
    pub(crate) verified_by: u64,
}

/// What plain text is detected as, where it is HTTP.
const HTTP: [&str; 2] = ["http/1.1", "h2c"];

/// Stands in records of connections that found no listener or chain.
static NOWHERE: LazyLock<(Arc<ListenerHandle>, Arc<ChainHandle>)> = LazyLock::new(|| {
    let config = Listener { chains: Vec::new(), ..Listener::new(String::new(), Direction::Inbound) };
    let tcp = TcpProxy::new(Vec::new());
    let chain = ChainHandle {
        name: String::new(),
        tls: None,
        authorization: PolicySet::default(),
        terminal: TerminalHandle::Tcp(TcpHandle { config: tcp, clusters: Vec::new() }),
        origin: None,
    };
    (Arc::new(ListenerHandle::new(Arc::new(config), Vec::new())), Arc::new(chain))
});

impl ConnInfo {
    /// As accepted: nothing is known but addresses.
    pub fn early(source: SocketAddr, destination: SocketAddr, transparent: bool, purpose: &Purpose) -> Self {
        let (listener, chain) = NOWHERE.clone();
        let (app, reach) = match *purpose {
            Purpose::Inbound { app: None } if transparent => (None, Reach::AppFrom(source.ip())),
            Purpose::Inbound { app: None } => (None, Reach::App),
            Purpose::Inbound { app } => (app, Reach::Network),
            Purpose::Outbound { .. } => (None, Reach::Network),
        };
        Self { app, reach, ..Self::new(purpose.direction(), source, destination, listener, chain) }
    }

    /// Plain text, of an unknown peer, on this chain.
    pub fn new(
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
        listener: Arc<ListenerHandle>,
        chain: Arc<ChainHandle>,
    ) -> Self {
        Self {
            direction,
            source,
            destination,
            app: None,
            reach: Reach::Network,
            peer: None,
            server_name: None,
            mtls: false,
            listener,
            chain,
            started: Instant::now(),
            closed_by: Rc::default(),
            reached: OnceCell::new(),
            introduction: Introduction::default(),
            called_from: OnceCell::new(),
            series_hash: Cell::new(0),
            is_tls: false,
            protocols: Rc::default(),
            certificates: Rc::default(),
            verified_by: 0,
        }
    }

    /// What policies see.
    pub fn view(&self) -> ConnectionView<'_> {
        ConnectionView {
            peer: self.peer.as_ref(),
            source: self.source,
            destination: self.destination,
            server_name: self.server_name.as_deref(),
        }
    }

    /// Where clusters of kind original destination go.
    pub fn original(&self) -> (SocketAddr, Reach) {
        (self.app.unwrap_or(self.destination), self.reach)
    }

    /// The host by which a peer of the mesh called us.
    pub fn called(&self) -> Option<&str> {
        let name = self.server_name.as_deref()?;
        // The host is the end of the name.
        let from = *self.called_from.get_or_init(|| {
            let named = (self.mtls && self.direction == Direction::Inbound).then_some(name);
            named.and_then(tls::mesh_host).map_or(name.len(), |host| name.len() - host.len())
        });
        name.get(from..).filter(|host| !host.is_empty())
    }

    /// Of peer and called host, for metrics: taken once, when the first stream ends.
    pub fn series_hash(&self, shard: &Shard) -> u64 {
        if self.series_hash.get() == 0 && self.peer.is_some() {
            let said = self.introduction.peer().map(|said| &**said);
            self.series_hash.set(shard.hash_of(self.peer.as_ref(), self.called(), said));
        }
        self.series_hash.get()
    }

    /// Keeps what a chain is chosen by.
    pub(crate) fn note(&mut self, detected: Option<&Detected>) {
        let plain = |name: &str| Rc::from([Box::from(name)]);
        match detected {
            Some(Detected::Tls(hello)) => {
                self.is_tls = true;
                self.server_name.clone_from(&hello.server_name);
                self.protocols = match self.direction {
                    Direction::Inbound => hello.mesh_protocols(),
                    Direction::Outbound => hello.alpn_names().into_iter().map(Box::from).collect(),
                };
            }
            Some(Detected::Http1) => self.protocols = plain("http/1.1"),
            Some(Detected::Http2) => self.protocols = plain("h2c"),
            Some(Detected::Opaque | Detected::Unclear) | None => {}
        }
    }

    /// The chain for HTTP in mesh TLS, where the present one takes bytes because ALPN did not say what is inside.
    pub(crate) fn inside(&self, version: HttpVersion) -> Option<Arc<ChainHandle>> {
        if matches!(self.chain.terminal, TerminalHandle::Http(_)) {
            return None;
        }
        let mut again = self.clone();
        again.found_inside(version);
        let found = again.chosen(&self.listener)?;
        (found.tls.is_some() && matches!(found.terminal, TerminalHandle::Http(_))).then(|| found.clone())
    }

    /// From now on the connection counts as one whose ALPN said so.
    pub(crate) fn found_inside(&mut self, version: HttpVersion) {
        let name = match version {
            HttpVersion::Http1 => "istio-http/1.1",
            HttpVersion::Http2 => "istio-h2",
        };
        self.protocols = Rc::from([Box::from(name)]);
    }

    /// The chain of this listener that takes the connection. HTTP that was never looked at, since no chain asked what it is,
    /// is HTTP to one that does.
    pub(crate) fn chosen<'l>(&self, listener: &'l ListenerHandle) -> Option<&'l Arc<ChainHandle>> {
        let is_http = matches!(self.chain.terminal, TerminalHandle::Http(_));
        if is_http && self.protocols.is_empty() && !self.is_tls {
            return self.chosen_by(listener, &HTTP);
        }
        let protocols: Vec<&str> = self.protocols.iter().map(|p| &**p).collect();
        self.chosen_by(listener, &protocols)
    }

    fn chosen_by<'l>(
        &self,
        listener: &'l ListenerHandle,
        application_protocols: &[&str],
    ) -> Option<&'l Arc<ChainHandle>> {
        listener.select(&ChainInput {
            destination_port: self.destination.port(),
            tls: self.is_tls,
            server_name: self.server_name.as_deref(),
            application_protocols,
        })
    }

    /// The listener that would take the connection now, as `conn::resolve` finds it: a port may have got one of its own since,
    /// or lost it to the one for all other ports. Outbound it stays with its destination's.
    pub(crate) fn present<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s Arc<ListenerHandle>> {
        let by_address = || snapshot.listener_or_other(self.direction, self.destination);
        let found = if self.direction == Direction::Inbound { by_address() } else { None };
        found.or_else(|| snapshot.listener_named(self.listener.name()))
    }

    /// Whether requests in it would be judged as such: there is a chain of HTTP for it if it begins so.
    pub(crate) fn may_be_http(&self) -> bool {
        if self.mtls {
            return self.inside(HttpVersion::Http1).or_else(|| self.inside(HttpVersion::Http2)).is_some();
        }
        let takes_http = |chain: &ChainHandle| matches!(chain.terminal, TerminalHandle::Http(_));
        !self.is_tls && self.chosen_by(&self.listener, &HTTP).is_some_and(|chain| takes_http(chain))
    }

    /// Why a tunnel ends, if whom it reached is trusted no longer.
    pub fn revoked(&self, bundle: &TrustBundle) -> Option<Failure> {
        self.reached.get()?.judge(bundle).err()
    }
}
