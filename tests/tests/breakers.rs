//! The circuit breaker and the rate limits of a service, through two sidecars: they hold back, exactly, and say so where people look.

use std::sync::atomic::Ordering::SeqCst;

use outrigger_tests::app::get;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;

use crate::BINARY;
use crate::limits::{Gate, log_has, plenty};
use crate::thin_thread::{catalog, web};

const TRIP: &str = "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: catalog, namespace: shop}
spec:
  service: catalog
  circuitBreaker:
    trip: {consecutiveFailures: 3, openTime: 3s, probes: 2}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_trips_after_failures_in_a_row_and_closes_after_its_probes() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let gate = Gate::serve(catalog.app, "v1", 500, plenty()).await;
    mesh.apply(TRIP).await;
    let ask = || async { get(web.outbound[0], "/", "").await.unwrap() };
    for _ in 0..3 {
        let (status, text) = ask().await;
        assert_eq!(status, 500, "the application's own: {text}");
    }
    let (status, text) = ask().await;
    assert_eq!(status, 503, "{text}");
    for part in
        ["reason=circuit_open", "hop=web-v1", "3 requests in a row failed", "TrafficRules shop/catalog"]
    {
        assert!(text.contains(part), "no {part}: {text}");
    }
    log_has(&mesh, "web-v1", " 503 UO ").await;
    let state = |text: &str, state: &str| {
        let labels = format!(
            "outrigger_circuit_breaker_state{{envoy_cluster_name=\"outbound|8080||catalog.shop.svc.cluster.local\",state=\"{state}\"}} 1"
        );
        text.lines().any(|line| line == labels)
    };
    let page = web.page("/stats/prometheus").await;
    assert!(state(&page, "open"), "{page}");
    // The application still fails: the first probe opens it again.
    eventually("a probe reaches the application", || async {
        let (status, text) = ask().await;
        if status == 500 { Ok(()) } else { Err(text) }
    })
    .await;
    let (status, text) = ask().await;
    assert!(status == 503 && text.contains("a probe failed"), "{text}");
    gate.status.store(200, SeqCst);
    eventually("a probe succeeds", || async {
        let (status, text) = ask().await;
        if status == 200 { Ok(()) } else { Err(text) }
    })
    .await;
    assert!(state(&web.page("/stats/prometheus").await, "half_open"));
    for _ in 0..20 {
        assert_eq!(ask().await.0, 200, "it is closed after the second");
    }
    let page = web.page("/stats/prometheus").await;
    assert!(state(&page, "closed"), "{page}");
    let opened = "outrigger_circuit_breaker_transitions_total{envoy_cluster_name=\"outbound|8080||catalog.shop.svc.cluster.local\",state=\"open\"} 2";
    assert!(page.lines().any(|line| line == opened), "{page}");
    let clusters = web.page("/clusters").await;
    assert!(
        clusters.contains("\"phase\":\"closed\"") || clusters.contains("\"phase\": \"closed\""),
        "{clusters}"
    );
}

const LIMITS: &str = "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: catalog, namespace: shop}
spec:
  service: catalog
  rateLimit:
  - {name: searches, requests: 3, per: 1h, match: {path: {prefix: /search}}}
  - {name: users, requests: 2, per: 1h, algorithm: slidingWindow, by: [caller, {header: x-user}], match: {path: /mine}}
";

#[tokio::test(flavor = "multi_thread")]
async fn rate_limits_hold_for_what_they_match_and_for_each_value_and_outlive_other_rules() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    Gate::serve(catalog.app, "v1", 200, plenty()).await;
    mesh.apply(LIMITS).await;
    let entry = web.outbound[0];
    let ask =
        |path: &'static str, headers: &'static str| async move { get(entry, path, headers).await.unwrap() };
    for path in ["/search?q=a", "/search/b", "/search"] {
        assert_eq!(ask(path, "").await.0, 200);
    }
    let (status, text) = ask("/search?q=c", "").await;
    assert_eq!(status, 429, "{text}");
    for part in ["retry-after: 1", "x-ratelimit-limit: 3", "x-ratelimit-remaining: 0", "x-ratelimit-reset: 1"]
    {
        assert!(text.to_lowercase().contains(part), "no {part}: {text}");
    }
    for part in ["reason=rate_limited", "hop=catalog-v1", "TrafficRules shop/catalog", "local_rate_limited"] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    log_has(&mesh, "catalog-v1", " 429 RL ").await;
    assert_eq!(ask("/", "").await.0, 200, "no limit matches");
    for user in ["X-User: ann\r\n", "X-User: bob\r\n", ""] {
        let statuses = [ask("/mine", user).await.0, ask("/mine", user).await.0, ask("/mine", user).await.0];
        assert_eq!(statuses, [200, 200, 429], "{user:?}");
    }
    // Another rule compiles the listener anew; what was counted stays.
    mesh.apply(DENY).await;
    assert_eq!(ask("/denied", "").await.0, 403);
    assert_eq!(ask("/search", "").await.0, 429);
    let page = catalog.page("/stats/prometheus").await;
    let refused = "outrigger_rate_limited_total{rule=\"TrafficRules shop/catalog\",limit=\"users\"} 3";
    assert!(page.lines().any(|line| line == refused), "{page}");
    mesh.apply(&LIMITS.replace("requests: 3", "requests: 30")).await;
    assert_eq!(ask("/search", "").await.0, 200, "a limit that has changed counts anew");
}

const DENY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: denied, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/denied]}}]}]}
";

/// 500 requests at once, to sidecars with two workers: each limit lets exactly as many through as it says.
#[tokio::test(flavor = "multi_thread")]
async fn rate_limits_are_exact_for_five_hundred_requests_at_once() {
    let mut mesh = Mesh::start(BINARY).await;
    mesh.bootstrap = serde_json::json!({ "workers": 2 });
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    Gate::serve(catalog.app, "v1", 200, plenty()).await;
    let page = |algorithm: &str, by: &str| {
        format!(
            "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {{name: catalog, namespace: shop}}
spec: {{service: catalog, rateLimit: {{requests: 137, per: 24h, algorithm: {algorithm}, by: {by}}}}}
"
        )
    };
    for algorithm in ["tokenBucket", "slidingWindow"] {
        for by in ["[]", "[caller]"] {
            mesh.apply(&page(algorithm, by)).await;
            let outbound = web.outbound[0];
            let asked: Vec<_> = (0..500)
                .map(|_| tokio::spawn(async move { get(outbound, "/", "").await.unwrap().0 }))
                .collect();
            let mut statuses = Vec::new();
            for asked in asked {
                statuses.push(asked.await.unwrap());
            }
            let count = |status: u16| statuses.iter().filter(|found| **found == status).count();
            assert_eq!((count(200), count(429)), (137, 363), "{algorithm} by {by}: {statuses:?}");
        }
    }
}
