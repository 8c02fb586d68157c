//! A proxy connection between a raw client and raw upstreams, over loopback.

use std::collections::HashMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_model::cluster::{Cluster, Discovery};
use outrigger_model::endpoint::{Endpoint, EndpointSet, LocalityEndpoints, Workload};
use outrigger_model::identity::SpiffeId;
use outrigger_model::listener::{Direction, HttpConnection, RouteSource};
use outrigger_model::route::{
    Forward, Route, RouteAction, RouteConfig, RouteMatch, VirtualHost, WeightedCluster,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::super::serve;
use super::world;
use crate::access_log::Sink;
use crate::conn::Accepted;
use crate::listen::Purpose;
use crate::protocol::HttpVersion;
use crate::worker::Worker;

/// What a test may change before the proxy is built.
pub struct Setup {
    /// Boxed: setups live in the futures of tests.
    pub route: Box<Route>,
    pub http: HttpConnection,
    pub cluster: Cluster,
    /// That the route names besides.
    pub others: Vec<Cluster>,
    pub direction: Direction,
    /// The identity that the client has proved.
    pub peer: Option<SpiffeId>,
    pub log: Option<Sink>,
    /// The process's limit.
    pub memory: usize,
}

impl Setup {
    /// Everything to one cluster of these endpoints.
    pub fn to(endpoints: &[SocketAddr]) -> Self {
        let forward = Forward { clusters: vec![WeightedCluster::only("c")], ..Forward::default() };
        let route = Box::new(Route {
            name: "r".into(),
            matches: RouteMatch::any(),
            action: RouteAction::Forward(forward),
            ..Route::default()
        });
        let endpoint = |address: &SocketAddr| Endpoint {
            workload: Some(Arc::new(Workload { name: "app-v1".into(), ..Workload::default() })),
            ..Endpoint::new(*address)
        };
        let locality = LocalityEndpoints {
            weight: 1,
            endpoints: endpoints.iter().map(endpoint).collect(),
            ..LocalityEndpoints::default()
        };
        let set = EndpointSet::new("c", vec![locality]);
        let cluster = Cluster { discovery: Discovery::Static(set), ..Cluster::new("c") };
        let http = HttpConnection::new(RouteSource::Named("routes".into()));
        let (others, direction) = (Vec::new(), Direction::Outbound);
        Self { route, http, cluster, others, direction, peer: None, log: None, memory: 1 << 30 }
    }

    pub fn forward(&mut self) -> &mut Forward {
        match &mut self.route.action {
            RouteAction::Forward(forward) => forward,
            _ => panic!("the route does not forward"),
        }
    }

    /// The configuration of the connection manager, routes included.
    pub fn finish(self) -> (HttpConnection, Cluster, Direction) {
        let host = VirtualHost {
            name: "any".into(),
            domains: vec!["*".into()],
            routes: vec![*self.route],
            retry: None,
        };
        let routes = RouteConfig { name: "routes".into(), virtual_hosts: vec![host] };
        let http = HttpConnection { routes: RouteSource::Inline(routes), ..self.http };
        (http, self.cluster, self.direction)
    }
}

/// A running proxy.
pub struct Rig {
    pub address: SocketAddr,
    pub worker: Rc<Worker>,
}

/// Runs a test on a local task set, within a time that no test needs.
pub async fn run<F: Future>(test: F) -> F::Output {
    let local = LocalSet::new();
    let limit = Duration::from_secs(7200);
    local.run_until(timeout(limit, test)).await.expect("the test hangs")
}

/// Serves every connection to a new loopback port.
pub async fn proxy(setup: Setup, version: HttpVersion) -> Rig {
    let world = world::World::new(setup);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let worker = world.worker.clone();
    spawn_local(async move {
        loop {
            let (stream, source) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let purpose = Purpose::Inbound { app: None };
            let accepted =
                Accepted { tcp: stream, source, destination: address, transparent: false, purpose };
            let info = Rc::new(world.info(&accepted));
            spawn_local(serve(world.worker.clone(), accepted.tcp.into(), world.http.clone(), info, version));
        }
    });
    Rig { address, worker }
}

/// An upstream whose connections are served one after the other by `script`, which is told their number from 0.
pub async fn upstream<F, Fut>(mut script: F) -> SocketAddr
where
    F: FnMut(usize, Wire) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        let mut number = 0;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            spawn_local(script(number, Wire::new(stream)));
            number += 1;
        }
    });
    address
}

/// Where the kernel takes no connection any more, nor refuses one, while this is held.
pub async fn full() -> (SocketAddr, (socket2::Socket, TcpStream)) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    // It takes one for the listener, and drops what comes then.
    let taken = TcpStream::connect(address).await.unwrap();
    (address, (socket, taken))
}

/// An address where nobody listens.
pub async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap()
}

/// A raw connection that remembers what it read too much.
pub struct Wire {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    pub async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.unwrap())
    }

    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads up to and including `marker`.
    pub async fn until(&mut self, marker: &str) -> String {
        loop {
            let found = self.read.windows(marker.len()).position(|window| window == marker.as_bytes());
            if let Some(at) = found {
                let rest = self.read.split_off(at + marker.len());
                return String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
            }
            let n = self.stream.read_buf(&mut self.read).await.unwrap();
            assert!(n > 0, "ended before {marker:?}: {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    /// A whole head.
    pub async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// So many bytes.
    pub async fn bytes(&mut self, count: usize) -> String {
        while self.read.len() < count {
            assert!(self.stream.read_buf(&mut self.read).await.unwrap() > 0, "ended early");
        }
        let rest = self.read.split_off(count);
        String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap()
    }

    /// All that comes until the end; an abrupt end is one too.
    pub async fn rest(&mut self) -> String {
        while matches!(self.stream.read_buf(&mut self.read).await, Ok(n) if n > 0) {}
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }
}

/// Headers of a head, lower-case names.
pub fn headers(head: &str) -> HashMap<String, String> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    lines.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect()
}

/// Shared counters of a script.
pub type Count = Rc<std::cell::Cell<usize>>;

/// A response with a length.
pub fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Looks until it is there; the only place of these tests that sleeps.
pub async fn comes<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(come) = look() {
                return come;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("{what} does not come"))
}

/// Waits until it is so.
pub async fn until(what: &str, come: impl Fn() -> bool) {
    comes(what, || come().then_some(())).await;
}
