//! What Consul says of one instance, and the instance that it is here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::ConsulSettings;
use crate::instance::{Instance, Port, Protocol, State};
use crate::registry::ORIGIN;
use crate::registry::parts::Said;

/// Our weights are relative to 100, Consul's to 1.
pub(super) const WEIGHT: u32 = 100;
/// The most of Consul's weights is 65,535.
const MOST_WEIGHT: u32 = 65_535;

/// A row of `/v1/health/service/NAME`; what is not here does not concern us.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    datacenter: String,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    locality: Option<Locality>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    service: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: u16,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    weights: Option<Weights>,
    #[serde(default)]
    locality: Option<Locality>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Locality {
    region: String,
    zone: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(rename = "CheckID", default)]
    id: String,
    status: String,
}

/// A row of an answer, as far as it can be read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Row {
    Entry(Box<Entry>),
    /// Whose it is, if it says so, and why it cannot be read.
    Unreadable(Option<String>, String),
}

impl Row {
    pub(super) fn of(value: Value) -> Self {
        let text = |part: &str, field: &str| value.get(part)?.get(field)?.as_str().map(str::to_owned);
        let (id, node) = (text("Service", "ID"), text("Node", "Node"));
        let id =
            id.zip(node).map(|(id, node)| id_of(&id, &node, &text("Node", "Datacenter").unwrap_or_default()));
        match serde_json::from_value::<Entry>(value) {
            Ok(entry) => Self::Entry(Box::new(entry)),
            Err(error) => {
                let whose = id.as_deref().unwrap_or("of no known id");
                let why = format!("instance \"{whose}\" cannot be read: {error}");
                Self::Unreadable(id, why)
            }
        }
    }

    /// `origin` is who we are: what we wrote is nobody else.
    pub(super) fn read(&self, settings: &ConsulSettings, origin: &str) -> Said {
        match self {
            Self::Entry(entry) if entry.is_of_the_mesh() || entry.is_by(origin) => Said::Nobody,
            Self::Entry(entry) => match entry.instance(settings) {
                Ok(instance) => Said::Instance(entry.id(), Arc::new(instance)),
                Err(why) => Said::Wrong(Some(entry.id()), why),
            },
            Self::Unreadable(id, why) => Said::Wrong(id.clone(), why.clone()),
        }
    }
}

/// Nodes are a datacenter's own, and ids a node's.
fn id_of(id: &str, node: &str, datacenter: &str) -> String {
    let dot = if datacenter.is_empty() { "" } else { "." };
    format!("{id}@{node}{dot}{datacenter}").replace('/', "_")
}

impl Entry {
    fn id(&self) -> String {
        id_of(&self.service.id, &self.node.node, &self.node.datacenter)
    }

    /// A proxy or a gateway of Consul's own mesh: nobody calls it as a service.
    pub(super) fn is_of_the_mesh(&self) -> bool {
        !self.service.kind.is_empty()
    }

    fn is_by(&self, origin: &str) -> bool {
        self.service.meta.as_ref().and_then(|meta| meta.get(ORIGIN)).is_some_and(|by| by == origin)
    }

    /// As it is here.
    ///
    /// # Errors
    /// Why it cannot be an instance.
    pub(super) fn instance(&self, settings: &ConsulSettings) -> Result<Instance, String> {
        let Self { node, service, .. } = self;
        let meta = service.meta.clone().unwrap_or_default();
        let said = |key: &str| meta.get(key).cloned();
        let address = if service.address.is_empty() { &node.address } else { &service.address };
        let address: IpAddr = address.parse().map_err(|_| {
            format!(
                "instance \"{}\": \"{address}\" is no IP address; a ServiceEntry reaches names",
                self.id()
            )
        })?;
        let (state, weight) = self.health();
        let place = |of: fn(&Locality) -> &String, key: &str| {
            let mut local = [&service.locality, &node.locality].into_iter().flatten().map(of);
            let local = local.find(|text| !text.is_empty()).cloned();
            local.or_else(|| said(key)).or_else(|| node.meta.as_ref()?.get(key).cloned()).unwrap_or_default()
        };
        let name = label(&service.service);
        let port = |number| Port {
            number,
            name: String::new(),
            protocol: self.protocol(&meta),
            aliases: Vec::new(),
            upgrades: Vec::new(),
        };
        let (region, zone) = (place(|local| &local.region, "region"), place(|local| &local.zone, "zone"));
        let region = if region.is_empty() { node.datacenter.clone() } else { region };
        let sidecar = match said("sidecar").as_deref() {
            Some("true") => true,
            Some("false") => false,
            _ => settings.sidecar,
        };
        let instance = Instance {
            id: self.id(),
            service: name.clone(),
            namespace: settings.namespace.clone(),
            addresses: vec![address],
            network: String::new(),
            ports: (service.port > 0).then(|| port(service.port)).into_iter().collect(),
            labels: meta.clone().into(),
            metadata: BTreeMap::from([("consul-node".into(), node.node.clone())]),
            tags: service.tags.clone().unwrap_or_default(),
            version: said("version"),
            weight,
            zone,
            region,
            service_account: said("serviceAccount").unwrap_or(name),
            state,
            sidecar,
            ttl_seconds: None,
            word: Default::default(),
            services: None,
        };
        let instance = instance.normalise();
        instance.validate()?;
        Ok(instance)
    }

    /// The worst check decides. Without any it is well, as Consul has it.
    fn health(&self) -> (State, u32) {
        let checks = || self.checks.iter().flatten();
        let weights = self.service.weights.unwrap_or(Weights { passing: 1, warning: 1 });
        let any = |status: &str| checks().any(|check| check.status == status);
        let maintenance =
            |check: &Check| check.id == "_node_maintenance" || check.id.starts_with("_service_maintenance");
        let weight = if any("warning") { weights.warning } else { weights.passing };
        let state = if checks().any(maintenance) {
            State::Maintenance
        } else if weight == 0
            || checks().any(|check| !["passing", "warning"].contains(&check.status.as_str()))
        {
            State::Unhealthy
        } else {
            State::Running
        };
        (state, weight.clamp(1, MOST_WEIGHT) * WEIGHT)
    }

    /// By the metadata, else by a tag, else found out per connection.
    fn protocol(&self, meta: &BTreeMap<String, String>) -> Protocol {
        let named = |name: &str| match name {
            "http" => Some(Protocol::Http),
            "http2" => Some(Protocol::Http2),
            "grpc" => Some(Protocol::Grpc),
            "tls" => Some(Protocol::Tls),
            "tcp" => Some(Protocol::Tcp),
            _ => None,
        };
        let tags = self.service.tags.iter().flatten();
        let said = meta.get("protocol").and_then(|name| named(name));
        said.or_else(|| tags.filter_map(|tag| named(tag)).next()).unwrap_or_default()
    }
}

/// A name as services have them here.
fn label(name: &str) -> String {
    let of = |c: char| if matches!(c, '_' | '.' | ' ') { '-' } else { c.to_ascii_lowercase() };
    name.chars().map(of).collect()
}
