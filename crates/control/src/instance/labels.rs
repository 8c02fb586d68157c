//! Labels: the copies of a service have the same ones, and share them.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

type Map = BTreeMap<String, String>;

/// Sets of labels that are remembered; each is at most as large as an instance.
const REMEMBERED: usize = 1024;

static NONE: Map = Map::new();

/// By hash, the last that was met in each place.
static MET: LazyLock<(RandomState, Mutex<Vec<Labels>>)> =
    LazyLock::new(|| (RandomState::new(), Mutex::new(vec![Labels::default(); REMEMBERED])));

/// A map of texts. Whoever changes one has a copy of their own then.
#[derive(Debug, Clone, Default)]
pub struct Labels(Option<Arc<Map>>);

impl Labels {
    /// The same, from now on one with those that are equal and were met shortly before.
    #[must_use]
    pub fn shared(self) -> Self {
        let Some(map) = self.0.as_ref().filter(|map| !map.is_empty()) else { return Self::default() };
        let (state, met) = &*MET;
        #[allow(clippy::cast_possible_truncation)] // any of its bits will do
        let place = state.hash_one(map) as usize % REMEMBERED;
        let mut met = met.lock();
        if *met[place] != **map {
            met[place] = self;
        }
        met[place].clone()
    }
}

impl Deref for Labels {
    type Target = Map;

    fn deref(&self) -> &Map {
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl DerefMut for Labels {
    fn deref_mut(&mut self) -> &mut Map {
        Arc::make_mut(self.0.get_or_insert_default())
    }
}

impl From<Map> for Labels {
    fn from(map: Map) -> Self {
        Self((!map.is_empty()).then(|| Arc::new(map)))
    }
}

impl<const N: usize> From<[(String, String); N]> for Labels {
    fn from(all: [(String, String); N]) -> Self {
        Map::from(all).into()
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(all: I) -> Self {
        Map::from_iter(all).into()
    }
}

impl PartialEq for Labels {
    fn eq(&self, other: &Self) -> bool {
        let shared =
            self.0.as_ref().zip(other.0.as_ref()).is_some_and(|(one, other)| Arc::ptr_eq(one, other));
        shared || **self == **other
    }
}

impl Eq for Labels {}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Map::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ones_are_one_until_one_changes() {
        let of =
            |value: &str| Labels::from(Map::from([("tests-labels".to_owned(), value.to_owned())])).shared();
        let (one, mut other) = (of("a"), of("a"));
        assert!(Arc::ptr_eq(one.0.as_ref().unwrap(), other.0.as_ref().unwrap()));
        other.insert("more".into(), "b".into());
        assert_eq!((one.len(), other.len()), (1, 2));
        assert_ne!(one, other);
        assert_eq!((of("c")["tests-labels"].as_str(), Labels::default().shared().len()), ("c", 0));
    }
}
