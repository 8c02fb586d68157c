//! Path normalisation of the HTTP connection manager: three fields on the wire, one value in the model.

use outrigger_model::path::{EscapedSlashes, PathNormalization};

use super::flaw::{Decoded, flaw};
use crate::wire::hcm::HttpConnectionManager;
use crate::wire::hcm::http_connection_manager::PathWithEscapedSlashesAction as Action;

pub(super) fn encode_escaped(slashes: EscapedSlashes) -> Action {
    match slashes {
        EscapedSlashes::Keep => Action::KeepUnchanged,
        EscapedSlashes::Reject => Action::RejectRequest,
        EscapedSlashes::Decode => Action::UnescapeAndForward,
    }
}

/// A control plane that says nothing of paths gets our default, not Envoy's, which is to judge them as they were sent.
pub(super) fn decode(wire: &HttpConnectionManager) -> Decoded<PathNormalization> {
    let escaped_slashes = match Action::try_from(wire.path_with_escaped_slashes_action) {
        Ok(Action::ImplementationSpecificDefault | Action::KeepUnchanged) => EscapedSlashes::Keep,
        Ok(Action::RejectRequest) => EscapedSlashes::Reject,
        Ok(Action::UnescapeAndForward) => EscapedSlashes::Decode,
        Ok(Action::UnescapeAndRedirect) => {
            return flaw(
                "path_with_escaped_slashes_action",
                "UNESCAPE_AND_REDIRECT is not supported; use UNESCAPE_AND_FORWARD or REJECT_REQUEST",
            );
        }
        Err(_) => {
            let value = wire.path_with_escaped_slashes_action;
            return flaw("path_with_escaped_slashes_action", format!("{value} is unknown"));
        }
    };
    Ok(match &wire.normalize_path {
        None => PathNormalization { escaped_slashes, ..PathNormalization::default() },
        Some(base) => {
            PathNormalization { base: base.value, merge_slashes: wire.merge_slashes, escaped_slashes }
        }
    })
}
