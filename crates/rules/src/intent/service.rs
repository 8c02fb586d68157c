//! A service that is described instead of registered: its hosts and ports, and where its endpoints come from.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Host, Origin, Place, Visibility};

/// Hosts with ports and endpoints, inside the mesh or outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceIntent {
    /// The object that says so.
    pub origin: Origin,
    /// Where the hosts were written.
    pub place: Place,
    /// Its names; wildcards stand for every name below.
    pub hosts: Vec<Host>,
    /// The addresses that stand for it, a block for all of its own.
    pub addresses: Vec<IpNet>,
    /// By number.
    pub ports: BTreeMap<u16, ServicePort>,
    /// Where it is.
    pub location: Location,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// In place.
    pub endpoints: Vec<Workload>,
    /// Labels of instances of the namespace that serve it; empty = none.
    pub selector: BTreeMap<String, String>,
    /// Which clients know it.
    pub visibility: Visibility,
    /// Who its servers may be, where they show a certificate.
    pub subject_alt_names: Vec<String>,
    /// Instances that are not ready serve it as well.
    #[serde(default)]
    pub unready: bool,
    /// It has no address of its own and will not get one: its name stands for those who serve it.
    #[serde(default)]
    pub headless: bool,
    /// Which addresses of those who serve it are meant, the first before others; empty: whichever come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<IpFamily>,
    /// Whom of those who serve it a client gets, where no DestinationRule says so.
    #[serde(default, skip_serializing_if = "Preference::is_none")]
    pub preference: Preference,
}

/// Whom of those who serve a cluster's Service a client gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preference {
    /// The same every time: `sessionAffinity: ClientIP`.
    pub same: bool,
    /// Nobody of another node: `internalTrafficPolicy: Local`.
    pub own_node: bool,
    /// Those that are near before all others: `trafficDistribution`.
    pub near: Option<Near>,
}

impl Preference {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Who is near a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Near {
    /// Of its zone, then of its region.
    Zone,
    /// Of its node, then as by zone.
    Node,
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// An address's.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// As endpoints name it.
    pub name: String,
    /// What is spoken there.
    pub protocol: ServiceProtocol,
    /// The port of endpoints that name none; `None` = the same number.
    pub target: Option<u16>,
    /// What endpoints call the port, where it is known by that; empty where by number. One that has no port of that name has it at
    /// `target`, if there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target_name: String,
}

/// What a port of a service speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ServiceProtocol {
    /// Found out per connection.
    #[default]
    Detect,
    /// HTTP/1.1, or what the client speaks.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// TLS of the application's own: told apart by its server name, never opened.
    Tls,
    /// Bytes.
    Tcp,
}

/// Where a service is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Location {
    /// Outside of the mesh: never its mTLS.
    #[default]
    Outside,
    /// Inside: its endpoints may have sidecars.
    Inside,
}

/// How endpoints are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Resolution {
    /// Where the client was going anyway.
    #[default]
    None,
    /// At the addresses of the endpoints.
    Static,
    /// At every address that DNS knows of the endpoints' names, or of the host.
    Dns,
    /// At the first of these, for each new connection.
    DnsRoundRobin,
}

/// A workload that is described instead of registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// An IP address, or a name that DNS knows.
    pub address: String,
    /// Ports by the names of the service's ports.
    pub ports: BTreeMap<String, u16>,
    /// For subsets and selectors.
    pub labels: BTreeMap<String, String>,
    /// The network of the address; empty is the default one.
    pub network: String,
    /// Region, zone, sub-zone; empty where unknown.
    pub locality: [String; 3],
    /// Its share, default 1.
    pub weight: u32,
    /// Of its identity; empty where it has none.
    pub service_account: String,
    /// Where it was written.
    pub place: Place,
}

impl Workload {
    /// Whether it has a sidecar that speaks the mesh's mTLS: Istio's label says so, or without it that it has an identity.
    pub fn has_sidecar(&self) -> bool {
        match self.labels.get("security.istio.io/tlsMode") {
            Some(mode) => mode == "istio",
            None => !self.service_account.is_empty(),
        }
    }

    /// Where it serves a port of a service.
    pub fn port(&self, number: u16, port: &ServicePort) -> u16 {
        self.ports.get(&port.name).copied().or(port.target).unwrap_or(number)
    }
}

/// Who may say where a port of a service is found.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a, S> {
    /// The namespace of its instances.
    pub home: &'a str,
    /// Who describes it, by origin; as references or as what is shared.
    pub described: &'a [S],
    /// Whether instances have registered for the port.
    pub registered: bool,
}

impl<'a, S: Borrow<ServiceIntent>> Known<'a, S> {
    /// The description that clients of a namespace go by: their own, or else the first that they may see. Where instances have
    /// registered for the port, only who names further endpoints has a say.
    pub fn description(&self, port: u16, namespace: &str) -> Option<&'a S> {
        let of = |service: &'a S| -> &'a ServiceIntent { service.borrow() };
        let mut visible = self.described.iter().filter(|service| {
            let service = of(service);
            service.ports.contains_key(&port)
                && service.visibility.includes(namespace)
                && (!self.registered || service.resolution == Resolution::Static)
        });
        let own = visible.clone().find(|service| of(service).origin.namespace == namespace);
        own.or_else(|| visible.next())
    }

    /// The namespace whose word clients of a namespace go by; `None`: they find no such port.
    pub fn owner(&self, port: u16, namespace: &str) -> Option<&'a str> {
        match self.description(port, namespace) {
            Some(service) => Some(&service.borrow().origin.namespace),
            None => self.registered.then_some(self.home),
        }
    }
}

/// A workload as an object of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadIntent {
    /// The object that says so.
    pub origin: Origin,
    /// What it says.
    pub workload: Workload,
}
