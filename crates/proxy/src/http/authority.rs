//! Another authority for a request: of its route, of a share, of the endpoint of an attempt.

use outrigger_model::route::Rewrite;

use crate::failure::{Failure, FailureKind, Stage};
use crate::http::h1::{EditError, MAX_HEAD};
use crate::http::head::RequestHead;
use crate::runtime::endpoint::EndpointState;

/// Envoy's header for a rewritten host.
const ORIGINAL_HOST: &str = "x-envoy-original-host";
const FORWARDED_HOST: &str = "x-forwarded-host";

/// The name of an attempt's endpoint, where the route wants that to be the authority.
///
/// # Errors
/// It is no authority.
#[cold]
pub fn of_endpoint(
    head: &mut RequestHead,
    rewrite: &Rewrite,
    endpoint: &EndpointState,
) -> Result<(), EditError> {
    match &endpoint.hostname {
        Some(name) if **name != *head.authority() => replace(head, rewrite, name),
        _ => Ok(()),
    }
}

/// Another authority, and the one before in a header, as Envoy says it.
///
/// # Errors
/// It is no authority.
pub fn replace(head: &mut RequestHead, rewrite: &Rewrite, new: &str) -> Result<(), EditError> {
    let original = head.authority().to_owned();
    head.set_authority(new)?;
    if rewrite.forwarded_host && !original.is_empty() {
        forwarded_host(head, &original);
    }
    if head.size() + ORIGINAL_HOST.len() + original.len() <= MAX_HEAD {
        put(head, ORIGINAL_HOST, original.as_bytes());
    }
    Ok(())
}

/// As Envoy: behind what is there, unless that ends so.
#[cold]
fn forwarded_host(head: &mut RequestHead, original: &str) {
    let mut hosts = Vec::new();
    for value in head.headers(FORWARDED_HOST) {
        hosts.extend_from_slice(value);
        hosts.push(b',');
    }
    let known = hosts.strip_suffix(b",").and_then(|hosts| hosts.rsplit(|byte| *byte == b',').next());
    if known.is_some_and(|last| last.trim_ascii() == original.as_bytes()) {
        return;
    }
    hosts.extend_from_slice(original.as_bytes());
    if head.size() + FORWARDED_HOST.len() + hosts.len() <= MAX_HEAD {
        put(head, FORWARDED_HOST, &hosts);
    }
}

/// Sets a header of ours; a head that is full already goes on without it.
#[inline(always)]
pub fn put(head: &mut RequestHead, name: &str, value: &[u8]) {
    if head.set(name, value).is_err() {
        // What somebody else wrote there must not pass for ours.
        head.remove(name);
        tracing::debug!(header = name, "a request head has no room for a header of ours");
    }
}

/// What could not be edited: the client's own text made it so.
#[cold]
pub fn bad(error: EditError) -> Failure {
    let kind = FailureKind::BadRequest(if error == EditError::TooLarge { 431 } else { 400 });
    Failure::downstream(Stage::Route, kind, error.to_string())
}
