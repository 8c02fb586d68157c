//! Where nodes are, and so where an endpoint is that somebody wrote: a slice says its node and its zone, and no region.

use std::collections::{BTreeMap, HashMap};

use crate::canonical;
use crate::instance::Instance;

/// Region, zone and sub-zone.
pub(super) type Place = [String; 3];

/// What nodes say of themselves.
#[derive(Debug, Default)]
pub(super) struct Places {
    nodes: HashMap<String, Place>,
    /// How many nodes say so of each zone and region.
    zones: HashMap<String, BTreeMap<String, usize>>,
}

/// What is another than before.
pub(super) struct Moved {
    /// Zones whose region is another, or none any more.
    pub(super) zones: Vec<String>,
}

impl Places {
    /// A node is now there, or gone. `None`: that says nothing new.
    pub(super) fn put(&mut self, node: &str, place: Option<Place>) -> Option<Moved> {
        if self.nodes.get(node) == place.as_ref() {
            return None;
        }
        let before = match &place {
            Some(place) => self.nodes.insert(node.to_owned(), place.clone()),
            None => self.nodes.remove(node),
        };
        let all: Vec<&Place> = before.iter().chain(place.as_ref()).collect();
        let known: Vec<(String, String)> =
            all.iter().map(|[_, zone, _]| (zone.clone(), self.region(zone).to_owned())).collect();
        if let Some([region, zone, _]) = &before
            && let Some(regions) = self.zones.get_mut(zone)
        {
            if let Some(count) = regions.get_mut(region) {
                *count -= 1;
            }
            regions.retain(|_, count| *count > 0);
            if regions.is_empty() {
                self.zones.remove(zone);
            }
        }
        if let Some([region, zone, _]) = &place {
            *self.zones.entry(zone.clone()).or_default().entry(region.clone()).or_default() += 1;
        }
        let moved = known.into_iter().filter(|(zone, region)| self.region(zone) != region);
        Some(Moved { zones: moved.map(|(zone, _)| zone).collect() })
    }

    /// Of a node; empty where nobody knows.
    pub(super) fn of(&self, node: &str) -> Place {
        self.nodes.get(node).cloned().unwrap_or_default()
    }

    /// An endpoint that somebody wrote, in its region: its node's, or that of all nodes of its zone.
    pub(super) fn placed(&self, written: &Instance) -> Instance {
        let [region, zone, sub_zone] = written.node().map(|node| self.of(node)).unwrap_or_default();
        let mut placed = written.clone();
        if placed.zone.is_empty() {
            placed.zone = zone.clone();
        }
        if !sub_zone.is_empty() && placed.zone == zone {
            placed.metadata.entry(canonical::SUB_ZONE.to_owned()).or_insert(sub_zone);
        }
        placed.region = if region.is_empty() { self.region(&placed.zone).to_owned() } else { region };
        placed
    }

    /// Of a zone, where its nodes agree.
    fn region(&self, zone: &str) -> &str {
        let Some(regions) = self.zones.get(zone).filter(|_| !zone.is_empty()) else { return "" };
        let mut all = regions.keys();
        match (all.next(), all.next()) {
            (Some(one), None) => one,
            _ => "",
        }
    }
}
