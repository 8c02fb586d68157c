//! The join file: everything that a new workload needs to find, trust and convince the control plane. It holds a
//! secret (the token), so it is written 0600.

use std::fmt;
use std::path::Path;

use outrigger_model::identity::{SpiffeId, is_trust_domain};
use serde::{Deserialize, Serialize};

use crate::bundle::TrustBundle;
use crate::error::IdentityError;
use crate::state_dir::write_private;

/// What `outrigger token create` prints.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinFile {
    /// Format version: 1.
    pub version: u32,
    /// The control plane, `host:port`.
    pub address: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Root certificates, PEM.
    pub roots: String,
    /// The secret that proves the identity below.
    pub token: String,
    /// The identity that the token is bound to.
    pub identity: SpiffeId,
}

impl JoinFile {
    /// A join file of the current version.
    pub fn new(address: &str, roots: String, token: String, identity: SpiffeId) -> Self {
        let trust_domain = identity.trust_domain().to_owned();
        Self { version: 1, address: address.to_owned(), trust_domain, roots, token, identity }
    }

    /// Parses and checks the text.
    ///
    /// # Errors
    /// Says which field is wrong and why.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let wrong = |reason: String| Err(IdentityError::Join(reason));
        // The version is looked at first: a newer file has fields that we cannot know.
        #[derive(Deserialize)]
        struct Version {
            version: Option<u32>,
        }
        match serde_json::from_str::<Version>(text) {
            Err(error) => {
                return wrong(format!("it is not JSON as `outrigger token create` prints it: {error}"));
            }
            Ok(Version { version: None }) => return wrong("\"version\" is missing".to_owned()),
            Ok(Version { version: Some(1) }) => {}
            Ok(Version { version: Some(other) }) => {
                return wrong(format!("its version is {other}; this program reads version 1"));
            }
        }
        let join: Self =
            serde_json::from_str(text).map_err(|error| IdentityError::Join(error.to_string()))?;
        if !is_trust_domain(&join.trust_domain) {
            return wrong(format!(
                "\"trust_domain\": \"{}\" is not a trust domain's name",
                join.trust_domain
            ));
        }
        if join.identity.trust_domain() != join.trust_domain {
            return wrong(format!(
                "\"identity\" {} is not in \"trust_domain\" \"{}\"",
                join.identity, join.trust_domain
            ));
        }
        if !is_host_port(&join.address) {
            return wrong(format!("\"address\": \"{}\" is not host:port", join.address));
        }
        if join.token.is_empty() || join.token.chars().any(|c| !c.is_ascii_graphic()) {
            return wrong("\"token\" is empty or has characters other than printable ASCII".to_owned());
        }
        TrustBundle::from_pem(&join.trust_domain, &join.roots)
            .map_err(|error| IdentityError::Join(format!("\"roots\": {error}")))?;
        Ok(join)
    }

    /// Reads and parses a file.
    ///
    /// # Errors
    /// As [`JoinFile::parse`], or when it cannot be read; the error names the file.
    pub fn read(path: &Path) -> Result<Self, IdentityError> {
        let text = std::fs::read_to_string(path).map_err(IdentityError::file(path))?;
        Self::parse(&text).map_err(|error| IdentityError::content(path, error.to_string()))
    }

    /// Writes it with mode 0600.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(&self, path: &Path) -> Result<(), IdentityError> {
        write_private(path, self.to_json().as_bytes())
    }

    /// As JSON, ending in a newline.
    pub fn to_json(&self) -> String {
        // Strings and a number always serialise.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The roots as a bundle.
    ///
    /// # Errors
    /// When the roots are not certificates; a parsed file has been checked for that.
    pub fn bundle(&self) -> Result<TrustBundle, IdentityError> {
        TrustBundle::from_pem(&self.trust_domain, &self.roots)
    }
}

impl fmt::Debug for JoinFile {
    // The token must never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinFile")
            .field("address", &self.address)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Splits `host:port` and `[v6]:port`.
pub(crate) fn split_host_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    (!host.is_empty() && host.chars().all(plain)).then_some((host, port))
}

fn is_host_port(address: &str) -> bool {
    split_host_port(address).is_some()
}
