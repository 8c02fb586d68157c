//! Deployments of injected Pods: requests between them cross with mTLS, and rolling updates lose none.

use std::time::Instant;

use super::replicas::Load;
use super::*;

/// Rolling updates in a row; `OUTRIGGER_ROLLOUTS` says another number, such as 20.
const ROLLOUTS: u32 = 3;

/// Only the shop front may call the catalog.
pub(super) const ONLY_WEB: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: catalog, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
";

/// A Pod whose metrics are at a port of their own.
const METERED: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "metered", "namespace": "shop", "labels": {"app": "metered"},
    "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "inject.istio.io/templates": "sidecar,named"}},
    "spec": {"nodeName": "node-1", "containers": [
        {"name": "app", "image": "app", "args": ["serve", "8080"], "env": [{"name": "METRICS", "value": "9090"}, {"name": "NAME", "value": "metered"}],
         "ports": [{"containerPort": 8080}, {"containerPort": 9090}],
         "readinessProbe": {"tcpSocket": {"port": 9090}, "periodSeconds": 1}}
]}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn injected_pods_call_each_other_as_who_they_are_and_rollouts_lose_nothing() {
    let template =
        json!({"spec": {"containers": [{"name": "app", "env": [{"name": "NAME", "value": "by-template"}]}]}});
    let Some(stage) = Stage::start_in(json!({"templates": {"named": template}}), None).await else { return };
    stage.mesh.apply(STRICT).await;
    stage.mesh.apply(ONLY_WEB).await;
    stage.cluster.apply(&deployment("web", "v1", 1));
    stage.cluster.apply(&deployment("catalog", "v1", 2));
    stage.cluster.apply(METERED);
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    let catalog = stage.until_ready("catalog", 2).await;

    // By the Service's address, with the identity of the service account.
    let address = stage.service("catalog", 80);
    eventually("web reaches the catalog", || async {
        match stage.ask(&web, address).await {
            Ok((200, text)) if text.contains("catalog-v1") => Ok(()),
            other => Err(format!("{other:?}\n{}\n{}", stage.logs(&web), stage.logs(&catalog[0]))),
        }
    })
    .await;
    // Whoever is outside of the mesh is not let in, and whoever is in it as somebody else neither.
    let pod = SocketAddr::new(stage.host(&catalog[0]).v4(), 8080);
    let outside = stage.master.run(app::get(pod, "/", "")).await;
    assert!(outside.is_err(), "{outside:?}");
    let other = stage.ask(&catalog[1], pod).await;
    assert!(other.as_ref().is_ok_and(|(status, _)| *status == 403), "{other:?}");

    // A Prometheus outside of the mesh has the application's metrics from its sidecar, where the annotations send it; what they say is by the
    // operator's template.
    stage.until_ready("metered", 1).await;
    let annotations = cni::pod(&stage, "metered")["metadata"]["annotations"].clone();
    let port = annotations["prometheus.io/port"].as_str().unwrap().parse().unwrap();
    let path = "/stats/prometheus";
    assert_eq!(annotations["prometheus.io/path"], path);
    let metered = stage.host("metered").v4();
    let (status, page) = stage.master.run(app::get(SocketAddr::new(metered, port), path, "")).await.unwrap();
    assert!(status == 200 && page.contains("\napp_up{name=\"by-template\"} 1\n"), "{status} {page}");
    assert!(page.contains("\nistio_build{component=\"proxy\"") && !page.contains("istio_build 99"), "{page}");
    let direct = stage.master.run(app::get(SocketAddr::new(metered, 9090), "/metrics", "")).await;
    assert!(direct.is_err(), "{direct:?}");

    // One rolling update after the other, under load.
    let rollouts =
        std::env::var("OUTRIGGER_ROLLOUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROLLOUTS);
    let load = Load::start(stage.host(&web), address);
    let begun = Instant::now();
    for number in 2..2 + rollouts {
        let version = format!("v{number}");
        stage.cluster.apply(&deployment("catalog", &version, 2));
        stage.until_only_version("catalog", &version).await;
    }
    let took = begun.elapsed();
    println!("{} requests during {rollouts} rollouts in {took:?}, none failed", load.none_failed().await);
}
