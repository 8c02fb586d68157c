//! Requests about which a service is asked first.

use std::net::SocketAddr;

use outrigger_model::cluster::{Cluster, Discovery};
use outrigger_model::ext_authz::{AuthzBody, AuthzService, ExtAuthz, HttpAuthz};
use outrigger_model::listener::HttpFilter;

use super::rig::*;
use crate::protocol::HttpVersion::Http1;

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

async fn guarded(service: SocketAddr, edit: impl FnOnce(&mut ExtAuthz)) -> Wire {
    let mut setup = Setup::to(&[app().await]);
    let Discovery::Static(set) = Setup::to(&[service]).cluster.discovery else { panic!() };
    setup.others.push(Cluster { discovery: Discovery::Static(set), ..Cluster::new("authz") });
    let said = outrigger_model::matcher::StringMatch::exact("x-said");
    let http = HttpAuthz { upstream_headers: vec![said], ..HttpAuthz::default() };
    let body = Some(AuthzBody { max_bytes: 4, allow_partial: true, as_bytes: false });
    let mut authz = ExtAuthz { body, ..ExtAuthz::new(AuthzService::Http(http), "authz") };
    authz.timeout = std::time::Duration::from_secs(60);
    edit(&mut authz);
    setup.http.filters = vec![HttpFilter::ExtAuthz(Box::new(authz))];
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
