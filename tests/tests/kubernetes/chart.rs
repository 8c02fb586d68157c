//! What Helm renders is taken by a real API server as it stands, in a cluster without anything else: no field that it does not know, nothing
//! that it warns of. So is what `outrigger manifest` says.

use std::process::Command;

use super::*;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm");
/// The chart as it is, with the plugin, and with all that is off otherwise.
const SETS: [&[&str]; 3] = [
    &[],
    &["cni.enabled=true"],
    &[
        "cni.enabled=true",
        "cni.repair.evict=true",
        "cni.repair.label=true",
        "cni.onExit=keep",
        "replicas=3",
        "injectionFailurePolicy=Ignore",
        "validationFailurePolicy=Fail",
        "resources.limits.memory=2Gi",
        "storage=2Gi",
        "storageClass=fast",
        "injectByAnnotation=true",
        "istioPeers=true",
        "authoritySecret=provided",
        "imagePullSecrets[0].name=registry",
        "tolerations[0].operator=Exists",
        "nodeSelector.pool=system",
        "priorityClassName=system-cluster-critical",
    ],
];

/// What a program writes; it has done well.
fn said(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Applies it without doing it: the namespaces of what there would be, one for each object.
fn tried(cluster: &Cluster, text: &str) -> Result<Vec<String>, String> {
    let words = ["apply", "--dry-run=server", "-o", "json"];
    let made: Value =
        serde_json::from_str(&cluster.kubectl_with(text, &words)?).map_err(|error| error.to_string())?;
    let items = made["items"].as_array().cloned().unwrap_or_default();
    let namespace = |item: &Value| item["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    Ok(items.iter().map(namespace).collect())
}

/// What the API server warns of on the way.
fn warnings(cluster: &Cluster, text: &str) -> Vec<String> {
    let words = ["apply", "--dry-run=server", "--warnings-as-errors", "-o", "name"];
    let said = cluster.kubectl_with(text, &words).err().unwrap_or_default();
    said.lines().filter(|line| line.starts_with("Warning: ")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_helm_renders_is_taken_by_an_api_server_without_a_warning() {
    let Some(helm) = require::tool("helm") else { return };
    let Some(programs) = able() else { return };
    let net = Net::new();
    let master = net.host("master");
    let cluster = Cluster::start_alone(programs, &master).await;
    // As `helm install --create-namespace` does before anything else.
    cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: mesh}}");
    let version: Value =
        serde_json::from_str(&cluster.kubectl(&["get", "--raw", "/version"]).unwrap()).unwrap();
    let version = version["gitVersion"].as_str().unwrap();
    for set in SETS {
        let set = set.iter().flat_map(|word| ["--set", word]);
        let mut rendered = Command::new(&helm);
        rendered.args(["template", "o", CHART, "-n", "mesh", "--include-crds", "--kube-version", version]);
        rendered.args(set.clone());
        rendered.env("HELM_CACHE_HOME", cluster.path("helm"));
        let mut ours = Command::new(BINARY);
        ours.args(["manifest", "-n", "mesh"]).args(set);
        for text in [said(rendered), said(ours)] {
            let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
            let objects = objects.iter().filter(|object| !object.is_null()).count();
            let namespaces = tried(&cluster, &text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(namespaces.len(), objects);
            // It says of all where it goes, so that nobody has to.
            assert!(!namespaces.iter().any(|name| name == "default"), "{namespaces:?}");
            assert!(namespaces.iter().any(|name| name == "mesh"), "{namespaces:?}");
            assert_eq!(warnings(&cluster, &text), [""; 0]);
            // It looks: what is misspelt is seen.
            let wrong = tried(&cluster, &text.replace("serviceName:", "serviceNames:")).unwrap_err();
            assert!(wrong.contains(r#"unknown field "spec.serviceNames""#), "{wrong}");
        }
    }
}
