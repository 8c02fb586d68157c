//! What the dialects have in common of sessions.

use std::time::Duration;

use outrigger_model::route::{Session, SessionBy};
use serde::Serialize;

use crate::finding::{code, quote};
use crate::intent::{HttpRoute, Origin, Target};
use crate::reader::{At, Reader, is_header_name};

/// The name of a cookie or a header where none is said: another for each part of a rule whose sessions are others, because a token of
/// another's would lead nowhere, and each answer take its place.
pub(super) fn own_name(of: &Origin, part: &str) -> String {
    let (namespace, name) = (&of.namespace, &of.name);
    let dot = if part.is_empty() { "" } else { "." };
    format!("outrigger-session.{namespace}.{name}{dot}{part}")
}

/// A short name for a part that has none: by what it says, not by where it stands, so that a rule that is written above changes nothing.
/// It is the same in every process and release.
pub(super) fn digest(part: &impl Serialize) -> String {
    let text = serde_json::to_vec(part).unwrap_or_default();
    // FNV-1a.
    let hash = text.iter().fold(0x811c_9dc5_u32, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

/// Where requests of a route may go, whatever the shares.
pub(super) fn places(route: &HttpRoute) -> Vec<(&str, Option<&str>, Option<u16>)> {
    fn place(to: &Target) -> (&str, Option<&str>, Option<u16>) {
        (to.host.as_str(), to.subset.as_deref(), to.port)
    }
    let mut places: Vec<_> = route.targets.iter().map(|to| place(&to.target)).collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// Routes whose clients carry their sessions under one name although they are others. `items` is where the routes were written.
pub(super) fn mixed_up(reader: &mut Reader<'_>, items: &[At<'_>], routes: &[HttpRoute]) {
    for (i, route) in routes.iter().enumerate() {
        let Some(session) = route.route.session.as_deref() else { continue };
        let other = |other: &&HttpRoute| {
            let of = other.route.session.as_deref();
            of.is_some_and(|of| {
                carried(of) == carried(session) && (of != session || places(other) != places(route))
            })
        };
        let at = |route: &HttpRoute| items.iter().find(|at| at.place() == route.place);
        let Some((other, at)) = routes[..i].iter().find(other).and_then(at).zip(at(route)) else { continue };
        let message = format!(
            "{}: its clients carry {:?} as those of {} do, whose sessions are others: each answer of one ends a session of the other; \
             name another",
            at.path,
            carried(session).0,
            other.path
        );
        reader.warn(code::NO_EFFECT, at, message);
    }
}

/// What a session is carried by: two of the same can not be told apart.
fn carried(session: &Session) -> (&str, Option<&str>) {
    match &session.by {
        SessionBy::Cookie { name, path, .. } => (name, path.as_deref()),
        SessionBy::Header { name } => (name, None),
    }
}

/// The path of a cookie. Without a slash at its begin it is no request's, and browsers pass over it.
pub(super) fn cookie_path(reader: &mut Reader<'_>, at: &At<'_>) -> Option<String> {
    let path = clean(reader, at)?;
    if path.starts_with('/') {
        return Some(path);
    }
    reader.error(at, format!("{} must begin with a slash, not be {}", at.path, quote(&path)));
    None
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
