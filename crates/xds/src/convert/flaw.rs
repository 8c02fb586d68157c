//! What is wrong with a message: the path of the field is put together on the way out, so the good case costs nothing.

use std::fmt::Display;

/// A field that cannot be taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    /// Path of the field, empty for the whole message.
    pub(super) field: String,
    /// What is wrong and what would be right.
    pub(super) reason: String,
}

/// The result of decoding.
pub(super) type Decoded<T> = Result<T, Flaw>;

impl Flaw {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { field: String::new(), reason: reason.into() }
    }

    /// The flaw, seen from the message that holds it in `field`.
    pub(super) fn under(mut self, field: impl Display) -> Self {
        self.field = match self.field.as_str() {
            "" => field.to_string(),
            inner if inner.starts_with('[') => format!("{field}{inner}"),
            inner => format!("{field}.{inner}"),
        };
        self
    }
}

/// A refusal of one field.
pub(super) fn flaw<T>(field: impl Display, reason: impl Into<String>) -> Decoded<T> {
    Err(Flaw::new(reason).under(field))
}

/// Adds the field that holds what failed.
pub(super) trait Under: Sized {
    fn under(self, field: impl Display) -> Self;
}

impl<T> Under for Decoded<T> {
    fn under(self, field: impl Display) -> Self {
        self.map_err(|flaw| flaw.under(field))
    }
}

/// Decodes each item of a repeated field. With exactly the room that they need: collected as results there would be room for
/// four where most have one, for as long as the resource lives.
pub(super) fn each<M, T>(items: &[M], field: &str, decode: impl Fn(&M) -> Decoded<T>) -> Decoded<Vec<T>> {
    let mut decoded = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        decoded.push(decode(item).map_err(|flaw| flaw.under(format_args!("{field}[{i}]")))?);
    }
    Ok(decoded)
}
