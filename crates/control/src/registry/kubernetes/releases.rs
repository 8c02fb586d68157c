//! Which releases of Kubernetes are in a cluster: a Pod's fields mean only what the oldest that sees it knows, be it the API server or the
//! kubelet of a node.

use std::collections::{BTreeMap, HashMap};

use super::cluster::Named;
use crate::inject::Release;

/// Those that are known.
#[derive(Debug, Default)]
pub(super) struct Releases {
    api: Option<Release>,
    nodes: HashMap<Named, Release>,
    count: BTreeMap<Release, usize>,
}

impl Releases {
    /// The API server has said its own, or what cannot be read as one.
    pub(super) fn api(&mut self, release: Option<Release>) {
        self.api = release.or(self.api);
    }

    /// A node's kubelet; none where it does not say, or as kubelets do not that are none.
    pub(super) fn node(&mut self, named: &Named, release: Option<Release>) {
        if self.nodes.get(named).copied() == release {
            return;
        }
        let before = match release {
            Some(release) => self.nodes.insert(named.clone(), release),
            None => self.nodes.remove(named),
        };
        if let Some(before) = before
            && let Some(count) = self.count.get_mut(&before)
        {
            *count -= 1;
            if *count == 0 {
                self.count.remove(&before);
            }
        }
        if let Some(release) = release {
            *self.count.entry(release).or_default() += 1;
        }
    }

    /// The oldest, where any is known.
    pub(super) fn oldest(&self) -> Option<Release> {
        self.count.keys().next().copied().into_iter().chain(self.api).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(text: &str) -> Option<Release> {
        Some(text.parse().unwrap())
    }

    fn named(name: &str) -> Named {
        (String::new(), name.to_owned())
    }

    #[test]
    fn the_oldest_counts_for_as_long_as_it_is_there() {
        let mut all = Releases::default();
        assert_eq!(all.oldest(), None);
        all.api(release("1.31"));
        assert_eq!(all.oldest(), release("1.31"));
        all.node(&named("a"), release("1.28"));
        all.node(&named("b"), release("1.28"));
        all.node(&named("c"), release("1.30"));
        assert_eq!(all.oldest(), release("1.28"));
        // One is upgraded, the other goes.
        all.node(&named("a"), release("1.31"));
        assert_eq!(all.oldest(), release("1.28"));
        all.node(&named("b"), None);
        assert_eq!(all.oldest(), release("1.30"));
        all.node(&named("c"), None);
        // A word that nobody can read is no other version.
        all.api(None);
        assert_eq!(all.oldest(), release("1.31"));
        all.api(release("1.28"));
        assert_eq!(all.oldest(), release("1.28"));
    }
}
