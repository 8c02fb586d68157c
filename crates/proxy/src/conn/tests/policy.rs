//! Authorization at L4, and what a change of policy, mode or trust does to open connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_identity::{Authority, Revoked, TrustBundle};
use outrigger_model::listener::{Direction, FilterChain, TransportMatch};
use outrigger_model::matcher::StringMatch;
use outrigger_model::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::resource::{Origin, Resource};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::rig::*;

/// Denies one account.
fn deny(account: &str) -> Vec<Rbac> {
    let origin =
        Origin { kind: "AuthorizationPolicy".into(), namespace: "shop".into(), name: "no-entry".into() };
    let policy = RbacPolicy {
        permissions: vec![Permission::Any],
        principals: vec![Principal::Authenticated(Some(StringMatch::exact(id(account).as_str())))],
        origin: Some(origin),
    };
    vec![Rbac { action: RbacAction::Deny, policies: BTreeMap::from([("p".into(), policy)]) }]
}

struct Server {
    rig: Rig,
    address: SocketAddr,
}

impl Server {
    async fn new(authority: &Authority) -> Self {
        let store = credentials(authority, "stock");
        let rig = Rig::new(|process| process.credentials = store);
        let address = rig.inbound(echo("").await);
        let mut server = Self { rig, address };
        server.set(vec![mesh_chain("mtls-tcp", &["istio"], Vec::new()), plain()]);
        server
    }

    fn set(&mut self, chains: Vec<FilterChain>) {
        self.rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(self.address), chains)]);
    }

    /// An open connection of an account through its own sidecar.
    async fn visit(&self, authority: &Authority, account: &str) -> (Rig, TcpStream) {
        let store = credentials(authority, account);
        let mut rig = Rig::new(|process| process.credentials = store);
        rig.apply(service("stock", cluster("stock", vec![endpoint(self.address, Some(id("stock")))])));
        let stream = opened(rig.outbound("stock.shop:8080")).await;
        (rig, stream)
    }
}

fn plain() -> FilterChain {
    chain("plain-tcp", TransportMatch::Plain, &[], tcp("app"))
}

async fn opened(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    lives(&mut stream).await;
    stream
}

async fn lives(stream: &mut TcpStream) {
    stream.write_all(b"?").await.unwrap();
    assert_eq!(read(stream, 1).await, "?");
}

async fn is_cut(stream: TcpStream) {
    is_reset(stream, "cut").await;
}

