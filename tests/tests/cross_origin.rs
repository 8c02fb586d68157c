//! Other origins and mirrors: the same requests to our sidecar and to a real Envoy, both driven by the same resources, have the same
//! answers, and what the mirrors receive is the same.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_model::cluster::{Cluster, Discovery};
use outrigger_model::endpoint::{Endpoint, EndpointSet, LocalityEndpoints};
use outrigger_model::listener::{HttpConnection, RouteSource};
use outrigger_model::matcher::{Pattern, StringMatch};
use outrigger_model::resource::Resource;
use outrigger_model::route::{
    Cors, Forward, HeaderEdits, Mirror, PathMatch, Rewrite, Route, RouteAction, RouteConfig, RouteMatch,
    VirtualHost, WeightedCluster,
};
use outrigger_tests::app::echo;
use outrigger_tests::fake_control::{FakeControl, resource, response};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::recorder::{self, Received, recorder};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use outrigger_xds::{ClientKind, Encoded, encode};

use crate::BINARY;
use crate::paths::{CLUSTER, inbound, start_envoy};
use crate::thin_thread::catalog;

/// Requests, one after the other; the mirrored ones begin with `/mirrored`.
const REQUESTS: &[&str] = &[
    // Preflights, of an origin that is allowed, of one that is by its suffix, of one that is not, and of none.
    "OPTIONS /open\nOrigin: https://shop.example\nAccess-Control-Request-Method: PUT",
    "OPTIONS /open\nOrigin: https://a.trusted.example\nAccess-Control-Request-Method: PUT\nAccess-Control-Request-Headers: x-a",
    "OPTIONS /open\nOrigin: https://other.example\nAccess-Control-Request-Method: PUT",
    "OPTIONS /open\nAccess-Control-Request-Method: PUT",
    "OPTIONS /open\nOrigin: https://shop.example",
    "OPTIONS /closed\nOrigin: https://other.example\nAccess-Control-Request-Method: PUT",
    "OPTIONS /closed\nOrigin: https://shop.example\nAccess-Control-Request-Method: PUT\nAccess-Control-Request-Headers: x-a, x-b\nAccess-Control-Request-Private-Network: true",
    // Simple requests.
    "GET /open\nOrigin: https://shop.example",
    "GET /open\nOrigin: https://other.example",
    "GET /open",
    "GET /closed\nOrigin: https://shop.example",
    "GET /plain\nOrigin: https://shop.example",
    // Copies.
    "GET /mirrored/a?b=c\nx-app: 1",
    "POST /mirrored/b\nHost: shop.example:8080\nContent-Length: 5\n\nhello",
];

fn route(prefix: &str, cors: Option<Cors>) -> Route {
    let forward = Forward { clusters: vec![WeightedCluster::only(CLUSTER)], ..Forward::default() };
    Route {
        name: prefix.into(),
        matches: RouteMatch { path: PathMatch::Prefix(prefix.into()), ..RouteMatch::any() },
        action: RouteAction::Forward(forward),
        cors,
        ..Route::default()
    }
}

fn listener(address: SocketAddr) -> Encoded {
    let suffix = StringMatch { pattern: Pattern::Suffix(".trusted.example".into()), ignore_case: false };
    let open = Cors {
        allow_origins: vec![StringMatch::exact("https://shop.example"), suffix],
        allow_methods: "GET, PUT".into(),
        allow_headers: "x-a,x-b".into(),
        expose_headers: "x-app-name".into(),
        max_age: "86400".into(),
        allow_credentials: true,
        ..Cors::default()
    };
    let closed = Cors {
        allow_origins: vec![StringMatch::exact("https://shop.example")],
        allow_methods: "*".into(),
        allow_headers: "*".into(),
        allow_private_network: true,
        forward_not_matching: false,
        ..Cors::default()
    };
    let mut mirrored = route("/mirrored", None);
    mirrored.request_headers =
        HeaderEdits { set: vec![("x-set".into(), "yes".into())], ..HeaderEdits::default() };
    if let RouteAction::Forward(forward) = &mut mirrored.action {
        let never = Mirror { percentage: 0.0, ..Mirror::all("second") };
        forward.mirrors =
            vec![Mirror::all("first"), never, Mirror { keep_host: true, ..Mirror::all("second") }];
        forward.rewrite = Rewrite { prefix: Some("/new".into()), ..Rewrite::default() };
    }
    let routes = vec![route("/open", Some(open)), route("/closed", Some(closed)), mirrored, route("/", None)];
    let host = VirtualHost { name: "any".into(), domains: vec!["*".into()], routes, retry: None };
    let routes = RouteConfig { name: CLUSTER.into(), virtual_hosts: vec![host] };
    inbound(address, HttpConnection::new(RouteSource::Inline(routes)))
}

fn cluster(name: &str, to: SocketAddr) -> Encoded {
    let endpoint = Endpoint::new(to);
    let locality = LocalityEndpoints { weight: 1, endpoints: vec![endpoint], ..LocalityEndpoints::default() };
    let discovery = Discovery::Static(EndpointSet::new(name, vec![locality]));
    encode(&Resource::Cluster(Cluster { discovery, ..Cluster::new(name) }), ClientKind::Envoy)
}

