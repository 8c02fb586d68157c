//! What is no Deployment of injected Pods: Jobs, names without an address, Pods outside of the mesh; and a cluster whose API server or
//! webhook is away.

use std::path::Path;

use outrigger_control::api::types::TokenRequest;
use outrigger_model::identity::SpiffeId;

use super::cni::pod;
use super::replicas::{redeem, renew};
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
    "serviceName": "db", "replicas": 2, "selector": {"matchLabels": {"app": "db"}}, "template": {
        "metadata": {"labels": {"app": "db"}},
        "spec": {"nodeName": "node-1", "containers": [
            {"name": "app", "image": "app", "args": ["serve", "8080"], "ports": [{"containerPort": 8080}],
             "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
             "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
        ]}
    }
}}
"#;

/// Members of a group, who are ready only once they have found each other. Where they gossip is written nowhere.
const GROUP: &str = r#"apiVersion: v1
kind: Service
metadata: {name: group, namespace: shop}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: group}, ports: [{port: 8081, name: tcp}]}
---
{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "group", "namespace": "shop"}, "spec": {
    "serviceName": "group", "replicas": 2, "podManagementPolicy": "Parallel", "selector": {"matchLabels": {"app": "group"}}, "template": {
        "metadata": {"labels": {"app": "group"}},
        "spec": {"nodeName": "node-1", "terminationGracePeriodSeconds": 1, "containers": [
            {"name": "app", "image": "app", "args": ["meet", "7946", "8081", "group-0.group", "group-1.group"],
             "ports": [{"containerPort": 8081}],
             "readinessProbe": {"tcpSocket": {"port": 8081}, "periodSeconds": 1}}
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

/// As whom `web` is known.
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

impl Stage {
    /// What becomes of Pods while the webhook is away.
    fn failure_policy(&self, policy: &str) {
        let entry = |place| json!({"op": "replace", "path": format!("/webhooks/{place}/failurePolicy"), "value": policy});
        let all = Value::from((0..PATHS[0].len()).map(entry).collect::<Vec<_>>()).to_string();
        self.cluster.kubectl(&[&["patch"], &WEBHOOKS[0][..], &["--type=json", "-p", &all]].concat()).unwrap();
    }
}

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

/// Who has the key and the certificate of `web`, and no token, has them until they end; an operator who gives it a join token says that
/// not all who run as it are Pods.
async fn keys_end_with_their_pods(stage: &Stage, web: &Shown) {
    let grant = |account: &str| TokenRequest {
        namespace: "shop".into(),
        service_account: account.into(),
        ..TokenRequest::default()
    };
    // For the roots in it.
    let mut join = stage.mesh.client.create_token(&grant("guest")).await.unwrap();
    join.identity = SpiffeId::workload("cluster.local", "shop", "web").unwrap();
    web.for_the_mesh.clone_into(&mut join.token);
    let address = SocketAddr::new(stage.master.v4(), 15012);
    let renewed = || {
        let join = join.clone();
        stage.master.run(async move { renew(&join, address).await })
    };
    eventually("a Pod's certificate renews nothing", || async {
        match renewed().await {
            Err(why) if why.contains("all that run as") && why.contains("are Pods") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    stage.mesh.client.create_token(&grant("web")).await.unwrap();
    renewed().await.unwrap();
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
    let db = stage.until_ready("db", 2).await;
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
    let addresses = [&db[0], &db[1]].map(|name| SocketAddr::new(stage.host(name).v4(), 8080));
    for (name, address) in db.iter().zip(addresses) {
        eventually(&format!("web reaches {name}"), || async {
            match stage.ask(&web, address).await {
                Ok((200, text)) if text.contains(WEB) && text.contains(&format!("\r\n{name}\n")) => Ok(()),
                other => Err(format!("{other:?}\n{}", stage.logs(&web))),
            }
        })
        .await;
        let refused = stage.ask(&outsider, address).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    let [address, _] = addresses;

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
    made_all_the_same(&stage, &late).await;
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
    keys_end_with_their_pods(&stage, &kept).await;
    kept.certificate(&stage, &kept.for_the_mesh).await.unwrap();
    stage.cluster.kill_api();
    kept.certificate(&stage, &kept.for_the_mesh).await.unwrap();
    let refused = kept.certificate(&stage, &kept.for_the_api_server).await.unwrap_err();
    assert!(refused.contains("Audiences"), "{refused}");
    let refused = gone.certificate(&stage, &gone.for_the_mesh).await.unwrap_err();
    assert!(refused.contains("Pod shop/late is not known"), "{refused}");
    call("without an API server").await;
    keys_are_kept(&mut stage, &kept).await;
    call("with a control plane that was started without an API server").await;
    stage.cluster.start_api().await;
    call("with an API server that was restarted").await;
}

/// A control plane that starts while the API server is away judges by the keys that the one before has seen, as long as they are its own.
async fn keys_are_kept(stage: &mut Stage, shown: &Shown) {
    let file = stage.mesh.path("control").join("cluster-keys.json");
    stage.mesh.kill_control();
    stage.mesh.start_control().await;
    shown.certificate(stage, &shown.for_the_mesh).await.unwrap();
    let refused = shown.certificate(stage, &shown.for_the_api_server).await.unwrap_err();
    assert!(refused.contains("Audiences"), "{refused}");
    // Without the file it knows none.
    stage.mesh.kill_control();
    std::fs::remove_file(&file).unwrap();
    stage.mesh.start_control().await;
    let refused = shown.certificate(stage, &shown.for_the_mesh).await.unwrap_err();
    assert!(refused.contains("its keys are not known"), "{refused}");
}

/// Where the failure policy says so a Pod is made while the webhook is away, without a sidecar.
async fn made_all_the_same(stage: &Stage, late: &str) {
    stage.failure_policy("Ignore");
    eventually("a Pod is made all the same", || async {
        stage.cluster.try_apply(&late.replace("late", "bare"))
    })
    .await;
    let bare = pod(stage, "bare")["spec"].to_string();
    assert!(!bare.contains("outrigger-proxy"), "{bare}");
    stage.failure_policy("Fail");
    eventually("no Pod is made again", || async {
        let made = stage.cluster.kubectl_with(late, &["apply", "--dry-run=server"]);
        if made.is_err() { Ok(()) } else { Err("it is made") }.map_err(str::to_owned)
    })
    .await;
}

/// Asks as an application does that has a name: what has answered, with the request's head as it arrived.
fn call(stage: &Stage, pod: &str, name: &str) -> Result<String, String> {
    let url = format!("http://{name}:8080/");
    stage.host(pod).ask(Path::new("curl"), &["-sS", "--fail", "--max-time", "5", &url])
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_stateful_set_are_called_by_their_names_under_strict() {
    if require::tool("curl").is_none() {
        return;
    }
    // The sidecar answers for names of the mesh; a Pod's own it passes on to the cluster's name server.
    let Some(stage) = Stage::start_with(json!({"dns": true}), None, true).await else { return };
    stage.mesh.apply(STRICT).await;
    stage.cluster.apply(&deployment("web", "v1", 1));
    stage.cluster.apply(DATABASE);
    stage.cluster.apply(OUTSIDER);
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    let db = stage.until_ready("db", 2).await;
    let [outsider] = stage.until_ready("outsider", 1).await.try_into().unwrap();
    assert_eq!(db, ["db-0", "db-1"]);
    let answers = async |name: &str, who: &[&str]| {
        eventually(&format!("{name} is one of {who:?}, who knows web"), || async {
            let said = call(&stage, &web, name).map_err(|error| format!("{error}\n{}", stage.logs(&web)))?;
            let known = who.iter().any(|who| said.starts_with(&format!("{who}\n"))) && said.contains(WEB);
            if known { Ok(()) } else { Err(said) }
        })
        .await;
    };
    let by_name = async || {
        for pod in ["db-0", "db-1"] {
            answers(&format!("{pod}.db"), &[pod]).await;
            answers(&format!("{pod}.db.shop.svc.cluster.local"), &[pod]).await;
        }
        answers("db", &["db-0", "db-1"]).await;
        answers("db.shop.svc.cluster.local", &["db-0", "db-1"]).await;
    };
    by_name().await;
    // Who has the name and no certificate is not let in: the name is known to him, the Pod is closed.
    for name in ["db-0.db", "db-1.db", "db"] {
        let refused = call(&stage, &outsider, name).unwrap_err();
        assert!(!refused.contains("resolve host"), "{refused}");
    }

    // Made anew it has another address, and is who it was.
    let before = stage.host("db-0").v4();
    stage.cluster.kubectl(&["-n", "shop", "delete", "pod", "db-0"]).unwrap();
    stage.until_ready("db", 2).await;
    assert_ne!(stage.host("db-0").v4(), before);
    by_name().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_group_find_each_other_before_any_of_them_is_ready_at_ports_that_nobody_declared() {
    // Names are the cluster's business, as they are by default.
    let Some(stage) = Stage::start_with(json!({}), None, true).await else { return };
    stage.mesh.apply(STRICT).await;
    stage.cluster.apply(GROUP);
    stage.cluster.apply(OUTSIDER);
    let group = stage.until_ready("group", 2).await;
    assert_eq!(group, ["group-0", "group-1"]);
    // And not because everything is open.
    let [outsider] = stage.until_ready("outsider", 1).await.try_into().unwrap();
    let refused = stage.ask(&outsider, SocketAddr::new(stage.host("group-0").v4(), 7946)).await;
    assert!(refused.is_err(), "{refused:?}");
}
