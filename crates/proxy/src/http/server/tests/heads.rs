//! What a head says on its way through two sidecars: scheme, authority, framing.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use http::{Request, Response, Version};
use outrigger_model::cluster::UpstreamProtocol;
use outrigger_model::identity::SpiffeId;
use outrigger_model::listener::Direction;
use outrigger_model::route::RetryPolicy;

use super::h2::{app, client};
use super::rig::*;
use crate::http::h1::MAX_HEAD;
use crate::protocol::HttpVersion;
use crate::protocol::HttpVersion::{Http1, Http2};

/// A sidecar that calls over this protocol, and its application speaks that one.
async fn outbound(speaks: HttpVersion, to: SocketAddr, over: UpstreamProtocol) -> Rig {
    let mut setup = Setup::to(&[to]);
    setup.cluster.protocol = over;
    proxy(setup, speaks).await
}

/// As [`outbound`], where docker's protocol is allowed.
async fn attachable(to: SocketAddr, over: UpstreamProtocol) -> Rig {
    let mut setup = Setup::to(&[to]);
    setup.cluster.protocol = over;
    setup.http.upgrades = vec!["tcp".into()];
    proxy(setup, Http1).await
}

/// A sidecar that is called over mTLS, in front of an application that speaks this.
async fn inbound(by: HttpVersion, app: SocketAddr, speaks: UpstreamProtocol) -> Rig {
    let mut setup = Setup::to(&[app]);
    setup.direction = Direction::Inbound;
    setup.peer = Some(SpiffeId::parse("spiffe://td/ns/shop/sa/cart").unwrap());
    setup.cluster.protocol = speaks;
    proxy(setup, by).await
}

/// An h2c application that answers with the URI and the forwarded scheme of what it got.
async fn mirror_h2() -> SocketAddr {
    app(|request, mut respond| async move {
        let proto = request.headers().get("x-forwarded-proto").cloned();
        let response = Response::builder().header("x-uri", request.uri().to_string());
        let response = response.header("x-proto", proto.unwrap()).body(()).unwrap();
        respond.send_response(response, true).unwrap();
    })
    .await
}

/// What an h2 client is told by [`mirror_h2`].
async fn ask_h2(address: SocketAddr, request: Request<()>) -> (u16, String, String) {
    let (response, _) = client(address).await.send_request(request, true).unwrap();
    let response = response.await.unwrap();
    let text = |name| response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    (response.status().as_u16(), text("x-uri"), text("x-proto"))
}

async fn ask_h1(address: SocketAddr, head: &str) -> (u16, String, String) {
    let mut wire = Wire::connect(address).await;
    wire.send(head).await;
    let answer = wire.head().await;
    let fields = headers(&answer);
    let text = |name| fields.get(name).cloned().unwrap_or_default();
    (answer[9..12].parse().unwrap(), text("x-uri"), text("x-proto"))
}

fn told(uri: &str, proto: &str) -> (u16, String, String) {
    (200, uri.to_owned(), proto.to_owned())
}

