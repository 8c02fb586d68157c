//! Authorization by a service that is asked, over HTTP and over gRPC: the same requests to our sidecar and to a real Envoy, both driven
//! by the same resources, are asked about in the same words and have the same answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::BoolValue;
use envoy_types::pb::google::rpc;
use outrigger_model::cluster::{Cluster, Discovery, UpstreamProtocol};
use outrigger_model::endpoint::{Endpoint, EndpointSet, LocalityEndpoints};
use outrigger_model::ext_authz::{
    AuthzBody, AuthzService, CheckSettings, ExtAuthz, HttpAuthz, RouteAuthz, RouteBody,
};
use outrigger_model::listener::{HttpConnection, HttpFilter, RouteSource};
use outrigger_model::matcher::StringMatch;
use outrigger_model::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::resource::Resource;
use outrigger_model::route::{
    Forward, PathMatch, Route, RouteAction, RouteConfig, RouteMatch, VirtualHost, WeightedCluster,
};
use outrigger_tests::app::echo;
use outrigger_tests::fake_control::{FakeControl, resource, response};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::recorder::{self, Received, recorder};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use outrigger_xds::{ClientKind, Encoded, encode};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::BINARY;
use crate::paths::{CLUSTER, inbound, start_envoy};
use crate::thin_thread::catalog;

const REQUESTS: &[&str] = &[
    "GET /allow/a?b=c\nx-allowed: 1\nx-other: 2\nAuthorization: Bearer t\nx-user: forged\nx-secret: s",
    "POST /allow/b\nContent-Length: 3\n\nabc",
    "POST /allow/c\nContent-Length: 10\n\n0123456789",
    "GET /deny",
    "GET /error",
    "GET /slow",
    "GET /route/off/deny",
    "POST /route/told/allow\nContent-Length: 3\n\nabc",
    "POST /route/body/allow\nContent-Length: 3\n\nabc",
];

/// The words of the questions, in order.
type Questions = Received;

/// An HTTP service that judges by the path.
async fn http_service() -> (SocketAddr, Questions) {
    recorder(words, |question| match question.split(' ').nth(1).unwrap_or_default() {
        path if path.contains("/allow") => {
            Some("200 OK\r\nx-user: ann\r\nx-resp: r\r\nx-none: n\r\ncontent-length: 0\r\n\r\n")
        }
        path if path.contains("/deny") => Some(
            "401 Unauthorized\r\nwww-authenticate: Basic\r\nx-why: no\r\nx-none: n\r\ncontent-length: 4\r\n\r\nwho?",
        ),
        path if path.contains("/error") => Some("500 Oops\r\ncontent-length: 0\r\n\r\n"),
        _ => None,
    })
    .await
}

/// What of a question over HTTP must be the same.
fn words(question: &str) -> String {
    let (head, body) = question.split_once("\r\n\r\n").unwrap();
    let wanted = [
        "host:",
        "authorization:",
        "x-allowed:",
        "x-other:",
        "x-key:",
        "content-length:",
        "x-envoy-auth-partial-body:",
    ];
    let mut lines: Vec<String> = head.lines().skip(1).map(str::to_ascii_lowercase).collect();
    lines.retain(|line| wanted.iter().any(|name| line.starts_with(name)));
    lines.sort();
    format!("{} | {} | {body}", head.lines().next().unwrap(), lines.join(", "))
}

struct GrpcService(Questions);

