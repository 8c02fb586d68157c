//! Who is revoked: kept by the keeper as rules are, so that a revocation is durable, has a generation, and is in force on
//! a sidecar when that generation is.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_identity::{Revocation, Revoked};

use crate::store::records::StoredRevocation;

/// The entries, and the same as it is looked up.
#[derive(Clone, Default)]
pub(super) struct Revocations {
    entries: Arc<BTreeMap<String, StoredRevocation>>,
    list: Arc<Revoked>,
}

impl Revocations {
    pub(super) fn load(stored: Vec<StoredRevocation>) -> Self {
        Self::new(stored.into_iter().map(|stored| (stored.entry.clone(), stored)).collect())
    }

    fn new(entries: BTreeMap<String, StoredRevocation>) -> Self {
        // Only what was read before is ever stored.
        let list = entries.keys().filter_map(|entry| Revocation::parse(entry).ok()).collect();
        Self { entries: Arc::new(entries), list: Arc::new(list) }
    }

    pub(super) fn with(&self, stored: StoredRevocation) -> Self {
        let mut entries = BTreeMap::clone(&self.entries);
        entries.insert(stored.entry.clone(), stored);
        Self::new(entries)
    }

    /// `None`: it is not among them.
    pub(super) fn without(&self, entry: &str) -> Option<Self> {
        let mut entries = BTreeMap::clone(&self.entries);
        entries.remove(entry)?;
        Some(Self::new(entries))
    }

    pub(super) fn entries(&self) -> &Arc<BTreeMap<String, StoredRevocation>> {
        &self.entries
    }

    pub(super) fn list(&self) -> &Arc<Revoked> {
        &self.list
    }
}
