//! Who is revoked: kept by the keeper as rules are, so that a revocation is durable, has a generation, and is in force on
//! a sidecar when that generation is.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use outrigger_identity::revoked::MAX_REVOKED;
use outrigger_identity::{Revocation, Revoked, control_plane_id};

use super::Refused;
use super::draft::Draft;
use crate::store::Mutation;
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

    pub(super) fn entries(&self) -> &Arc<BTreeMap<String, StoredRevocation>> {
        &self.entries
    }

    pub(super) fn list(&self) -> &Arc<Revoked> {
        &self.list
    }
}

impl Draft {
    pub(super) fn revoke(&mut self, entry: &Revocation, by: String) -> Result<Vec<Mutation>, Refused> {
        if let Revocation::Identity(id) = entry
            && control_plane_id(&self.settings.trust_domain).is_ok_and(|own| own == *id)
        {
            let text = format!("{id} is the control plane's own; to replace its keys, rotate the root");
            return Err(Refused::Invalid(text));
        }
        let key = entry.to_string();
        if self.revocations.entries.contains_key(&key) {
            return Ok(Vec::new());
        }
        if self.revocations.entries.len() >= MAX_REVOKED {
            return Err(Refused::Conflict(format!(
                "{MAX_REVOKED} are revoked, as many as may be; reinstate serial numbers whose certificates have ended, or \
                 rotate the root"
            )));
        }
        let stored = StoredRevocation { entry: key.clone(), by, at: Timestamp::now() };
        let mut entries = BTreeMap::clone(&self.revocations.entries);
        entries.insert(key, stored.clone());
        self.revocations = Revocations::new(entries);
        self.decide_all();
        Ok(vec![Mutation::PutRevocation(Box::new(stored))])
    }

    pub(super) fn reinstate(&mut self, entry: &Revocation) -> Result<Vec<Mutation>, Refused> {
        let mut entries = BTreeMap::clone(&self.revocations.entries);
        if entries.remove(&entry.to_string()).is_none() {
            return Err(Refused::Unknown(format!(
                "{entry} is not revoked; `outrigger identity revoked` lists who is"
            )));
        }
        self.revocations = Revocations::new(entries);
        self.decide_all();
        Ok(vec![Mutation::DeleteRevocation(entry.to_string())])
    }
}