#[tonic::async_trait]
impl Authorization for GrpcService {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let attributes = request.get_ref().attributes.clone().unwrap_or_default();
        let source = attributes.source.is_some_and(|source| source.address.is_some());
        let tier = attributes.context_extensions.get("tier").cloned();
        let http = attributes.request.and_then(|request| request.http).unwrap_or_default();
        let header = |name: &str| http.headers.get(name).cloned().unwrap_or_default();
        let names = [
            ":method",
            ":path",
            ":authority",
            "x-allowed",
            "x-other",
            "authorization",
            "x-envoy-auth-partial-body",
        ];
        self.0.lock().unwrap().push(format!(
            "{} {} {} {} size={} body={:?} source={source} tier={tier:?} {:?}",
            http.method,
            http.path,
            http.host,
            http.protocol,
            http.size,
            http.body,
            names.map(header),
        ));
        let option = |key: &str, value: &str| HeaderValueOption {
            header: Some(HeaderValue { key: key.into(), value: value.into(), ..Default::default() }),
            ..Default::default()
        };
        #[allow(deprecated)] // what Envoy reads here
        let added = |key: &str, value: &str| HeaderValueOption {
            append: Some(BoolValue { value: true }),
            ..option(key, value)
        };
        let answer = |code: i32, response| {
            let status = Some(rpc::Status { code, ..Default::default() });
            Ok(Response::new(CheckResponse { status, http_response: Some(response), ..Default::default() }))
        };
        match http.path.as_str() {
            path if path.contains("/allow") => answer(
                0,
                HttpResponse::OkResponse(OkHttpResponse {
                    headers: vec![
                        added("x-other", "3"),
                        added("x-absent", "3"),
                        option("x-user", "ann"),
                        option("x-gone", "set and taken out"),
                    ],
                    headers_to_remove: vec!["x-secret".into(), "x-gone".into()],
                    response_headers_to_add: vec![option("x-resp", "r")],
                    ..Default::default()
                }),
            ),
            "/deny" => answer(
                16,
                HttpResponse::DeniedResponse(DeniedHttpResponse {
                    status: Some(HttpStatus { code: 401 }),
                    headers: vec![option("x-why", "no"), option("www-authenticate", "Basic")],
                    body: "who?".into(),
                }),
            ),
            "/error" => Err(Status::internal("oops")),
            _ => std::future::pending().await,
        }
    }
}

async fn grpc_service() -> (SocketAddr, Questions) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), grpc_service_on(listener))
}

/// A gRPC service that judges by the path.
pub fn grpc_service_on(listener: TcpListener) -> Questions {
    let questions = Questions::default();
    let service = AuthorizationServer::new(GrpcService(questions.clone()));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    questions
}

/// What is asked in how many ways, by name.
fn settings() -> Vec<(&'static str, ExtAuthz)> {
    let timeout = Duration::from_secs(1);
    let body = |allow_partial| Some(AuthzBody { max_bytes: 4, allow_partial, as_bytes: false });
    let http = HttpAuthz {
        path_prefix: "/check".into(),
        headers_to_add: vec![("x-key".into(), "k".into())],
        upstream_headers: vec![StringMatch::exact("x-user")],
        client_headers: Some(vec![StringMatch::exact("x-why")]),
        client_headers_on_success: vec![StringMatch::exact("x-resp")],
        ..HttpAuthz::default()
    };
    let http = ExtAuthz {
        timeout,
        body: body(true),
        allowed_headers: Some(vec![StringMatch::exact("x-allowed")]),
        ..ExtAuthz::new(AuthzService::Http(http), "http")
    };
    let open = AuthzService::Http(HttpAuthz::default());
    let open = ExtAuthz {
        timeout,
        failure_mode_allow: true,
        failure_mode_allow_header: true,
        ..ExtAuthz::new(open, "http")
    };
    let grpc =
        || AuthzService::Grpc { authority: String::new(), metadata: vec![("x-key".into(), "k".into())] };
    let partial = ExtAuthz { timeout, body: body(true), ..ExtAuthz::new(grpc(), "grpc") };
    let whole = ExtAuthz {
        timeout,
        body: body(false),
        status_on_error: 503,
        disallowed_headers: vec![StringMatch::exact("x-other")],
        ..ExtAuthz::new(grpc(), "grpc")
    };
    let policy = |path: &str| RbacPolicy {
        permissions: vec![Permission::Path(StringMatch::exact(path))],
        principals: vec![Principal::Any],
        origin: None,
    };
    let only = |paths: &[&str]| {
        let policies = paths.iter().map(|path| ((*path).to_owned(), policy(path))).collect();
        Some(Rbac { action: RbacAction::Deny, policies })
    };
    let some = ExtAuthz { only: only(&["/deny", "/allow/a"]), ..http.clone() };
    let others = ExtAuthz { only: only(&["/deny", "/error"]), ..partial.clone() };
    vec![
        // A cluster that nothing refers to is forgotten, and is not sent again.
        ("http", http),
        ("http, open", open),
        ("http, some", some),
        ("grpc", partial),
        ("grpc, whole bodies", whole),
        ("grpc, some", others),
    ]
}

