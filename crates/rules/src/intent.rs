//! What a user's rule means, free of the language it was written in: typed, owned, with hosts resolved and defaults filled in.
//!
//! What needs no host to be said is said in the model's own types; hosts, targets and whom a rule is for are an intent's. The dialects end here and the control plane compiles from here. Nothing in this module knows YAML, the wire, or which
//! proxies exist; a mesh-wide default that a rule did not override stays `None`.

mod attached;
mod backend_tls;
mod client_tls;
pub mod delegate;
mod destination;
mod limits;
mod nearness;
mod route;
mod say;
mod security;
mod service;
mod sidecar;
mod tokens;

use std::fmt;

pub use attached::{AttachedIntent, GATEWAY_GROUP, Parent, RouteCondition, RouteFlaw};
pub use backend_tls::{BackendTls, Roots, RootsIntent};
pub use client_tls::{ClientTls, ClientTlsMode};
pub use destination::{
    ConnectionPool, DestinationIntent, Fallback, H2Upgrade, HealthCheckIntent, LoadBalancing, SubsetIntent,
    TrafficPolicy,
};
pub use limits::{GlobalIntent, LimitsIntent};
pub use nearness::{Distribution, Nearness, PlacePattern, ZoneAware};
pub use route::{
    Carried, Delegate, ExternalAuth, HttpMatch, HttpRoute, MirrorTarget, Reach, RouteIntent, Said, Target,
    TcpMatch, TcpRoute, TlsMatch, TlsRoute, WeightedTarget,
};
pub use say::Say;
pub use security::{
    AuthorizationAction, AuthorizationIntent, AuthorizationRule, Condition, IpKey, MtlsIntent, MtlsMode,
    Operation, ServiceAccountMatch, Source, TextKey,
};
use serde::{Deserialize, Serialize};
pub use service::{
    IpFamily, Known, Location, Near, Preference, Resolution, ServiceIntent, ServicePort, ServiceProtocol,
    Workload, WorkloadIntent,
};

pub use sidecar::{AppAddress, Egress, Import, Ingress, SidecarIntent, Unknown, Whose};
pub use tokens::{Issuer, KeySource, TokensIntent};

pub use crate::host::Host;

/// The kinds of object that a user may write, over all dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectKind {
    /// Istio: routing for a set of hosts.
    VirtualService,
    /// Istio: subsets and client-side policy of a host.
    DestinationRule,
    /// Istio: mTLS mode of workloads.
    PeerAuthentication,
    /// Istio: who may call what.
    AuthorizationPolicy,
    /// Istio: whose tokens are known.
    RequestAuthentication,
    /// Istio: a service that is described instead of registered.
    ServiceEntry,
    /// Istio: a workload that is described instead of registered.
    WorkloadEntry,
    /// Istio: what sidecars know and take in.
    Sidecar,
    /// Gateway API: HTTP routing for ports of services.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// Gateway API: routing of gRPC for ports of services.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    /// Gateway API: routing of TLS that is not ended for ports of services.
    #[serde(rename = "TLSRoute")]
    TlsRoute,
    /// Gateway API: routing of connections for ports of services.
    #[serde(rename = "TCPRoute")]
    TcpRoute,
    /// Gateway API: who may refer to whom.
    ReferenceGrant,
    /// Gateway API: TLS towards the backends of services.
    #[serde(rename = "BackendTLSPolicy")]
    BackendTlsPolicy,
    /// Kubernetes: certificates that others refer to.
    ConfigMap,
    /// Kubernetes: a name and ports in front of workloads.
    Service,
    /// Native: one page per service.
    TrafficRules,
}

impl ObjectKind {
    /// Every kind, in the order in which help texts name them.
    pub const ALL: [Self; 17] = [
        Self::VirtualService,
        Self::DestinationRule,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::RequestAuthentication,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::Sidecar,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::ReferenceGrant,
        Self::BackendTlsPolicy,
        Self::ConfigMap,
        Self::Service,
        Self::TrafficRules,
    ];

    /// The `kind:` that users write.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::Sidecar => "Sidecar",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::BackendTlsPolicy => "BackendTLSPolicy",
            Self::ConfigMap => "ConfigMap",
            Self::Service => "Service",
            Self::TrafficRules => "TrafficRules",
        }
    }

    /// The kind of that exact spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which object of a user an intent comes from. Displays as `VirtualService shop/catalog`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The kind of the object.
    pub kind: ObjectKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The source it was read from, when there is one.
    pub file: Option<String>,
    /// The line, from 1, at which the object starts in that source.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Where in the source a part of an intent was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Path of the field, such as `spec.http[0].route[1]`.
    pub path: String,
}

/// To whom a rule applies, by the namespace of the client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Visibility {
    /// Clients everywhere.
    #[default]
    Everyone,
    /// Clients in these namespaces; `.` is already resolved.
    Namespaces(Vec<String>),
}

impl Visibility {
    /// Whether a client of that namespace sees the rule.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::Everyone => true,
            Self::Namespaces(names) => names.iter().any(|name| name == namespace),
        }
    }

    /// Whether it is for clients of that namespace and for no others.
    pub fn is_only(&self, namespace: &str) -> bool {
        matches!(self, Self::Namespaces(names) if names.iter().all(|name| name == namespace) && !names.is_empty())
    }
}

/// One normalised meaning of an object. A native object has up to three.
#[expect(clippy::large_enum_variant, reason = "there are as many as rules, thousands at most")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Intent {
    /// Where requests to a set of hosts go.
    Route(RouteIntent),
    /// Where requests to ports of services go.
    Attached(AttachedIntent),
    /// Subsets and client-side policy of one host.
    Destination(DestinationIntent),
    /// mTLS mode of workloads.
    Mtls(MtlsIntent),
    /// Who may call workloads.
    Authorization(AuthorizationIntent),
    /// Whose tokens workloads know.
    Tokens(TokensIntent),
    /// Hosts with ports and endpoints.
    Service(ServiceIntent),
    /// A workload that services may select.
    Workload(WorkloadIntent),
    /// How many requests a service takes.
    Limits(LimitsIntent),
    /// What sidecars know and take in.
    Sidecar(SidecarIntent),
    /// Certificates that policies refer to.
    Roots(RootsIntent),
}

impl Intent {
    /// The object that says so.
    pub fn origin(&self) -> &Origin {
        match self {
            Self::Route(intent) => &intent.origin,
            Self::Attached(intent) => &intent.origin,
            Self::Destination(intent) => &intent.origin,
            Self::Mtls(intent) => &intent.origin,
            Self::Authorization(intent) => &intent.origin,
            Self::Tokens(intent) => &intent.origin,
            Self::Service(intent) => &intent.origin,
            Self::Workload(intent) => &intent.origin,
            Self::Limits(intent) => &intent.origin,
            Self::Sidecar(intent) => &intent.origin,
            Self::Roots(intent) => &intent.origin,
        }
    }
}

#[cfg(test)]
mod tests;
