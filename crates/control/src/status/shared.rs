//! What other replicas are told of the proxies here.

use std::collections::BTreeMap;

use super::Board;
use crate::others::{Proxy, named};

impl Board {
    /// Every connected proxy, and how far it is.
    pub(crate) fn reported(&self) -> Vec<Proxy> {
        let marked = self.audience.generation();
        let entries = self.entries.lock();
        let proxy = |entry: &super::Entry| Proxy {
            name: entry.name(),
            instance: entry.client.instance.clone(),
            client: named(entry.client.kind),
            generation: entry.generation(marked),
        };
        entries.values().map(proxy).collect()
    }

    /// What is refused at present, by the rules that it was made from.
    pub(crate) fn refused_rules(&self) -> BTreeMap<String, Vec<String>> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for entry in self.entries.lock().values() {
            for (refusal, ..) in entry.refused.values() {
                for rule in &refusal.rules {
                    let text = format!("{}: {}", entry.name(), refusal.text());
                    all.entry(rule.clone()).or_default().push(text);
                }
            }
        }
        all
    }
}
