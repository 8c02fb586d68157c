//! How long is waited before another attempt where an answer says so; how long streams last, and are silent.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use outrigger_model::matcher::StringMatch;
use outrigger_model::route::{
    GrpcTimeout, HeaderMatch, HedgeDelay, HedgePolicy, RateLimitedBackOff, ResetHeader, RetryOn, RetryPolicy,
    StreamLimits,
};
use tokio::time::Instant;

use super::rig::*;
use crate::protocol::HttpVersion::Http1;

const SECOND: Duration = Duration::from_secs(1);

/// An app whose answers these are, the last for all that follow; with the heads that came.
async fn says(answers: &'static [&'static str]) -> (std::net::SocketAddr, Rc<RefCell<Vec<String>>>) {
    let (count, heads) = (Rc::new(Cell::new(0)), Rc::<RefCell<Vec<String>>>::default());
    let seen = heads.clone();
    let app = upstream(move |_, mut wire| {
        let (count, seen) = (count.clone(), seen.clone());
        async move {
            loop {
                let head = wire.head().await;
                seen.borrow_mut().push(head);
                let answer = answers[count.get().min(answers.len() - 1)];
                count.set(count.get() + 1);
                wire.send(&format!("HTTP/1.1 {answer}Content-Length: 2\r\n\r\nok")).await;
            }
        }
    })
    .await;
    (app, heads)
}

fn waits(headers: &[(&str, bool)], max: Duration) -> RetryPolicy {
    let header = |(name, unix_timestamp): &(&str, bool)| ResetHeader {
        name: (*name).to_owned(),
        unix_timestamp: *unix_timestamp,
    };
    RetryPolicy {
        statuses: vec![429],
        attempts: 3,
        backoff_base: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
        rate_limited: Some(Box::new(RateLimitedBackOff {
            headers: headers.iter().map(header).collect(),
            max,
        })),
        ..RetryPolicy::default()
    }
}

