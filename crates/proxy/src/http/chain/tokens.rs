//! Looks at the tokens of a request, and does with it what is wanted then.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_model::resource::Origin;
use outrigger_model::token::{Effects, Known, Outcome, Refusal, Verified};

use crate::failure::{Failure, FailureKind, Stage};
use crate::http::context::{Asked, RequestCtx, Vouched};
use crate::http::filter::ResponseEdit;
use crate::http::filter::tokens::{Memory, Tokens};

/// Of the URL in `www-authenticate`.
const LONGEST_REALM: usize = 256;

/// Says whether routes are to be looked for again.
#[cold]
pub(super) fn look(ctx: &mut RequestCtx<'_>, tokens: &Tokens) -> Result<bool, Failure> {
    let now = now();
    let outcome = {
        let mut memory = ctx.conn.worker.tokens.borrow_mut();
        match Asked::of(&mut ctx.extras) {
            None => tokens.0.decide(&ctx.head, now, &mut *memory),
            Some(tunnel) => {
                let mut witness = Witness { memory: &mut memory, good: &mut tunnel.good, now };
                tokens.0.decide(&ctx.head, now, &mut witness)
            }
        }
    };
    match outcome {
        Outcome::Passes(effects) => {
            let own = tokens.0.own();
            if !own.is_empty() {
                ctx.head.remove_lookalikes_of(own);
                ctx.body.keep_out(own);
            }
            apply(ctx, effects)
        }
        Outcome::Refused { why, origin } => {
            let value = challenge(ctx, why);
            ctx.extras().response.push(ResponseEdit::set("www-authenticate", value));
            Err(refused(why, origin))
        }
    }
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Tokens of a tunnel that it remembers as good.
const MOST_GOOD: usize = 32;

/// Remembers which tokens of a tunnel were signed, for the time when there are other keys: until a token expires its signature stays as good
/// as it was.
pub(super) struct Witness<'w> {
    pub(super) memory: &'w mut Memory,
    pub(super) good: &'w mut Vouched,
    pub(super) now: u64,
}

impl Known for Witness<'_> {
    fn recall(&mut self, id: &[u8; 32], token: &str) -> Option<Arc<Verified>> {
        self.memory.recall(id, token)
    }

    fn keep(&mut self, id: &[u8; 32], token: &str, verified: &Arc<Verified>) {
        self.memory.keep(id, token, verified);
    }

    fn good(&mut self, issuer: &str, token: &str) {
        let known = self.good.iter().any(|(by, one)| (&**by, &**one) == (issuer, token));
        if !known && self.good.len() < MOST_GOOD {
            self.good.push((issuer.into(), token.into()));
        }
    }

    fn vouches(&self, issuer: &str, token: &str, verified: &Verified) -> bool {
        !verified.has_expired(self.now)
            && self.good.iter().any(|(by, one)| (&**by, &**one) == (issuer, token))
    }
}

/// A request that its tokens do not let pass.
pub(super) fn refused(why: Refusal, origin: Option<Arc<Origin>>) -> Failure {
    let failure = Failure::local(Stage::Authorize, FailureKind::BadToken(why.status()), why.text());
    failure.because_of(origin)
}

/// RFC 6750, section 3. Without the query, in which there may be a token.
fn challenge(ctx: &RequestCtx<'_>, why: Refusal) -> String {
    let (head, path) = (&ctx.head, ctx.head.path());
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let mut realm = format!("{}://{}{path}", head.scheme(), head.authority());
    realm.retain(|c| c.is_ascii_graphic() && c != '"' && c != '\\');
    realm.truncate(LONGEST_REALM);
    match why {
        Refusal::Missing => format!("Bearer realm=\"{realm}\""),
        _ => format!("Bearer realm=\"{realm}\", error=\"invalid_token\""),
    }
}

fn apply(ctx: &mut RequestCtx<'_>, effects: Effects) -> Result<bool, Failure> {
    for name in &effects.remove {
        ctx.head.remove(name);
    }
    let too_long = |error: &dyn std::fmt::Display| {
        let detail = format!("what its token says does not fit into the head: {error}");
        Failure::local(Stage::Authorize, FailureKind::BadRequest(431), detail)
    };
    if let Some(path) = &effects.path {
        ctx.head.set_path(path).map_err(|error| too_long(&error))?;
    }
    for (name, value) in &effects.add {
        ctx.head.append(name, value).map_err(|error| too_long(&error))?;
    }
    if !effects.proven.is_empty() {
        ctx.extras().proven.extend(effects.proven);
    }
    Ok(effects.reroute)
}
