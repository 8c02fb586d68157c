//! What the applications say: who answered, for whom.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The JSON body of every HTTP answer of the shop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply {
    /// Service to version, of everybody who took part.
    pub(crate) versions: BTreeMap<String, String>,
    /// Service to HTTP status, of those who failed.
    pub(crate) failed: BTreeMap<String, u16>,
    /// From stock, over the long-lived TCP session.
    pub(crate) in_stock: Option<u32>,
}
