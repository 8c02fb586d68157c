//! Revoking and reinstating.

use jiff::Timestamp;
use outrigger_identity::revoked::MAX_REVOKED;
use outrigger_identity::{Revocation, control_plane_id};

use super::super::revocations::Revocations;
use super::Draft;
use crate::keeper::Refused;
use crate::store::Mutation;
use crate::store::records::StoredRevocation;

impl Draft {
    pub(in crate::keeper) fn revoke(
        &mut self,
        entry: &Revocation,
        by: String,
    ) -> Result<Vec<Mutation>, Refused> {
        if let Revocation::Identity(id) = entry
            && control_plane_id(&self.settings.trust_domain).is_ok_and(|own| own == *id)
        {
            let text = format!("{id} is the control plane's own; to replace its keys, rotate the root");
            return Err(Refused::Invalid(text));
        }
        let key = entry.to_string();
        if let Some(known) = self.revocations.entries().get(&key) {
            // Where replicas share them, another may just have reinstated it.
            return Ok(vec![Mutation::PutRevocation(Box::new(known.clone()))]);
        }
        if self.revocations.entries().len() >= MAX_REVOKED {
            return Err(Refused::Conflict(format!(
                "{MAX_REVOKED} are revoked, as many as may be; reinstate serial numbers whose certificates have ended, or \
                 rotate the root"
            )));
        }
        let stored = StoredRevocation { entry: key.clone(), by, at: Timestamp::now() };
        self.revocations = self.revocations.with(stored.clone());
        self.decide_all();
        Ok(vec![Mutation::PutRevocation(Box::new(stored))])
    }

    /// All that are revoked at all replicas, and what the same turn is about to change. Whether that is news.
    pub(in crate::keeper) fn share(&mut self, all: Vec<StoredRevocation>, coming: &[Mutation]) -> bool {
        let mut shared = Revocations::load(all);
        for mutation in coming {
            match mutation {
                Mutation::PutRevocation(stored) => shared = shared.with(StoredRevocation::clone(stored)),
                Mutation::DeleteRevocation(entry) => shared = shared.without(entry).unwrap_or(shared),
                _ => {}
            }
        }
        if shared.entries() == self.revocations.entries() {
            return false;
        }
        let before = std::mem::replace(&mut self.revocations, shared);
        if before.list() != self.revocations.list() {
            self.decide_all();
        }
        true
    }

    pub(in crate::keeper) fn reinstate(&mut self, entry: &Revocation) -> Result<Vec<Mutation>, Refused> {
        let Some(left) = self.revocations.without(&entry.to_string()) else {
            return Err(Refused::Unknown(format!(
                "{entry} is not revoked; `outrigger identity revoked` lists who is"
            )));
        };
        self.revocations = left;
        self.decide_all();
        Ok(vec![Mutation::DeleteRevocation(entry.to_string())])
    }
}
