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
use crate::store::records::StoredToken;
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
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn Store>,
    by_hash: Mutex<BTreeMap<String, StoredToken>>,
    /// One use is counted at a time, so that what is stored last is what is left.
    counting: tokio::sync::Mutex<()>,
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
        let shared = Shared { store, by_hash, counting: Default::default(), guesses: Guesses::default() };
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

    /// Those that prove nothing any more, and whose holders may do no more than this one's: nobody needs them. The others say what
    /// whoever has joined by them may register.
    fn spent_like(&self, new: &StoredToken) -> Vec<String> {
        let by_hash = self.shared.by_hash.lock();
        let same = |token: &&StoredToken| {
            token.identity == new.identity && token.services == new.services && token.ranges == new.ranges
        };
        let spent = by_hash.values().filter(same).filter(|token| usable(token, new.created, "").is_err());
        spent.map(|token| token.secret_sha256.clone()).collect()
    }

    /// Revokes all tokens of an identity; says how many there were.
    ///
    /// # Errors
    /// When that could not be stored.
    pub async fn revoke(&self, identity: &SpiffeId) -> Result<usize, StoreError> {
        let of = |token: &&StoredToken| token.identity == *identity;
        let hashes: Vec<String> =
            self.shared.by_hash.lock().values().filter(of).map(|t| t.secret_sha256.clone()).collect();
        let mutations = hashes.iter().cloned().map(Mutation::DeleteToken).collect();
        self.shared.store.clone().commit(mutations).await?;
        let mut by_hash = self.shared.by_hash.lock();
        hashes.iter().for_each(|hash| drop(by_hash.remove(hash)));
        Ok(hashes.len())
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
        usable(token, now, request)?;
        Ok(token.identity.clone())
    }

    /// Counts one use. It is stored before it counts, or a crash would give it back.
    async fn redeem(&self, secret: &str, request: &str, now: Timestamp) -> Result<(), Denied> {
        let hash = hash(secret);
        let known = || self.shared.by_hash.lock().get(&hash).cloned().ok_or_else(unknown);
        usable(&known()?, now, request)?;
        if known()?.uses_left.is_none() || known()?.was_used_for(request) {
            return Ok(());
        }
        let _counting = self.shared.counting.lock().await;
        let mut token = known()?;
        usable(&token, now, request)?;
        let identity = token.identity.clone();
        token.count(request);
        let counted = self.shared.store.clone().spend(token.clone()).await.map_err(|error| {
            tracing::error!(%error, id = %identity, "the use of a token could not be stored");
            Denied(format!(
                "the use of the token of {identity} could not be stored, so it does not count; try again"
            ))
        })?;
        if !counted {
            (token.uses_left, token.used_for) = (Some(0), Vec::new());
        }
        if let Some(known) = self.shared.by_hash.lock().get_mut(&hash) {
            // Others may have counted meanwhile.
            known.uses_left = known.uses_left.min(token.uses_left);
            if counted && !known.was_used_for(request) {
                known.used_for.push(request.to_owned());
            }
        }
        if counted { Ok(()) } else { usable(&token, now, "") }
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
    Denied("the token is unknown: it was revoked, or made by another control plane; `outrigger token create` makes one".into())
}

fn usable(token: &StoredToken, now: Timestamp, request: &str) -> Result<(), Denied> {
    if let Some(expires) = token.expires.filter(|expires| *expires <= now) {
        return Err(Denied(format!("the token of {} expired at {expires}", token.identity)));
    }
    if token.uses_left == Some(0) && !token.was_used_for(request) {
        return Err(Denied(format!("the token of {} has been used as often as it may", token.identity)));
    }
    Ok(())
}