/// The status, and the seconds until it came.
async fn asked(rig: &Rig, request: &str) -> (String, u64) {
    let mut client = Wire::connect(rig.address).await;
    let start = Instant::now();
    client.send(&format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    let head = client.head().await;
    (head[9..12].to_owned(), start.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_as_long_as_the_answer_asks_for() {
    run(async {
        let after = |answers| says(answers);
        let (app, heads) = after(&["429 Slow\r\nRetry-After: 10\r\n", "200 OK\r\n"]).await;
        let mut setup = Setup::to(&[app]);
        setup.forward().retry = Some(waits(&[("x-reset", true), ("retry-after", false)], 60 * SECOND));
        let rig = proxy(setup, Http1).await;
        let (status, seconds) = asked(&rig, "GET /").await;
        assert!(status == "200" && (10..=15).contains(&seconds), "{status} after {seconds} s");
        assert_eq!(heads.borrow().len(), 2);

        // What asks for too long does not count, and the ordinary back-off holds.
        let (app, _) = after(&["429 Slow\r\nRetry-After: 61\r\n", "200 OK\r\n"]).await;
        let mut setup = Setup::to(&[app]);
        setup.forward().retry = Some(waits(&[("retry-after", false)], 60 * SECOND));
        let rig = proxy(setup, Http1).await;
        assert_eq!(asked(&rig, "GET /").await, ("200".to_owned(), 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_beyond_the_time_of_the_request_is_not_begun() {
    run(async {
        let (app, heads) = says(&["429 Slow\r\nRetry-After: 10\r\n"]).await;
        for (timeout, duration) in [(Some(5 * SECOND), None), (None, Some(5 * SECOND))] {
            let mut setup = Setup::to(&[app]);
            setup.forward().retry = Some(waits(&[("retry-after", false)], 60 * SECOND));
            setup.forward().timeout = timeout;
            let limits = StreamLimits { max_duration: duration, ..StreamLimits::default() };
            setup.forward().limits = limits.if_any();
            let rig = proxy(setup, Http1).await;
            assert_eq!(
                asked(&rig, "GET /").await,
                ("429".to_owned(), 0),
                "the answer is the client's, at once"
            );
        }
        assert_eq!(heads.borrow().len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn headers_permit_retries_and_requests_must_have_theirs() {
    run(async {
        let header = |name: &str, value: StringMatch| HeaderMatch { name: name.into(), value, invert: false };
        for (answer, request, status) in [
            ("200 OK\r\nX-Again: yes\r\n", "x-may: 1\r\n", "204"),
            ("200 OK\r\nX-Again: no\r\n", "x-may: 1\r\n", "200"),
            ("200 OK\r\nX-Again: yes\r\n", "", "200"),
            ("418 Tea\r\n", "x-may: 1\r\n", "204"),
        ] {
            let answers: &'static [&'static str] = Box::leak(Box::new([answer, "204 None\r\n"]));
            let (app, _) = says(answers).await;
            let mut setup = Setup::to(&[app]);
            setup.forward().retry = Some(RetryPolicy {
                on: vec![RetryOn::RetriableHeaders],
                attempts: 1,
                response_headers: vec![
                    header("x-again", StringMatch::exact("yes")),
                    header(":status", StringMatch::exact("418")),
                ],
                request_headers: vec![header("x-may", StringMatch::present())],
                ..RetryPolicy::default()
            });
            let rig = proxy(setup, Http1).await;
            let mut client = Wire::connect(rig.address).await;
            client.send(&format!("GET / HTTP/1.1\r\nHost: a\r\n{request}\r\n")).await;
            assert_eq!(&client.head().await[9..12], status, "{answer} {request}");
        }
    })
    .await;
}

/// An app that answers the first bytes at once and the rest never.
async fn begins() -> std::net::SocketAddr {
    upstream(|_, mut wire| async move {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfirst").await;
        wire.rest().await;
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_it_has_lasted_as_long_as_its_route_lets_it() {
    run(async {
        let silent = upstream(|_, mut wire| async move { drop(wire.rest().await) }).await;
        let limits = StreamLimits { max_duration: Some(7 * SECOND), ..StreamLimits::default() };
        let mut setup = Setup::to(&[silent]);
        setup.forward().limits = limits.if_any();
        let rig = proxy(setup, Http1).await;
        assert_eq!(asked(&rig, "GET /").await, ("504".to_owned(), 7));
        // Of a request that has not all come the client is told so.
        let mut client = Wire::connect(rig.address).await;
        let start = Instant::now();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab").await;
        assert!(client.head().await.starts_with("HTTP/1.1 408"));
        assert_eq!(start.elapsed().as_secs(), 7);

        let mut setup = Setup::to(&[begins().await]);
        setup.forward().limits = limits.if_any();
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let start = Instant::now();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        assert_eq!(client.rest().await, "first", "a response that has begun breaks off");
        assert_eq!(start.elapsed().as_secs(), 7);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_call_says_its_own_time_and_the_application_is_told_what_holds() {
    run(async {
        let (app, heads) = says(&["200 OK\r\n"]).await;
        let silent = upstream(|_, mut wire| async move { drop(wire.rest().await) }).await;
        let grpc = Some(GrpcTimeout { max: 20 * SECOND, offset: SECOND });
        for (limits, said, told, seconds) in [
            (StreamLimits { grpc_duration: grpc, ..StreamLimits::default() }, "5S", "4000m", 4),
            (StreamLimits { grpc_duration: grpc, ..StreamLimits::default() }, "50S", "19000m", 19),
            (StreamLimits { grpc_timeout: grpc, ..StreamLimits::default() }, "5S", "4000m", 4),
            (StreamLimits { grpc_timeout: grpc, ..StreamLimits::default() }, "50S", "20000m", 20),
        ] {
            for app in [app, silent] {
                let mut setup = Setup::to(&[app]);
                setup.forward().limits = limits.if_any();
                let rig = proxy(setup, Http1).await;
                let mut client = Wire::connect(rig.address).await;
                let start = Instant::now();
                let fields = format!("Host: a\r\ncontent-type: application/grpc\r\ngrpc-timeout: {said}\r\n");
                client.send(&format!("GET / HTTP/1.1\r\n{fields}\r\n")).await;
                let head = client.head().await;
                if app == silent {
                    assert_eq!(start.elapsed().as_secs(), seconds, "{limits:?} {head}");
                    let status = if limits.grpc_duration.is_some() { "4" } else { "14" };
                    assert_eq!(headers(&head)["grpc-status"], status, "{head}");
                }
            }
            let head = heads.borrow_mut().pop().unwrap();
            assert_eq!(headers(&head)["grpc-timeout"], told, "{limits:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_may_be_silent_for_its_time_before_and_after_its_response_begins() {
    run(async {
        let policy = |attempts| RetryPolicy {
            on: vec![RetryOn::Reset],
            attempts,
            per_try_idle: Some(3 * SECOND),
            backoff_base: Duration::from_millis(1),
            backoff_max: Duration::from_millis(1),
            ..RetryPolicy::default()
        };
        let late = upstream(|number, mut wire| async move {
            wire.head().await;
            if number > 0 {
                wire.send(&ok("ok")).await;
            }
            wire.rest().await;
        })
        .await;
        let mut setup = Setup::to(&[late]);
        setup.forward().retry = Some(policy(1));
        let rig = proxy(setup, Http1).await;
        assert_eq!(asked(&rig, "GET /").await, ("200".to_owned(), 3), "the second attempt");

        let mut setup = Setup::to(&[begins().await]);
        setup.forward().retry = Some(policy(0));
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let start = Instant::now();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.rest().await.split("\r\n\r\n").nth(1), Some("first"));
        // Silence is looked for once in its time.
        assert!((3..=6).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_route_may_be_more_or_less_patient_with_silence_than_its_listener() {
    run(async {
        for (listener, route, seconds) in [(5, Some(9), 9), (9, Some(5), 5), (5, None, 5)] {
            let silent = upstream(|_, mut wire| async move { drop(wire.rest().await) }).await;
            let mut setup = Setup::to(&[silent]);
            setup.http.stream_idle_timeout = listener * SECOND;
            let idle_timeout = route.map(|route: u32| route * SECOND);
            setup.forward().limits = StreamLimits { idle_timeout, ..StreamLimits::default() }.if_any();
            let rig = proxy(setup, Http1).await;
            assert_eq!(asked(&rig, "GET /").await, ("504".to_owned(), seconds));
        }
        // For ever, but for the route's timeout.
        let silent = upstream(|_, mut wire| async move { drop(wire.rest().await) }).await;
        let mut setup = Setup::to(&[silent]);
        setup.http.stream_idle_timeout = SECOND;
        setup.forward().timeout = Some(30 * SECOND);
        let idle_timeout = Some(Duration::ZERO);
        setup.forward().limits = StreamLimits { idle_timeout, ..StreamLimits::default() }.if_any();
        let rig = proxy(setup, Http1).await;
        assert_eq!(asked(&rig, "GET /").await, ("504".to_owned(), 30));
    })
    .await;
}

/// Of an attempt, by its cluster; there may be another.
#[tokio::test(start_paused = true)]
async fn an_attempt_lasts_no_longer_than_its_cluster_lets_it() {
    run(async {
        let late = || {
            upstream(|number, mut wire| async move {
                wire.head().await;
                if number > 0 {
                    tokio::time::sleep(4 * SECOND).await;
                    wire.send(&ok("ok")).await;
                }
                wire.rest().await;
            })
        };
        let policy = |attempts, on| RetryPolicy {
            on: vec![on],
            attempts,
            backoff_base: Duration::from_millis(1),
            ..RetryPolicy::default()
        };
        // The second attempt has all of its time again; who retries nothing of the kind, or hears of the request's own end, does not.
        for (attempts, on, request, status, seconds) in [
            (1, RetryOn::FiveXx, None, "200", 9),
            (1, RetryOn::Reset, None, "200", 9),
            (1, RetryOn::ConnectFailure, None, "504", 5),
            (0, RetryOn::FiveXx, None, "504", 5),
            (1, RetryOn::FiveXx, Some(3), "504", 3),
            (1, RetryOn::FiveXx, Some(7), "504", 7),
        ] {
            let mut setup = Setup::to(&[late().await]);
            setup.cluster.max_stream_duration = Some(5 * SECOND);
            setup.forward().retry = Some(policy(attempts, on));
            let max_duration = request.map(|seconds: u32| seconds * SECOND);
            setup.forward().limits = StreamLimits { max_duration, ..StreamLimits::default() }.if_any();
            let rig = proxy(setup, Http1).await;
            assert_eq!(
                asked(&rig, "GET /").await,
                (status.to_owned(), seconds),
                "{attempts} {on:?} {request:?}"
            );
        }

        // A response that has begun breaks off, however lively it is.
        let lively = upstream(|_, mut wire| async move {
            wire.head().await;
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n").await;
            for _ in 0..100 {
                tokio::time::sleep(SECOND).await;
                wire.send("x").await;
            }
        })
        .await;
        let mut setup = Setup::to(&[lively]);
        setup.cluster.max_stream_duration = Some(Duration::from_millis(4_500));
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.rest().await.split("\r\n\r\n").nth(1), Some("xxxx"));
    })
    .await;
}

/// Each attempt of a hedged request has its own time, also when its response has begun.
#[tokio::test(start_paused = true)]
async fn rivals_have_their_own_time_from_their_cluster() {
    run(async {
        for answers in [true, false] {
            let asked = Rc::new(Cell::new(0));
            let app = || {
                let asked = asked.clone();
                upstream(move |_, mut wire| {
                    let asked = asked.clone();
                    async move {
                        wire.head().await;
                        asked.set(asked.get() + 1);
                        if asked.get() > 1 && answers {
                            tokio::time::sleep(SECOND).await;
                            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n").await;
                            for _ in 0..9 {
                                wire.send("x").await;
                                tokio::time::sleep(SECOND).await;
                            }
                        }
                        wire.rest().await;
                    }
                })
            };
            let mut setup = Setup::to(&[app().await, app().await]);
            setup.cluster.max_stream_duration = Some(Duration::from_millis(5_500));
            let delay = Some(HedgeDelay::Fixed(3 * SECOND));
            let policy = HedgePolicy { delay, ..HedgePolicy::default() };
            setup.forward().hedge = Some(Box::new(policy));
            let rig = proxy(setup, Http1).await;
            let mut client = Wire::connect(rig.address).await;
            let start = Instant::now();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let head = client.head().await;
            let seconds = start.elapsed().as_secs();
            if answers {
                assert!(head.starts_with("HTTP/1.1 200") && seconds == 4, "{seconds} {head}");
                // Sent after three seconds, it ends after eight and a half.
                assert_eq!(client.rest().await, "xxxxx");
            } else {
                assert!(head.starts_with("HTTP/1.1 504") && seconds == 8, "{seconds} {head}");
                assert!(head.contains("upstream_stream_duration"), "{head}");
            }
            assert_eq!(asked.get(), 2);
        }
    })
    .await;
}

/// The listener's word, unless the route says otherwise.
#[tokio::test(start_paused = true)]
async fn streams_last_no_longer_than_their_listener_lets_them() {
    run(async {
        for (route, seconds) in [(None, 5), (Some(9), 9), (Some(2), 2), (Some(0), 30)] {
            let silent = upstream(|_, mut wire| async move { drop(wire.rest().await) }).await;
            let mut setup = Setup::to(&[silent]);
            setup.http.max_stream_duration = Some(5 * SECOND);
            setup.forward().timeout = Some(30 * SECOND);
            let max_duration = route.map(|route: u32| route * SECOND);
            setup.forward().limits = StreamLimits { max_duration, ..StreamLimits::default() }.if_any();
            let rig = proxy(setup, Http1).await;
            assert_eq!(asked(&rig, "GET /").await, ("504".to_owned(), seconds));
        }
    })
    .await;
}