/// A mirror, which answers with an error: nobody may notice.
async fn mirror() -> (SocketAddr, Received) {
    recorder(seen, |_| Some("500 Internal Server Error\r\ncontent-length: 4\r\n\r\noops")).await
}

/// What of a copy must be the same: its request line, host, our edits, the application's own header, the body.
fn seen(copy: &str) -> String {
    let (head, body) = copy.split_once("\r\n\r\n").unwrap();
    let wanted = ["host:", "x-set:", "x-app:", "content-length:", "x-envoy-original-path:"];
    let mut lines: Vec<String> = head.lines().skip(1).map(str::to_ascii_lowercase).collect();
    lines.retain(|line| wanted.iter().any(|name| line.starts_with(name)));
    lines.sort();
    format!("{} | {} | {body}", head.lines().next().unwrap(), lines.join(", "))
}

/// What of an answer must be the same: status, what is said of origins, whether the application was asked.
fn answered(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let mut lines: Vec<String> = head.lines().skip(1).map(str::to_owned).collect();
    lines.iter_mut().for_each(|line| {
        if let Some((name, value)) = line.split_once(':') {
            *line = format!("{}:{value}", name.to_ascii_lowercase());
        }
    });
    lines.retain(|line| line.starts_with("access-control-"));
    lines.sort();
    let status = head.split(' ').nth(1).unwrap_or("closed");
    format!("{status}; {}; app={}", lines.join(", "), body.starts_with("catalog-v1"))
}

async fn ask(to: SocketAddr, request: &str) -> std::io::Result<String> {
    Ok(recorder::ask(to, request).await?.map_or_else(|| "closed".into(), |answer| answered(&answer)))
}

/// All answers of a proxy, and then what the mirrors have received.
async fn behaviour(to: SocketAddr, mirrors: &[&Received]) -> Vec<String> {
    mirrors.iter().for_each(|received| received.lock().unwrap().clear());
    let mut all = Vec::new();
    for request in REQUESTS {
        let answer = tokio::time::timeout(Duration::from_secs(20), ask(to, request)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".into(),
        };
        all.push(format!("{request:?} -> {answer}"));
    }
    eventually("the copies come", || async {
        let count = |received: &&Received| received.lock().unwrap().len();
        let counts: Vec<_> = mirrors.iter().map(count).collect();
        if counts == [2, 2] { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
    for (n, received) in mirrors.iter().enumerate() {
        let mut copies = received.lock().unwrap().clone();
        copies.sort();
        all.extend(copies.into_iter().map(|copy| format!("mirror {n}: {copy}")));
    }
    all
}

async fn ready(what: &str, to: SocketAddr) {
    eventually(what, || async {
        let answer = ask(to, "GET /open\nOrigin: https://shop.example").await.map_err(|e| e.to_string())?;
        if answer.contains("allow-origin") { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_origins_and_mirrors_are_the_same_to_our_sidecar_and_to_an_envoy() {
    let mut mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    echo(catalog.app, "catalog-v1").await;
    let ((first, one), (second, two)) = (mirror().await, mirror().await);
    let mut fake = FakeControl::usurp(&mut mesh).await;
    let mut line = fake.line().await;
    let clusters = [("first", cluster("first", first)), ("second", cluster("second", second))];
    let url = clusters[0].1.type_url;
    let all = clusters.into_iter().map(|(name, encoded)| resource(name, url, encoded.value)).collect();
    line.say(response("clusters", url, all, &[])).await;
    assert_eq!(line.answer("clusters").await, None);
    let ours = listener(catalog.inbound);
    let name = format!("inbound|{}", catalog.inbound);
    line.say(response("listener", ours.type_url, vec![resource(&name, ours.type_url, ours.value)], &[]))
        .await;
    assert_eq!(line.answer("listener").await, None, "the sidecar takes what Envoy is sent");
    ready("the sidecar knows of origins", catalog.inbound).await;
    let ours = behaviour(catalog.inbound, &[&one, &two]).await;
    let preflight = "allow-credentials: true, access-control-allow-headers: x-a,x-b, access-control-allow-methods: GET, PUT";
    assert!(ours[0].contains(preflight) && ours[0].ends_with("app=false"), "{}", ours[0]);
    assert!(
        ours.iter()
            .any(|line| line.starts_with("mirror 0: POST /new/b HTTP/1.1") && line.ends_with("| hello"))
    );

    let Some(envoy) = require::tool("envoy") else { return };
    let address = mesh.address(31, 8080);
    let clusters = [(CLUSTER, catalog.app), ("first", first), ("second", second)];
    let _envoy = start_envoy(&mesh, &envoy, &listener(address), &clusters);
    ready("the Envoy knows of origins", address).await;
    let theirs = behaviour(address, &[&one, &two]).await;
    let differ: Vec<_> = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs).collect();
    assert!(differ.is_empty() && ours.len() == theirs.len(), "ours, theirs: {differ:#?}");
}
