//! The store of one replica: what all must agree on is in Secrets, the rest in its own file.
//!
//! Revocations and join tokens are shared, each entry a field of its own. The generation, what registries said and what the volume is of
//! are each replica's. Rules and registrations are neither: they are the cluster's.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Trouble;
use super::document::{Document, Fields};
use crate::store::records::{Contents, HistoryEntry, StoredSaid, StoredToken};
use crate::store::{Answer, Mutation, Store, StoreError};

/// What it is made of.
#[derive(Clone)]
pub(crate) struct Shared {
    local: Arc<dyn Store>,
    pub(super) revocations: Document,
    pub(super) tokens: Document,
}

impl Shared {
    pub(super) fn new(local: Arc<dyn Store>, revocations: Document, tokens: Document) -> Self {
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
        put_absent(&self.revocations, revoked, |stored| key(&stored.entry)).await?;
        put_absent(&self.tokens, tokens, |stored| stored.secret_sha256.clone()).await?;
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
        for (document, changes) in [(&self.revocations, revoked), (&self.tokens, tokens)] {
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

    /// `used` is as its replica has it, with the request for which it is used last.
    async fn count(self, used: StoredToken) -> Result<bool, StoreError> {
        let (hash, request) = (used.secret_sha256, used.used_for.last().cloned().unwrap_or_default());
        let one = |fields: &mut Fields| {
            let Some(json) = fields.get(&hash) else { return Ok(false) };
            let mut token: StoredToken = read(json)?;
            if !token.count(&request) {
                return Ok(false);
            }
            let json = text(&token).map_err(|error| Trouble::Wrong(error.to_string()))?;
            fields.insert(hash.clone(), json);
            Ok(true)
        };
        self.tokens.change(one).await.map_err(|trouble| not_written(&self.tokens, &trouble))
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

impl Store for Shared {
    fn load(self: Arc<Self>) -> Answer<Contents> {
        Box::pin(async move {
            let mut contents = self.local.clone().load().await?;
            for document in [&self.revocations, &self.tokens] {
                document.read().await.map_err(|trouble| unread(document, &trouble))?;
            }
            contents.revoked = Entries::default().heard(&self.revocations);
            contents.tokens = Entries::default().heard(&self.tokens);
            Ok(contents)
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

    fn spend(self: Arc<Self>, left: StoredToken) -> Answer<bool> {
        done(Self::clone(&self).count(left))
    }

    fn trouble(&self) -> Option<String> {
        // Without an API server it serves, and what must be shared is refused one by one.
        self.local.trouble()
    }

    fn retry(self: Arc<Self>) -> Answer<()> {
        self.local.clone().retry()
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

impl<T: Clone + DeserializeOwned> Entries<T> {
    /// All that there are now.
    pub(super) fn heard(&mut self, document: &Document) -> Vec<T> {
        self.update(&document.latest().fields, &document.place())
    }

    pub(super) fn update(&mut self, fields: &Fields, place: &str) -> Vec<T> {
        self.known.retain(|key, _| fields.contains_key(key));
        self.unread.retain(|key, _| fields.contains_key(key));
        for (key, json) in fields {
            match serde_json::from_str(json) {
                Ok(entry) => {
                    self.unread.remove(key);
                    self.known.insert(key.clone(), entry);
                }
                Err(error) => {
                    let why = error.to_string();
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

fn unread(document: &Document, trouble: &Trouble) -> StoreError {
    StoreError::Alone(format!("{} cannot be read: {trouble}", document.place()))
}
