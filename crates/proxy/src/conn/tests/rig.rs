//! A worker with sockets and a configuration, and the small servers that it needs. No control plane.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_identity::{Authority, AuthorityOptions, CredentialStore, TrustBundle};
use outrigger_model::cluster::{ClientTls, Cluster, Discovery};
use outrigger_model::endpoint::{Endpoint, EndpointSet, LocalityEndpoints};
use outrigger_model::identity::SpiffeId;
use outrigger_model::listener::{
    ChainMatch, Direction, FilterChain, Listener, ServerTls, TcpProxy, Terminal, TransportMatch,
};
use outrigger_model::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::resource::{Destination, Resource, ResourceKind};
use outrigger_model::route::WeightedCluster;
use outrigger_telemetry::Drain;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use crate::access_log::{Format, Sink};
use crate::bootstrap::{Bootstrap, Node, OutboundPolicy};
use crate::listen::{self, accept};
use crate::metrics::{Local, Totals};
use crate::process::{Demand, Process};
use crate::runtime::build::{Builder, InForce};
use crate::runtime::cluster::PickContext;
use crate::runtime::snapshot::Snapshot;
use crate::worker::Worker;

/// Nothing here takes so long; a test that waits for it has failed.
pub const LONG: Duration = Duration::from_secs(20);

/// A worker and what it is told.
pub struct Rig {
    pub worker: Rc<Worker>,
    pub log: mpsc::Receiver<String>,
    pub demands: mpsc::Receiver<(ResourceKind, String)>,
    /// Destinations that are not in the mesh.
    pub absent: Vec<String>,
    builder: Builder,
    resources: BTreeMap<(ResourceKind, String), Arc<Resource>>,
}

