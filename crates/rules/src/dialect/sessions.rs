//! What the dialects have in common of sessions.

use std::time::Duration;

use crate::finding::{code, quote};
use crate::intent::Origin;
use crate::reader::{At, Reader, is_header_name};

/// The name of a cookie or a header where none is said: one for each rule, because a token of another's would lead nowhere.
pub(super) fn own_name(of: &Origin, part: &str) -> String {
    let (namespace, name) = (&of.namespace, &of.name);
    format!("outrigger-session.{namespace}.{name}{part}")
}

/// A token, as RFC 6265 wants it.
pub(super) fn cookie_name(reader: &mut Reader<'_>, at: &At<'_>) -> Option<String> {
    let name = reader.text(Some(at.clone()))?;
    if is_header_name(&name) {
        return Some(name);
    }
    reader.error(at, format!("{}: {} is not a name of a cookie", at.path, quote(&name)));
    None
}

/// A text that a cookie can have.
pub(super) fn clean(reader: &mut Reader<'_>, at: &At<'_>) -> Option<String> {
    let text = reader.text(Some(at.clone()))?;
    if text.bytes().all(|b| (b' '..0x7f).contains(&b) && b != b';') {
        return Some(text);
    }
    reader.error(at, format!("{} must have neither semicolons nor control characters", at.path));
    None
}

/// A session that ends anyway does not end by silence.
pub(super) fn ends(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    absolute: Option<Duration>,
) -> Option<Duration> {
    let idle = reader.positive(at.clone())?;
    if let (Some(at), Some(absolute)) = (at, absolute)
        && idle >= absolute
    {
        let message = format!("{} has no effect: the session ends after {absolute:?} anyway", at.path);
        reader.warn(code::NO_EFFECT, &at, message);
    }
    Some(idle)
}
