//! Where instances come from. A registry emits [`Event`]s to the keeper, which alone decides what the world is.
//!
//! [`mod@file`] watches files; [`api`] holds the rules of registrations over the management API: who may register what, and
//! when a registration has expired; [`claim`] whose an address is. Further registries are further senders of the same events.

use std::sync::Arc;

use crate::instance::Instance;

pub mod api;
pub mod claim;
pub mod file;

/// What a registry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The source has exactly these instances.
    Reset(Vec<Arc<Instance>>),
    /// The source has this instance, new or changed.
    Upsert(Arc<Instance>),
    /// The source no longer has the instance of this id.
    Remove(String),
}
