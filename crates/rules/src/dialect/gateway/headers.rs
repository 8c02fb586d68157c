//! Matches on headers and query parameters, and edits of headers, as lists of names and values.

use outrigger_model::matcher::{HeaderMatch, StringMatch};
use outrigger_model::route::{HeaderEdits, QueryMatch, Written};

use crate::finding::code;
use crate::reader::{At, Reader, Table};

const MATCH: Table = Table::new("a match", &["type", "name", "value"]);
const EDITS: Table = Table::new("a header modifier", &["set", "add", "remove"]);
const HEADER: Table = Table::new("a header", &["name", "value"]);

pub(super) fn header_matches(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<HeaderMatch> {
    let mut found: Vec<HeaderMatch> = Vec::new();
    for item in reader.list(at) {
        let Some((name, value)) = named(reader, &item) else { continue };
        let Some(name) = reader.header_name(&item, &name) else { continue };
        if found.iter().any(|known| known.name == name) {
            repeated(reader, &item, &name);
            continue;
        }
        found.push(HeaderMatch { name, value, invert: false });
    }
    found
}

pub(super) fn query_matches(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<QueryMatch> {
    let mut found: Vec<QueryMatch> = Vec::new();
    for item in reader.list(at) {
        let Some((name, value)) = named(reader, &item) else { continue };
        if found.iter().any(|known| known.name == name) {
            repeated(reader, &item, &name);
            continue;
        }
        found.push(QueryMatch { name, value });
    }
    found
}

/// The first of a name counts.
fn repeated(reader: &mut Reader<'_>, at: &At<'_>, name: &str) {
    let message = format!(
        "{} has no effect: {name} is matched above, and only the first match of a name counts",
        at.path
    );
    reader.warn(code::NO_EFFECT, at, message);
}

fn named(reader: &mut Reader<'_>, at: &At<'_>) -> Option<(String, StringMatch)> {
    let fields = reader.fields(at, &MATCH)?;
    for name in ["name", "value"].into_iter().filter(|name| !fields.has(name)) {
        reader.missing(&fields, name);
    }
    let name = reader.text(fields.get("name"));
    let is_pattern = match fields.get("type") {
        Some(at) => reader.choice(Some(at), &[("Exact", false), ("RegularExpression", true)])?,
        None => false,
    };
    let value = match is_pattern {
        true => reader.pattern(fields.get("value")).map(StringMatch::regex),
        false => reader.text(fields.get("value")).map(StringMatch::exact),
    };
    Some((name?, value?))
}

/// Edits of a request's or a response's headers.
pub(super) fn edits(reader: &mut Reader<'_>, at: &At<'_>, request: bool) -> HeaderEdits {
    let Some(fields) = reader.fields(at, &EDITS) else { return HeaderEdits::default() };
    let mut remove = Vec::new();
    for item in reader.list(fields.get("remove")) {
        let Some(name) = reader.text(Some(item.clone())) else { continue };
        let Some(name) = reader.header_name(&item, &name) else { continue };
        if request && name == "host" {
            reader
                .error(&item, format!("{}: a request needs its host; it can be set, not removed", item.path));
        }
        remove.push(name);
    }
    let (set, add) = (values(reader, fields.get("set")), values(reader, fields.get("add")));
    HeaderEdits { remove, set, add, ..HeaderEdits::default() }
}

/// Values as they stand: Gateway API knows no commands.
fn values(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<Written> {
    let mut found: Vec<Written> = Vec::new();
    for item in reader.list(at) {
        let Some(fields) = reader.fields(&item, &HEADER) else { continue };
        for name in ["name", "value"].into_iter().filter(|name| !fields.has(name)) {
            reader.missing(&fields, name);
        }
        let name = reader.text(fields.get("name")).and_then(|name| reader.header_name(&item, &name));
        let (Some(name), Some(value)) = (name, reader.text(fields.get("value"))) else { continue };
        if value.bytes().any(|b| b == 0x7f || (b < 0x20 && b != b'\t')) {
            reader.error(
                &item,
                format!("{} has a control character, which a header value must not have", item.path),
            );
        } else if found.iter().any(|(known, _)| *known == name) {
            let message = format!(
                "{} has no effect: {name} is given above, and only the first of a name counts",
                item.path
            );
            reader.warn(code::NO_EFFECT, &item, message);
        } else {
            found.push((name, value.into()));
        }
    }
    found
}
