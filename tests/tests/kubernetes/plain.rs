//! A cluster that knows no native sidecars, since one of its nodes is too old: sidecars are plain containers, started before the application and
//! ended after it, by hooks.

use super::cni::pod;
use super::pods::ONLY_WEB;
use super::replicas::Load;
use super::*;

/// A node that nothing runs on, and that a Pod could come to.
const OLD: &str = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "old"}, "status": {"nodeInfo": {
    "kubeletVersion": "v1.28.15", "architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
    "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""
}}}"#;

/// A Job whose program ends its sidecar, last of all.
const JOB: &str = r#"{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work", "namespace": "shop"}, "spec": {"template": {
    "metadata": {"labels": {"app": "work"}},
    "spec": {"nodeName": "node-1", "restartPolicy": "OnFailure", "containers": [{"name": "app", "image": "app", "args": ["end", "15000"]}]}
}}}"#;

/// A Pod that is to end, without a word to its sidecar.
const ENDS: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ends", "namespace": "shop"}, "spec": {"nodeName": "node-1",
    "restartPolicy": "Never", "containers": [{"name": "app", "image": "app", "args": ["end"]}]}}"#;

/// What kubectl would say of an object if it were applied.
fn warned(stage: &Stage, text: &str) -> String {
    let words = ["apply", "--dry-run=server", "--warnings-as-errors"];
    stage.cluster.kubectl_with(text, &words).err().unwrap_or_default()
}

/// Whether each stands after the one before it.
fn is_in_order(history: &[String], lines: &[&str]) -> bool {
    let places: Vec<Option<usize>> =
        lines.iter().map(|line| history.iter().position(|one| one == line)).collect();
    places.iter().all(Option::is_some) && places.is_sorted()
}

/// Who applies what makes Pods hears what they will not, each by its own name.
fn warned_of_pods(stage: &Stage) {
    let said = warned(stage, JOB);
    assert!(said.contains("Warning: the Pod is to end (restartPolicy OnFailure)"), "{said}");
    let wrong = deployment("web", "v1", 1).replace(
        r#""metadata":{"labels":{"app""#,
        r#""metadata":{"annotations":{"sidecar.istio.io/proxyCPU":"much"},"labels":{"app""#,
    );
    let said = warned(stage, &wrong);
    assert!(said.contains("Warning: its Pods will be refused: ") && said.contains("proxyCPU"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_node_is_too_old_sidecars_are_plain_and_nothing_is_lost() {
    let Some(stage) = Stage::start_in(json!({"holdApplicationUntilProxyStarts": true}), None).await else {
        return;
    };
    // Native, as all of the cluster is new enough.
    let probe = ENDS.replace(r#""Never""#, r#""Always""#);
    assert_eq!(warned(&stage, &probe), "");
    stage.cluster.apply(OLD);
    eventually("the old node is known", || async {
        let said = warned(&stage, &probe);
        let words =
            "Warning: the sidecar is a plain container, since there is Kubernetes 1.28 in the cluster";
        if said.contains(words) { Ok(()) } else { Err(said) }
    })
    .await;

    warned_of_pods(&stage);
    stage.mesh.apply(STRICT).await;
    stage.mesh.apply(ONLY_WEB).await;
    stage.cluster.apply(&deployment("web", "v1", 1));
    stage.cluster.apply(&deployment("catalog", "v1", 1));
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    let [catalog] = stage.until_ready("catalog", 1).await.try_into().unwrap();
    let containers = pod(&stage, &catalog)["spec"]["containers"].clone();
    assert_eq!(containers[0]["name"], "outrigger-proxy", "{containers:#}");
    let address = stage.service("catalog", 80);
    eventually("web reaches the catalog as who it is", || async {
        match stage.ask(&web, address).await {
            Ok((200, text)) if text.contains("spiffe://cluster.local/ns/shop/sa/web") => Ok(()),
            other => Err(format!("{other:?}\n{}", stage.logs(&web))),
        }
    })
    .await;
    let outside = stage.master.run(app::get(SocketAddr::new(stage.host(&catalog).v4(), 8080), "/", "")).await;
    assert!(outside.is_err(), "{outside:?}");

    // The application was started when the sidecar was ready.
    let began = [
        "outrigger-proxy: was started",
        "outrigger-proxy: postStart begins",
        "outrigger-proxy: postStart is done",
        "app: was started",
    ];
    let history = stage.kubelet.history("shop", &catalog);
    assert!(is_in_order(&history, &began), "{history:#?}");

    // A rolling update under load loses nothing: the sidecar ends after the application.
    let load = Load::start(stage.host(&web), address);
    for version in ["v2", "v3"] {
        stage.cluster.apply(&deployment("catalog", version, 1));
        stage.until_only_version("catalog", version).await;
    }
    println!("{} requests, none failed", load.none_failed().await);
    let ended = [
        "outrigger-proxy: preStop begins",
        "app: has ended",
        "outrigger-proxy: preStop is done",
        "outrigger-proxy: SIGTERM",
        "outrigger-proxy: has ended",
    ];
    let history = stage.kubelet.history("shop", &catalog);
    assert!(
        is_in_order(&history, &ended),
        "{history:#?}\n{}",
        stage.kubelet.log("shop", &catalog, "outrigger-proxy")
    );

    // A Pod that is to end has to end its sidecar, and whoever makes one is told so.
    let said = warned(&stage, ENDS);
    assert!(said.contains("(restartPolicy Never)") && said.contains(":15000/quitquitquit"), "{said}");
    stage.cluster.apply(JOB);
    eventually("the Job has ended", || async {
        let path = "jsonpath={.status.succeeded}";
        let found = stage.cluster.kubectl(&["-n", "shop", "get", "job", "work", "-o", path])?;
        if found == "1" { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;

    // The node goes, and sidecars are native again.
    stage.cluster.kubectl(&["delete", "node", "old"]).unwrap();
    eventually("all of the cluster is new enough", || async {
        let said = warned(&stage, &probe);
        if said.is_empty() { Ok(()) } else { Err(said) }
    })
    .await;
}
