//! Copies of requests, and requests of other origins.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use outrigger_model::cluster::{Cluster, Discovery};
use outrigger_model::matcher::StringMatch;
use outrigger_model::route::{Cors, Mirror, Rewrite};
use outrigger_telemetry::metrics::Registry;

use super::rig::*;
use crate::http::body::REPLAY_LIMIT;
use crate::protocol::HttpVersion::{Http1, Http2};

/// What a mirror has received, whole.
type Received = Rc<RefCell<Vec<String>>>;

/// Takes requests with bodies of this length and never answers.
async fn silent(length: usize) -> (SocketAddr, Received) {
    let received = Received::default();
    let all = received.clone();
    let address = upstream(move |_, mut wire| {
        let all = all.clone();
        async move {
            let mut text = wire.head().await;
            text += &wire.bytes(length).await;
            all.borrow_mut().push(text);
            wire.rest().await;
        }
    })
    .await;
    (address, received)
}

async fn echo() -> SocketAddr {
    upstream(|_, mut wire| async move {
        loop {
            let head = wire.head().await;
            let length = headers(&head).get("content-length").map_or(0, |length| length.parse().unwrap());
            let body = wire.bytes(length).await;
            wire.send(&ok(&body)).await;
        }
    })
    .await
}

fn mirrored(app: SocketAddr, mirrors: &[SocketAddr]) -> Setup {
    let mut setup = Setup::to(&[app]);
    for (n, mirror) in mirrors.iter().enumerate() {
        let name = format!("mirror-{n}");
        let Discovery::Static(set) = Setup::to(&[*mirror]).cluster.discovery else { panic!() };
        setup.others.push(Cluster { discovery: Discovery::Static(set), ..Cluster::new(&*name) });
        setup.forward().mirrors.push(Mirror::all(name));
    }
    setup
}

/// Copies with this outcome, by now.
fn count(rig: &Rig, outcome: &str) -> usize {
    let registry = Registry::new();
    registry.register(rig.worker.process.metrics.clone());
    let start = format!("outrigger_mirrored_requests_total{{outcome=\"{outcome}\"}} ");
    let page = registry.render();
    page.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
}

