//! Sessions: what a client carries, and what it is given to carry. They are the routes' that have one; where a request goes then is
//! `http/session.rs`'s.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_model::ext_authz::How;
use outrigger_model::request::cookie;
use outrigger_model::route::session::Token;
use outrigger_model::route::{Session, SessionBy};

use super::{Input, ResponseEdit, Verdict};
use crate::http::hash::set_cookie;

/// The session of a request.
#[derive(Debug, Default, Clone, Copy)]
pub struct Affinity {
    /// What its client carries.
    pub token: Option<Token>,
    /// It has one.
    pub is_on: bool,
}

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
    Verdict::Belongs(Affinity { token, is_on: true })
}

/// What the client is to carry from now on, after an answer of this endpoint; `None`: what it has.
#[cold]
pub fn answered(session: &Session, had: Option<Token>, address: SocketAddr) -> Option<ResponseEdit> {
    let now = now();
    let token = session.answered(had, address, now)?;
    let text = session.write(&token);
    let (name, value, how) = match &session.by {
        SessionBy::Header { name } => (name.clone(), text, How::Set),
        SessionBy::Cookie { name, path, permanent, attributes } => {
            let left = token.expires.saturating_sub(now);
            let lives = permanent.then(|| Duration::from_secs(left));
            let value = set_cookie(name, &text, path.as_deref(), lives.unwrap_or_default(), attributes);
            ("set-cookie".to_owned(), value, How::Append)
        }
    };
    Some(ResponseEdit { name: name.into(), value: value.into_bytes(), how })
}