#[tokio::test]
async fn a_new_policy_closes_exactly_what_it_forbids() {
    local(async {
        let authority = authority();
        let mut server = Server::new(&authority).await;
        let (_web, mut web) = server.visit(&authority, "web").await;
        let (_load, load) = server.visit(&authority, "load").await;
        server.set(vec![mesh_chain("mtls-tcp", &["istio"], deny("load")), plain()]);
        is_cut(load).await;
        lives(&mut web).await;
        let error = server.rig.line().await["error"].to_string();
        assert!(error.contains("AuthorizationPolicy shop/no-entry") && error.contains("sa/load"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn strict_closes_plain_text_and_keeps_mtls() {
    local(async {
        let authority = authority();
        let mut server = Server::new(&authority).await;
        let bare = opened(server.address).await;
        let (_web, mut web) = server.visit(&authority, "web").await;
        server.set(vec![mesh_chain("mtls-tcp", &[], Vec::new())]);
        is_cut(bare).await;
        lives(&mut web).await;
    })
    .await;
}

#[tokio::test]
async fn a_root_that_is_no_longer_trusted_ends_what_it_vouched_for() {
    local(async {
        let authority = authority();
        let server = Server::new(&authority).await;
        let (_web, web) = server.visit(&authority, "web").await;
        let other = super::rig::authority().bundle();
        server.rig.worker.process.credentials.replace_bundle(other);
        is_cut(web).await;
    })
    .await;
}

#[tokio::test]
async fn a_revoked_identity_loses_its_connections_and_nobody_else_does() {
    local(async {
        let authority = authority();
        let mut server = Server::new(&authority).await;
        let (_web, web) = server.visit(&authority, "web").await;
        let (_load, mut load) = server.visit(&authority, "load").await;
        let list = Revoked::parse([id("web").as_str()]).unwrap();
        let bundle = TrustBundle::clone(&authority.bundle()).with_revoked(Arc::new(list));
        server.rig.worker.process.credentials.replace_bundle(Arc::new(bundle));
        is_cut(web).await;
        lives(&mut load).await;
        let error = server.rig.line().await["error"].to_string();
        assert!(error.contains("sa/web is revoked"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_root_that_is_added_ends_nothing() {
    local(async {
        let authority = authority();
        let server = Server::new(&authority).await;
        let (_web, mut web) = server.visit(&authority, "web").await;
        let both: TrustBundle = authority.bundle().union(&super::rig::authority().bundle());
        let generation = server.rig.worker.process.credentials.replace_bundle(Arc::new(both));
        let mut swapped = server.rig.worker.process.credentials.subscribe();
        swapped.wait_for(|g| *g >= generation).await.unwrap();
        lives(&mut web).await;
        lives(&mut web).await;
    })
    .await;
}

#[tokio::test]
async fn where_no_listener_is_left_at_all_what_is_open_is_served() {
    local(async {
        let authority = authority();
        let mut server = Server::new(&authority).await;
        let mut bare = opened(server.address).await;
        server.rig.apply([elsewhere(vec![plain()])]);
        lives(&mut bare).await;
    })
    .await;
}

/// The listener of the port that the tests begin with has gone to another one.
fn elsewhere(chains: Vec<FilterChain>) -> Resource {
    listener("in", Direction::Inbound, Some(SocketAddr::from(([127, 0, 0, 9], 1))), chains)
}

/// The listener for all other ports of an address.
fn other(address: SocketAddr, chains: Vec<FilterChain>) -> Resource {
    listener("other", Direction::Inbound, Some(SocketAddr::new(address.ip(), 0)), chains)
}

/// A port that was PERMISSIVE by itself is STRICT like all others, once nothing is said of it any more.
#[tokio::test]
async fn a_port_that_loses_its_listener_is_judged_by_the_one_for_all_others() {
    local(async {
        let authority = authority();
        let mut server = Server::new(&authority).await;
        let bare = opened(server.address).await;
        let (_web, mut web) = server.visit(&authority, "web").await;
        let (_load, load) = server.visit(&authority, "load").await;
        let strict = vec![mesh_chain("mtls-tcp", &[], deny("load"))];
        server.rig.apply([elsewhere(vec![plain()]), other(server.address, strict)]);
        is_cut(bare).await;
        is_cut(load).await;
        lives(&mut web).await;
    })
    .await;
}

#[tokio::test]
async fn a_port_that_gets_a_listener_of_its_own_is_judged_by_that() {
    local(async {
        let authority = authority();
        let mut server = Server::new(&authority).await;
        let chains = vec![mesh_chain("mtls-tcp", &["istio"], Vec::new()), plain()];
        server.rig.apply([elsewhere(vec![plain()]), other(server.address, chains)]);
        let bare = opened(server.address).await;
        let (_web, mut web) = server.visit(&authority, "web").await;
        server.set(vec![mesh_chain("mtls-tcp", &[], Vec::new())]);
        is_cut(bare).await;
        lives(&mut web).await;
    })
    .await;
}

fn web(mut chain: FilterChain) -> FilterChain {
    chain.terminal = super::mesh::answering();
    chain
}

const IN_TLS: [&str; 2] = ["istio-http/1.1", "istio-h2"];

/// Requests are judged by path, and so on, where bytes are by their peer alone.
#[tokio::test]
async fn bytes_end_where_their_port_becomes_one_of_http() {
    local(async {
        let authority = authority();
        let mut server = Server::new(&authority).await;
        let bare = opened(server.address).await;
        let (_web, tunnel) = server.visit(&authority, "web").await;
        server.set(vec![web(mesh_chain("mtls-http", &["istio"], Vec::new())), web(plain())]);
        is_cut(bare).await;
        is_cut(tunnel).await;
        let error = server.rig.line().await["error"].to_string();
        assert!(error.contains("serves HTTP by now"), "{error}");
    })
    .await;
}

/// What was looked at and is no HTTP stays; what nobody looked at may be.
#[tokio::test]
async fn bytes_that_were_never_looked_at_end_where_protocols_are_detected() {
    local(async {
        let authority = authority();
        let mut server = Server::new(&authority).await;
        let (_web, unseen) = server.visit(&authority, "web").await;
        let detecting = |denied| {
            let http = web(mesh_chain("mtls-http", &IN_TLS, Vec::new()));
            let plain_http =
                web(chain("plain-http", TransportMatch::Plain, &["http/1.1", "h2c"], tcp("app")));
            vec![http, mesh_chain("mtls-tcp", &["istio"], deny(denied)), plain_http, plain()]
        };
        server.set(detecting("nobody"));
        is_cut(unseen).await;
        let mut bare = opened(server.address).await;
        let (_load, mut load) = server.visit(&authority, "load").await;
        let (_web, tunnel) = server.visit(&authority, "web").await;
        server.set(detecting("web"));
        is_cut(tunnel).await;
        lives(&mut load).await;
        lives(&mut bare).await;
    })
    .await;
}

/// Its requests are judged by what would take the connection now.
#[tokio::test]
async fn requests_of_an_open_connection_follow_their_port_to_another_listener() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(nobody().await);
        rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), vec![web(plain())])]);
        let mut stream = TcpStream::connect(address).await.unwrap();
        let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        stream.write_all(get).await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head += &read(&mut stream, 1).await;
        }
        assert!(head.starts_with("HTTP/1.1 204"), "{head}");
        let mut denying = plain();
        denying.name = "another".into();
        denying.terminal = super::mesh::answering_with(403);
        rig.apply([elsewhere(vec![plain()]), other(address, vec![denying])]);
        stream.write_all(get).await.unwrap();
        assert_eq!(read(&mut stream, 12).await, "HTTP/1.1 403");
    })
    .await;
}

#[tokio::test]
async fn where_bytes_are_denied_a_slow_request_is_still_waited_for() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(nobody().await);
        let mut bytes = chain("tcp", TransportMatch::Plain, &[], tcp("app"));
        bytes.authorization = deny_all();
        let web = chain("web", TransportMatch::Plain, &["http/1.1", "h2c"], super::mesh::answering());
        rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), vec![web, bytes])]);
        // As if servers spoke first here: the client's time is over before it has begun.
        rig.worker.connections.speakers.server("in");
        let mut slow = TcpStream::connect(address).await.unwrap();
        let mut opaque = TcpStream::connect(address).await.unwrap();
        opaque.write_all(b"\0\0").await.unwrap();
        is_reset(opaque, "denied").await;
        assert!(rig.line().await["error"].as_str().unwrap().contains("denied"));
        slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(read(&mut slow, 12).await, "HTTP/1.1 204");
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_has_not_begun_makes_room_for_others() {
    local(async {
        let authority = authority();
        let server = Server::new(&authority).await;
        let silent = TcpStream::connect(server.address).await.unwrap();
        let shed = async {
            while server.rig.worker.ledger.shed_idle(1) == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, shed).await.expect("it is not known to rest");
        is_reset(silent, "shed").await;
    })
    .await;
}
