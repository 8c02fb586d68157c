//! What the standard messages cannot say rides in `filter_metadata["outrigger"]`, which every kind of client accepts.

use std::collections::{BTreeMap, HashMap};

use outrigger_model::resource::Origin;

use super::flaw::{Decoded, flaw};
use crate::wire::core::Metadata;
use crate::wire::protobuf::{Struct, Value, value::Kind};

const OURS: &str = "outrigger";

pub(super) fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

pub(super) fn number(value: f64) -> Value {
    Value { kind: Some(Kind::NumberValue(value)) }
}

pub(super) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    map(fields.into_iter().map(|(name, value)| (name.to_owned(), value)))
}

pub(super) fn map(fields: impl IntoIterator<Item = (String, Value)>) -> Value {
    Value { kind: Some(Kind::StructValue(structure(fields))) }
}

pub(super) fn structure(fields: impl IntoIterator<Item = (String, Value)>) -> Struct {
    Struct { fields: fields.into_iter().collect() }
}

/// Metadata with our own fields; `None` if there are none.
pub(super) fn ours(fields: impl IntoIterator<Item = (String, Value)>) -> Option<Metadata> {
    with(OURS, structure(fields), None)
}

/// Adds a namespace to metadata, unless it is empty.
pub(super) fn with(namespace: &str, fields: Struct, base: Option<Metadata>) -> Option<Metadata> {
    if fields.fields.is_empty() {
        return base;
    }
    let mut metadata = base.unwrap_or_default();
    metadata.filter_metadata.insert(namespace.to_owned(), fields);
    Some(metadata)
}

/// The fields of a namespace.
pub(super) fn namespace<'a>(
    metadata: Option<&'a Metadata>,
    name: &str,
) -> Option<&'a HashMap<String, Value>> {
    metadata?.filter_metadata.get(name).map(|s| &s.fields)
}

/// Our own field of that name.
pub(super) fn our<'a>(metadata: Option<&'a Metadata>, name: &str) -> Option<&'a Value> {
    namespace(metadata, OURS)?.get(name)
}

pub(super) fn as_text(value: &Value) -> Option<&str> {
    match &value.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

pub(super) fn as_map(value: &Value) -> Option<&HashMap<String, Value>> {
    match &value.kind {
        Some(Kind::StructValue(s)) => Some(&s.fields),
        _ => None,
    }
}

pub(super) fn field<'a>(fields: &'a HashMap<String, Value>, name: &str) -> &'a str {
    fields.get(name).and_then(as_text).unwrap_or_default()
}

pub(super) fn origin_value(origin: &Origin) -> Value {
    object([
        ("kind", text(&origin.kind)),
        ("namespace", text(&origin.namespace)),
        ("name", text(&origin.name)),
    ])
}

pub(super) fn decode_origin(metadata: Option<&Metadata>) -> Decoded<Option<Origin>> {
    match our(metadata, "origin") {
        None => Ok(None),
        Some(value) => match origin(value) {
            Some(origin) => Ok(Some(origin)),
            None => flaw(
                "metadata.filter_metadata[outrigger].origin",
                "must have the texts kind, namespace and name",
            ),
        },
    }
}

fn origin(value: &Value) -> Option<Origin> {
    let fields = as_map(value)?;
    let text = |name: &str| fields.get(name).and_then(as_text).map(str::to_owned);
    Some(Origin { kind: text("kind")?, namespace: text("namespace")?, name: text("name")? })
}

/// Origins of policies: RBAC messages have no metadata, so those of a filter chain's filters ride on the chain, by the
/// position of the filter among the RBAC filters and the name of the policy.
pub(super) fn origins_value<'a>(
    filters: impl Iterator<Item = BTreeMap<&'a String, &'a Origin>>,
) -> Option<Value> {
    let filters =
        filters.enumerate().filter_map(|(i, origins)| Some((i.to_string(), policies_value(origins)?)));
    let filters: Vec<_> = filters.collect();
    (!filters.is_empty()).then(|| map(filters))
}

/// Those of one filter; nothing where it has none.
pub(super) fn policies_value(origins: BTreeMap<&String, &Origin>) -> Option<Value> {
    let said: Vec<_> =
        origins.into_iter().map(|(name, origin)| (name.clone(), origin_value(origin))).collect();
    (!said.is_empty()).then(|| map(said))
}

/// That of one filter that is one rule's, by its position among those of its kind.
pub(super) fn filter_origin(origins: Option<&Value>, filter: usize) -> Option<Origin> {
    origin(as_map(origins?)?.get(&filter.to_string())?)
}

/// The reverse of [`origins_value`] for one policy.
pub(super) fn policy_origin(origins: Option<&Value>, filter: usize, policy: &str) -> Option<Origin> {
    origin(as_map(as_map(origins?)?.get(&filter.to_string())?)?.get(policy)?)
}
