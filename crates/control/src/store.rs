//! What survives: rules with versions and history, registrations, tokens, revocations, and the generation counter.
//!
//! A [`Store`] keeps what it is told, all of a commit or nothing; what is stored is decided by the keeper, and no store looks into rules.
//! [`embedded`] is the one by default. One that several control planes share implements the same; that others have changed it,
//! they would be told as by any [`crate::registry`].

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use jiff::Timestamp;

pub mod embedded;
#[cfg(test)]
pub(crate) mod memory;
pub mod records;

pub use records::{Contents, Mutation};
use records::{HistoryEntry, StoredSaid, StoredToken};

/// The layout of what is stored. A store with a higher number is of a newer release and is refused.
pub const FORMAT: u64 = 1;

/// What a store answers when it is done.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Keeps what must survive. Whoever asks may go away meanwhile; what was begun is carried out.
pub trait Store: Send + Sync {
    /// Everything but the history.
    fn load(self: Arc<Self>) -> Answer<Contents>;

    /// All versions of an object, the newest first; deletions too.
    fn history(self: Arc<Self>, key: String) -> Answer<Vec<HistoryEntry>>;

    /// What registries of the network said last.
    fn said(self: Arc<Self>) -> Answer<Vec<StoredSaid>>;

    /// Writes all changes or none; they survive when it answers. After an error nothing has changed.
    fn commit(self: Arc<Self>, mutations: Vec<Mutation>) -> Answer<()>;

    /// Counts one use of a token, of which this is what is left by what is known here, with that use as the last. Whether there was one:
    /// where others count, too, they may have been quicker. One that was counted for the same request after `since` is the same.
    fn spend(self: Arc<Self>, left: StoredToken, since: Timestamp) -> Answer<bool>;

    /// Why changes are not taken at the moment, if they are not.
    fn trouble(&self) -> Option<String>;

    /// Tries whether changes are taken again, which ends the trouble.
    fn retry(self: Arc<Self>) -> Answer<()>;
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is in use.
    #[error("the store {0} is open in another process; a data directory serves one control plane")]
    InUse(PathBuf),
    /// It is of a newer release.
    #[error(
        "the store {path} has format {found}, this release reads up to {FORMAT}; start the newer release again, or restore a backup"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// It is not a store, or it is damaged.
    #[error("the store {path} is damaged: {reason}; move it away to start empty, or restore a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The disk did not take a change.
    #[error(
        "the store {path} cannot be written: {reason}; nothing has changed and nothing is lost: changes are taken again, without a restart, once the disk takes writes"
    )]
    NotWritten {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// What replicas share cannot be written.
    #[error("{place} cannot be written: {reason}; nothing has changed")]
    Shared {
        /// The object of the cluster.
        place: String,
        /// What its API server says.
        reason: String,
    },
    /// Replicas do not share it.
    #[error("{0}")]
    Alone(String),
    /// The system refuses.
    #[error("the store {path} cannot be used: {reason}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}
