//! The store by default: one redb file in the data directory.
//!
//! Every commit is durable when it returns, so a kill at any moment loses nothing that was acknowledged. Blocking: the [`Store`] of it moves the
//! work to the blocking pool.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::records::{Contents, HistoryEntry, Mutation, StoredSaid, StoredToken};
use super::{Answer, FORMAT, Store, StoreError};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const RULES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rules");
const HISTORY: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("history");
const INSTANCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("instances");
const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tokens");
const REVOKED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("revoked");
/// What registries of the network said, by registry, part and key.
const SAID: TableDefinition<'_, (&str, &str, &str), &str> = TableDefinition::new("said");
/// What this data directory is of, by name.
const FACTS: TableDefinition<'_, &str, &str> = TableDefinition::new("facts");
/// Written and removed again to find out whether the disk takes writes.
const TRIALS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("trials");

const FORMAT_KEY: &str = "format";
const GENERATION_KEY: &str = "generation-reserved";
/// Counts commits: after one that failed it says whether it is in the file all the same.
const COMMITS_KEY: &str = "commits";
/// Bytes of a trial; most rules are smaller.
const TRIAL: usize = 64 * 1024;

type Opener = dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync;

/// The open file. redb refuses everything after a write that failed, until its file is opened anew.
pub struct Embedded {
    path: PathBuf,
    open: Box<Opener>,
    /// Absent while it cannot be opened anew. Transactions of both kinds hold the lock for reading.
    database: RwLock<Option<Database>>,
    /// Why the last write failed; a write that succeeds ends it.
    trouble: Mutex<Option<String>>,
    /// The number of a commit of which only a file that cannot be opened knows whether it succeeded.
    uncertain: Mutex<Option<u64>>,
}

