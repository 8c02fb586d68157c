//! The languages that users write rules in: one row per kind, one file per kind.
//!
//! A dialect reads a spec by its field tables and answers intents. It decides nothing that another dialect would decide
//! otherwise: names, defaults and limits that all share live in `reader`, `host` and `intent`.

mod authorization_policy;
mod cors;
mod destination_rule;
mod ejection;
mod elsewhere;
mod gateway;
mod nearness;
mod peer_authentication;
mod request_authentication;
pub mod service;
mod service_entry;
mod sessions;
mod shared;
mod sidecar;
pub(crate) mod traffic_rules;
mod virtual_service;
mod workload_entry;

#[cfg(test)]
mod definitions;

use crate::intent::{Intent, ObjectKind};
use crate::reader::{At, Reader};

/// One kind of object.
pub(crate) struct Row {
    pub(crate) kind: ObjectKind,
    pub(crate) versions: &'static [&'static str],
    pub(crate) read: fn(&mut Reader<'_>, &At<'_>) -> Vec<Intent>,
}

const NETWORKING: &[&str] =
    &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
const SECURITY: &[&str] = &["security.istio.io/v1", "security.istio.io/v1beta1"];
const GATEWAY: &[&str] = &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
const GATEWAY_GRPC: &[&str] = &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"];
const GATEWAY_TCP: &[&str] = &["gateway.networking.k8s.io/v1", OLD_TCP];
const GATEWAY_TLS: &[&str] = &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3", OLD_TCP];
/// Of routes of connections; it had several rules, and routes without hostnames.
const OLD_TCP: &str = "gateway.networking.k8s.io/v1alpha2";
const GRANT: &[&str] = &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
const BACKEND_TLS: &[&str] = &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3"];
const CORE: &[&str] = &["v1"];
const NATIVE: &[&str] = &["outrigger.io/v1"];

pub(crate) const ROWS: &[Row] = &[
    Row { kind: ObjectKind::VirtualService, versions: NETWORKING, read: virtual_service::read },
    Row { kind: ObjectKind::DestinationRule, versions: NETWORKING, read: destination_rule::read },
    Row { kind: ObjectKind::PeerAuthentication, versions: SECURITY, read: peer_authentication::read },
    Row { kind: ObjectKind::AuthorizationPolicy, versions: SECURITY, read: authorization_policy::read },
    Row { kind: ObjectKind::RequestAuthentication, versions: SECURITY, read: request_authentication::read },
    Row { kind: ObjectKind::ServiceEntry, versions: NETWORKING, read: service_entry::read },
    Row { kind: ObjectKind::WorkloadEntry, versions: NETWORKING, read: workload_entry::read },
    Row { kind: ObjectKind::Sidecar, versions: NETWORKING, read: sidecar::read },
    Row { kind: ObjectKind::HttpRoute, versions: GATEWAY, read: gateway::http_route },
    Row { kind: ObjectKind::GrpcRoute, versions: GATEWAY_GRPC, read: gateway::grpc_route },
    Row { kind: ObjectKind::TlsRoute, versions: GATEWAY_TLS, read: gateway::tls_route },
    Row { kind: ObjectKind::TcpRoute, versions: GATEWAY_TCP, read: gateway::tcp_route },
    Row { kind: ObjectKind::ReferenceGrant, versions: GRANT, read: gateway::grant },
    Row { kind: ObjectKind::BackendTlsPolicy, versions: BACKEND_TLS, read: gateway::backend_tls_policy },
    Row { kind: ObjectKind::ConfigMap, versions: CORE, read: gateway::config_map },
    Row { kind: ObjectKind::Service, versions: CORE, read: service::read },
    Row { kind: ObjectKind::TrafficRules, versions: NATIVE, read: traffic_rules::read },
];

/// A kind of somebody else's that people will try.
pub(crate) struct Foreign {
    pub(crate) kind: &'static str,
    pub(crate) group: &'static str,
    /// Behind its name: why it is refused.
    pub(crate) reason: &'static str,
}

/// All of them.
pub(crate) const FOREIGN: &[Foreign] = &[
    Foreign {
        kind: "EnvoyFilter",
        group: "networking.istio.io",
        reason: "patches Envoy's own configuration, which Outrigger's proxy does not have",
    },
    Foreign {
        kind: "WasmPlugin",
        group: "extensions.istio.io",
        reason: "needs a WebAssembly host, which Outrigger's proxy does not have",
    },
    Foreign {
        kind: "TrafficExtension",
        group: "extensions.istio.io",
        reason: "needs a host for WebAssembly or Lua, which Outrigger's proxy does not have",
    },
    Foreign { kind: "ProxyConfig", group: "networking.istio.io", reason: "is not implemented by Outrigger" },
    Foreign {
        kind: "WorkloadGroup",
        group: "networking.istio.io",
        reason: "is not implemented by Outrigger yet; instances are registered with the control plane",
    },
    Foreign { kind: "Gateway", group: "networking.istio.io", reason: "is not implemented by Outrigger yet" },
    Foreign { kind: "Telemetry", group: "telemetry.istio.io", reason: "is not implemented by Outrigger yet" },
];

pub use elsewhere::elsewhere;

/// Why a kind of somebody else's has no effect, in words that stand behind its name. `None`: it is one of ours, or nobody knows it.
pub fn foreign(group: &str, kind: &str) -> Option<&'static str> {
    FOREIGN.iter().find(|known| known.kind == kind && known.group == group).map(|known| known.reason)
}

/// Group and kind of each that [`foreign`] knows: a test holds the webhook of a cluster to them.
pub fn foreign_kinds() -> impl Iterator<Item = (&'static str, &'static str)> {
    FOREIGN.iter().map(|known| (known.group, known.kind))
}
