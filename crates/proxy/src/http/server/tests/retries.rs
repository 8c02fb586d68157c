//! What is tried again, and what is not.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use outrigger_model::cluster::{Balance, Breaker, Discovery};
use outrigger_model::route::{AuthorityOf, RetryOn, RetryPolicy};
use outrigger_telemetry::metrics::{Page, Source};
use tokio::sync::Notify;

use super::rig::*;
use crate::protocol::HttpVersion::Http1;
use crate::runtime::breaker::Phase;

fn policy(on: &[RetryOn]) -> RetryPolicy {
    RetryPolicy {
        on: on.to_vec(),
        backoff_base: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
        ..RetryPolicy::default()
    }
}

#[tokio::test]
async fn refused_connection_is_retried_elsewhere() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            loop {
                let head = wire.head().await;
                assert_eq!(wire.bytes(4).await, "body");
                wire.send(&ok(&headers(&head)["x-envoy-attempt-count"])).await;
            }
        })
        .await;
        let mut setup = Setup::to(&[nobody().await, app]);
        setup.forward().retry = Some(RetryPolicy { attempts: 5, ..policy(&[RetryOn::ConnectFailure]) });
        setup.cluster.balance = Balance::RoundRobin;
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let mut counts = String::new();
        for _ in 0..6 {
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody").await;
            assert!(client.head().await.starts_with("HTTP/1.1 200"));
            counts.push_str(&client.bytes(1).await);
        }
        // Whichever is picked first: all arrive at the one that lives, and some only at the second attempt.
        assert!(counts.contains('2') && counts.bytes().all(|count| matches!(count, b'1' | b'2')), "{counts}");
    })
    .await;
}

