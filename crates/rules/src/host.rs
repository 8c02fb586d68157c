//! Names of services: how what a user writes becomes the one name that routes, destinations and the registry agree on.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A resolved host: lower case, without a trailing dot; a service is `name.namespace.svc.<domain>`. May be a wildcard.
/// Copies share the text: whatever was compiled of a service notes its host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Host(Arc<str>);

impl From<String> for Host {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.as_str().to_owned()
    }
}

impl Host {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is `*` or starts with `*.`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// The service of the same name in another namespace; only of a service's whole name.
    pub(crate) fn moved_to(&self, namespace: &str) -> Self {
        let mut parts = self.0.splitn(3, '.');
        match (parts.next(), parts.nth(1)) {
            (Some(name), Some(domain)) => Self(format!("{name}.{namespace}.{domain}").into()),
            _ => self.clone(),
        }
    }

    /// Whether a name without wildcards belongs to this host.
    pub fn covers(&self, name: &str) -> bool {
        match self.0.strip_prefix('*') {
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => *self.0 == *name,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Turns names into [`Host`]s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    domain: String,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new("cluster.local")
    }
}

/// Why a text is not a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing there.
    #[error("a host must not be empty")]
    Empty,
    /// Longer than DNS allows.
    #[error("a host has at most 253 characters, this one {0}")]
    Length(usize),
    /// A label that DNS does not allow.
    #[error(
        "\"{0}\" is not a host: labels have 1 to 63 letters, digits, '-' or '_'; a wildcard is '*' or starts with '*.'"
    )]
    Label(String),
}

impl Resolver {
    /// With the mesh's domain, such as `cluster.local`.
    pub fn new(domain: &str) -> Self {
        Self { domain: domain.trim_matches('.').to_ascii_lowercase() }
    }

    /// The mesh's domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The host of a service.
    pub fn service(&self, name: &str, namespace: &str) -> Host {
        let mut host = format!("{name}.{namespace}.svc.{}", self.domain);
        host.make_ascii_lowercase();
        host.into()
    }

