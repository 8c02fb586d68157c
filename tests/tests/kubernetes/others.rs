//! What is no Deployment of injected Pods: Jobs, names without an address, Pods outside of the mesh; and a cluster whose API server or
//! webhook is away.

use outrigger_control::api::types::TokenRequest;

use super::cni::pod;
use super::replicas::redeem;
use super::*;

/// A Job whose Pod is injected.
const JOB: &str = r#"{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work", "namespace": "shop"}, "spec": {"template": {
    "metadata": {"labels": {"app": "work"}},
    "spec": {"nodeName": "node-1", "restartPolicy": "Never", "containers": [{"name": "app", "image": "app", "args": ["end"]}]}
}}}"#;

/// A Service without an address, and a StatefulSet behind it.
const DATABASE: &str = r#"apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080, name: http}]}
---
{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db", "namespace": "shop"}, "spec": {
    "serviceName": "db", "replicas": 1, "selector": {"matchLabels": {"app": "db"}}, "template": {
        "metadata": {"labels": {"app": "db"}},
        "spec": {"nodeName": "node-1", "containers": [
            {"name": "app", "image": "app", "args": ["serve", "8080"], "ports": [{"containerPort": 8080}],
             "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
        ]}
    }
}}
"#;

/// A Pod that says it wants no sidecar.
const OUTSIDER: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "outsider", "namespace": "shop",
    "labels": {"app": "outsider", "sidecar.istio.io/inject": "false"}}, "spec": {"nodeName": "node-1", "containers": [
        {"name": "app", "image": "app", "args": ["serve", "8080"],
         "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
]}}"#;

/// What a Pod can show.
struct Shown {
    account: &'static str,
    for_the_mesh: String,
    for_the_api_server: String,
}

impl Shown {
    fn of(stage: &Stage, name: &str) -> Self {
        let read = |volume: &str| {
            let place = stage.kubelet.volume("shop", name, volume);
            let files = std::fs::read_dir(place).unwrap().map(|file| file.unwrap().path());
            std::fs::read_to_string(files.into_iter().find(|file| file.ends_with("token")).unwrap()).unwrap()
        };
        let volumes = pod(stage, name)["spec"]["volumes"].clone();
        let names = volumes.as_array().unwrap().iter().filter_map(|volume| volume["name"].as_str());
        let other = names.into_iter().find(|name| name.starts_with("kube-api-access")).unwrap();
        let account = if name.starts_with("web") { "web" } else { "default" };
        Self { account, for_the_mesh: read("outrigger-token"), for_the_api_server: read(other) }
    }

    /// Asks for a certificate as the Pod's sidecar does.
    async fn certificate(&self, stage: &Stage, token: &str) -> Result<(), String> {
        let grant = TokenRequest {
            namespace: "shop".into(),
            service_account: self.account.into(),
            ..TokenRequest::default()
        };
        // With the roots in it, and another proof.
        let mut join = stage.mesh.client.create_token(&grant).await.map_err(|error| error.to_string())?;
        token.clone_into(&mut join.token);
        let address = SocketAddr::new(stage.master.v4(), 15012);
        stage.master.run(async move { redeem(&join, address).await }).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_end_names_have_members_and_what_is_away_takes_nothing() {
    let Some(mut stage) = Stage::start().await else { return };
    stage.mesh.apply(STRICT).await;
    stage.cluster.apply(&deployment("web", "v1", 1));
    stage.cluster.apply(DATABASE);
    stage.cluster.apply(OUTSIDER);
    stage.cluster.apply(JOB);
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    let [db] = stage.until_ready("db", 1).await.try_into().unwrap();
    let [outsider] = stage.until_ready("outsider", 1).await.try_into().unwrap();

    // With its sidecar, which ends after it.
    eventually("the Job has ended", || async {
        let found = stage.cluster.kubectl(&[
            "-n",
            "shop",
            "get",
            "job",
            "work",
            "-o",
            "jsonpath={.status.succeeded}",
        ])?;
        if found == "1" { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;

    // A name without an address is its Pods' addresses, and they are the mesh's.
    let address = SocketAddr::new(stage.host(&db).v4(), 8080);
    eventually("web reaches the database", || async {
        match stage.ask(&web, address).await {
            Ok((200, text)) if text.contains("spiffe://cluster.local/ns/shop/sa/web") => Ok(()),
            other => Err(format!("{other:?}\n{}", stage.logs(&web))),
        }
    })
    .await;
    let refused = stage.ask(&outsider, address).await;
    assert!(refused.is_err(), "{refused:?}");

    // The webhook is away with its control plane: no Pod is made without a sidecar, and those that run go on.
    let client = stage.host(&web);
    let call = async |what: &str| {
        for _ in 0..20 {
            let answer = client.run(app::get(address, "/", "")).await;
            assert!(answer.as_ref().is_ok_and(|(status, _)| *status == 200), "{what}: {answer:?}");
        }
    };
    stage.mesh.kill_control();
    let late = OUTSIDER.replace("outsider", "late").replace(r#", "sidecar.istio.io/inject": "false""#, "");
    let refused = stage.cluster.try_apply(&late).unwrap_err();
    assert!(refused.contains("failed calling webhook"), "{refused}");
    call("without a control plane").await;
    stage.mesh.start_control().await;
    eventually("Pods are injected again", || async { stage.cluster.try_apply(&late) }).await;
    stage.until_ready("late", 1).await;

    // So is the API server. Pods that were there are known by its keys, and none that has gone before.
    let (kept, gone) = (Shown::of(&stage, &web), Shown::of(&stage, "late"));
    stage.cluster.kubectl(&["-n", "shop", "delete", "pod", "late"]).unwrap();
    eventually("the mesh knows that the Pod has gone", || async {
        let all = stage.mesh.client.instances().await.map_err(|error| error.to_string())?;
        let known = all.iter().any(|one| one.instance.id == "late.shop");
        if known { Err("it is there") } else { Ok(()) }.map_err(str::to_owned)
    })
    .await;
    kept.certificate(&stage, &kept.for_the_mesh).await.unwrap();
    stage.cluster.kill_api();
    kept.certificate(&stage, &kept.for_the_mesh).await.unwrap();
    let refused = kept.certificate(&stage, &kept.for_the_api_server).await.unwrap_err();
    assert!(refused.contains("Audiences"), "{refused}");
    let refused = gone.certificate(&stage, &gone.for_the_mesh).await.unwrap_err();
    assert!(refused.contains("Pod shop/late is not known"), "{refused}");
    call("without an API server").await;
    stage.cluster.start_api().await;
    call("with an API server that was restarted").await;
}
