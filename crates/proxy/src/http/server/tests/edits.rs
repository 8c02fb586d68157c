//! What a request and its answer are told of the route: edits of headers, the time there is, where they were going before.

use std::time::Duration;

use outrigger_model::route::text::Edited;
use outrigger_model::route::{HeaderEdits, HeaderText, RouteAction};

use super::rig::*;
use crate::protocol::HttpVersion::Http1;

/// Sets one header, and one only where it is there.
fn edits() -> HeaderEdits {
    let pair = |name: &str, value: &str| (name.to_owned(), value.into());
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

fn commands(pairs: &[(&str, &str)], edited: Edited) -> Vec<(String, HeaderText)> {
    let read = |text| HeaderText::read(text, edited).unwrap_or_else(|why| panic!("{text}: {why}"));
    pairs.iter().map(|(name, text)| ((*name).to_owned(), read(text))).collect()
}

/// Of a request, and of its answer whoever makes it.
#[tokio::test]
async fn commands_in_values_stand_for_what_is_known() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            loop {
                let head = wire.head().await;
                let seen: String = head.lines().filter(|line| line.starts_with("x-")).fold(String::new(), |all, line| all + line + "|");
                let fields = format!("x-app: said\r\nContent-Length: {}", seen.len());
                wire.send(&format!("HTTP/1.1 201 Made\r\n{fields}\r\n\r\n{seen}")).await;
            }
        })
        .await;
        let set = [
            ("x-from", "%REQ(x-a)%"),
            ("x-both", "%REQ(x-none?x-a):2%-%REQ(:METHOD)%-%REQ(:path)%-%REQ(:AUTHORITY)%"),
            ("x-nothing", "%REQ(x-none)%"),
            ("x-gone-is-gone", "%REQ(x-gone)%"),
            ("x-route", "%ROUTE_NAME%/%UPSTREAM_CLUSTER%/%PROTOCOL%"),
            ("x-peer", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%%DOWNSTREAM_PEER_URI_SAN%"),
            ("x-time", "%START_TIME(%Y)%"),
            ("x-a", "%REQ(x-from)%new"),
        ];
        let answer = [
            ("x-code", "%RESPONSE_CODE%/%RESP(:status)%/%RESPONSE_FLAGS%/%RESPONSE_CODE_DETAILS%"),
            ("x-host", "%UPSTREAM_HOST%"),
            ("x-said", "%RESP(x-none?x-app)% %REQ(x-b)% %UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
        ];
        let mut setup = Setup::to(&[app]);
        setup.route.request_headers.set = commands(&set, Edited::Request);
        setup.route.request_headers.remove = vec!["x-gone".into()];
        setup.route.response_headers.set = commands(&answer, Edited::Response);
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET /p?q HTTP/1.1\r\nHost: h.test\r\nx-a: first\r\nx-a: second\r\nx-b: b\r\nx-gone: g\r\n\r\n").await;
        let head = headers(&client.head().await);
        let body = client.bytes(head["content-length"].parse().unwrap()).await;
        let line = |name: &str| {
            let mut found = body.split('|').filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            (found.next().map(str::to_owned), found.next())
        };
        let one = |text: &str| (Some(text.to_owned()), None);
        assert_eq!(line("x-from"), one("first"));
        assert_eq!(line("x-both"), one("fi-GET-/p?q-h.test"));
        assert_eq!((line("x-nothing"), line("x-gone-is-gone")), ((None, None), (None, None)));
        assert_eq!(line("x-route"), one("r/c/HTTP/1.1"));
        assert_eq!(line("x-peer"), one("127.0.0.1"));
        assert!(line("x-time").0.is_some_and(|year| year.len() == 4 && year.as_str() > "2024"));
        // All that is read is what was there before anything was written.
        assert_eq!(line("x-a"), one("new"));
        assert_eq!(head["x-code"], "201/201/-/via_upstream");
        assert_eq!(head["x-host"], app.to_string());
        assert_eq!(head["x-said"], "said b 1");

        let mut setup = Setup::to(&[nobody().await]);
        setup.route.response_headers.add = commands(&answer, Edited::Response);
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: h.test\r\nx-b: b\r\n\r\n").await;
        let head = headers(&client.head().await);
        assert!(head["x-code"].starts_with("503//UF/upstream_reset_before"), "{head:?}");
        assert_eq!(head["x-said"], "b 1");

        let mut setup = Setup::to(&[]);
        setup.route.response_headers.set = commands(&answer, Edited::Response);
        setup.route.action = RouteAction::Direct { status: 418, body: String::new() };
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: h.test\r\n\r\n").await;
        let head = headers(&client.head().await);
        assert_eq!(head["x-code"], "418/418/-/direct_response");
        assert!(!head.contains_key("x-host"), "there is none");
    })
    .await;
}

/// Each copies a header of the longest kind.
#[tokio::test]
async fn a_value_that_outgrows_a_head_is_refused() {
    run(async {
        let app = upstream(|_, mut wire| async move { drop(wire.rest().await) }).await;
        let mut setup = Setup::to(&[app]);
        let many = "%REQ(x-long)%".repeat(32);
        setup.route.request_headers.set = commands(&[("x-a", &many)], Edited::Request);
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let long = "x".repeat(8000);
        client.send(&format!("GET / HTTP/1.1\r\nHost: h.test\r\nx-long: {long}\r\n\r\n")).await;
        assert!(client.head().await.starts_with("HTTP/1.1 431"));
    })
    .await;
}
