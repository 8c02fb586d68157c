//! Root certificates by trust domain, with aliases. Immutable once built: a change is a new bundle.
//!
//! Whether a root is trustworthy is decided by whoever delivers the bundle; here is only whether it is a root at all.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use outrigger_model::identity::{SpiffeId, is_trust_domain};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::IdentityError;
use crate::revoked::Revoked;
use crate::{pem, provider};

/// The roots that this process trusts, by trust domain. Old and new roots stand side by side while roots rotate.
#[derive(Clone, Default)]
pub struct TrustBundle {
    domains: BTreeMap<String, Roots>,
    aliases: BTreeMap<String, String>,
    revoked: Arc<Revoked>,
}

#[derive(Clone, Default)]
struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    // Parsed once here and not per handshake.
    anchors: Vec<TrustAnchor<'static>>,
}

/// How a bundle is written to disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    trust_domains: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    aliases: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    revoked: Vec<String>,
}

impl TrustBundle {
    /// A bundle that trusts nobody.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The roots of one trust domain from PEM.
    ///
    /// # Errors
    /// When the PEM holds no certificate, or one that is not a certificate authority's.
    pub fn from_pem(trust_domain: &str, text: &str) -> Result<Self, IdentityError> {
        Self::empty().with_pem(trust_domain, text)
    }

    /// Adds roots from PEM.
    ///
    /// # Errors
    /// As [`TrustBundle::from_pem`].
    pub fn with_pem(self, trust_domain: &str, text: &str) -> Result<Self, IdentityError> {
        let roots = pem::certificates(text).map_err(|reason| IdentityError::bundle(trust_domain, reason))?;
        if roots.is_empty() {
            return Err(IdentityError::bundle(trust_domain, "the PEM holds no CERTIFICATE block"));
        }
        self.with_roots(trust_domain, roots)
    }

    /// Adds roots; those already there are not doubled.
    ///
    /// # Errors
    /// When the trust domain's name is not one or a certificate is not a certificate authority's.
    pub fn with_roots(
        mut self,
        trust_domain: &str,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        if !is_trust_domain(trust_domain) {
            return Err(IdentityError::bundle(trust_domain, "that is not a trust domain's name"));
        }
        let domain = self.domains.entry(trust_domain.to_owned()).or_default();
        for root in roots {
            if !domain.certificates.contains(&root) {
                let anchor = anchor(&root).map_err(|reason| IdentityError::bundle(trust_domain, reason))?;
                domain.certificates.push(root);
                domain.anchors.push(anchor);
            }
        }
        Ok(self)
    }

    /// Makes `alias` another name of `trust_domain`: same roots, same identities.
    ///
    /// # Errors
    /// When the alias is not a trust domain's name, or has roots of its own.
    pub fn with_alias(mut self, alias: &str, trust_domain: &str) -> Result<Self, IdentityError> {
        if !is_trust_domain(alias) {
            return Err(IdentityError::bundle(alias, "that is not a trust domain's name"));
        }
        if self.domains.contains_key(alias) {
            return Err(IdentityError::bundle(alias, "it has roots of its own and cannot be an alias"));
        }
        if alias != trust_domain {
            self.aliases.insert(alias.to_owned(), trust_domain.to_owned());
        }
        Ok(self)
    }

    /// The same bundle with another list of whom it trusts no longer.
    #[must_use]
    pub fn with_revoked(mut self, revoked: Arc<Revoked>) -> Self {
        self.revoked = revoked;
        self
    }

    /// Whom it trusts no longer, whatever the roots say.
    pub fn revoked(&self) -> &Arc<Revoked> {
        &self.revoked
    }

