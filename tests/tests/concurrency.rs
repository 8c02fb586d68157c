//! Adaptive concurrency through two sidecars: an instance keeps itself fast, refuses exactly what is beyond, says so where people look, and
//! loses no place for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_tests::app::get;
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::BINARY;
use crate::health_checks::DENY;
use crate::limits::{Gate, log_has, plenty};
use crate::thin_thread::{catalog, web};

fn page(more: &str, adaptive: &str) -> String {
    format!(
        "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {{name: catalog, namespace: shop}}
spec:
  service: catalog
{more}  adaptiveConcurrency: {adaptive}
"
    )
}

/// A gauge or counter of the rule.
async fn metric(sidecar: &Sidecar, name: &str) -> Option<f64> {
    let start = format!("{name}{{rule=\"TrafficRules shop/catalog\"}} ");
    sidecar.page("/stats/prometheus").await.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

async fn until(sidecar: &Sidecar, name: &str, wanted: f64) {
    eventually(&format!("{name} is {wanted}"), || async {
        let found = metric(sidecar, name).await;
        if found == Some(wanted) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// An application that works at two requests at a time, each for so long: whoever comes when more are there waits.
async fn two_at_a_time(listen: SocketAddr, work: Duration) {
    let (listener, places) = (TcpListener::bind(listen).await.unwrap(), Arc::new(Semaphore::new(2)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let places = places.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                loop {
                    line.clear();
                    match stream.read_line(&mut line).await {
                        Ok(n) if n > 2 => continue,
                        Ok(2) => {}
                        _ => return,
                    }
                    let place = places.acquire().await.unwrap();
                    tokio::time::sleep(work).await;
                    drop(place);
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// What clients see that ask one request after the other, for so long a time.
struct Seen {
    /// Times of the good answers, from the shortest.
    good: Vec<Duration>,
    /// Of the others the text.
    refused: Vec<String>,
}

impl Seen {
    fn median(&self) -> Duration {
        self.good[self.good.len() / 2]
    }
}

async fn crowd(entry: SocketAddr, clients: usize, time: Duration) -> Seen {
    let end = Instant::now() + time;
    let asking: Vec<_> = (0..clients)
        .map(|_| {
            tokio::spawn(async move {
                let mut seen = Seen { good: Vec::new(), refused: Vec::new() };
                while Instant::now() < end {
                    let begun = Instant::now();
                    let (status, text) = get(entry, "/", "").await.unwrap();
                    if status == 200 {
                        seen.good.push(begun.elapsed());
                    } else {
                        seen.refused.push(text);
                        // Somebody who is refused waits a little.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                seen
            })
        })
        .collect();
    let mut all = Seen { good: Vec::new(), refused: Vec::new() };
    for asked in asking {
        let Seen { good, refused } = asked.await.unwrap();
        all.good.extend(good);
        all.refused.extend(refused);
    }
    all.good.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_under_a_crowd_stays_fast_and_does_as_much_as_without_a_limit() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    two_at_a_time(catalog.app, Duration::from_millis(20)).await;
    let entry = web.outbound[0];
    const CROWD: usize = 40;
    let time = Duration::from_secs(3);

    let without = crowd(entry, CROWD, time).await;
    assert!(without.refused.is_empty(), "{:?}", without.refused.first());
    // Twenty of them wait for each place: 400 ms.
    assert!(without.median() > Duration::from_millis(300), "{:?}", without.median());

    // Two clients find out how fast it is; nothing is tried again, so that what is refused shows.
    let no_retry = "  retry: {attempts: 0}\n";
    let limit = "{maxLimit: 100, updateInterval: 100ms, \
                  minRtt: {interval: 1h, requestCount: 20, minConcurrency: 2, bufferPercent: 50}}";
    mesh.apply(&page(no_retry, limit)).await;
    until(&catalog, "outrigger_concurrency_min_rtt_calculation_active", 1.0).await;
    assert_eq!(metric(&catalog, "outrigger_concurrency_limit").await, Some(2.0), "while it measures");
    eventually("the minRTT is measured", || async {
        crowd(entry, 1, Duration::from_millis(100)).await;
        let active = metric(&catalog, "outrigger_concurrency_min_rtt_calculation_active").await;
        if active == Some(0.0) { Ok(()) } else { Err(format!("{active:?}")) }
    })
    .await;
    let min_rtt = metric(&catalog, "outrigger_concurrency_min_rtt_milliseconds").await.unwrap();
    assert!((19.0..200.0).contains(&min_rtt), "{min_rtt}");

    let with = crowd(entry, CROWD, time).await;
    let (fast, slow) = (with.median(), without.median());
    println!(
        "{} good in {slow:?} without, {} in {fast:?} and {} refused with a limit",
        without.good.len(),
        with.good.len(),
        with.refused.len()
    );
    assert!(fast * 2 < slow, "{fast:?} with a limit, {slow:?} without");
    assert!(with.good.len() * 2 > without.good.len(), "{} of {}", with.good.len(), without.good.len());
    let refused = with.refused.first().expect("there were too many");
    for part in [
        "reached concurrency limit",
        "reason=concurrency_limit",
        "reached=no",
        "limit=adaptive_concurrency:",
        "hop=catalog-v1",
        "TrafficRules shop/catalog",
    ] {
        assert!(refused.contains(part), "no {part}: {refused}");
    }
    assert!(with.refused.iter().all(|text| text.starts_with("HTTP/1.1 503")), "{refused}");
    log_has(&mesh, "catalog-v1", " 503 UO reached_concurrency_limit ").await;
    let counted = metric(&catalog, "outrigger_concurrency_limited_total").await;
    assert!(counted >= Some(with.refused.len() as f64), "{counted:?}");
    let limit = metric(&catalog, "outrigger_concurrency_limit").await.unwrap();
    assert!((2.0..30.0).contains(&limit), "{limit} for what two places bear");
}

/// 500 requests at once, to sidecars with two workers: exactly as many are under way as the limit says, also after another rule has come.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_exact_for_five_hundred_requests_at_once_and_counts_on_through_pushes() {
    let mut mesh = Mesh::start(BINARY).await;
    mesh.bootstrap = serde_json::json!({ "workers": 2 });
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let gate = Gate::serve(catalog.app, "v1", 200, 0).await;
    let fixed = "{minLimit: 137, maxLimit: 137, minRtt: {fixedValue: 10s}}";
    mesh.apply(&page("  retry: {attempts: 0}\n", fixed)).await;
    until(&catalog, "outrigger_concurrency_limit", 137.0).await;
    let entry = web.outbound[0];
    let asked: Vec<_> =
        (0..500).map(|_| tokio::spawn(async move { get(entry, "/", "").await.unwrap().0 })).collect();
    until(&catalog, "outrigger_concurrency_limited_total", 363.0).await;
    assert_eq!(metric(&catalog, "outrigger_concurrency_requests").await, Some(137.0));
    let listeners = catalog.page("/listeners").await;
    assert!(
        listeners.contains("\"adaptiveConcurrency\"") && listeners.contains("TrafficRules shop/catalog"),
        "{listeners}"
    );
    // The listener is compiled anew; who is under way still is.
    mesh.apply(DENY).await;
    assert_eq!(get(entry, "/denied", "").await.unwrap().0, 403);
    assert_eq!(get(entry, "/", "").await.unwrap().0, 503);
    // Other settings: a status of one's own, and nobody is forgotten.
    mesh.apply(&page("  retry: {attempts: 0}\n", &fixed.replace("{minLimit", "{status: 429, minLimit")))
        .await;
    eventually("the new status", || async {
        let (status, text) = get(entry, "/", "").await.unwrap();
        if status == 429 { Ok(()) } else { Err(text) }
    })
    .await;
    gate.open.add_permits(plenty());
    let mut statuses = Vec::new();
    for asked in asked {
        statuses.push(asked.await.unwrap());
    }
    let count = |status: u16| statuses.iter().filter(|found| **found == status).count();
    assert_eq!((count(200), count(503)), (137, 363));
    until(&catalog, "outrigger_concurrency_requests", 0.0).await;
    assert_eq!(get(entry, "/", "").await.unwrap().0, 200);
}

/// The caller's sidecar goes elsewhere, by its default retries, and holds it against nobody.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_busy_instance_refuses_another_answers_and_no_failure_is_counted() {
    let mesh = Mesh::start(BINARY).await;
    let (busy, idle) = (mesh.workload(&catalog("v1", 11)).await, mesh.workload(&catalog("v2", 12)).await);
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let gate = Gate::serve(busy.app, "v1", 200, 0).await;
    Gate::serve(idle.app, "v2", 200, plenty()).await;
    let strict = "  loadBalancing: {policy: roundRobin}
  retry: {budget: {percent: 100, minConcurrency: 10}}
  circuitBreaker: {consecutiveErrors: 1, maxEjectionPercent: 100, trip: {consecutiveFailures: 1}}
";
    mesh.apply(&page(strict, "{maxLimit: 1, minRtt: {fixedValue: 10s, minConcurrency: 1}}")).await;
    until(&busy, "outrigger_concurrency_limit", 1.0).await;
    until(&idle, "outrigger_concurrency_limit", 1.0).await;
    let entry = web.outbound[0];
    let held = tokio::spawn(async move {
        // Whoever is next in turn: one of two goes to the one that does not answer.
        loop {
            let (status, text) = get(entry, "/", "").await.unwrap();
            assert_eq!(status, 200, "{text}");
            if text.contains("x-app: v1") {
                return;
            }
        }
    });
    until(&busy, "outrigger_concurrency_requests", 1.0).await;
    for _ in 0..20 {
        let (status, text) = get(entry, "/", "").await.unwrap();
        assert!(status == 200 && text.contains("x-app: v2"), "{text}");
    }
    let refused = metric(&busy, "outrigger_concurrency_limited_total").await;
    assert!(refused >= Some(9.0), "every other of twenty went there first: {refused:?}");
    let stats = web.page("/stats/prometheus").await;
    let cluster = "{envoy_cluster_name=\"outbound|8080||catalog.shop.svc.cluster.local\"";
    for line in [
        format!("envoy_cluster_outlier_detection_ejections_active{cluster}}} 0"),
        format!("outrigger_circuit_breaker_state{cluster},state=\"closed\"}} 1"),
        format!("outrigger_circuit_breaker_transitions_total{cluster},state=\"open\"}} 0"),
    ] {
        assert!(stats.lines().any(|found| found == line), "no {line}: {stats}");
    }
    gate.open.add_permits(plenty());
    held.await.unwrap();
}
