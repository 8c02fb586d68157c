//! Join tokens and the admin token. Only hashes are kept; a secret is shown once, when it is made.
//!
//! Looked up in memory, because the CSR service asks from the runtime's threads; written to the store behind that.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use outrigger_identity::csr::service::{Caller, CallerPolicy, Denied};
use outrigger_identity::state_dir::write_private;
use outrigger_model::identity::SpiffeId;
use parking_lot::Mutex;

use crate::registry::claim::Range;
use crate::store::records::{REPEATED, StoredToken, Use};
use crate::store::{Mutation, Store, StoreError};
use guesses::Guesses;

mod guesses;

/// Recognisable in logs and by secret scanners.
const JOIN_PREFIX: &str = "outrigger-join-";
const ADMIN_PREFIX: &str = "outrigger-admin-";
/// The file of the admin token in the data directory.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";
/// The service account, in the root namespace, whose certificate makes an operator.
pub const ADMIN_SERVICE_ACCOUNT: &str = "outrigger-admin";

/// All join tokens.
#[derive(Clone)]
pub struct Tokens {
    shared: Arc<TokenBook>,
}

struct TokenBook {
    store: Arc<dyn Store>,
    by_hash: Mutex<BTreeMap<String, StoredToken>>,
    /// One change at a time: what is stored last is what is left, and what is revoked is not written again by whoever counts a use.
    changing: tokio::sync::Mutex<()>,
    /// When somebody was revoked last: what was answered before is not answered again.
    revoked: Mutex<Option<Timestamp>>,
    guesses: Guesses,
}

/// What a new token may do.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The identity that it proves.
    pub identity: SpiffeId,
    /// Services that its holder may register; empty for the one named as the service account.
    pub services: Vec<String>,
    /// Addresses that its holder may give its instances, beside that from which it calls.
    pub ranges: Vec<Range>,
    /// How long it proves it.
    pub ttl: Option<Duration>,
    /// How many certificates it may be used for.
    pub uses: Option<u32>,
}

