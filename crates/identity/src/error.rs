//! What can be wrong with a certificate, and the errors of everything built on certificates.
//!
//! The texts end in logs, alerts' reasons and `x-outrigger-error`: each says what was found and what was wanted.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_model::identity::SpiffeId;

use crate::clock::rfc3339;

/// Why a certificate, ours or a peer's, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateProblem {
    /// The text holds no certificate.
    #[error("there is no certificate (no CERTIFICATE block in the PEM, or the peer presented none)")]
    Missing,
    /// The bytes are not a certificate.
    #[error("the certificate is unreadable: {0}")]
    Unreadable(String),
    /// No private key beside the certificate.
    #[error("there is no private key: the PEM needs one PRIVATE KEY block")]
    NoKey,
    /// More than one private key.
    #[error("there are {0} private keys where exactly one is wanted")]
    SeveralKeys(usize),
    /// The key is of a kind that cannot sign handshakes, or damaged.
    #[error("the private key is unusable: {0}")]
    BadKey(String),
    /// Key and certificate do not belong together.
    #[error(
        "the private key does not belong to the certificate of {0}: key and certificate come from different requests"
    )]
    WrongKey(SpiffeId),
    /// No URI SAN.
    #[error(
        "the certificate has no SPIFFE id: it needs exactly one URI subject alternative name, and has none"
    )]
    NoIdentity,
    /// Several URI SANs: which one speaks is anybody's guess, so none does.
    #[error("the certificate must have exactly one URI subject alternative name and has {}: {}", .0.len(), .0.join(", "))]
    SeveralIdentities(Vec<String>),
    /// The URI SAN is not a SPIFFE id.
    #[error("the certificate's URI is no workload identity: {0}")]
    NotSpiffe(String),
    /// Past its end.
    #[error("the certificate{} expired at {}, and now is {}", of(.id), rfc3339(*.not_after), rfc3339(*.now))]
    Expired {
        /// Whose certificate, where that is known.
        id: Option<SpiffeId>,
        /// Its end.
        not_after: SystemTime,
        /// This host's clock.
        now: SystemTime,
    },
    /// Before its start.
    #[error("the certificate{} is valid from {} and now is {}: one of the two clocks is wrong", of(.id), rfc3339(*.not_before), rfc3339(*.now))]
    NotYetValid {
        /// Whose certificate, where that is known.
        id: Option<SpiffeId>,
        /// Its start.
        not_before: SystemTime,
        /// This host's clock.
        now: SystemTime,
    },
    /// cA=true on what should be a leaf.
    #[error("the certificate of {0} is a certificate authority's (cA=true), not a workload's")]
    IsAuthority(SpiffeId),
    /// We hold no roots for the peer's trust domain.
    #[error("{id} is of trust domain \"{}\", which is not trusted here (trusted: {})", .id.trust_domain(), listed(.known))]
    UnknownTrustDomain {
        /// Who the certificate says it is.
        id: SpiffeId,
        /// The trust domains of the bundle.
        known: Vec<String>,
    },
    /// Not signed by a root of the bundle.
    #[error("the certificate of {id} does not chain to a root of trust domain \"{}\" ({roots} known): {reason}", .id.trust_domain())]
    UnknownIssuer {
        /// Who the certificate says it is.
        id: SpiffeId,
        /// How many roots were tried.
        roots: usize,
        /// What path building said.
        reason: String,
    },
    /// Any other failure of path building.
    #[error("the certificate of {id} cannot be verified: {reason}")]
    Chain {
        /// Who the certificate says it is.
        id: SpiffeId,
        /// What path building said.
        reason: String,
    },
    /// Good in all but that an operator has revoked it.
    #[error("the certificate of {id} is revoked ({entry}); `outrigger identity reinstate` takes that back")]
    Revoked {
        /// Who the certificate says it is.
        id: SpiffeId,
        /// What is revoked: the identity, or the serial number.
        entry: String,
    },
    /// A good certificate of somebody else: secure naming refuses.
    #[error("expected {expected}, but the peer is {presented}")]
    WrongIdentity {
        /// Whom we wanted.
        expected: String,
        /// Who answered.
        presented: SpiffeId,
    },
}

fn of(id: &Option<SpiffeId>) -> String {
    id.as_ref().map(|id| format!(" of {id}")).unwrap_or_default()
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl CertificateProblem {
    /// Finds the problem inside a handshake's `io::Error` or `rustls::Error`, when one of our verifiers raised it.
    pub fn find<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e Self> {
        if let Some(found) = error.downcast_ref::<Self>() {
            return Some(found);
        }
        if let Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) =
            error.downcast_ref::<rustls::Error>()
        {
            return other.0.downcast_ref::<Self>();
        }
        // `io::Error::source` skips the error that it wraps, so its inside is asked first.
        if let Some(io) = error.downcast_ref::<io::Error>()
            && let Some(inner) = io.get_ref()
        {
            return Self::find(inner);
        }
        error.source().and_then(Self::find)
    }
}

impl From<CertificateProblem> for rustls::Error {
    fn from(problem: CertificateProblem) -> Self {
        use rustls::CertificateError as Alert;
        match &problem {
            // The variants with an alert of their own would lose our text; the peer learns "certificate unknown".
            CertificateProblem::Missing => Self::NoCertificatesPresented,
            _ => Self::InvalidCertificate(Alert::Other(rustls::OtherError(Arc::new(problem)))),
        }
    }
}

/// What goes wrong around credentials, files, the authority and the control plane.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A certificate is refused.
    #[error(transparent)]
    Certificate(#[from] CertificateProblem),
    /// There is no certificate yet.
    #[error(
        "this workload has no certificate yet: the control plane has not issued one (see /certs for the reason)"
    )]
    NoCertificate,
    /// A trust bundle cannot be used.
    #[error("the trust bundle of \"{trust_domain}\" is unusable: {reason}")]
    Bundle {
        /// Which trust domain.
        trust_domain: String,
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file's content is not what it should be.
    #[error("{}: {reason}", .path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// rustls refuses a configuration.
    #[error("TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
    /// Keys or certificates cannot be made.
    #[error("certificate authority: {0}")]
    Authority(String),
    /// The certificate request is not acceptable.
    #[error("certificate request: {0}")]
    Request(String),
    /// The join file is not acceptable.
    #[error("join file: {0}")]
    Join(String),
    /// The control plane cannot be reached or refuses.
    #[error("control plane: {0}")]
    Control(String),
}

impl IdentityError {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    pub(crate) fn content(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Content { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn bundle(trust_domain: &str, reason: impl Into<String>) -> Self {
        Self::Bundle { trust_domain: trust_domain.to_owned(), reason: reason.into() }
    }
}
