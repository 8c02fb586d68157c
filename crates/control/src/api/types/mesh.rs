//! The mesh as a whole, and the control planes that it has.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{FileProblem, Held, ProxyStatus, RegistryBody, Rejection};

/// The state of the mesh as the control plane sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatusBody {
    /// The control plane's version.
    pub version: String,
    /// The latest generation.
    pub generation: u64,
    /// Rules.
    pub rules: usize,
    /// Instances.
    pub instances: usize,
    /// Connected proxies.
    pub proxies: Vec<ProxyStatus>,
    /// Services whose expiries are held.
    pub held: Vec<Held>,
    /// What cannot be read in registries.
    pub problems: Vec<FileProblem>,
    /// Where instances and rules come from, the first goes before the others.
    #[serde(default)]
    pub registries: Vec<RegistryBody>,
    /// Registered instances whose sidecar is not connected.
    #[serde(default)]
    pub missing: Vec<Missing>,
    /// Who was turned away within the last hour, the latest first.
    #[serde(default)]
    pub rejections: Vec<Rejection>,
    /// What an operator must know: a lost authority, a store that takes no changes.
    #[serde(default)]
    pub notices: Vec<String>,
    /// The control planes that are one, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<ReplicaBody>,
}

/// One of several control planes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaBody {
    /// Its Pod's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its latest generation; each counts for itself.
    pub generation: u64,
    /// Proxies that are connected to it.
    pub proxies: usize,
    /// Whether it is the one that writes status.
    pub leads: bool,
    /// Why nothing is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A registered instance whose sidecar is not connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Missing {
    /// The instance.
    pub instance: String,
    /// `namespace/service`.
    pub service: String,
    /// Seconds since it left; where it was never seen, since it was registered or the control plane was started.
    pub since_seconds: u64,
    /// Whether it has been connected to this control plane since that was started.
    pub seen: bool,
}
