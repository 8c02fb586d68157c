//! One policy, two proxies: the same table of requests, over HTTP/1 and over HTTP/2, against our sidecar and against a real Envoy, both
//! driven by the same resource. Where they differ the row says why, and by what each answers.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::BodyExt;
use outrigger_model::listener::{
    Direction, FilterChain, HttpConnection, HttpFilter, Listener, RouteSource, Terminal,
};
use outrigger_model::matcher::{Pattern, StringMatch};
use outrigger_model::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::resource::Resource;
use outrigger_model::route::{
    Forward, HeaderMatch, Route, RouteAction, RouteConfig, RouteMatch, VirtualHost, WeightedCluster,
};
use outrigger_tests::fake_control::{FakeControl, resource, response};
use outrigger_tests::http::{Client, heads, whole};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use outrigger_xds::{ClientKind, Encoded, encode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BINARY;
use crate::foreign::{Foreign, run_envoy};
use crate::thin_thread::catalog;

/// The application, for both.
pub const CLUSTER: &str = "inbound|8080||";

/// A request, what both do with it, and where Envoy differs what it does, and why.
struct Row(&'static str, &'static str, Option<(&'static str, &'static str)>);

const fn same(request: &'static str, outcome: &'static str) -> Row {
    Row(request, outcome, None)
}

/// An outcome is a status, and what the application saw of the request if it saw it.
const TABLE: &[Row] = &[
    // A1: paths. DENY /public/admin*, ALLOW /public/* and x-pass: yes.
    same("GET /public/a", "200 GET /public/a"),
    same("GET /other", "403"),
    same("GET /public/admin", "403"),
    same("GET /public//admin", "403"),
    same("GET //public/admin", "403"),
    same("GET /public/./admin", "403"),
    same("GET /public/x/../admin", "403"),
    same("GET /public/%61dmin", "403"),
    same("GET /public/x/%2e%2e/admin", "403"),
    same("GET /public/x/..;/admin", "403"),
    same("GET /public/x/..;a=b/admin", "403"),
    same("GET /public/../other", "403"),
    same("GET /public/%2E%2e/other", "403"),
    same("GET /public", "403"),
    same("GET /x/../public/a", "200 GET /public/a"),
    same("GET /public//a///b/", "200 GET /public/a/b/"),
    same("GET /public/a/.", "200 GET /public/a/"),
    same("GET /public/%7Eu|\"", "200 GET /public/~u%7C%22"),
    same("GET /public/a%2Fb%5cc", "200 GET /public/a%2Fb%5cc"),
    same("GET /public/a;v=1/b", "200 GET /public/a;v=1/b"),
    same("GET /public/%%36%31dmin", "200 GET /public/%2561dmin"),
    same("GET /public/a?q=//../%61", "200 GET /public/a?q=//../%61"),
    same("GET http://h/public//a", "200 GET /public/a"),
    same("GET http://h/public/x/../admin", "403"),
    same("GET /public/a%00", "400"),
    Row(
        "GET /public\\a",
        "400",
        Some(("200 GET /public/a", "a backslash is no character of a URI; we let none in")),
    ),
    Row(
        "GET /public/..%2fadmin",
        "400",
        Some(("200 GET /public/..%2fadmin", "an application that decodes slashes would climb")),
    ),
    Row(
        "GET /public/x/%2e%2e;/admin",
        "403",
        Some((
            "200 GET /public/x/..;/admin",
            "Envoy decodes after it has looked for dot segments with parameters",
        )),
    ),
    Row(
        "GET /public/;x/admin",
        "400",
        Some((
            "200 GET /public/;x/admin",
            "an application that takes parameters off first (Tomcat) would serve /public/admin",
        )),
    ),
    // A6: methods, headers, hosts, cookies. DENY DELETE, x-role: admin, secret.shop and the cookie user=evil.
    same("DELETE /public/a", "403"),
    same("delete /public/a", "400"),
    same("Get /public/a", "400"),
    same("GET /public/a\nx-role: user", "200 GET /public/a"),
    same("GET /public/a\nx-role: admin", "403"),
    same("GET /public/a\nx-role: user\nx-role: admin", "403"),
    same("GET /public/a\nx-role: admin\nx-role: user", "403"),
    same("GET /other\nx-pass: yes", "200 GET /other"),
    Row(
        "GET /other\nx-pass: yes\nx-pass: no",
        "403",
        Some(("200 GET /other", "Envoy lets any line permit; an application may read the other one")),
    ),
    same("GET /public/a\nHost: secret.shop", "403"),
    same("GET /public/a\nHost: Secret.Shop:8080", "403"),
    same("GET /public/a\nHost: secret.shop.", "403"),
    same("GET /public/a\nHost: secret.shop.:80", "403"),
    same("GET /public/a\nHost: secret.shop.example", "200 GET /public/a"),
    same("GET /public/a\nCookie: a=1; user=evil; b=2", "403"),
    same("GET /public/a\nCookie: a=1; user=good", "200 GET /public/a"),
    Row(
        "GET /public/a\nX_Forwarded_Client_Cert: URI=spiffe://td/ns/a/sa/b",
        "200 GET /public/a",
        Some((
            "200 GET /public/a and x_forwarded_client_cert",
            "Envoy can drop all names with underscores or none; Istio drops none",
        )),
    ),
    // Policy comes before the question whether there is a route.
    same("GET /public/a\nHost: nowhere.shop", "404"),
    same("GET /public/admin\nHost: nowhere.shop", "403"),
    same("GET /other\nHost: nowhere.shop", "403"),
    // A2: tunnels.
    same("GET /public/a\nConnection: Upgrade\nUpgrade: tcp", "403"),
    Row(
        "GET /public/a\nConnection: Upgrade\nUpgrade: websocket",
        "200 GET /public/a",
        Some(("200", "of an answer that does not switch Envoy passes the head alone")),
    ),
];

/// Where an Envoy has another answer to a row over HTTP/2, and why.
const OF_ENVOY_OVER_HTTP2: &[(&str, &str, &str)] = &[
    (
        "delete /public/a",
        "200 delete /public/a",
        "it takes any method there, and what denies DELETE says nothing of it",
    ),
    ("Get /public/a", "200 Get /public/a", "the same"),
];

/// What a row is asked over.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Over {
    Http1,
    Http2,
}

