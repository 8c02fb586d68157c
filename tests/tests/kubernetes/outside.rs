//! Who is outside of the mesh, and who leaves it: Pods without a sidecar are called and call as far as they may, and a namespace that is
//! turned off keeps what runs and gives nobody a sidecar any more.

use super::cni::{outsider, pod};
use super::pods::ONLY_WEB;
use super::replicas::Load;
use super::*;

/// Whoever is outside may come in.
const PERMISSIVE: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: PERMISSIVE}}
";

/// As whom `web` is known.
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// Labels of the namespace that turn it off, and those that turn it on again; the last is what Istio has, then ours.
const LABELS: [[&[&str]; 2]; 2] = [
    [&["istio-injection=disabled"], &["istio-injection=enabled"]],
    [&["istio-injection-", "outrigger.io/inject=disabled"], &["outrigger.io/inject=enabled"]],
];

impl Stage {
    fn label(&self, labels: &[&str]) {
        self.cluster.kubectl(&[&["label", "--overwrite", "namespace", "shop"], labels].concat()).unwrap();
    }

    /// Has all Pods of the catalog made anew, while `web` calls it: the new ones. No call has failed.
    async fn roll(&self, web: &str, address: SocketAddr) -> Vec<String> {
        let before = self.ready("catalog").unwrap();
        let load = Load::start(self.host(web), address);
        self.cluster.kubectl(&["-n", "shop", "rollout", "restart", "deployment", "catalog"]).unwrap();
        let after = eventually("the catalog is made anew", || async {
            let pods = ["-n", "shop", "get", "pods", "-l", "app=catalog", "-o", "name"];
            let (all, ready) = (self.cluster.kubectl(&pods)?, self.ready("catalog")?);
            let left = before.iter().any(|name| all.contains(name.as_str()));
            if !left && ready.len() == 2 { Ok(ready) } else { Err(format!("{all} {ready:?}")) }
        })
        .await;
        load.none_failed().await;
        after
    }

    /// Waits until a request of this Pod is answered, and is seen as the request of this identity there, or of nobody.
    async fn until_seen(&self, client: &str, address: SocketAddr, identity: Option<&str>) {
        eventually(&format!("{client} is {identity:?} at {address}"), || async {
            match self.ask(client, address).await {
                Ok((200, text)) if identity.map_or(!text.contains("spiffe:"), |id| text.contains(id)) => {
                    Ok(())
                }
                other => Err(format!("{other:?}\n{}", self.logs(client))),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_turned_off_keeps_what_runs_and_injects_no_more() {
    let Some(stage) = Stage::start().await else { return };
    stage.cluster.apply(&deployment("web", "v1", 1));
    stage.cluster.apply(&deployment("catalog", "v1", 2));
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    let injected = stage.until_ready("catalog", 2).await;
    let address = stage.service("catalog", 80);
    stage.until_seen(&web, address, Some(WEB)).await;
    let has_sidecar = |name: &str| pod(&stage, name)["spec"].to_string().contains("outrigger-proxy");
    assert!(injected.iter().all(|name| has_sidecar(name)), "{injected:?}");

    for [off, on] in LABELS {
        // Nothing becomes of what runs; what comes then is as its author wrote it, and is called by who is in the mesh.
        stage.label(off);
        stage.until_seen(&web, address, Some(WEB)).await;
        for name in stage.roll(&web, address).await {
            assert!(!has_sidecar(&name), "{off:?}: {name} has a sidecar");
            assert_eq!(stage.host(&name).ruleset(), "", "{off:?}");
        }
        stage.until_seen(&web, address, None).await;
        stage.label(on);
        for name in stage.roll(&web, address).await {
            assert!(has_sidecar(&name), "{on:?}: {name} has no sidecar");
        }
        stage.until_seen(&web, address, Some(WEB)).await;
        assert_eq!(stage.ready("web").unwrap(), [web.as_str()], "nobody touched it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_outside_of_the_mesh_are_called_and_call_where_they_may() {
    let Some(stage) = Stage::start().await else { return };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "outsider", "namespace": "shop"},
        "spec": {"selector": {"app": "outsider"}, "ports": [{"port": 80, "name": "http", "targetPort": 8080}]},
    });
    stage.cluster.apply(&format!("{}\n---\n{service}", outsider("outsider", "shop")));
    for name in ["web", "catalog"] {
        stage.cluster.apply(&deployment(name, "v1", 1));
    }
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    let [catalog] = stage.until_ready("catalog", 1).await.try_into().unwrap();
    stage.until_ready("outsider", 1).await;
    let inside = SocketAddr::new(stage.host(&catalog).v4(), 8080);
    let outside = SocketAddr::new(stage.host("outsider").v4(), 8080);

    // Without a word about mTLS, and where it may be left: plain text goes out and comes in, and the mesh's own is the mesh's.
    let both_ways = async || {
        stage.until_seen(&web, stage.service("outsider", 80), None).await;
        stage.until_seen(&web, outside, None).await;
        stage.until_seen(&web, stage.service("catalog", 80), Some(WEB)).await;
        stage.until_seen("outsider", inside, None).await;
    };
    both_ways().await;
    stage.mesh.apply(PERMISSIVE).await;
    both_ways().await;
    // Who comes in so is nobody, whatever he says.
    let forged = format!("x-forwarded-client-cert: By=x;URI={WEB}\r\n");
    let answer = stage.host("outsider").run(async move { app::get(inside, "/", &forged).await }).await;
    assert!(answer.as_ref().is_ok_and(|(status, text)| *status == 200 && !text.contains(WEB)), "{answer:?}");
    stage.mesh.apply(ONLY_WEB).await;
    eventually("nobody may not call the catalog", || async {
        match stage.ask("outsider", inside).await {
            Ok((403, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    stage.until_seen(&web, inside, Some(WEB)).await;

    // Who lets nobody in so goes out still.
    stage.mesh.apply(STRICT).await;
    eventually("the outsider is not let in", || async {
        match stage.ask("outsider", inside).await {
            Err(_) => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    })
    .await;
    stage.until_seen(&web, stage.service("outsider", 80), None).await;
    stage.until_seen(&web, inside, Some(WEB)).await;
}
