//! The difference between what is wanted and what the stream was told, as requests; and what the client has.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use outrigger_model::resource::ResourceKind;

use super::{ALL, Ask};
use crate::kind::type_url;
use crate::wire::discovery::DeltaDiscoveryRequest;

/// Names and versions that the consumer got, by kind; survives the stream. An empty version: known, to be sent again.
pub(super) type Has = BTreeMap<ResourceKind, HashMap<String, String>>;

/// What the current stream was told.
#[derive(Default)]
pub(super) struct Told {
    asks: BTreeMap<ResourceKind, Ask>,
}

impl Told {
    /// Whether the stream asks for a name, so that news of it are wanted.
    pub(super) fn wants(&self, kind: ResourceKind, name: &str) -> bool {
        self.asks.get(&kind).is_some_and(|ask| ask.wildcard || ask.names.contains(name))
    }

    pub(super) fn knows(&self, kind: ResourceKind) -> bool {
        self.asks.contains_key(&kind)
    }

    /// The requests that tell the stream what is wanted now, in push order. What was dropped and is wanted again is asked
    /// for once more, because the consumer has it no longer.
    pub(super) fn tell(
        &mut self,
        wanted: &BTreeMap<ResourceKind, Ask>,
        dropped: &BTreeSet<(ResourceKind, String)>,
        has: &mut Has,
    ) -> Vec<DeltaDiscoveryRequest> {
        ResourceKind::ALL
            .into_iter()
            .filter_map(|kind| {
                let again = dropped.iter().filter(|(k, _)| *k == kind).map(|(_, name)| name);
                self.tell_kind(kind, wanted.get(&kind)?, again.collect(), has.entry(kind).or_default())
            })
            .collect()
    }

    fn tell_kind(
        &mut self,
        kind: ResourceKind,
        wanted: &Ask,
        mut again: Vec<&String>,
        has: &mut HashMap<String, String>,
    ) -> Option<DeltaDiscoveryRequest> {
        again.retain(|name| wanted.names.contains(*name));
        again.iter().for_each(|name| drop(has.remove(*name)));
        has.retain(|name, _| wanted.wildcard || wanted.names.contains(name));
        let told = self.asks.get(&kind);
        let first = told.is_none();
        let empty = Ask::default();
        let told = told.unwrap_or(&empty);
        again.retain(|name| told.names.contains(*name));
        if told == wanted && again.is_empty() {
            return None; // also: nothing was ever wanted
        }
        let mut subscribe: Vec<String> = wanted.names.difference(&told.names).chain(again).cloned().collect();
        let mut unsubscribe: Vec<String> = told.names.difference(&wanted.names).cloned().collect();
        match (told.wildcard, wanted.wildcard) {
            // The form that every control plane knows: a first request without names.
            (false, true) if first && subscribe.is_empty() && speaks_of_all(kind) => {}
            (false, true) => subscribe.push(ALL.to_owned()),
            (true, false) => unsubscribe.push(ALL.to_owned()),
            _ => {}
        }
        self.asks.insert(kind, wanted.clone());
        Some(DeltaDiscoveryRequest {
            type_url: type_url(kind).to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: if first { has.clone() } else { HashMap::new() },
            ..Default::default()
        })
    }
}

fn speaks_of_all(kind: ResourceKind) -> bool {
    matches!(kind, ResourceKind::Cluster | ResourceKind::Listener)
}
