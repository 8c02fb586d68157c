//! Who may talk to a workload, and over what: mTLS modes and authorization rules with Istio's semantics, as data.
//!
//! The decision itself is made by the proxy over the compiled model. Order: CUSTOM first, then DENY, then ALLOW; a workload with an
//! ALLOW policy refuses what none of them allows.

use std::collections::BTreeMap;

use ipnet::IpNet;
use outrigger_model::identity::SpiffeId;
use outrigger_model::matcher::StringMatch;
use serde::{Deserialize, Serialize};

use super::{Origin, Place};

/// The mTLS mode of workloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MtlsIntent {
    /// The object that says so; its namespace is the scope.
    pub origin: Origin,
    /// Labels of the workloads; empty = all of the namespace, or of the mesh when it is the mesh's root namespace.
    pub selector: BTreeMap<String, String>,
    /// `None` = inherited from the next wider scope, finally PERMISSIVE.
    pub mode: Option<MtlsMode>,
    /// By port of the workload; `None` = inherited.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
    /// Where it was written.
    pub place: Place,
}

/// What a workload accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MtlsMode {
    /// Plain text only.
    Disable,
    /// Both.
    Permissive,
    /// mTLS only.
    Strict,
}

/// One authorization policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizationIntent {
    /// The object that says so; its namespace is the scope.
    pub origin: Origin,
    /// Labels of the workloads; empty = all of the namespace, or of the mesh when it is the mesh's root namespace.
    pub selector: BTreeMap<String, String>,
    /// What a matching rule does.
    pub action: AuthorizationAction,
    /// Any of these must match; empty = the policy matches nothing (so an ALLOW policy refuses everything).
    pub rules: Vec<AuthorizationRule>,
    /// Where it was written.
    pub place: Place,
}

/// What a matching rule does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuthorizationAction {
    /// Lets the request pass.
    Allow,
    /// Refuses it.
    Deny,
    /// Only records it.
    Audit,
    /// Asks the extension provider of that name.
    Custom(String),
}

impl AuthorizationAction {
    /// The provider that is asked.
    pub fn provider(&self) -> Option<&str> {
        match self {
            Self::Custom(provider) => Some(provider),
            Self::Allow | Self::Deny | Self::Audit => None,
        }
    }
}

/// Matches when `from` (any, or empty), `to` (any, or empty) and `when` (all) match. A rule with nothing matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizationRule {
    /// Any of these; empty = every caller.
    pub from: Vec<Source>,
    /// Any of these; empty = every request.
    pub to: Vec<Operation>,
    /// All of these.
    pub when: Vec<Condition>,
    /// Where it was written.
    pub place: Place,
}

impl AuthorizationRule {
    /// Whether some part needs an HTTP request. On TCP such a part never matches in an ALLOW rule, and counts as matching in
    /// any other.
    pub fn needs_http(&self) -> bool {
        self.needs_tokens()
            || self.to.iter().any(Operation::needs_http)
            || self.when.iter().any(Condition::needs_http)
    }

    /// Whether some part is about what tokens say.
    pub fn needs_tokens(&self) -> bool {
        let is = |key: &TextKey| matches!(key, TextKey::RequestPrincipal | TextKey::Claim(_));
        let said = |when: &Condition| matches!(when, Condition::Text { key, .. } if is(key));
        self.from.iter().any(Source::needs_http) || self.when.iter().any(said)
    }
}

/// A caller. All non-empty fields must match: a list by any of its entries, a `not_` list by none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Peer identity as `td/ns/NS/sa/SA`.
    pub principals: Vec<StringMatch>,
    /// Peer identity must be none of these.
    pub not_principals: Vec<StringMatch>,
    /// Namespace of the peer identity.
    pub namespaces: Vec<StringMatch>,
    /// Namespace must be none of these.
    pub not_namespaces: Vec<StringMatch>,
    /// Service account of the peer identity.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Service account must be none of these.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// Address of the direct peer.
    pub ip_blocks: Vec<IpNet>,
    /// Address of the direct peer must be in none of these.
    pub not_ip_blocks: Vec<IpNet>,
    /// Address of the original client.
    pub remote_ip_blocks: Vec<IpNet>,
    /// Address of the original client must be in none of these.
    pub not_remote_ip_blocks: Vec<IpNet>,
    /// Who a good token says it is for, as `ISSUER/SUBJECT`. HTTP only.
    pub request_principals: Vec<StringMatch>,
    /// No good token says that it is for one of these. HTTP only.
    pub not_request_principals: Vec<StringMatch>,
}

