//! Requests about which a service is asked first.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_model::cluster::{Balance, Cluster, Discovery, Outlier, UpstreamProtocol};
use outrigger_model::ext_authz::{AuthzBody, AuthzService, ExtAuthz, HttpAuthz};
use outrigger_model::listener::{HttpFilter, Tracing};
use outrigger_model::matcher::StringMatch;
use outrigger_model::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::resource::Origin;
use outrigger_model::route::{Fault, FaultDelay, HeaderMatch, PathMatch, StreamLimits};
use outrigger_telemetry::metrics::Registry;

use super::h2::client as h2_client;
use super::rig::*;
use super::telemetry::{log, next};
use crate::access_log::Format;
use crate::protocol::HttpVersion::{Http1, Http2};

/// A service that permits everything, and returns in `x-said` what body it has seen.
async fn service() -> SocketAddr {
    upstream(|_, mut wire| async move {
        loop {
            let head = wire.head().await;
            let body = wire.bytes(headers(&head)["content-length"].parse().unwrap()).await;
            wire.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Said: <{body}>\r\n\r\n")).await;
        }
    })
    .await
}

/// Answers with what has come: `x-said` and the body.
async fn app() -> SocketAddr {
    upstream(|_, mut wire| async move {
        loop {
            let head = wire.head().await;
            let all = headers(&head);
            let body = match all.get("content-length") {
                Some(length) => wire.bytes(length.parse().unwrap()).await,
                None => wire.until("0\r\n\r\n").await,
            };
            let said = all.get("x-said").map_or("nothing", |said| said);
            wire.send(&ok(&format!("{said} {} {body}", all.contains_key("expect")))).await;
        }
    })
    .await
}

fn guards(app: SocketAddr, service: SocketAddr, edit: impl FnOnce(&mut ExtAuthz)) -> Setup {
    let mut setup = Setup::to(&[app]);
    let Discovery::Static(set) = Setup::to(&[service]).cluster.discovery else { panic!() };
    setup.others.push(Cluster { discovery: Discovery::Static(set), ..Cluster::new("authz") });
    let said = StringMatch::exact("x-said");
    let http = HttpAuthz { upstream_headers: vec![said], ..HttpAuthz::default() };
    let body = Some(AuthzBody { max_bytes: 4, allow_partial: true, as_bytes: false });
    let mut authz = ExtAuthz { body, ..ExtAuthz::new(AuthzService::Http(http), "authz") };
    authz.timeout = Duration::from_secs(60);
    edit(&mut authz);
    setup.http.filters = vec![HttpFilter::ExtAuthz(Box::new(authz))];
    setup
}

async fn guarded(service: SocketAddr, edit: impl FnOnce(&mut ExtAuthz)) -> Wire {
    let setup = guards(app().await, service, edit);
    Wire::connect(proxy(setup, Http1).await.address).await
}

async fn answer(client: &mut Wire) -> String {
    let head = client.head().await;
    let length = headers(&head)["content-length"].parse().unwrap();
    format!("{} {}", head.split(' ').nth(1).unwrap(), client.bytes(length).await)
}

#[tokio::test]
async fn what_was_shown_of_a_body_is_forwarded_with_the_rest() {
    run(async {
        let mut client = guarded(service().await, |_| ()).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789").await;
        assert_eq!(answer(&mut client).await, "200 <0123> false 0123456789");
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        client.send("2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n").await;
        assert!(answer(&mut client).await.starts_with("200 <abcd> false "));
        let long = "x".repeat(200_000);
        client
            .send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{long}", long.len()))
            .await;
        assert_eq!(answer(&mut client).await, format!("200 <xxxx> false {long}"));
    })
    .await;
}

