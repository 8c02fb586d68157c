//! What good tokens say.

use std::sync::Arc;

use serde_json::{Map, Value};
use smallvec::SmallVec;

/// The payload of a token.
pub type Claims = Map<String, Value>;

/// The payloads of a request's good tokens, by the names that policies know them by.
#[derive(Debug, Clone, Default)]
pub struct Proven(SmallVec<[(Arc<str>, Arc<Claims>); 1]>);

impl Proven {
    /// The last token counts under a name.
    pub(crate) fn put(&mut self, name: &Arc<str>, claims: Arc<Claims>) {
        self.0.retain(|(other, _)| other != name);
        self.0.push((name.clone(), claims));
    }

    /// Takes in what others are.
    pub fn extend(&mut self, others: Self) {
        others.0.into_iter().for_each(|(name, claims)| self.put(&name, claims));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value at a path, whose first part is the name of the payload.
    pub fn value(&self, path: &[String]) -> Option<&Value> {
        let (name, path) = path.split_first()?;
        let (first, rest) = path.split_first()?;
        let (_, claims) = self.0.iter().find(|(known, _)| **known == **name)?;
        rest.iter().try_fold(claims.get(first)?, |value, key| value.get(key))
    }
}
