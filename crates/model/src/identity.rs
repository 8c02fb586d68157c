//! Who a workload is: SPIFFE ids and trust domains (SPIFFE-ID specification, section 2).
//!
//! Parsing is strict, so that two spellings never name one identity. What a certificate proves is `outrigger-identity`'s business.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`; cheap to clone, compared by its text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain_end: u16,
}

/// Why a text is not a SPIFFE id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// The scheme is not `spiffe://`.
    #[error("\"{0}\" is not a SPIFFE id: it must start with spiffe://")]
    Scheme(String),
    /// The trust domain is empty or has a character outside `[a-z0-9.-_]`.
    #[error(
        "\"{0}\" is not a SPIFFE id: the trust domain may have only a-z, 0-9, '.', '-' and '_', and must not be empty"
    )]
    TrustDomain(String),
    /// A path segment is empty, `.` or `..`, or has a character outside `[a-zA-Z0-9.-_]`.
    #[error(
        "\"{0}\" is not a SPIFFE id: path segments may have only letters, digits, '.', '-' and '_', and none may be empty, '.' or '..'"
    )]
    Path(String),
    /// Longer than 2048 bytes.
    #[error("a SPIFFE id has at most 2048 bytes, this one {0}")]
    Length(usize),
}

impl SpiffeId {
    /// Parses a whole URI.
    ///
    /// # Errors
    /// When the text breaks the SPIFFE-ID specification.
    pub fn parse(uri: &str) -> Result<Self, SpiffeError> {
        if uri.len() > 2048 {
            return Err(SpiffeError::Length(uri.len()));
        }
        let rest = uri.strip_prefix("spiffe://").ok_or_else(|| SpiffeError::Scheme(uri.to_owned()))?;
        let domain_len = rest.find('/').unwrap_or(rest.len());
        let (domain, path) = rest.split_at(domain_len);
        if !is_trust_domain(domain) {
            return Err(SpiffeError::TrustDomain(uri.to_owned()));
        }
        if !path.is_empty() && !path[1..].split('/').all(is_segment) {
            return Err(SpiffeError::Path(uri.to_owned()));
        }
        Ok(Self { uri: uri.into(), trust_domain_end: (9 + domain_len) as u16 })
    }

    /// The identity of a workload by namespace and service account.
    ///
    /// # Errors
    /// When one of the parts is not allowed in a SPIFFE id.
    pub fn workload(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, SpiffeError> {
        Self::parse(&format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain, such as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.uri[9..usize::from(self.trust_domain_end)]
    }

    /// The URI without its scheme, `cluster.local/ns/shop/sa/web`: how Istio writes a principal.
    pub fn principal(&self) -> &str {
        &self.uri[9..]
    }

    /// The namespace of a `/ns/…/sa/…` id.
    pub fn namespace(&self) -> Option<&str> {
        self.ns_sa().map(|(namespace, _)| namespace)
    }

    /// The service account of a `/ns/…/sa/…` id.
    pub fn service_account(&self) -> Option<&str> {
        self.ns_sa().map(|(_, account)| account)
    }

    fn ns_sa(&self) -> Option<(&str, &str)> {
        let path = self.uri[usize::from(self.trust_domain_end)..].strip_prefix("/ns/")?;
        let (namespace, rest) = path.split_once('/')?;
        let account = rest.strip_prefix("sa/")?;
        (!account.contains('/')).then_some((namespace, account))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeError;
    fn try_from(uri: String) -> Result<Self, SpiffeError> {
        Self::parse(&uri)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.uri.to_string()
    }
}

/// Whether the text may be a trust domain.
pub fn is_trust_domain(domain: &str) -> bool {
    !domain.is_empty()
        && domain.len() <= 255
        && domain.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

fn is_segment(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..")
        && segment.bytes().all(|b| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_id_yields_its_parts() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/web");
        assert_eq!((id.namespace(), id.service_account()), (Some("shop"), Some("web")));
    }

    #[test]
    fn an_id_of_another_shape_has_no_namespace() {
        let id = SpiffeId::parse("spiffe://td/control-plane").unwrap();
        assert_eq!((id.namespace(), id.service_account()), (None, None));
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        for bad in [
            "http://td/a",
            "spiffe:///ns/a/sa/b",
            "spiffe://TD/a",
            "spiffe://td/",
            "spiffe://td//a",
            "spiffe://td/../a",
            "spiffe://td/a?b",
            "spiffe://td:80/a",
            "spiffe://td/a%20b",
            "",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad}");
        }
    }
}
