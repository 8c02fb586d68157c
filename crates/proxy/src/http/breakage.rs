//! What it means that a message broke off: whose fault, whether it may be tried again, what an HTTP/2 peer is told.

use h2::Reason;

use super::body::{BodyError, reset_reason};
use super::h1::Refusal;
use crate::failure::{Failure, FailureKind, Retry, Stage};

/// A response that broke off, and what an HTTP/2 client is told.
pub struct Cut {
    pub failure: Failure,
    pub reason: Reason,
}

impl From<Failure> for Cut {
    fn from(failure: Failure) -> Self {
        Self { failure, reason: Reason::INTERNAL_ERROR }
    }
}

/// The client is gone.
pub fn client_gone(detail: &str) -> Failure {
    Failure::downstream(Stage::Forward, FailureKind::DownstreamClosed, detail.to_owned())
}

/// A request body that broke off.
pub fn downstream_failure(error: &BodyError) -> Failure {
    match error {
        BodyError::Refused(Refusal::UnexpectedEof) | BodyError::Io(_) | BodyError::H2(_) => {
            client_gone(&error.to_string())
        }
        BodyError::Refused(refusal) => {
            let kind = FailureKind::BadRequest(refusal.status());
            Failure::downstream(Stage::Forward, kind, refusal.to_string())
        }
    }
}

/// A response body that broke off.
pub fn upstream_cut(error: &BodyError) -> Cut {
    let kind = match error {
        BodyError::Refused(Refusal::UnexpectedEof) => FailureKind::UpstreamClosed,
        BodyError::Refused(_) => FailureKind::UpstreamProtocol,
        BodyError::Io(_) | BodyError::H2(_) => FailureKind::UpstreamReset,
    };
    let failure = Failure::upstream(Stage::Forward, kind, Retry::Never, error.to_string());
    Cut { failure, reason: reset_reason(error).unwrap_or(Reason::INTERNAL_ERROR) }
}

/// An HTTP/2 stream that ended before its response.
pub fn h2_failure(error: &h2::Error) -> Failure {
    // RFC 9113, sections 6.8 and 8.7: REFUSED_STREAM, and a GOAWAY below this stream (the only ones that the h2 crate
    // reports it to), say that the request was not processed.
    let refused = error.reason() == Some(Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote());
    let (kind, retry) = match refused {
        true => (FailureKind::RefusedStream, Retry::Safe),
        false if error.is_io() => (FailureKind::UpstreamClosed, Retry::Never),
        false if error.is_reset() && error.is_remote() => (FailureKind::UpstreamReset, Retry::Never),
        false => (FailureKind::UpstreamProtocol, Retry::Never),
    };
    Failure::upstream(Stage::Forward, kind, retry, error.to_string())
}

/// A response that is none.
pub fn protocol_error(detail: String) -> Failure {
    Failure::upstream(Stage::Forward, FailureKind::UpstreamProtocol, Retry::Never, detail)
}
