//! Two nodes in two zones: whom a Service gives its clients where it says that near ones are preferred, or that only those of their node are theirs.

use std::collections::BTreeSet;

use super::*;

/// An instance of the catalog on a node.
fn instance(name: &str, node: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "catalog"}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 2, "containers": [{
            "name": "app", "image": "app", "args": ["serve", "8080", "1"], "env": [{"name": "NAME", "value": name}],
            "ports": [{"containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        }]},
    })
    .to_string()
}

/// The catalog, with this said of it.
fn service(said: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: catalog, namespace: shop}}
spec:
  selector: {{app: catalog}}
  ports: [{{port: 80, name: http, targetPort: 8080}}]
  {said}
"
    )
}

/// Waits until all of these answer, and nobody else does: instances by their names, and what a sidecar says itself by its status.
async fn until_answered_by(stage: &Stage, web: &str, what: &str, wanted: &[&str]) {
    let address = stage.service("catalog", 80);
    eventually(what, || async {
        let mut names = BTreeSet::new();
        for _ in 0..20 {
            let (status, text) = stage.ask(web, address).await.map_err(|error| error.to_string())?;
            let name = app::body(&text).lines().next().unwrap_or_default().to_owned();
            names.insert(if status == 200 { name } else { status.to_string() });
        }
        match names.iter().eq(wanted) {
            true => Ok(()),
            false => Err(format!("{names:?}\n{}", stage.logs(web))),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_prefers_who_is_near_and_keeps_to_the_node_where_it_says_so() {
    let Some(stage) = Stage::start().await else { return };
    let _elsewhere = stage.master.run(stage.kubelet.beside("node-2", "eu-2")).await;
    stage.cluster.apply(&deployment("web", "v1", 1));
    stage.cluster.apply(&service("type: ClusterIP"));
    stage.cluster.apply(&instance("near", NODE));
    stage.cluster.apply(&instance("far", "node-2"));
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    stage.until_ready("catalog", 2).await;
    let said = |said: &str| stage.cluster.apply(&service(said));
    for near in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
        said("type: ClusterIP");
        until_answered_by(&stage, &web, "nothing is said, and both answer", &["far", "near"]).await;
        said(&format!("trafficDistribution: {near}"));
        until_answered_by(&stage, &web, &format!("{near}: the one of its zone answers"), &["near"]).await;
    }

    // A preference gives way where nobody is near; what a Service keeps to its node does not.
    stage.cluster.kubectl(&["-n", "shop", "delete", "pod", "near"]).unwrap();
    until_answered_by(&stage, &web, "nobody is near, and the other answers", &["far"]).await;
    said("internalTrafficPolicy: Local");
    until_answered_by(&stage, &web, "nobody is on its node", &["503"]).await;
    stage.cluster.apply(&instance("near", NODE));
    until_answered_by(&stage, &web, "the one of its node answers", &["near"]).await;
}
