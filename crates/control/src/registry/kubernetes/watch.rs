//! The watches of a cluster: one for each kind that it knows, with what the mesh needs of each object.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::{self as core, Node};
use k8s_openapi::api::discovery::v1::{EndpointConditions, EndpointSlice};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use outrigger_rules::{Finding, ParseOptions};
use serde_json::Value;

use super::cluster::{NODE, Named, POD, SERVICE, SLICE, Thing, UNNAMED};
use super::pod::Pod;
use super::read::{RULES, read, resource};
use crate::canonical;
use crate::instance::{Instance, Port, Protocol, State};
use crate::pace::{Pace, paced};

/// Seconds after which the API server ends a watch, which then goes on with the next.
const LIFE: u32 = 60;
/// Before a watch that failed is tried again: at first, and at most; up to half of it more by chance.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Of objects in one answer of a listing.
const PAGE: u32 = 500;
/// Pods that have not ended: those of Jobs that have stay there for long, by the thousand. One that ends the API server tells as deleted.
const NOT_ENDED: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// Endpoints that are written down by hand: those of Pods we know better.
const BY_HAND: &str = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io";
/// No client is in it: what is at an address that clients call themselves no slice says, only what its Service has.
const BY_HAND_NETWORK: &str = "endpointslice";
const OF_SERVICE: &str = "kubernetes.io/service-name";
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUB_ZONE: &str = "topology.istio.io/subzone";
/// An object, what it means, what is wrong with it, and what of it has no effect, if nobody else says so.
pub(super) type Seen = (Named, Thing, Option<String>, Vec<String>);
/// What a watch says.
pub(super) type News = Result<watcher::Event<Seen>, Failed>;
pub(super) type Watch = BoxStream<'static, News>;

/// A watch that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) why: String,
    /// It asks from a place that the API server knows no longer, and would go on to.
    pub(super) is_too_old: bool,
}

impl From<watcher::Error> for Failed {
    fn from(error: watcher::Error) -> Self {
        // Said by a watch that runs, it has the client list anew itself.
        let is_too_old = matches!(
            &error,
            watcher::Error::WatchStartFailed(kube::Error::Api(status))
            | watcher::Error::WatchFailed(kube::Error::Api(status)) if status.code == 410
        );
        Self { why: error.to_string(), is_too_old }
    }
}

/// The kinds of a cluster.
pub(super) struct Kinds {
    client: Client,
    options: ParseOptions,
    /// With the version that the cluster has of each.
    watched: HashMap<&'static str, &'static str>,
}

impl Kinds {
    pub(super) fn new(client: Client, options: ParseOptions) -> Self {
        Self { client, options, watched: HashMap::new() }
    }

