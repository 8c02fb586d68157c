//! What a catalogue that others write said, part by part, and what of it is held although it is not there any more.
//!
//! One service that goes has gone. Much that goes at once, all that there was, everything of one that stays listed, and whatever is
//! missing after it began another history has more likely been lost, and comes back piece by piece: each instance is held by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Item, Problem};
use crate::instance::Instance;

/// More than this share of the services gone at once is held. Percent.
const MASS_PERCENT: usize = 30;

/// Whether so many of so many are more likely to have been lost than to have gone.
pub(super) fn is_mass(lost: usize, known: usize) -> bool {
    lost == known || (lost >= 2 && lost * 100 > known * MASS_PERCENT)
}

/// What a catalogue says of one thing in it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Said {
    /// Nobody to call.
    Nobody,
    /// An instance of this id.
    Instance(String, Arc<Instance>),
    /// Of whom, if that can be told, and what is wrong.
    Wrong(Option<String>, String),
}

/// What becomes of instances that an answer does not have any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// They have gone.
    Gone,
    /// All of one that is still listed: lost, or about to be listed no more.
    Emptied,
    /// They may come back.
    Lost,
    /// The token does not see them: nothing is known of them.
    Hidden,
}

/// All parts.
pub(super) struct Parts {
    hold: Duration,
    /// What each has in force.
    said: BTreeMap<String, BTreeMap<String, Arc<Instance>>>,
    /// Instances that are held.
    held: BTreeMap<String, BTreeMap<String, Held>>,
    /// None ends sooner.
    ends: Option<Instant>,
    problems: BTreeMap<String, Vec<String>>,
}

/// An instance that is missing.
#[derive(Debug, Clone, Copy)]
struct Held {
    since: Instant,
    /// Its service was answered for without anybody, while it was listed.
    emptied: bool,
}

/// A part, and what it has now.
type Left = (String, Vec<Item>);

impl Parts {
    pub(super) fn new(hold: Duration) -> Self {
        Self { hold, said: BTreeMap::new(), held: BTreeMap::new(), ends: None, problems: BTreeMap::new() }
    }

    /// What it said before this start: what is missing of it has gone since.
    pub(super) fn recall(&mut self, said: &BTreeMap<String, Vec<Item>>) {
        for (part, items) in said {
            let instances = items.iter().filter_map(|item| match item {
                Item::Instance(instance) => Some((instance.id.clone(), instance.clone())),
                Item::Rule(_) => None,
            });
            self.said.insert(part.clone(), instances.collect());
        }
    }

    /// Only these are listed; `hidden`: and perhaps others that the token does not see. Yields those that have less than before.
    pub(super) fn list(
        &mut self,
        listed: &BTreeSet<String>,
        hidden: bool,
        recovering: bool,
        now: Instant,
    ) -> Vec<Left> {
        let known = self.said.values().filter(|part| !part.is_empty()).count();
        let missing: Vec<String> = self.said.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        let emptied =
            |name: &String| self.held.get(name).is_some_and(|held| held.values().any(|held| held.emptied));
        let full = |name: &String| self.said.get(name).is_some_and(|part| !part.is_empty());
        // Of what the token may hide only its own answer tells that it has gone.
        let lost = missing.iter().filter(|name| if hidden { emptied(name) } else { full(name) }).count();
        let mass = is_mass(lost, known);
        let mut less = Vec::new();
        for name in missing {
            let Some(part) = self.said.get_mut(&name) else { continue };
            let held = self.held.entry(name.clone()).or_default();
            let mut gone = BTreeSet::new();
            if mass || recovering {
                held.values_mut().for_each(|held| held.emptied = false);
                for id in part.keys().filter(|_| !hidden) {
                    held.entry(id.clone()).or_insert(Held { since: now, emptied: false });
                    self.ends = earlier(self.ends, now + self.hold);
                }
            } else {
                // Nobody serves it, and now it is listed no more: it has ended.
                held.retain(|id, held| !held.emptied || !gone.insert(id.clone()));
            }
            let before = part.len();
            part.retain(|id, _| held.contains_key(id) || (hidden && !gone.contains(id)));
            if part.len() < before || part.is_empty() {
                less.push((name.clone(), items(part)));
            }
            self.tidy(&name);
        }
        less
    }

