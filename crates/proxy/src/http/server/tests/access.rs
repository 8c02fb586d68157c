//! Who gets in: what policy judges is what is forwarded, and nothing gets around it by another spelling or through a tunnel.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use outrigger_model::ext_authz::{AuthzService, ExtAuthz, HttpAuthz};
use outrigger_model::listener::{Direction, HttpFilter};
use outrigger_model::matcher::StringMatch;
use outrigger_model::path::PathNormalization;
use outrigger_model::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::route::{PathMatch, RouteMatch, RouteUpgrade};
use outrigger_model::token::{JwtAuthn, JwtProvider, Requirement, TokenRule};

use super::rig::*;
use super::world;
use crate::protocol::HttpVersion::{self, Http1, Http2};

mod alike;
mod bearers;

/// Answers with the request line and the fields that it saw.
async fn mirror() -> SocketAddr {
    upstream(|_, mut wire| async move {
        loop {
            let head = wire.head().await;
            wire.send(&ok(&head.replace("\r\n", "|"))).await;
        }
    })
    .await
}

fn rbac(action: RbacAction, permission: Permission) -> HttpFilter {
    let policy = RbacPolicy { permissions: vec![permission], principals: vec![Principal::Any], origin: None };
    HttpFilter::Rbac(Rbac { action, policies: [("p".to_owned(), policy)].into() })
}

fn on_path(action: RbacAction, prefix: &str) -> HttpFilter {
    rbac(action, Permission::Path(StringMatch::prefix(prefix)))
}

/// Status and body.
async fn say(address: SocketAddr, request: &str) -> (u16, String) {
    let mut client = Wire::connect(address).await;
    client.send(request).await;
    let head = client.head().await;
    let length = headers(&head).get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    (head[9..12].parse().unwrap(), client.bytes(length).await)
}

