//! Instances: what a registry says of one running copy of a service. The same shape in files, in the management API and on disk.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use outrigger_model::endpoint::Locality;
use outrigger_model::identity::{SpiffeError, SpiffeId};
use outrigger_model::resource::is_virtual;
use outrigger_model::route::RouteUpgrade;
use outrigger_rules::catalog::PortProtocol;
use serde::{Deserialize, Serialize};

use crate::canonical;

pub(crate) mod inbound;
mod labels;

pub use labels::Labels;

/// The longest registration, as JSON without spaces: bytes.
pub const MAX_BYTES: usize = 16 << 10;
/// The longest Pod: nobody registers those, and Services may mean hundreds of its ports.
pub(crate) const MAX_OF_POD: usize = 64 << 10;
/// What a cluster's have by themselves: two names, an address and what is between them.
const MAX_ID: usize = 384;
/// Addresses of one instance.
const MAX_ADDRESSES: usize = 16;
/// The largest weight, as of Istio's WorkloadEntry: shares are relative, and callers lay out rings by them.
const MAX_WEIGHT: u32 = 1_000_000;

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Instance {
    /// Unique in the mesh, such as `catalog-v1-1`.
    pub id: String,
    /// The service, such as `catalog`.
    pub service: String,
    /// The services of its namespace that it is an endpoint of, where those are described and say themselves which ports they have, as a
    /// cluster's are. Default: `service` alone, with the instance's ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<String>>,
    /// Its namespace. Default `default`.
    #[serde(default = "default_name")]
    pub namespace: String,
    /// Addresses, the first is the main one (dual stack: one of each family).
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// The network that the addresses belong to; empty is the default one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Ports and what they speak.
    pub ports: Vec<Port>,
    /// For subsets and selectors. `version` is filled from [`Instance::version`] when absent.
    #[serde(default, skip_serializing_if = "is_none")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Labels,
    /// Free text for people and other registries.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Free tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Version of the software.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Share of traffic relative to its siblings, 1 to 1,000,000. Default 100.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Zone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Its SPIFFE id is `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. Default `default`.
    #[serde(default = "default_name")]
    pub service_account: String,
    /// Only `running` takes new requests. Default `running`.
    #[serde(default)]
    pub state: State,
    /// It has a sidecar that speaks the mesh's mTLS. Default true.
    #[serde(default = "yes")]
    pub sidecar: bool,
    /// Seconds after the last heartbeat at which it expires. Absent: it stays until deregistered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
    /// Whose word this is; known to the control plane alone.
    #[serde(skip)]
    pub word: Word,
}

/// Whose word an instance is, its labels first of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// A registry's or an operator's.
    #[default]
    Trusted,
    /// A workload's that may register any service.
    Any,
    /// A workload's; the service that its label `app` names is one that it may register.
    Named,
    /// A workload's.
    Own,
}

impl Word {
    /// Whether whoever selects by these labels has this one: a workload's label must not make it a service that it may not be.
    pub fn may_be(self, selector: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Trusted | Self::Any => true,
            Self::Named => selector.contains_key("app"),
            Self::Own => false,
        }
    }
}

/// A port of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// The number.
    pub number: u16,
    /// A name, such as `http`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Other names of it: a described service may name its target by any of them. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// What it speaks. Default `auto`: detected per connection.
    #[serde(default)]
    pub protocol: Protocol,
    /// Protocols besides `websocket` that a request may switch to, such as `tcp` and `spdy` for `docker exec`; `connect` lets
    /// CONNECT through. Behind a switch no policy looks at requests. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upgrades: Vec<String>,
}

/// What a port speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Detected per connection.
    #[default]
    Auto,
    /// HTTP/1.1 (and HTTP/2 when the client speaks it).
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC.
    Grpc,
    /// TLS of the application's own: told apart by its server name, never opened.
    Tls,
    /// Opaque bytes.
    Tcp,
}

impl Protocol {
    /// Whether it is HTTP, or may turn out to be.
    pub fn is_http(self) -> bool {
        !matches!(self, Self::Tls | Self::Tcp)
    }

    /// As the analyzer of rules knows it.
    pub(crate) fn in_catalog(self) -> PortProtocol {
        match self {
            Self::Auto => PortProtocol::Detect,
            Self::Http => PortProtocol::Http,
            Self::Http2 => PortProtocol::Http2,
            Self::Grpc => PortProtocol::Grpc,
            Self::Tls => PortProtocol::Tls,
            Self::Tcp => PortProtocol::Tcp,
        }
    }
}

/// The life of an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not ready yet.
    Starting,
    /// Takes requests.
    #[default]
    Running,
    /// A health check fails.
    Unhealthy,
    /// Taken out by an operator.
    Maintenance,
    /// Finishes what it has.
    Stopping,
    /// Gone, but still listed.
    Stopped,
}

