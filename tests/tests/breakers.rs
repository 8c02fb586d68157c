//! The circuit breaker of a service, through two sidecars: it trips, holds back, probes and closes, and says so where people look.

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
    trip: {consecutiveFailures: 3, openTime: 700ms, probes: 2}
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