/// A body that was shown and has gone up is held no longer, however long the answer takes.
#[tokio::test]
async fn what_was_taken_for_a_body_is_given_back_when_the_answer_begins() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            wire.head().await;
            wire.bytes(10).await;
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            wire.rest().await;
        })
        .await;
        let body = Some(AuthzBody { max_bytes: 100_000, allow_partial: true, as_bytes: false });
        let setup = guards(app, service().await, |authz| authz.body = body);
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n")
            .await;
        until("the body is read", || rig.worker.ledger.held() > 100_000).await;
        client.send("0\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(rig.worker.ledger.held(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_to_go_on_is_told() {
    run(async {
        let mut client = guarded(service().await, |_| ()).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 100"));
        client.send("abc").await;
        assert_eq!(answer(&mut client).await, "200 <abc> false abc");
    })
    .await;
}

#[tokio::test]
async fn nobody_there_to_ask_is_a_refusal_unless_requests_may_pass() {
    run(async {
        let get = "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        let mut client = guarded(nobody().await, |authz| authz.status_on_error = 503).await;
        client.send(get).await;
        assert!(answer(&mut client).await.starts_with("503"));
        let mut client = guarded(nobody().await, |authz| authz.failure_mode_allow = true).await;
        client.send(get).await;
        assert_eq!(answer(&mut client).await, "200 nothing false ");
    })
    .await;
}

/// A service that answers every question with this, whatever it asks.
async fn says(answer: &'static str) -> SocketAddr {
    upstream(move |_, mut wire| async move {
        loop {
            let head = wire.head().await;
            wire.bytes(headers(&head)["content-length"].parse().unwrap()).await;
            wire.send(answer).await;
        }
    })
    .await
}

/// As one has whom a policy refuses, or whom a route has taken first.
#[tokio::test]
async fn a_refusal_of_what_no_route_takes_has_a_span() {
    run(async {
        let refusing = says("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
        let mut setup = guards(app().await, refusing, |_| ());
        setup.http.tracing = Some(Tracing { random_sampling: 100.0 });
        setup.route.matches.path = PathMatch::Prefix("/known".into());
        let rig = proxy(setup, Http1).await;
        let registry = Registry::new();
        registry.register(rig.worker.process.spans.as_ref().unwrap().source());
        for sent in 1..3 {
            let mut client = Wire::connect(rig.address).await;
            client.send("GET /unknown HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
            assert!(client.head().await.starts_with("HTTP/1.1 403 "));
            // Nobody takes them here.
            let lost =
                format!("outrigger_spans_dropped_total{{endpoint=\"any\",reason=\"queue_full\"}} {sent}\n");
            until("it has one span", || registry.render().contains(&lost)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_refusal_that_has_no_body_by_its_nature_leaves_the_connection_usable() {
    run(async {
        let refused = says("HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nwho?").await;
        let mut client = guarded(refused, |_| ()).await;
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 403"));
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(answer(&mut client).await, "403 who?");
        let refused = says("HTTP/1.1 304 Not Modified\r\n\r\n").await;
        let mut client = guarded(refused, |_| ()).await;
        for _ in 0..2 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert!(client.head().await.starts_with("HTTP/1.1 304"));
        }
    })
    .await;
}

#[tokio::test]
async fn all_lines_of_a_header_that_the_service_has_for_the_client_arrive() {
    run(async {
        let cookies =
            says("HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=\u{e9}\r\nContent-Length: 0\r\n\r\n")
                .await;
        let mut client = guarded(cookies, |authz| {
            let AuthzService::Http(http) = &mut authz.service else { panic!() };
            http.client_headers_on_success = vec![StringMatch::exact("set-cookie")];
        })
        .await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.contains("set-cookie: a=1\r\n") && head.contains("set-cookie: b=\u{e9}\r\n"), "{head}");
    })
    .await;
}

#[tokio::test]
async fn a_service_says_nothing_that_trust_and_framing_are_made_of() {
    run(async {
        let head =
            "X-Forwarded-Client-Cert: By=evil\r\nX_Outrigger-Peer: evil\r\nTE: evil\r\nTrailer: evil\r\n";
        let allows = format!("HTTP/1.1 200 OK\r\n{head}X-Said: this\r\nContent-Length: 0\r\n\r\n");
        let denies = format!("HTTP/1.1 403 Forbidden\r\n{head}X-Said: this\r\nContent-Length: 0\r\n\r\n");
        let app = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            wire.send(&ok(&head.to_ascii_lowercase().replace("\r\n", "|"))).await;
        })
        .await;
        for answer in [allows, denies] {
            let service = says(Box::leak(answer.into_boxed_str())).await;
            let setup = guards(app, service, |authz| {
                let AuthzService::Http(http) = &mut authz.service else { panic!() };
                http.upstream_headers = vec![StringMatch::prefix("")];
                http.client_headers_on_success = vec![StringMatch::prefix("")];
            });
            let mut client = Wire::connect(proxy(setup, Http1).await.address).await;
            client.send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
            let head = client.head().await;
            let body = client.bytes(headers(&head)["content-length"].parse().unwrap()).await;
            assert_eq!(headers(&head)["x-said"], "this", "{head}");
            assert!(!head.contains("evil") && !body.contains("evil"), "{head}{body}");
            assert!(head.starts_with("HTTP/1.1 403") || body.contains("|x-said: this|"), "{head}{body}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_follows_the_head_of_an_upgrade_is_not_waited_for() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            assert!(wire.head().await.starts_with("GET /chat HTTP/1.1\r\n"));
            wire.send(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
            )
            .await;
            assert_eq!(wire.bytes(4).await, "ping");
        })
        .await;
        let mut setup = guards(app, service().await, |_| ());
        setup.cluster.protocol = UpstreamProtocol::Http1;
        let mut send = h2_client(proxy(setup, Http2).await.address).await;
        while !send.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let mut request = http::Request::new(());
        *request.method_mut() = http::Method::CONNECT;
        *request.uri_mut() = "http://a/chat".parse().unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, mut stream) = send.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "hello");
        stream.send_data("ping".into(), true).unwrap();
    })
    .await;
}

#[tokio::test]
async fn another_is_asked_where_one_is_not_there() {
    run(async {
        let mut setup = guards(app().await, nobody().await, |_| ());
        let addresses = [nobody().await, service().await];
        let Discovery::Static(set) = Setup::to(&addresses).cluster.discovery else { panic!() };
        let balance = Balance::RoundRobin;
        setup.others = vec![Cluster { discovery: Discovery::Static(set), balance, ..Cluster::new("authz") }];
        let mut client = Wire::connect(proxy(setup, Http1).await.address).await;
        for _ in 0..6 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
            assert!(answer(&mut client).await.starts_with("200"));
        }
    })
    .await;
}

