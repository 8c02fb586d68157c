//! Tokens of requests: `envoy.extensions.filters.http.jwt_authn.v3`. What is asked of a request's tokens; how that is decided is
//! `token/decide.rs`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::claims::{Claims, Proven};
use crate::filter::FilterConfig;
use crate::origin::Origin;
use crate::route::RouteMatch;

mod decide;
mod find;
mod judged;
mod keys;
mod verify;

pub use decide::{CompiledTokens, Effects, Outcome};
pub use judged::WithTokens;
pub use keys::{MOST_KEYS, NOT_KNOWN, check_keys};
pub use verify::{Known, Refusal, Verified};

/// Seconds that clocks may be apart, where nobody says otherwise (Envoy's).
pub const CLOCK_SKEW: u32 = 60;

/// The filter: providers by name, and which of them requests need.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JwtAuthn {
    /// Whose tokens are known.
    pub providers: BTreeMap<String, JwtProvider>,
    /// The first that a request matches says what it needs; none: nothing.
    pub rules: Vec<TokenRule>,
    /// Preflight requests of CORS need nothing: browsers send no tokens with them.
    pub bypass_preflight: bool,
}

impl FilterConfig for JwtAuthn {
    fn origins(&self) -> Vec<&Origin> {
        self.providers.values().filter_map(|provider| provider.origin.as_ref()).collect()
    }
}

/// What some requests need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenRule {
    /// Of which requests.
    pub matches: RouteMatch,
    /// What.
    pub requires: Requirement,
}

/// What a request needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Requirement {
    /// Nothing.
    Nothing,
    /// A token of a provider, for one of these audiences instead of the provider's own, where there are any.
    Provider {
        /// Its name.
        name: String,
        /// Instead of the provider's.
        audiences: Vec<String>,
    },
    /// One of them. Beside others here the two below forgive that these have nothing, or have failed.
    Any(Vec<Requirement>),
    /// All of them.
    All(Vec<Requirement>),
    /// No token at anybody's place but good ones.
    AllowMissing,
    /// Nothing; what is good there is used.
    AllowMissingOrFailed,
}

/// Whose tokens are good, where they are, and what becomes of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JwtProvider {
    /// `iss`; empty: anybody.
    pub issuer: String,
    /// One of these must be in `aud`; empty: whatever is there.
    pub audiences: Vec<String>,
    /// The keys, a JWKS (RFC 7517). Those of unknown types are passed over.
    pub keys: String,
    /// Seconds that clocks may be apart. Default [`CLOCK_SKEW`].
    pub clock_skew: u32,
    /// Tokens without `exp` are refused.
    pub require_expiration: bool,
    /// The request keeps its token.
    pub forward: bool,
    /// Where tokens are. With nothing here, in `params` and in `cookies`: `Authorization: Bearer`, and `access_token` in the query.
    pub headers: Vec<TokenHeader>,
    /// Parameters of the query.
    pub params: Vec<String>,
    /// Cookies.
    pub cookies: Vec<String>,
    /// The header that the application finds the payload in, as it came (base64url).
    pub payload_header: Option<String>,
    /// That is filled up with `=`.
    pub pad_payload_header: bool,
    /// Headers that the application finds claims in.
    pub claim_headers: Vec<ClaimHeader>,
    /// The name by which policies find the payload; empty: they do not.
    pub payload_name: String,
    /// Texts among these claims are lists of words.
    pub spaced_claims: Vec<String>,
    /// Routes are looked for again afterwards.
    pub clear_route_cache: bool,
    /// The user object that says so.
    pub origin: Option<Origin>,
}

/// A header with a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenHeader {
    /// In lower case.
    pub name: String,
    /// Before the token; a value without it has none.
    pub prefix: String,
}

/// A header that the application finds a claim in. Texts, numbers and truth values can be in one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimHeader {
    /// In lower case.
    pub header: String,
    /// The claim; one inside others by a dot between them.
    pub claim: String,
}

impl JwtProvider {
    /// Of an issuer, with the defaults.
    pub fn new(issuer: impl Into<String>, keys: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            audiences: Vec::new(),
            keys: keys.into(),
            clock_skew: CLOCK_SKEW,
            require_expiration: false,
            forward: false,
            headers: Vec::new(),
            params: Vec::new(),
            cookies: Vec::new(),
            payload_header: None,
            pad_payload_header: false,
            claim_headers: Vec::new(),
            payload_name: String::new(),
            spaced_claims: Vec::new(),
            clear_route_cache: false,
            origin: None,
        }
    }
}

#[cfg(test)]
mod tests;
