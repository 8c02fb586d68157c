//! What a user's rule means, free of the language it was written in: typed, owned, with hosts resolved and defaults filled in.
//!
//! The dialects end here and the control plane compiles from here. Nothing in this module knows YAML, the wire, or which
//! proxies exist; a mesh-wide default that a rule did not override stays `None`.

mod destination;
mod retry;
mod route;
mod security;

use std::fmt;

pub use destination::{
    ClientTls, ClientTlsMode, ConnectionPool, DestinationIntent, H2Upgrade, HashKey, HashTable,
    LoadBalancing, Outlier, SubsetIntent, TcpKeepalive, TrafficPolicy, Warmup,
};
pub use retry::{Backoff, RetryBudget, RetryCondition, RetryIntent, RetryOn};
pub use route::{
    AbortStatus, DirectResponse, FaultAbort, FaultDelay, FaultIntent, HeaderEdits, HeaderOps, HttpMatch,
    HttpRoute, NamedMatch, Redirect, RedirectPort, RegexRewrite, Rewrite, RouteAction, RouteIntent, Target,
    TcpMatch, TcpRoute, WeightedTarget,
};
pub use security::{
    AuthorizationAction, AuthorizationIntent, AuthorizationRule, Condition, IpKey, MtlsIntent, MtlsMode,
    Operation, ServiceAccountMatch, Source, TextKey,
};
use serde::{Deserialize, Serialize};

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
    /// Native: one page per service.
    TrafficRules,
}

impl ObjectKind {
    /// Every kind, in the order in which help texts name them.
    pub const ALL: [Self; 5] = [
        Self::VirtualService,
        Self::DestinationRule,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::TrafficRules,
    ];

    /// The `kind:` that users write.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
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

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StringMatch {
    /// The whole text.
    Exact(String),
    /// The text starts so.
    Prefix(String),
    /// The text ends so.
    Suffix(String),
    /// A pattern in RE2's syntax that must match the whole text; it was compiled once, so it is valid.
    Regex(String),
    /// Any value, but there must be one.
    Present,
}

impl StringMatch {
    /// Whether every text matches, so that the condition says nothing for a text that always exists (a path, a method).
    pub fn is_any(&self) -> bool {
        match self {
            Self::Present => true,
            Self::Prefix(text) | Self::Suffix(text) => text.is_empty(),
            Self::Regex(pattern) => matches!(pattern.as_str(), ".*" | "^.*$" | "(.*)"),
            Self::Exact(_) => false,
        }
    }
}

/// A share in millionths: `Percent { per_million: 100_000 }` is 10 %.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Percent {
    /// 0 to 1 000 000.
    pub per_million: u32,
}

impl Percent {
    /// Always.
    pub const ALL: Self = Self { per_million: 1_000_000 };
    /// Never.
    pub const NONE: Self = Self { per_million: 0 };

    /// From a percentage; outside of 0..=100 there is none.
    pub fn from_percentage(percentage: f64) -> Option<Self> {
        (0.0..=100.0)
            .contains(&percentage)
            .then(|| Self { per_million: (percentage * 10_000.0).round() as u32 })
    }

    /// As a percentage, 0.0 to 100.0.
    pub fn percentage(self) -> f64 {
        f64::from(self.per_million) / 10_000.0
    }
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
}

/// One normalised meaning of an object. A native object has up to two.
#[expect(clippy::large_enum_variant, reason = "there are as many as rules, thousands at most")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Intent {
    /// Where requests to a set of hosts go.
    Route(RouteIntent),
    /// Subsets and client-side policy of one host.
    Destination(DestinationIntent),
    /// mTLS mode of workloads.
    Mtls(MtlsIntent),
    /// Who may call workloads.
    Authorization(AuthorizationIntent),
}

impl Intent {
    /// The object that says so.
    pub fn origin(&self) -> &Origin {
        match self {
            Self::Route(intent) => &intent.origin,
            Self::Destination(intent) => &intent.origin,
            Self::Mtls(intent) => &intent.origin,
            Self::Authorization(intent) => &intent.origin,
        }
    }
}

#[cfg(test)]
mod tests;
