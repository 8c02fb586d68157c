//! A small kubelet: it gives each Pod of its node a host of its own, runs the containers as processes there, probes them, restarts them,
//! says how they are, and ends them in order. Real but for the container: names of images stand for programs of the test.
//!
//! As a kubelet does: what claims a volume waits until it has one; what asks for the network and files of its node has them, where it may; init containers one after the other, one that restarts always goes on and has to have started before the next; then
//! containers in the order of the Pod, each after the `postStart` of the one before; probes, and what they cost; restarts with a back-off;
//! at the end `preStop`, SIGTERM, what is left of the grace period, SIGKILL, and sidecars after all others.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Container, Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::netns::{Host, Net};

mod action;
mod container;
mod mounts;
pub mod network;
mod pod;
mod probe;
mod running;
pub mod services;

use container::Surroundings;
use network::{Attachment, Network};
use pod::Contents;

/// Between two looks at a container.
const TICK: Duration = Duration::from_millis(50);

/// What an image name stands for: the program, and words in front of the container's own.
pub type Images = BTreeMap<&'static str, Box<dyn Fn(&[String]) -> (PathBuf, Vec<String>) + Send + Sync>>;

/// A node; it ends with this.
pub struct Kubelet {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    node: String,
    client: Client,
    net: Arc<Net>,
    images: Arc<Images>,
    /// `None`: a Pod's network is there, and nobody has a say in it.
    network: Option<Network>,
    /// Where names of Services are known.
    names: Option<IpAddr>,
    directory: tempfile::TempDir,
    /// Where Pods run, by namespace and name.
    hosts: Mutex<BTreeMap<(String, String), Host>>,
}

impl Kubelet {
    /// Registers the node and follows its Pods. Call it on the host of the API server. Where names of Services are known ([`services`]),
    /// the cluster is whole, and Pods that are on no node come to this one.
    pub async fn start(
        node: &str,
        zone: &str,
        client: Client,
        net: Arc<Net>,
        images: Images,
        network: Option<Network>,
        names: Option<IpAddr>,
    ) -> Self {
        register(&client, node, zone).await;
        let is_whole = names.is_some();
        let mut kubelet = Self::of(node, client, net, Arc::new(images), network, names);
        if is_whole {
            kubelet.tasks.push(tokio::spawn(place(kubelet.shared.clone())));
        }
        kubelet
    }

    /// Another node of the same cluster, in another zone. Only Pods that name it come to it. Run it on the host of the API server.
    pub fn beside(&self, node: &str, zone: &str) -> impl Future<Output = Self> + Send + use<> {
        let (shared, node, zone) = (self.shared.clone(), node.to_owned(), zone.to_owned());
        async move {
            let Shared { client, net, images, network, names, .. } = &*shared;
            register(client, &node, &zone).await;
            Self::of(&node, client.clone(), net.clone(), images.clone(), network.clone(), *names)
        }
    }

    fn of(
        node: &str,
        client: Client,
        net: Arc<Net>,
        images: Arc<Images>,
        network: Option<Network>,
        names: Option<IpAddr>,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // Sidecars run as a user of their own.
        crate::open_to_all(directory.path());
        let (node, hosts) = (node.to_owned(), Mutex::default());
        let shared = Arc::new(Shared { node, client, net, images, network, names, directory, hosts });
        let tasks = vec![tokio::spawn(follow(shared.clone()))];
        Self { shared, tasks }
    }

    /// Where a Pod runs.
    pub fn host(&self, namespace: &str, pod: &str) -> Option<Host> {
        self.shared.hosts.lock().get(&(namespace.to_owned(), pod.to_owned())).cloned()
    }

    /// Where the files of a Pod's volume are.
    pub fn volume(&self, namespace: &str, pod: &str, volume: &str) -> PathBuf {
        self.shared.directory.path().join(format!("{namespace}_{pod}/volumes/{volume}"))
    }

    /// What plugins have refused.
    pub fn network_log(&self) -> String {
        std::fs::read_to_string(self.shared.directory.path().join("network.log")).unwrap_or_default()
    }

