//! Authorization policies, in the shape of `envoy.config.rbac.v3`. How they decide is `policy/decide.rs`.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::filter::FilterConfig;
use crate::matcher::{HeaderMatch, StringMatch};
use crate::origin::Origin;

mod claim;
pub mod decide;

/// One RBAC filter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rbac {
    /// What a match means.
    pub action: RbacAction,
    /// Policies by name; any match counts.
    pub policies: BTreeMap<String, RbacPolicy>,
}

impl FilterConfig for Rbac {
    fn origins(&self) -> Vec<&Origin> {
        self.policies.values().filter_map(|policy| policy.origin.as_ref()).collect()
    }
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RbacAction {
    /// Requests that match no policy are denied. No policies: all are denied.
    Allow,
    /// Requests that match a policy are denied.
    Deny,
    /// Matches are only logged.
    Log,
}

/// Any of the principals with any of the permissions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RbacPolicy {
    /// What is asked for.
    pub permissions: Vec<Permission>,
    /// Who asks.
    pub principals: Vec<Principal>,
    /// The user object that it comes from.
    pub origin: Option<Origin>,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Permission {
    /// Everything.
    Any,
    /// All of them.
    And(Vec<Permission>),
    /// One of them.
    Or(Vec<Permission>),
    /// Not it.
    Not(Box<Permission>),
    /// A header or pseudo-header; never holds without HTTP.
    Header(HeaderMatch),
    /// The path without its query; never holds without HTTP.
    Path(StringMatch),
    /// The port of the original destination.
    DestinationPort(u16),
    /// The address of the original destination.
    DestinationIp(IpNet),
    /// The server name of the ClientHello.
    ServerName(StringMatch),
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Principal {
    /// Anybody.
    Any,
    /// All of them.
    And(Vec<Principal>),
    /// One of them.
    Or(Vec<Principal>),
    /// Not it.
    Not(Box<Principal>),
    /// A peer with a proven identity whose whole URI (`spiffe://…`) matches; `None`: any proven identity.
    Authenticated(Option<StringMatch>),
    /// The address of the peer.
    SourceIp(IpNet),
    /// A header; never holds without HTTP.
    Header(HeaderMatch),
    /// What a good token of the request says; never holds without one.
    Claim(ClaimMatch),
}

/// On a claim of a token (`metadata` of `envoy.filters.http.jwt_authn`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimMatch {
    /// The name of the payload, the claim, and where in it.
    pub path: Vec<String>,
    /// On the value.
    pub value: ClaimValue,
}

/// `envoy.type.matcher.v3.ValueMatcher`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ClaimValue {
    /// There is one, and it is not null.
    Present,
    /// A text.
    Text(StringMatch),
    /// A truth value.
    Bool(bool),
    /// A list, of which one matches.
    Member(Box<ClaimValue>),
    /// One of them.
    AnyOf(Vec<ClaimValue>),
}
