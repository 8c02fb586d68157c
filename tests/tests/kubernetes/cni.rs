//! The CNI plugin: Pods whose rules of interception are made by the node, behind whatever makes their network, and none that runs without.

use std::path::Path;

use outrigger_tests::kubelet::network::{Attachment, HOST};
use outrigger_tests::mesh::Process;

use super::*;

mod chain;
mod daemon_set;

pub(super) const PLUGIN: &str = env!("CARGO_BIN_EXE_outrigger-cni-under-test");
/// Readiness and metrics of the agent.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15024);

/// Whoever the agent is here may do what the manifest lets it do, and nothing else.
const WE_ARE_CNI: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: outrigger-cni-of-the-test}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: outrigger-cni}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: cni}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: outrigger-cni-of-the-test, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: outrigger-cni}
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
        Network { configurations: self.path("net.d"), plugins: self.path("bin"), node: None }
    }

    /// The plugins that Pods are shown to, in their order.
    fn plugins(&self) -> Vec<String> {
        let list = self.network().list().unwrap();
        let plugins = list["plugins"].as_array().cloned().unwrap_or_default();
        plugins.iter().filter_map(|plugin| plugin["type"].as_str().map(str::to_owned)).collect()
    }

    /// Starts the agent of the node and waits until the plugin is in its place.
    async fn agent(&self, stage: &Stage, more: &[&str]) -> Process {
        let agent = self.agent_on(&stage.master, &stage.cluster, more).await;
        assert_eq!(self.plugins(), [HOST, "outrigger-cni"]);
        agent
    }

    async fn agent_on(&self, master: &Host, cluster: &Cluster, more: &[&str]) -> Process {
        let mut command = master.command(BINARY);
        command.args(["cni", "--node", NODE, "--metrics-address", &METRICS.to_string(), "--binary", PLUGIN]);
        for (flag, path) in [
            ("--configurations", self.path("net.d")),
            ("--plugins", self.path("bin")),
            ("--socket", self.path("agent/agent.sock")),
            ("--processes", self.path("processes")),
            ("--kubeconfig", cluster.path("cni.kubeconfig")),
        ] {
            command.arg(flag).arg(path);
        }
        command.args(more);
        let agent = Process::spawn(command, self.path("agent.log"));
        eventually("the plugin is in its place", || async {
            match master.run(app::get(METRICS, "/ready", "")).await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?} {}", agent.log())),
            }
        })
        .await;
        agent
    }
}

