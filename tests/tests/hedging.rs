//! Hedging through two sidecars, and by a real Envoy: one instance of three is slow, and nobody feels it; what it costs is bounded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use outrigger_tests::app::{exchange, get};
use outrigger_tests::http::{Body, whole};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use tokio::net::TcpListener;

use crate::BINARY;
use crate::foreign::start_envoy;
use crate::thin_thread::{STRICT, catalog, web};

/// What the slow instance takes.
const SLOW: Duration = Duration::from_secs(1);
/// Requests of one measurement, and how many of them at a time.
const REQUESTS: usize = 120;
const AT_ONCE: usize = 6;

/// What all instances have seen.
#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    /// That were not the first attempt; those under way now, and the most at a time.
    hedges: AtomicUsize,
    under_way: AtomicUsize,
    most: AtomicUsize,
}

async fn serve(listen: SocketAddr, name: &'static str, takes: Duration, seen: &Arc<Seen>) {
    let listener = TcpListener::bind(listen).await.unwrap();
    let seen = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, name, takes, seen.clone()));
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

async fn answer(
    request: Request<Incoming>,
    name: &'static str,
    takes: Duration,
    seen: Arc<Seen>,
) -> Result<Response<Body>, hyper::Error> {
    seen.requests.fetch_add(1, SeqCst);
    let attempt = request.headers().get("x-envoy-attempt-count").map(|count| count.as_bytes().to_vec());
    let is_hedge = attempt.is_some_and(|attempt| attempt != b"1");
    if is_hedge {
        seen.hedges.fetch_add(1, SeqCst);
    }
    // One at the slow instance may have been given up already.
    if is_hedge && takes.is_zero() {
        seen.most.fetch_max(seen.under_way.fetch_add(1, SeqCst) + 1, SeqCst);
        tokio::task::yield_now().await;
        seen.under_way.fetch_sub(1, SeqCst);
    } else {
        tokio::time::sleep(takes).await;
    }
    let mut response = Response::new(whole(Bytes::new()));
    response.headers_mut().insert("x-app-name", HeaderValue::from_static(name));
    Ok(response)
}

/// Three instances, of which the last is slow; their sidecars end with what is given back.
async fn three(mesh: &Mesh) -> (Arc<Seen>, Vec<Sidecar>) {
    let (seen, mut sidecars) = (Arc::<Seen>::default(), Vec::new());
    for (version, host, takes) in [("v1", 11, Duration::ZERO), ("v2", 12, Duration::ZERO), ("v3", 13, SLOW)] {
        let sidecar: Sidecar = mesh.workload(&catalog(version, host)).await;
        serve(sidecar.app, version, takes, &seen).await;
        sidecars.push(sidecar);
    }
    (seen, sidecars)
}

/// The times of so many requests, in order; none may fail.
async fn measure(entry: SocketAddr) -> Vec<Duration> {
    let left = Arc::new(AtomicUsize::new(REQUESTS));
    let client = |left: Arc<AtomicUsize>| async move {
        let mut times = Vec::new();
        while left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            let began = Instant::now();
            let (status, text) = get(entry, "/", "").await.unwrap();
            assert_eq!(status, 200, "{text}");
            times.push(began.elapsed());
        }
        times
    };
    let clients: Vec<_> = (0..AT_ONCE).map(|_| tokio::spawn(client(left.clone()))).collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.unwrap());
    }
    times.sort();
    times
}

fn p99(times: &[Duration]) -> Duration {
    times[times.len() * 99 / 100 - 1]
}

fn page(more: &str) -> String {
    format!(
        "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {{name: catalog, namespace: shop}}
spec:
  service: catalog
  loadBalancing: {{policy: roundRobin}}
  {more}
"
    )
}

