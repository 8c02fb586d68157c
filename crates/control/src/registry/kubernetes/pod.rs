//! What of a Pod the mesh needs to know, and nothing else of it: a cluster has tens of thousands.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{self as core, Container};

use super::roots;
use crate::canonical::{self, INIT, SIDECAR, VALIDATION};
use crate::instance::State;

/// Istio's sidecar, which speaks the mesh's mTLS where it has our roots.
const ISTIO: &str = "istio-proxy";
const SIDECARS: [&str; 2] = [SIDECAR, ISTIO];
/// Where a Pod says where it is, whatever its node says: `region.zone.sub-zone`.
const LOCALITY: &str = "istio-locality";

/// A Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) service_account: String,
    pub(super) node: String,
    /// Which of all Pods of its name.
    pub(super) uid: String,
    pub(super) state: State,
    /// TCP ports of its containers, with their names: one of several names is there as often.
    pub(super) ports: Vec<(u16, String)>,
    pub(super) sidecar: bool,
    /// And that is Istio's.
    pub(super) is_istio: bool,
    /// Which ports all come to it, where its rules are known.
    pub(super) inbound: Option<String>,
    /// Which roots it was given with it.
    pub(super) roots: Option<String>,
    /// Its addresses are its node's.
    pub(super) on_host: bool,
    /// As metrics call the service that it belongs to, and what made it.
    pub(super) name: String,
    pub(super) workload: String,
    pub(super) version: Option<String>,
}

impl Pod {
    /// One that has an address and has not ended.
    pub(super) fn of(pod: &core::Pod) -> Option<Self> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        let phase = status.phase.as_deref().unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            return None;
        }
        let ips = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        let mut addresses: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
        if addresses.is_empty() {
            addresses.extend(status.pod_ip.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()));
        }
        if addresses.is_empty() {
            return None;
        }
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let conditions = status.conditions.iter().flatten();
        let ready =
            conditions.filter(|condition| condition.type_ == "Ready").any(|ready| ready.status == "True");
        let state = match (pod.metadata.deletion_timestamp.is_some(), ready, phase) {
            (true, true, _) => State::Stopping,
            // It answers nobody any more, also where nobody else is left.
            (true, false, _) => State::Unhealthy,
            (false, true, _) => State::Running,
            (false, false, "Running") => State::Unhealthy,
            _ => State::Starting,
        };
        let on_host = spec.host_network.unwrap_or(false);
        // As a Service looks for a named port: an init container that ends serves nobody.
        let goes_on = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
        let beside = spec.init_containers.iter().flatten().filter(goes_on);
        let all = spec.containers.iter().chain(beside);
        let has_sidecar = all.clone().any(|container| SIDECARS.contains(&container.name.as_str()));
        let is_ours = all.clone().any(|container| container.name == SIDECAR);
        let of = |key: &str| labels.get(key).map(String::as_str);
        Some(Self {
            addresses,
            service_account: spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
            node: spec.node_name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            state,
            ports: ports(all.clone()),
            // A Pod in its node's network shares that with everybody there: nothing is brought to a sidecar.
            sidecar: has_sidecar && !on_host,
            is_istio: has_sidecar && !is_ours,
            inbound: inbound(spec).filter(|_| has_sidecar && !on_host),
            roots: roots::of(all.clone()),
            on_host,
            name: canonical::plain(canonical::name(of).unwrap_or_else(|| owner(pod))),
            workload: owner(pod).to_owned(),
            version: canonical::version(of).map(str::to_owned),
            labels,
        })
    }

    /// Its region, zone and sub-zone, where it says so itself.
    pub(super) fn place(&self) -> Option<[String; 3]> {
        let said = self.labels.get(LOCALITY).filter(|said| !said.is_empty())?;
        let mut parts = said.splitn(3, '.').map(str::to_owned);
        Some(std::array::from_fn(|_| parts.next().unwrap_or_default()))
    }
}

fn ports<'c>(containers: impl Iterator<Item = &'c Container>) -> Vec<(u16, String)> {
    let sidecars = |container: &&Container| !SIDECARS.contains(&container.name.as_str());
    let ports = containers.filter(sidecars).flat_map(|container| container.ports.iter().flatten());
    let tcp = ports.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
    let mut all: Vec<(u16, String)> = Vec::new();
    for port in tcp {
        let Ok(number) = u16::try_from(port.container_port) else { continue };
        let port = (number, port.name.clone().unwrap_or_default());
        if number > 0 && !all.contains(&port) {
            all.push(port);
        }
    }
    all
}

/// What the container says that makes the rules of interception, or looks whether they are there.
fn inbound(spec: &core::PodSpec) -> Option<String> {
    let mut all = spec.init_containers.iter().flatten();
    let rules = all.find(|container| [INIT, VALIDATION].contains(&container.name.as_str()))?;
    Some(crate::instance::inbound::of_options(rules.args.iter().flatten().map(String::as_str)))
}

