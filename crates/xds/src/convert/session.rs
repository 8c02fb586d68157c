//! Sessions, `envoy.extensions.filters.http.stateful_session.v3`: what a route, a virtual host or a route configuration says. The ends that
//! Envoy's messages cannot say ride in our own metadata, in milliseconds.

use std::time::Duration;

use outrigger_model::route::{Session, SessionBy};

use super::extension::{is, unpack};
use super::flaw::{Decoded, Under, flaw};
use super::value::{duration_at, status};
use super::{headers, left_out, metadata};
use crate::kind::ClientKind;
use crate::wire::core::{Metadata, TypedExtensionConfig};
use crate::wire::http_session::{
    Cookie, CookieAttribute, CookieBasedSessionState, HeaderBasedSessionState, Override, StatefulSession,
    StatefulSessionPerRoute,
};
use crate::wire::protobuf::{Any, Value, value::Kind};
use crate::wire::{self, any};

/// The largest whole number that a double has to every digit.
const MOST: f64 = 9_007_199_254_740_991.0;

/// Of one place: `Some(None)` is that there is none.
pub(super) type Said = Option<Option<Box<Session>>>;

pub(super) fn encode(session: &Session) -> Any {
    let (name, state) = match &session.by {
        SessionBy::Cookie { name, path, permanent, attributes } => {
            let attribute = |(name, value): &(String, String)| CookieAttribute {
                name: name.clone(),
                value: value.clone(),
            };
            let cookie = Cookie {
                name: name.clone(),
                ttl: session.absolute.filter(|_| *permanent).map(wire::duration),
                path: path.clone().unwrap_or_default(),
                attributes: attributes.iter().map(attribute).collect(),
            };
            ("envoy.http.stateful_session.cookie", any(&CookieBasedSessionState { cookie: Some(cookie) }))
        }
        SessionBy::Header { name } => {
            ("envoy.http.stateful_session.header", any(&HeaderBasedSessionState { name: name.clone() }))
        }
    };
    let state = TypedExtensionConfig { name: name.to_owned(), typed_config: Some(state) };
    let session = StatefulSession {
        session_state: Some(state),
        strict: session.strict.is_some(),
        status_on_strict_destination_not_found: session
            .strict
            .filter(|status| *status != 503)
            .map_or(0, u32::from),
        ..Default::default()
    };
    any(&StatefulSessionPerRoute { r#override: Some(Override::StatefulSession(session)) })
}

/// What ours are told beside it.
pub(super) fn encode_ours(session: &Session, kind: ClientKind) -> Option<Value> {
    let permanent = matches!(session.by, SessionBy::Cookie { permanent: true, .. });
    let absolute = session.absolute.filter(|_| !permanent);
    if kind != ClientKind::Outrigger || (absolute.is_none() && session.idle.is_none()) {
        return None;
    }
    // Times of rules are whole milliseconds and far below the limit of a double.
    let number = |time: Option<Duration>| Value {
        kind: Some(Kind::NumberValue(time.map_or(0.0, |time| time.as_millis() as f64))),
    };
    Some(metadata::object([("absolute", number(absolute)), ("idle", number(session.idle))]))
}

pub(super) fn decode(config: &Any) -> Decoded<Said> {
    let wire: StatefulSessionPerRoute = unpack(config)?;
    match &wire.r#override {
        Some(Override::Disabled(true)) => Ok(Some(None)),
        Some(Override::Disabled(false)) => flaw("disabled", "must be true"),
        Some(Override::StatefulSession(session)) => {
            decode_session(session).under("stateful_session").map(|session| Some(session.map(Box::new)))
        }
        None => flaw("disabled", "one of disabled and stateful_session is required"),
    }
}

/// The filter itself, which is there for routes.
pub(super) fn of_listener(config: &Any) -> Decoded<()> {
    if unpack::<StatefulSession>(config).under("typed_config")?.session_state.is_some() {
        left_out("a session of all routes of a listener; give it to the routes");
    }
    Ok(())
}

fn decode_session(wire: &StatefulSession) -> Decoded<Option<Session>> {
    let Some(state) = &wire.session_state else { return Ok(None) };
    let (by, absolute) = match &state.typed_config {
        Some(config) if is::<CookieBasedSessionState>(config) => {
            decode_cookie(&unpack(config)?).under("session_state.typed_config")?
        }
        Some(config) if is::<HeaderBasedSessionState>(config) => {
            let header: HeaderBasedSessionState = unpack(config)?;
            let name = headers::header_name(&header.name).under("session_state.typed_config.name")?;
            (SessionBy::Header { name }, None)
        }
        _ => {
            left_out("a session that is carried by neither a cookie nor a header");
            return Ok(None);
        }
    };
    let strict = match (wire.strict, wire.status_on_strict_destination_not_found) {
        (false, _) => None,
        (true, 0) => Some(503),
        (true, code) => Some(status(code, 200..=599, "status_on_strict_destination_not_found")?),
    };
    Ok(Some(Session { by, strict, absolute, idle: None }))
}

fn decode_cookie(wire: &CookieBasedSessionState) -> Decoded<(SessionBy, Option<Duration>)> {
    let Some(cookie) = &wire.cookie else { return flaw("cookie", "is required") };
    let decoded = || {
        let clean = |text: &str| text.bytes().all(|b| (b' '..0x7f).contains(&b) && b != b';');
        if headers::header_name(&cookie.name).is_err() {
            return flaw("name", format!("\"{}\" is no name of a cookie", cookie.name.escape_debug()));
        }
        if !clean(&cookie.path) {
            return flaw("path", "must have no semicolons and no control characters");
        }
        if !cookie.attributes.iter().all(|one| clean(&one.name) && clean(&one.value) && !one.name.is_empty())
        {
            return flaw("attributes", "must have a name, and neither semicolons nor control characters");
        }
        let ttl = duration_at(cookie.ttl.as_ref(), "ttl")?.filter(|ttl| !ttl.is_zero());
        let attributes = cookie.attributes.iter().map(|one| (one.name.clone(), one.value.clone()));
        let by = SessionBy::Cookie {
            name: cookie.name.clone(),
            path: (!cookie.path.is_empty()).then(|| cookie.path.clone()),
            permanent: ttl.is_some(),
            attributes: attributes.collect(),
        };
        Ok((by, ttl))
    };
    decoded().under("cookie")
}

/// Adds what only ours are told.
pub(super) fn decode_ours(session: &mut Session, wire: Option<&Metadata>) -> Decoded<()> {
    const FIELD: &str = "metadata.filter_metadata[outrigger].session";
    let Some(value) = metadata::our(wire, "session") else { return Ok(()) };
    let Some(fields) = metadata::as_map(value) else { return flaw(FIELD, "must be an object") };
    let time = |name: &str| match fields.get(name).and_then(|value| value.kind.as_ref()) {
        Some(Kind::NumberValue(millis)) if (0.0..=MOST).contains(millis) => {
            Ok(Some(Duration::from_millis(*millis as u64)).filter(|time| !time.is_zero()))
        }
        _ => flaw(format_args!("{FIELD}.{name}"), "must be a number of milliseconds"),
    };
    session.absolute = session.absolute.or(time("absolute")?);
    session.idle = time("idle")?;
    Ok(())
}