impl Embedded {
    /// Opens the file, making it when it is not there. Blocks.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::OpenOptionsExt;
        let io =
            |reason: std::io::Error| StoreError::Io { path: path.to_owned(), reason: reason.to_string() };
        // Made by us, so that its mode is 0600 from the beginning: it names identities and hashes.
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        drop(file.map_err(io)?);
        Self::open_by(path, Box::new(|path| Database::create(path)))
    }

    fn open_by(path: &Path, open: Box<Opener>) -> Result<Self, StoreError> {
        let database = open(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
            DatabaseError::Storage(redb::StorageError::Io(error))
                if error.kind() != std::io::ErrorKind::InvalidData =>
            {
                StoreError::Io { path: path.to_owned(), reason: error.to_string() }
            }
            other => StoreError::Damaged { path: path.to_owned(), reason: other.to_string() },
        })?;
        let path = path.to_owned();
        let (database, trouble) = (RwLock::new(Some(database)), Mutex::new(None));
        let store = Self { path, open, database, trouble, uncertain: Mutex::new(None) };
        store.prepare()?;
        Ok(store)
    }

    /// Writes something and takes it away again, which ends the trouble when it succeeds. Blocks.
    ///
    /// # Errors
    /// When the disk still does not take it.
    fn retry_blocking(&self) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(TRIALS)?.insert("trial", [0; TRIAL].as_slice())?;
            Ok(())
        })?;
        self.write(|transaction| {
            transaction.open_table(TRIALS)?.remove("trial")?;
            Ok(())
        })
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let found = self.write(|transaction| {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get(FORMAT_KEY)?.map(|value| value.value());
            transaction.open_table(FACTS)?;
            if found.is_none() {
                meta.insert(FORMAT_KEY, FORMAT)?;
                // All tables exist from the start, so that reading needs no special case.
                transaction.open_table(RULES)?;
                transaction.open_table(HISTORY)?;
                transaction.open_table(INSTANCES)?;
                transaction.open_table(TOKENS)?;
            }
            // Younger than the others: a store may have been made without it.
            if found.is_none_or(|found| found <= FORMAT) {
                transaction.open_table(REVOKED)?;
                transaction.open_table(SAID)?;
            }
            Ok(found)
        })?;
        match found {
            Some(found) if found > FORMAT => Err(StoreError::Newer { path: self.path.clone(), found }),
            _ => Ok(()),
        }
    }

    /// Reads everything but the history. Blocks.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn load_blocking(&self) -> Result<Contents, StoreError> {
        self.read(|transaction| {
            let generation =
                transaction.open_table(META)?.get(GENERATION_KEY)?.map_or(0, |value| value.value());
            let mut versions = BTreeMap::new();
            for row in transaction.open_table(HISTORY)?.iter()? {
                let (at, _) = row?;
                let (key, version) = at.value();
                // Rows come in order, so the last one of a key is its highest.
                versions.insert(key.to_owned(), version);
            }
            let mut facts = BTreeMap::new();
            for row in transaction.open_table(FACTS)?.iter()? {
                let (name, value) = row?;
                facts.insert(name.value().to_owned(), value.value().to_owned());
            }
            Ok(Contents {
                rules: read_all(&transaction.open_table(RULES)?)?,
                instances: read_all(&transaction.open_table(INSTANCES)?)?,
                tokens: read_all(&transaction.open_table(TOKENS)?)?,
                revoked: read_all(&transaction.open_table(REVOKED)?)?,
                generation,
                versions,
                facts,
            })
        })
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let database = self.database.read();
        let Some(database) = database.as_ref() else { return Err(self.closed()) };
        let read = || work(&database.begin_read()?);
        read().map_err(|error| self.failure(&error))
    }

    /// All versions of an object, the newest first; deletions too. Blocks.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn history_blocking(&self, key: &str) -> Result<Vec<HistoryEntry>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(HISTORY)?;
            let mut entries = Vec::new();
            for row in table.range((key, 0)..=(key, u64::MAX))? {
                let (at, value) = row?;
                entries.push(parse(at.value().0, value.value())?);
            }
            entries.reverse();
            Ok(entries)
        })
    }

    /// What registries of the network said last. Blocks.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn said_blocking(&self) -> Result<Vec<StoredSaid>, StoreError> {
        self.read(|transaction| {
            let mut all = Vec::new();
            for row in transaction.open_table(SAID)?.iter()? {
                let (at, json) = row?;
                let (registry, part, key) = at.value();
                let (registry, part, key) = (registry.to_owned(), part.to_owned(), key.to_owned());
                all.push(StoredSaid { registry, part, key, json: json.value().to_owned() });
            }
            Ok(all)
        })
    }

    /// Writes all changes or none; durable when it returns. Blocks.
    ///
    /// # Errors
    /// When they could not be written; nothing has changed then.
    pub fn commit_blocking(&self, mutations: &[Mutation]) -> Result<(), StoreError> {
        self.write(|transaction| {
            for mutation in mutations {
                apply(transaction, mutation)?;
            }
            Ok(())
        })
    }

    /// Carries out a write transaction. After a failure the file is opened anew: if the change is in it nevertheless, because
    /// only the answer of the disk was lost, it has succeeded.
    fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        if self.database.read().is_none() {
            self.reopen();
        }
        let (mut count, mut value) = (None, None);
        let run = || -> Result<(), redb::Error> {
            let database = self.database.read();
            let Some(database) = database.as_ref() else { return Err(redb::Error::PreviousIo) };
            // redb's default durability is Immediate: commit returns after the data is on disk.
            let transaction = database.begin_write()?;
            value = Some(work(&transaction)?);
            count = Some(count_commit(&transaction)?);
            transaction.commit()?;
            Ok(())
        };
        let failed = run().err().filter(|error| !self.is_in_the_file(error, count));
        match (failed, value) {
            (None, Some(value)) => {
                *self.trouble.lock() = None;
                Ok(value)
            }
            (error, _) => Err(self.not_written(error.unwrap_or(redb::Error::PreviousIo))),
        }
    }

    /// Opens the file anew after a failure of the disk. Whether the change with this number was written after all.
    fn is_in_the_file(&self, error: &redb::Error, count: Option<u64>) -> bool {
        if !matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo) {
            return false;
        }
        let found = self.reopen();
        // Of a write that could not even begin nothing is uncertain, and what was before stays so.
        if found.is_none() && count.is_some() {
            *self.uncertain.lock() = count;
        }
        found.zip(count).is_some_and(|(found, count)| found >= count)
    }

    /// How many commits are in the file; nothing when it cannot be opened. What it holds is what was durable: redb finds
    /// that out when it opens a file that was not closed in order.
    fn reopen(&self) -> Option<u64> {
        let mut database = self.database.write();
        // First the old handle goes: it has the file locked.
        drop(database.take());
        let opened = (self.open)(&self.path)
            .map_err(redb::Error::from)
            .and_then(|opened| Ok((commits_of(&opened)?, opened)));
        match opened {
            Ok((commits, opened)) => {
                *database = Some(opened);
                if self.uncertain.lock().take().is_some_and(|refused| commits >= refused) {
                    tracing::error!(
                        "a change that was refused while the disk failed is in the store after all: restart the control plane to have it in force, or make it again"
                    );
                }
                Some(commits)
            }
            Err(error) => {
                tracing::error!(%error, "the store cannot be opened anew; trying again with the next change");
                None
            }
        }
    }

    fn not_written(&self, error: redb::Error) -> StoreError {
        let path = self.path.clone();
        let reason = match &error {
            redb::Error::Io(error) if error.kind() != std::io::ErrorKind::InvalidData => error.to_string(),
            redb::Error::PreviousIo => "an earlier write failed".to_owned(),
            _ => return self.failure(&error),
        };
        let mut trouble = self.trouble.lock();
        // The first reason says most.
        trouble.get_or_insert_with(|| reason.clone());
        StoreError::NotWritten { path, reason }
    }

    fn closed(&self) -> StoreError {
        let reason = self.trouble().unwrap_or_else(|| "it is closed".to_owned());
        StoreError::Io { path: self.path.clone(), reason }
    }

    fn failure(&self, error: &redb::Error) -> StoreError {
        let path = self.path.clone();
        match error {
            redb::Error::Io(error) if error.kind() != std::io::ErrorKind::InvalidData => {
                StoreError::Io { path, reason: error.to_string() }
            }
            // It says nothing of the file.
            redb::Error::PreviousIo => self.closed(),
            other => StoreError::Damaged { path, reason: other.to_string() },
        }
    }
}

