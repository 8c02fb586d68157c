//! A store that survives nothing but its users: for tests, and the proof that nobody depends on the embedded one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::records::{HistoryEntry, StoredInstance, StoredRevocation, StoredRule, StoredSaid, StoredToken};
use super::{Answer, Contents, Mutation, Store, StoreError};

#[derive(Default)]
pub(crate) struct Memory {
    kept: Mutex<Kept>,
    /// Why it takes nothing, if it does not.
    trouble: Mutex<Option<String>>,
    /// Rung by a change that it does not take.
    refused: Notify,
}

#[derive(Default)]
struct Kept {
    rules: BTreeMap<String, StoredRule>,
    history: BTreeMap<(String, u64), HistoryEntry>,
    instances: BTreeMap<String, StoredInstance>,
    tokens: BTreeMap<String, StoredToken>,
    revoked: BTreeMap<String, StoredRevocation>,
    generation: u64,
    facts: BTreeMap<String, String>,
    said: BTreeMap<(String, String, String), String>,
}

impl Memory {
    /// From now on it takes no change.
    pub(crate) fn fail(&self, why: &str) {
        *self.trouble.lock() = Some(why.to_owned());
    }

    /// Waits until it has not taken a change.
    pub(crate) async fn refused(&self) {
        self.refused.notified().await;
    }

    /// Everything but the history.
    pub(crate) fn contents(&self) -> Contents {
        let kept = self.kept.lock();
        Contents {
            rules: kept.rules.values().cloned().collect(),
            instances: kept.instances.values().cloned().collect(),
            tokens: kept.tokens.values().cloned().collect(),
            revoked: kept.revoked.values().cloned().collect(),
            generation: kept.generation,
            // In order, so the last one of a key is its highest.
            versions: kept.history.keys().cloned().collect(),
            facts: kept.facts.clone(),
        }
    }
}

impl Kept {
    fn take(&mut self, mutation: Mutation) {
        match mutation {
            Mutation::PutRule(rule) => {
                self.history.insert((rule.key.clone(), rule.version), HistoryEntry::applied(&rule));
                self.rules.insert(rule.key.clone(), *rule);
            }
            Mutation::DeleteRule { key, entry } => {
                self.rules.remove(&key);
                self.history.insert((key, entry.version), *entry);
            }
            Mutation::PutInstance(stored) => {
                self.instances.insert(stored.instance.id.clone(), *stored);
            }
            Mutation::DeleteInstance(id) => drop(self.instances.remove(&id)),
            Mutation::PutToken(token) => drop(self.tokens.insert(token.secret_sha256.clone(), *token)),
            Mutation::DeleteToken(hash) => drop(self.tokens.remove(&hash)),
            Mutation::PutRevocation(entry) => drop(self.revoked.insert(entry.entry.clone(), *entry)),
            Mutation::DeleteRevocation(entry) => drop(self.revoked.remove(&entry)),
            Mutation::PutSaid(said) => {
                drop(self.said.insert((said.registry, said.part, said.key), said.json))
            }
            Mutation::DeleteSaid { registry, part, key } => drop(self.said.remove(&(registry, part, key))),
            Mutation::ReserveGeneration(generation) => self.generation = generation,
            Mutation::PutFact { name, value } => drop(self.facts.insert(name.to_owned(), value)),
        }
    }
}

impl Store for Memory {
    fn load(self: Arc<Self>) -> Answer<Contents> {
        Box::pin(async move { Ok(self.contents()) })
    }

    fn history(self: Arc<Self>, key: String) -> Answer<Vec<HistoryEntry>> {
        Box::pin(async move {
            let kept = self.kept.lock();
            let of = kept.history.range((key.clone(), 0)..=(key, u64::MAX)).rev();
            Ok(of.map(|(_, entry)| entry.clone()).collect())
        })
    }

    fn said(self: Arc<Self>) -> Answer<Vec<StoredSaid>> {
        Box::pin(async move {
            let said = self.kept.lock().said.clone().into_iter();
            Ok(said.map(|((registry, part, key), json)| StoredSaid { registry, part, key, json }).collect())
        })
    }

    fn commit(self: Arc<Self>, mutations: Vec<Mutation>) -> Answer<()> {
        Box::pin(async move {
            if let Some(reason) = self.trouble() {
                self.refused.notify_one();
                return Err(StoreError::NotWritten { path: PathBuf::from("memory"), reason });
            }
            let mut kept = self.kept.lock();
            mutations.into_iter().for_each(|mutation| kept.take(mutation));
            Ok(())
        })
    }

    fn spend(self: Arc<Self>, left: StoredToken, _since: Timestamp) -> Answer<bool> {
        let done = self.commit(vec![Mutation::PutToken(Box::new(left))]);
        Box::pin(async { done.await.map(|()| true) })
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    fn retry(self: Arc<Self>) -> Answer<()> {
        *self.trouble.lock() = None;
        Box::pin(async { Ok(()) })
    }
}
