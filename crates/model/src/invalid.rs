//! What is wrong with a resource: the path of the field is put together on the way out, so the good case costs nothing.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::kind::ResourceKind;

/// A resource or a field of it that cannot be taken; becomes a NACK (xDS `error_detail`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{kind:?} \"{name}\": {field}: {reason}")]
pub struct Invalid {
    /// The kind of the resource.
    pub kind: ResourceKind,
    /// The resource.
    pub name: String,
    /// The path of the field, such as `virtual_hosts[0].routes[2].match.safe_regex`; empty for the whole resource.
    pub field: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

/// A field that cannot be taken, as seen from what it is part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Path of the field, empty for the whole.
    pub field: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl Flaw {
    /// Of the whole.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { field: String::new(), reason: reason.into() }
    }

    /// The flaw, seen from what holds it in `field`.
    #[must_use]
    pub fn under(mut self, field: impl Display) -> Self {
        self.field = match self.field.as_str() {
            "" => field.to_string(),
            inner if inner.starts_with('[') => format!("{field}{inner}"),
            inner => format!("{field}.{inner}"),
        };
        self
    }

    /// The resource that it is a flaw of.
    pub fn of(self, kind: ResourceKind, name: impl Into<String>) -> Invalid {
        Invalid { kind, name: name.into(), field: self.field, reason: self.reason }
    }
}

impl From<Invalid> for Flaw {
    fn from(invalid: Invalid) -> Self {
        Self { field: invalid.field, reason: invalid.reason }
    }
}

/// Adds the field that holds what failed.
pub trait Under<T>: Sized {
    /// As [`Flaw::under`]; of a bare reason, the field it is about.
    ///
    /// # Errors
    /// The same.
    fn under(self, field: impl Display) -> Result<T, Flaw>;
}

impl<T> Under<T> for Result<T, Flaw> {
    fn under(self, field: impl Display) -> Result<T, Flaw> {
        self.map_err(|flaw| flaw.under(field))
    }
}

impl<T> Under<T> for Result<T, String> {
    fn under(self, field: impl Display) -> Result<T, Flaw> {
        self.map_err(|reason| Flaw::new(reason).under(field))
    }
}
