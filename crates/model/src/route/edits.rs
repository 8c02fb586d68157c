//! Edits of headers: `HeaderValueOption`s and names to remove, as a route, a share or a virtual host has them.

use serde::{Deserialize, Serialize};

use crate::route::text::HeaderText;

/// A header by its lower-case name, and its value.
pub type Written = (String, HeaderText);

/// Edits of headers, in this order: remove, set, add. Whether a header is there, the conditional ones ask after the removal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderEdits {
    /// Lower-case names to remove.
    pub remove: Vec<String>,
    /// Replace, or add if absent.
    pub set: Vec<Written>,
    /// Add a value.
    pub add: Vec<Written>,
    /// Replace what is there (`OVERWRITE_IF_EXISTS`).
    #[serde(default)]
    pub set_if_present: Vec<Written>,
    /// Add what is not there (`ADD_IF_ABSENT`).
    #[serde(default)]
    pub add_if_absent: Vec<Written>,
}

/// One edit that writes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write<'a> {
    /// Replace, or add if absent.
    Set(&'a str, &'a HeaderText),
    /// Add a value.
    Add(&'a str, &'a HeaderText),
}

impl<'a> Write<'a> {
    /// The header and its value.
    pub fn pair(self) -> (&'a str, &'a HeaderText) {
        let (Self::Set(name, value) | Self::Add(name, value)) = self;
        (name, value)
    }
}

/// What is written, in order. The conditions hold for what was there before the first is.
#[derive(Debug)]
pub struct Writes<'a> {
    edits: &'a HeaderEdits,
    /// Of the conditional ones; costs nothing where there are none.
    met: Vec<bool>,
    at: usize,
}

impl<'a> Iterator for Writes<'a> {
    type Item = Write<'a>;

    fn next(&mut self) -> Option<Write<'a>> {
        let edits = self.edits;
        loop {
            let mut at = self.at;
            self.at += 1;
            if let Some((name, value)) = edits.set.get(at) {
                return Some(Write::Set(name, value));
            }
            at -= edits.set.len();
            let Some(met) = self.met.get(at) else {
                let (name, value) = edits.add.get(at - self.met.len())?;
                return Some(Write::Add(name, value));
            };
            if *met {
                let present = edits.set_if_present.get(at);
                let set = present.map(|(name, value)| Write::Set(name, value));
                return set.or_else(|| {
                    let absent = edits.add_if_absent.get(at - edits.set_if_present.len());
                    absent.map(|(name, value)| Write::Add(name, value))
                });
            }
        }
    }
}

impl HeaderEdits {
    /// Whether there is nothing to do.
    #[inline]
    pub fn is_empty(&self) -> bool {
        let Self { remove, set, add, set_if_present, add_if_absent } = self;
        remove.is_empty() && [set, add, set_if_present, add_if_absent].into_iter().all(Vec::is_empty)
    }

