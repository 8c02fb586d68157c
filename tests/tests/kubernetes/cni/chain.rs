//! Behind plugins of others, called by others: libcni's own tool, with a point-to-point network and addresses from a range.

use std::process::Stdio;

use super::*;

/// As the injector makes one; on a node that nobody is.
const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"}, "spec": {
    "nodeName": "elsewhere",
    "initContainers": [
        {"name": "outrigger-validation", "image": "p", "args": ["intercept", "check", "--dns", "--exclude-outbound-ports=3306"]},
        {"name": "outrigger-proxy", "image": "p", "restartPolicy": "Always"}
    ],
    "containers": [{"name": "app", "image": "app"}]
}}"#;

/// What libcni's tool is called with.
struct Tool<'a> {
    master: &'a Host,
    files: &'a Files,
    folder: &'a Path,
    args: &'a str,
}

impl Tool<'_> {
    /// Calls the chain as a runtime does.
    fn call(&self, command: &str, to: &Host) -> Result<String, String> {
        let tool = self.folder.join("cnitool");
        // What it remembers goes into our own folder: the programs of a host have a file system of their own.
        let words = format!(
            "mount --bind {} /var/lib && exec {} \"$@\"",
            self.files.path("lib").display(),
            tool.display()
        );
        let mut process = self.master.command("sh");
        process.args(["-c", &words, "cnitool", command, "real"]).arg(to.netns());
        process.env("CNI_PATH", format!("{}:{}", self.folder.display(), self.files.path("bin").display()));
        process
            .env("NETCONFPATH", self.files.path("net.d"))
            .env("CNI_IFNAME", "net1")
            .env("CNI_ARGS", self.args);
        process.env("CAP_ARGS", r#"{"dns": {"servers": ["10.96.0.53"]}}"#);
        let output = process.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stdout) + &text(&output.stderr)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stands_behind_the_plugins_of_others_as_libcni_calls_them() {
    let Some((programs, folder)) = able().zip(require::folder("cni")) else { return };
    let net = Net::new();
    let (master, host) = (net.host("master"), net.host("pod"));
    let cluster = Cluster::start(programs, &master).await;
    let files = Files::new();
    std::fs::create_dir(files.path("lib")).unwrap();
    std::fs::remove_file(files.path("net.d/10-pods.conflist")).unwrap();
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "dataDir": files.path("ipam")});
    let list = json!({"cniVersion": "1.1.0", "name": "real", "plugins": [{"type": "ptp", "ipam": ipam}]});
    std::fs::write(files.path("net.d/10-real.conflist"), list.to_string()).unwrap();
    installed(&cluster, &[]);
    let agent = files.agent_on(&master, &cluster, &[]).await;
    assert_eq!(files.plugins(), ["ptp", "outrigger-cni"]);
    cluster.apply(POD);

    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web";
    let tool = Tool { master: &master, files: &files, folder: &folder, args };
    let begun = std::time::Instant::now();
    let result: Value = serde_json::from_str(&tool.call("add", &host).unwrap()).unwrap();
    println!("the whole chain took {:?}", begun.elapsed());
    assert_eq!(result["cniVersion"], "1.1.0");
    assert!(
        result["ips"][0]["address"].as_str().unwrap().starts_with("10.99.0."),
        "what ptp has made: {result}"
    );
    let rules = host.ruleset();
    // The options of the Pod, and the name servers that the runtime says.
    for rule in ["tcp dport 3306 return", "ip daddr 10.96.0.53 udp dport 53 redirect to :15053"] {
        assert!(rules.contains(rule), "{rule}\n{rules}");
    }
    tool.call("status", &host).unwrap();
    tool.call("check", &host).unwrap();
    host.ask(Path::new("nft"), &["delete", "table", "inet", "outrigger"]).unwrap();
    let error = tool.call("check", &host).unwrap_err();
    assert!(error.contains("the rules of interception are not there"), "{error}");
    tool.call("del", &host).unwrap();
    tool.call("gc", &host).unwrap();

    // Whom nobody knows is not attached, and what there was of a network is taken back.
    let stranger = Tool { args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=nobody", ..tool };
    let error = stranger.call("add", &host).unwrap_err();
    assert!(error.contains("Pod default/nobody: the API server answers 404"), "{error}");
    stranger.call("del", &host).unwrap();
    agent.kill();
    let error = stranger.call("status", &host).unwrap_err();
    assert!(error.contains("the agent of this node is away"), "{error}");
}
