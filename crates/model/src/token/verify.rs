//! Whether a token is good: RFC 7519, in the order in which Envoy looks and with its words.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Header, crypto, decode_header};
use serde_json::Value;

use super::JwtProvider;
use super::keys::Keys;
use crate::claims::Claims;

/// Longest token that is looked at.
pub(super) const LONGEST: usize = 16 * 1024;

/// A token with a good signature.
#[derive(Debug)]
pub struct Verified {
    /// What it says, lists of words as lists.
    pub claims: Arc<Claims>,
    /// The part between its dots.
    pub payload: String,
    issuer: String,
    audiences: Vec<String>,
    not_before: Option<f64>,
    expires: Option<f64>,
}

/// Remembers tokens whose signatures were good.
pub trait Known {
    /// That of a provider; `id` tells providers apart, whatever configuration they are of.
    fn recall(&mut self, id: &[u8; 32], token: &str) -> Option<Arc<Verified>>;
    /// A new one.
    fn keep(&mut self, id: &[u8; 32], token: &str, verified: &Arc<Verified>);
    /// One of this issuer is good, new or not.
    fn good(&mut self, _issuer: &str, _token: &str) {}
    /// Whether the signature of one of this issuer was good at a time when there were other keys, and that still counts.
    fn vouches(&self, _issuer: &str, _token: &str, _verified: &Verified) -> bool {
        false
    }
}

/// What is wrong with the tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is none.
    Missing,
    /// It is none.
    Malformed,
    /// It is signed in a way that we do not know.
    Algorithm,
    /// It is of somebody else.
    UnknownIssuer,
    /// `nbf` is yet to come.
    NotYet,
    /// `exp` has passed.
    Expired,
    /// It must have an `exp`.
    NeverExpires,
    /// It is for somebody else.
    Audience,
    /// There are no keys to verify it with.
    NoKeys,
    /// The signature is not of any of the keys.
    Signature,
    /// There are more of them than are looked at.
    TooMany,
}

impl Refusal {
    /// Of two the one that says more: what is wrong, before whose it is not, before that there is none.
    pub(super) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Missing, other) => other,
            (one, Self::Missing | Self::UnknownIssuer) => one,
            (_, other) => other,
        }
    }

    /// What a client gets.
    pub fn status(self) -> u16 {
        if self == Self::Audience { 403 } else { 401 }
    }

    /// Envoy's words where it has any.
    pub fn text(self) -> &'static str {
        match self {
            Self::Missing => "Jwt is missing",
            Self::Malformed => {
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
            }
            Self::Algorithm => "Jwt header [alg] is not supported",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::NotYet => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::NeverExpires => "Jwt must have an expiration",
            Self::Audience => "Audiences in Jwt are not allowed",
            Self::NoKeys => "Jwks doesn't have any valid public key",
            Self::Signature => "Jwt verification fails",
            Self::TooMany => "Too many Jwts",
        }
    }
}

/// Nobody asks twice.
struct Forgets;

impl Known for Forgets {
    fn recall(&mut self, _: &[u8; 32], _: &str) -> Option<Arc<Verified>> {
        None
    }

    fn keep(&mut self, _: &[u8; 32], _: &str, _: &Arc<Verified>) {}
}

impl JwtProvider {
    /// Looks at one token that is of no request: its claims; `now` in seconds since 1970.
    ///
    /// # Errors
    /// What is wrong with it; keys that cannot be read are none.
    pub fn verify(&self, token: &str, now: u64) -> Result<Arc<Claims>, Refusal> {
        let keys = Keys::compile(&self.keys).map_err(|_| Refusal::NoKeys)?;
        let verified = Verifier { id: [0; 32], keys }.verify(self, &[], token, now, &mut Forgets)?;
        Ok(verified.claims.clone())
    }
}

/// A token, taken apart.
struct Parts<'t> {
    header: Header,
    payload: &'t str,
    signed: &'t str,
    signature: &'t str,
    claims: Claims,
}

/// What is known of a provider when it looks at tokens.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) id: [u8; 32],
    pub(super) keys: Keys,
}

impl Verifier {
    /// Looks at a token of a provider; `audiences` instead of its own, if there are any; `now` in seconds since 1970.
    pub(super) fn verify(
        &self,
        provider: &JwtProvider,
        audiences: &[String],
        token: &str,
        now: u64,
        known: &mut dyn Known,
    ) -> Result<Arc<Verified>, Refusal> {
        if token.len() > LONGEST {
            return Err(Refusal::Malformed);
        }
        if let Some(verified) = known.recall(&self.id, token) {
            check(provider, audiences, &verified, now)?;
            known.good(&provider.issuer, token);
            return Ok(verified);
        }
        let mut parts = take_apart(token)?;
        let verified = Arc::new(Verified::of(&mut parts, &provider.spaced_claims)?);
        check(provider, audiences, &verified, now)?;
        match self.is_signed(&parts) {
            Ok(()) => known.keep(&self.id, token, &verified),
            Err(_) if known.vouches(&provider.issuer, token, &verified) => {}
            Err(why) => return Err(why),
        }
        known.good(&provider.issuer, token);
        Ok(verified)
    }