#[tonic::async_trait]
impl CallerPolicy for Tokens {
    async fn identify(&self, caller: &Caller) -> Result<SpiffeId, Denied> {
        let secret = caller.bearer.as_deref().ok_or_else(|| {
            Denied("neither a token nor a valid certificate was shown; join with the file of `outrigger token create`".into())
        })?;
        let source = caller.remote.ip();
        self.admit(source).map_err(|wait| Denied(wait.to_string()))?;
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
                Err(Denied(format!("{identity} is not renewed here; issue a new certificate")))
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

fn secret(prefix: &str) -> String {
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
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::store::memory::Memory;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn id(name: &str) -> SpiffeId {
        SpiffeId::workload("cluster.local", "shop", name).unwrap()
    }

    fn caller(bearer: Option<&str>) -> Caller {
        Caller {
            certificate: None,
            bearer: bearer.map(str::to_owned),
            remote: SocketAddr::from(([127, 0, 0, 1], 1)),
            request: String::new(),
        }
    }

    fn grant(name: &str) -> Grant {
        Grant { identity: id(name), services: Vec::new(), ranges: Vec::new(), ttl: None, uses: None }
    }

    #[tokio::test]
    async fn a_token_proves_its_identity_and_nothing_else_does() {
        let store = Arc::new(Memory::default());
        let tokens = Tokens::new(store.clone(), Vec::new());
        let (secret, stored) = tokens.create(grant("web")).await.unwrap();
        assert_eq!(tokens.identify(&caller(Some(&secret))).await.unwrap(), id("web"));
        assert!(
            tokens.identify(&caller(Some("outrigger-join-guess"))).await.unwrap_err().0.contains("unknown")
        );
        assert!(tokens.identify(&caller(None)).await.is_err());
        assert!(!format!("{stored:?}").contains(&secret), "only the hash is kept");
        let reopened = Tokens::new(store.clone(), store.contents().tokens);
        assert_eq!(reopened.check(&secret, Timestamp::now(), HERE).unwrap(), id("web"));
        assert_eq!(reopened.revoke(&id("web")).await.unwrap(), 1);
        assert!(reopened.check(&secret, Timestamp::now(), HERE).is_err());
    }

    #[tokio::test]
    async fn a_token_ends_by_time_and_by_use() {
        let tokens = Tokens::new(Arc::new(Memory::default()), Vec::new());
        let hour = Some(Duration::from_secs(3600));
        let (secret, stored) =
            tokens.create(Grant { ttl: hour, uses: Some(1), ..grant("web") }).await.unwrap();
        let late = stored.expires.unwrap();
        assert!(tokens.check(&secret, late, HERE).unwrap_err().0.contains("expired"));
        for _ in 0..3 {
            assert!(tokens.identify(&caller(Some(&secret))).await.is_ok(), "nothing was made of it yet");
        }
        tokens.spend(&caller(Some(&secret))).await.unwrap();
        assert!(tokens.spend(&caller(Some(&secret))).await.unwrap_err().0.contains("as often"));
        assert!(tokens.identify(&caller(Some(&secret))).await.unwrap_err().0.contains("as often"));
    }

    #[tokio::test]
    async fn what_a_token_was_for_is_remembered_and_spent_ones_do_not_pile_up() {
        let store = Arc::new(Memory::default());
        let tokens = Tokens::new(store.clone(), Vec::new());
        let once = || Grant { uses: Some(1), ..grant("web") };
        let (other, _) = tokens.create(Grant { services: vec!["shop".into()], ..once() }).await.unwrap();
        tokens.spend(&caller(Some(&other))).await.unwrap();
        for _ in 0..3 {
            let (secret, _) = tokens.create(once()).await.unwrap();
            tokens.spend(&caller(Some(&secret))).await.unwrap();
        }
        assert_eq!((tokens.list().len(), store.contents().tokens.len()), (2, 2));
        assert_eq!(tokens.services_of(&id("web")), ["shop", "web"]);
        // One that is good goes on.
        let (good, _) = tokens.create(once()).await.unwrap();
        tokens.create(once()).await.unwrap();
        assert_eq!(tokens.identify(&caller(Some(&good))).await.unwrap(), id("web"));
    }

    #[tokio::test]
    async fn a_request_that_comes_again_uses_nothing_up() {
        let store = Arc::new(Memory::default());
        let tokens = Tokens::new(store.clone(), Vec::new());
        let (secret, _) = tokens.create(Grant { uses: Some(2), ..grant("web") }).await.unwrap();
        let asks = |request: &str| Caller { request: request.into(), ..caller(Some(&secret)) };
        for request in ["a", "a", "b", "a", "b"] {
            tokens.identify(&asks(request)).await.unwrap();
            tokens.spend(&asks(request)).await.unwrap();
        }
        // Also after a start, and nobody else has anything of it.
        let again = Tokens::new(store.clone(), store.contents().tokens);
        again.spend(&asks("b")).await.unwrap();
        for tokens in [&tokens, &again] {
            assert!(tokens.identify(&asks("c")).await.unwrap_err().0.contains("as often"));
            assert!(tokens.spend(&asks("")).await.unwrap_err().0.contains("as often"));
        }
    }

    #[tokio::test]
    async fn a_use_that_cannot_be_stored_neither_counts_nor_is_lost() {
        let store = Arc::new(Memory::default());
        let tokens = Tokens::new(store.clone(), Vec::new());
        let (secret, stored) = tokens.create(Grant { uses: Some(1), ..grant("web") }).await.unwrap();
        store.fail("the disk is full");
        let denied = tokens.spend(&caller(Some(&secret))).await.unwrap_err().0;
        assert!(denied.contains("could not be stored"), "{denied}");
        store.clone().retry().await.unwrap();
        tokens.spend(&caller(Some(&secret))).await.unwrap();
        assert_eq!(store.contents().tokens[0].uses_left, Some(0));
        // Others have counted: what they say holds.
        tokens.replace(vec![StoredToken { uses_left: Some(1), ..stored.clone() }]);
        assert!(tokens.identify(&caller(Some(&secret))).await.is_ok());
        tokens.replace(Vec::new());
        assert!(tokens.spend(&caller(Some(&secret))).await.unwrap_err().0.contains("unknown"));
    }

    #[tokio::test]
    async fn whoever_guesses_waits_even_with_a_good_token() {
        let tokens = Tokens::new(Arc::new(Memory::default()), Vec::new());
        let (secret, _) = tokens.create(grant("web")).await.unwrap();
        for _ in 0..20 {
            assert!(
                tokens
                    .identify(&caller(Some("outrigger-join-guess")))
                    .await
                    .unwrap_err()
                    .0
                    .contains("unknown")
            );
        }
        let waits = tokens.identify(&caller(Some(&secret))).await.unwrap_err().0;
        assert!(waits.contains("too many wrong tokens"), "{waits}");
        let elsewhere = Caller { remote: ([127, 0, 0, 2], 1).into(), ..caller(Some(&secret)) };
        assert_eq!(tokens.identify(&elsewhere).await.unwrap(), id("web"));
    }

    #[tokio::test]
    async fn services_come_from_tokens_and_default_to_the_own_name() {
        let tokens = Tokens::new(Arc::new(Memory::default()), Vec::new());
        assert_eq!(tokens.services_of(&id("web")), ["web"]);
        assert!(!tokens.knows(&id("web")));
        tokens.create(Grant { services: vec!["shopfront".into()], ..grant("web") }).await.unwrap();
        assert_eq!(tokens.services_of(&id("web")), ["shopfront"]);
        assert!(tokens.knows(&id("web")));
    }

    #[test]
    fn the_admin_token_is_made_once_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        AdminToken::open(dir.path()).unwrap();
        let path = dir.path().join(ADMIN_TOKEN_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = AdminToken::open(dir.path()).unwrap();
        assert!(again.is(text.trim()) && !again.is("guess"));
    }
}
