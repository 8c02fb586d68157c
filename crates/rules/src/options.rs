//! What reading a text depends on beside it.

use crate::host::Resolver;

/// What reading depends on beside the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseOptions {
    /// How hosts are resolved.
    pub resolver: Resolver,
    /// Namespace of objects that name none.
    pub default_namespace: String,
    /// Whether the data plane can balance by consistent hash; otherwise its use is a warning.
    pub consistent_hash: bool,
}

impl Default for ParseOptions {
    fn default() -> Self {
        Self { resolver: Resolver::default(), default_namespace: "default".to_owned(), consistent_hash: true }
    }
}
