//! A real cluster: etcd, API server and controllers of Kubernetes, and a small kubelet of our own that gives each Pod a network
//! namespace. `kubectl apply` is all that a user does; the webhook injects, the kernel intercepts, the cluster says who is who.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;

use outrigger_control::explain::describe::DescribeQuery;
use outrigger_control::instance::{Instance, Protocol, State};
use outrigger_tests::app;
use outrigger_tests::cluster::{Cluster, Programs};
use outrigger_tests::kubelet::network::Network;
use outrigger_tests::kubelet::services::Services;
use outrigger_tests::kubelet::{Images, Kubelet};
use outrigger_tests::mesh::{Mesh, merge};
use outrigger_tests::netns::{Host, Net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};

use crate::BINARY;

mod admission;
mod beside_istio;
mod chart;
mod cni;
mod dual;
mod hints;
mod installed;
mod kinds;
mod kubelet;
mod others;
mod outside;
mod plain;
mod pods;
mod replicas;
mod revisions;
mod rollbacks;
mod scraped;
mod source;
mod translated;
mod zones;

const APP: &str = env!("CARGO_BIN_EXE_outrigger-test-app");
const NODE: &str = "node-1";
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/outrigger.yaml");

/// By what an API server finds our webhooks.
const WEBHOOKS: [[&str; 2]; 2] = [
    ["mutatingwebhookconfiguration", "outrigger-injector"],
    ["validatingwebhookconfiguration", "outrigger-validator"],
];

/// What each entry of them asks for, in their order.
const PATHS: [&[&str]; 2] =
    [&["inject"; 7], &["validate", "validate", "validate", WARNS, WARNS, WARNS, WARNS]];
const WARNS: &str = "inject/warnings";

/// A namespace whose Pods are injected.
const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
";

/// A cluster with one node, and the mesh in it.
struct Stage {
    place: Place,
    mesh: Mesh,
    master: Host,
    /// Where there are any.
    _services: Option<Services>,
}

/// A cluster with one node.
struct Place {
    // Ends first: what runs in Pods is gone before their network is.
    kubelet: Kubelet,
    cluster: Cluster,
}

impl Deref for Stage {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut Place {
        &mut self.place
    }
}

/// `None` where the machine cannot.
fn able() -> Option<Programs> {
    if !require::netns() {
        return None;
    }
    ["nft", "setpriv"].into_iter().try_for_each(|tool| require::tool(tool).map(drop))?;
    Programs::find()
}

/// What the images of the tests stand for.
fn images() -> Images {
    let mut images = Images::new();
    images.insert("app", Box::new(|words| (PathBuf::from(APP), words.to_vec())));
    images.insert(
        "outrigger/proxy:test",
        Box::new(|words| {
            // The image's own entry point is outrigger-proxy, which is three commands of `outrigger`.
            let command = words.first().is_some_and(|word| word == "intercept" || word == "wait");
            let proxy = if command { &[][..] } else { &["proxy".to_owned()] };
            (PathBuf::from(BINARY), [proxy, words].concat())
        }),
    );
    images
}

impl Stage {
    async fn start() -> Option<Self> {
        Self::start_in(json!({}), None).await
    }

    /// With more settings of the injector, and with a network of Pods that has plugins.
    async fn start_in(more: Value, network: Option<Network>) -> Option<Self> {
        Self::start_with(more, network, false).await
    }

    /// With addresses and names of Services, too, if that is asked for.
    async fn start_with(more: Value, network: Option<Network>, services: bool) -> Option<Self> {
        Self::start_among(Net::new, more, network, services).await
    }

    /// The same on hosts of another network.
    async fn start_among(
        net: fn() -> Net,
        more: Value,
        network: Option<Network>,
        services: bool,
    ) -> Option<Self> {
        let injector = |master: &Host| {
            let mut settings = json!({
                "address": "127.0.0.1:15017", "image": "outrigger/proxy:test",
                "controlPlane": SocketAddr::new(master.v4(), 15012), "webhook": "outrigger-injector",
            });
            merge(&mut settings, &more);
            settings
        };
        let stage = Self::with(net, injector, network, services).await?;
        eventually("the webhooks are trusted", || async {
            let bundle = ["-o", "jsonpath={.webhooks[0].clientConfig.caBundle}"];
            for webhook in WEBHOOKS {
                let found = stage.cluster.kubectl(&[&["get"], &webhook[..], &bundle].concat())?;
                if found.is_empty() {
                    return Err(format!("{webhook:?} has none"));
                }
            }
            Ok(())
        })
        .await;
        Some(stage)
    }

    /// The cluster as a registry alone.
    async fn without_injection() -> Option<Self> {
        Self::with(Net::new, |_| Value::Null, None, false).await
    }

