//! The checks of a peer's certificate, on the path of every handshake: webpki only, no second X.509 parser.
//!
//! Exactly one URI SAN, SPIFFE, in a known trust domain, a chain to that domain's roots, validity, cA=false
//! (X509-SVID, sections 4 and 5), and not revoked. DNS names are never looked at: the mesh names peers by identity.

use std::time::{Duration, UNIX_EPOCH};

use outrigger_model::identity::SpiffeId;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::bundle::TrustBundle;
use crate::error::CertificateProblem;
use crate::provider::provider;

/// Which side of a handshake the certificate speaks for; decides the extended key usage that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The peer connected to us.
    Client,
    /// We connected to the peer.
    Server,
}

/// The identity in the leaf of a finished handshake's chain.
///
/// # Errors
/// When there is no certificate, or not exactly one URI SAN, or it is not a SPIFFE id.
pub fn peer_identity(certificates: &[CertificateDer<'_>]) -> Result<SpiffeId, CertificateProblem> {
    let leaf = certificates.first().ok_or(CertificateProblem::Missing)?;
    identity_of(&parse(leaf)?)
}

/// Checks a whole chain, leaf first, as a handshake does. Also for open connections after a change of trust.
///
/// # Errors
/// The first check that fails.
pub fn verify_peer(
    bundle: &TrustBundle,
    certificates: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, CertificateProblem> {
    let (leaf, intermediates) = certificates.split_first().ok_or(CertificateProblem::Missing)?;
    verify_chain(bundle, leaf, intermediates, role, now)
}

pub(crate) fn verify_chain(
    bundle: &TrustBundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, CertificateProblem> {
    let leaf = parse(leaf)?;
    let id = identity_of(&leaf)?;
    // The peer's own claim selects the roots: a root of one trust domain can never vouch for another.
    let Some(anchors) = bundle.anchors(id.trust_domain()) else {
        return Err(CertificateProblem::UnknownTrustDomain { id, known: bundle.accepted_names() });
    };
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let algorithms = provider().signature_verification_algorithms.all;
    match leaf.verify_for_usage(algorithms, anchors, intermediates, now, usage, None, None) {
        Ok(_) => match bundle.revoked().find(&id, leaf.serial()) {
            None => Ok(id),
            Some(entry) => Err(CertificateProblem::Revoked { entry: entry.to_string(), id }),
        },
        Err(error) => Err(explain(error, id, anchors.len(), now)),
    }
}

fn parse<'a>(leaf: &'a CertificateDer<'a>) -> Result<EndEntityCert<'a>, CertificateProblem> {
    EndEntityCert::try_from(leaf).map_err(|error| CertificateProblem::Unreadable(error.to_string()))
}

fn identity_of(leaf: &EndEntityCert<'_>) -> Result<SpiffeId, CertificateProblem> {
    let mut uris = leaf.valid_uri_names();
    let uri = uris.next().ok_or(CertificateProblem::NoIdentity)?;
    if uris.next().is_some() {
        let all = leaf.valid_uri_names().take(8).map(printable).collect();
        return Err(CertificateProblem::SeveralIdentities(all));
    }
    SpiffeId::parse(uri).map_err(|error| CertificateProblem::NotSpiffe(printable(&error.to_string())))
}

// A peer's bytes end in our logs: control characters do not.
fn printable(text: &str) -> String {
    text.chars().take(256).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn explain(error: webpki::Error, id: SpiffeId, roots: usize, now: UnixTime) -> CertificateProblem {
    let at = |time: UnixTime| UNIX_EPOCH + Duration::from_secs(time.as_secs());
    match error {
        webpki::Error::CertExpired { not_after, .. } => {
            CertificateProblem::Expired { id: Some(id), not_after: at(not_after), now: at(now) }
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            CertificateProblem::NotYetValid { id: Some(id), not_before: at(not_before), now: at(now) }
        }
        webpki::Error::CaUsedAsEndEntity => CertificateProblem::IsAuthority(id),
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            CertificateProblem::UnknownIssuer { id, roots, reason: error.to_string() }
        }
        other => CertificateProblem::Chain { id, reason: other.to_string() },
    }
}
