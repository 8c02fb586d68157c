#![forbid(unsafe_code)]
//! Who speaks, and how that is proven: keys and certificates with SPIFFE ids, their life cycle, the CSR client,
//! the certificate authority, and the rustls configurations for both ends of mesh mTLS.
//!
//! Owns trust bundles, credentials and every check of a peer's certificate. Knows nothing of routing or policy:
//! what an identity may do is decided elsewhere.
//!
//! ```text
//! JoinFile ─> CredentialStore <─ run_renewal ─ ControlPlane (channel) ─ CertificateService ─ Authority
//!                   │
//!               WorkerTls ─> ServerConfig (accept) / ClientConfig (connect) ─> peer_identity
//! ```

pub mod accept;
pub mod bundle;
pub mod cert;
pub mod clock;
pub mod connect;
pub mod credentials;
pub mod error;
pub mod handover;
pub mod join;
pub mod revoked;
pub mod schedule;
pub mod state_dir;
pub mod upstream;
pub mod verify;
pub mod worker;

#[cfg(feature = "ca")]
pub mod authority;
#[cfg(feature = "csr")]
pub mod channel;
#[cfg(any(feature = "csr", feature = "ca"))]
pub mod csr;
#[cfg(feature = "ca")]
pub mod distrust;
#[cfg(feature = "ca")]
pub mod incoming;

mod pem;
mod proof;
mod provider;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use accept::{ClientAuth, server_config};
#[cfg(feature = "ca")]
pub use authority::{Authority, AuthorityOptions, IssuedIdentity, keep_server_certificate};
pub use bundle::TrustBundle;
pub use cert::WorkloadCertificate;
#[cfg(feature = "csr")]
pub use channel::{ControlPeer, ControlPlane};
pub use connect::{PeerExpectation, client_config};
pub use credentials::{CredentialStore, Credentials};
#[cfg(feature = "csr")]
pub use csr::renewal::{Enrollment, RenewalHandle, RenewalStatus, Token, run_renewal};
#[cfg(feature = "ca")]
pub use csr::service::{Caller, CallerPolicy, CertificateService, Denied};
pub use error::{CertificateProblem, IdentityError};
#[cfg(feature = "ca")]
pub use incoming::{Handshaker, PeerInfo, PeerStream, Refused, TlsListener};
pub use join::JoinFile;
pub use revoked::{Revocation, Revoked};
pub use state_dir::{Lock, StateDir};
pub use verify::{peer_identity, verify_peer};
pub use worker::WorkerTls;

use outrigger_model::identity::{SpiffeError, SpiffeId};

/// The namespace of the control plane's own identity.
pub const CONTROL_NAMESPACE: &str = "outrigger-system";
/// The service account of the control plane's own identity.
pub const CONTROL_SERVICE_ACCOUNT: &str = "outrigger-control";

/// The fixed identity of the control plane, `spiffe://<td>/ns/outrigger-system/sa/outrigger-control`.
///
/// # Errors
/// When the trust domain is not one.
pub fn control_plane_id(trust_domain: &str) -> Result<SpiffeId, SpiffeError> {
    SpiffeId::workload(trust_domain, CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT)
}
