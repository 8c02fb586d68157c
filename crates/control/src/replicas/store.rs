//! The store of one replica: what all must agree on is in Secrets, the rest in its own file.
//!
//! Revocations and join tokens are shared, each entry a field of its own. The generation, what registries said and what the volume is of
//! are each replica's. Rules and registrations are neither: they are the cluster's.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use outrigger_identity::Revocation;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Trouble;
use super::document::{Document, Fields};
use crate::store::records::{Contents, HistoryEntry, StoredRevocation, StoredSaid, StoredToken};
use crate::store::{Answer, Mutation, Store, StoreError};

/// What it is made of.
#[derive(Clone)]
pub(crate) struct ReplicaStore {
    local: Arc<dyn Store>,
    revocations: Listed<StoredRevocation>,
    tokens: Listed<StoredToken>,
}

impl ReplicaStore {
    pub(super) fn new(
        local: Arc<dyn Store>,
        revocations: Listed<StoredRevocation>,
        tokens: Listed<StoredToken>,
    ) -> Self {
        Self { local, revocations, tokens }
    }

    /// Brings what a volume has from before there were replicas to where they share it.
    ///
    /// # Errors
    /// It has what cannot be shared, or the API server is away.
    pub(super) async fn carry_over(&self) -> anyhow::Result<()> {
        let contents = self.local.clone().load().await?;
        let (rules, instances) = (contents.rules.len(), contents.instances.len());
        anyhow::ensure!(
            rules == 0 && instances == 0,
            "the volume has {rules} rules and {instances} instances from before there were replicas, which one replica would have for \
             itself alone. Start the release before, bring the rules into the cluster (`outrigger get rules -o yaml | kubectl apply -f -`), \
             delete and deregister them there (`outrigger delete`, `outrigger instance deregister`), and come back"
        );
        if contents.revoked.is_empty() && contents.tokens.is_empty() {
            return Ok(());
        }
        let (revoked, tokens) = (&contents.revoked, &contents.tokens);
        put_absent(&self.revocations.document, revoked, |stored| key(&stored.entry)).await?;
        put_absent(&self.tokens.document, tokens, |stored| stored.secret_sha256.clone()).await?;
        let revoked = contents.revoked.into_iter().map(|stored| Mutation::DeleteRevocation(stored.entry));
        let tokens = contents.tokens.into_iter().map(|stored| Mutation::DeleteToken(stored.secret_sha256));
        let all: Vec<Mutation> = revoked.chain(tokens).collect();
        tracing::info!(count = all.len(), "revocations and join tokens of the volume are shared now");
        Ok(self.local.clone().commit(all).await?)
    }

    async fn write(self, mutations: Vec<Mutation>) -> Result<(), StoreError> {
        let (mut own, mut revoked, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        for mutation in mutations {
            match &mutation {
                Mutation::PutToken(token) => {
                    tokens.push((token.secret_sha256.clone(), Some(text(token)?)));
                }
                Mutation::DeleteToken(hash) => tokens.push((hash.clone(), None)),
                Mutation::PutRevocation(stored) => revoked.push((key(&stored.entry), Some(text(stored)?))),
                Mutation::DeleteRevocation(entry) => revoked.push((key(entry), None)),
                Mutation::PutRule(_)
                | Mutation::DeleteRule { .. }
                | Mutation::PutInstance(_)
                | Mutation::DeleteInstance(_) => {
                    let what = "rules and registrations are not shared by replicas";
                    return Err(StoreError::Alone(what.to_owned()));
                }
                _ => own.push(mutation),
            }
        }
        // First what means nothing by itself: a generation that was reserved in vain does no harm.
        if !own.is_empty() {
            self.local.clone().commit(own).await?;
        }
        for (document, changes) in [(&self.revocations.document, revoked), (&self.tokens.document, tokens)] {
            if changes.is_empty() {
                continue;
            }
            let edit = |fields: &mut Fields| {
                for (key, text) in &changes {
                    match text {
                        Some(text) => drop(fields.insert(key.clone(), text.clone())),
                        None => drop(fields.remove(key)),
                    }
                }
                Ok(())
            };
            document.change(edit).await.map_err(|trouble| not_written(document, &trouble))?;
        }
        Ok(())
    }

    /// `left` is as its replica has it.
    async fn count(self, left: StoredToken, since: Timestamp) -> Result<bool, StoreError> {
        let Some(used) = left.used_for.last() else { return Ok(false) };
        let hash = left.secret_sha256;
        let one = |fields: &mut Fields| {
            let Some(json) = fields.get(&hash) else { return Ok(false) };
            let mut token: StoredToken = read(json)?;
            if !token.count(used, since) {
                return Ok(false);
            }
            let json = text(&token).map_err(|error| Trouble::Wrong(error.to_string()))?;
            fields.insert(hash.clone(), json);
            Ok(true)
        };
        let document = &self.tokens.document;
        document.change(one).await.map_err(|trouble| not_written(document, &trouble))
    }
}

/// Carries work out, whether somebody still waits for it or not.
fn done<T: Send + 'static>(work: impl Future<Output = Result<T, StoreError>> + Send + 'static) -> Answer<T> {
    let work = tokio::spawn(work);
    Box::pin(async move {
        let lost = |error: tokio::task::JoinError| StoreError::Alone(error.to_string());
        work.await.map_err(lost)?
    })
}