impl Row {
    /// Who switches protocols over HTTP/2 asks otherwise (RFC 8441), and an Envoy listens to that only where it is told to.
    fn is_asked(&self, over: Over) -> bool {
        over == Over::Http1 || !self.0.contains("\nUpgrade: ")
    }

    /// What an Envoy answers.
    fn of_envoy(&self, over: Over) -> &'static str {
        let other =
            OF_ENVOY_OVER_HTTP2.iter().find(|&&(request, ..)| over == Over::Http2 && request == self.0);
        other.map_or_else(|| self.2.map_or(self.1, |(outcome, _)| outcome), |&(_, outcome, _)| outcome)
    }
}

fn header(name: &str, pattern: Pattern, ignore_case: bool) -> Permission {
    Permission::Header(HeaderMatch {
        name: name.into(),
        value: StringMatch { pattern, ignore_case },
        invert: false,
    })
}

fn filter(action: RbacAction, permissions: Vec<Permission>) -> HttpFilter {
    let policy = RbacPolicy { permissions, principals: vec![Principal::Any], origin: None };
    HttpFilter::Rbac(Rbac { action, policies: [("p".to_owned(), policy)].into() })
}

/// The inbound listener of both; they differ by the address alone.
fn listener(address: SocketAddr) -> Encoded {
    let route = Route {
        name: "default".into(),
        matches: RouteMatch::any(),
        action: RouteAction::Forward(Forward {
            clusters: vec![WeightedCluster::only(CLUSTER)],
            ..Forward::default()
        }),
        ..Route::default()
    };
    let host = |name: &str, domain: &str, routes| VirtualHost {
        name: name.into(),
        domains: vec![domain.into()],
        routes,
        retry: None,
    };
    let hosts = vec![host("any", "*", vec![route]), host("nowhere", "nowhere.shop", Vec::new())];
    let routes = RouteConfig { name: CLUSTER.into(), virtual_hosts: hosts };
    let mut http = HttpConnection::new(RouteSource::Inline(routes));
    http.filters = vec![
        filter(
            RbacAction::Deny,
            vec![
                Permission::Path(StringMatch::prefix("/public/admin")),
                header(":method", Pattern::Exact("DELETE".into()), false),
                header("x-role", Pattern::Exact("admin".into()), false),
                header(":authority", Pattern::Exact("secret.shop".into()), true),
                header("cookie", Pattern::Regex("(.*; ?)?user=evil(; ?.*)?".into()), false),
            ],
        ),
        filter(
            RbacAction::Allow,
            vec![
                Permission::Path(StringMatch::prefix("/public/")),
                header("x-pass", Pattern::Exact("yes".into()), false),
            ],
        ),
    ];
    inbound(address, http)
}

