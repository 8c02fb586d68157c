//! Parts of a cluster by metadata of its endpoints (`LbSubsetConfig`), as other control planes have them. Our own makes clusters of subsets.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Metadata: values are JSON, so that a number is no text.
pub type Labels = BTreeMap<String, String>;

/// Which parts there are, and who serves in place of one that is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subsets {
    /// A part is what has the same values for all keys of a selector.
    pub selectors: Vec<Selector>,
    /// For what no selector says otherwise of.
    pub fallback: SubsetFallback,
    /// Who serves by [`SubsetFallback::Default`].
    pub default: Labels,
}

/// A selector.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    /// The keys.
    pub keys: BTreeSet<String>,
    /// Of its parts that are empty.
    pub fallback: Option<SubsetFallback>,
}

/// Who serves in place of a part that is empty, or that is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubsetFallback {
    /// Nobody.
    #[default]
    None,
    /// All endpoints.
    Any,
    /// Those with the default's values, of any keys.
    Default,
}

/// The part of a cluster that a route goes to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What its endpoints have.
    pub labels: Labels,
    /// Unlike that of every other part of every cluster.
    pub key: String,
}

impl Part {
    /// Of a cluster.
    pub fn new(cluster: &str, labels: Labels) -> Self {
        let key = format!("{cluster}?{labels:?}");
        Self { labels, key }
    }
}

impl Subsets {
    /// What holds for a part that is empty.
    pub fn fallback(&self, part: &Labels) -> SubsetFallback {
        let is_of = |selector: &&Selector| selector.keys.iter().eq(part.keys());
        self.selectors.iter().find(is_of).and_then(|selector| selector.fallback).unwrap_or(self.fallback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_the_fallback_of_its_very_keys() {
        let labels =
            |keys: &[&str]| -> Labels { keys.iter().map(|key| ((*key).into(), "1".into())).collect() };
        let selector = |keys: &[&str], fallback| Selector {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            fallback,
        };
        let subsets = Subsets {
            selectors: vec![selector(&["a"], Some(SubsetFallback::Any)), selector(&["a", "b"], None)],
            fallback: SubsetFallback::Default,
            default: Labels::new(),
        };
        assert_eq!(subsets.fallback(&labels(&["a"])), SubsetFallback::Any);
        assert_eq!(subsets.fallback(&labels(&["a", "b"])), SubsetFallback::Default);
        assert_eq!(subsets.fallback(&labels(&["c"])), SubsetFallback::Default);
        assert_ne!(Part::new("c", labels(&["a"])).key, Part::new("c", labels(&["b"])).key);
    }
}
