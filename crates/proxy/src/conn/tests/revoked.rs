//! What goes on with a server when the caller hears that it is revoked: nothing goes to it, or comes from it, any more.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use outrigger_identity::{Authority, Revoked, TrustBundle};
use outrigger_model::cluster::{Cluster, UpstreamProtocol};
use outrigger_model::ext_authz::{AuthzService, ExtAuthz, HttpAuthz};
use outrigger_model::listener::{Direction, HttpFilter, Terminal, TransportMatch};
use outrigger_model::resource::Resource;
use outrigger_model::route::{
    Forward, HedgeDelay, HedgePolicy, RetryOn, RetryPolicy, RouteAction, WeightedCluster,
};
use outrigger_telemetry::metrics::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::mesh::{answering, forwarding, http};
use super::rig::*;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: stock\r\n\r\n";

const SWITCHED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// A client whose calls cross two sidecars to the application of `stock`.
struct Path {
    authority: Authority,
    _inbound: Rig,
    outbound: Rig,
    /// Of the caller's sidecar.
    entry: SocketAddr,
    client: TcpStream,
    /// Of the certificate of `stock`.
    serial: String,
}

impl Path {
    async fn to(app: SocketAddr) -> Self {
        Self::over(forwarding("stock"), app).await
    }

    /// The caller's sidecar does this with each request, and speaks HTTP/1.1 to `stock`.
    async fn over(terminal: Terminal, app: SocketAddr) -> Self {
        let authority = authority();
        let store = credentials(&authority, "stock");
        let serial = store.load().certificate.as_ref().unwrap().serial().to_owned();
        let mut inbound = Rig::new(|process| process.credentials = store);
        let address = inbound.inbound(app);
        let chains = vec![mesh_chain("mtls-tcp", &[], Vec::new())];
        inbound.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
        let store = credentials(&authority, "web");
        let mut outbound = Rig::new(|process| process.credentials = store);
        let chains = vec![chain("http", TransportMatch::Any, &[], terminal)];
        let stock = cluster("stock", vec![endpoint(address, Some(id("stock")))]);
        outbound.apply([
            Resource::Cluster(Cluster { protocol: UpstreamProtocol::Http1, ..stock }),
            listener("out", Direction::Outbound, None, chains),
            destination("stock.shop:8080", "out"),
        ]);
        let entry = outbound.outbound("stock.shop:8080");
        let client = TcpStream::connect(entry).await.unwrap();
        Self { authority, _inbound: inbound, outbound, entry, client, serial }
    }

    async fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head += &read(&mut self.client, 1).await;
        }
        head
    }

    /// Until the caller's sidecar has the head of an answer, which begins with this digit.
    async fn answered(&self, class: u8) {
        let registry = Registry::new();
        registry.register(self.outbound.worker.process.metrics.clone());
        let counted = format!("envoy_response_code_class=\"{class}\"}} 1\n");
        let come = async {
            while !registry.render().contains(&counted) {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, come).await.expect("no head comes");
    }

    /// As `stock` is revoked: by its identity, or its one certificate.
    fn stock(&self, by_serial: bool) -> String {
        if by_serial { format!("serial:{}", self.serial) } else { id("stock").as_str().to_owned() }
    }

    /// The caller hears that this is revoked.
    fn revoke(&self, entry: &str) {
        let list = Revoked::parse([entry]).unwrap();
        let bundle = TrustBundle::clone(&self.authority.bundle()).with_revoked(Arc::new(list));
        self.outbound.worker.process.credentials.replace_bundle(Arc::new(bundle));
    }

    /// Why what went on has ended.
    async fn is_over(&mut self, stock: &str) {
        let error = self.outbound.line().await["error"].to_string();
        assert!(error.contains("sa/stock is revoked") && error.contains(stock), "{error}");
    }
}

/// Sends every request on to `stock` in this way.
fn forwarding_by(forward: Forward) -> Terminal {
    http(RouteAction::Forward(Forward { clusters: vec![WeightedCluster::only("stock")], ..forward }))
}

/// None, and one that never comes to a second attempt.
fn hedges() -> [Option<Box<HedgePolicy>>; 2] {
    let delay = Some(HedgeDelay::Fixed(10 * LONG));
    [None, Some(Box::new(HedgePolicy { delay, all_methods: true, ..HedgePolicy::default() }))]
}