async fn get(address: SocketAddr, target: &str) -> (u16, String) {
    say(address, &format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await
}

async fn guarded(filters: Vec<HttpFilter>, version: HttpVersion) -> Rig {
    let mut setup = Setup::to(&[mirror().await]);
    setup.http.filters = filters;
    setup.direction = Direction::Inbound;
    proxy(setup, version).await
}

#[tokio::test]
async fn a_denied_path_is_denied_in_every_spelling() {
    run(async {
        let rig = guarded(vec![on_path(RbacAction::Deny, "/admin")], Http1).await;
        for target in [
            "/admin",
            "//admin",
            "/./admin",
            "/x/../admin",
            "/%61dmin",
            "/x/%2e%2e/admin",
            "/x/..;/admin",
            "http://a//admin",
            "http://a/x/../admin?q=1",
        ] {
            assert_eq!(get(rig.address, target).await.0, 403, "{target}");
        }
        for (target, wanted) in [
            ("/a//b/./c?x=//y/../%61", "GET /a/b/c?x=//y/../%61 HTTP/1.1"),
            ("/%7Euser", "GET /~user HTTP/1.1"),
            ("/a%2Fb", "GET /a%2Fb HTTP/1.1"),
            ("http://a/b/..", "GET / HTTP/1.1"),
        ] {
            let (status, body) = get(rig.address, target).await;
            assert!(status == 200 && body.starts_with(wanted), "{target}: {status} {body}");
        }
        for target in ["/a%00", "/x/..%2fadmin", "/x\\..\\admin"] {
            assert_eq!(get(rig.address, target).await.0, 400, "{target}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_allowed_path_lets_nothing_climb_out_of_it() {
    run(async {
        let rig = guarded(vec![on_path(RbacAction::Allow, "/public/")], Http1).await;
        assert_eq!(get(rig.address, "/public/a").await.0, 200);
        for target in
            ["/public/../admin", "/public/%2e%2e/admin", "/public/..;/admin", "/public/a/../../admin"]
        {
            assert_eq!(get(rig.address, target).await.0, 403, "{target}");
        }
        assert_eq!(get(rig.address, "/public/..%2fadmin").await.0, 400);
    })
    .await;
}

#[tokio::test]
async fn routes_and_rewrites_see_the_one_form() {
    run(async {
        let mut setup = Setup::to(&[mirror().await]);
        setup.route.matches.path = PathMatch::Prefix("/a".into());
        setup.forward().rewrite.prefix = Some("/files".into());
        let rig = proxy(setup, Http1).await;
        let (status, body) = get(rig.address, "/x/..//a/b").await;
        assert!(status == 200 && body.starts_with("GET /files/b HTTP/1.1"), "{status} {body}");
        // The prefix matches half a segment: what is left of it must not climb.
        let (status, body) = get(rig.address, "/a/../a../secret").await;
        assert!(status == 200 && body.starts_with("GET /files../secret HTTP/1.1"), "{status} {body}");
        let mut setup = Setup::to(&[mirror().await]);
        setup.route.matches.path = PathMatch::Prefix("/a".into());
        setup.forward().rewrite.prefix = Some("/files/".into());
        let rig = proxy(setup, Http1).await;
        let (_, body) = get(rig.address, "/a../secret").await;
        assert!(body.starts_with("GET /secret HTTP/1.1"), "{body}");
    })
    .await;
}

#[tokio::test]
async fn a_mode_that_normalises_nothing_forwards_what_was_sent() {
    run(async {
        let mut setup = Setup::to(&[mirror().await]);
        setup.http.path = PathNormalization::NONE;
        let rig = proxy(setup, Http1).await;
        let (_, body) = get(rig.address, "//a/../%61%00").await;
        assert!(body.starts_with("GET //a/../%61%00 HTTP/1.1"), "{body}");
    })
    .await;
}

async fn h2_client(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::task::spawn_local(connection);
    while !send.is_extended_connect_protocol_enabled() {
        send = send.ready().await.unwrap();
        tokio::task::yield_now().await;
    }
    send
}

async fn h2_status(send: &mut h2::client::SendRequest<Bytes>, request: Request<()>) -> Option<u16> {
    let (response, _stream) = send.send_request(request, false).unwrap();
    response.await.ok().map(|response| response.status().as_u16())
}

fn extended(path: &str, protocol: &'static str) -> Request<()> {
    let request = Request::builder().method("CONNECT").uri(format!("http://a{path}"));
    request.extension(h2::ext::Protocol::from_static(protocol)).body(()).unwrap()
}

#[tokio::test]
async fn http2_is_judged_by_the_same_path_and_an_extended_connect_as_a_get() {
    run(async {
        let method = |name: &str| outrigger_model::route::HeaderMatch {
            name: ":method".into(),
            value: StringMatch::exact(name),
            invert: false,
        };
        let filters = vec![
            on_path(RbacAction::Deny, "/admin"),
            rbac(
                RbacAction::Deny,
                Permission::And(vec![
                    Permission::Header(method("GET")),
                    Permission::Path(StringMatch::prefix("/chat/closed")),
                ]),
            ),
        ];
        let mut setup = Setup::to(&[mirror().await]);
        setup.http.filters = filters;
        setup.cluster.protocol = outrigger_model::cluster::UpstreamProtocol::Http1;
        setup.direction = Direction::Inbound;
        let rig = proxy(setup, Http2).await;
        let mut send = h2_client(rig.address).await;
        for path in ["//admin", "/x/../admin", "/%61dmin"] {
            let request = Request::builder().uri(format!("http://a{path}")).body(()).unwrap();
            assert_eq!(h2_status(&mut send, request).await, Some(403), "{path}");
        }
        assert_eq!(h2_status(&mut send, extended("/chat/closed", "websocket")).await, Some(403));
        // The server does not switch: its own answer comes.
        assert_eq!(h2_status(&mut send, extended("/chat/open", "websocket")).await, Some(200));
        assert_eq!(h2_status(&mut send, extended("/chat/open", "tcp")).await, Some(403));
    })
    .await;
}

#[tokio::test]
async fn connect_is_refused_where_no_route_asks_for_it() {
    run(async {
        let rig = guarded(Vec::new(), Http1).await;
        let connect = "CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example:443\r\n\r\n";
        assert_eq!(say(rig.address, connect).await.0, 404);
        // Even where one does, an ALLOW by path says nothing of a request without one.
        let mut setup = Setup::to(&[mirror().await]);
        setup.route.matches.path = PathMatch::Connect;
        setup.http.filters = vec![on_path(RbacAction::Allow, "")];
        setup.direction = Direction::Inbound;
        let rig = proxy(setup, Http1).await;
        assert_eq!(say(rig.address, connect).await.0, 403);
    })
    .await;
}

fn upgrade(protocol: &str) -> String {
    format!("GET /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n")
}

#[tokio::test]
async fn an_upgrade_passes_where_it_is_allowed_and_nowhere_else() {
    run(async {
        let rig = guarded(Vec::new(), Http1).await;
        assert_eq!(say(rig.address, &upgrade("websocket")).await.0, 200);
        for protocol in ["tcp", "SPDY/3.1", "websocket, tcp", "websocket\r\nUpgrade: tcp"] {
            let (status, body) = say(rig.address, &upgrade(protocol)).await;
            assert!(status == 403 && body.contains("is not allowed here"), "{protocol}: {status} {body}");
        }
        let mut setup = Setup::to(&[mirror().await]);
        setup.http.upgrades = vec!["spdy".into()];
        setup.forward().upgrades = vec![RouteUpgrade { protocol: "tcp".into(), allowed: true }];
        let rig = proxy(setup, Http1).await;
        for (protocol, wanted) in [("tcp", 200), ("SPDY/3.1", 200), ("tcp, spdy", 200), ("websocket", 403)] {
            assert_eq!(say(rig.address, &upgrade(protocol)).await.0, wanted, "{protocol}");
        }
    })
    .await;
}

/// Applies another policy to a running rig.
fn apply(rig: &Rig, app: SocketAddr, filters: Vec<HttpFilter>) {
    let mut setup = Setup::to(&[app]);
    setup.http.filters = filters;
    replace(rig, setup);
}

/// Applies another configuration to a running rig.
fn replace(rig: &Rig, mut setup: Setup) {
    setup.direction = Direction::Inbound;
    let mut next = world::snapshot(setup, &rig.worker.snapshot());
    next.generation = rig.worker.snapshot().generation + 1;
    rig.worker.process.swap(next);
}

#[tokio::test]
async fn a_tunnel_is_judged_again_when_policy_changes() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            wire.head().await;
            wire.send(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            )
            .await;
            wire.rest().await;
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.direction = Direction::Inbound;
        let rig = proxy(setup, Http1).await;
        let mut open = Vec::new();
        for path in ["/exec", "/chat"] {
            let mut client = Wire::connect(rig.address).await;
            client.send(&upgrade("websocket").replace("/exec", path)).await;
            assert!(client.head().await.starts_with("HTTP/1.1 101"));
            open.push(client);
        }
        let mut chat = open.pop().unwrap();
        let mut exec = open.pop().unwrap();
        apply(&rig, app, vec![on_path(RbacAction::Deny, "/other")]);
        apply(&rig, app, vec![on_path(RbacAction::Deny, "/exec")]);
        // It ends, without a word of the client.
        assert_eq!(exec.rest().await, "");
        apply(&rig, app, vec![on_path(RbacAction::Deny, "/chat")]);
        assert_eq!(chat.rest().await, "");
    })
    .await;
}

/// Both ways of a stream that is a tunnel.
type Stream = (h2::SendStream<Bytes>, h2::RecvStream);

async fn opened(send: &mut h2::client::SendRequest<Bytes>, path: &str) -> Stream {
    let (response, up) = send.send_request(extended(path, "websocket"), false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    (up, response.into_body())
}

async fn passes((up, down): &mut Stream) {
    up.send_data(Bytes::from_static(b"x"), false).unwrap();
    assert_eq!(down.data().await.unwrap().unwrap(), "x");
}

/// As a connection would be reset (RFC 8441, section 5).
async fn is_cancelled((_up, mut down): Stream) {
    let error = down.data().await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "{error}");
}

/// It ends by itself: whatever else its connection carries goes on.
#[tokio::test]
async fn a_tunnel_over_http2_is_judged_again_when_policy_changes() {
    run(async {
        let app = tunnels().await;
        let denying = |path: &str| {
            let mut setup = Setup::to(&[app]);
            setup.http.filters = vec![on_path(RbacAction::Deny, path)];
            setup.cluster.protocol = outrigger_model::cluster::UpstreamProtocol::Http1;
            setup.direction = Direction::Inbound;
            setup
        };
        let rig = proxy(denying("/other"), Http2).await;
        let mut send = h2_client(rig.address).await;
        let mut exec = opened(&mut send, "/exec").await;
        let mut chat = opened(&mut send, "/chat").await;
        passes(&mut exec).await;
        replace(&rig, denying("/another"));
        passes(&mut exec).await;
        replace(&rig, denying("/exec"));
        is_cancelled(exec).await;
        passes(&mut chat).await;
        assert_eq!(h2_status(&mut send, extended("/exec", "websocket")).await, Some(403));
        replace(&rig, denying("/chat"));
        is_cancelled(chat).await;
        passes(&mut opened(&mut send, "/exec").await).await;
    })
    .await;
}

/// Opens tunnels and sends back what comes through them.
async fn tunnels() -> SocketAddr {
    upstream(|_, mut wire| async move {
        let head = wire.head().await;
        let upgrade = headers(&head).get("upgrade").cloned();
        match upgrade {
            Some(to) => {
                let head = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: {to}\r\nConnection: Upgrade\r\n\r\n"
                );
                wire.send(&head).await;
            }
            None => wire.send("HTTP/1.1 200 OK\r\n\r\n").await,
        }
        let (mut from, mut to) = wire.stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await
}

async fn is_open(client: &mut Wire) {
    client.send("x").await;
    assert_eq!(client.bytes(1).await, "x");
}

/// Opens a tunnel by the first configuration, which the second forbids.
async fn ends(app: SocketAddr, request: &str, first: &dyn Fn() -> Setup, second: Setup) {
    let mut setup = first();
    setup.direction = Direction::Inbound;
    let rig = proxy(setup, Http1).await;
    let mut client = Wire::connect(rig.address).await;
    client.send(request).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101") || head.starts_with("HTTP/1.1 200"), "{head}");
    is_open(&mut client).await;
    // The same once more changes nothing, nor does a policy that lets it pass.
    replace(&rig, first());
    is_open(&mut client).await;
    let mut other = first();
    other.http.filters.push(rbac(RbacAction::Allow, Permission::Any));
    replace(&rig, other);
    is_open(&mut client).await;
    replace(&rig, second);
    assert_eq!(client.rest().await, "", "{app} {request}");
}

#[tokio::test]
async fn a_tunnel_ends_when_what_it_needed_is_withdrawn_or_what_it_lacks_is_wanted() {
    run(async {
        let app = tunnels().await;
        let plain = || Setup::to(&[app]);
        let with = |edit: &dyn Fn(&mut Setup)| {
            let mut setup = plain();
            edit(&mut setup);
            setup
        };
        // The port no longer allows the protocol.
        ends(app, &upgrade("tcp"), &|| with(&|setup| setup.http.upgrades = vec!["tcp".into()]), plain())
            .await;
        // No route asks for CONNECT.
        let connect = "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n";
        ends(app, connect, &|| with(&|setup| setup.route.matches.path = PathMatch::Connect), plain()).await;
        // Somebody is to be asked, who was not.
        let custom = |name: &str| {
            let mut authz = ExtAuthz::new(AuthzService::Http(HttpAuthz::default()), "authz");
            authz.name = name.to_owned();
            HttpFilter::ExtAuthz(Box::new(authz))
        };
        let asks = with(&|setup| {
            setup.http.filters = vec![custom("b")];
            setup.others.push(outrigger_model::cluster::Cluster::new("authz"));
        });
        ends(app, &upgrade("websocket"), &plain, asks).await;
        // A token is needed.
        let provider = JwtProvider::new("https://issuer", r#"{"keys": []}"#);
        let requires = Requirement::Provider { name: "p".into(), audiences: Vec::new() };
        let tokens = JwtAuthn {
            providers: [("p".to_owned(), provider)].into(),
            rules: vec![TokenRule { matches: RouteMatch::default(), requires }],
            bypass_preflight: false,
        };
        let bears = with(&|setup| setup.http.filters = vec![HttpFilter::Tokens(Box::new(tokens.clone()))]);
        ends(app, &upgrade("websocket"), &plain, bears).await;
    })
    .await;
}

#[tokio::test]
async fn rules_that_are_replaced_one_by_one_end_no_websocket() {
    run(async {
        let app = tunnels().await;
        let mut setup = Setup::to(&[app]);
        setup.direction = Direction::Inbound;
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send(&upgrade("websocket")).await;
        assert!(client.head().await.starts_with("HTTP/1.1 101"));
        let mut setup = Setup::to(&[app]);
        setup.route.matches.path = PathMatch::Prefix("/other".into());
        replace(&rig, setup);
        is_open(&mut client).await;
        apply(&rig, app, vec![on_path(RbacAction::Deny, "/exec")]);
        assert_eq!(client.rest().await, "");
    })
    .await;
}

#[tokio::test]
async fn look_alikes_of_methods_and_names_do_not_pass() {
    run(async {
        let rig = guarded(Vec::new(), Http1).await;
        for method in ["get", "Get", "pOST", "connect"] {
            let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(say(rig.address, &request).await.0, 400, "{method}");
        }
        let forged = "X_Forwarded_Client_Cert: URI=spiffe://td/ns/a/sa/b\r\nx-forwarded_for: 1\r\n\
                      X_Outrigger_Peer: 1\r\nx_envoy_attempt_count: 1\r\nX-Request_Id: 1\r\nx_custom: kept\r\n\
                      X.Forwarded.Client.Cert: URI=spiffe://td/ns/a/sa/b\r\nx~outrigger!peer: 1\r\nx.custom: kept\r\n";
        let (status, body) =
            say(rig.address, &format!("GET / HTTP/1.1\r\nHost: a\r\n{forged}\r\n")).await;
        let body = body.to_ascii_lowercase();
        assert!(status == 200 && body.contains("x_custom: kept"), "{status} {body}");
        let odd = |line: &&str| line.split(": ").next().is_some_and(|name| name.contains(['_', '.', '~', '!']));
        let left: Vec<_> = body.split('|').filter(|line| !line.contains('/')).filter(odd).collect();
        assert_eq!(left, ["x_custom: kept", "x.custom: kept"]);
        assert!(!body.contains("spiffe"), "{body}");
    })
    .await;
}
