//! Revoking and reinstating.

use jiff::Timestamp;
use outrigger_identity::revoked::MAX_REVOKED;
use outrigger_identity::{Revocation, control_plane_id};

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
        if self.revocations.entries().contains_key(&key) {
            return Ok(Vec::new());
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
