//! Sessions: what a client carries, and what it is given to carry. They are the routes' that have one; where a request goes then is
//! `http/session.rs`'s.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_model::ext_authz::How;
use outrigger_model::request::cookie;
use outrigger_model::route::session::Token;
use outrigger_model::route::table::CompiledRoute;
use outrigger_model::route::{Session, SessionBy};

use super::{Input, ResponseEdit, State, Verdict};
use crate::http::hash::set_cookie;
use crate::http::head::ResponseHead;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// Looks at what a client carries.
pub fn on_request(input: &Input<'_>) -> Verdict {
    let session = input.route.and_then(|route| route.config.session.as_deref());
    session.map_or(Verdict::Continue, |session| look(session, input))
}

#[cold]
fn look(session: &Session, input: &Input<'_>) -> Verdict {
    let head = input.request;
    if !session.by.is_for(head.path()) {
        return Verdict::Continue;
    }
    let token = match &session.by {
        SessionBy::Cookie { name, .. } => cookie(head, name).and_then(|text| session.read(text, now())),
        SessionBy::Header { name } => head.first(name).and_then(|text| session.read(text, now())),
    };
    Verdict::Keep(State::Session(token))
}

/// What the client is to carry from now on, after an answer of this endpoint.
#[cold]
pub fn on_response(
    had: Option<Token>,
    head: &mut ResponseHead,
    route: &CompiledRoute,
    address: SocketAddr,
) {
    let Some(session) = route.config.session.as_deref() else { return };
    let now = now();
    let Some(token) = session.answered(had, address, now) else { return };
    let text = session.write(&token);
    match &session.by {
        SessionBy::Header { name } => {
            ResponseEdit { name: name.clone().into(), value: text.into_bytes(), how: How::Set }
        }
        SessionBy::Cookie { name, path, permanent, attributes } => {
            let left = token.expires.saturating_sub(now);
            let lives = permanent.then(|| Duration::from_secs(left));
            let lives = lives.unwrap_or_default();
            ResponseEdit::cookie(set_cookie(name, &text, path.as_deref(), lives, attributes))
        }
    }
    .apply(head);
}
