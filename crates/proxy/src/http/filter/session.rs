//! Sessions: what a client carries, and what it is given to carry. They are the routes' that have one; where a request goes then is
//! `http/session.rs`'s.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_model::ext_authz::How;
use outrigger_model::request::cookie;
use outrigger_model::route::session::Token;
use outrigger_model::route::{Session, SessionBy};

use super::{Act, By, Input, ResponseEdit, State, Verdict};
use crate::http::hash::set_cookie;
use crate::http::head::ResponseHead;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// Those of routes.
#[derive(Debug)]
pub struct Sessions;

impl Act for Sessions {
    /// Looks at what a client carries.
    fn on_request(&self, input: &Input<'_>) -> Verdict {
        let session = input.route.and_then(|route| route.config.session.as_deref());
        session.map_or(Verdict::Continue, |session| look(session, input))
    }

    /// Says what it is to carry from now on, after an answer of this endpoint.
    fn on_response(&self, state: &mut State, head: &mut ResponseHead, by: By<'_>) {
        if let (State::Session(had), By::Upstream(route, address)) = (state, by)
            && let Some(session) = route.config.session.as_deref()
            && let Some(edit) = answered(session, *had, address)
        {
            edit.apply(head);
        }
    }

    fn judges(&self) -> bool {
        false
    }
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

#[cold]
fn answered(session: &Session, had: Option<Token>, address: SocketAddr) -> Option<ResponseEdit> {
    let now = now();
    let token = session.answered(had, address, now)?;
    let text = session.write(&token);
    Some(match &session.by {
        SessionBy::Header { name } => {
            ResponseEdit { name: name.clone().into(), value: text.into_bytes(), how: How::Set }
        }
        SessionBy::Cookie { name, path, permanent, attributes } => {
            let left = token.expires.saturating_sub(now);
            let lives = permanent.then(|| Duration::from_secs(left)).unwrap_or_default();
            ResponseEdit::cookie(set_cookie(name, &text, path.as_deref(), lives, attributes))
        }
    })
}