struct Lines(mpsc::Sender<String>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in String::from_utf8_lossy(bytes).lines() {
            let _ = self.0.try_send(line.to_owned());
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a test on a local set, within a time.
pub async fn local<F: Future<Output = ()>>(test: F) {
    timeout(LONG * 2, LocalSet::new().run_until(test)).await.expect("the test hangs");
}

impl Rig {
    pub fn new(edit: impl FnOnce(&mut Process)) -> Self {
        let (lines, log) = mpsc::channel(256);
        let (demand, demands) = Demand::channel();
        let node = Node {
            id: "web-1".into(),
            workload: "web".into(),
            namespace: "shop".into(),
            address: None,
            service_account: "web".into(),
            app: "web".into(),
            version: "v1".into(),
            cluster: "default".into(),
            locality: Default::default(),
        };
        let mut process = Process {
            generation: AtomicU64::new(0),
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            swapped: watch::Sender::new(0),
            credentials: CredentialStore::new(TrustBundle::empty()),
            spans: None,
            sampling: None,
            access_log: Sink::writer(Box::new(Lines(lines)), Format::Json).unwrap(),
            recent: crate::recent::Recent::new(1, false),
            drain: Drain::new(),
            demand,
            node,
            metrics: Totals::new(Local::default()),
            outbound_policy: OutboundPolicy::AllowAny,
            pending_timeout: LONG,
            loops: Default::default(),
            mark: crate::intercept::MARK,
            token: Default::default(),
            memory: crate::memory::Budget::new(Some(1 << 30), 1),
            descriptors: crate::descriptors::Descriptors::new(usize::MAX),
        };
        edit(&mut process);
        let worker = Worker::new(0, Arc::new(process));
        spawn_local(crate::conn::open::watch(worker.clone()));
        let (builder, resources) = (Builder::default(), BTreeMap::new());
        let absent = vec!["outside.test:80".to_owned()];
        Self { worker, log, demands, absent, builder, resources }
    }

    /// Adds or replaces resources, and swaps.
    pub fn apply(&mut self, resources: impl IntoIterator<Item = Resource>) {
        for resource in resources {
            self.resources.insert((resource.kind(), resource.name().to_owned()), Arc::new(resource));
        }
        let in_force: InForce<'_> =
            self.resources.iter().map(|((kind, name), r)| ((*kind, name.as_str()), r)).collect();
        let before = self.worker.process.snapshot.load_full();
        let outside: Vec<_> =
            self.absent.iter().map(|name| (ResourceKind::Destination, name.clone())).collect();
        let (snapshot, invalid) = self.builder.build(&before, &in_force, &outside);
        assert!(invalid.is_empty(), "{invalid:?}");
        self.worker.process.swap(snapshot);
    }

    /// Listens for the workload, whose application is at `app`.
    pub fn inbound(&self, app: SocketAddr) -> SocketAddr {
        self.listen(&format!("inbound: [{{bind: \"127.0.0.1:0\", app: \"{app}\"}}]"))
    }

    /// Listens for what the workload sends to `to`.
    pub fn outbound(&self, to: &str) -> SocketAddr {
        self.listen(&format!("outbound: [{{bind: \"127.0.0.1:0\", to: \"{to}\"}}]"))
    }

    fn listen(&self, listed: &str) -> SocketAddr {
        let text = format!("node: {{id: web-1}}\nstate_dir: /nowhere\n{listed}\n");
        let bootstrap = Bootstrap::parse(Path::new("bootstrap"), &text).unwrap();
        let bound = listen::bind(1, &bootstrap).unwrap().remove(0).remove(0);
        let address = bound.address;
        spawn_local(accept::run(self.worker.clone(), bound, Arc::new(Semaphore::new(64))));
        address
    }

    /// The next line of the access log.
    pub async fn line(&mut self) -> serde_json::Value {
        let line = timeout(LONG, self.log.recv()).await.expect("no line in the log").unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

fn any_port() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A server that greets with `greeting`, then sends back what it receives until the client ends.
pub async fn echo(greeting: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            spawn_local(async move {
                stream.write_all(greeting.as_bytes()).await.unwrap();
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    address
}

/// An address where nobody listens.
pub async fn nobody() -> SocketAddr {
    TcpListener::bind(any_port()).await.unwrap().local_addr().unwrap()
}

/// An address where connections wait for ever: the queue of who listens there is full, for as long as what comes with it is kept.
pub async fn full() -> (SocketAddr, (Socket, Vec<TcpStream>)) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&any_port().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        queued.push(stream);
    }
    (address, (socket, queued))
}

/// Until something is under way to the application, or nothing is any more.
pub async fn busy(rig: &Rig, app: SocketAddr, wanted: bool) {
    let cluster = rig.worker.snapshot().cluster("app").unwrap().clone();
    let context = PickContext { tried: &[], original: (app, Default::default()), hash: None };
    let come = async {
        while (cluster.pick(&context).unwrap().in_flight() > 0) != wanted {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, come).await.expect("the application's connections stay as they are");
}

/// Sends, ends, and reads to the end.
pub async fn exchange(to: SocketAddr, text: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await.expect("no end")?;
    Ok(answer)
}

/// Holds that nothing more comes, and that this does not look like a clean end.
pub async fn is_reset(mut stream: TcpStream, what: &str) {
    let mut rest = Vec::new();
    let ended = timeout(LONG, stream.read_to_end(&mut rest)).await.expect("still open");
    assert_eq!(String::from_utf8_lossy(&rest), "", "{what}");
    assert_eq!(ended.expect_err(what).kind(), io::ErrorKind::ConnectionReset, "{what}");
}

pub async fn read(stream: &mut TcpStream, n: usize) -> String {
    let mut bytes = vec![0; n];
    timeout(LONG, stream.read_exact(&mut bytes)).await.expect("no bytes").unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Denies everybody.
pub fn deny_all() -> Vec<Rbac> {
    let policy =
        RbacPolicy { permissions: vec![Permission::Any], principals: vec![Principal::Any], origin: None };
    vec![Rbac { action: RbacAction::Deny, policies: BTreeMap::from([("p".into(), policy)]) }]
}

pub fn tcp(cluster: &str) -> Terminal {
    let clusters = vec![WeightedCluster::only(cluster)];
    Terminal::Tcp(TcpProxy::new(clusters))
}

pub fn chain(name: &str, transport: TransportMatch, alpn: &[&str], terminal: Terminal) -> FilterChain {
    let application_protocols = alpn.iter().map(|a| (*a).to_owned()).collect();
    FilterChain {
        matches: ChainMatch { transport, application_protocols, ..ChainMatch::default() },
        ..FilterChain::new(name, terminal)
    }
}

/// A chain that terminates mesh mTLS.
pub fn mesh_chain(name: &str, alpn: &[&str], authorization: Vec<Rbac>) -> FilterChain {
    let tls = ServerTls::Mesh { alpn: vec!["istio".into()] };
    FilterChain { tls: Some(tls), authorization, ..chain(name, TransportMatch::Tls, alpn, tcp("app")) }
}

pub fn listener(
    name: &str,
    direction: Direction,
    address: Option<SocketAddr>,
    chains: Vec<FilterChain>,
) -> Resource {
    let addresses = address.into_iter().collect();
    Resource::Listener(Listener { addresses, chains, ..Listener::new(name, direction) })
}

pub fn destination(name: &str, listener: &str) -> Resource {
    Resource::Destination(Destination { name: name.into(), listener: listener.into() })
}

/// The cluster of the application.
pub fn app_cluster() -> Resource {
    Resource::Cluster(Cluster { discovery: Discovery::OriginalDestination, ..Cluster::new("app") })
}

pub fn endpoint(address: SocketAddr, identity: Option<SpiffeId>) -> Endpoint {
    let mesh_tls = identity.is_some();
    Endpoint { identity, mesh_tls, ..Endpoint::new(address) }
}

/// A cluster with these endpoints; mesh mTLS to those that have an identity.
pub fn cluster(name: &str, endpoints: Vec<Endpoint>) -> Cluster {
    let server_name = format!("outbound_.8080_._.{name}.shop.svc.cluster.local");
    let locality = LocalityEndpoints { weight: 1, endpoints, ..LocalityEndpoints::default() };
    Cluster {
        discovery: Discovery::Static(EndpointSet::new(name, vec![locality])),
        tls: ClientTls::Mesh { server_name, identities: Vec::new(), required: false },
        ..Cluster::new(name)
    }
}

/// A destination `NAME.shop:8080` of bytes, with its listener and cluster.
pub fn service(name: &str, cluster: Cluster) -> Vec<Resource> {
    let listener_name = format!("outbound|8080||{name}");
    let chains = vec![chain("tcp", TransportMatch::Any, &[], tcp(&cluster.name))];
    vec![
        Resource::Cluster(cluster),
        listener(&listener_name, Direction::Outbound, None, chains),
        destination(&format!("{name}.shop:8080"), &listener_name),
    ]
}

pub const TRUST_DOMAIN: &str = "mesh.test";

pub fn id(account: &str) -> SpiffeId {
    SpiffeId::workload(TRUST_DOMAIN, "shop", account).unwrap()
}

pub fn authority() -> Authority {
    Authority::in_memory(AuthorityOptions::new(TRUST_DOMAIN)).unwrap()
}

/// A store with a certificate for `account`.
pub fn credentials(authority: &Authority, account: &str) -> CredentialStore {
    let issued = authority.issue_key_and_certificate(&id(account), None).unwrap();
    let store = CredentialStore::new(TrustBundle::empty());
    store.replace(Some(Arc::new(issued.certificate)), issued.bundle);
    store
}
