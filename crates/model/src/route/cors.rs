//! Cross-origin resource sharing: `envoy.extensions.filters.http.cors.v3.CorsPolicy`, as a route has it.

use serde::{Deserialize, Serialize};

use crate::matcher::{Matcher, StringMatch};

/// Which other origins may call a route, and what they are told. Texts are answered as they stand here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cors {
    /// Origins, any of which is enough.
    pub allow_origins: Vec<StringMatch>,
    /// `access-control-allow-methods`; `*` is answered with what was asked for. Empty: the header is absent.
    pub allow_methods: String,
    /// `access-control-allow-headers`, as `allow_methods`.
    pub allow_headers: String,
    /// `access-control-expose-headers`.
    pub expose_headers: String,
    /// `access-control-max-age`, in seconds.
    pub max_age: String,
    /// Whether credentials may be sent.
    pub allow_credentials: bool,
    /// Whether pages of public networks may call private ones.
    pub allow_private_network: bool,
    /// Preflights of other origins go to the application instead of being answered without permission. Default true.
    pub forward_not_matching: bool,
    /// Of how many requests, 0–100. Default 100.
    pub percentage: f64,
}

impl Default for Cors {
    fn default() -> Self {
        Self {
            allow_origins: Vec::new(),
            allow_methods: String::new(),
            allow_headers: String::new(),
            expose_headers: String::new(),
            max_age: String::new(),
            allow_credentials: false,
            allow_private_network: false,
            forward_not_matching: true,
            percentage: 100.0,
        }
    }
}

impl Cors {
    /// The allowed origins, compiled. One that takes `*` takes every origin.
    ///
    /// # Errors
    /// The regular expression that is none.
    pub fn origins(&self) -> Result<Vec<Matcher>, String> {
        let compiled: Vec<Matcher> =
            self.allow_origins.iter().map(StringMatch::compile).collect::<Result<_, _>>()?;
        match compiled.iter().any(|origin| origin.matches(b"*")) {
            true => Ok(vec![StringMatch::present().compile()?]),
            false => Ok(compiled),
        }
    }
}
