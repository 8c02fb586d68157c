//! Parts that several dialects write alike: string matches, header edits, retry conditions, visibility, selectors.

use std::collections::BTreeMap;

use crate::finding::{closest, code, quote};
use crate::intent::{HeaderEdits, HeaderOps, NamedMatch, RetryCondition, RetryOn, StringMatch, Visibility};
use crate::reader::{At, Reader, Table, is_header_name};
use crate::yaml::Value;

const ISTIO_MATCH: Table = Table::new("a string match", &["exact", "prefix", "regex"]);
const NATIVE_MATCH: Table = Table::new("a string match", &["exact", "prefix", "suffix", "regex", "present"]);

/// How string matches are spelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `{exact|prefix|regex: …}`.
    Istio,
    /// The same with `suffix` and `present: true`; a bare text is exact.
    Native,
}

/// A string match; `{}` is presence, which only headers and query parameters may ask for.
pub(super) fn string_match(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    spelling: Spelling,
    presence: bool,
) -> Option<StringMatch> {
    let at = at?;
    let table = match spelling {
        Spelling::Istio => &ISTIO_MATCH,
        Spelling::Native => &NATIVE_MATCH,
    };
    if let Value::Text(text) = &at.node.value {
        if spelling == Spelling::Native {
            return Some(StringMatch::Exact(text.clone()));
        }
        reader.error(
            &at,
            format!("{} must be a mapping such as {{exact: {}}}, not a bare text", at.path, quote(text)),
        );
        return None;
    }
    let fields = reader.fields(&at, table)?;
    let given: Vec<&'static str> = table.known.iter().copied().filter(|name| fields.has(name)).collect();
    match given.as_slice() {
        ["exact"] => reader.text(fields.get("exact")).map(StringMatch::Exact),
        ["prefix"] => reader.text(fields.get("prefix")).map(StringMatch::Prefix),
        ["suffix"] => reader.text(fields.get("suffix")).map(StringMatch::Suffix),
        ["regex"] => reader.pattern(fields.get("regex")).map(StringMatch::Regex),
        ["present"] if presence => match reader.boolean(fields.get("present"))? {
            true => Some(StringMatch::Present),
            false => {
                reader.error(
                    &at,
                    format!("{} can only be true; leave the match out or invert it", join(&at, "present")),
                );
                None
            }
        },
        [] if presence => Some(StringMatch::Present),
        [] => {
            reader.error(&at, format!("{} needs one of {}", at.path, table.known.join(", ")));
            None
        }
        [one] => {
            reader.error(&at, format!("{} can not be used here: it is always there", join(&at, one)));
            None
        }
        several => {
            reader.error(
                &at,
                format!(
                    "{} has {}, but a string match has exactly one of them",
                    at.path,
                    several.join(" and ")
                ),
            );
            None
        }
    }
}

fn join(at: &At<'_>, name: &str) -> String {
    format!("{}.{name}", at.path)
}

/// Conditions on headers.
pub(super) fn header_matches(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    spelling: Spelling,
    invert: bool,
) -> Vec<NamedMatch> {
    let mut matches = Vec::new();
    for (key, item) in reader.entries(at) {
        let name = reader.header_name(&item, &key.text);
        let value = named_value(reader, item, spelling);
        if let (Some(name), Some(value)) = (name, value) {
            matches.push(NamedMatch { name, value, invert });
        }
    }
    matches
}

/// Conditions on query parameters.
pub(super) fn query_matches(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    spelling: Spelling,
) -> Vec<NamedMatch> {
    let mut matches = Vec::new();
    for (key, item) in reader.entries(at) {
        if let Some(value) = named_value(reader, item, spelling) {
            matches.push(NamedMatch { name: key.text.clone(), value, invert: false });
        }
    }
    matches
}

fn named_value(reader: &mut Reader<'_>, at: At<'_>, spelling: Spelling) -> Option<StringMatch> {
    if at.node.value == Value::Null {
        reader.error(&at, format!("{} has no condition: write {{}} for \"is present\"", at.path));
        return None;
    }
    string_match(reader, Some(at), spelling, true)
}

const EDITS: Table = Table::new("header edits", &["request", "response"]);
const OPERATIONS: Table = Table::new("header operations", &["set", "add", "remove"]);