#[tokio::test]
async fn connect_failure_without_policy_is_a_503_that_names_the_hop() {
    run(async {
        let rig = proxy(Setup::to(&[nobody().await]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        let error = &headers(&head)["x-outrigger-error"];
        assert!(error.contains("side=upstream") && error.contains("stage=connect"), "{error}");
        assert!(error.contains("reason=connect_failed; reached=no"), "{error}");
    })
    .await;
}

/// An app that answers one request per connection and closes as soon as the next one has come.
async fn forgetful(requests: Count) -> std::net::SocketAddr {
    upstream(move |number, mut wire| {
        let requests = requests.clone();
        async move {
            wire.head().await;
            requests.set(requests.get() + 1);
            wire.send(&ok("ok")).await;
            if number == 0 {
                // Reads the next request and leaves without a word.
                wire.head().await;
                requests.set(requests.get() + 1);
            } else {
                wire.rest().await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn get_on_a_dying_pooled_connection_is_sent_again() {
    run(async {
        let requests: Count = Rc::default();
        let rig = proxy(Setup::to(&[forgetful(requests.clone()).await]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        for _ in 0..2 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert!(client.head().await.starts_with("HTTP/1.1 200"));
            client.bytes(2).await;
        }
        assert_eq!(requests.get(), 3);
    })
    .await;
}

#[tokio::test]
async fn post_on_a_dying_pooled_connection_is_not() {
    run(async {
        let requests: Count = Rc::default();
        let mut setup = Setup::to(&[forgetful(requests.clone()).await]);
        setup.forward().retry = Some(RetryPolicy::default());
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.head().await;
        client.bytes(2).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert!(!headers(&head)["x-outrigger-error"].contains("reached=no"));
        assert_eq!(requests.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn closed_pooled_connection_is_not_used() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            wire.head().await;
            wire.send(&ok("ok")).await;
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        for _ in 0..5 {
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
            assert!(client.head().await.starts_with("HTTP/1.1 200"));
            client.bytes(2).await;
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Answers 503 so many times, then 200 with the body that it got.
async fn recovering(failures: usize, body: usize, seen: Count) -> std::net::SocketAddr {
    upstream(move |_, mut wire| {
        let seen = seen.clone();
        async move {
            loop {
                wire.head().await;
                let text = wire.bytes(body).await;
                seen.set(seen.get() + 1);
                if seen.get() <= failures {
                    wire.send("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await;
                } else {
                    wire.send(&ok(&text)).await;
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn body_is_replayed_until_the_application_recovers() {
    run(async {
        let seen: Count = Rc::default();
        let mut setup = Setup::to(&[recovering(2, 5, seen.clone()).await]);
        setup.forward().retry = Some(policy(&[RetryOn::FiveXx]));
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        assert_eq!(client.bytes(5).await, "hello");
        assert_eq!(seen.get(), 3);
    })
    .await;
}

#[tokio::test]
async fn exhausted_retries_pass_the_last_response_on() {
    run(async {
        let seen: Count = Rc::default();
        let mut setup = Setup::to(&[recovering(9, 0, seen.clone()).await]);
        setup.forward().retry = Some(policy(&[RetryOn::GatewayError]));
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 503 Busy"));
        assert_eq!(seen.get(), 3);
    })
    .await;
}

#[tokio::test]
async fn body_beyond_the_limit_is_no_longer_replayable() {
    run(async {
        let seen: Count = Rc::default();
        let size = 70_000;
        let mut setup = Setup::to(&[recovering(1, size, seen.clone()).await]);
        setup.forward().retry = Some(policy(&[RetryOn::FiveXx]));
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let body = "x".repeat(size);
        client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n{body}")).await;
        let head = client.head().await;
        assert!(
            head.starts_with("HTTP/1.1 503") && !headers(&head).contains_key("x-outrigger-error"),
            "{head}"
        );
        assert_eq!(seen.get(), 1);
        assert!(unreplayable(&rig, 1), "and that is counted");
    })
    .await;
}

/// Whether so many retries were not made for want of the body.
fn unreplayable(rig: &Rig, count: usize) -> bool {
    let mut page = Page::new();
    rig.worker.process.metrics.collect(&mut page);
    let line = format!("outrigger_retries_unreplayable_total{{envoy_cluster_name=\"c\"}} {count}");
    page.finish().lines().any(|one| one == line)
}

#[tokio::test]
async fn a_failure_says_that_the_body_is_no_longer_there() {
    run(async {
        for (size, lost) in [(70_000, true), (100, false)] {
            let seen: Count = Rc::default();
            let count = seen.clone();
            let app = upstream(move |_, mut wire| {
                let count = count.clone();
                async move {
                    wire.head().await;
                    wire.bytes(size).await;
                    count.set(count.get() + 1);
                }
            })
            .await;
            let mut setup = Setup::to(&[app]);
            setup.forward().retry = Some(RetryPolicy { attempts: 1, ..policy(&[RetryOn::Reset]) });
            let rig = proxy(setup, Http1).await;
            let mut client = Wire::connect(rig.address).await;
            let body = "x".repeat(size);
            client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n{body}")).await;
            let head = client.head().await;
            let error = headers(&head)["x-outrigger-error"].clone();
            assert!(head.starts_with("HTTP/1.1 503"), "{head}");
            assert_eq!(
                (error.contains("; replay=lost"), seen.get()),
                (lost, if lost { 1 } else { 2 }),
                "{error}"
            );
            assert!(unreplayable(&rig, usize::from(lost)));
        }
    })
    .await;
}

#[tokio::test]
async fn retry_limit_is_exact() {
    run(async {
        // At a time: one request that is sent four times takes one place, and not two while it goes from one retry to the next.
        for (limit, sent) in [(0, 1), (1, 4)] {
            let seen: Count = Rc::default();
            let mut setup = Setup::to(&[recovering(9, 0, seen.clone()).await]);
            setup.forward().retry = Some(RetryPolicy { attempts: 3, ..policy(&[RetryOn::FiveXx]) });
            setup.cluster.limits.retry_budget = None;
            setup.cluster.limits.max_retries = limit;
            let rig = proxy(setup, Http1).await;
            let mut client = Wire::connect(rig.address).await;
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert!(client.head().await.starts_with("HTTP/1.1 503"));
            assert_eq!(seen.get(), sent, "{limit}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn attempt_that_takes_too_long_is_followed_by_another() {
    run(async {
        let attempts: Rc<Cell<usize>> = Rc::default();
        let counted = attempts.clone();
        let app = upstream(move |number, mut wire| {
            counted.set(number + 1);
            async move {
                wire.head().await;
                if number > 0 {
                    wire.send(&ok("ok")).await;
                }
                wire.rest().await;
            }
        })
        .await;
        let mut setup = Setup::to(&[app]);
        let retry = policy(&[RetryOn::FiveXx]);
        setup.forward().retry = Some(RetryPolicy { per_try_timeout: Some(Duration::from_secs(2)), ..retry });
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        assert_eq!(attempts.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_cookie_that_the_proxy_sets_leads_back_to_the_same_endpoint() {
    run(async {
        let mut addresses = Vec::new();
        for name in ["a", "b", "c", "d"] {
            addresses.push(
                upstream(move |_, mut wire| async move {
                    loop {
                        wire.head().await;
                        wire.send(&ok(name)).await;
                    }
                })
                .await,
            );
        }
        let mut setup = Setup::to(&addresses);
        setup.cluster.balance = Balance::Maglev { size: 251 };
        let ttl = Some(Duration::from_secs(60));
        setup.forward().hash =
            vec![outrigger_model::route::HashOn::Cookie { name: "sid".into(), path: Some("/".into()), ttl }];
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        for _ in 0..8 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let set = headers(&client.head().await)["set-cookie"].clone();
            let owner = client.bytes(1).await;
            let cookie = set.split(';').next().unwrap().to_owned();
            for _ in 0..4 {
                client.send(&format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: x=y; {cookie}\r\n\r\n")).await;
                assert!(!headers(&client.head().await).contains_key("set-cookie"));
                assert_eq!(client.bytes(1).await, owner);
            }
        }
    })
    .await;
}

/// The name of whom it goes to; of one without a name the authority stays.
#[tokio::test]
async fn each_attempt_has_the_name_of_its_endpoint_for_its_authority() {
    run(async {
        let app = |answer: &'static str| {
            upstream(move |_, mut wire| async move {
                loop {
                    let head = headers(&wire.head().await);
                    let before = head.get("x-forwarded-host").cloned().unwrap_or_default();
                    let body = format!("{} {before}", head["host"]);
                    let length = body.len();
                    wire.send(&format!("HTTP/1.1 {answer}\r\nContent-Length: {length}\r\n\r\n{body}")).await;
                }
            })
        };
        let (one, two) = (app("503 No").await, app("200 Yes").await);
        for (names, said) in [
            ([Some("one.test"), Some("two.test")], "two.test a"),
            ([None, Some("two.test")], "two.test a"),
            ([None, None], "a "),
        ] {
            let mut setup = Setup::to(&[one, two]);
            if let Discovery::Static(set) = &mut setup.cluster.discovery {
                for (endpoint, name) in set.localities[0].endpoints.iter_mut().zip(names) {
                    endpoint.hostname = name.map(Into::into);
                }
            }
            setup.cluster.balance = Balance::RoundRobin;
            setup.forward().retry = Some(policy(&[RetryOn::FiveXx]));
            setup.forward().rewrite.authority_of = Some(AuthorityOf::Endpoint);
            setup.forward().rewrite.forwarded_host = true;
            let rig = proxy(setup, Http1).await;
            let mut client = Wire::connect(rig.address).await;
            for _ in 0..2 {
                client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
                let head = client.head().await;
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                let length = headers(&head)["content-length"].parse().unwrap();
                let body = client.bytes(length).await;
                // A first attempt at the other has a name of its own, which is kept as well.
                assert!(body == said || body == "two.test a,one.test", "{body}");
            }
        }
    })
    .await;
}

/// A probe meets a connection that its application gives up just then: sent once more it is the same probe, whose place nobody takes
/// meanwhile.
#[tokio::test]
async fn a_probe_that_met_a_dead_connection_keeps_its_place() {
    run(async {
        let met = Rc::new(Notify::new());
        let signals = (met.clone(), Rc::new(Notify::new()));
        let go = signals.1.clone();
        let app = upstream(move |number, mut wire| {
            let (met, go) = signals.clone();
            async move {
                wire.head().await;
                if number > 0 {
                    wire.send(&ok("well")).await;
                    wire.rest().await;
                    return;
                }
                wire.send("HTTP/1.1 500 Bad\r\nContent-Length: 0\r\n\r\n").await;
                wire.head().await;
                met.notify_one();
                go.notified().await;
            }
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.breaker = Some(Box::new(Breaker {
            consecutive_failures: 1,
            failure_percent: 0.0,
            open_time: Duration::from_secs(1),
            probes: 1,
            ..Breaker::default()
        }));
        let rig = proxy(setup, Http1).await;
        let cluster = rig.worker.snapshot().cluster("c").unwrap().clone();
        let breaker = cluster.breaker.clone().unwrap();
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 500"));
        assert_eq!(breaker.phase(), Phase::Open);
        until("its time is over", || breaker.look().for_seconds >= 1.0).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        met.notified().await;
        let over = Arc::new(AtomicBool::new(false));
        let (stop, wanted) = (over.clone(), breaker.clone());
        let rival = std::thread::spawn(move || {
            let mut taken = 0;
            while !stop.load(SeqCst) {
                taken += usize::from(wanted.admit().is_ok_and(|pass| pass.is_probe()));
            }
            taken
        });
        go.notify_one();
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        over.store(true, SeqCst);
        assert_eq!(rival.join().unwrap(), 0, "probes that were others'");
        let look = breaker.look();
        assert_eq!((look.phase, look.transitions), (Phase::Closed, [1, 1, 1]));
    })
    .await;
}
