//! What one connection to a Nacos has heard.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::entry::Name;

/// What is known of a service that is subscribed to.
pub(super) struct Known {
    /// When what it said last was made, by the server's clock.
    pub(super) made: i64,
    pub(super) asked: Instant,
    /// Since when it has nobody.
    pub(super) empty: Option<Instant>,
}

impl Known {
    pub(super) fn new(made: i64) -> Self {
        Self { made, asked: Instant::now(), empty: None }
    }
}

/// What one connection has heard.
#[derive(Default)]
pub(super) struct Heard {
    /// Services that are subscribed to.
    pub(super) subscribed: BTreeMap<Name, Known>,
    /// Something was known before, by another connection or before this start; the server may have lost everything since.
    pub(super) again: bool,
    /// All of them have been heard of once.
    pub(super) whole: bool,
    /// What cannot be subscribed to, or be read.
    pub(super) trouble: BTreeMap<String, String>,
    /// Why there is no new token.
    pub(super) token: Option<String>,
}