/// Another protocol on a connection of HTTP is a tunnel as one of bytes is.
#[tokio::test]
async fn a_websocket_ends_when_the_server_that_it_reached_is_revoked() {
    for by_serial in [false, true] {
        local(async {
            let mut path = Path::to(switching().await).await;
            let upgrade =
                b"GET / HTTP/1.1\r\nHost: stock\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            path.client.write_all(upgrade).await.unwrap();
            let head = path.head().await;
            assert!(head.starts_with("HTTP/1.1 101"), "{head}");
            let stock = path.stock(by_serial);
            for revoked in [id("load").as_str(), &stock] {
                path.client.write_all(b"?").await.unwrap();
                assert_eq!(read(&mut path.client, 1).await, "?");
                path.revoke(revoked);
            }
            let mut rest = Vec::new();
            let ended = timeout(LONG, path.client.read_to_end(&mut rest)).await.expect("still open");
            assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{rest:?}");
            path.is_over(&stock).await;
        })
        .await;
    }
}

/// As a connection in its place would be reset (RFC 8441, section 5).
#[tokio::test]
async fn a_websocket_over_http2_is_cancelled_when_the_server_that_it_reached_is_revoked() {
    local(async {
        let path = Path::to(switching().await).await;
        let stream = TcpStream::connect(path.entry).await.unwrap();
        let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::task::spawn_local(connection);
        while !send.is_extended_connect_protocol_enabled() {
            send = send.ready().await.unwrap();
            tokio::task::yield_now().await;
        }
        let request = Request::builder().method("CONNECT").uri("http://stock/");
        let request = request.extension(h2::ext::Protocol::from_static("websocket")).body(()).unwrap();
        let (response, mut up) = send.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let mut down = response.into_body();
        up.send_data(Bytes::from_static(b"?"), false).unwrap();
        assert_eq!(down.data().await.unwrap().unwrap(), "?");
        path.revoke(&path.stock(false));
        let error = down.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "{error}");
    })
    .await;
}

/// It is granted while the body is still on its way.
#[tokio::test]
async fn a_tunnel_that_is_to_begin_behind_a_body_never_does_when_the_server_is_revoked() {
    local(async {
        let mut path = Path::to(granting().await).await;
        let post = b"POST / HTTP/1.1\r\nHost: stock\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Content-Length: 2\r\n\r\n?";
        path.client.write_all(post).await.unwrap();
        path.answered(1).await;
        let stock = path.stock(true);
        path.revoke(&stock);
        path.client.write_all(b"!").await.unwrap();
        let head = path.head().await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        path.is_over(&stock).await;
    })
    .await;
}

#[tokio::test]
async fn a_download_ends_when_the_server_that_it_comes_from_is_revoked() {
    for by_serial in [false, true] {
        local(async {
            let mut path = Path::to(streaming().await).await;
            path.client.write_all(GET).await.unwrap();
            let head = path.head().await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            let stock = path.stock(by_serial);
            for revoked in [id("load").as_str(), &stock] {
                // It is among chunks.
                while read(&mut path.client, 1).await != "?" {}
                path.revoke(revoked);
            }
            let mut rest = Vec::new();
            let _ = timeout(LONG, path.client.read_to_end(&mut rest)).await.expect("still open");
            // Of chunks the end of the connection makes no whole, be it as clean as it may.
            assert!(!rest.ends_with(b"0\r\n\r\n"), "it looks whole");
            path.is_over(&stock).await;
        })
        .await;
    }
}

#[tokio::test]
async fn an_upload_ends_when_the_server_that_it_goes_to_is_revoked() {
    for hedge in hedges() {
        local(async {
            let (app, come) = taking().await;
            let terminal = forwarding_by(Forward { hedge, ..Forward::default() });
            let mut path = Path::over(terminal, app).await;
            let post = b"POST / HTTP/1.1\r\nHost: stock\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n?\r\n";
            path.client.write_all(post).await.unwrap();
            timeout(LONG, come).await.expect("nothing comes").unwrap();
            let stock = path.stock(true);
            path.revoke(&stock);
            path.client.write_all(b"1\r\n!\r\n").await.unwrap();
            let head = path.head().await;
            assert!(head.starts_with("HTTP/1.1 503"), "{head}");
            path.is_over(&stock).await;
        })
        .await;
    }
}

