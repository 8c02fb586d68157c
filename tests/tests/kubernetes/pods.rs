//! Deployments of injected Pods: requests between them cross with mTLS, and a rolling update loses none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use super::*;

/// Only the shop front may call the catalog.
const ONLY_WEB: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: catalog, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
";

#[tokio::test(flavor = "multi_thread")]
async fn injected_pods_call_each_other_as_who_they_are_and_a_rollout_loses_nothing() {
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

    // A rollout under load.
    let (stop, asked, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let client = stage.host(&web);
    let load = client.run({
        let (stop, asked, failed) = (stop.clone(), asked.clone(), failed.clone());
        async move {
            let mut wrong = Vec::new();
            while !stop.load(SeqCst) {
                let answer = app::get(address, "/", "").await;
                asked.fetch_add(1, SeqCst);
                if !answer.as_ref().is_ok_and(|(status, _)| *status == 200) {
                    failed.fetch_add(1, SeqCst);
                    wrong.push(format!("{answer:?}"));
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            wrong
        }
    });
    let rollout = async {
        stage.cluster.apply(&deployment("catalog", "v2", 2));
        eventually("only the new ones are left", || async {
            let pods =
                stage.cluster.kubectl(&["-n", "shop", "get", "pods", "-l", "app=catalog", "-o", "json"])?;
            let pods: Value = serde_json::from_str(&pods).map_err(|error| error.to_string())?;
            let versions: Vec<&str> = pods["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|pod| pod["metadata"]["labels"]["version"].as_str())
                .collect();
            let ready = stage.ready("catalog")?;
            if versions == ["v2", "v2"] && ready.len() == 2 {
                Ok(())
            } else {
                Err(format!("{versions:?} {ready:?}"))
            }
        })
        .await;
        stop.store(true, SeqCst);
    };
    let (wrong, ()) = tokio::join!(load, rollout);
    println!("{} requests during the rollout, {} failed", asked.load(SeqCst), failed.load(SeqCst));
    assert!(asked.load(SeqCst) > 100);
    assert_eq!(wrong, Vec::<String>::new());
}