impl Instance {
    /// What is wrong with it, named by field.
    ///
    /// # Errors
    /// The first field that cannot be taken.
    pub fn validate(&self) -> Result<(), String> {
        self.validate_within(MAX_BYTES)
    }

    /// The same, with another limit of its bytes.
    pub(crate) fn validate_within(&self, most: usize) -> Result<(), String> {
        for (field, text) in [("service", &self.service), ("namespace", &self.namespace)] {
            if !is_label(text) {
                return Err(format!(
                    "instance \"{}\": {field}: \"{text}\" must have 1 to 63 lower-case letters, digits or '-'",
                    self.id
                ));
            }
        }
        // Kubernetes takes a subdomain for the name of a service account, a label for the others.
        if !is_subdomain(&self.service_account) {
            return Err(format!(
                "instance \"{}\": serviceAccount: \"{}\" must have 1 to 253 lower-case letters, digits or '-', in parts parted by dots",
                self.id, self.service_account
            ));
        }
        if self.id.is_empty() || self.id.len() > MAX_ID || self.id.chars().any(|c| c.is_control() || c == '/')
        {
            return Err(format!(
                "id: {:?} must have 1 to {MAX_ID} characters, none of them '/' or a control character",
                self.id
            ));
        }
        if let Some(name) = self.services.iter().flatten().find(|name| !is_label(name)) {
            return Err(format!(
                "instance \"{}\": services: \"{name}\" must have 1 to 63 lower-case letters, digits or '-'",
                self.id
            ));
        }
        if self.addresses.is_empty() {
            return Err(format!("instance \"{}\": addresses: at least one IP address is needed", self.id));
        }
        self.check_addresses()?;
        let bytes = serde_json::to_vec(self).map_or(0, |json| json.len());
        if bytes > most {
            return Err(format!(
                "instance \"{}\" has {bytes} bytes, the most are {most}; shorten labels, metadata or tags",
                self.id
            ));
        }
        if !(1..=MAX_WEIGHT).contains(&self.weight) {
            return Err(format!(
                "instance \"{}\": weight: {} must be 1 to {MAX_WEIGHT}; use state: maintenance to take it out",
                self.id, self.weight
            ));
        }
        if self.ttl_seconds == Some(0) {
            return Err(format!("instance \"{}\": ttlSeconds: must be at least 1", self.id));
        }
        for (i, port) in self.ports.iter().enumerate() {
            if port.number == 0 {
                return Err(format!("instance \"{}\": ports[{i}].number: must be 1 to 65535", self.id));
            }
            if self.ports[..i].iter().any(|other| other.number == port.number) {
                return Err(format!(
                    "instance \"{}\": ports[{i}].number: {} occurs twice",
                    self.id, port.number
                ));
            }
            if port.aliases.len() > MOST_ALIASES {
                return Err(format!(
                    "instance \"{}\": ports[{i}].aliases: at most {MOST_ALIASES} other names are taken",
                    self.id
                ));
            }
            if let Some(upgrade) = port.upgrades.iter().find(|upgrade| !RouteUpgrade::is_name(upgrade)) {
                return Err(format!(
                    "instance \"{}\": ports[{i}].upgrades: {upgrade:?} is no name of a protocol, such as tcp or spdy/3.1",
                    self.id
                ));
            }
            if port.upgrades.len() > MOST_UPGRADES {
                return Err(format!(
                    "instance \"{}\": ports[{i}].upgrades: at most {MOST_UPGRADES} protocols are taken",
                    self.id
                ));
            }
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), String> {
        let wrong = |why: String| Err(format!("instance \"{}\": addresses: {why}", self.id));
        if self.addresses.len() > MAX_ADDRESSES {
            return wrong(format!("{} are too many, the most are {MAX_ADDRESSES}", self.addresses.len()));
        }
        for address in &self.addresses {
            let ip = address.to_canonical();
            if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
                return wrong(format!("{address} is nobody's own; name the one that clients connect to"));
            }
            if is_virtual(ip) {
                return wrong(format!(
                    "{address} stands for a service in DNS answers and cannot be an instance's"
                ));
            }
        }
        Ok(())
    }

    /// Fills in the `version` label, and takes no more room than it needs.
    pub fn normalise(mut self) -> Self {
        if let Some(version) = &self.version {
            self.labels.entry("version".into()).or_insert_with(|| version.clone());
        }
        self.labels.entry("app".into()).or_insert_with(|| self.service.clone());
        self.labels = self.labels.shared();
        self.addresses.shrink_to_fit();
        self.ports.shrink_to_fit();
        self.tags.shrink_to_fit();
        self
    }

    /// Where it is.
    pub fn locality(&self) -> Locality {
        let sub_zone = self.metadata.get(canonical::SUB_ZONE).cloned().unwrap_or_default();
        Locality { region: self.region.clone(), zone: self.zone.clone(), sub_zone }
    }

