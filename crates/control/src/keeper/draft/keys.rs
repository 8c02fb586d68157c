//! Keys of tokens, as they were fetched: kept, so that an issuer that is away takes no rule out of force.

use std::sync::Arc;

use outrigger_rules::intent::KeySource;
use serde::{Deserialize, Serialize};

use super::Draft;
use crate::store::Mutation;

/// All of them are one fact of the store: they are few and change seldom.
pub(super) const FACT: &str = "keys";

#[derive(Serialize, Deserialize)]
struct Stored {
    source: KeySource,
    keys: String,
}

impl Draft {
    /// What was stored. What cannot be read is fetched again.
    pub(super) fn recall_keys(&mut self, stored: Option<&String>) {
        let all: Vec<Stored> = stored.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        all.into_iter()
            .for_each(|Stored { source, keys }| self.world.learn(source, keys.into(), &mut self.change));
    }

    /// The keys at a place are these.
    pub(in crate::keeper) fn learn(&mut self, source: KeySource, keys: Arc<str>) -> Vec<Mutation> {
        // Rules of this turn may want it no more.
        self.settle();
        let wanted = self.world.key_sources().contains_key(&source);
        if !wanted || self.world.keys(&source) == Some(&keys) {
            return Vec::new();
        }
        self.world.learn(source, keys, &mut self.change);
        let all: Vec<Stored> = self
            .world
            .all_keys()
            .map(|(source, keys)| Stored { source: source.clone(), keys: keys.to_string() })
            .collect();
        match serde_json::to_string(&all) {
            Ok(value) => vec![Mutation::PutFact { name: FACT, value }],
            // Texts in a list always can be written.
            Err(_) => Vec::new(),
        }
    }
}