fn counted(page: &str, name: &str) -> usize {
    let label = "{envoy_cluster_name=\"outbound|8080||catalog.shop.svc.cluster.local\"} ";
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(label));
    line.unwrap_or_else(|| panic!("no {name}: {page}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slow_instance_of_three_is_not_felt_and_the_budget_bounds_what_that_costs() {
    let mesh = Mesh::start(BINARY).await;
    let (seen, _sidecars) = three(&mesh).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.apply(STRICT).await;
    // So many hedges at a time as there are clients, but for one; then one.
    let budget = |least: usize| format!("retry: {{budget: {{percent: 0, minConcurrency: {least}}}}}");
    mesh.apply(&page(&budget(AT_ONCE - 1))).await;
    let entry = web.outbound[0];
    let without = p99(&measure(entry).await);
    assert!(without >= SLOW, "{without:?}");
    assert_eq!(seen.requests.load(SeqCst), REQUESTS);

    let hedge = "\n  hedge: {delay: 50ms}";
    mesh.apply(&page(&format!("{}{hedge}", budget(AT_ONCE - 1)))).await;
    let with = p99(&measure(entry).await);
    let (hedges, most) = (seen.hedges.load(SeqCst), seen.most.swap(0, SeqCst));
    println!(
        "p99 {without:?} without and {with:?} with hedges; {hedges} more of {REQUESTS} requests, {most} at a time"
    );
    assert!(with < SLOW, "p99 with hedges: {with:?}, without {without:?}");
    assert!((1..=REQUESTS).contains(&hedges) && most < AT_ONCE, "{hedges}, {most} at a time");
    let numbers = web.page("/stats/prometheus").await;
    // One that was given up as soon as it had left may not have been seen.
    let sent = counted(&numbers, "outrigger_hedges_total");
    assert!((hedges..=REQUESTS).contains(&sent), "{sent} were sent, {hedges} came");
    assert!(counted(&numbers, "outrigger_hedges_won_total") > 0);
    // Nor a first attempt, where its rival was quicker under load. But of each request one has been seen.
    let came = seen.requests.load(SeqCst) - REQUESTS;
    assert!(
        (REQUESTS..=REQUESTS + sent).contains(&came),
        "{came} came of {REQUESTS} requests and {sent} hedges"
    );

    mesh.apply(&page(&format!("{}{hedge}", budget(1)))).await;
    measure(entry).await;
    let (hedges, most) = (seen.hedges.load(SeqCst) - hedges, seen.most.load(SeqCst));
    let numbers = web.page("/stats/prometheus").await;
    let refused = counted(&numbers, "envoy_cluster_upstream_rq_retry_overflow");
    println!("with a budget of one: {hedges} more, {refused} refused");
    assert_eq!(most, 1, "{hedges} hedges, {refused} refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_is_learnt_from_what_others_took() {
    let mesh = Mesh::start(BINARY).await;
    let (seen, _sidecars) = three(&mesh).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.apply(STRICT).await;
    // Two of three are quick: what sixty percent take is quick.
    mesh.apply(&page("hedge: {delay: p60, minSamples: 20}")).await;
    eventually("enough is known, and then the slow one has a rival", || async {
        let (status, text) = get(web.outbound[0], "/", "").await.unwrap();
        assert_eq!(status, 200, "{text}");
        match seen.hedges.load(SeqCst) {
            0 => Err("no hedge yet"),
            _ => Ok(()),
        }
    })
    .await;
    assert!(seen.requests.load(SeqCst) > 20, "not before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_envoy_hedges_on_the_time_of_an_attempt() {
    let Some(envoy) = require::tool("envoy") else { return };
    let mesh = Mesh::start(BINARY).await;
    let (seen, _sidecars) = three(&mesh).await;
    mesh.apply(STRICT).await;
    let rule = page(
        "retry: {attempts: 2, retryOn: [5xx], perTryTimeout: 100ms}\n  hedge: {hedgeOnPerTryTimeout: true, allMethods: true}",
    );
    mesh.apply(&rule).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let _envoy = start_envoy(&mesh, &envoy, "DELTA_GRPC").await;
    let through_envoy = SocketAddr::new(mesh.address(30, 0).ip(), 8080);
    let request = "GET / HTTP/1.1\r\nHost: catalog.shop:8080\r\nConnection: close\r\n\r\n";
    eventually("a request through Envoy", || async {
        match exchange(through_envoy, request).await {
            Ok((200, _)) => Ok(()),
            Ok((_, text)) => Err(text),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    for entry in [through_envoy, web.outbound[0]] {
        let before = [seen.requests.load(SeqCst), seen.hedges.load(SeqCst)];
        for _ in 0..12 {
            let began = Instant::now();
            let (status, text) = exchange(entry, request).await.unwrap();
            assert_eq!(status, 200, "{text}");
            assert!(!text.to_ascii_lowercase().contains("x-app-name: v3"), "{text}");
            assert!(began.elapsed() < SLOW, "{:?}", began.elapsed());
        }
        let more = seen.requests.load(SeqCst) - before[0] - 12;
        println!("{more} hedges through {entry}");
        assert!(more > 0, "the slow one has its turn");
        // Envoys count attempts for the application only where they are told to.
        assert!(entry == through_envoy || seen.hedges.load(SeqCst) - before[1] == more);
    }
}
