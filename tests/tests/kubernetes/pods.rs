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

#[tokio::test(flavor = "multi_thread")]
async fn injected_pods_call_each_other_as_who_they_are_and_rollouts_lose_nothing() {
    let Some(stage) = Stage::start().await else { return };
    stage.mesh.apply(STRICT).await;
    stage.mesh.apply(ONLY_WEB).await;
    stage.cluster.apply(&deployment("web", "v1", 1));
    stage.cluster.apply(&deployment("catalog", "v1", 2));
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
