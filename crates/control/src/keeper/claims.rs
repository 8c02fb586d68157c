//! What sources claim, by key. The first in their order has it; the others are remembered, and have it when the first lets go.
//!
//! Persistent, so a copy costs nothing and a change what it changes. Whoever claims alone, as nearly all do, costs one entry.

use std::sync::Arc;

use crate::registry::Source;
use crate::sorted::Sorted;

/// What one claims.
type Claim<T> = (Arc<Source>, T);

/// Who claims a key.
#[derive(Debug, Clone)]
enum Claimants<T> {
    One(Claim<T>),
    /// In order; at least two.
    Several(Arc<[Claim<T>]>),
}

/// All claims.
#[derive(Debug, Clone)]
pub struct Claims<T> {
    by_key: Sorted<Arc<str>, Claimants<T>>,
    by_source: Sorted<Arc<Source>, Sorted<Arc<str>, ()>>,
    contested: Sorted<Arc<str>, ()>,
}

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self { by_key: Sorted::default(), by_source: Sorted::default(), contested: Sorted::default() }
    }
}

impl<T> Claimants<T> {
    fn all(&self) -> &[Claim<T>] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Several(all) => all,
        }
    }
}

impl<T: Clone + PartialEq> Claims<T> {
    /// Everybody who claims a key, the one who has it first.
    pub fn of(&self, key: &str) -> &[Claim<T>] {
        self.by_key.get(key).map_or(&[], Claimants::all)
    }

    /// Who has a key.
    pub fn owner(&self, key: &str) -> Option<&Claim<T>> {
        self.of(key).first()
    }

    /// What one source says of a key.
    pub fn said(&self, source: &Source, key: &str) -> Option<&T> {
        self.of(key).iter().find(|(of, _)| **of == *source).map(|(_, value)| value)
    }

    /// All keys and who has them.
    pub fn owned(&self) -> impl Iterator<Item = (&str, &Claim<T>)> {
        self.by_key.iter().filter_map(|(key, claimants)| Some((&**key, claimants.all().first()?)))
    }

    /// The keys that several claim, with all who do.
    pub fn contested(&self) -> impl Iterator<Item = (&str, &[Claim<T>])> {
        self.contested.keys().map(|key| (&**key, self.of(key)))
    }

    /// What a registry claims in vain: the key, who of it says so, who has it.
    pub fn shadowed(&self, place: usize) -> impl Iterator<Item = (&str, &Source, &Source)> {
        self.contested().flat_map(move |(key, all)| {
            let by = all.first().map(|(source, _)| &**source);
            let others = all.iter().skip(1).map(|(source, _)| &**source);
            others.filter(move |of| of.place == place).filter_map(move |source| Some((key, source, by?)))
        })
    }

    /// How many keys a registry claims.
    pub fn count(&self, place: usize) -> usize {
        let of = self.by_source.iter().filter(|(source, _)| source.place == place);
        of.map(|(_, keys)| keys.len()).sum()
    }