    /// What is to be written, in order, once the names to remove are gone; `has` says what is there then.
    pub fn writes(&self, has: impl Fn(&str) -> bool) -> Writes<'_> {
        let present = self.set_if_present.iter().map(|(name, _)| has(name));
        let absent = self.add_if_absent.iter().map(|(name, _)| !has(name));
        Writes { edits: self, met: present.chain(absent).collect(), at: 0 }
    }

    /// Whether any value has commands.
    #[inline]
    pub fn has_commands(&self) -> bool {
        let lists = [&self.set, &self.add, &self.set_if_present, &self.add_if_absent];
        lists.into_iter().flatten().any(|(_, value)| value.plain().is_none())
    }

    /// These, and then those: as one. Commands read what was there before the first of them.
    #[must_use]
    pub fn then(mut self, later: &Self) -> Self {
        for name in &later.remove {
            self.forget(name);
            if !self.remove.contains(name) {
                self.remove.push(name.clone());
            }
        }
        for (name, value) in &later.set {
            self.forget(name);
            self.set.push((name.clone(), value.clone()));
        }
        for (name, value) in &later.set_if_present {
            let pair = (name.clone(), value.clone());
            if self.writes_name(name) || named(&self.add_if_absent, name) {
                self.forget(name);
                self.set.push(pair);
            } else if !self.remove.contains(name) {
                self.set_if_present.retain(|(known, _)| known != name);
                self.set_if_present.push(pair);
            }
        }
        for (name, value) in &later.add_if_absent {
            let pair = (name.clone(), value.clone());
            if self.remove.contains(name) && !self.writes_name(name) {
                self.add.push(pair);
            } else if !self.writes_name(name) && !named(&self.add_if_absent, name) {
                self.add_if_absent.push(pair);
            }
        }
        self.add.extend(later.add.iter().cloned());
        self
    }

    fn writes_name(&self, name: &str) -> bool {
        named(&self.set, name) || named(&self.add, name)
    }

    fn forget(&mut self, name: &str) {
        for list in [&mut self.set, &mut self.add, &mut self.set_if_present, &mut self.add_if_absent] {
            list.retain(|(known, _)| known != name);
        }
    }
}

fn named(pairs: &[Written], name: &str) -> bool {
    pairs.iter().any(|(known, _)| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> Written {
        (name.to_owned(), value.into())
    }

    fn applied(edits: &HeaderEdits, mut headers: Vec<Written>) -> Vec<Written> {
        headers.retain(|(name, _)| !edits.remove.contains(name));
        for write in edits.writes(|name| named(&headers, name)) {
            let (name, value) = write.pair();
            if let Write::Set(..) = write {
                headers.retain(|(known, _)| known != name);
            }
            headers.push((name.to_owned(), value.clone()));
        }
        headers
    }

    #[test]
    fn conditions_hold_for_what_was_there_before_anything_is_written() {
        let edits = HeaderEdits {
            remove: vec!["gone".into()],
            set_if_present: vec![pair("a", "1"), pair("b", "2"), pair("gone", "3")],
            add_if_absent: vec![pair("a", "4"), pair("b", "5"), pair("gone", "6")],
            set: vec![pair("c", "7")],
            add: vec![pair("c", "8")],
        };
        let before = vec![pair("a", "0"), pair("gone", "0"), pair("a", "00")];
        let mut after = applied(&edits, before);
        after.sort_by_key(|(name, value)| (name.clone(), value.written()));
        assert_eq!(
            after,
            [pair("a", "1"), pair("b", "5"), pair("c", "7"), pair("c", "8"), pair("gone", "6")]
        );
    }

    /// Every edit of one name, alone and before every other, to a request with the header and to one without.
    #[test]
    fn two_edits_as_one_do_what_they_do_one_after_the_other() {
        let one = |value: &str| {
            [
                HeaderEdits::default(),
                HeaderEdits { remove: vec!["a".into()], ..HeaderEdits::default() },
                HeaderEdits { set: vec![pair("a", value)], ..HeaderEdits::default() },
                HeaderEdits { add: vec![pair("a", value)], ..HeaderEdits::default() },
                HeaderEdits { set_if_present: vec![pair("a", value)], ..HeaderEdits::default() },
                HeaderEdits { add_if_absent: vec![pair("a", value)], ..HeaderEdits::default() },
                HeaderEdits {
                    remove: vec!["a".into()],
                    add: vec![pair("a", value)],
                    ..HeaderEdits::default()
                },
            ]
        };
        for first in one("first") {
            for second in one("second") {
                for before in [vec![], vec![pair("a", "x")], vec![pair("a", "x"), pair("a", "y")]] {
                    let apart = applied(&second, applied(&first, before.clone()));
                    let merged = applied(&first.clone().then(&second), before);
                    assert_eq!(merged, apart, "{first:?} then {second:?}");
                }
            }
        }
    }
}
