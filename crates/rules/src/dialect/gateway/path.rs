//! Paths of the Gateway API: how they match, and what replaces what they matched.

use outrigger_model::route::PathMatch;

use crate::finding::quote;
use crate::reader::{At, Fields, Reader, Table};

const PATH: Table = Table::new("a path match", &["type", "value"]);
const MODIFIER: Table = Table::new("a path modifier", &["type", "replaceFullPath", "replacePrefixMatch"]);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exact,
    Prefix,
    Regex,
}

const KINDS: [(&str, Kind); 3] =
    [("Exact", Kind::Exact), ("PathPrefix", Kind::Prefix), ("RegularExpression", Kind::Regex)];

/// A path match; everything where there is none.
pub(super) fn matching(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<PathMatch> {
    let Some(at) = at else { return Some(PathMatch::default()) };
    let fields = reader.fields(&at, &PATH)?;
    let kind = match fields.get("type") {
        Some(at) => reader.choice(Some(at), &KINDS)?,
        None => Kind::Prefix,
    };
    let Some(value_at) = fields.get("value") else { return Some(PathMatch::default()) };
    if kind == Kind::Regex {
        return reader.pattern(Some(value_at)).map(PathMatch::Regex);
    }
    let value = reader.text(Some(value_at.clone()))?;
    if let Some(why) = flaw(&value) {
        reader.error(&value_at, format!("{} {why}, not {}", value_at.path, quote(&value)));
        return None;
    }
    Some(match kind {
        Kind::Exact => PathMatch::Exact(value),
        _ => prefix(&value),
    })
}

/// By whole elements; a slash at the end does not count.
pub(super) fn prefix(value: &str) -> PathMatch {
    match value.trim_end_matches('/') {
        "" => PathMatch::default(),
        path => PathMatch::Segments(path.to_owned()),
    }
}

/// What the API server would say of a path that is no regular expression.
fn flaw(path: &str) -> Option<&'static str> {
    let has = |part: &str| path.contains(part);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@%".contains(&b);
    if !path.starts_with('/') {
        Some("must start with a slash")
    } else if path.len() > 1024 {
        Some("must have at most 1024 characters")
    } else if has("//") || has("/./") || has("/../") || path.ends_with("/.") || path.ends_with("/..") {
        Some("must have neither empty elements nor . and ..")
    } else if has("%2f") || has("%2F") || !path.bytes().all(allowed) {
        Some("must have only characters of a path, and no %2f")
    } else {
        None
    }
}

/// The prefix of a path match without the slash at its end, if it is one.
pub(super) fn prefix_of(path: &PathMatch) -> Option<&str> {
    match path {
        PathMatch::Prefix(path) | PathMatch::Segments(path) => Some(path.trim_end_matches('/')),
        PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Connect => None,
    }
}

/// What a path becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NewPath {
    /// All of it.
    Whole(String),
    /// Its matched prefix becomes this, as it stands.
    Prefix(String),
    /// What matches the pattern becomes this.
    Regex(String, String),
}

/// A path modifier; `prefix` is the one prefix that the rule matches, if it matches one and nothing else.
pub(super) fn modifier(reader: &mut Reader<'_>, at: Option<At<'_>>, prefix: Option<&str>) -> Option<NewPath> {
    let at = at?;
    let fields = reader.fields(&at, &MODIFIER)?;
    if !fields.has("type") {
        reader.missing(&fields, "type");
    }
    let kinds = [("ReplaceFullPath", true), ("ReplacePrefixMatch", false)];
    let whole = reader.choice(fields.get("type"), &kinds)?;
    let name = if whole { "replaceFullPath" } else { "replacePrefixMatch" };
    let other = if whole { "replacePrefixMatch" } else { "replaceFullPath" };
    alone(reader, &fields, name, other);
    let text = reader.text(fields.get(name))?;
    if whole {
        return Some(NewPath::Whole(text));
    }
    let Some(prefix) = prefix else {
        let message = format!(
            "{} replaces the matched prefix, so its rule must have exactly one match, with a path of type PathPrefix",
            at.path
        );
        reader.error(&at, message);
        return None;
    };
    Some(replaced(prefix, &text))
}

fn alone(reader: &mut Reader<'_>, fields: &Fields<'_>, name: &'static str, other: &'static str) {
    if !fields.has(name) {
        reader.missing(fields, name);
    }
    if let Some(at) = fields.get(other) {
        reader.error(&at, format!("{} can not stand beside the type", at.path));
    }
}

/// The table of the Gateway API: `/foo/bar` with its prefix `/foo` or `/foo/` replaced by `/xyz` or `/xyz/` is `/xyz/bar`, and
/// by `/` it is `/bar`; `/foo` alone is `/xyz`, `/xyz/` and `/`.
fn replaced(prefix: &str, by: &str) -> NewPath {
    let bare = by.trim_end_matches('/');
    if !prefix.is_empty() && !bare.is_empty() && bare.len() == by.len() {
        return NewPath::Prefix(by.to_owned());
    }
    NewPath::Regex(format!("^{}/?", regex::escape(prefix)), format!("{}/", bare.replace('\\', "\\\\")))
}

/// All of a path, without its query.
pub(in crate::dialect) fn whole(text: &str) -> (String, String) {
    ("^[^?]*".to_owned(), text.replace('\\', "\\\\"))
}