impl Source {
    /// Whether some field needs an HTTP request.
    pub fn needs_http(&self) -> bool {
        !self.request_principals.is_empty() || !self.not_request_principals.is_empty()
    }
}

/// A service account with its namespace, in any trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServiceAccountMatch {
    /// Namespace; the policy's own when the user wrote only a name.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ServiceAccountMatch {
    /// Whether the peer is that account.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        id.namespace() == Some(&self.namespace) && id.service_account() == Some(&self.name)
    }
}

/// A request. All non-empty fields must match: a list by any of its entries, a `not_` list by none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// `Host`, compared without regard to case. HTTP only.
    pub hosts: Vec<StringMatch>,
    /// `Host` must be none of these. HTTP only.
    pub not_hosts: Vec<StringMatch>,
    /// Port of the workload.
    pub ports: Vec<u16>,
    /// Port must be none of these.
    pub not_ports: Vec<u16>,
    /// Method. HTTP only.
    pub methods: Vec<StringMatch>,
    /// Method must be none of these. HTTP only.
    pub not_methods: Vec<StringMatch>,
    /// Path without query; `{*}` and `{**}` templates arrive as `Regex`. HTTP only.
    pub paths: Vec<StringMatch>,
    /// Path must be none of these. HTTP only.
    pub not_paths: Vec<StringMatch>,
}

impl Operation {
    /// Whether some field needs an HTTP request.
    pub fn needs_http(&self) -> bool {
        [&self.hosts, &self.not_hosts, &self.methods, &self.not_methods, &self.paths, &self.not_paths]
            .into_iter()
            .any(|list| !list.is_empty())
    }
}

/// A further condition: some of `values` (when there are any) and none of `not_values`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Condition {
    /// Compared as text.
    Text {
        /// What is compared.
        key: TextKey,
        /// One of these.
        values: Vec<StringMatch>,
        /// None of these.
        not_values: Vec<StringMatch>,
    },
    /// Compared as an address.
    Ip {
        /// Which address.
        key: IpKey,
        /// In one of these.
        values: Vec<IpNet>,
        /// In none of these.
        not_values: Vec<IpNet>,
    },
    /// `destination.port`.
    DestinationPort {
        /// One of these.
        values: Vec<u16>,
        /// None of these.
        not_values: Vec<u16>,
    },
}

impl Condition {
    /// Whether it needs an HTTP request.
    pub fn needs_http(&self) -> bool {
        matches!(self, Self::Text { key, .. } if key.needs_http())
    }
}

/// Texts that a condition can compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TextKey {
    /// `request.headers[…]`, name in lower case.
    RequestHeader(String),
    /// `source.principal`.
    SourcePrincipal,
    /// `source.namespace`.
    SourceNamespace,
    /// `connection.sni`.
    ConnectionSni,
    /// `request.auth.principal`: who a good token is for, as `ISSUER/SUBJECT`.
    RequestPrincipal,
    /// `request.auth.claims[…][…]` and their shorter names: a claim of a good token, and where in it. Of a list one counts.
    Claim(Vec<String>),
}

impl TextKey {
    fn needs_http(&self) -> bool {
        matches!(self, Self::RequestHeader(_) | Self::RequestPrincipal | Self::Claim(_))
    }
}

/// Addresses that a condition can compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IpKey {
    /// `source.ip`: the direct peer.
    Source,
    /// `remote.ip`: the original client.
    Remote,
    /// `destination.ip`: the workload's own.
    Destination,
}
