//! The CNI plugin: Pods whose rules of interception are made by the node, behind whatever makes their network, and none that runs without.

use std::path::Path;

use outrigger_tests::kubelet::network::{Attachment, HOST};
use outrigger_tests::mesh::Process;

use super::*;

const PLUGIN: &str = env!("CARGO_BIN_EXE_outrigger-cni-under-test");
/// Readiness and metrics of the agent.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15024);

/// What the agent is allowed to ask.
const ROLE: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cni}
rules: [{apiGroups: [''], resources: [pods], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: cni}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cni}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: cni}]
";

/// Files of a node.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    /// With a configuration that somebody else has made.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = Self { directory };
        for name in ["net.d", "bin", "processes"] {
            std::fs::create_dir(files.path(name)).unwrap();
        }
        files.write_list();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// As the plugin of a network does whenever it starts.
    fn write_list(&self) {
        let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": HOST}]});
        std::fs::write(self.path("net.d/10-pods.conflist"), list.to_string()).unwrap();
    }

    fn network(&self) -> Network {
        Network { configurations: self.path("net.d"), plugins: self.path("bin") }
    }

    /// The plugins that Pods are shown to, in their order.
    fn plugins(&self) -> Vec<String> {
        let list = self.network().list().unwrap();
        let plugins = list["plugins"].as_array().cloned().unwrap_or_default();
        plugins.iter().filter_map(|plugin| plugin["type"].as_str().map(str::to_owned)).collect()
    }

    /// Starts the agent of the node and waits until the plugin is in its place.
    async fn agent(&self, stage: &Stage, more: &[&str]) -> Process {
        let mut command = stage.master.command(BINARY);
        command.args(["cni", "--node", NODE, "--metrics-address", &METRICS.to_string(), "--binary", PLUGIN]);
        for (flag, path) in [
            ("--configurations", self.path("net.d")),
            ("--plugins", self.path("bin")),
            ("--socket", self.path("agent/agent.sock")),
            ("--processes", self.path("processes")),
            ("--kubeconfig", stage.cluster.path("cni.kubeconfig")),
        ] {
            command.arg(flag).arg(path);
        }
        command.args(more);
        let agent = Process::spawn(command, self.path("agent.log"));
        eventually("the plugin is in its place", || async {
            match stage.master.run(app::get(METRICS, "/ready", "")).await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?} {}", agent.log())),
            }
        })
        .await;
        assert_eq!(self.plugins(), [HOST, "outrigger-cni"]);
        agent
    }
}

/// Pods of the namespace, with all that is known of them.
fn pod(stage: &Stage, name: &str) -> Value {
    let text = stage.cluster.kubectl(&["-n", "shop", "get", "pod", name, "-o", "json"]).unwrap();
    serde_json::from_str(&text).unwrap()
}

async fn reaches(stage: &Stage, web: &str, service: &str) {
    let address = stage.service(service, 80);
    eventually("a request crosses as who it is from", || async {
        match stage.ask(web, address).await {
            Ok((200, text)) if text.contains("spiffe://cluster.local/ns/shop/sa/web") => Ok(()),
            other => Err(format!("{other:?}\n{}", stage.logs(web))),
        }
    })
    .await;
}

/// A Pod without a sidecar, in a namespace.
fn outsider(name: &str, namespace: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name, "sidecar.istio.io/inject": "false"}},
        "spec": {"nodeName": NODE, "containers": [{
            "name": "app", "image": "app", "args": ["serve", "8080"],
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        }]},
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_makes_the_rules_of_pods_and_none_starts_without_them() {
    let files = Files::new();
    let Some(stage) = Stage::start_in(json!({"cni": true}), Some(files.network())).await else { return };
    stage.mesh.apply(STRICT).await;
    stage.cluster.apply(ROLE);
    let agent = files.agent(&stage, &[]).await;
    stage.cluster.apply(&deployment("web", "v1", 1));
    stage.cluster.apply(&deployment("catalog", "v1", 1));
    stage.cluster.apply(&outsider("outsider", "shop"));
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    let [catalog] = stage.until_ready("catalog", 1).await.try_into().unwrap();
    reaches(&stage, &web, "catalog").await;
    let address = SocketAddr::new(stage.host(&catalog).v4(), 8080);
    let outside = stage.master.run(app::get(address, "/", "")).await;
    assert!(outside.is_err(), "{outside:?}");

    // Nothing in it may change rules, and whoever is not of the mesh has none.
    let known = pod(&stage, &catalog);
    let names: Vec<&Value> =
        known["spec"]["initContainers"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["outrigger-validation", "outrigger-proxy"]);
    assert!(!known["spec"].to_string().contains("NET_ADMIN"), "{known}");
    stage.until_ready("outsider", 1).await;
    assert_eq!(stage.host("outsider").ruleset(), "");

    // CHECK says whether they are there still.
    let host = stage.host(&catalog);
    let uid = known["metadata"]["uid"].as_str().unwrap();
    let attachment = Attachment::of(&host, "shop", &catalog, uid);
    files.network().call("CHECK", &attachment).unwrap();
    host.ask(Path::new("nft"), &["delete", "table", "inet", "outrigger"]).unwrap();
    let error = files.network().call("CHECK", &attachment).unwrap_err();
    assert_eq!(error["code"], 101, "{error}");
    // ADD makes them again, and once more is not too much.
    for _ in 0..2 {
        let result = files.network().call("ADD", &attachment).unwrap();
        assert_eq!(result["ips"][0]["address"], format!("{}/24", host.v4()), "{result}");
    }
    files.network().call("CHECK", &attachment).unwrap();
    reaches(&stage, &web, "catalog").await;
    // Whom the API server does not know, nobody makes rules for.
    let error = files.network().call("ADD", &Attachment::of(&host, "shop", "nobody", uid)).unwrap_err();
    assert_eq!(error["code"], 11, "{error}");
    let error = files.network().call("ADD", &Attachment::of(&host, "shop", &catalog, "another")).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("another one"), "{error}");

    // While the agent is away no Pod starts that could be one of the mesh; those of the cluster itself do, and those that run go on.
    agent.kill();
    stage.cluster.apply(&deployment("late", "v1", 1));
    stage.cluster.apply(&outsider("system", "kube-system"));
    eventually("the runtime is told to try again", || async {
        let log = stage.kubelet.network_log();
        if log.contains("late") && log.contains("\"code\":11") { Ok(()) } else { Err(log) }
    })
    .await;
    eventually("a Pod of the cluster's own runs", || async {
        let phase = ["-n", "kube-system", "get", "pod", "system", "-o", "jsonpath={.status.phase}"];
        match stage.cluster.kubectl(&phase)? {
            phase if phase == "Running" => Ok(()),
            phase => Err(phase),
        }
    })
    .await;
    reaches(&stage, &web, "catalog").await;
    assert_eq!(stage.ready("late").unwrap(), Vec::<String>::new());
    // Somebody else has written the configuration meanwhile; but that needs its agent, too.
    let _agent = files.agent(&stage, &[]).await;
    let [late] = stage.until_ready("late", 1).await.try_into().unwrap();
    reaches(&stage, &web, "late").await;
    println!("{late} was started once the agent was back");
}
