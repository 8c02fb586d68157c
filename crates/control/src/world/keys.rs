//! The keys of tokens: those that are known, and where rules want them fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use outrigger_rules::intent::KeySource;

use super::World;

/// That keys are fetched from somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyWish {
    /// How long that may take.
    pub timeout: Duration,
    /// Of the rules that say so.
    pub namespaces: BTreeSet<String>,
}

impl World {
    /// The keys at a place, if they are known.
    pub fn keys(&self, source: &KeySource) -> Option<&Arc<str>> {
        self.keys.get(source)
    }

    /// All keys that are known.
    pub(crate) fn all_keys(&self) -> impl Iterator<Item = (&KeySource, &Arc<str>)> {
        self.keys.iter()
    }

    /// Where rules want keys fetched.
    pub fn key_sources(&self) -> BTreeMap<KeySource, KeyWish> {
        let mut wanted: BTreeMap<KeySource, KeyWish> = BTreeMap::new();
        for intent in &self.rules.tokens.all {
            for issuer in &intent.rules {
                let Some(source) = &issuer.keys else { continue };
                let new = || KeyWish { timeout: issuer.timeout, namespaces: BTreeSet::new() };
                let wish = wanted.entry(source.clone()).or_insert_with(new);
                // Whoever names a place of others' takes nothing from them.
                wish.timeout = wish.timeout.max(issuer.timeout);
                wish.namespaces.insert(intent.origin.namespace.clone());
            }
        }
        wanted
    }
}