    /// The node of a cluster that it is on.
    pub fn node(&self) -> Option<&str> {
        self.metadata.get(canonical::NODE).map(String::as_str).filter(|node| !node.is_empty())
    }

    /// Its identity.
    ///
    /// # Errors
    /// When namespace or service account cannot be part of a SPIFFE id; `validate` refuses such instances.
    pub fn identity(&self, trust_domain: &str) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::workload(trust_domain, &self.namespace, &self.service_account)
    }

    /// The names of the services that it is an endpoint of.
    pub fn serves(&self) -> &[String] {
        self.services.as_deref().unwrap_or(std::slice::from_ref(&self.service))
    }

    /// The port of that number.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Whether its sidecar takes what comes to a port, whoever has declared it or not.
    pub fn takes_in(&self, number: u16) -> bool {
        let kept = self.metadata.get(canonical::INBOUND);
        self.sidecar && kept.is_some_and(|kept| inbound::comes_in(kept, number))
    }
}

impl Port {
    /// Whether it has this name.
    pub fn is_called(&self, name: &str) -> bool {
        !name.is_empty() && (self.name == name || self.aliases.iter().any(|alias| alias == name))
    }
}

/// More is not a list of protocols.
const MOST_UPGRADES: usize = 16;
/// Names of one port beside its own.
pub(crate) const MOST_ALIASES: usize = 16;

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// RFC 1123; as Kubernetes, which asks of the whole alone how long it is.
pub(crate) fn is_subdomain(text: &str) -> bool {
    let part = |part: &str| {
        let ends = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.bytes().all(|b| ends(b) || b == b'-')
            && part.bytes().next().is_some_and(ends)
            && part.bytes().next_back().is_some_and(ends)
    };
    text.len() <= 253 && text.split('.').all(part)
}

fn default_name() -> String {
    "default".into()
}

fn is_none(labels: &Labels) -> bool {
    labels.is_empty()
}

fn default_weight() -> u32 {
    100
}

fn yes() -> bool {
    true
}

#[cfg(test)]
pub(crate) fn sample(
    id: &str,
    service: &str,
    version: &str,
    address: &str,
    port: u16,
    protocol: Protocol,
) -> Instance {
    Instance {
        id: id.into(),
        service: service.into(),
        services: None,
        namespace: "shop".into(),
        addresses: vec![address.parse().unwrap()],
        network: String::new(),
        ports: vec![Port {
            number: port,
            name: String::new(),
            protocol,
            aliases: Vec::new(),
            upgrades: Vec::new(),
        }],
        labels: Labels::default(),
        metadata: BTreeMap::new(),
        tags: Vec::new(),
        version: Some(version.into()),
        weight: 100,
        zone: String::new(),
        region: String::new(),
        service_account: service.into(),
        state: State::Running,
        sidecar: true,
        ttl_seconds: None,
        word: Word::Trusted,
    }
    .normalise()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_refused_by_the_field_that_is_wrong() {
        let good = sample("a", "web", "v1", "127.0.0.5", 80, Protocol::Http);
        assert_eq!(good.validate(), Ok(()));
        let broken = |change: fn(&mut Instance)| {
            let mut bad = good.clone();
            change(&mut bad);
            bad.validate().unwrap_err()
        };
        assert!(broken(|i| i.service = "Web".into()).contains("service"));
        assert!(broken(|i| i.addresses.clear()).contains("addresses"));
        let at = |address: &str| {
            let mut bad = good.clone();
            bad.addresses = vec![address.parse().unwrap()];
            bad.validate().unwrap_err()
        };
        for nobodys in ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "::ffff:0.0.0.0"] {
            assert!(at(nobodys).contains("nobody's own"), "{nobodys}");
        }
        assert!(at("240.240.3.7").contains("stands for a service"));
        assert!(broken(|i| i.addresses = vec![i.addresses[0]; 17]).contains("too many"));
        let long = broken(|i| drop(i.labels.insert("a".into(), "b".repeat(MAX_BYTES))));
        assert!(long.contains("16384"), "{long}");
        assert!(broken(|i| i.weight = 0).contains("weight"));
        assert!(broken(|i| i.weight = 1_000_001).contains("weight"));
        assert!(broken(|i| i.ports[0].number = 0).contains("ports[0].number"));
        assert!(broken(|i| i.ports.push(i.ports[0].clone())).contains("twice"));
        assert!(broken(|i| i.id = "a/b".into()).contains("id"));
        assert!(broken(|i| i.id = "a".repeat(MAX_ID + 1)).contains("id"));
    }

    #[test]
    fn the_version_becomes_a_label_unless_there_is_one() {
        let instance = sample("a", "web", "v1", "127.0.0.5", 80, Protocol::Http);
        assert_eq!(instance.labels["version"], "v1");
        assert_eq!(instance.labels["app"], "web");
    }
}