#[tokio::test]
async fn the_scheme_is_the_requests_own_through_both_sidecars() {
    run(async {
        let app = mirror_h2().await;
        for (between, wire) in [(Http1, UpstreamProtocol::Http1), (Http2, UpstreamProtocol::Http2)] {
            let called = inbound(between, app, UpstreamProtocol::Http2).await;
            let h1 = outbound(Http1, called.address, wire).await;
            let h2 = outbound(Http2, called.address, wire).await;
            let plain = ask_h1(h1.address, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(plain, told("http://a/x", "http"), "mTLS between sidecars is not the application's");
            let get = |uri: &str| Request::get(uri).body(()).unwrap();
            assert_eq!(ask_h2(h2.address, get("http://a/x")).await, told("http://a/x", "http"));
            assert_eq!(ask_h2(h2.address, get("https://a/x")).await, told("https://a/x", "https"));
            // A gateway has terminated TLS.
            let head = "GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n";
            assert_eq!(ask_h1(h1.address, head).await, told("https://a/x", "https"));
            let absolute = ask_h1(h1.address, "GET https://a/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(absolute, told("https://a/x", "https"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_scheme_that_nobody_says_is_the_connections() {
    run(async {
        let app = mirror_h2().await;
        let called = inbound(Http1, app, UpstreamProtocol::Http2).await;
        let head = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(ask_h1(called.address, head).await, told("https://a/x", "https"));
        let odd = "GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: gopher\r\n\r\n";
        assert_eq!(ask_h1(called.address, odd).await, told("https://a/x", "gopher"));
        let called = inbound(Http2, app, UpstreamProtocol::Http2).await;
        let odd = Request::get("gopher://a/x").body(()).unwrap();
        assert_eq!(ask_h2(called.address, odd).await, told("https://a/x", "https"));
    })
    .await;
}

/// The h2 crate sends a relative target only for a request that it takes for a forwarded one of HTTP/1.
fn without_authority(host: &str) -> Request<()> {
    let request = Request::get("/x").version(Version::HTTP_11).header("host", host);
    request.body(()).unwrap()
}

#[tokio::test]
async fn http2_may_name_its_host_in_the_header() {
    run(async {
        let app = mirror_h2().await;
        let rig = outbound(Http2, app, UpstreamProtocol::Http2).await;
        assert_eq!(ask_h2(rig.address, without_authority("a:8")).await, told("http://a:8/x", "http"));
        assert_eq!(ask_h2(rig.address, without_authority("a b")).await.0, 400);
        let old = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            assert!(head.starts_with("GET /x HTTP/1.1\r\nhost: a:8\r\n"), "{head}");
            assert_eq!(head.matches("host").count(), 1, "{head}");
            wire.send(&ok("")).await;
            wire.rest().await;
        })
        .await;
        let rig = outbound(Http2, old, UpstreamProtocol::Http1).await;
        assert_eq!(ask_h2(rig.address, without_authority("a:8")).await.0, 200);
    })
    .await;
}

#[tokio::test]
async fn the_absolute_form_wins_over_another_host_in_both_protocols() {
    run(async {
        let head = "GET http://a/x HTTP/1.1\r\nHost: b\r\n\r\n";
        let rig = outbound(Http1, mirror_h2().await, UpstreamProtocol::Http2).await;
        assert_eq!(ask_h1(rig.address, head).await, told("http://a/x", "http"));
        let app = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            assert!(head.starts_with("GET /x HTTP/1.1\r\n"), "{head}");
            assert_eq!(headers(&head)["host"], "a");
            wire.send(&ok("")).await;
            wire.rest().await;
        })
        .await;
        let rig = outbound(Http1, app, UpstreamProtocol::Http1).await;
        assert_eq!(ask_h1(rig.address, head).await.0, 200);
    })
    .await;
}

#[tokio::test]
async fn a_204_with_stray_framing_has_no_body_and_ends_its_connection() {
    run(async {
        for stray in ["Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Content-Length: 2\r\n\r\nhi"] {
            let connections = Rc::new(Cell::new(0));
            let counted = connections.clone();
            let app = upstream(move |number, mut wire| {
                counted.set(number + 1);
                async move {
                    wire.head().await;
                    wire.send(&format!("HTTP/1.1 204 No Content\r\n{stray}")).await;
                    wire.rest().await;
                }
            })
            .await;
            let rig = outbound(Http1, app, UpstreamProtocol::Http1).await;
            let mut wire = Wire::connect(rig.address).await;
            for _ in 0..2 {
                wire.send("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n").await;
                let head = wire.head().await;
                assert!(head.starts_with("HTTP/1.1 204 No Content\r\n"), "{head}");
                let fields = headers(&head);
                assert!(!fields.contains_key("transfer-encoding") && !fields.contains_key("content-length"));
            }
            let rig = outbound(Http2, app, UpstreamProtocol::Http1).await;
            let mut send = client(rig.address).await;
            let request = Request::delete("http://a/").body(()).unwrap();
            let (response, _) = send.send_request(request, true).unwrap();
            let mut response = response.await.unwrap();
            assert_eq!(response.status(), 204);
            assert_eq!(
                response.body_mut().data().await.map(|data| data.map_err(drop)),
                None::<Result<Bytes, ()>>
            );
            assert_eq!(connections.get(), 3, "none is used again");
        }
    })
    .await;
}

/// A head of HTTP/1 with so many lines and bytes in all; what HTTP/2 says besides them is the same.
fn lines(count: usize, bytes: usize) -> Vec<(String, String)> {
    // The request line, Host and the empty line.
    let used = "GET / HTTP/1.1\r\nhost: a\r\n\r\n".len();
    let mut lines: Vec<_> = (0..count - 2).map(|n| (format!("x-{n}"), "v".to_owned())).collect();
    let size = |lines: &[(String, String)]| lines.iter().map(|(n, v)| n.len() + v.len() + 4).sum::<usize>();
    let filler = bytes - used - size(&lines) - "x-fill: \r\n".len();
    lines.push(("x-fill".into(), "f".repeat(filler)));
    lines
}

async fn status_h1(address: SocketAddr, lines: &[(String, String)]) -> u16 {
    let text: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    ask_h1(address, &format!("GET / HTTP/1.1\r\nhost: a\r\n{text}\r\n")).await.0
}

async fn status_h2(address: SocketAddr, lines: &[(String, String)]) -> u16 {
    let request = Request::get("http://a/");
    let request = lines.iter().fold(request, |request, (name, value)| request.header(name, value));
    ask_h2(address, request.body(()).unwrap()).await.0
}

#[tokio::test]
async fn a_head_at_the_limit_passes_both_sidecars_and_one_above_it_passes_none() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            loop {
                let head = wire.head().await;
                let own =
                    ["x-forwarded-proto", "x-request-id", "x-envoy-attempt-count", "x-forwarded-client-cert"];
                assert!(
                    own.iter().all(|name| headers(&head).contains_key(*name)),
                    "nothing of ours was left out"
                );
                wire.send(&ok("")).await;
            }
        })
        .await;
        for (between, over) in [(Http1, UpstreamProtocol::Http1), (Http2, UpstreamProtocol::Http2)] {
            let called = inbound(between, app, UpstreamProtocol::Http1).await;
            for speaks in [Http1, Http2] {
                let mut setup = Setup::to(&[called.address]);
                setup.cluster.protocol = over;
                setup.forward().retry = Some(RetryPolicy::default());
                let rig = proxy(setup, speaks).await;
                for (count, bytes, status) in
                    [(100, MAX_HEAD, 200), (5, MAX_HEAD, 200), (5, MAX_HEAD + 1, 431), (101, 8000, 431)]
                {
                    let lines = lines(count, bytes);
                    let got = match speaks {
                        Http1 => status_h1(rig.address, &lines).await,
                        Http2 => status_h2(rig.address, &lines).await,
                    };
                    assert_eq!(got, status, "{count} lines, {bytes} bytes by {speaks:?} over {between:?}");
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn protocols_are_switched_behind_a_body() {
    run(async {
        for early in [false, true] {
            let app = upstream(move |_, mut wire| async move {
                let head = wire.head().await;
                assert!(head.starts_with("POST /attach HTTP/1.1\r\n"), "{head}");
                assert_eq!(headers(&head)["upgrade"], "tcp");
                assert_eq!(headers(&head)["content-length"], "4");
                let switch = "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
                if early {
                    wire.send(switch).await;
                }
                assert_eq!(wire.bytes(4).await, "{ab}");
                if !early {
                    wire.send(switch).await;
                }
                assert_eq!(wire.bytes(4).await, "ping");
                wire.send("pong").await;
                assert_eq!(wire.rest().await, "");
            })
            .await;
            let rig = attachable(app, UpstreamProtocol::Http1).await;
            let mut wire = Wire::connect(rig.address).await;
            wire.send("POST /attach HTTP/1.1\r\nHost: a\r\nUpgrade: tcp\r\nConnection: Upgrade\r\nContent-Length: 4\r\n\r\n{a").await;
            wire.send("b}").await;
            let head = wire.head().await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            wire.send("ping").await;
            assert_eq!(wire.bytes(4).await, "pong");
        }
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_behind_a_body_that_is_not_granted_is_an_ordinary_request() {
    run(async {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nUpgrade: tcp\r\nConnection: Upgrade\r\nContent-Length: 4\r\n\r\nbody";
        let h1 = upstream(|_, mut wire| async move {
            for _ in 0..2 {
                wire.head().await;
                assert_eq!(wire.bytes(4).await, "body");
                wire.send(&ok("done")).await;
            }
            wire.rest().await;
        })
        .await;
        // HTTP/2 has no such upgrade: it is asked without.
        let h2 = app(|request, mut respond| async move {
            assert_eq!(request.method(), "POST");
            assert!(request.extensions().get::<h2::ext::Protocol>().is_none());
            let response = Response::builder().header("content-length", "4").body(()).unwrap();
            let mut send = respond.send_response(response, false).unwrap();
            send.send_data(Bytes::from_static(b"done"), true).unwrap();
        })
        .await;
        for (app, over) in [(h1, UpstreamProtocol::Http1), (h2, UpstreamProtocol::Http2)] {
            let rig = attachable(app, over).await;
            let mut wire = Wire::connect(rig.address).await;
            for _ in 0..2 {
                wire.send(head).await;
                assert!(wire.head().await.starts_with("HTTP/1.1 200 "));
                assert_eq!(wire.bytes(4).await, "done");
            }
        }
    })
    .await;
}