/// SIGTERM, and the end of it: whether that is good.
async fn ends(mut agent: Process) -> bool {
    let pid = rustix::process::Pid::from_raw(agent.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        if let Some(well) = agent.ended() {
            return well;
        }
        assert!(tokio::time::Instant::now() < end, "it does not end: {}", agent.log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Applies what of the manifest is the plugin's. The Pods of its DaemonSet come to no node here: the tests start agents.
fn installed(cluster: &Cluster, more: &[&str]) {
    let words = ["cni.enabled=true"].iter().chain(more).flat_map(|words| ["--set", words]);
    let mut command = std::process::Command::new(BINARY);
    let output = command.args(["manifest", "--crds", "none"]).args(words).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let ours: Vec<&str> =
        text.split("\n---\n").filter(|object| object.contains("name: outrigger-cni")).collect();
    assert_eq!(ours.len(), 6, "{text}");
    cluster.apply(&ours.join("\n---\n"));
    cluster.apply(WE_ARE_CNI);
}

/// A namespace that takes no Pod with a privilege, nor one without a profile of seccomp; and a Pod that has it where charts put it.
const CLOSED: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "closed", "namespace": "closed"}, "spec": {"containers": [
    {"name": "app", "image": "app", "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}}
]}}"#;
const CLOSED_NAMESPACE: &str = "apiVersion: v1
kind: Namespace
metadata: {name: closed, labels: {istio-injection: enabled, pod-security.kubernetes.io/enforce: restricted}}
";

/// All that is known of a Pod that is known of them.
pub(super) fn pod(stage: &Stage, name: &str) -> Value {
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
pub(super) fn outsider(name: &str, namespace: &str) -> String {
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
    installed(&stage.cluster, &[]);
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

    // So a namespace that takes no privilege takes it with its sidecar.
    stage.cluster.apply(CLOSED_NAMESPACE);
    let made = eventually("a Pod without a privilege is taken", || async {
        stage.cluster.kubectl_with(CLOSED, &["apply", "--dry-run=server", "-o", "json"])
    })
    .await;
    assert!(made.contains("outrigger-validation") && made.contains("outrigger-proxy"), "{made}");

    // CHECK says whether they are there still.
    let host = stage.host(&catalog);
    let uid = known["metadata"]["uid"].as_str().unwrap();
    let attachment = Attachment::of(&host, "shop", &catalog, uid);
    files.network().call("CHECK", &attachment).unwrap();
    host.ask(Path::new("nft"), &["delete", "table", "inet", "outrigger"]).unwrap();
    let error = files.network().call("CHECK", &attachment).unwrap_err();
    assert_eq!(error["code"], 101, "{error}");
    // ADD makes them again, and once more is not too much.
    let begun = std::time::Instant::now();
    for _ in 0..20 {
        let result = files.network().call("ADD", &attachment).unwrap();
        assert_eq!(result["ips"][0]["address"], format!("{}/24", host.v4()), "{result}");
    }
    let memory = std::fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap_or_default();
    let memory = memory.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default().replace('\t', " ");
    println!("an ADD takes {:?}; the agent has {memory}", begun.elapsed() / 20);
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

/// A Pod that nobody would make anew, and its Service.
fn alone() -> String {
    let mut pod: Value = serde_json::from_str(&outsider("alone", "shop")).unwrap();
    pod["metadata"]["labels"] = json!({"app": "alone"});
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "alone", "namespace": "shop"},
        "spec": {"selector": {"app": "alone"}, "ports": [{"port": 80, "name": "http", "targetPort": 8080}]},
    });
    format!("{pod}\n---\n{service}")
}

/// A Pod that does its work once, and nothing of it twice.
fn once() -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "once", "namespace": "shop", "labels": {"app": "once"}},
        "spec": {"nodeName": NODE, "restartPolicy": "Never", "containers": [{"name": "app", "image": "app", "args": ["end"]}]},
    })
    .to_string()
}

/// Waits until the check of a Pod has failed: the name of the Pod.
async fn until_stuck(stage: &Stage, app: &str) -> String {
    eventually(&format!("the check of {app} fails"), || async {
        let selector = format!("app={app}");
        let pods = stage.cluster.kubectl(&["-n", "shop", "get", "pods", "-l", &selector, "-o", "json"])?;
        let pods: Value = serde_json::from_str(&pods).map_err(|error| error.to_string())?;
        let pod = &pods["items"][0];
        let code = &pod["status"]["initContainerStatuses"][0]["lastState"]["terminated"]["exitCode"];
        if *code == 1 {
            Ok(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned())
        } else {
            Err(pod.to_string())
        }
    })
    .await
}