/// Header edits of both directions.
pub(super) fn header_edits(reader: &mut Reader<'_>, at: Option<At<'_>>) -> HeaderEdits {
    let Some(fields) = at.and_then(|at| reader.fields(&at, &EDITS)) else { return HeaderEdits::default() };
    HeaderEdits {
        request: header_ops(reader, fields.get("request"), true),
        response: header_ops(reader, fields.get("response"), false),
    }
}

fn header_ops(reader: &mut Reader<'_>, at: Option<At<'_>>, request: bool) -> HeaderOps {
    let Some(fields) = at.and_then(|at| reader.fields(&at, &OPERATIONS)) else { return HeaderOps::default() };
    let mut remove = Vec::new();
    for item in reader.list(fields.get("remove")) {
        if let Some(name) = reader.text(Some(item.clone()))
            && let Some(name) = reader.header_name(&item, &name)
        {
            if request && name == "host" {
                reader.error(
                    &item,
                    format!("{}: a request needs its host; it can be set, not removed", item.path),
                );
            }
            remove.push(name);
        }
    }
    HeaderOps {
        set: header_values(reader, fields.get("set"), request),
        add: header_values(reader, fields.get("add"), request),
        remove,
    }
}

fn header_values(reader: &mut Reader<'_>, at: Option<At<'_>>, request: bool) -> Vec<(String, String)> {
    let mut values = Vec::new();
    for (key, item) in reader.entries(at) {
        // `:authority` of a request may be set; the other pseudo-headers have fields of their own.
        let authority = request && key.text.eq_ignore_ascii_case(":authority");
        let good_name = is_header_name(&key.text) || authority;
        if !good_name {
            reader.error(&item, format!("{} is not a header name", quote(&key.text)));
        }
        let Some(value) = reader.text(Some(item.clone())) else { continue };
        if value.bytes().any(|b| b == 0x7f || (b < 0x20 && b != b'\t')) {
            reader.error(
                &item,
                format!("{} has a control character, which a header value must not have", item.path),
            );
        } else if good_name {
            values.push((key.text.to_ascii_lowercase(), value));
        }
    }
    values
}

/// Conditions that Envoy has and we don't.
const UNIMPLEMENTED_CONDITIONS: &[&str] =
    &["retriable-headers", "http3-post-connect-failure", "reset-after-request", "grpc-retry-pushback"];

/// Envoy's comma-separated list; digits are statuses.
pub(super) fn retry_on(reader: &mut Reader<'_>, at: &At<'_>, text: &str) -> RetryOn {
    let mut on = RetryOn::default();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if let Some(condition) = RetryCondition::parse(word) {
            on.conditions.insert(condition);
        } else if word.bytes().all(|b| b.is_ascii_digit()) {
            match word.parse::<u16>().ok().filter(|status| (100..=599).contains(status)) {
                Some(status) => {
                    on.statuses.insert(status);
                }
                None => reader.error(at, format!("{}: {} is not an HTTP status", at.path, quote(word))),
            }
        } else if UNIMPLEMENTED_CONDITIONS.contains(&word) {
            let message = format!(
                "{}: the condition {word} is not implemented by Outrigger: it has no effect",
                at.path
            );
            reader.warn(code::NOT_IMPLEMENTED, at, message);
        } else {
            let meant = closest(word, RetryCondition::NAMES.iter().map(|(name, _)| *name));
            let message = format!("{}: {} is not a retry condition (nor a status)", at.path, quote(word));
            reader.error_meant(at, message, meant);
        }
    }
    on
}

/// `exportTo`: `*`, `.` and names.
pub(super) fn visibility(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Visibility {
    let mut namespaces = Vec::new();
    let mut everyone = at.is_none();
    for item in reader.list(at) {
        match reader.text(Some(item)).as_deref() {
            Some("*") => everyone = true,
            Some(".") => namespaces.push(reader.origin.namespace.clone()),
            Some("~") | None => {}
            Some(name) => namespaces.push(name.to_owned()),
        }
    }
    if everyone { Visibility::Everyone } else { Visibility::Namespaces(namespaces) }
}

const SELECTOR: Table = Table::new("a selector", &["matchLabels"]);

/// Labels of the workloads that a policy is for; empty = all of its namespace.
pub(super) fn selector(reader: &mut Reader<'_>, at: Option<At<'_>>) -> BTreeMap<String, String> {
    let Some(fields) = at.and_then(|at| reader.fields(&at, &SELECTOR)) else { return BTreeMap::new() };
    reader.labels(fields.get("matchLabels"))
}
