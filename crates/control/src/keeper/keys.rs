//! Keys of tokens, as they are learned.

use std::sync::Arc;

use outrigger_rules::intent::KeySource;

use super::{Command, Keeper, Refused};

impl Keeper {
    /// The keys of tokens at a place are these.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn learn(&self, source: KeySource, keys: Arc<str>) -> Result<u64, Refused> {
        self.ask(|reply| Command::Keys { source, keys, reply }).await
    }
}
