//! What the table of HTTP filters (`filters.rs`) has of each: its message, and both ways of its conversion.

use outrigger_model::listener::HttpFilter;

use super::flaw::Decoded;
use super::metadata::our;
use super::shadow::Shadow;
use crate::kind::ClientKind;
use crate::wire::core::Metadata;
use crate::wire::hcm::{self, http_filter::ConfigType};
use crate::wire::protobuf::{Any, Value};

/// Under which name the user objects behind a filter ride on its chain, and what there is for this one.
pub(super) type Origins = (&'static str, Option<Value>);

/// A filter. What it writes, and whose origins it tells, is always its own.
pub(super) struct Row {
    /// Whether a message is its.
    pub(super) is: fn(&Any) -> bool,
    /// Reads one; nothing where it is to do nothing.
    pub(super) read: fn(&mut Reading<'_>) -> Decoded<Option<HttpFilter>>,
    /// It reads those that are disabled, too: a route may have its own.
    pub(super) reads_disabled: bool,
    /// Writes one, for a kind of client that knows it.
    pub(super) write: fn(&HttpFilter, &mut Writing),
    /// The user objects behind it.
    pub(super) origins: fn(&HttpFilter) -> Option<Origins>,
}

/// A filter that has no origins on the chain.
pub(super) fn nothing(_: &HttpFilter) -> Option<Origins> {
    None
}

/// A message that is read.
pub(super) struct Reading<'a> {
    pub(super) config: &'a Any,
    pub(super) filter: &'a hcm::HttpFilter,
    pub(super) stat_prefix: &'a str,
    /// Of the filter chain.
    pub(super) metadata: Option<&'a Metadata>,
    /// Its position among those of its kind.
    pub(super) index: usize,
    /// What RBAC filters before it leave for it.
    pub(super) shadows: &'a mut Vec<Shadow>,
}

impl Reading<'_> {
    /// The user objects that ride on the chain under a name.
    pub(super) fn origins(&self, name: &str) -> Option<&Value> {
        our(self.metadata, name)
    }
}

/// The messages of a connection manager, as they are written.
pub(super) struct Writing {
    pub(super) all: Vec<hcm::HttpFilter>,
    pub(super) kind: ClientKind,
    /// The position of the filter that is written.
    pub(super) position: usize,
}

impl Writing {
    /// One more.
    pub(super) fn push(&mut self, name: &str, config: Any) {
        self.all.push(hcm::HttpFilter {
            name: name.to_owned(),
            config_type: Some(ConfigType::TypedConfig(config)),
            ..Default::default()
        });
    }
}
