//! What is learnt of endpoints whose answers nobody waits for.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_model::cluster::Balance;
use outrigger_model::route::{HedgeDelay, HedgePolicy};
use tokio::time::Instant;

use super::rig::*;
use crate::protocol::HttpVersion::Http1;

const DECAY: Duration = Duration::from_secs(1000);

/// An app that counts requests and answers none.
async fn silent(asked: &Count) -> SocketAddr {
    let asked = asked.clone();
    upstream(move |_, mut wire| {
        let asked = asked.clone();
        async move {
            wire.head().await;
            asked.set(asked.get() + 1);
            wire.rest().await;
        }
    })
    .await
}

fn to(endpoints: &[SocketAddr]) -> Setup {
    let mut setup = Setup::to(endpoints);
    setup.cluster.balance = Balance::PeakEwma { decay: DECAY, initial: Duration::ZERO };
    setup
}

/// How long an answer of the endpoint is expected to take.
fn expected(rig: &Rig, address: SocketAddr) -> Option<Duration> {
    let cluster = rig.worker.snapshot().cluster("c").unwrap().clone();
    let found = cluster.endpoints().all.iter().find(|one| one.address == address).unwrap().clone();
    found.load.latency().estimate(DECAY, Instant::now())
}

#[tokio::test]
async fn an_endpoint_that_nobody_waits_for_long_enough_is_known_to_be_slow() {
    run(async {
        let asked = Count::default();
        let app = silent(&asked).await;
        let rig = proxy(to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        until("the app is asked", || asked.get() == 1).await;
        let since = Instant::now();
        until("it takes its time", || since.elapsed() >= Duration::from_millis(40)).await;
        assert_eq!(expected(&rig, app), None);
        drop(client);
        let known = comes("what is known of it", || expected(&rig, app)).await;
        assert!(known >= Duration::from_millis(40), "{known:?}");
    })
    .await;
}

#[tokio::test]
async fn a_rival_s_answer_speaks_against_who_was_slower() {
    run(async {
        let quick = upstream(|_, mut wire| async move {
            loop {
                wire.head().await;
                wire.send(&ok("quick")).await;
            }
        })
        .await;
        let slow = silent(&Count::default()).await;
        let mut setup = to(&[slow, quick]);
        let delay = Some(HedgeDelay::Fixed(Duration::from_millis(30)));
        setup.forward().hedge = Some(Box::new(HedgePolicy { delay, ..HedgePolicy::default() }));
        let rig = proxy(setup, Http1).await;
        // Of two that nobody knows, either may be asked first.
        for _ in 0..64 {
            let mut client = Wire::connect(rig.address).await;
            client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert!(client.rest().await.ends_with("quick"));
            if let Some(known) = expected(&rig, slow) {
                assert!(known >= Duration::from_millis(30), "{known:?}");
                return;
            }
        }
        panic!("the slow one was never asked first, or nothing was learnt");
    })
    .await;
}
