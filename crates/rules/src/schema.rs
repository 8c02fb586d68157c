//! Schemas for CustomResourceDefinitions, made from the tables that the dialects read by.
//!
//! A structural schema has one type for each field. Where we take a text or a mapping, one or a list, it says that anything may stand there,
//! and the control plane says the rest. Numbers and durations have their ranges from the reader, whose messages are better.

use serde_json::{Value, json};

use crate::reader::Table;

/// How durations are written.
pub(crate) const DURATION: &str = "such as 250ms, 1s or 1m.";

/// A mapping with the fields of a table. A field that is not implemented may be written, so that its warning is heard.
pub(crate) fn object(table: &Table, required: &[&str], of: impl Fn(&str) -> Value) -> Value {
    let known = table.known.iter().map(|name| ((*name).to_owned(), of(name)));
    let later =
        table.later.iter().map(|name| ((*name).to_owned(), any("Not implemented: it has no effect.")));
    let mut schema =
        json!({"type": "object", "properties": known.chain(later).collect::<serde_json::Map<_, _>>()});
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schema
}

pub(crate) fn text(what: &str) -> Value {
    json!({"type": "string", "description": what})
}

/// A number, in quotes or not.
pub(crate) fn number(what: &str) -> Value {
    json!({"x-kubernetes-int-or-string": true, "description": what})
}

pub(crate) fn boolean(what: &str) -> Value {
    json!({"type": "boolean", "description": what})
}

pub(crate) fn one_of(words: &[&str], what: &str) -> Value {
    json!({"type": "string", "enum": words, "description": what})
}

pub(crate) fn list(items: Value, what: &str) -> Value {
    json!({"type": "array", "items": items, "description": what})
}

/// A mapping whose keys are the user's.
pub(crate) fn mapping(values: Value, what: &str) -> Value {
    json!({"type": "object", "additionalProperties": values, "description": what})
}

/// What has more than one type.
pub(crate) fn any(what: &str) -> Value {
    json!({"x-kubernetes-preserve-unknown-fields": true, "description": what})
}

pub(crate) fn described(mut schema: Value, what: &str) -> Value {
    schema["description"] = what.into();
    schema
}
