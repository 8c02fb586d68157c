//! Requests under way by adaptive concurrency: who has a place, who gives it back when, and whose time counts.

use std::time::Duration;

use outrigger_model::concurrency::{AdaptiveConcurrency, MinRtt};
use outrigger_model::listener::{Direction, HttpFilter};
use outrigger_model::resource::Origin;

use super::rig::*;
use crate::protocol::HttpVersion::Http1;
use crate::runtime::concurrency::Look;
use crate::runtime::snapshot::TerminalHandle;

/// One at a time; two answers are measured.
fn one_at_a_time(setup: &mut Setup) {
    let origin = Origin { kind: "TrafficRules".into(), namespace: "shop".into(), name: "catalog".into() };
    setup.direction = Direction::Inbound;
    setup.http.filters.push(HttpFilter::Concurrency(Box::new(AdaptiveConcurrency {
        max_limit: 1,
        min_concurrency: 1,
        min_rtt: MinRtt::Measured { interval: Duration::from_secs(3600), requests: 2, jitter: 0.0 },
        origin: Some(origin),
        ..AdaptiveConcurrency::default()
    })));
}

fn look(rig: &Rig) -> Look {
    let snapshot = rig.worker.process.snapshot.load();
    let http =
        snapshot.listeners().flat_map(|listener| &listener.chains).find_map(|chain| match &chain.terminal {
            TerminalHandle::Http(http) => Some(http),
            TerminalHandle::Tcp(_) => None,
        });
    http.unwrap().controllers().next().unwrap().look()
}

async fn ask(rig: &Rig, path: &str) -> String {
    let mut client = Wire::connect(rig.address).await;
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
    client.rest().await
}

async fn under_way(rig: &Rig, count: u32) {
    comes("so many are under way", || (look(rig).requests == count).then_some(())).await;
}

#[tokio::test]
async fn who_is_beyond_is_refused_and_who_gives_up_gives_its_place_back_and_is_no_sample() {
    run(async {
        let app = upstream(|number, mut wire| async move {
            // The first is never answered.
            loop {
                wire.head().await;
                if number > 0 {
                    wire.send(&ok("hello")).await;
                }
            }
        })
        .await;
        let mut setup = Setup::to(&[app]);
        one_at_a_time(&mut setup);
        let rig = proxy(setup, Http1).await;
        let mut first = Wire::connect(rig.address).await;
        first.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n").await;
        under_way(&rig, 1).await;
        let answer = ask(&rig, "/beyond").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nreached concurrency limit"), "{answer}");
        drop(first);
        under_way(&rig, 0).await;
        assert!(ask(&rig, "/a").await.ends_with("hello"));
        under_way(&rig, 0).await;
        assert!(look(&rig).measuring, "one of two");
        assert!(ask(&rig, "/b").await.ends_with("hello"));
        under_way(&rig, 0).await;
        let look = look(&rig);
        assert!(!look.measuring && look.min_rtt_millis > 0.0 && look.refused == 1, "{look:?}");
    })
    .await;
}

#[tokio::test]
async fn what_the_sidecar_answers_itself_is_no_sample() {
    run(async {
        let mut setup = Setup::to(&[nobody().await]);
        one_at_a_time(&mut setup);
        let rig = proxy(setup, Http1).await;
        for path in ["/a", "/b", "/c"] {
            assert!(ask(&rig, path).await.starts_with("HTTP/1.1 503 "));
            under_way(&rig, 0).await;
        }
        let look = look(&rig);
        assert!(look.measuring && look.refused == 0, "{look:?}");
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_counts_until_it_is_open() {
    run(async {
        let app = upstream(|number, mut wire| async move {
            wire.head().await;
            if number == 0 {
                wire.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello").await;
            } else {
                wire.send(&ok("an answer")).await;
            }
            wire.rest().await;
        })
        .await;
        let mut setup = Setup::to(&[app]);
        one_at_a_time(&mut setup);
        let rig = proxy(setup, Http1).await;
        let mut tunnel = Wire::connect(rig.address).await;
        tunnel.send("GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await;
        assert!(tunnel.head().await.starts_with("HTTP/1.1 101 "));
        assert_eq!(tunnel.bytes(5).await, "hello");
        assert_eq!(look(&rig).requests, 0);
        assert!(ask(&rig, "/beside").await.ends_with("an answer"));
        drop(tunnel);
    })
    .await;
}
