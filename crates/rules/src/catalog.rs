//! What exists, as far as the analyzer needs to know: services with ports and instances, workloads with labels and ports.
//!
//! The control plane fills it from its registry; offline there is none, and what needs it is not checked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use outrigger_model::path::PathNormalization;
use serde::{Deserialize, Serialize};

use crate::host::{Host, Resolver};

/// Istio's root namespace.
const ISTIO_ROOT: &str = "istio-system";

/// Labels of an instance.
pub type Labels = BTreeMap<String, String>;

/// The services and workloads of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCatalog {
    /// By resolved host.
    pub services: BTreeMap<Host, CatalogService>,
    /// Everything that policies can select.
    pub workloads: Vec<CatalogWorkload>,
    /// Policies of this namespace hold for the whole mesh.
    pub root_namespace: String,
    /// The trust domain of all identities.
    pub trust_domain: String,
    /// The mesh's domain, below which every name is a namespace's.
    #[serde(default = "cluster_local")]
    pub domain: String,
    /// What is made equal in paths before rules look at them.
    #[serde(default)]
    pub path: PathNormalization,
    /// Whom policies of action CUSTOM may ask, by name.
    #[serde(default)]
    pub providers: BTreeMap<String, CatalogProvider>,
}

impl Default for ServiceCatalog {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            workloads: Vec::new(),
            root_namespace: "outrigger-system".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            domain: cluster_local(),
            path: PathNormalization::default(),
            providers: BTreeMap::new(),
        }
    }
}

fn cluster_local() -> String {
    Resolver::default().domain().to_owned()
}

/// One service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogService {
    /// Its ports.
    pub ports: BTreeMap<u16, PortProtocol>,
    /// Those that instances have registered; the others somebody describes.
    #[serde(default)]
    pub registered: BTreeSet<u16>,
    /// What its ports are called, where they have names.
    #[serde(default)]
    pub names: BTreeMap<String, u16>,
    /// The labels of each of its instances.
    pub instances: Vec<Labels>,
    /// Each of them has a sidecar.
    #[serde(default)]
    pub sidecars: bool,
}

/// Whom policies may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogProvider {
    /// Its service.
    pub host: Host,
    /// The namespace that must say where it is, if that is said.
    pub namespace: Option<String>,
    /// The port of its service.
    pub port: u16,
    /// It speaks gRPC, so it can be asked about connections, too.
    pub grpc: bool,
    /// It is asked by rate limits, and not by policies.
    #[serde(default)]
    pub limiter: bool,
}

/// One workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogWorkload {
    /// Its namespace.
    pub namespace: String,
    /// The service account of its identity.
    pub service_account: String,
    /// Its labels.
    pub labels: Labels,
    /// It chose its labels itself, and they make it no endpoint of what selects it: without `app` (where that names a service that it may
    /// be), or at all.
    #[serde(default)]
    pub unselected: Unselected,
    /// Its own ports, which authorization rules name.
    pub ports: BTreeMap<u16, PortProtocol>,
    /// Where it is.
    #[serde(default)]
    pub addresses: BTreeSet<IpAddr>,
}

/// By which selectors of services a workload is not chosen that has the labels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unselected {
    /// By none.
    #[default]
    Never,
    /// By those without `app`.
    WithoutApp,
    /// By all.
    Always,
}

impl CatalogWorkload {
    /// Whether a service that selects by these labels, which it has, has it.
    pub fn may_be(&self, selector: &Labels) -> bool {
        match self.unselected {
            Unselected::Never => true,
            Unselected::WithoutApp => selector.contains_key("app"),
            Unselected::Always => false,
        }
    }
}

impl PortProtocol {
    /// Whether it is HTTP, or may turn out to be.
    pub fn is_http(self) -> bool {
        !matches!(self, Self::Tls | Self::Tcp)
    }

    /// Whether both are declared to be the same: HTTP, TLS or bytes.
    pub fn is_alike(self, other: Self) -> bool {
        let declared = self != Self::Detect && other != Self::Detect;
        self == other || declared && self.is_http() && other.is_http()
    }
}

/// What is known about a port before the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// Declared HTTP/1.
    Http,
    /// Declared HTTP/2.
    Http2,
    /// Declared gRPC.
    Grpc,
    /// Declared TLS of the application's own.
    Tls,
    /// Declared opaque.
    Tcp,
    /// Found out per connection.
    Detect,
}

impl ServiceCatalog {
    /// As the control plane resolves names.
    pub fn resolver(&self) -> Resolver {
        Resolver::new(&self.domain)
    }

    /// Whether policies of a namespace hold for the whole mesh: Istio's root namespace is one until another is chosen.
    pub fn is_root(&self, namespace: &str) -> bool {
        namespace == self.root_namespace
            || (namespace == ISTIO_ROOT && self.root_namespace == Self::default().root_namespace)
    }

    /// The namespaces whose rules are for the whole mesh, the one that was chosen first.
    pub fn roots(&self) -> Vec<&str> {
        let istio = Some(ISTIO_ROOT).filter(|root| *root != self.root_namespace && self.is_root(root));
        std::iter::once(self.root_namespace.as_str()).chain(istio).collect()
    }

    /// The workloads that a policy of `namespace` with that selector is for.
    pub fn selected<'a>(
        &'a self,
        namespace: &'a str,
        selector: &'a Labels,
    ) -> impl Iterator<Item = &'a CatalogWorkload> {
        self.workloads.iter().filter(move |workload| {
            (workload.namespace == namespace || self.is_root(namespace))
                && selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
        })
    }
}
