//! Open connections of the control plane, whose peers may lose its trust while they are open.
//!
//! A handshake is verified once; an xDS stream lives for weeks. So whoever serves a connection waits beside it for the
//! moment when its peer would no longer be let in: its root is gone, or it was revoked. That its certificate has expired
//! since ends nothing.

use std::future::pending;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use crate::clock::unix_time;
use crate::credentials::CredentialStore;
use crate::error::CertificateProblem;
use crate::verify::{Role, verify_peer};

/// Ends when the chain that a client showed now is no longer trusted, with the reason; never for one that showed none.
pub async fn distrusted(store: CredentialStore, shown: Vec<CertificateDer<'static>>) -> CertificateProblem {
    if shown.is_empty() {
        return pending().await;
    }
    let verified = unix_time(SystemTime::now());
    let mut changed = store.subscribe();
    loop {
        // Also before the first change: there may have been one between the handshake and now.
        if let Err(problem) = verify_peer(&store.load().bundle, &shown, Role::Client, verified) {
            return problem;
        }
        if changed.changed().await.is_err() {
            return pending().await; // the process is ending
        }
    }
}
