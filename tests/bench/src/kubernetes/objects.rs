//! What is in the cluster: namespaces of 100 Services, and Pods as a ReplicaSet and a kubelet would have made them.

use anyhow::{Context, Result};
use http::{Method, Request};
use kube::Client;
use outrigger_tests::cluster::Cluster;
use serde_json::{Value, json};

/// Services of a namespace.
const PER_NAMESPACE: u32 = 100;
/// Nodes, in three zones.
const NODES: u32 = 200;
/// Asked of the API server at once.
const AT_ONCE: u32 = 32;
/// Where sidecars call a Service.
const PORT: u16 = 80;

/// A client of the API server, as an administrator.
pub struct Objects {
    client: Client,
}

/// A Pod that changes.
#[derive(Clone)]
pub struct Pod {
    namespace: String,
    name: String,
    /// What its Service's endpoints are called.
    pub cluster: String,
    /// Pods of its Service, itself among them.
    pub siblings: usize,
}

fn namespace_of(service: u32) -> String {
    format!("n{}", service / PER_NAMESPACE)
}

/// The name of a Service's endpoints.
pub fn cluster_of(service: u32) -> String {
    format!("outbound|{PORT}||s{service}.{}.svc.cluster.local", namespace_of(service))
}

fn name_of(service: u32, number: u32) -> String {
    format!("s{service}-7d4b9c6f8-{number:05}")
}

impl Pod {
    /// The first of a Service.
    pub fn of(service: u32, services: u32, pods: u32) -> Self {
        let siblings = (pods / services + u32::from(service < pods % services)) as usize;
        Self {
            namespace: namespace_of(service),
            name: name_of(service, 0),
            cluster: cluster_of(service),
            siblings,
        }
    }
}

impl Objects {
    /// Nothing is asked yet.
    pub async fn new(cluster: &Cluster) -> Result<Self> {
        Ok(Self { client: cluster.client().await })
    }

    async fn send(&self, method: Method, path: &str, kind: &str, body: &Value) -> Result<()> {
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(body.to_string().into_bytes())?;
        self.client.request_text(request).await.with_context(|| path.to_owned())?;
        Ok(())
    }

    async fn create(&self, path: &str, body: &Value) -> Result<()> {
        self.send(Method::POST, path, "application/json", body).await
    }

    /// Makes everything.
    pub async fn make(self: std::sync::Arc<Self>, services: u32, pods: u32) -> Result<()> {
        for number in 0..services.div_ceil(PER_NAMESPACE) {
            let name = format!("n{number}");
            self.create("/api/v1/namespaces", &json!({"metadata": {"name": name}})).await?;
            let account = json!({"metadata": {"name": "default"}});
            self.create(&format!("/api/v1/namespaces/{name}/serviceaccounts"), &account).await?;
        }
        for number in 0..NODES {
            let labels = json!({"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": format!("eu-{}", number % 3)});
            let node = json!({"metadata": {"name": format!("node-{number}"), "labels": labels}});
            self.create("/api/v1/nodes", &node).await?;
        }
        let mut tasks = tokio::task::JoinSet::new();
        for part in 0..AT_ONCE {
            let objects = self.clone();
            tasks.spawn(async move {
                for service in (part..services).step_by(AT_ONCE as usize) {
                    objects.service(service).await?;
                }
                for number in (part..pods).step_by(AT_ONCE as usize) {
                    objects.pod(number % services, number / services, number).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }

    async fn service(&self, service: u32) -> Result<()> {
        let path = format!("/api/v1/namespaces/{}/services", namespace_of(service));
        let ports = json!([{"name": "http", "port": PORT, "targetPort": "web"}]);
        let spec = json!({"selector": {"app": format!("s{service}")}, "ports": ports});
        self.create(&path, &json!({"metadata": {"name": format!("s{service}")}, "spec": spec})).await
    }

    /// `number` is its place among all.
    async fn pod(&self, service: u32, of_service: u32, number: u32) -> Result<()> {
        let (app, name) = (format!("s{service}"), name_of(service, of_service));
        let hash = "7d4b9c6f8";
        let container = json!({
            "name": "app", "image": "registry.example/shop/app:1.42.0", "ports": [{"name": "web", "containerPort": 8080}],
            "env": (0..8).map(|i| json!({"name": format!("SETTING_{i}"), "value": "of some length, as they have"})).collect::<Vec<_>>(),
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "web"}},
        });
        let sidecar =
            json!({"name": "outrigger-proxy", "image": "outrigger-proxy:0.1.0", "restartPolicy": "Always"});
        let pod = json!({
            "metadata": {
                "name": name,
                "labels": {"app": app, "version": "v1", "pod-template-hash": hash, "outrigger.io/rev": "default"},
                "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "15020"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-{hash}"), "controller": true,
                    "uid": format!("00000000-0000-4000-8000-{service:012}"),
                }],
            },
            "spec": {"nodeName": format!("node-{}", number % NODES), "containers": [container], "initContainers": [sidecar]},
        });
        let path = format!("/api/v1/namespaces/{}/pods", namespace_of(service));
        self.create(&path, &pod).await?;
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number + 1);
        let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "192.0.2.1",
            "conditions": conditions(true)});
        self.send(
            Method::PATCH,
            &format!("{path}/{name}/status"),
            "application/merge-patch+json",
            &json!({"status": status}),
        )
        .await
    }

    /// Writes whether a Pod is ready.
    pub async fn ready(&self, pod: &Pod, ready: bool) -> Result<()> {
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace, pod.name);
        let status = json!({"status": {"conditions": conditions(ready)}});
        self.send(Method::PATCH, &path, "application/merge-patch+json", &status).await
    }
}

fn conditions(ready: bool) -> Value {
    let one = |kind: &str, is: bool| json!({"type": kind, "status": if is { "True" } else { "False" }});
    json!([
        one("PodScheduled", true),
        one("Initialized", true),
        one("ContainersReady", ready),
        one("Ready", ready)
    ])
}
