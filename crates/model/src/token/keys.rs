//! The keys of a provider, as RFC 7517 writes them.

use std::str::FromStr;

use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header};
use serde::Deserialize;
use serde_json::Value;

/// Keys of one provider: a token that names none is tried with each.
pub const MOST_KEYS: usize = 32;

/// Stands for keys that are not known yet: no token is signed by this one. It is the SHA-256 of "outrigger: keys not known yet", and
/// so nobody has what belongs to it. An Envoy refuses a provider without any key.
pub const NOT_KNOWN: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":"outrigger-keys-not-known-yet","x":"_j9nCQoZSWXmgCwh9YYivKBLBPGT-lwfebQ9LWL90Qo"}]}"#;

/// The id in there.
const NOT_KNOWN_ID: &str = "outrigger-keys-not-known-yet";

/// Compiled keys.
#[derive(Debug)]
pub(super) struct Keys(Vec<SigningKey>);

#[derive(Debug)]
struct SigningKey {
    id: Option<String>,
    /// It is for this one alone.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

/// Whether a text is a JWKS with a key that can be used.
///
/// # Errors
/// What is wrong with it.
pub fn check_keys(text: &str) -> Result<(), String> {
    match Keys::compile(text)?.0.is_empty() {
        true => Err("has no key for signatures that is known here (RSA, EC, OKP, oct)".to_owned()),
        false => Ok(()),
    }
}

impl Keys {
    /// A single key without a list around it is one, too, as in Envoy.
    pub(super) fn compile(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let json: Value = serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))?;
        let keys = match json.get("keys") {
            Some(_) => Set::deserialize(json).map_err(|error| format!("is no JWKS: {error}"))?.keys,
            None if json.get("kty").is_some() => vec![json],
            None => return Err("is no JWKS: it has no keys".to_owned()),
        };
        if keys.len() > MOST_KEYS {
            return Err(format!("has {} keys, more than {MOST_KEYS}", keys.len()));
        }
        // Others may be of types that come after us.
        let known = keys.into_iter().filter_map(|key| Jwk::deserialize(key).ok());
        Ok(Self(JwkSet { keys: known.collect() }.keys.iter().filter_map(SigningKey::compile).collect()))
    }

    /// Those that may have signed a token with this header.
    pub(super) fn candidates<'k>(&'k self, header: &'k Header) -> impl Iterator<Item = &'k DecodingKey> {
        let named = |key: &&SigningKey| match (&header.kid, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        };
        let fits = |key: &&SigningKey| {
            key.key.family() == header.alg.family() && key.algorithm.is_none_or(|only| only == header.alg)
        };
        self.0.iter().filter(named).filter(fits).map(|key| &key.key)
    }

    /// There is none, or none yet.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|key| key.id.as_deref() == Some(NOT_KNOWN_ID))
    }
}

impl SigningKey {
    fn compile(jwk: &Jwk) -> Option<Self> {
        if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
            return None;
        }
        let algorithm = match jwk.common.key_algorithm {
            // One that only encrypts, or that we do not know.
            Some(named) => Some(Algorithm::from_str(&named.to_string()).ok()?),
            None => None,
        };
        let key = DecodingKey::from_jwk(jwk).ok()?;
        Some(Self { id: jwk.common.key_id.clone(), algorithm, key })
    }
}
