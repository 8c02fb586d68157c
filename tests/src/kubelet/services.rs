//! Addresses and names of Services, as kube-proxy and a cluster's name server make them: whoever is in the network reaches a ready endpoint by
//! the Service's address, through the gateway of all, and knows that address by name; each Pod of a StatefulSet, too, where it has one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinHandle;

use super::TICK;
use crate::names::NameServer;
use crate::netns::{Host, Net};

/// Until this ends.
pub struct Services {
    names: IpAddr,
    task: JoinHandle<()>,
}

#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
enum Seen {
    Service(watcher::Event<Service>),
    Slice(watcher::Event<EndpointSlice>),
}

/// Namespace and name.
type Named = (String, String);

#[derive(Default)]
struct Known {
    services: BTreeMap<Named, Service>,
    slices: BTreeMap<Named, EndpointSlice>,
    /// Names of single Pods.
    pods: BTreeSet<String>,
    rules: String,
}

impl Services {
    /// Follows them; names are known at an address of this host.
    pub async fn start(client: Client, net: Arc<Net>, host: &Host) -> Self {
        let names = host.v4();
        let started = async move {
            let server = NameServer::start(SocketAddr::new(names, 53)).await;
            Self { names, task: tokio::spawn(follow(client, net, server)) }
        };
        host.run(started).await
    }

    /// Where names are known.
    pub fn names(&self) -> IpAddr {
        self.names
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(client: Client, net: Arc<Net>, names: NameServer) {
    let services =
        watcher(Api::<Service>::all(client.clone()), watcher::Config::default()).map_ok(Seen::Service);
    let slices = watcher(Api::<EndpointSlice>::all(client), watcher::Config::default()).map_ok(Seen::Slice);
    let mut events = stream::select(services.boxed(), slices.boxed());
    let mut known = Known::default();
    while let Some(event) = events.next().await {
        // What is listed anew is not gone meanwhile.
        let begins =
            matches!(event, Ok(Seen::Service(watcher::Event::Init) | Seen::Slice(watcher::Event::Init)));
        match event {
            Ok(Seen::Service(event)) => hear(&mut known.services, event),
            Ok(Seen::Slice(event)) => hear(&mut known.slices, event),
            Err(_) => {
                tokio::time::sleep(TICK).await;
                continue;
            }
        }
        if !begins {
            known.tell(&net, &names).await;
        }
    }
}

fn hear<K: ResourceExt>(all: &mut BTreeMap<Named, K>, event: watcher::Event<K>) {
    let named = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
    match event {
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            drop(all.insert(named(&object), object))
        }
        watcher::Event::Delete(object) => drop(all.remove(&named(&object))),
        watcher::Event::Init => all.clear(),
        watcher::Event::InitDone => {}
    }
}

impl Known {
    async fn tell(&mut self, net: &Arc<Net>, names: &NameServer) {
        for ((namespace, name), service) in &self.services {
            let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()?.parse().ok());
            let name = format!("{name}.{namespace}.svc.cluster.local");
            names.has(
                &name,
                &address.map_or_else(|| self.endpoints_of(service), |address: IpAddr| vec![address]),
            );
        }
        self.tell_pods(names);
        let rules = self.rules();
        if self.rules != rules {
            let (net, new) = (net.clone(), rules.clone());
            let told = tokio::task::spawn_blocking(move || net.route(&new)).await;
            told.expect("the gateway takes rules").expect("the gateway takes these rules");
            self.rules = rules;
        }
    }

    /// A Pod that has a host name and a Service without an address is known by both, ready or not, until it goes.
    fn tell_pods(&mut self, names: &NameServer) {
        let mut pods: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for ((namespace, name), service) in &self.services {
            let slices = self.slices_of(service).flat_map(|slice| &slice.endpoints);
            for endpoint in slices.filter(|_| is_headless(service)) {
                let Some(own) = &endpoint.hostname else { continue };
                let addresses =
                    endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
                pods.entry(format!("{own}.{name}.{namespace}.svc.cluster.local"))
                    .or_default()
                    .extend(addresses);
            }
        }
        self.pods.iter().filter(|gone| !pods.contains_key(*gone)).for_each(|gone| names.lacks(gone));
        pods.iter().for_each(|(pod, addresses)| names.has(pod, addresses));
        self.pods = pods.into_keys().collect();
    }

    fn slices_of(&self, service: &Service) -> impl Iterator<Item = &EndpointSlice> {
        let (namespace, name) = (service.namespace(), service.name_any());
        self.slices.values().filter(move |slice| {
            slice.namespace() == namespace && slice.labels().get("kubernetes.io/service-name") == Some(&name)
        })
    }

    fn endpoints_of(&self, service: &Service) -> Vec<IpAddr> {
        self.slices_of(service).flat_map(ready).collect()
    }

    fn rules(&self) -> String {
        let mut rules = "table ip services\ndelete table ip services\ntable ip services {\n\
                         chain before { type nat hook prerouting priority dstnat;\n"
            .to_owned();
        for service in self.services.values() {
            let spec = service.spec.as_ref();
            let Some(address) = spec.and_then(|spec| spec.cluster_ip.as_deref()).filter(|ip| *ip != "None")
            else {
                continue;
            };
            for port in spec.into_iter().flat_map(|spec| spec.ports.iter().flatten()) {
                let called = port.name.as_deref().unwrap_or_default();
                let mut places: Vec<SocketAddr> = Vec::new();
                for slice in self.slices_of(service) {
                    let mut ports = slice.ports.iter().flatten();
                    let own = ports.find(|own| own.name.as_deref().unwrap_or_default() == called);
                    let number = own.and_then(|own| u16::try_from(own.port?).ok());
                    places.extend(number.into_iter().flat_map(|number| {
                        ready(slice).map(move |address| SocketAddr::new(address, number))
                    }));
                }
                let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
                for (i, place) in places.iter().enumerate() {
                    let share = match places.len() - i {
                        1 => String::new(),
                        left => format!("numgen random mod {left} 0 "),
                    };
                    let _ = writeln!(
                        rules,
                        "ip daddr {address} {protocol} dport {} {share}dnat to {place}",
                        port.port
                    );
                }
            }
        }
        // Answers come back this way: client and endpoint are neighbours.
        rules
            + "}\nchain after { type nat hook postrouting priority srcnat; ct status dnat masquerade; }\n}\n"
    }
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

fn ready(slice: &EndpointSlice) -> impl Iterator<Item = IpAddr> {
    let ready = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
        endpoint.conditions.as_ref().and_then(|said| said.ready).unwrap_or(true)
    };
    slice.endpoints.iter().filter(ready).filter_map(|endpoint| endpoint.addresses.first()?.parse().ok())
}