    /// What has become of the containers of a Pod, a line for each step, in order.
    pub fn history(&self, namespace: &str, pod: &str) -> Vec<String> {
        let file = self.shared.directory.path().join(format!("{namespace}_{pod}")).join(container::HISTORY);
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What a container has written, over all its runs.
    pub fn log(&self, namespace: &str, pod: &str, container: &str) -> String {
        let file = self.shared.directory.path().join(format!("{namespace}_{pod}/{container}.log"));
        std::fs::read_to_string(file).unwrap_or_default()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Says that there is a node, and that it is ready.
async fn register(client: &Client, node: &str, zone: &str) {
    let object: Node = serde_json::from_value(json!({
        "metadata": {"name": node, "labels": {
            "topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": node,
            "kubernetes.io/os": "linux",
        }},
    }))
    .expect("a Node");
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&PostParams::default(), &object).await.expect("the node is registered");
    // Of the same release as the API server.
    let version = client.apiserver_version().await.expect("the API server says its version").git_version;
    let ready = json!({"status": {
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        "nodeInfo": {"kubeletVersion": version},
    }});
    nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(ready)).await.expect("the node is ready");
}

/// Brings Pods that are on no node to this one, as a scheduler would.
async fn place(shared: Arc<Shared>) {
    let pods: Api<Pod> = Api::all(shared.client.clone());
    let mut events = watcher(pods, watcher::Config::default().fields("spec.nodeName=")).boxed();
    loop {
        let pod = match events.try_next().await {
            Ok(Some(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => pod,
            Ok(Some(_)) => continue,
            Ok(None) => return,
            Err(_) => {
                tokio::time::sleep(TICK).await;
                continue;
            }
        };
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": shared.node},
        });
        let api: Api<Pod> = Api::namespaced(shared.client.clone(), &namespace);
        // It may be gone by now.
        let _: Result<Value, _> =
            api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
    }
}

/// One task for each Pod, which hears whether the Pod is to end.
async fn follow(shared: Arc<Shared>) {
    let pods: Api<Pod> = Api::all(shared.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", shared.node));
    let mut events = watcher(pods, config).boxed();
    let mut known: BTreeMap<String, watch::Sender<Option<i64>>> = BTreeMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            // The API server is away; the watch goes on when it is there again.
            Err(_) => {
                tokio::time::sleep(TICK).await;
                continue;
            }
        };
        let pod = match event {
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => pod,
            // What is deleted at once ends at once.
            watcher::Event::Delete(pod) => {
                if let Some(end) = known.remove(&pod.uid().unwrap_or_default()) {
                    let _ = end.send(Some(0));
                }
                continue;
            }
            watcher::Event::Init | watcher::Event::InitDone => continue,
        };
        let grace = pod
            .metadata
            .deletion_timestamp
            .as_ref()
            .map(|_| pod.metadata.deletion_grace_period_seconds.unwrap_or(30));
        let uid = pod.uid().unwrap_or_default();
        match known.get(&uid) {
            Some(end) => drop(end.send_if_modified(|end| {
                let changed = *end != grace;
                *end = grace;
                changed
            })),
            None => {
                let (end, ends) = watch::channel(grace);
                known.insert(uid, end);
                tasks.spawn(Life { shared: shared.clone(), pod, ends }.live());
            }
        }
        while tasks.try_join_next().is_some() {}
    }
}

/// The life of one Pod.
struct Life {
    shared: Arc<Shared>,
    pod: Pod,
    ends: watch::Receiver<Option<i64>>,
}

impl Life {
    async fn live(self) {
        let (namespace, name) = (self.pod.namespace().unwrap_or_default(), self.pod.name_any());
        let key = (namespace.clone(), name.clone());
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &namespace);
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let is_over = tokio::select! {
            () = container::bound(&self.shared.client, &self.pod) => false,
            () = to_end(self.ends.clone()) => true,
        };
        if is_over {
            let _ = api.delete(&name, &now).await;
            return;
        }
        let files = self.shared.network.as_ref().and_then(|network| network.node.clone());
        let node = files.as_ref().filter(|_| container::is_in_node(&self.pod));
        let host = match node {
            Some(node) => node.host.clone(),
            None => {
                let (net, short) = (self.shared.net.clone(), format!("p{}", fastrand::u32(..)));
                tokio::task::spawn_blocking(move || net.host(&short)).await.expect("a host can be made")
            }
        };
        self.shared.hosts.lock().insert(key.clone(), host.clone());
        if let Some(names) = self.shared.names.filter(|_| node.is_none()) {
            host.resolv_conf(&format!(
                "nameserver {names}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
            ));
        }
        let directory = self.shared.directory.path();
        let surroundings =
            Surroundings::of(&self.shared.client, &self.pod, &host, directory, files.as_ref()).await;
        let attached = self.shared.network.is_some() && !surroundings.in_node;
        let mut pod = Contents::of(&self.pod, surroundings);
        pod.say(&api).await;
        let is_over = tokio::select! {
            () = async {
                if attached {
                    self.attach(&host).await;
                }
                pod.work(&api, &|container, words| self.program(container, words)).await;
            } => true,
            () = to_end(self.ends.clone()) => false,
        };
        let grace = self.ends.borrow().unwrap_or(30);
        if !is_over {
            pod.not_ready();
            pod.say(&api).await;
        }
        pod.end(Duration::from_secs(u64::try_from(grace).unwrap_or(0))).await;
        pod.say(&api).await;
        if is_over {
            to_end(self.ends.clone()).await;
        }
        if attached {
            let _ = self.plugins("DEL", &host).await;
        }
        self.shared.hosts.lock().remove(&key);
        let _ = api.delete(&name, &now).await;
        drop(host);
    }

    /// What a container's image makes of words.
    fn program(&self, container: &Container, words: &[String]) -> (PathBuf, Vec<String>) {
        let image = container.image.as_deref().unwrap_or_default();
        let program = self.shared.images.get(image);
        program.unwrap_or_else(|| panic!("no program stands for the image {image:?}"))(words)
    }

    /// Has the plugins make its network, as often as it takes.
    async fn attach(&self, host: &Host) {
        while let Err(error) = self.plugins("ADD", host).await {
            let file = File::options()
                .create(true)
                .append(true)
                .open(self.shared.directory.path().join("network.log"));
            let _ = file.and_then(|mut file| writeln!(file, "{} {error}", self.pod.name_any()));
            tokio::time::sleep(TICK * 4).await;
        }
    }

    async fn plugins(&self, command: &'static str, host: &Host) -> Result<Value, Value> {
        let (Some(network), host) = (self.shared.network.clone(), host.clone()) else {
            return Ok(Value::Null);
        };
        let pod = [self.pod.namespace(), self.pod.metadata.name.clone(), self.pod.uid()]
            .map(Option::unwrap_or_default);
        let called = tokio::task::spawn_blocking(move || {
            network.call(command, &Attachment::of(&host, &pod[0], &pod[1], &pod[2]))
        });
        called.await.expect("no plugin ends a node")
    }
}

async fn to_end(mut ends: watch::Receiver<Option<i64>>) {
    let _ = ends.wait_for(Option::is_some).await;
}