    /// All that either bundle trusts, but nobody whom one has revoked.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for (name, roots) in &other.domains {
            let domain = both.domains.entry(name.clone()).or_default();
            for (certificate, anchor) in roots.certificates.iter().zip(&roots.anchors) {
                if !domain.certificates.contains(certificate) {
                    domain.certificates.push(certificate.clone());
                    domain.anchors.push(anchor.clone());
                }
            }
        }
        for (alias, name) in &other.aliases {
            both.aliases.entry(alias.clone()).or_insert_with(|| name.clone());
        }
        if !other.revoked.is_empty() {
            both.revoked = Arc::new(self.revoked.union(&other.revoked));
        }
        both
    }

    /// The same bundle with other roots for one trust domain; the others and the aliases stay.
    ///
    /// # Errors
    /// As [`TrustBundle::with_roots`].
    pub fn replacing(
        &self,
        trust_domain: &str,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let mut other = self.clone();
        other.domains.remove(trust_domain);
        other.with_roots(trust_domain, roots)
    }

    /// The trust domain that a name or alias stands for.
    pub fn canonical<'a>(&'a self, trust_domain: &'a str) -> &'a str {
        self.aliases.get(trust_domain).map_or(trust_domain, String::as_str)
    }

    /// Whether two ids are the same workload, counting aliases of a trust domain as one.
    pub fn same_identity(&self, a: &SpiffeId, b: &SpiffeId) -> bool {
        a == b
            || (!self.aliases.is_empty()
                && self.canonical(a.trust_domain()) == self.canonical(b.trust_domain())
                && path(a) == path(b))
    }

    /// The roots of a trust domain or alias; empty when it is unknown.
    pub fn roots(&self, trust_domain: &str) -> &[CertificateDer<'static>] {
        self.domains.get(self.canonical(trust_domain)).map_or(&[], |roots| &roots.certificates)
    }

    pub(crate) fn anchors(&self, trust_domain: &str) -> Option<&[TrustAnchor<'static>]> {
        self.domains.get(self.canonical(trust_domain)).map(|roots| roots.anchors.as_slice())
    }

    /// Every trust domain and alias that this bundle accepts.
    pub fn accepted_names(&self) -> Vec<String> {
        self.domains.keys().chain(self.aliases.keys()).cloned().collect()
    }

    /// Whether there is no root at all.
    pub fn is_empty(&self) -> bool {
        self.domains.values().all(|roots| roots.certificates.is_empty())
    }

    /// The roots of one trust domain as PEM, ending in a newline; empty when it is unknown.
    pub fn to_pem(&self, trust_domain: &str) -> String {
        pem::encode_certificates(self.roots(trust_domain))
    }

    /// `trust-domain sha256:…` for every root: how people compare bundles.
    pub fn fingerprints(&self) -> Vec<String> {
        self.domains
            .iter()
            .flat_map(|(name, roots)| {
                roots
                    .certificates
                    .iter()
                    .map(move |root| format!("{name} sha256:{}", provider::sha256_hex(root)))
            })
            .collect()
    }

    /// The whole bundle as JSON, for a file.
    pub fn to_json(&self) -> String {
        let document = Document {
            version: 1,
            trust_domains: self.domains.keys().map(|name| (name.clone(), self.to_pem(name))).collect(),
            aliases: self.aliases.clone(),
            revoked: self.revoked.entries().collect(),
        };
        // Maps of strings always serialise.
        serde_json::to_string_pretty(&document).unwrap_or_default()
    }

    /// Reads what [`TrustBundle::to_json`] wrote.
    ///
    /// # Errors
    /// When it is not that format, of another version, or holds a bad root.
    pub fn from_json(text: &str) -> Result<Self, IdentityError> {
        let document: Document = serde_json::from_str(text)
            .map_err(|error| IdentityError::bundle("*", format!("it is not a bundle file: {error}")))?;
        if document.version != 1 {
            let reason = format!("its format version is {}, this program reads 1", document.version);
            return Err(IdentityError::bundle("*", reason));
        }
        let mut bundle = Self::empty();
        for (name, text) in &document.trust_domains {
            bundle = bundle.with_pem(name, text)?;
        }
        for (alias, name) in &document.aliases {
            bundle = bundle.with_alias(alias, name)?;
        }
        let revoked = Revoked::parse(&document.revoked);
        let revoked = revoked.map_err(|reason| IdentityError::bundle("*", format!("revoked: {reason}")))?;
        Ok(bundle.with_revoked(Arc::new(revoked)))
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.aliases == other.aliases
            && self.revoked == other.revoked
            && self.domains.len() == other.domains.len()
            && self
                .domains
                .iter()
                .zip(&other.domains)
                .all(|(a, b)| a.0 == b.0 && a.1.certificates == b.1.certificates)
    }
}

impl Eq for TrustBundle {}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle")
            .field("roots", &self.fingerprints())
            .field("aliases", &self.aliases)
            .field("revoked", &self.revoked.entries().collect::<Vec<_>>())
            .finish()
    }
}

fn path(id: &SpiffeId) -> &str {
    &id.principal()[id.trust_domain().len()..]
}

fn anchor(root: &CertificateDer<'static>) -> Result<TrustAnchor<'static>, String> {
    let anchor = webpki::anchor_from_trusted_cert(root)
        .map_err(|error| format!("a root is not a readable certificate: {error}"))?
        .to_owned();
    // A leaf used as an anchor would make its holder a certificate authority in all but name.
    let (_, parsed) =
        X509Certificate::from_der(root).map_err(|error| format!("a root is unreadable: {error}"))?;
    if parsed.version().0 >= 2 && !parsed.is_ca() {
        return Err(format!("\"{}\" is not a certificate authority (cA is not true)", parsed.subject()));
    }
    Ok(anchor)
}

/// Whether a certificate names itself as its issuer, as roots do.
#[cfg(feature = "csr")]
pub(crate) fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.subject() == parsed.issuer())
}
