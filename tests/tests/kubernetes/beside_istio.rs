//! Beside a mesh of Istio: with roots of its own its sidecars and ours speak plain text to each other, and an authority that both have can be
//! brought along.

use outrigger_identity::{Authority, AuthorityOptions};

use super::installed::{Installed, REPLICAS, SYSTEM};
use super::*;

/// A Pod with what stands for a sidecar of Istio, whose roots are others: what comes to its application by our mTLS is nothing that it can read.
const THEIRS: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "theirs", "namespace": "shop",
    "labels": {"app": "theirs", "sidecar.istio.io/inject": "false"}}, "spec": {"nodeName": "node-1", "containers": [
        {"name": "app", "image": "app", "args": ["serve", "8080"], "env": [{"name": "NAME", "value": "it-is-theirs"}],
         "ports": [{"containerPort": 8080}], "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}},
        {"name": "istio-proxy", "image": "app", "args": ["serve", "15090"]}
]}}
---
apiVersion: v1
kind: Service
metadata: {name: theirs, namespace: shop}
spec: {selector: {app: theirs}, ports: [{port: 80, name: http, targetPort: 8080}]}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_sidecar_of_istio_and_one_with_ours_reach_each_other_in_plain_text() {
    let Some(stage) = Stage::start().await else { return };
    stage.cluster.apply(&deployment("web", "v1", 1));
    stage.cluster.apply(THEIRS);
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    let [theirs] = stage.until_ready("theirs", 1).await.try_into().unwrap();
    let places = [
        (&web, stage.service("theirs", 80), "it-is-theirs"),
        (&theirs, SocketAddr::new(stage.host(&web).v4(), 8080), "web-v1"),
    ];
    for (from, to, name) in places {
        eventually(&format!("{from} reaches {name}"), || async {
            match stage.ask(from, to).await {
                Ok((200, text)) if text.contains(name) => Ok(()),
                other => Err(format!("{other:?}\n{}", stage.logs(&web))),
            }
        })
        .await;
    }
    // By this label a control plane of Istio would have its sidecars speak mTLS to ours, by roots that ours have not.
    let labels = cni::pod(&stage, &web)["metadata"]["labels"].clone();
    assert_eq!(labels["outrigger.io/rev"], "default");
    assert_eq!(labels.get("security.istio.io/tlsMode"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_was_brought_along_signs_for_all_replicas() {
    let directory = tempfile::tempdir().unwrap();
    drop(Authority::open(directory.path(), AuthorityOptions::new("cluster.local")).unwrap());
    let file =
        |name: &str| std::fs::read_to_string(directory.path().join("generation-1").join(name)).unwrap();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "provided", "namespace": SYSTEM},
        "stringData": {
            "root.pem": file("root.pem"), "issuer.pem": file("issuer.pem"), "issuer.key": file("issuer.key"),
        },
    });
    let before = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {SYSTEM}}}\n---\n{secret}\n");
    let words = ["--set", "authoritySecret=provided", "--set", "istioPeers=true"];
    let Some(installed) = Installed::start_as(&[], &before, &words, |_| None).await else { return };
    let place = &installed.place;
    installed.serves().await;
    let web = installed.is_of_use().await;

    // Nobody has made another, and it is by its root that sidecars know who they speak to.
    let secrets = place.cluster.kubectl(&["-n", SYSTEM, "get", "secrets", "-o", "name"]).unwrap();
    assert!(!secrets.contains("outrigger-authority"), "{secrets}");
    let pod = place.cluster.kubectl(&["-n", "shop", "get", "pod", &web, "-o", "json"]).unwrap();
    let root = file("root.pem");
    let line = root.lines().nth(1).unwrap();
    assert!(line.len() > 60 && pod.contains(line), "{pod}");
    assert!(pod.contains(r#""security.istio.io/tlsMode": "istio""#), "{pod}");
    for replica in REPLICAS {
        let status = installed.client(replica).status().await.unwrap();
        assert!(status.notices.is_empty() && status.proxies.len() == 2, "{replica}: {status:#?}");
    }
}
