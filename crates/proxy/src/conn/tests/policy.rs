//! Authorization at L4, and what a change of policy, mode or trust does to open connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_identity::{Authority, Revoked, TrustBundle};
use outrigger_model::listener::{Direction, FilterChain, TransportMatch};
use outrigger_model::matcher::StringMatch;
use outrigger_model::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::resource::Origin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

async fn is_cut(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // A reset is as good as an end.
    let _ = timeout(LONG, stream.read_to_end(&mut rest)).await.expect("still open");
    assert!(rest.is_empty());
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
async fn a_listener_that_goes_away_serves_what_it_has() {
    local(async {
        let authority = authority();
        let mut server = Server::new(&authority).await;
        let mut bare = opened(server.address).await;
        let moved = SocketAddr::from(([127, 0, 0, 9], 1));
        server.rig.apply([listener("in", Direction::Inbound, Some(moved), vec![plain()])]);
        lives(&mut bare).await;
    })
    .await;
}

#[tokio::test]
async fn where_bytes_are_denied_a_slow_request_is_still_waited_for() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(nobody().await);
        let mut bytes = chain("tcp", TransportMatch::Plain, &[], tcp("app"));
        let policy =
            RbacPolicy { permissions: vec![Permission::Any], principals: vec![Principal::Any], origin: None };
        bytes.authorization =
            vec![Rbac { action: RbacAction::Deny, policies: BTreeMap::from([("p".into(), policy)]) }];
        let web = chain("web", TransportMatch::Plain, &["http/1.1", "h2c"], super::mesh::answering());
        rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), vec![web, bytes])]);
        // As if servers spoke first here: the client's time is over before it has begun.
        rig.worker.connections.speakers.server("in");
        let mut slow = TcpStream::connect(address).await.unwrap();
        let mut opaque = TcpStream::connect(address).await.unwrap();
        opaque.write_all(b"\0\0").await.unwrap();
        let _ = timeout(LONG, opaque.read_to_end(&mut Vec::new())).await.unwrap();
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
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        let shed = async {
            while server.rig.worker.ledger.shed_idle(1) == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, shed).await.expect("it is not known to rest");
        assert_eq!(timeout(LONG, silent.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    })
    .await;
}