/// The attempt has failed, whatever came of it: another one is made where the policy says so, and interim answers are nobody's.
#[tokio::test]
async fn an_answer_that_comes_when_the_server_is_revoked_is_none() {
    const ANSWER: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for hedge in hedges() {
        local(async {
            let mut app = Asked::start("", ANSWER).await;
            let policy = RetryPolicy { on: vec![RetryOn::FiveXx], attempts: 1, ..RetryPolicy::default() };
            let terminal = forwarding_by(Forward { hedge, retry: Some(policy), ..Forward::default() });
            let mut path = Path::over(terminal, app.address).await;
            path.client.write_all(GET).await.unwrap();
            app.is_asked().await;
            path.revoke(&path.stock(true));
            app.go.send(()).unwrap();
            let head = path.head().await;
            assert!(head.starts_with("HTTP/1.1 503"), "{head}");
            let line = path.outbound.line().await;
            assert!(line["response_flags"].to_string().contains("URX"), "{line}");
        })
        .await;
    }
}

/// Of what it says, nothing counts: neither its word nor what follows that.
#[tokio::test]
async fn a_service_that_is_revoked_while_it_is_asked_lets_nobody_pass() {
    for (before, then) in [
        ("", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", "x"),
    ] {
        local(async {
            let mut app = Asked::start(before, then).await;
            let service = AuthzService::Http(HttpAuthz::default());
            let asks = ExtAuthz { timeout: 10 * LONG, ..ExtAuthz::new(service, "stock") };
            let Terminal::Http(mut passing) = answering() else { panic!("it is HTTP") };
            passing.filters = vec![HttpFilter::ExtAuthz(Box::new(asks))];
            let mut path = Path::over(Terminal::Http(passing), app.address).await;
            path.client.write_all(GET).await.unwrap();
            app.is_asked().await;
            if !before.is_empty() {
                path.answered(2).await;
            }
            path.revoke(&path.stock(false));
            app.go.send(()).unwrap();
            let head = path.head().await;
            assert!(head.starts_with("HTTP/1.1 403"), "{before:?}: {head}");
        })
        .await;
    }
}

/// An application that is asked once, and answers when it is told to.
struct Asked {
    address: SocketAddr,
    asked: oneshot::Receiver<()>,
    go: oneshot::Sender<()>,
}

impl Asked {
    /// Says the one at once, the other when it is told to.
    async fn start(at_once: &'static str, then: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ((is_asked, asked), (go, told)) = (oneshot::channel(), oneshot::channel());
        tokio::task::spawn_local(async move {
            let mut stream = request(&listener).await;
            stream.write_all(at_once.as_bytes()).await.unwrap();
            is_asked.send(()).unwrap();
            told.await.unwrap();
            // Whoever has heard enough is gone.
            let _ = stream.write_all(then.as_bytes()).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        Self { address, asked, go }
    }

    async fn is_asked(&mut self) {
        timeout(LONG, &mut self.asked).await.expect("nobody asks").unwrap();
    }
}

/// A connection, behind the head of its first request.
async fn request(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head += &read(&mut stream, 1).await;
    }
    stream
}

/// An application that takes everything and answers nothing; it says when the first `?` has come.
async fn taking() -> (SocketAddr, oneshot::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (has_come, come) = oneshot::channel();
    tokio::task::spawn_local(async move {
        let mut stream = request(&listener).await;
        while read(&mut stream, 1).await != "?" {}
        has_come.send(()).unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    (address, come)
}

/// An application whose answer goes on for ever.
async fn streaming() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let mut stream = request(&listener).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        // As much as is taken.
        while stream.write_all(b"?").await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    address
}

/// An application that switches to what it is asked for, and sends back what comes then.
async fn switching() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let mut stream = request(&listener).await;
        stream.write_all(SWITCHED).await.unwrap();
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    });
    address
}

/// An application that switches before it has the body.
async fn granting() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let mut stream = request(&listener).await;
        stream.write_all(SWITCHED).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    address
}