    /// Resolves what was written in a rule of `namespace`: `reviews` is that namespace's service, `reviews.shop` and
    /// `reviews.shop.svc` are the service of namespace `shop`; everything else stays.
    ///
    /// # Errors
    /// When the text cannot be a DNS name or wildcard.
    pub fn resolve(&self, text: &str, namespace: &str) -> Result<Host, HostError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match name.len() {
            0 => return Err(HostError::Empty),
            1..=253 => {}
            length => return Err(HostError::Length(length)),
        }
        if name == "*" {
            return Ok(name.into());
        }
        let plain = name.strip_prefix("*.").unwrap_or(&name);
        if !plain.split('.').all(is_label) {
            return Err(HostError::Label(text.chars().take(80).collect()));
        }
        if name.starts_with('*') {
            return Ok(name.into());
        }
        let labels: Vec<&str> = name.split('.').collect();
        Ok(match labels.as_slice() {
            [service] => self.service(service, namespace),
            [service, namespace] | [service, namespace, "svc"] => self.service(service, namespace),
            _ => name.into(),
        })
    }

    /// Resolves the host of a service that is described: a name with a dot is whole, `example.com` is nobody's namespace.
    ///
    /// # Errors
    /// When the text cannot be a DNS name or wildcard.
    pub fn resolve_whole(&self, text: &str, namespace: &str) -> Result<Host, HostError> {
        let host = self.resolve(text, namespace)?;
        let name = text.strip_suffix('.').unwrap_or(text);
        Ok(if name.matches('.').count() == 1 { name.to_ascii_lowercase().into() } else { host })
    }

    /// What else the rules may mean that say `example.com`: [`Resolver::resolve`] took it for a service of a namespace.
    pub fn bare(&self, host: &Host) -> Option<Host> {
        self.split(host).map(|(name, namespace)| format!("{name}.{namespace}").into())
    }

    /// How [`Resolver::resolve`] understands a host of two labels, such as `example.com`.
    pub fn mistaken(&self, host: &Host) -> Option<Host> {
        let (name, namespace) = host.0.split_once('.')?;
        (!namespace.contains('.') && !host.is_wildcard()).then(|| self.service(name, namespace))
    }

    /// `name` and `namespace` of a host that is a service of the mesh.
    pub fn split<'a>(&self, host: &'a Host) -> Option<(&'a str, &'a str)> {
        let rest = host.0.strip_suffix(self.domain.as_str())?.strip_suffix(".svc.")?;
        rest.split_once('.').filter(|(name, namespace)| *name != "*" && !namespace.contains('.'))
    }

    /// Whether a namespace may say what a host is. A name of the mesh's own domain is its namespace's, and the mesh's: nobody else says
    /// where its requests go.
    pub fn has_say(&self, namespace: &str, is_root: bool, host: &Host) -> bool {
        is_root || self.split(host).is_none_or(|(_, owner)| owner == namespace)
    }

    /// A host as people say it: `reviews.shop` for a service, otherwise the host.
    pub fn short(&self, host: &Host) -> String {
        self.split(host)
            .map_or_else(|| host.as_str().to_owned(), |(name, namespace)| format!("{name}.{namespace}"))
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_in_the_namespace_of_the_rule() {
        let resolver = Resolver::default();
        for (text, expected) in [
            ("reviews", "reviews.shop.svc.cluster.local"),
            ("Reviews", "reviews.shop.svc.cluster.local"),
            ("reviews.other", "reviews.other.svc.cluster.local"),
            ("reviews.other.svc", "reviews.other.svc.cluster.local"),
            ("reviews.other.svc.cluster.local.", "reviews.other.svc.cluster.local"),
            ("www.example.com", "www.example.com"),
            ("*.example.com", "*.example.com"),
            ("*", "*"),
        ] {
            assert_eq!(resolver.resolve(text, "shop").unwrap().as_str(), expected);
        }
    }

    #[test]
    fn a_host_of_two_labels_is_whole_for_a_described_service_and_found_by_rules() {
        let resolver = Resolver::default();
        for (text, expected) in [
            ("example.com", "example.com"),
            ("Example.COM.", "example.com"),
            ("api.example.com", "api.example.com"),
            ("redis", "redis.shop.svc.cluster.local"),
            ("*.com", "*.com"),
            ("catalog.shop.svc", "catalog.shop.svc.cluster.local"),
        ] {
            assert_eq!(resolver.resolve_whole(text, "shop").unwrap().as_str(), expected);
        }
        let whole = resolver.resolve_whole("example.com", "shop").unwrap();
        let ruled = resolver.resolve("example.com", "shop").unwrap();
        assert_eq!((resolver.mistaken(&whole), resolver.bare(&ruled)), (Some(ruled), Some(whole)));
        let long = resolver.resolve("api.example.com", "shop").unwrap();
        assert_eq!((resolver.mistaken(&long), resolver.bare(&long)), (None, None));
    }

    #[test]
    fn what_dns_forbids_is_not_a_host() {
        for text in
            ["", ".", "a..b", "a b", "a*", "*a.b", "a.*.b", "http://reviews", "reviews:80", &"a".repeat(64)]
        {
            assert!(Resolver::default().resolve(text, "shop").is_err(), "{text}");
        }
    }

    #[test]
    fn the_domain_is_a_parameter() {
        let resolver = Resolver::new("mesh.internal");
        let host = resolver.resolve("reviews", "shop").unwrap();
        assert_eq!(host.as_str(), "reviews.shop.svc.mesh.internal");
        assert_eq!(resolver.split(&host), Some(("reviews", "shop")));
        assert_eq!(resolver.short(&host), "reviews.shop");
    }

    #[test]
    fn a_wildcard_covers_what_is_below_it_but_not_itself() {
        let host = Resolver::default().resolve("*.example.com", "shop").unwrap();
        assert!(host.covers("www.example.com"));
        assert!(!host.covers("example.com"));
    }
}