#[tokio::test]
async fn one_that_does_not_answer_in_time_is_ejected() {
    run(async {
        let silent = upstream(|_, mut wire| async move {
            wire.rest().await;
        })
        .await;
        let mut setup = guards(app().await, silent, |authz| authz.timeout = Duration::from_millis(200));
        let Discovery::Static(set) = Setup::to(&[silent, service().await]).cluster.discovery else {
            panic!()
        };
        let outlier = Outlier { consecutive_5xx: 1, max_ejection_percent: 100, ..Outlier::default() };
        setup.others = vec![Cluster {
            discovery: Discovery::Static(set),
            outlier: Some(outlier),
            ..Cluster::new("authz")
        }];
        let mut client = Wire::connect(proxy(setup, Http1).await.address).await;
        let mut answers = Vec::new();
        for _ in 0..8 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
            answers.push(answer(&mut client).await);
        }
        assert_eq!(answers.iter().filter(|answer| answer.starts_with("403")).count(), 1, "{answers:?}");
    })
    .await;
}

/// What is below `/admin`, because of AuthorizationPolicy shop/ask.
fn below_admin() -> Rbac {
    let origin = Origin { kind: "AuthorizationPolicy".into(), namespace: "shop".into(), name: "ask".into() };
    let policy = RbacPolicy {
        permissions: vec![Permission::Path(StringMatch::prefix("/admin"))],
        principals: vec![Principal::Any],
        origin: Some(origin),
    };
    Rbac { action: RbacAction::Deny, policies: [("ask".to_owned(), policy)].into() }
}