/// As a node's `/proc` shows it, which is that of a whole machine and not to be had here.
fn show_process(files: &Files, stage: &Stage, name: &str, number: u32) {
    let process = files.path(&format!("processes/{number}"));
    std::fs::create_dir_all(process.join("ns")).unwrap();
    let uid = pod(stage, name)["metadata"]["uid"].as_str().unwrap().replace('-', "_");
    let group = format!("0::/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-1.scope\n");
    std::fs::write(process.join("cgroup"), group).unwrap();
    std::os::unix::fs::symlink(stage.host(name).netns(), process.join("ns/net")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_from_before_the_plugin_are_mended_and_it_goes_only_with_its_daemon_set() {
    let files = Files::new();
    let Some(stage) = Stage::start_in(json!({"cni": true}), Some(files.network())).await else { return };
    stage.mesh.apply(STRICT).await;
    let ways = ["cni.repair.evict=true", "cni.repair.label=true"];
    installed(&stage.cluster, &ways);
    // No plugin yet, so nothing of them runs but the check.
    stage.cluster.apply(&deployment("web", "v1", 1));
    stage.cluster.apply(&alone());
    let before = until_stuck(&stage, "web").await;
    until_stuck(&stage, "alone").await;
    for name in [before.as_str(), "alone"] {
        let logs = stage.logs(name);
        assert!(logs.contains("CNI plugin of this node did not run") && logs.ends_with("app: "), "{logs}");
    }

    // What is made anew may go; what is not is labelled, and is mended by who may.
    let agent = files.agent(&stage, &["--repair-evict", "--repair-label"]).await;
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    assert_ne!(web, before);
    eventually("the other one is labelled", || async {
        let label = pod(&stage, "alone")["metadata"]["labels"]["outrigger.io/interception"].clone();
        if label == "missing" { Ok(()) } else { Err(agent.log()) }
    })
    .await;
    assert_eq!(stage.ready("alone").unwrap(), Vec::<String>::new());
    assert!(ends(agent).await);
    assert_eq!(files.plugins(), [HOST, "outrigger-cni"], "another agent comes: the DaemonSet is there");
    show_process(&files, &stage, "alone", 4711);
    let agent = mended_in_time(&stage, &files).await;
    stage.until_ready("alone", 1).await;
    assert!(stage.host("alone").ruleset().contains("table inet outrigger"));
    reaches(&stage, &web, "alone").await;
    let (_, metrics) = stage.master.run(app::get(METRICS, "/metrics", "")).await.unwrap();
    assert!(metrics.contains("outrigger_cni_repairs_total{outcome=\"repaired\"} 2\n"), "{metrics}");

    put_back(&files).await;

    // Taken out with its DaemonSet, and out of both lists.
    stage.cluster.kubectl(&["-n", "kube-system", "delete", "daemonset", "outrigger-cni"]).unwrap();
    assert!(ends(agent).await);
    assert_eq!(files.plugins(), [HOST]);
    std::fs::remove_file(files.path("net.d/05-new.conf.conflist")).unwrap();
    assert_eq!(files.plugins(), [HOST]);

    // All that it may, and nothing else.
    let all = ["create pods/eviction", "get daemonsets", "get pods", "list pods", "patch pods", "watch pods"];
    assert_eq!(asked(&stage.cluster, "cni"), all);
}

/// What is never tried again is mended before its check gives up, by an agent that starts meanwhile.
async fn mended_in_time(stage: &Stage, files: &Files) -> Process {
    files.write_list();
    stage.cluster.apply(&once());
    eventually("its check runs", || async {
        let running = [
            "-n",
            "shop",
            "get",
            "pod",
            "once",
            "-o",
            "jsonpath={.status.initContainerStatuses[0].state.running}",
        ];
        match stage.cluster.kubectl(&running)? {
            found if found.is_empty() => Err("it does not".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    show_process(files, stage, "once", 4712);
    let agent = files.agent(stage, &["--repair-rules"]).await;
    eventually("it has succeeded", || async {
        let phase =
            stage.cluster.kubectl(&["-n", "shop", "get", "pod", "once", "-o", "jsonpath={.status.phase}"])?;
        if phase == "Succeeded" { Ok(()) } else { Err(format!("{phase} {}", stage.logs("once"))) }
    })
    .await;
    assert!(!stage.logs("once").contains("not intercepted"), "{}", stage.logs("once"));
    agent
}

/// Whoever owns the network writes it anew, and another comes before it.
async fn put_back(files: &Files) {
    files.write_list();
    let in_place = async |what: &str| {
        eventually(what, || async {
            if files.plugins() == [HOST, "outrigger-cni"] {
                Ok(())
            } else {
                Err(format!("{:?}", files.plugins()))
            }
        })
        .await;
    };
    in_place("the plugin is put back").await;
    let single = json!({"cniVersion": "0.4.0", "name": "new", "type": HOST}).to_string();
    std::fs::write(files.path("net.d/05-new.conf"), single).unwrap();
    in_place("the plugin stands behind the new one").await;
    assert!(files.path("net.d/05-new.conf.conflist").exists() && !files.path("net.d/05-new.conf").exists());
}

/// What an agent has asked of the API server, none of which was forbidden.
fn asked(cluster: &Cluster, user: &str) -> Vec<String> {
    let audit = cluster.audit(user);
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut asked: Vec<String> = audit
        .iter()
        .map(|event| {
            let object = &event["objectRef"];
            let below = object["subresource"].as_str().map(|below| format!("/{below}")).unwrap_or_default();
            assert_ne!(event["responseStatus"]["code"], 403, "{event}");
            format!("{} {}{below}", word(&event["verb"]), word(&object["resource"]))
        })
        .collect();
    asked.sort();
    asked.dedup();
    asked
}