/// What made it, or itself.
fn owner(pod: &core::Pod) -> &str {
    let owners = pod.metadata.owner_references.iter().flatten();
    let labels = pod.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    match owners.into_iter().find(|owner| owner.controller == Some(true)) {
        Some(owner) => canonical::maker(&owner.kind, &owner.name, label),
        None => match pod.metadata.generate_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => name.trim_end_matches('-'),
            None => pod.metadata.name.as_deref().unwrap_or_default(),
        },
    }
}

#[cfg(test)]
mod tests {
    use outrigger_identity::{Authority, AuthorityOptions};
    use serde_json::json;

    use super::*;

    fn of(change: impl FnOnce(&mut serde_json::Value)) -> Option<Pod> {
        let mut pod = json!({
            "metadata": {"name": "reviews-5d8-x2x", "namespace": "shop", "labels": {"pod-template-hash": "5d8"}, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "reviews-5d8", "uid": "1", "controller": true},
            ]},
            "spec": {"serviceAccountName": "reviews", "nodeName": "n1", "containers": [
                {"name": "app", "ports": [{"containerPort": 9080, "name": "http"}, {"containerPort": 53, "protocol": "UDP"}]},
                {"name": "outrigger-proxy", "ports": [{"containerPort": 15090}]},
            ]},
            "status": {"phase": "Running", "podIP": "10.1.0.7", "podIPs": [{"ip": "10.1.0.7"}, {"ip": "fd00::7"}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        });
        change(&mut pod);
        Pod::of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_is_known_by_its_addresses_its_account_and_what_made_it() {
        let pod = of(|_| {}).unwrap();
        assert_eq!(pod.addresses.len(), 2);
        assert_eq!(
            (pod.service_account.as_str(), pod.name.as_str(), pod.state),
            ("reviews", "reviews", State::Running)
        );
        assert_eq!(pod.ports, [(9080, "http".to_owned())]);
        assert!(pod.sidecar);
        let named =
            of(|pod| pod["metadata"]["labels"] = json!({"app": "My_App.x", "version": "v2"})).unwrap();
        assert_eq!((named.name.as_str(), named.version.as_deref()), ("my-app-x", Some("v2")));
        let native = of(|pod| {
            pod["spec"]["initContainers"] = json!([{"name": "outrigger-proxy", "restartPolicy": "Always"}]);
            pod["spec"]["containers"] = json!([{"name": "app"}]);
        });
        assert!(native.unwrap().sidecar);
        assert_eq!(named.inbound, None, "nobody says what brings connections to it");
        let brought = of(|pod| {
            pod["spec"]["initContainers"] = json!([{"name": "outrigger-validation", "args": ["intercept", "check", "--exclude-inbound-ports=7000"]}]);
        });
        assert_eq!(brought.unwrap().inbound.as_deref(), Some("*!7000"));
        assert!(!of(|pod| pod["spec"]["hostNetwork"] = json!(true)).unwrap().sidecar);
    }

    #[test]
    fn the_roots_that_a_pod_was_given_are_known_by_their_fingerprints() {
        let authority = |_| Authority::in_memory(AuthorityOptions::new("cluster.local")).unwrap();
        let [one, other] = [1, 2].map(authority);
        let pem = |authority: &Authority| authority.bundle().to_pem("cluster.local");
        let given = |roots: &str| {
            let bootstrap = json!({"join": {"roots": roots}}).to_string();
            let sidecar = json!([{"name": "outrigger-proxy", "env": [{"name": "A"}, {"name": "OUTRIGGER_BOOTSTRAP", "value": bootstrap}]}]);
            of(|pod| pod["spec"]["containers"] = sidecar).unwrap().roots
        };
        let short = |authority: &Authority| authority.fingerprints()[0][..16].to_owned();
        for _ in 0..2 {
            assert_eq!(given(&pem(&one)), Some(short(&one)));
            let mut both = [short(&one), short(&other)];
            both.sort();
            let found = given(&(pem(&one) + &pem(&other))).unwrap();
            let mut found: Vec<&str> = found.split(',').collect();
            found.sort_unstable();
            assert_eq!(found, both);
            assert_eq!((given("nonsense"), given("")), (None, None));
        }
        assert_eq!(of(|_| {}).unwrap().roots, None);
    }

    #[test]
    fn who_is_not_ready_takes_nothing_and_who_has_ended_is_not_there() {
        let state = |status: serde_json::Value| of(|pod| pod["status"] = status).map(|pod| pod.state);
        let ip = "10.1.0.7";
        assert_eq!(state(json!({"phase": "Pending", "podIP": ip})), Some(State::Starting));
        assert_eq!(state(json!({"phase": "Running", "podIP": ip})), Some(State::Unhealthy));
        assert_eq!(state(json!({"phase": "Pending"})), None);
        assert_eq!(state(json!({"phase": "Succeeded", "podIP": ip})), None);
        let ending = of(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-31T10:00:00Z"));
        assert_eq!(ending.unwrap().state, State::Stopping);
        let ended = of(|pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-31T10:00:00Z");
            pod["status"]["conditions"][0]["status"] = json!("False");
        });
        assert_eq!(ended.unwrap().state, State::Unhealthy, "which answers nobody, not even as the last one");
    }
}