#[tokio::test]
async fn only_what_its_policies_match_is_asked_about() {
    run(async {
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        let denies = says("HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nwho?").await;
        let mut client = guarded(denies, |authz| authz.only = Some(below_admin())).await;
        for (path, expected) in
            [("/admin/a", "403 who?"), ("/open", "200 nothing false "), ("/x/../admin", "403 who?")]
        {
            client.send(&get(path)).await;
            assert_eq!(answer(&mut client).await, expected, "{path}");
        }
        let mut client = guarded(nobody().await, |authz| authz.only = Some(below_admin())).await;
        client.send(&get("/open")).await;
        assert_eq!(
            answer(&mut client).await,
            "200 nothing false ",
            "nobody is asked, so nobody has to be there"
        );
        client.send(&get("/admin")).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 403") && head.contains("AuthorizationPolicy shop/ask"), "{head}");
    })
    .await;
}

#[tokio::test]
async fn a_route_that_only_the_answer_leads_to_is_found() {
    run(async {
        // The service adds `x-said`, and nothing takes requests without it.
        for (clear, answered) in [(true, "200 <abc> false abc"), (false, "404 ")] {
            let mut setup = guards(app().await, service().await, |authz| authz.clear_route_cache = clear);
            let value = StringMatch::prefix("<");
            setup.route.matches.headers = vec![HeaderMatch { name: "x-said".into(), value, invert: false }];
            let mut client = Wire::connect(proxy(setup, Http1).await.address).await;
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
            let answer = answer(&mut client).await;
            assert!(answer.starts_with(answered), "{answer}");
        }
    })
    .await;
}

/// Neither does its time count any more, nor is it what took the request.
#[tokio::test(start_paused = true)]
async fn a_request_that_the_answer_leads_away_from_its_route_has_none() {
    run(async {
        // The service puts another `x-said` in the place of the client's, which the route asks for.
        let mut setup = guards(app().await, service().await, |authz| authz.clear_route_cache = true);
        let (sink, lines) = log(Format::Json);
        setup.log = Some(sink);
        let value = StringMatch::exact("mine");
        setup.route.matches.headers = vec![HeaderMatch { name: "x-said".into(), value, invert: false }];
        let max_duration = Some(Duration::from_secs(1));
        setup.forward().limits = StreamLimits { max_duration, ..StreamLimits::default() }.if_any();
        let delay = Some(FaultDelay { duration: Duration::from_secs(2), percentage: 100.0 });
        setup.http.filters.push(HttpFilter::Fault(Fault { delay, abort: None }));
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nX-Said: mine\r\nContent-Length: 3\r\n\r\nabc").await;
        let answer = answer(&mut client).await;
        assert!(answer.starts_with("404 "), "{answer}");
        let line: serde_json::Value = serde_json::from_str(&next(&lines)).unwrap();
        assert_eq!(
            (&line["response_flags"], &line["route_name"]),
            (&"NR,DI".into(), &serde_json::Value::Null),
            "{line}"
        );
        let ended = rig.worker.process.recent.show(None, 2);
        assert!(matches!(&ended[..], [ended] if ended.route.is_none()), "{ended:?}");
    })
    .await;
}

#[tokio::test]
async fn who_may_not_call_learns_nothing_of_the_paths_that_there_are() {
    run(async {
        let app = app().await;
        let mut setup = Setup::to(&[app]);
        setup.route.matches.path = PathMatch::Prefix("/admin/there".into());
        setup.http.filters = vec![HttpFilter::Rbac(below_admin())];
        let mut client = Wire::connect(proxy(setup, Http1).await.address).await;
        for (path, status) in [
            ("/admin/there", "403"),
            ("/admin/not-there", "403"),
            ("/elsewhere", "404"),
            ("/admin/x/..", "403"),
        ] {
            client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")).await;
            let answer = answer(&mut client).await;
            assert!(answer.starts_with(status), "{path}: {answer}");
        }
    })
    .await;
}