/// A listener of both, in plain text.
pub fn inbound(address: SocketAddr, http: HttpConnection) -> Encoded {
    let chain = FilterChain::new("plain-http", Terminal::Http(Box::new(http)));
    let listener = Listener {
        addresses: vec![address],
        chains: vec![chain],
        ..Listener::new(format!("inbound|{address}"), Direction::Inbound)
    };
    encode(&Resource::Listener(listener), ClientKind::Envoy)
}

/// A field of protobuf with a length.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

/// A real Envoy that reads its listener from a file, with clusters of one address each.
pub fn start_envoy(
    mesh: &Mesh,
    envoy: &Path,
    listener: &Encoded,
    clusters: &[(&str, SocketAddr)],
) -> Foreign {
    let any = [field(1, listener.type_url.as_bytes()), field(2, &listener.value)].concat();
    let file = mesh.path("lds.pb");
    std::fs::write(&file, [field(1, b"1"), field(2, &any)].concat()).unwrap();
    let clusters: Vec<_> = clusters
        .iter()
        .map(|(name, to)| {
            let endpoint = json!({ "endpoint": { "address": { "socket_address": {
                "address": to.ip(), "port_value": to.port() } } } });
            // Clusters of this name speak HTTP/2.
            let options = if *name == "grpc" {
                json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} } } })
            } else {
                json!({})
            };
            json!({
                "name": name, "type": "STATIC", "connect_timeout": "5s",
                "typed_extension_protocol_options": options,
                "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] } })
        })
        .collect();
    let bootstrap = json!({
        "node": { "id": "e", "cluster": "e" },
        "dynamic_resources": { "lds_config": {
            "resource_api_version": "V3", "path_config_source": { "path": file } } },
        "static_resources": { "clusters": clusters },
    });
    run_envoy(envoy, &mesh.path(""), &bootstrap)
}

/// Sends a row's request; what came of it.
async fn outcome(to: SocketAddr, row: &str) -> std::io::Result<String> {
    let mut lines = row.lines();
    let mut request = format!("{} HTTP/1.1\r\n", lines.next().unwrap_or_default());
    if !row.contains("\nHost:") {
        request += "Host: h\r\n";
    }
    for line in lines {
        request += &format!("{line}\r\n");
    }
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(format!("{request}\r\n").as_bytes()).await?;
    let mut text = String::new();
    let mut piece = [0; 4096];
    let whole = |text: &str| {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        // Without a length it is chunked, or ends with the connection: its first lines are enough.
        length.map_or(body.contains(" HTTP/1.1\r\n"), |length: usize| body.len() >= length).then_some(())
    };
    while whole(&text).is_none() {
        match stream.read(&mut piece).await? {
            0 => break,
            n => text += &String::from_utf8_lossy(&piece[..n]),
        }
    }
    Ok(told(text.split(' ').nth(1).unwrap_or("closed"), &text))
}

