//! What is registered: the shape of the management API's instances, filled from the bootstrap file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use outrigger_model::identity::SpiffeId;
use serde::Serialize;

use super::Standing;
use crate::bootstrap::register::{Port, Section};
use crate::bootstrap::{Bootstrap, Node};

/// Our workload as its bootstrap file describes it.
#[derive(Debug, Clone)]
pub struct Own {
    node: Node,
    section: Section,
    namespace: String,
    service_account: String,
    addresses: Vec<IpAddr>,
    incarnation: String,
}

/// Where an instance says in which part of its zone it is.
const SUB_ZONE: &str = "subZone";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Instance<'a> {
    id: &'a str,
    service: &'a str,
    namespace: &'a str,
    addresses: &'a [IpAddr],
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    ports: &'a [Port],
    labels: &'a BTreeMap<String, String>,
    metadata: Cow<'a, BTreeMap<String, String>>,
    tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    weight: u32,
    zone: &'a str,
    region: &'a str,
    service_account: &'a str,
    state: Standing,
    ttl_seconds: u64,
}

impl Own {
    /// `identity` is who the join token makes us.
    pub fn new(bootstrap: &Bootstrap, section: &Section, identity: &SpiffeId) -> Self {
        let node = &bootstrap.node;
        let namespace = identity.namespace().unwrap_or(&node.namespace).to_owned();
        let service_account = identity.service_account().unwrap_or(&node.service_account).to_owned();
        let mut addresses = section.addresses.clone();
        if addresses.is_empty() {
            let bound = bootstrap.inbound.iter().map(|inbound| inbound.bind.ip());
            let bound = bound.filter(|ip| !ip.is_unspecified());
            match node.address {
                Some(address) => addresses.push(address),
                None => bound.for_each(|ip| {
                    if !addresses.contains(&ip) {
                        addresses.push(ip);
                    }
                }),
            }
        }
        let (node, section) = (node.clone(), section.clone());
        let incarnation = uuid::Uuid::new_v4().simple().to_string();
        Self { node, section, namespace, service_account, addresses, incarnation }
    }

    /// The instance.
    pub fn id(&self) -> &str {
        &self.node.id
    }

    /// Which start of the process this is: of two with one id the control plane keeps the newer one.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// Its service.
    pub fn service(&self) -> &str {
        match &self.section.service {
            Some(service) => service,
            None if !self.node.app.is_empty() => &self.node.app,
            None => &self.service_account,
        }
    }

    /// How long it lives without us.
    pub fn ttl(&self) -> Duration {
        self.section.ttl
    }

    /// The registration; `local` is our address where nothing says another.
    pub(super) fn body(&self, state: Standing, local: IpAddr) -> Vec<u8> {
        let (section, node) = (&self.section, &self.node);
        let local = [local.to_canonical()];
        let mut metadata = Cow::Borrowed(&section.metadata);
        if !node.locality.sub_zone.is_empty() && !metadata.contains_key(SUB_ZONE) {
            metadata.to_mut().insert(SUB_ZONE.to_owned(), node.locality.sub_zone.clone());
        }
        let instance = Instance {
            id: &node.id,
            service: self.service(),
            namespace: &self.namespace,
            addresses: if self.addresses.is_empty() { &local } else { &self.addresses },
            network: &section.network,
            ports: &section.ports,
            labels: &section.labels,
            metadata,
            tags: &section.tags,
            version: Some(node.version.as_str()).filter(|version| !version.is_empty()),
            weight: section.weight,
            zone: &node.locality.zone,
            region: &node.locality.region,
            service_account: &self.service_account,
            state,
            ttl_seconds: section.ttl.as_secs(),
        };
        serde_json::to_vec(&instance).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn body(more: &str) -> Value {
        body_of("id: c1, version: v2", more)
    }

    fn body_of(node: &str, more: &str) -> Value {
        let text = format!("node: {{{node}}}\nstate_dir: /s\n{more}\n");
        let bootstrap = Bootstrap::parse(Path::new("b"), &text).unwrap();
        let identity = SpiffeId::workload("cluster.local", "shop", "catalog").unwrap();
        let own = Own::new(&bootstrap, bootstrap.register.as_ref().unwrap(), &identity);
        serde_json::from_slice(&own.body(Standing::Unhealthy, "10.0.0.7".parse().unwrap())).unwrap()
    }

    #[test]
    fn a_place_is_the_nodes_to_the_sub_zone() {
        let node = "id: c1, locality: {region: eu, zone: a, sub_zone: r7}";
        let said = body_of(node, "register: {ports: [{number: 80}]}");
        assert_eq!((&said["region"], &said["zone"]), (&json!("eu"), &json!("a")));
        assert_eq!(said["metadata"], json!({"subZone": "r7"}));
        let said = body_of(node, "register: {ports: [{number: 80}], metadata: {subZone: r8, rack: '7'}}");
        assert_eq!(said["metadata"], json!({"subZone": "r8", "rack": "7"}), "what is written goes first");
    }

    #[test]
    fn what_is_left_out_comes_from_the_token_the_node_and_the_way_to_the_control_plane() {
        let said = body("register: {ports: [{number: 8080, protocol: http}]}");
        assert_eq!(said["addresses"], json!(["10.0.0.7"]));
        assert_eq!((&said["namespace"], &said["service"]), (&json!("shop"), &json!("catalog")));
        assert_eq!((&said["state"], &said["ttlSeconds"]), (&json!("unhealthy"), &json!(30)));
        assert_eq!((&said["version"], &said["serviceAccount"]), (&json!("v2"), &json!("catalog")));
        let inbound = "inbound: [{bind: '127.0.0.5:80', app: '127.0.0.1:80'}, {bind: '127.0.0.5:81', app: '127.0.0.1:81'}]";
        let said = body(&format!("{inbound}\nregister: {{service: shelf, ports: [{{number: 80}}]}}"));
        assert_eq!((&said["addresses"], &said["service"]), (&json!(["127.0.0.5"]), &json!("shelf")));
        let said = body("register: {addresses: ['10.1.1.1', '::5'], ports: [{number: 80}]}");
        assert_eq!(said["addresses"], json!(["10.1.1.1", "::5"]));
        assert_eq!(said["metadata"], json!({}));
    }
}
