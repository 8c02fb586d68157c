//! Hedging: who is asked besides, whose answer is taken, and what becomes of the others.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use outrigger_model::cluster::{Balance, RetryBudget, UpstreamProtocol};
use outrigger_model::route::{HashOn, HedgeDelay, HedgePolicy, RetryOn, RetryPolicy};
use outrigger_telemetry::metrics::{Page, Source};
use tokio::time::Instant;

use super::h2;
use super::rig::*;
use crate::protocol::HttpVersion::{Http1, Http2};

mod dead;

const MILLI: Duration = Duration::from_millis(1);

/// What the instances of an application have seen, whichever of them was asked, and what they wait for.
#[derive(Default)]
struct Seen {
    requests: Count,
    /// Connections that ended while their answer was owed.
    given_up: Count,
    /// Answers may be sent: the first, and all others.
    first: Cell<bool>,
    others: Cell<bool>,
}

impl Seen {
    fn answering() -> Rc<Self> {
        let seen = Rc::<Self>::default();
        seen.others.set(true);
        seen
    }
}

/// Two instances: whoever is asked first says `first`, or never anything; all others answer with `then` and the number of the
/// attempt.
async fn pair(seen: &Rc<Seen>, first: &'static str, then: &'static str) -> [SocketAddr; 2] {
    [instance(seen, first, then).await, instance(seen, first, then).await]
}

async fn instance(seen: &Rc<Seen>, first: &'static str, then: &'static str) -> SocketAddr {
    let seen = seen.clone();
    upstream(move |_, mut wire| {
        let seen = seen.clone();
        async move {
            loop {
                let head = wire.head().await;
                if head.starts_with("POST") {
                    assert_eq!(wire.bytes(4).await, "body");
                }
                let number = seen.requests.get();
                seen.requests.set(number + 1);
                if number == 0 && first.is_empty() {
                    wire.rest().await;
                    seen.given_up.set(seen.given_up.get() + 1);
                    return;
                }
                let may = if number == 0 { &seen.first } else { &seen.others };
                until("leave to answer", || may.get()).await;
                let status = if number == 0 { first } else { then };
                let attempt = headers(&head).get("x-envoy-attempt-count").cloned().unwrap_or_default();
                wire.send(&format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{attempt}",
                    attempt.len()
                ))
                .await;
            }
        }
    })
    .await
}

fn after(delay: Duration) -> HedgePolicy {
    HedgePolicy { delay: Some(HedgeDelay::Fixed(delay)), ..HedgePolicy::default() }
}

fn hedged(endpoints: &[SocketAddr], policy: HedgePolicy) -> Setup {
    let mut setup = Setup::to(endpoints);
    setup.cluster.balance = Balance::RoundRobin;
    setup.forward().hedge = Some(Box::new(policy));
    setup
}

/// One request: its status, and the number of the attempt that was answered.
async fn ask(rig: &Rig, request: &str) -> (String, String) {
    let mut client = Wire::connect(rig.address).await;
    client.send(request).await;
    let head = client.head().await;
    let length = headers(&head)["content-length"].parse().unwrap();
    let status = head.split(' ').nth(1).unwrap().to_owned();
    (status, client.bytes(length).await)
}

fn page(rig: &Rig) -> String {
    let mut page = Page::new();
    rig.worker.process.metrics.collect(&mut page);
    page.finish()
}