    /// All that could be watched.
    pub(super) fn all() -> impl Iterator<Item = &'static str> {
        RULES.iter().map(|known| known.0).chain([POD, NODE, SLICE])
    }

    /// Whether who serves what hangs on it.
    pub(super) fn is_core(kind: &str) -> bool {
        [POD, NODE, SLICE, SERVICE].contains(&kind)
    }

    /// Watches of what the cluster knows and nobody watches yet.
    ///
    /// # Errors
    /// When the API server does not say what it knows.
    pub(super) async fn discover(&mut self) -> Result<Vec<(&'static str, Watch)>, String> {
        let mut new = Vec::new();
        let mut known: BTreeMap<String, HashSet<String>> = BTreeMap::new();
        for (kind, group, versions, plural) in RULES {
            if self.watched.contains_key(kind) {
                continue;
            }
            for version in versions {
                let whole =
                    if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") };
                if !group.is_empty() && !known.contains_key(&whole) {
                    known.insert(whole.clone(), self.resources(&whole).await?);
                }
                if group.is_empty() || known.get(&whole).is_some_and(|names| names.contains(plural)) {
                    new.push((kind, *version));
                    break;
                }
            }
        }
        new.extend(
            [POD, NODE, SLICE].map(|kind| (kind, "v1")).into_iter().filter(|(kind, _)| !self.watches(kind)),
        );
        self.watched.extend(new.iter().copied());
        Ok(new.into_iter().map(|(kind, _)| (kind, self.watch(kind))).collect())
    }

    /// Whether a kind is watched.
    pub(super) fn watches(&self, kind: &str) -> bool {
        self.watched.contains_key(kind)
    }

    /// It is watched no longer, until it is discovered again.
    pub(super) fn forget(&mut self, kind: &str) {
        self.watched.remove(kind);
    }

    /// Whether a CustomResourceDefinition makes it known to a cluster.
    pub(super) fn is_defined_by_users(&self, kind: &str) -> bool {
        RULES.iter().any(|(known, group, ..)| *known == kind && !group.is_empty())
    }

    /// Whether the API server says by name that the definition of a kind is not there. No other answer, and none, says so.
    pub(super) async fn is_gone(&self, kind: &str) -> bool {
        let Some((_, group, _, plural)) = RULES.iter().find(|(known, ..)| *known == kind) else {
            return false;
        };
        let name = format!("{plural}.{group}");
        let definitions = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let definitions = ApiResource::from_gvk(&definitions);
        let definitions: Api<DynamicObject> = Api::all_with(self.client.clone(), &definitions);
        match tokio::time::timeout(super::PATIENCE, definitions.get_metadata(&name)).await {
            Ok(Err(kube::Error::Api(status))) => {
                status.code == 404 && status.details.as_ref().is_some_and(|details| details.name == name)
            }
            _ => false,
        }
    }

    /// A watch that begins by listing all.
    pub(super) fn watch(&self, kind: &'static str) -> Watch {
        match kind {
            POD => self.pods(),
            NODE => self.nodes(),
            SLICE => self.slices(),
            kind => self.rules(kind),
        }
    }

    /// What there is of a group and version, by its plural; nothing where there is no such group.
    async fn resources(&self, version: &str) -> Result<HashSet<String>, String> {
        match self.client.list_api_group_resources(version).await {
            Ok(list) => Ok(list.resources.into_iter().map(|resource| resource.name).collect()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(HashSet::new()),
            Err(error) => Err(format!("the API server does not say what it knows of {version}: {error}")),
        }
    }

    fn pods(&self) -> Watch {
        let of = |pod: core::Pod| {
            let named = named(pod.metadata.namespace.clone(), pod.metadata.name.clone());
            (named, Thing::Pod(Pod::of(&pod).map(Box::new)), None, Vec::new())
        };
        said(watcher(Api::<core::Pod>::all(self.client.clone()), config().fields(NOT_ENDED)), of)
    }

    fn nodes(&self) -> Watch {
        // Not metadata alone: that such a watch is too old an API server says in words that the client cannot read.
        let of = |node: Node| {
            let label = |key: &str| node.labels().get(key).cloned().unwrap_or_default();
            let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
            // No sidecar of ours runs on others; and what stands for a service of a cloud says the version of its own program, years
            // old or none.
            let info = info.filter(|info| info.operating_system != "windows");
            let is_virtual = label("type") == "virtual-kubelet";
            let kubelet =
                info.map(|info| info.kubelet_version.as_str()).filter(|said| !said.contains("-vk-"));
            let release = kubelet.filter(|_| !is_virtual).and_then(|said| said.parse().ok());
            let place = Thing::Node([REGION, ZONE, SUB_ZONE].map(label), release);
            (named(None, node.metadata.name.clone()), place, None, Vec::new())
        };
        said(watcher(Api::<Node>::all(self.client.clone()), config()), of)
    }

    fn slices(&self) -> Watch {
        let slices = ApiResource::erase::<EndpointSlice>(&());
        let slices = Api::<DynamicObject>::all_with(self.client.clone(), &slices);
        said(watcher(slices, config().labels(BY_HAND)), slice)
    }

    fn rules(&self, kind: &'static str) -> Watch {
        let known = RULES.iter().find(|(known, ..)| *known == kind).unwrap_or(&RULES[0]);
        let resource = resource(known, self.watched.get(kind).unwrap_or(&"v1"));
        let options = self.options.clone();
        let objects = watcher(Api::<DynamicObject>::all_with(self.client.clone(), &resource), config());
        let types = kube::api::TypeMeta { api_version: resource.api_version, kind: resource.kind };
        said(objects, move |object| rule(DynamicObject { types: Some(types.clone()), ..object }, &options))
    }
}

fn config() -> watcher::Config {
    watcher::Config::default().timeout(LIFE).page_size(PAGE)
}

fn named(namespace: Option<String>, name: Option<String>) -> Named {
    (namespace.unwrap_or_default(), name.unwrap_or_default())
}

/// What a watch says, read.
fn said<K: Send + 'static>(
    watch: impl futures_util::Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
    read: impl Fn(K) -> Seen + Send + 'static,
) -> Watch {
    let watch = paced(watch, Pace::new(PAUSE)).map(move |event| {
        let event = event.map(|event| match event {
            watcher::Event::Apply(object) => watcher::Event::Apply(read(object)),
            watcher::Event::Delete(object) => watcher::Event::Delete(read(object)),
            watcher::Event::InitApply(object) => watcher::Event::InitApply(read(object)),
            watcher::Event::Init => watcher::Event::Init,
            watcher::Event::InitDone => watcher::Event::InitDone,
        });
        event.map_err(Failed::from)
    });
    watch.boxed()
}