#[tokio::test]
async fn mirrors_receive_the_request_as_it_is_forwarded_and_are_never_felt() {
    run(async {
        let (first, received) = silent(4).await;
        let mut setup = mirrored(echo().await, &[first, nobody().await]);
        setup.forward().rewrite = Rewrite { prefix: Some("/new".into()), ..Rewrite::default() };
        setup.route.request_headers.set.push(("x-set".into(), "by the route".into()));
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("POST /old HTTP/1.1\r\nHost: shop:80\r\nContent-Length: 4\r\n\r\nbody").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        assert_eq!(client.bytes(4).await, "body");
        let copy = comes("the copy", || received.borrow_mut().pop()).await;
        assert!(copy.starts_with("POST /newold HTTP/1.1\r\n") && copy.ends_with("\r\n\r\nbody"), "{copy}");
        let all = headers(&copy);
        assert_eq!((&*all["host"], &*all["x-set"]), ("shop-shadow:80", "by the route"), "{copy}");
        assert!(!all.contains_key("x-envoy-attempt-count"), "{copy}");
        comes("the other's failure", || (count(&rig, "failed") == 1).then_some(())).await;
        assert_eq!(count(&rig, "answered"), 0);
        // A second request of the same connection, while the first copy still waits for its answer.
        client.send("GET /old HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
    })
    .await;
}

#[tokio::test]
async fn a_copy_of_a_chunked_body_is_whole_and_a_long_one_is_not_sent() {
    run(async {
        let (mirror, received) = silent("5\r\nhello\r\n0\r\n\r\n".len()).await;
        let rig = proxy(mirrored(echo_nothing().await, &[mirror]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(&format!("{head}5\r\nhello\r\n0\r\n\r\n")).await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        let copy = comes("the copy", || received.borrow_mut().pop()).await;
        assert!(copy.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{copy}");
        let long = "x".repeat(REPLAY_LIMIT + 1);
        client
            .send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{long}", long.len()))
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        comes("the refusal", || (count(&rig, "dropped") == 1).then_some(())).await;
        assert!(received.borrow().is_empty());
    })
    .await;
}

/// Reads one request after the other to its end, and says nothing of it.
async fn echo_nothing() -> SocketAddr {
    upstream(|_, mut wire| async move {
        loop {
            let head = wire.head().await;
            match headers(&head).get("content-length") {
                Some(length) => drop(wire.bytes(length.parse().unwrap()).await),
                None => drop(wire.until("0\r\n\r\n").await),
            }
            wire.send(&ok("")).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_share_of_nothing_is_nothing() {
    run(async {
        let (mirror, received) = silent(0).await;
        let mut setup = mirrored(echo().await, &[mirror]);
        setup.forward().mirrors[0].percentage = 0.0;
        setup.forward().mirrors.push(Mirror { keep_host: true, ..Mirror::all("mirror-0") });
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.head().await;
        let copy = comes("the copy", || received.borrow_mut().pop()).await;
        assert_eq!(headers(&copy)["host"], "a");
        assert!(received.borrow().is_empty());
    })
    .await;
}

async fn shop(policy: Cors) -> Wire {
    let mut setup = Setup::to(&[echo().await]);
    setup.route.cors = Some(policy);
    Wire::connect(proxy(setup, Http1).await.address).await
}

fn policy() -> Cors {
    Cors {
        allow_origins: vec![StringMatch::exact("https://shop.example")],
        allow_methods: "GET,POST".into(),
        allow_headers: "*".into(),
        expose_headers: "x-total".into(),
        max_age: "600".into(),
        allow_credentials: true,
        ..Cors::default()
    }
}

fn of_cors(head: &str) -> Vec<(String, String)> {
    let mut all: Vec<_> = headers(head).into_iter().filter(|(name, _)| name.starts_with("access-")).collect();
    all.sort();
    all
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, value)| (format!("access-control-{name}"), (*value).to_owned())).collect()
}

#[tokio::test]
async fn preflights_are_answered_here_and_simple_requests_are_told() {
    run(async {
        let mut client = shop(policy()).await;
        let preflight = "OPTIONS / HTTP/1.1\r\nHost: a\r\nAccess-Control-Request-Method: POST\r\n\
                         Access-Control-Request-Headers: x-a, x-b\r\nOrigin: ";
        client.send(&format!("{preflight}https://shop.example\r\n\r\n")).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let told = pairs(&[
            ("allow-credentials", "true"),
            ("allow-headers", "x-a, x-b"),
            ("allow-methods", "GET,POST"),
            ("allow-origin", "https://shop.example"),
            ("expose-headers", "x-total"),
            ("max-age", "600"),
        ]);
        assert_eq!(of_cors(&head), told);
        client.send("GET / HTTP/1.1\r\nHost: a\r\nOrigin: https://shop.example\r\n\r\n").await;
        let told = [("allow-credentials", "true"), ("allow-origin", "https://shop.example")];
        let told = pairs(&[&told[..], &[("expose-headers", "x-total")]].concat());
        assert_eq!(of_cors(&client.head().await), told);
        for (origin, method) in [("Origin: https://other.example\r\n", "GET"), ("", "GET")] {
            client.send(&format!("{method} / HTTP/1.1\r\nHost: a\r\n{origin}\r\n")).await;
            assert_eq!(of_cors(&client.head().await), []);
        }
        // Others' preflights are the application's.
        client.send(&format!("{preflight}https://other.example\r\n\r\n")).await;
        let head = client.head().await;
        assert!(of_cors(&head).is_empty() && headers(&head)["content-length"] == "0", "{head}");
    })
    .await;
}

#[tokio::test]
async fn preflights_of_others_may_be_answered_without_permission() {
    run(async {
        let policy = Cors { forward_not_matching: false, allow_credentials: false, ..policy() };
        let mut client = shop(policy).await;
        client
            .send("OPTIONS / HTTP/1.1\r\nHost: a\r\nOrigin: x\r\nAccess-Control-Request-Method: GET\r\n\r\n")
            .await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(
            of_cors(&head),
            pairs(&[("allow-headers", ""), ("allow-methods", "GET,POST"), ("max-age", "600")])
        );
    })
    .await;
}

#[tokio::test]
async fn a_copy_of_a_request_over_http2_leaves_over_http1() {
    run(async {
        let (mirror, received) = silent(4).await;
        let mut setup = mirrored(echo().await, &[mirror]);
        setup.cluster.protocol = outrigger_model::cluster::UpstreamProtocol::Http1;
        setup.others[0].protocol = outrigger_model::cluster::UpstreamProtocol::Http1;
        let rig = proxy(setup, Http2).await;
        let stream = tokio::net::TcpStream::connect(rig.address).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::task::spawn_local(connection);
        let request = http::Request::post("http://shop/").header("content-length", "4").body(()).unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data(bytes::Bytes::from_static(b"body"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
        let copy = comes("the copy", || received.borrow_mut().pop()).await;
        assert!(copy.ends_with("\r\n\r\nbody") && headers(&copy)["host"] == "shop-shadow", "{copy}");
    })
    .await;
}