/// Waits until the proxy has had a bad answer.
async fn bad_one(rig: &Rig) {
    let line = "envoy_cluster_upstream_rq_xx{envoy_cluster_name=\"c\",envoy_response_code_class=\"5\"} 1";
    until("a bad answer", || page(rig).lines().any(|one| one == line)).await;
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";

#[tokio::test]
async fn a_slow_attempt_has_a_rival_whose_answer_is_taken_and_is_given_up() {
    run(async {
        let seen = Seen::answering();
        let rig = proxy(hedged(&pair(&seen, "", "200").await, after(10 * MILLI)), Http1).await;
        assert_eq!(ask(&rig, GET).await, ("200".into(), "2".into()));
        assert_eq!(seen.requests.get(), 2);
        until("the slow one is given up", || seen.given_up.get() == 1).await;
        let page = page(&rig);
        for line in [
            "outrigger_hedges_total{envoy_cluster_name=\"c\"} 1",
            "outrigger_hedges_won_total{envoy_cluster_name=\"c\"} 1",
        ] {
            assert!(page.lines().any(|one| one == line), "{page}");
        }
        assert_eq!(
            rig.worker.snapshot().cluster("c").unwrap().limits.view().retries,
            0,
            "its permit is back"
        );
    })
    .await;
}

#[tokio::test]
async fn a_quick_attempt_has_no_rival() {
    run(async {
        let seen = Seen::answering();
        let rig = proxy(hedged(&pair(&seen, "200", "200").await, after(60_000 * MILLI)), Http1).await;
        seen.requests.set(1);
        for _ in 0..5 {
            assert_eq!(ask(&rig, GET).await, ("200".into(), "1".into()));
        }
        assert_eq!(seen.requests.get(), 6);
    })
    .await;
}

#[tokio::test]
async fn only_what_may_be_repeated_is_hedged_unless_the_rule_says_otherwise() {
    run(async {
        let seen = Seen::answering();
        let mut setup = hedged(&pair(&seen, "", "200").await, after(MILLI));
        setup.forward().timeout = Some(1000 * MILLI);
        let rig = proxy(setup, Http1).await;
        let (status, _) = ask(&rig, POST).await;
        assert_eq!((status.as_str(), seen.requests.get()), ("504", 1));
        let seen = Seen::answering();
        let policy = HedgePolicy { all_methods: true, ..after(10 * MILLI) };
        let rig = proxy(hedged(&pair(&seen, "", "200").await, policy), Http1).await;
        assert_eq!(ask(&rig, POST).await, ("200".into(), "2".into()), "with its body");
    })
    .await;
}

#[tokio::test]
async fn a_bad_answer_is_not_taken_while_another_may_come() {
    run(async {
        let seen = Seen::answering();
        let rig = proxy(hedged(&pair(&seen, "200", "503").await, after(10 * MILLI)), Http1).await;
        let then = async {
            bad_one(&rig).await;
            seen.first.set(true);
        };
        let (answer, ()) = tokio::join!(ask(&rig, GET), then);
        assert_eq!(answer, ("200".into(), "1".into()), "its rival was bad");
        let seen = Rc::<Seen>::default();
        let rig = proxy(hedged(&pair(&seen, "503", "200").await, after(10 * MILLI)), Http1).await;
        let then = async {
            until("a rival", || seen.requests.get() == 2).await;
            seen.first.set(true);
            bad_one(&rig).await;
            seen.others.set(true);
        };
        let (answer, ()) = tokio::join!(ask(&rig, GET), then);
        assert_eq!(answer, ("200".into(), "2".into()), "the first was bad");
        let seen = Seen::answering();
        let rig = proxy(hedged(&pair(&seen, "503", "503").await, after(10 * MILLI)), Http1).await;
        let then = async {
            bad_one(&rig).await;
            seen.first.set(true);
        };
        let ((status, _), ()) = tokio::join!(ask(&rig, GET), then);
        assert_eq!((status.as_str(), seen.requests.get()), ("503", 2), "all are bad: the last is answered");
    })
    .await;
}

#[tokio::test]
async fn the_time_of_an_attempt_sends_a_rival_and_ends_nothing() {
    run(async {
        let seen = Seen::answering();
        let policy = HedgePolicy { delay: None, on_per_try_timeout: true, ..HedgePolicy::default() };
        let mut setup = hedged(&pair(&seen, "200", "503").await, policy);
        let per_try_timeout = Some(10 * MILLI);
        let on = vec![RetryOn::GatewayError];
        setup.forward().retry =
            Some(RetryPolicy { on, attempts: 1, per_try_timeout, ..RetryPolicy::default() });
        let rig = proxy(setup, Http1).await;
        let then = async {
            bad_one(&rig).await;
            seen.first.set(true);
        };
        // The rival was bad; the first, though its time has passed, is good.
        let (answer, ()) = tokio::join!(ask(&rig, GET), then);
        assert_eq!(answer, ("200".into(), "1".into()));
        assert_eq!(seen.requests.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn nobody_is_asked_twice_and_no_more_than_the_budget_has() {
    run(async {
        let seen = Seen::answering();
        let alone = [instance(&seen, "", "200").await];
        let mut setup = hedged(&alone, after(MILLI));
        setup.forward().timeout = Some(500 * MILLI);
        let rig = proxy(setup, Http1).await;
        assert_eq!(
            (ask(&rig, GET).await.0.as_str(), seen.requests.get()),
            ("504", 1),
            "there is nobody else"
        );
        let seen = Seen::answering();
        let mut setup = hedged(&pair(&seen, "", "200").await, after(MILLI));
        setup.cluster.limits.retry_budget = Some(RetryBudget { percent: 0.0, min_concurrency: 0 });
        setup.forward().timeout = Some(500 * MILLI);
        let rig = proxy(setup, Http1).await;
        assert_eq!((ask(&rig, GET).await.0.as_str(), seen.requests.get()), ("504", 1), "the budget is none");
    })
    .await;
}

#[tokio::test]
async fn a_percentile_is_waited_for_once_enough_is_known() {
    run(async {
        let seen = Seen::answering();
        let delay = Some(HedgeDelay::Percentile { percent: 90.0, min_samples: 10 });
        let policy = HedgePolicy { delay, ..HedgePolicy::default() };
        let mut setup = hedged(&pair(&seen, "", "200").await, policy);
        setup.forward().timeout = Some(5000 * MILLI);
        let rig = proxy(setup, Http1).await;
        seen.requests.set(1);
        for _ in 0..10 {
            assert_eq!(ask(&rig, GET).await.1, "1");
        }
        // What was found while there was too little holds for a while.
        let known =
            || rig.worker.snapshot().cluster("c").unwrap().latencies().percentile(90.0, 10, Instant::now());
        until("a percentile is known", || known().is_some()).await;
        seen.requests.set(0);
        assert_eq!(
            ask(&rig, GET).await,
            ("200".into(), "2".into()),
            "the first is slower than nine in ten were"
        );
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_is_given_up_leaves_its_connection_to_the_others() {
    run(async {
        let seen = Seen::answering();
        let served = seen.clone();
        let script = move |_: http::Request<::h2::RecvStream>,
                           mut respond: ::h2::server::SendResponse<Bytes>| {
            let seen = served.clone();
            async move {
                let number = seen.requests.get();
                seen.requests.set(number + 1);
                if number == 0 {
                    let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                    assert_eq!(reset.unwrap(), ::h2::Reason::CANCEL);
                    seen.given_up.set(1);
                    return;
                }
                respond.send_response(http::Response::new(()), true).unwrap();
            }
        };
        let apps = [h2::app(script.clone()).await, h2::app(script).await];
        let mut setup = hedged(&apps, after(500 * MILLI));
        setup.cluster.protocol = UpstreamProtocol::Http2;
        let rig = proxy(setup, Http1).await;
        for _ in 0..9 {
            let mut client = Wire::connect(rig.address).await;
            client.send(GET).await;
            assert!(client.head().await.starts_with("HTTP/1.1 200"));
        }
        until("the slow one is given up", || seen.given_up.get() == 1).await;
        assert_eq!(seen.requests.get(), 10);
        let connections = "envoy_cluster_upstream_cx_total{envoy_cluster_name=\"c\"} 2";
        assert!(page(&rig).lines().any(|line| line == connections), "one to each: {}", page(&rig));
    })
    .await;
}

#[tokio::test]
async fn a_call_of_grpc_is_hedged_with_its_message_and_answered_with_its_trailers() {
    run(async {
        let seen = Seen::answering();
        let served = seen.clone();
        let script = move |request: http::Request<::h2::RecvStream>,
                           mut respond: ::h2::server::SendResponse<Bytes>| {
            let seen = served.clone();
            async move {
                assert_eq!(request.headers()["content-type"], "application/grpc");
                let attempt = request.headers()["x-envoy-attempt-count"].clone();
                let message = request.into_body().data().await.unwrap().unwrap();
                assert_eq!(&message[..], b"\0\0\0\0\x02hi");
                let number = seen.requests.get();
                seen.requests.set(number + 1);
                if number == 0 {
                    let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                    return;
                }
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                send.send_data(message, false).unwrap();
                send.send_trailers(
                    [(http::HeaderName::from_static("grpc-status"), attempt)].into_iter().collect(),
                )
                .unwrap();
            }
        };
        let apps = [h2::app(script.clone()).await, h2::app(script).await];
        let rig = proxy(hedged(&apps, HedgePolicy { all_methods: true, ..after(10 * MILLI) }), Http2).await;
        let mut client = h2::client(rig.address).await;
        let request =
            http::Request::post("http://a/s/M").header("content-type", "application/grpc").body(()).unwrap();
        let (response, mut stream) = client.send_request(request, false).unwrap();
        stream.send_data(Bytes::from_static(b"\0\0\0\0\x02hi"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(&body.data().await.unwrap().unwrap()[..], b"\0\0\0\0\x02hi");
        assert!(body.data().await.is_none());
        assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "2", "the second attempt's");
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_still_on_its_way_is_waited_for() {
    run(async {
        let seen = Seen::answering();
        let policy = HedgePolicy { all_methods: true, ..after(MILLI) };
        let rig = proxy(hedged(&pair(&seen, "", "200").await, policy), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo").await;
        let connections = "envoy_cluster_upstream_cx_total{envoy_cluster_name=\"c\"} ";
        until("the first attempt", || page(&rig).lines().any(|line| line == format!("{connections}1"))).await;
        client.send("dy").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!((client.bytes(1).await.as_str(), seen.requests.get()), ("2", 2));
    })
    .await;
}

/// Takes a body to its end; how long it was.
async fn taken(body: &mut ::h2::RecvStream) -> usize {
    let mut bytes = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        bytes += chunk.len();
        body.flow_control().release_capacity(chunk.len()).unwrap();
    }
    bytes
}

#[tokio::test]
async fn a_rival_that_answers_early_has_the_whole_body_nevertheless() {
    run(async {
        let seen = Rc::<Seen>::default();
        let served = seen.clone();
        let script = move |request: http::Request<::h2::RecvStream>,
                           mut respond: ::h2::server::SendResponse<Bytes>| {
            let seen = served.clone();
            async move {
                let mut body = request.into_body();
                let number = seen.requests.get();
                seen.requests.set(number + 1);
                if number == 0 {
                    taken(&mut body).await;
                    let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                    return;
                }
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                // Until then the last byte has no room: a stream's first window is 65,535.
                until("the head to be taken", || seen.others.get()).await;
                let bytes = taken(&mut body).await;
                send.send_data(Bytes::from(bytes.to_string()), true).unwrap();
            }
        };
        let apps = [h2::app(script.clone()).await, h2::app(script).await];
        let mut setup = hedged(&apps, HedgePolicy { all_methods: true, ..after(10 * MILLI) });
        setup.cluster.protocol = UpstreamProtocol::Http2;
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let body = "b".repeat(1 << 16);
        client
            .send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", 1 << 16))
            .await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        seen.others.set(true);
        let rest = tokio::time::timeout(20_000 * MILLI, client.until("0\r\n\r\n")).await;
        assert_eq!(rest.expect("the rest of the body comes"), "5\r\n65536\r\n0\r\n\r\n");
        client.send(GET).await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"), "the client's connection serves on");
    })
    .await;
}

#[tokio::test]
async fn a_request_that_is_too_slow_speaks_against_one_instance() {
    run(async {
        let seen = Rc::<Seen>::default();
        let mut apps = Vec::new();
        for _ in 0..3 {
            apps.push(instance(&seen, "200", "200").await);
        }
        let mut setup = hedged(&apps, HedgePolicy { attempts: 3, ..after(5 * MILLI) });
        setup.forward().timeout = Some(200 * MILLI);
        let rig = proxy(setup, Http1).await;
        assert_eq!((ask(&rig, GET).await.0.as_str(), seen.requests.get()), ("504", 3));
        let snapshot = rig.worker.snapshot();
        let table = snapshot.cluster("c").unwrap().endpoints();
        let errors: u64 = table.all.iter().map(|endpoint| endpoint.totals().1).sum();
        assert_eq!(errors, 1, "as without hedging");
    })
    .await;
}

#[tokio::test]
async fn a_rival_goes_elsewhere_though_retries_may_not() {
    run(async {
        let seen = Seen::answering();
        let mut setup = hedged(&pair(&seen, "", "200").await, after(10 * MILLI));
        // The same hash of both: who was not tried is found only by being told who was.
        setup.cluster.balance = Balance::Maglev { size: 101 };
        setup.forward().hash = vec![HashOn::SourceAddress];
        setup.forward().retry =
            Some(RetryPolicy { avoid_previous_hosts: false, attempts: 1, ..RetryPolicy::default() });
        setup.forward().timeout = Some(5000 * MILLI);
        let rig = proxy(setup, Http1).await;
        assert_eq!(ask(&rig, GET).await, ("200".into(), "2".into()));
    })
    .await;
}