/// The same over HTTP/2, where method, target and host of a row are fields.
async fn outcome_over_http2(to: SocketAddr, row: &str) -> Result<String, String> {
    let mut lines = row.lines();
    let (method, target) = lines.next().and_then(|line| line.split_once(' ')).ok_or("no request line")?;
    let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(": ")).collect();
    let host = fields.iter().find(|(name, _)| *name == "Host").map_or("h", |(_, host)| *host);
    let target = target.strip_prefix("http://h").unwrap_or(target);
    let uri = Uri::builder().scheme("http").authority(host).path_and_query(target).build();
    let mut request = Request::builder().method(method).uri(uri.map_err(|error| error.to_string())?);
    for (name, value) in fields.iter().filter(|(name, _)| *name != "Host") {
        request = request.header(*name, *value);
    }
    let request = request.body(whole(Bytes::new())).map_err(|error| error.to_string())?;
    let mut client = Client::h2(to).await;
    let answer = client.send(request).await.map_err(|error| format!("{error:?}"))?;
    let status = answer.status().as_u16().to_string();
    let text = answer.into_body().collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
    Ok(told(&status, &String::from_utf8_lossy(&text)))
}

/// A status, and what the application saw if it saw it.
fn told(status: &str, text: &str) -> String {
    let Some((_, seen)) = text.split_once("catalog-v1\n") else { return status.to_owned() };
    let line = seen.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1");
    let forged = if seen.to_ascii_lowercase().contains("x_forwarded_client_cert") {
        " and x_forwarded_client_cert"
    } else {
        ""
    };
    format!("{status} {line}{forged}")
}

/// The rows that a proxy answers otherwise than the table says.
async fn surprises(to: SocketAddr, wanted: impl Fn(&Row, Over) -> &'static str) -> Vec<String> {
    let mut found = Vec::new();
    for over in [Over::Http1, Over::Http2] {
        for row in TABLE.iter().filter(|row| row.is_asked(over)) {
            let asked = async {
                match over {
                    Over::Http1 => outcome(to, row.0).await.map_err(|error| error.to_string()),
                    Over::Http2 => outcome_over_http2(to, row.0).await,
                }
            };
            let answer = tokio::time::timeout(Duration::from_secs(20), asked).await;
            let answer = answer.unwrap_or(Err("no answer".into())).unwrap_or_else(|error| error);
            let wanted = wanted(row, over);
            if answer != wanted {
                found.push(format!("{over:?} {:?}: {answer:?}, and not {wanted:?}", row.0));
            }
        }
    }
    found
}

async fn ready(what: &str, to: SocketAddr) {
    eventually(what, || async {
        let answer = outcome(to, "GET /public/admin").await.map_err(|error| error.to_string())?;
        if answer == "403" { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_policy_means_the_same_to_our_sidecar_and_to_an_envoy() {
    let mut mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    heads(catalog.app, "catalog-v1").await;
    let mut fake = FakeControl::usurp(&mut mesh).await;
    let mut line = fake.line().await;
    let ours = listener(catalog.inbound);
    let name = format!("inbound|{}", catalog.inbound);
    line.say(response("table", ours.type_url, vec![resource(&name, ours.type_url, ours.value)], &[])).await;
    assert_eq!(line.answer("table").await, None, "the sidecar takes what Envoy is sent");
    ready("the sidecar enforces the policy", catalog.inbound).await;
    let found = surprises(catalog.inbound, |row, _| row.1).await;
    assert!(found.is_empty(), "our sidecar:\n{}", found.join("\n"));

    let Some(envoy) = require::tool("envoy") else { return };
    let address = mesh.address(31, 8080);
    let _envoy = start_envoy(&mesh, &envoy, &listener(address), &[(CLUSTER, catalog.app)]);
    ready("the Envoy enforces the policy", address).await;
    let found = surprises(address, Row::of_envoy).await;
    assert!(found.is_empty(), "the Envoy:\n{}", found.join("\n"));
    assert!(TABLE.iter().all(|row| row.2.is_none_or(|(outcome, why)| outcome != row.1 && !why.is_empty())));
    // Each is of a row that there is, and another answer than over HTTP/1.
    let is_of =
        |row: &Row, other: &str| row.0 == other && row.of_envoy(Over::Http1) != row.of_envoy(Over::Http2);
    assert!(OF_ENVOY_OVER_HTTP2.iter().all(|&(other, ..)| TABLE.iter().any(|row| is_of(row, other))));
}