impl Tokens {
    /// With what the store held.
    pub fn new(store: Arc<dyn Store>, tokens: Vec<StoredToken>) -> Self {
        let by_hash = Mutex::new(by_hash(tokens));
        let (changing, revoked) = Default::default();
        let shared = TokenBook { store, by_hash, changing, revoked, guesses: Guesses::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Makes a token; returns its secret and what is stored of it.
    ///
    /// # Errors
    /// When it could not be stored.
    pub async fn create(&self, grant: Grant) -> Result<(String, StoredToken), StoreError> {
        let secret = secret(JOIN_PREFIX);
        let created = Timestamp::now();
        let token = StoredToken {
            secret_sha256: hash(&secret),
            identity: grant.identity,
            services: grant.services,
            ranges: grant.ranges,
            created,
            // A wish for longer than the calendar goes means for ever.
            expires: grant.ttl.and_then(|ttl| created.checked_add(ttl).ok()),
            uses_left: grant.uses,
            used_for: Vec::new(),
        };
        let _changing = self.shared.changing.lock().await;
        let spent = self.spent_like(&token);
        let delete = spent.iter().cloned().map(Mutation::DeleteToken);
        let mutations = delete.chain([Mutation::PutToken(Box::new(token.clone()))]).collect();
        self.shared.store.clone().commit(mutations).await?;
        let mut by_hash = self.shared.by_hash.lock();
        spent.iter().for_each(|hash| drop(by_hash.remove(hash)));
        by_hash.insert(token.secret_sha256.clone(), token.clone());
        drop(by_hash);
        Ok((secret, token))
    }

    /// Those that prove nothing any more, not even to whoever has lost an answer, and whose holders may do no more than this one's: nobody needs them. The others say what
    /// whoever has joined by them may register.
    fn spent_like(&self, new: &StoredToken) -> Vec<String> {
        let by_hash = self.shared.by_hash.lock();
        let same = |token: &&StoredToken| {
            token.identity == new.identity && token.services == new.services && token.ranges == new.ranges
        };
        let since = self.since(new.created);
        let is_spent = |token: &&StoredToken| {
            is_expired(token, new.created) || (token.uses_left == Some(0) && !token.may_be_repeated(since))
        };
        let spent = by_hash.values().filter(same).filter(is_spent);
        spent.map(|token| token.secret_sha256.clone()).collect()
    }

    /// Revokes all tokens of an identity; says how many there were.
    ///
    /// # Errors
    /// When that could not be stored.
    pub async fn revoke(&self, identity: &SpiffeId) -> Result<usize, StoreError> {
        let _changing = self.shared.changing.lock().await;
        let of = |token: &&StoredToken| token.identity == *identity;
        let hashes: Vec<String> =
            self.shared.by_hash.lock().values().filter(of).map(|t| t.secret_sha256.clone()).collect();
        let mutations = hashes.iter().cloned().map(Mutation::DeleteToken).collect();
        self.shared.store.clone().commit(mutations).await?;
        let mut by_hash = self.shared.by_hash.lock();
        hashes.iter().for_each(|hash| drop(by_hash.remove(hash)));
        Ok(hashes.len())
    }

    /// Somebody is revoked, perhaps by the serial number of what a token was used for: whoever has that token and its key is not given the
    /// same again.
    pub(crate) fn forget_answers(&self, revoked: Option<Timestamp>) {
        let mut last = self.shared.revoked.lock();
        *last = (*last).max(revoked);
    }

    /// What was answered after this may be asked for again.
    fn since(&self, now: Timestamp) -> Timestamp {
        let long_ago = now.checked_sub(REPEATED).unwrap_or(Timestamp::UNIX_EPOCH);
        self.shared.revoked.lock().map_or(long_ago, |revoked| revoked.max(long_ago))
    }

    /// Others have changed them: all that there are now.
    pub(crate) fn replace(&self, tokens: Vec<StoredToken>) {
        *self.shared.by_hash.lock() = by_hash(tokens);
    }

    /// All tokens, for listing.
    pub fn list(&self) -> Vec<StoredToken> {
        self.shared.by_hash.lock().values().cloned().collect()
    }

    /// The services that an identity may register: those of all its tokens, expired ones too, because what it joined for
    /// does not end with the paper; without any token the service of its own name.
    pub fn services_of(&self, identity: &SpiffeId) -> Vec<String> {
        let by_hash = self.shared.by_hash.lock();
        let mut services = Vec::new();
        let own = identity.service_account().map(str::to_owned);
        let mut any = false;
        for token in by_hash.values().filter(|token| token.identity == *identity) {
            any = true;
            match token.services.as_slice() {
                [] => services.extend(own.clone()),
                named => services.extend(named.iter().cloned()),
            }
        }
        if !any {
            services.extend(own);
        }
        services.sort();
        services.dedup();
        services
    }

    /// Whether any token, expired ones too, was made for an identity.
    pub fn knows(&self, identity: &SpiffeId) -> bool {
        self.shared.by_hash.lock().values().any(|token| token.identity == *identity)
    }

    /// The ranges of all tokens of an identity, as [`Tokens::services_of`].
    pub fn ranges_of(&self, identity: &SpiffeId) -> Vec<Range> {
        let by_hash = self.shared.by_hash.lock();
        let own = by_hash.values().filter(|token| token.identity == *identity);
        own.flat_map(|token| token.ranges.iter().cloned()).collect()
    }

    /// Whether a secret of this source is looked at: whoever has shown many wrong ones has to wait.
    ///
    /// # Errors
    /// For how long.
    pub fn admit(&self, source: IpAddr) -> Result<(), TooMany> {
        self.shared.guesses.admit(source, Instant::now()).map_err(TooMany)
    }

    /// A source has shown something that is no proof.
    pub(crate) fn wrong(&self, source: IpAddr) {
        self.shared.guesses.wrong(source, Instant::now());
    }

    /// The identity of a secret that `source` shows, if it is good now. Ask [`Tokens::admit`] first.
    ///
    /// # Errors
    /// Says why it is not.
    pub fn check(&self, secret: &str, now: Timestamp, source: IpAddr) -> Result<SpiffeId, Denied> {
        self.check_for(secret, "", now, source)
    }

    /// The same for a request that may have been answered before.
    fn check_for(
        &self,
        secret: &str,
        request: &str,
        now: Timestamp,
        source: IpAddr,
    ) -> Result<SpiffeId, Denied> {
        let by_hash = self.shared.by_hash.lock();
        // The map is keyed by a hash of the secret, so how long it takes tells a guesser nothing.
        let Some(token) = by_hash.get(&hash(secret)) else {
            self.shared.guesses.wrong(source, Instant::now());
            return Err(unknown());
        };
        usable(token, now, request, self.since(now))?;
        Ok(token.identity.clone())
    }

    /// Counts one use. It is stored before it counts, or a crash would give it back.
    async fn redeem(&self, secret: &str, request: &str, now: Timestamp) -> Result<(), Denied> {
        let hash = hash(secret);
        let known = || self.shared.by_hash.lock().get(&hash).cloned().ok_or_else(unknown);
        let is_counted = |token: &StoredToken| {
            let since = self.since(now);
            usable(token, now, request, since)?;
            Ok(token.uses_left.is_none() || token.was_used_for(request, since))
        };
        if is_counted(&known()?)? {
            return Ok(());
        }
        let _changing = self.shared.changing.lock().await;
        let mut token = known()?;
        if is_counted(&token)? {
            return Ok(());
        }
        let (identity, since) = (token.identity.clone(), self.since(now));
        let used = Use { request: request.to_owned(), at: now };
        token.count(&used, since);
        let counted = self.shared.store.clone().spend(token.clone(), since).await.map_err(|error| {
            tracing::error!(%error, id = %identity, "the use of a token could not be stored");
            Denied::new(format!(
                "the use of the token of {identity} could not be stored, so it does not count; try again"
            ))
        })?;
        if !counted {
            (token.uses_left, token.used_for) = (Some(0), Vec::new());
        }
        if let Some(known) = self.shared.by_hash.lock().get_mut(&hash) {
            // Others may have counted meanwhile.
            known.uses_left = known.uses_left.min(token.uses_left);
            if counted && !known.was_used_for(request, since) {
                known.remember(&used, since);
            }
        }
        if counted { Ok(()) } else { usable(&token, now, "", since) }
    }
}

fn by_hash(tokens: Vec<StoredToken>) -> BTreeMap<String, StoredToken> {
    tokens.into_iter().map(|token| (token.secret_sha256.clone(), token)).collect()
}

/// For how long a source's tokens are not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many wrong tokens have come from there; the next one is looked at in {} s", .0.as_secs() + 1)]
pub struct TooMany(pub Duration);

fn unknown() -> Denied {
    Denied::guess("the token is unknown: it was revoked, or made by another control plane; `outrigger token create` makes one".into())
}

fn is_expired(token: &StoredToken, now: Timestamp) -> bool {
    token.expires.is_some_and(|expires| expires <= now)
}

fn usable(token: &StoredToken, now: Timestamp, request: &str, since: Timestamp) -> Result<(), Denied> {
    if let Some(expires) = token.expires.filter(|_| is_expired(token, now)) {
        return Err(Denied::new(format!("the token of {} expired at {expires}", token.identity)));
    }
    if token.uses_left == Some(0) && !token.was_used_for(request, since) {
        return Err(Denied::new(format!("the token of {} has been used as often as it may", token.identity)));
    }
    Ok(())
}

#[tonic::async_trait]
impl CallerPolicy for Tokens {
    async fn identify(&self, caller: &Caller) -> Result<SpiffeId, Denied> {
        let secret = caller.bearer.as_deref().ok_or_else(|| {
            Denied::guess("neither a token nor a valid certificate was shown; join with the file of `outrigger token create`".into())
        })?;
        let source = caller.remote.ip();
        self.admit(source).map_err(|wait| Denied::guess(wait.to_string()))?;
        self.check_for(secret, &caller.request, Timestamp::now(), source)
    }

    async fn spend(&self, caller: &Caller) -> Result<(), Denied> {
        match caller.bearer.as_deref() {
            Some(secret) => self.redeem(secret, &caller.request, Timestamp::now()).await,
            None => Ok(()),
        }
    }

    /// A certificate's holder goes on as the same identity, but an operator's certificate is issued anew each time.
    fn renew(&self, identity: &SpiffeId) -> Result<(), Denied> {
        match identity.service_account() {
            Some(ADMIN_SERVICE_ACCOUNT | outrigger_identity::CONTROL_SERVICE_ACCOUNT) => {
                Err(Denied::new(format!("{identity} is not renewed here; issue a new certificate")))
            }
            _ => Ok(()),
        }
    }
}

/// The admin token's hash; the secret is made at the first start and lies in the data directory, mode 0600.
pub struct AdminToken {
    sha256: String,
}

impl AdminToken {
    /// Reads the token of a data directory, making it when there is none. Blocks.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(ADMIN_TOKEN_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) if text.trim().len() >= 32 => text,
            Ok(_) => {
                anyhow::bail!("{}: too short for a token; remove the file and start again", path.display())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let made = secret(ADMIN_PREFIX) + "\n";
                write_private(&path, made.as_bytes())?;
                made
            }
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        };
        Ok(Self { sha256: hash(text.trim()) })
    }

    /// Whether that is the token. Hashes are compared, and in constant time: the time tells nothing of the secret.
    pub fn is(&self, secret: &str) -> bool {
        verify_slices_are_equal(hash(secret).as_bytes(), self.sha256.as_bytes()).is_ok()
    }
}

/// A word that nobody guesses, of 256 bits, behind `prefix`.
pub(crate) fn secret(prefix: &str) -> String {
    let mut random = [0; 32];
    // The system's generator fails only where nothing else would work either; an empty secret must never be made then.
    if aws_lc_rs::rand::fill(&mut random).is_err() {
        std::process::abort();
    }
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random))
}

fn hash(secret: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
