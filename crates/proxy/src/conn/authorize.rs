//! Authorization of a connection: L4, pure. Requests are authorized again, by the filters of HTTP.

use std::sync::Arc;

use outrigger_model::policy::decide::Decision;

use crate::downstream::ConnInfo;
use crate::failure::{Failure, FailureKind, Stage};

/// Whether the connection's chain lets it in.
///
/// # Errors
/// A policy denies it; named, with the user object behind it.
pub(super) fn connection(info: &ConnInfo) -> Result<(), Failure> {
    match info.chain.authorization.decide_connection(&info.view()) {
        Decision::Allow => Ok(()),
        Decision::Deny(denial) => {
            let who = info.peer.as_ref().map_or("a client without identity".into(), ToString::to_string);
            let failure = Failure::local(Stage::Authorize, FailureKind::Denied, format!("{who}: {denial}"));
            Err(failure.because_of(denial.origin().cloned().map(Arc::new)))
        }
    }
}