    /// The instances of a part as they are here now.
    pub(super) fn part(
        &mut self,
        name: &str,
        rows: impl IntoIterator<Item = Said>,
        missing: Missing,
        now: Instant,
    ) -> Vec<Item> {
        let before = self.said.remove(name).unwrap_or_default();
        let (mut wrong, mut has, mut blind) = (Vec::new(), BTreeMap::new(), missing == Missing::Hidden);
        for said in rows {
            match said {
                Said::Nobody => {}
                Said::Instance(id, new) => {
                    let same = before.get(&id).filter(|old| **old == new).cloned();
                    if has.insert(id.clone(), same.unwrap_or(new)).is_some() {
                        wrong.push(format!("instance \"{id}\" occurs twice"));
                    }
                }
                Said::Wrong(id, why) => {
                    wrong.push(why);
                    // Who is bad now stays what it was; of whom nobody knows who it is, anybody may be it.
                    blind |= id.is_none();
                    if let Some((id, last)) = id.and_then(|id| before.get_key_value(&id)) {
                        has.insert(id.clone(), last.clone());
                    }
                }
            }
        }
        let held = self.held.entry(name.to_owned()).or_default();
        held.retain(|id, _| !has.contains_key(id));
        for (id, last) in before {
            if has.contains_key(&id) {
                continue;
            }
            if matches!(missing, Missing::Emptied | Missing::Lost) {
                let emptied = missing == Missing::Emptied;
                held.entry(id.clone()).or_insert(Held { since: now, emptied });
                self.ends = earlier(self.ends, now + self.hold);
            }
            if blind || held.contains_key(&id) {
                has.insert(id, last);
            }
        }
        match wrong.is_empty() {
            true => drop(self.problems.remove(name)),
            false => drop(self.problems.insert(name.to_owned(), wrong)),
        }
        let all = items(&has);
        self.said.insert(name.to_owned(), has);
        if self.held.get(name).is_some_and(BTreeMap::is_empty) {
            self.held.remove(name);
        }
        all
    }

    /// It was said of a part that nobody is there, and that is meant. It is said next.
    pub(super) fn clear(&mut self, name: &str) {
        self.said.remove(name);
        self.held.remove(name);
    }

    /// It was said of this one that it has gone, whatever else is missing. Its part is said next.
    pub(super) fn end(&mut self, name: &str, id: &str) {
        self.said.get_mut(name).and_then(|part| part.remove(id));
        self.held.get_mut(name).and_then(|held| held.remove(id));
    }

    /// Nobody answered for so long: that is no time of a hold.
    pub(super) fn pause(&mut self, outage: Duration) {
        self.held.values_mut().flat_map(BTreeMap::values_mut).for_each(|held| held.since += outage);
        self.ends = self.ends.map(|ends| ends + outage);
    }

    /// The services that something is in force of.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.said.keys()
    }

    /// Whether something is in force of a service.
    pub(super) fn has(&self, name: &str) -> bool {
        self.said.contains_key(name)
    }

    pub(super) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    #[cfg(test)]
    pub(super) fn items(&self, name: &str) -> Vec<Item> {
        self.said.get(name).map_or_else(Vec::new, items)
    }

    #[cfg(test)]
    pub(super) fn held_in(&self, name: &str) -> usize {
        self.held.get(name).map_or(0, BTreeMap::len)
    }

    /// When the first hold ends, or sooner.
    pub(super) fn hold_ends(&self) -> Option<Instant> {
        self.ends.filter(|_| self.is_holding())
    }

    /// Lets go of what was held for long enough.
    pub(super) fn let_go(&mut self, now: Instant) -> Vec<Left> {
        let mut less = Vec::new();
        for (name, held) in &mut self.held {
            let Some(part) = self.said.get_mut(name) else { continue };
            let before = held.len();
            held.retain(|id, held| {
                let stays = now < held.since + self.hold;
                if !stays {
                    part.remove(id);
                }
                stays
            });
            if held.len() < before {
                less.push((name.clone(), items(part)));
            }
        }
        for (name, _) in &less {
            self.tidy(name);
        }
        let first = self.held.values().flat_map(BTreeMap::values).map(|held| held.since).min();
        self.ends = first.map(|since| since + self.hold);
        less
    }

    /// What is wrong: with what is held, and with what cannot be read.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        // Without numbers: each that comes back would be another problem.
        let held = self.is_holding().then(|| {
            let text = format!(
                "it does not list what it listed before, as after a start without its data: what is missing is held until it is back, or \
                 has been missing for {} s of answers",
                self.hold.as_secs()
            );
            Problem::of_part("held", text)
        });
        let of = |(part, all): (&String, &Vec<String>)| {
            all.iter().map(|text| Problem::of_part(part, text.clone())).collect::<Vec<_>>()
        };
        held.into_iter().chain(self.problems.iter().flat_map(of))
    }

    /// Forgets what says nothing any more.
    fn tidy(&mut self, name: &str) {
        if self.held.get(name).is_some_and(BTreeMap::is_empty) {
            self.held.remove(name);
        }
        if self.said.get(name).is_some_and(BTreeMap::is_empty) {
            self.said.remove(name);
            self.problems.remove(name);
        }
    }
}

fn earlier(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}

fn items(part: &BTreeMap<String, Arc<Instance>>) -> Vec<Item> {
    part.values().cloned().map(Item::Instance).collect()
}