/// What some routes want of the filter.
fn of_routes() -> [(&'static str, RouteAuthz); 3] {
    let asked = |context: &[(&str, &str)], body| {
        let context = context.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        RouteAuthz::Asked(CheckSettings { context, body })
    };
    let other = RouteBody::Other(AuthzBody { max_bytes: 2, allow_partial: true, as_bytes: false });
    [
        ("/route/off", RouteAuthz::Off),
        ("/route/told", asked(&[("tier", "gold")], RouteBody::Nothing)),
        ("/route/body", asked(&[], other)),
    ]
}

fn listener(address: SocketAddr, authz: &ExtAuthz) -> Encoded {
    let route = |path: &str, authz: BTreeMap<String, RouteAuthz>| Route {
        name: path.into(),
        matches: RouteMatch { path: PathMatch::Prefix(path.into()), ..RouteMatch::any() },
        action: RouteAction::Forward(Forward {
            clusters: vec![WeightedCluster::only(CLUSTER)],
            ..Forward::default()
        }),
        authz,
        ..Route::default()
    };
    let mut routes: Vec<Route> = of_routes()
        .into_iter()
        .map(|(path, wanted)| route(path, [(authz.name.clone(), wanted)].into()))
        .collect();
    routes.push(route("/", BTreeMap::new()));
    let host = VirtualHost { name: "any".into(), domains: vec!["*".into()], routes, retry: None };
    let routes = RouteConfig { name: CLUSTER.into(), virtual_hosts: vec![host] };
    let mut http = HttpConnection::new(RouteSource::Inline(routes));
    http.filters = vec![HttpFilter::ExtAuthz(Box::new(authz.clone()))];
    inbound(address, http)
}

fn cluster(name: &str, to: SocketAddr, protocol: UpstreamProtocol) -> Encoded {
    let locality =
        LocalityEndpoints { weight: 1, endpoints: vec![Endpoint::new(to)], ..LocalityEndpoints::default() };
    let discovery = Discovery::Static(EndpointSet::new(name, vec![locality]));
    encode(&Resource::Cluster(Cluster { discovery, protocol, ..Cluster::new(name) }), ClientKind::Envoy)
}

/// What of an answer must be the same: status, headers that the service or the application has set, the body, and what the
/// application saw.
fn answered(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split(' ').nth(1).unwrap_or("closed");
    let mut lines: Vec<String> = head.lines().skip(1).map(str::to_ascii_lowercase).collect();
    lines.retain(|line| ["x-resp:", "x-why:", "x-none:", "www-"].iter().any(|name| line.starts_with(name)));
    lines.sort();
    let Some(seen) = body.strip_prefix("catalog-v1\n") else {
        // Texts of our own are each proxy's.
        let said = if body == "who?" { body } else { "" };
        return format!("{status} {lines:?} {said}");
    };
    let names = [
        "x-user",
        "x-secret",
        "x-other",
        "x-absent",
        "x-gone",
        "x-envoy-auth-failure",
        "x-envoy-auth-partial",
        "content-length",
    ];
    // Several lines are one list (RFC 9110).
    let mut by_name = BTreeMap::<String, Vec<&str>>::new();
    for (name, value) in seen.lines().filter_map(|line| line.split_once(": ")) {
        by_name.entry(name.to_ascii_lowercase()).or_default().extend(value.split(','));
    }
    by_name.retain(|name, _| names.iter().any(|wanted| name.starts_with(wanted)));
    let seen = by_name;
    format!("{status} {lines:?} app: {seen:?}")
}

async fn ask(to: SocketAddr, request: &str) -> std::io::Result<String> {
    Ok(recorder::ask(to, request).await?.map_or_else(|| "closed".into(), |answer| answered(&answer)))
}

/// All answers of a proxy, and all questions that it put.
async fn behaviour(to: SocketAddr, questions: &Questions) -> Vec<String> {
    questions.lock().unwrap().clear();
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
    all.extend(questions.lock().unwrap().iter().map(|question| format!("asked: {question}")));
    all
}

/// Until the filter is in force: it has asked.
async fn ready(what: &str, to: SocketAddr, questions: &Questions) {
    eventually(what, || async {
        questions.lock().unwrap().clear();
        let answer = ask(to, "GET /deny").await.map_err(|error| error.to_string())?;
        let asked = questions.lock().unwrap().len();
        if answer.starts_with("401") && asked > 0 { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_asked_and_obeyed_as_an_envoy_does() {
    let mut mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    echo(catalog.app, "catalog-v1").await;
    let ((http, by_http), (grpc, by_grpc)) = (http_service().await, grpc_service().await);
    let mut fake = FakeControl::usurp(&mut mesh).await;
    let mut line = fake.line().await;
    let clusters = [
        ("http", cluster("http", http, UpstreamProtocol::Http1)),
        ("grpc", cluster("grpc", grpc, UpstreamProtocol::Http2)),
    ];
    let url = clusters[0].1.type_url;
    let all = clusters.into_iter().map(|(name, encoded)| resource(name, url, encoded.value)).collect();
    line.say(response("clusters", url, all, &[])).await;
    assert_eq!(line.answer("clusters").await, None);
    let envoy = require::tool("envoy");
    let mut differ = Vec::new();
    for (n, (what, authz)) in settings().into_iter().enumerate() {
        let questions = if authz.cluster == "grpc" { &by_grpc } else { &by_http };
        let encoded = listener(catalog.inbound, &authz);
        let (name, nonce) = (format!("inbound|{}", catalog.inbound), format!("listener-{n}"));
        let url = encoded.type_url;
        line.say(response(&nonce, url, vec![resource(&name, url, encoded.value)], &[])).await;
        assert_eq!(line.answer(&nonce).await, None, "the sidecar takes what Envoy is sent");
        ready("the sidecar asks", catalog.inbound, questions).await;
        let ours = behaviour(catalog.inbound, questions).await;
        assert!(
            ours[0].contains("200") && ours[0].contains(r#""x-user": ["ann"]"#)
                || ["http, open", "grpc, some"].contains(&what),
            "{ours:#?}"
        );
        assert!(ours[3].contains("401") && ours[3].contains("who?"), "{ours:#?}");
        assert!(ours[6].contains("200"), "a route that switches the filter off: {ours:#?}");
        let Some(envoy) = &envoy else { continue };
        let address = mesh.address(40 + n as u8, 8080);
        let clusters = [(CLUSTER, catalog.app), ("http", http), ("grpc", grpc)];
        let _envoy = start_envoy(&mesh, envoy, &listener(address, &authz), &clusters);
        ready("the Envoy asks", address, questions).await;
        let theirs = behaviour(address, questions).await;
        let longer = ours.len().max(theirs.len());
        let row = |of: &[String], i: usize| of.get(i).cloned().unwrap_or_default();
        differ.extend(
            (0..longer)
                .map(|i| (what, row(&ours, i), row(&theirs, i)))
                .filter(|(_, ours, theirs)| ours != theirs),
        );
    }
    assert!(differ.is_empty(), "what, ours, theirs: {differ:#?}");
}