    /// What is claimed otherwise than before: who claims it, the key, and what, if still.
    pub fn news<'a>(
        &'a self,
        before: &'a Self,
        same: fn(&T, &T) -> bool,
    ) -> impl Iterator<Item = (&'a Source, &'a str, Option<&'a T>)> {
        let every = |of: &'a Self| {
            of.by_key
                .iter()
                .flat_map(|(key, all)| all.all().iter().map(move |(source, now)| (&**source, &**key, now)))
        };
        let put = every(self)
            .filter(move |(source, key, now)| !before.said(source, key).is_some_and(|last| same(last, now)));
        let gone = every(before).filter(|(source, key, _)| self.said(source, key).is_none());
        put.map(|(source, key, now)| (source, key, Some(now)))
            .chain(gone.map(|(source, key, _)| (source, key, None)))
    }

    /// A source claims this. Whether that is news.
    pub fn put(&mut self, source: &Arc<Source>, key: &str, value: T) -> bool {
        if self.said(source, key) == Some(&value) {
            return false;
        }
        let key: Arc<str> = self.by_key.get_key_value(key).map_or_else(|| key.into(), |(key, _)| key.clone());
        let mut all = self.of(&key).to_vec();
        all.retain(|(of, _)| of != source);
        let place = all.partition_point(|(of, _)| of < source);
        all.insert(place, (source.clone(), value));
        self.set(&key, all);
        match self.by_source.get_mut(source) {
            Some(keys) => drop(keys.insert(key, ())),
            None => drop(self.by_source.insert(source.clone(), Sorted::from_iter([(key, ())]))),
        }
        true
    }

    /// A source claims this no longer. Whether that is news.
    pub fn take(&mut self, source: &Arc<Source>, key: &str) -> bool {
        let mut all = self.of(key).to_vec();
        let before = all.len();
        all.retain(|(of, _)| of != source);
        if all.len() == before {
            return false;
        }
        self.set(&Arc::from(key), all);
        let emptied = self.by_source.get_mut(source).is_some_and(|keys| {
            keys.remove(key);
            keys.is_empty()
        });
        if emptied {
            self.by_source.remove(source);
        }
        true
    }

    /// A source claims exactly these. The keys that this is news of.
    pub fn reset(&mut self, source: &Arc<Source>, now: Vec<(String, T)>) -> Vec<String> {
        let mut gone = self.by_source.get(source).cloned().unwrap_or_default();
        let mut news = Vec::new();
        for (key, value) in now {
            gone.remove(key.as_str());
            if self.put(source, &key, value) {
                news.push(key);
            }
        }
        for key in gone.keys() {
            self.take(source, key);
            news.push(key.to_string());
        }
        news
    }

    fn set(&mut self, key: &Arc<str>, mut all: Vec<Claim<T>>) {
        let several = all.len() > 1;
        match (several, all.pop()) {
            (false, Some(one)) => drop(self.by_key.insert(key.clone(), Claimants::One(one))),
            (true, Some(last)) => {
                all.push(last);
                self.by_key.insert(key.clone(), Claimants::Several(all.into()));
            }
            (_, None) => drop(self.by_key.remove(key)),
        }
        let _ = match several {
            true => self.contested.insert(key.clone(), ()),
            false => self.contested.remove(key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(place: usize, part: &str) -> Arc<Source> {
        Arc::new(Source { last: false, place, registry: format!("r{place}").into(), part: part.to_owned() })
    }

    #[test]
    fn what_several_claim_the_first_has_whoever_spoke_last_and_the_next_when_it_lets_go() {
        let (api, a, b) = (Source::api(), source(1, "a"), source(1, "b"));
        let mut claims = Claims::default();
        assert!(claims.put(&b, "k", 3) && claims.put(&a, "k", 2) && claims.put(&api, "k", 1));
        assert!(!claims.put(&a, "k", 2), "no news");
        let who = |claims: &Claims<i32>| claims.of("k").iter().map(|(_, n)| *n).collect::<Vec<_>>();
        assert_eq!(who(&claims), [1, 2, 3]);
        assert_eq!(claims.contested().count(), 1);
        assert!(claims.take(&api, "k") && !claims.take(&api, "k"));
        assert_eq!((who(&claims), claims.count(1)), (vec![2, 3], 2));
        assert!(claims.take(&a, "k"));
        assert_eq!((claims.owner("k").unwrap().1, claims.contested().count()), (3, 0));
        assert!(claims.take(&b, "k") && claims.owner("k").is_none() && claims.count(1) == 0);
    }

    #[test]
    fn a_reset_is_news_of_what_differs_and_leaves_what_others_said() {
        let (a, b) = (source(1, "a"), source(2, ""));
        let all = |n: i32| ["x", "y"].map(|key| (key.to_owned(), n)).to_vec();
        let mut claims = Claims::default();
        assert_eq!(claims.reset(&a, all(1)), ["x", "y"]);
        assert_eq!(claims.reset(&a, all(1)), [""; 0]);
        claims.put(&b, "x", 7);
        assert_eq!(claims.reset(&a, vec![("y".into(), 2)]), ["y", "x"]);
        assert_eq!(claims.owned().map(|(key, (_, n))| (key, *n)).collect::<Vec<_>>(), [("x", 7), ("y", 2)]);
        assert_eq!(claims.reset(&a, Vec::new()), ["y"]);
        assert_eq!((claims.count(1), claims.count(2)), (0, 1));
    }
}