impl Embedded {
    /// Moves blocking work to the threads that are for it. They hold the store as long as they work.
    fn off<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<T> {
        Box::pin(async move {
            let path = self.path.clone();
            let done = tokio::task::spawn_blocking(move || work(&self)).await;
            done.unwrap_or_else(|error| Err(StoreError::Io { path, reason: error.to_string() }))
        })
    }
}

impl Store for Embedded {
    fn load(self: Arc<Self>) -> Answer<Contents> {
        self.off(Self::load_blocking)
    }

    fn history(self: Arc<Self>, key: String) -> Answer<Vec<HistoryEntry>> {
        self.off(move |store| store.history_blocking(&key))
    }

    fn said(self: Arc<Self>) -> Answer<Vec<StoredSaid>> {
        self.off(Self::said_blocking)
    }

    fn commit(self: Arc<Self>, mutations: Vec<Mutation>) -> Answer<()> {
        self.off(move |store| store.commit_blocking(&mutations))
    }

    fn spend(self: Arc<Self>, left: StoredToken, _since: Timestamp) -> Answer<bool> {
        self.off(move |store| store.commit_blocking(&[Mutation::PutToken(Box::new(left))]).map(|()| true))
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    fn retry(self: Arc<Self>) -> Answer<()> {
        self.off(Self::retry_blocking)
    }
}

fn count_commit(transaction: &WriteTransaction) -> Result<u64, redb::Error> {
    let mut meta = transaction.open_table(META)?;
    let count = meta.get(COMMITS_KEY)?.map_or(0, |value| value.value()) + 1;
    meta.insert(COMMITS_KEY, count)?;
    Ok(count)
}

fn commits_of(database: &Database) -> Result<u64, redb::Error> {
    let meta = database.begin_read()?.open_table(META)?;
    Ok(meta.get(COMMITS_KEY)?.map_or(0, |value| value.value()))
}

fn apply(transaction: &WriteTransaction, mutation: &Mutation) -> Result<(), redb::Error> {
    match mutation {
        Mutation::PutRule(rule) => {
            let entry = HistoryEntry::applied(rule);
            transaction
                .open_table(HISTORY)?
                .insert((rule.key.as_str(), rule.version), bytes(&entry)?.as_slice())?;
            transaction.open_table(RULES)?.insert(rule.key.as_str(), bytes(rule)?.as_slice())?;
        }
        Mutation::DeleteRule { key, entry } => {
            transaction
                .open_table(HISTORY)?
                .insert((key.as_str(), entry.version), bytes(entry)?.as_slice())?;
            transaction.open_table(RULES)?.remove(key.as_str())?;
        }
        Mutation::PutInstance(stored) => {
            transaction
                .open_table(INSTANCES)?
                .insert(stored.instance.id.as_str(), bytes(stored)?.as_slice())?;
        }
        Mutation::DeleteInstance(id) => {
            transaction.open_table(INSTANCES)?.remove(id.as_str())?;
        }
        Mutation::PutToken(token) => {
            transaction.open_table(TOKENS)?.insert(token.secret_sha256.as_str(), bytes(token)?.as_slice())?;
        }
        Mutation::DeleteToken(hash) => {
            transaction.open_table(TOKENS)?.remove(hash.as_str())?;
        }
        Mutation::PutRevocation(revocation) => {
            transaction
                .open_table(REVOKED)?
                .insert(revocation.entry.as_str(), bytes(revocation)?.as_slice())?;
        }
        Mutation::DeleteRevocation(entry) => {
            transaction.open_table(REVOKED)?.remove(entry.as_str())?;
        }
        Mutation::PutSaid(said) => {
            let key = (said.registry.as_str(), said.part.as_str(), said.key.as_str());
            transaction.open_table(SAID)?.insert(key, said.json.as_str())?;
        }
        Mutation::DeleteSaid { registry, part, key } => {
            transaction.open_table(SAID)?.remove((registry.as_str(), part.as_str(), key.as_str()))?;
        }
        Mutation::ReserveGeneration(generation) => {
            transaction.open_table(META)?.insert(GENERATION_KEY, *generation)?;
        }
        Mutation::PutFact { name, value } => {
            transaction.open_table(FACTS)?.insert(*name, value.as_str())?;
        }
    }
    Ok(())
}

fn bytes(value: &impl Serialize) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|error| redb::Error::Io(std::io::Error::other(error)))
}

fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, redb::Error> {
    serde_json::from_slice(value)
        .map_err(|error| redb::Error::Corrupted(format!("the record \"{key}\" cannot be read: {error}")))
}

fn read_all<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Vec<T>, redb::Error> {
    let mut all = Vec::new();
    for row in table.iter()? {
        let (key, value) = row?;
        all.push(parse(key.value(), value.value())?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