    fn is_signed(&self, parts: &Parts<'_>) -> Result<(), Refusal> {
        if self.keys.is_empty() {
            return Err(Refusal::NoKeys);
        }
        let Parts { header, signed, signature, .. } = parts;
        let good = |key| crypto::verify(signature, signed.as_bytes(), key, header.alg).unwrap_or(false);
        match self.keys.candidates(header).any(good) {
            true => Ok(()),
            false => Err(Refusal::Signature),
        }
    }
}

fn take_apart(token: &str) -> Result<Parts<'_>, Refusal> {
    let (signed, signature) = token.rsplit_once('.').ok_or(Refusal::Malformed)?;
    let (head, payload) = signed.split_once('.').ok_or(Refusal::Malformed)?;
    if payload.contains('.') {
        return Err(Refusal::Malformed);
    }
    let json =
        |part: &str| -> Option<Claims> { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok() };
    let named = json(head).ok_or(Refusal::Malformed)?;
    let claims = json(payload).ok_or(Refusal::Malformed)?;
    // Extensions that must be understood (RFC 7515, section 4.1.11): we know none.
    if named.contains_key("crit") {
        return Err(Refusal::Malformed);
    }
    let header = decode_header(token).map_err(|_| Refusal::Algorithm)?;
    Ok(Parts { header, payload, signed, signature, claims })
}

impl Verified {
    fn of(parts: &mut Parts<'_>, spaced: &[String]) -> Result<Self, Refusal> {
        let mut claims = std::mem::take(&mut parts.claims);
        let audiences = match claims.get("aud") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(all)) => {
                let texts = all.iter().map(|one| one.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or(Refusal::Malformed)?
            }
            Some(_) => return Err(Refusal::Malformed),
        };
        let text = |name: &str| match claims.get(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(Refusal::Malformed),
        };
        let issuer = text("iss")?;
        text("sub")?;
        let (not_before, expires) = (moment(&claims, "nbf")?, moment(&claims, "exp")?);
        for name in spaced {
            if let Some(value) = claims.get_mut(name)
                && let Value::String(words) = value
            {
                *value = words.split(' ').filter(|word| !word.is_empty()).collect();
            }
        }
        let payload = parts.payload.to_owned();
        Ok(Self { claims: Arc::new(claims), payload, issuer, audiences, not_before, expires })
    }

    /// Whether its `exp` has passed at a time in seconds since 1970, whatever clocks are apart.
    pub fn has_expired(&self, now: u64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
        let now = now as f64;
        self.expires.is_some_and(|at| now > at + f64::from(super::CLOCK_SKEW))
    }

    /// Of what is held in memory for it.
    pub fn size(&self) -> usize {
        // Claims are about twice their text.
        self.payload.len() * 3 + self.issuer.len() + self.audiences.iter().map(String::len).sum::<usize>()
    }
}

/// Seconds since 1970.
fn moment(claims: &Claims, name: &str) -> Result<Option<f64>, Refusal> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().filter(|at| *at >= 0.0).map(Some).ok_or(Refusal::Malformed),
    }
}

fn check(provider: &JwtProvider, audiences: &[String], token: &Verified, now: u64) -> Result<(), Refusal> {
    if !provider.issuer.is_empty() && token.issuer != provider.issuer {
        return Err(Refusal::UnknownIssuer);
    }
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
    let (now, skew) = (now as f64, f64::from(provider.clock_skew));
    if token.not_before.is_some_and(|at| at > now + skew) {
        return Err(Refusal::NotYet);
    }
    match token.expires {
        Some(at) if now > at + skew => return Err(Refusal::Expired),
        None if provider.require_expiration => return Err(Refusal::NeverExpires),
        _ => {}
    }
    let wanted = if audiences.is_empty() { &provider.audiences } else { audiences };
    // A slash at the end and the scheme do not count, as in Envoy.
    let same = |one: &String| wanted.iter().any(|other| plain(other) == plain(one));
    match wanted.is_empty() || token.audiences.iter().any(same) {
        true => Ok(()),
        false => Err(Refusal::Audience),
    }
}

fn plain(audience: &str) -> &str {
    let rest = audience.strip_prefix("https://").or_else(|| audience.strip_prefix("http://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}
