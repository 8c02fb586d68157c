//! Which user object is behind a piece of configuration.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which user object caused a piece of configuration; named in errors, spans and `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// `VirtualService`, `TrafficRules`, `default`, …
    pub kind: String,
    /// The namespace of the object.
    pub namespace: String,
    /// The name of the object.
    pub name: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}
