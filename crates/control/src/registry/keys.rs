//! What the keys of a store that others write say, such as etcd's and ZooKeeper's nodes: an instance each, the parts they come to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::Item;
use super::parts::{Missing, Parts, Said};
use crate::instance::Instance;

/// The services of a namespace are a part.
fn part_of(instance: &Instance) -> String {
    format!("{}/{}", instance.namespace, instance.service)
}

/// What each key says, by the part that it says it of.
pub(super) struct Keys {
    pub(super) parts: Parts,
    by_key: BTreeMap<String, String>,
    by_part: BTreeMap<String, BTreeMap<String, Said>>,
}

/// What a part has now.
pub(super) type Left = (String, Vec<Item>);

impl Keys {
    pub(super) fn new(hold: Duration) -> Self {
        Self { parts: Parts::new(hold), by_key: BTreeMap::new(), by_part: BTreeMap::new() }
    }

    /// All keys that say something.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.by_key.keys()
    }

    /// All parts, also those of which only what is held is left.
    pub(super) fn all_parts(&self) -> BTreeSet<String> {
        self.by_part.keys().chain(self.parts.names()).cloned().collect()
    }

    /// A key has this value, or is gone. Notes whose part that changes.
    pub(super) fn put(&mut self, key: &str, said: Option<Said>, touched: &mut BTreeSet<String>) {
        let old = self.by_key.remove(key);
        let before = old.as_ref().and_then(|part| self.by_part.get_mut(part)?.remove(key));
        touched.extend(old.clone());
        let (part, said) = match (said, before) {
            (None | Some(Said::Nobody), _) => return,
            (Some(Said::Instance(id, instance)), _) => (part_of(&instance), Said::Instance(id, instance)),
            // Who cannot be read now stays what it was.
            (Some(Said::Wrong(_, why)), before) => {
                let id = match before {
                    Some(Said::Instance(id, _)) => Some(id),
                    Some(Said::Wrong(id, _)) => id,
                    _ => None,
                };
                let unknown = || key.rsplit('/').nth(1).unwrap_or_default().to_owned();
                (old.unwrap_or_else(unknown), Said::Wrong(Some(id.unwrap_or_default()), why))
            }
        };
        self.by_key.insert(key.to_owned(), part.clone());
        self.by_part.entry(part.clone()).or_default().insert(key.to_owned(), said);
        touched.insert(part);
    }

    /// What the parts have now that something of theirs has changed.
    pub(super) fn settle(&mut self, touched: BTreeSet<String>, recovering: bool, now: Instant) -> Vec<Left> {
        let missing = if recovering { Missing::Lost } else { Missing::Gone };
        self.by_part.retain(|_, keys| !keys.is_empty());
        let mut less = Vec::new();
        let mut gone = false;
        for part in touched {
            match self.by_part.get(&part) {
                Some(keys) => {
                    let items = self.parts.part(&part, keys.values().cloned(), missing, now);
                    less.push((part, items));
                }
                None => gone = true,
            }
        }
        if gone {
            let listed = self.by_part.keys().cloned().collect();
            less.extend(self.parts.list(&listed, false, recovering, now));
        }
        less
    }
}
