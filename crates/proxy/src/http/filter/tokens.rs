//! Tokens of requests: `envoy.filters.http.jwt_authn`. The decision is the model's; here is what is done then, and what is remembered for
//! it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use outrigger_model::resource::{Flaw, Origin};
use outrigger_model::token::{CompiledTokens, Effects, JwtAuthn, Known, Outcome, Refusal, Verified};

use super::{Act, After, Build, Input, Place, ResponseEdit, Stop, Tunnel, Verdict, Visit};
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::head::RequestHead;

/// Of the URL in `www-authenticate`.
const LONGEST_REALM: usize = 256;

/// Tokens of a tunnel that it remembers as good.
const MOST_GOOD: usize = 32;

/// A worker's memory of tokens is in two halves of this.
const HALF: usize = 512 * 1024;

/// A compiled filter.
#[derive(Debug)]
pub struct Tokens(CompiledTokens);

impl Build for Tokens {
    type Config = JwtAuthn;

    fn build(config: &JwtAuthn, _place: &Place<'_>) -> Result<Self, Flaw> {
        let fingerprint = |text: &str| {
            let mut all = [0; 32];
            all.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
            all
        };
        CompiledTokens::compile(config, fingerprint).map(Self)
    }
}

impl Act for Tokens {
    fn on_request(&self, _input: &Input<'_>) -> Verdict {
        Verdict::Visit
    }

    /// Looks at the tokens of a request, and does with it what is wanted then.
    #[cold]
    fn visit<'v>(&self, visit: &mut impl Visit<'v>) -> Result<After, Stop> {
        let now = now();
        match visit.tokens(now, |head, known| self.0.decide(head, now, known)) {
            Outcome::Passes(effects) => {
                let own = self.0.own();
                if !own.is_empty() {
                    visit.keep_out(own);
                }
                Ok(apply(visit, effects)?)
            }
            Outcome::Refused { why, origin } => {
                let value = challenge(visit.input().request, why);
                visit.respond([ResponseEdit::set("www-authenticate", value)]);
                Err(refused(why, origin).into())
            }
        }
    }

    fn takes_tokens(&self) -> bool {
        true
    }

    /// Whoever it is of and for, and whether it was good when the tunnel was opened, are the rules of now to say. A token whose signature
    /// was good is no worse for other keys until it expires.
    fn judge_again(&self, tunnel: &mut Tunnel<'_>) -> Result<(), Failure> {
        match self.0.decide(tunnel.came, tunnel.at, tunnel.known) {
            Outcome::Passes(effects) => tunnel.proven.extend(effects.proven),
            Outcome::Refused { why: Refusal::NoKeys, .. } => tunnel.waits = true,
            Outcome::Refused { why, origin } => return Err(refused(why, origin)),
        }
        Ok(())
    }
}

/// In seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A request that its tokens do not let pass.
fn refused(why: Refusal, origin: Option<Arc<Origin>>) -> Failure {
    let failure = Failure::local(Stage::Authorize, FailureKind::BadToken(why.status()), why.text());
    failure.because_of(origin)
}

/// RFC 6750, section 3. Without the query, in which there may be a token.
fn challenge(head: &RequestHead, why: Refusal) -> String {
    let path = head.path();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let mut realm = format!("{}://{}{path}", head.scheme(), head.authority());
    realm.retain(|c| c.is_ascii_graphic() && c != '"' && c != '\\');
    realm.truncate(LONGEST_REALM);
    match why {
        Refusal::Missing => format!("Bearer realm=\"{realm}\""),
        _ => format!("Bearer realm=\"{realm}\", error=\"invalid_token\""),
    }
}

fn apply<'v>(visit: &mut impl Visit<'v>, effects: Effects) -> Result<After, Failure> {
    let head = visit.head_mut();
    for name in &effects.remove {
        head.remove(name);
    }
    let too_long = |error: &dyn std::fmt::Display| {
        let detail = format!("what its token says does not fit into the head: {error}");
        Failure::local(Stage::Authorize, FailureKind::BadRequest(431), detail)
    };
    if let Some(path) = &effects.path {
        head.set_path(path).map_err(|error| too_long(&error))?;
    }
    for (name, value) in &effects.add {
        head.append(name, value).map_err(|error| too_long(&error))?;
    }
    visit.prove(effects.proven);
    Ok(if effects.reroute { After::Reroute } else { After::Same })
}

type Half = HashMap<[u8; 32], HashMap<Box<str>, Arc<Verified>>>;

/// Tokens whose signatures were good, by provider. When one half is full, the other, of those that nobody has shown since, goes.
#[derive(Debug, Default)]
pub struct Memory {
    young: Half,
    old: Half,
    /// Of the young half, in bytes.
    size: usize,
}

impl Known for Memory {
    fn recall(&mut self, id: &[u8; 32], token: &str) -> Option<Arc<Verified>> {
        if let Some(verified) = self.young.get(id).and_then(|of| of.get(token)) {
            return Some(verified.clone());
        }
        let verified = self.old.get_mut(id)?.remove(token)?;
        self.keep(id, token, &verified);
        Some(verified)
    }

    fn keep(&mut self, id: &[u8; 32], token: &str, verified: &Arc<Verified>) {
        let size = token.len() + verified.size() + size_of::<Verified>();
        if self.size + size > HALF {
            self.old = std::mem::take(&mut self.young);
            self.size = 0;
        }
        self.size += size;
        self.young.entry(*id).or_default().insert(token.into(), verified.clone());
    }
}

/// Tokens with good signatures: the issuer that a rule names, and the token.
pub type Vouched = Vec<(Box<str>, Box<str>)>;

/// Remembers which tokens of a tunnel were signed, for the time when there are other keys: until a token expires its signature stays as good
/// as it was.
pub struct Witness<'w> {
    pub memory: &'w mut Memory,
    pub good: &'w mut Vouched,
    pub now: u64,
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
