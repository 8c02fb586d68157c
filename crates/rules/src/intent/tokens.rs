//! Whose tokens workloads know, and which they need.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use outrigger_model::token::JwtProvider;
use serde::{Deserialize, Serialize};

use super::{Origin, Place};

/// The tokens that requests to workloads may or must have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokensIntent {
    /// The object that says so; its namespace is the scope.
    pub origin: Origin,
    /// Labels of the workloads; empty = all of the namespace, or of the mesh when it is the mesh's root namespace.
    pub selector: BTreeMap<String, String>,
    /// One for each issuer.
    pub rules: Vec<Issuer>,
    /// Where it was written.
    pub place: Place,
}

/// Whose tokens are good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Issuer {
    /// Without keys that must be fetched, and without an origin.
    pub provider: JwtProvider,
    /// Where its keys are; absent: in the rule.
    pub keys: Option<KeySource>,
    /// For fetching them. Default 5 s.
    pub timeout: Duration,
    /// Requests without its token are refused.
    pub required: bool,
}

/// Where the keys of an issuer are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KeySource {
    /// At this URL, a JWKS.
    Url(String),
    /// At the URL that this issuer's `/.well-known/openid-configuration` names (OpenID Connect Discovery 1.0).
    Discovery(String),
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())
    }
}

impl KeySource {
    /// What is asked for first.
    pub fn url(&self) -> String {
        match self {
            Self::Url(url) => url.clone(),
            Self::Discovery(issuer) => {
                format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
            }
        }
    }
}