impl Store for ReplicaStore {
    fn load(self: Arc<Self>) -> Answer<Contents> {
        Box::pin(async move {
            let mut contents = self.local.clone().load().await?;
            contents.revoked = self.revocations.read().await?;
            contents.tokens = self.tokens.read().await?;
            // Of tokens nothing is lost: one that nobody can read proves nothing.
            match self.revocations.unread() {
                Some(why) => Err(StoreError::Alone(why)),
                None => Ok(contents),
            }
        })
    }

    fn history(self: Arc<Self>, key: String) -> Answer<Vec<HistoryEntry>> {
        self.local.clone().history(key)
    }

    fn said(self: Arc<Self>) -> Answer<Vec<StoredSaid>> {
        self.local.clone().said()
    }

    fn commit(self: Arc<Self>, mutations: Vec<Mutation>) -> Answer<()> {
        done(Self::clone(&self).write(mutations))
    }

    fn spend(self: Arc<Self>, left: StoredToken, since: Timestamp) -> Answer<bool> {
        done(Self::clone(&self).count(left, since))
    }

    fn trouble(&self) -> Option<String> {
        // Without an API server it serves, and what must be shared is refused one by one.
        self.local.trouble()
    }

    fn retry(self: Arc<Self>) -> Answer<()> {
        self.local.clone().retry()
    }
}

/// What a field of a shared Secret is.
pub(super) trait Entry: Clone + DeserializeOwned {
    /// Whether it means anything.
    ///
    /// # Errors
    /// Why not.
    fn check(&self) -> Result<(), String>;
}

impl Entry for StoredToken {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Entry for StoredRevocation {
    fn check(&self) -> Result<(), String> {
        Revocation::parse(&self.entry).map(drop)
    }
}

/// A Secret of such entries. A clone knows what all clones have known: what is read at the start is not lost to whoever follows it later.
pub(super) struct Listed<T> {
    pub(super) document: Document,
    entries: Arc<Mutex<Entries<T>>>,
}

impl<T> Clone for Listed<T> {
    fn clone(&self) -> Self {
        Self { document: self.document.clone(), entries: self.entries.clone() }
    }
}

impl<T: Entry> Listed<T> {
    pub(super) fn new(document: Document) -> Self {
        Self { document, entries: Arc::default() }
    }

    /// All that there are now, as last heard.
    pub(super) fn heard(&self) -> Vec<T> {
        let mut entries = self.entries.lock();
        entries.update(&self.document.latest().fields, &self.document.place())
    }

    /// All that there are at this moment.
    pub(super) async fn read(&self) -> Result<Vec<T>, StoreError> {
        let read = self.document.read().await;
        read.map_err(|trouble| {
            StoreError::Alone(format!("{} cannot be read: {trouble}", self.document.place()))
        })?;
        Ok(self.heard())
    }

    /// Why one of them counts for nothing, if one does.
    fn unread(&self) -> Option<String> {
        let entries = self.entries.lock();
        let (key, why) = entries.unread.iter().find(|(key, _)| !entries.known.contains_key(*key))?;
        Some(format!(
            "{}: {key} cannot be read ({why}), and whoever it revokes would be let in. Start the release that wrote it, restore it from \
             a backup, or, if it is nobody's, remove it there",
            self.document.place()
        ))
    }
}

/// What all replicas have, as last heard, entry by entry: one that cannot be read is what it was, and blinds nobody to the others.
#[derive(Debug, Clone)]
pub(super) struct Entries<T> {
    known: BTreeMap<String, T>,
    /// What cannot be read, so that it is said once.
    unread: BTreeMap<String, String>,
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), unread: BTreeMap::new() }
    }
}

impl<T: Entry> Entries<T> {
    pub(super) fn update(&mut self, fields: &Fields, place: &str) -> Vec<T> {
        self.known.retain(|key, _| fields.contains_key(key));
        self.unread.retain(|key, _| fields.contains_key(key));
        for (key, json) in fields {
            let read = serde_json::from_str(json).map_err(|error| error.to_string());
            match read.and_then(|entry: T| entry.check().map(|()| entry)) {
                Ok(entry) => {
                    self.unread.remove(key);
                    self.known.insert(key.clone(), entry);
                }
                Err(why) => {
                    if self.unread.get(key) != Some(&why) {
                        let held = self.known.contains_key(key);
                        tracing::error!(
                            secret = place,
                            entry = key,
                            why,
                            held,
                            "an entry cannot be read; what it was before holds, if it was known"
                        );
                        self.unread.insert(key.clone(), why);
                    }
                }
            }
        }
        self.known.values().cloned().collect()
    }
}

fn read<T: DeserializeOwned>(json: &str) -> Result<T, Trouble> {
    serde_json::from_str(json).map_err(|error| Trouble::Wrong(format!("an entry cannot be read: {error}")))
}

async fn put_absent<T: Serialize>(
    document: &Document,
    all: &[T],
    key: impl Fn(&T) -> String,
) -> anyhow::Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let written = all.iter().map(|one| Ok((key(one), text(one)?)));
    let written = written.collect::<Result<Vec<_>, StoreError>>()?;
    let edit = |fields: &mut Fields| {
        for (key, text) in &written {
            fields.entry(key.clone()).or_insert_with(|| text.clone());
        }
        Ok(())
    };
    Ok(document.change(edit).await?)
}

fn text(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Alone(error.to_string()))
}

/// Names of fields have only letters, digits, `-`, `_` and `.`.
fn key(entry: &str) -> String {
    digest(&SHA256, entry.as_bytes()).as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn not_written(document: &Document, trouble: &Trouble) -> StoreError {
    StoreError::Shared { place: document.place(), reason: trouble.to_string() }
}
