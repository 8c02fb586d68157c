//! What a scripted control plane has, and gives to whoever asks for it by delta ADS: the same to a sidecar of ours and to an Envoy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;

use crate::fake_control::{FakeControl, Line, resource, response};

/// Types of which a client that names none wants all.
const WILDCARD: [&str; 2] = [
    "type.googleapis.com/envoy.config.listener.v3.Listener",
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
];

/// Resources by type and name.
#[derive(Default)]
pub struct Shelf {
    resources: BTreeMap<(String, String), Vec<u8>>,
}

/// The resources on their way to whoever connects, and what was refused of them.
pub struct Shelves {
    refused: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Shelf {
    /// Puts a resource of a type, such as `envoy.config.cluster.v3.Cluster`, there.
    pub fn put(&mut self, kind: &str, name: &str, value: Vec<u8>) {
        let url = format!("type.googleapis.com/{kind}");
        let before = self.resources.insert((url, name.to_owned()), value);
        assert!(before.is_none(), "{name} is there twice");
    }

    fn named<'a>(&'a self, url: &'a str, name: Option<&'a str>) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let all = self.resources.iter().filter(move |((kind, _), _)| kind == url);
        all.map(|((_, name), value)| (name.as_str(), value.as_slice()))
            .filter(move |(known, _)| name.is_none_or(|name| name == *known))
    }
}

impl Shelves {
    /// Gives out what is there until this value ends.
    pub fn open(mut control: FakeControl, shelf: Shelf) -> Self {
        let refused = Arc::<Mutex<BTreeMap<String, Vec<String>>>>::default();
        let noted = refused.clone();
        let shelf = Arc::new(shelf);
        let task = tokio::spawn(async move {
            loop {
                let line = control.line().await;
                tokio::spawn(serve(line, shelf.clone(), noted.clone()));
            }
        });
        Self { refused, task }
    }

    /// What a node has refused, as it says it.
    pub fn refused(&self, node: &str) -> Vec<String> {
        self.refused.lock().unwrap().get(node).cloned().unwrap_or_default()
    }
}

impl Drop for Shelves {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(line: Line, shelf: Arc<Shelf>, refused: Arc<Mutex<BTreeMap<String, Vec<String>>>>) {
    let (mut requests, responses) = line.split();
    let (mut node, mut number) = (String::new(), 0);
    let mut known = BTreeSet::new();
    while let Some(Ok(request)) = requests.next().await {
        if let Some(said) = &request.node {
            node.clone_from(&said.id);
        }
        if let Some(detail) = &request.error_detail {
            refused.lock().unwrap().entry(node.clone()).or_default().push(detail.message.clone());
        }
        let first = known.insert(request.type_url.clone());
        let wanted = wanted(&shelf, &request, first);
        if wanted.is_empty() && !(first && WILDCARD.contains(&request.type_url.as_str())) {
            continue;
        }
        number += 1;
        let (given, gone): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, value)| value.is_some());
        let given = given
            .into_iter()
            .map(|(name, value)| resource(&name, &request.type_url, value.unwrap_or_default()))
            .collect();
        let gone: Vec<&str> = gone.iter().map(|(name, _)| name.as_str()).collect();
        let answer = response(&number.to_string(), &request.type_url, given, &gone);
        if responses.send(Ok(answer)).await.is_err() {
            return;
        }
    }
}

/// What a request asks for anew; without a value what is not there.
fn wanted(shelf: &Shelf, request: &DeltaDiscoveryRequest, first: bool) -> Vec<(String, Option<Vec<u8>>)> {
    let url = request.type_url.as_str();
    let mut all = BTreeMap::new();
    let names = &request.resource_names_subscribe;
    let everything =
        names.iter().any(|name| name == "*") || (first && names.is_empty() && WILDCARD.contains(&url));
    if everything {
        all.extend(shelf.named(url, None).map(|(name, value)| (name.to_owned(), Some(value.to_vec()))));
    }
    for name in names.iter().filter(|name| *name != "*") {
        let value = shelf.named(url, Some(name)).next().map(|(_, value)| value.to_vec());
        all.insert(name.clone(), value);
    }
    all.into_iter().collect()
}

/// What the requests of a stream come from, and where its responses go.
pub(crate) type Ends = (
    tonic::Streaming<DeltaDiscoveryRequest>,
    mpsc::Sender<
        Result<envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse, tonic::Status>,
    >,
);
