//! What is wrong with a message: short ways to say it.

use std::fmt::Display;

pub(super) use outrigger_model::resource::{Flaw, Under};

/// The result of decoding.
pub(super) type Decoded<T> = Result<T, Flaw>;

/// A refusal of one field.
pub(super) fn flaw<T>(field: impl Display, reason: impl Into<String>) -> Decoded<T> {
    Err(Flaw::new(reason).under(field))
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
