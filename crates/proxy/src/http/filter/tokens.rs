//! Tokens of requests: `envoy.filters.http.jwt_authn`. The decision is the model's; here is what is remembered for it.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use outrigger_model::resource::Flaw;
use outrigger_model::token::{CompiledTokens, JwtAuthn, Known, Verified};

/// A worker's memory of tokens is in two halves of this.
const HALF: usize = 512 * 1024;

/// A compiled filter.
#[derive(Debug)]
pub struct Tokens(pub CompiledTokens);

impl Tokens {
    /// Compiles it.
    ///
    /// # Errors
    /// The field that cannot be taken, and why.
    pub fn build(config: &JwtAuthn) -> Result<Self, Flaw> {
        let fingerprint = |text: &str| {
            let mut all = [0; 32];
            all.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
            all
        };
        CompiledTokens::compile(config, fingerprint).map(Self)
    }
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