/// An object as if it had been applied.
fn rule(object: DynamicObject, options: &ParseOptions) -> Seen {
    let named = named(object.metadata.namespace.clone(), object.metadata.name.clone());
    // What is written as a rule is told at admission, and in its status.
    let is_told = object.types.as_ref().is_none_or(|types| types.kind != SERVICE);
    let kind = object.types.as_ref().map(|types| types.kind.as_str());
    let is_theirs = kind.is_some_and(|kind| outrigger_rules::elsewhere(kind, &object.data["spec"]).is_some());
    let mut parsed = read(object, options);
    let wrong = parsed.findings.iter().find(|finding| finding.is_error());
    let flaw = wrong.map(|finding| finding.message.clone());
    let idle = parsed.findings.iter().filter(|_| !is_told).map(Finding::of_field).collect();
    let object = parsed.objects.pop().filter(|_| flaw.is_none());
    // What cannot be read holds as it was; what is not for sidecars any more does not, also where it can be read.
    let thing = if object.is_none() && is_theirs { Thing::Theirs } else { Thing::Rule(object.map(Box::new)) };
    (named, thing, flaw, idle)
}

/// A slice. Hints of nodes are newer than the API that is read here.
fn slice(object: DynamicObject) -> Seen {
    let named = named(object.metadata.namespace.clone(), object.metadata.name.clone());
    let nodes = |endpoint: &Value| -> Vec<String> {
        let all = endpoint["hints"]["forNodes"].as_array().into_iter().flatten();
        all.filter_map(|node| node["name"].as_str().map(str::to_owned)).collect()
    };
    let hinted = object.data["endpoints"].as_array().into_iter().flatten();
    let hinted: Vec<(Option<IpAddr>, Vec<String>)> = hinted
        .map(|endpoint| (endpoint["addresses"][0].as_str().and_then(|ip| ip.parse().ok()), nodes(endpoint)))
        .filter(|(_, nodes)| !nodes.is_empty())
        .collect();
    let object = DynamicObject { types: None, ..object };
    let read = serde_json::to_value(object).and_then(serde_json::from_value::<EndpointSlice>);
    let slice = match read {
        Ok(slice) => slice,
        Err(error) => return (named, Thing::Slice(Vec::new()), Some(error.to_string()), Vec::new()),
    };
    let mut instances = written_down(&named, &slice);
    for instance in &mut instances {
        let own = instance.addresses.first().copied();
        if let Some((_, nodes)) = hinted.iter().find(|(ip, _)| *ip == own) {
            instance
                .metadata
                .insert(format!("{}{}", canonical::FOR_NODES, instance.service), nodes.join(","));
        }
    }
    (named, Thing::Slice(instances), None, Vec::new())
}

/// Endpoints as instances of their service, without sidecars.
fn written_down(named: &Named, slice: &EndpointSlice) -> Vec<Instance> {
    let labels = slice.metadata.labels.clone().unwrap_or_default();
    let Some(service) = labels.get(OF_SERVICE) else { return Vec::new() };
    let mut ports: Vec<Port> = Vec::new();
    for port in slice.ports.iter().flatten() {
        let number = port.port.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
        let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        if let Some(number) =
            number.filter(|number| tcp && !ports.iter().any(|other| other.number == *number))
        {
            let name =
                port.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| UNNAMED.to_owned());
            ports.push(Port {
                number,
                name,
                protocol: Protocol::Auto,
                aliases: Vec::new(),
                upgrades: Vec::new(),
            });
        }
    }
    let mut all = Vec::new();
    for endpoint in &slice.endpoints {
        let Some(address) = endpoint.addresses.first().and_then(|address| address.parse().ok()) else {
            continue;
        };
        let said = endpoint.conditions.as_ref();
        let said = |of: fn(&EndpointConditions) -> Option<bool>| said.and_then(of);
        // As kube-proxy: who is ready takes requests, though it ends, and who ends and serves still takes them where nobody else is.
        let ends = said(|said| said.terminating).unwrap_or(false);
        let state = match said(|said| said.ready) {
            Some(true) => State::Running,
            None if !ends => State::Running,
            _ if ends && said(|said| said.serving).unwrap_or(true) => State::Stopping,
            _ => State::Unhealthy,
        };
        let node = endpoint.node_name.clone().map(|node| (canonical::NODE.to_owned(), node));
        let zones = endpoint.hints.as_ref().and_then(|said| said.for_zones.as_ref()).into_iter().flatten();
        let zones: Vec<&str> = zones.map(|zone| zone.name.as_str()).collect();
        let zones =
            (!zones.is_empty()).then(|| (format!("{}{service}", canonical::FOR_ZONES), zones.join(",")));
        all.push(Instance {
            id: format!("{}:{address}", super::cluster::id(named)),
            service: service.clone(),
            services: Some(vec![service.clone()]),
            namespace: named.0.clone(),
            addresses: vec![address],
            network: BY_HAND_NETWORK.to_owned(),
            ports: ports.clone(),
            labels: labels.clone().into(),
            metadata: node.into_iter().chain(zones).collect(),
            tags: Vec::new(),
            version: None,
            weight: 100,
            zone: endpoint.zone.clone().unwrap_or_default(),
            region: String::new(),
            service_account: "default".to_owned(),
            state,
            sidecar: false,
            ttl_seconds: None,
            word: Default::default(),
        });
    }
    all
}

#[cfg(test)]
mod tests;
