//! Whose rules count for a host.

use super::Visibility;

/// Whose rules count for a host, beside those of a client's own namespace.
#[derive(Debug, Clone)]
pub struct Say<'a> {
    /// The namespace of the host's service, where it is known.
    pub owner: Option<&'a str>,
    /// Those whose rules are for the whole mesh, the first goes first.
    pub roots: Vec<&'a str>,
}

impl Say<'_> {
    /// How much a rule of a namespace counts for clients of another; `None`: nothing.
    pub(super) fn of(&self, of: &str, visibility: &Visibility, client: &str) -> Option<usize> {
        let root = self.roots.iter().position(|root| *root == of);
        // What a root namespace says to everybody is no word for its own clients in particular.
        let is_own = of == client && (root.is_none() || visibility.is_only(client));
        if is_own {
            return Some(self.roots.len() + 2);
        }
        let owns = self.owner == Some(of);
        owns.then_some(self.roots.len() + 1).or_else(|| root.map(|at| self.roots.len() - at))
    }

    /// Whether a rule of that namespace has a say for clients of other namespaces.
    pub fn counts(&self, namespace: &str) -> bool {
        self.owner == Some(namespace) || self.roots.contains(&namespace)
    }
}
