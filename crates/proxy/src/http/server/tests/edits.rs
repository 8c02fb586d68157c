//! What a request and its answer are told of the route: edits of headers, the time there is, where they were going before.

use std::time::Duration;

use outrigger_model::route::{HeaderEdits, RouteAction};

use super::rig::*;
use crate::protocol::HttpVersion::Http1;

/// Sets one header, and one only where it is there.
fn edits() -> HeaderEdits {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    HeaderEdits {
        set: vec![pair("x-route", "r")],
        set_if_present: vec![pair("x-none", "r"), pair("content-type", "text/html")],
        ..HeaderEdits::default()
    }
}

async fn get(setup: Setup) -> String {
    let rig = proxy(setup, Http1).await;
    let mut client = Wire::connect(rig.address).await;
    client.send("GET /a HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    client.head().await
}

#[tokio::test(start_paused = true)]
async fn what_the_sidecar_answers_itself_is_edited_as_its_route_says() {
    run(async {
        let direct = RouteAction::Direct { status: 200, body: "b".into() };
        for (action, status) in [(Some(direct), 200), (None, 503)] {
            let mut setup = Setup::to(&[nobody().await]);
            setup.route.response_headers = edits();
            if let Some(action) = action {
                setup.route.action = action;
            }
            let head = get(setup).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            let edited = head.contains("x-route: r\r\n") && head.contains("content-type: text/html\r\n");
            assert!(edited && !head.contains("x-none") && !head.contains("text/plain"), "{head}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_is_told_the_time_it_has_and_what_was_rewritten() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            wire.send(&ok(&head.replace("\r\n", "|"))).await;
        })
        .await;
        for (timeout, told) in [(None, None), (Some(Duration::from_secs(3)), Some("3000"))] {
            let mut setup = Setup::to(&[app]);
            setup.forward().timeout = timeout;
            setup.forward().rewrite.authority = Some("b.test".into());
            setup.forward().rewrite.prefix = Some("/a".into());
            setup.route.matches.path = outrigger_model::route::PathMatch::Prefix("/a".into());
            let rig = proxy(setup, Http1).await;
            let mut client = Wire::connect(rig.address).await;
            client.send("GET /a HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
            let seen = client.rest().await;
            let time = told.map(|millis| format!("x-envoy-expected-rq-timeout-ms: {millis}|"));
            assert_eq!(seen.contains("expected-rq-timeout"), time.is_some(), "{seen}");
            assert!(time.is_none_or(|time| seen.contains(&time)), "{seen}");
            // A rewrite that changes nothing is one, too.
            let before = ["x-envoy-original-host: a.test|", "x-envoy-original-path: /a|"];
            assert!(before.iter().all(|line| seen.contains(line)), "{seen}");
        }
    })
    .await;
}