    async fn with(
        net: fn() -> Net,
        injector: impl FnOnce(&Host) -> Value,
        network: Option<Network>,
        services: bool,
    ) -> Option<Self> {
        let programs = able()?;
        let net = Arc::new(net());
        let master = net.host("master");
        let cluster = Cluster::start(programs, &master).await;
        // As it is installed; but the control plane runs on the host of the API server, which has no way to a Service.
        cluster.apply(&std::fs::read_to_string(MANIFEST).unwrap());
        cluster.apply(WE_ARE);
        let kubeconfig = cluster.path("mesh.kubeconfig");
        let mut settings =
            json!({"registries": [{"name": "cluster", "kubernetes": {"kubeconfig": kubeconfig}}]});
        let injector = injector(&master);
        let served = !injector.is_null();
        if served {
            settings["injector"] = injector;
        }
        for (webhook, paths) in WEBHOOKS.into_iter().zip(PATHS) {
            if !served {
                cluster.kubectl(&[&["delete"], &webhook[..]].concat()).unwrap();
                continue;
            }
            let to = |(place, path): (usize, &&str)| {
                let at = format!("/webhooks/{place}/clientConfig");
                json!({"op": "replace", "path": at, "value": {"url": format!("https://127.0.0.1:15017/{path}")}})
            };
            let urls = Value::from(paths.iter().enumerate().map(to).collect::<Vec<_>>()).to_string();
            cluster.kubectl(&[&["patch"], &webhook[..], &["--type=json", "-p", &urls]].concat()).unwrap();
        }
        let mesh = Mesh::start_on_with(BINARY, &master, settings).await;
        let client = cluster.client().await;
        let services = match services {
            true => Some(Services::start(client.clone(), net.clone(), &master).await),
            false => None,
        };
        let names = services.as_ref().map(Services::names);
        let kubelet = master.run(Kubelet::start(NODE, "eu-1", client, net, images(), network, names)).await;
        cluster.apply(SHOP);
        Some(Self { place: Place { kubelet, cluster }, mesh, master, _services: services })
    }
}

impl Place {
    /// Pods of an application that are ready, by name.
    fn ready(&self, app: &str) -> Result<Vec<String>, String> {
        let selector = format!("app={app}");
        let pods = self.cluster.kubectl(&["-n", "shop", "get", "pods", "-l", &selector, "-o", "json"])?;
        let pods: Value = serde_json::from_str(&pods).map_err(|error| error.to_string())?;
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array();
            pod["metadata"]["deletionTimestamp"].is_null()
                && conditions.is_some_and(|all| {
                    all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
                })
        };
        let items = pods["items"].as_array().cloned().unwrap_or_default();
        Ok(items
            .iter()
            .filter(ready)
            .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
            .collect())
    }

    /// Waits until so many are ready.
    async fn until_ready(&self, app: &str, count: usize) -> Vec<String> {
        eventually(&format!("{count} of {app} are ready"), || async {
            let ready = self.ready(app)?;
            if ready.len() == count {
                return Ok(ready);
            }
            let pods = self.cluster.kubectl(&["-n", "shop", "get", "pods", "-o", "wide"]).unwrap_or_default();
            let events = self.cluster.kubectl(&["-n", "shop", "get", "events"]).unwrap_or_default();
            let names = pods.lines().skip(1).filter_map(|line| line.split(' ').next());
            let logs = names.filter(|name| name.starts_with(app)).map(|name| self.logs(name)).next();
            Err(format!("{pods}\n{events}\n{}", logs.unwrap_or_default()))
        })
        .await
    }

    /// Waits until only Pods of this version are there, as many as before, and ready.
    async fn until_only_version(&self, app: &str, version: &str) {
        eventually(&format!("only {version} is left"), || async {
            let (selector, count) = (format!("app={app}"), "jsonpath={.spec.replicas}");
            let count = self.cluster.kubectl(&["-n", "shop", "get", "deployment", app, "-o", count])?;
            let pods = self.cluster.kubectl(&["-n", "shop", "get", "pods", "-l", &selector, "-o", "json"])?;
            let pods: Value = serde_json::from_str(&pods).map_err(|error| error.to_string())?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            let of =
                |pod: &Value| pod["metadata"]["labels"]["version"].as_str().unwrap_or_default().to_owned();
            let versions: Vec<String> = pods.iter().map(of).collect();
            let ready = self.ready(app)?;
            let whole = versions.len().to_string() == count && ready.len() == versions.len();
            match whole && versions.iter().all(|one| one == version) {
                true => Ok(()),
                false => Err(format!("{versions:?} {ready:?}")),
            }
        })
        .await;
    }

    fn host(&self, pod: &str) -> Host {
        self.kubelet.host("shop", pod).unwrap_or_else(|| panic!("{pod} runs"))
    }

    /// The address of a Service.
    fn service(&self, name: &str, port: u16) -> SocketAddr {
        let found =
            self.cluster.kubectl(&["-n", "shop", "get", "service", name, "-o", "jsonpath={.spec.clusterIP}"]);
        SocketAddr::new(found.unwrap().parse().unwrap(), port)
    }

    /// Asks as an application in a Pod does.
    async fn ask(&self, pod: &str, address: SocketAddr) -> std::io::Result<(u16, String)> {
        self.host(pod).run(app::get(address, "/", "")).await
    }

    /// The logs that matter when something is wrong.
    fn logs(&self, pod: &str) -> String {
        let log = |container| self.kubelet.log("shop", pod, container);
        let init = log("outrigger-init") + &log("outrigger-validation");
        format!("init: {init}\nproxy: {}\napp: {}", log("outrigger-proxy"), log("app"))
    }
}

/// Whoever the control plane is here may do what the manifest lets it do, and nothing else.
const WE_ARE: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: outrigger-control-of-the-test}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: outrigger-control}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: mesh}]
---
# As every service account may.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: outrigger-control-looks-at-keys}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:service-account-issuer-discovery}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: mesh}]
";

/// All that comes to a workload is the mesh's.
const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

/// An application of one port, and its Service.
fn deployment(name: &str, version: &str, replicas: u32) -> String {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": {"app": name, "version": version}},
                "spec": {
                    "nodeName": NODE, "serviceAccountName": name, "terminationGracePeriodSeconds": 20,
                    "containers": [{
                        "name": "app", "image": "app", "args": ["serve", "8080", "2"],
                        "env": [{"name": "NAME", "value": format!("{name}-{version}")}],
                        "ports": [{"containerPort": 8080, "name": "web"}],
                        "readinessProbe": {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 1},
                    }],
                },
            },
        },
    });
    format!(
        "apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: shop}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, name: http, targetPort: web}}]}}
---
{deployment}
"
    )
}
