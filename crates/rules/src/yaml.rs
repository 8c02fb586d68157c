//! YAML (and so JSON) as a small tree in which every value and key knows where it stands.
//!
//! A text is cut into documents first, so that a syntax error in one does not hide the others. What a hostile text could make
//! expensive is bounded: bytes, documents, depth, and nodes after the expansion of aliases. What the values mean is not
//! known here.

mod build;

use std::fmt;

/// A position: line and column from 1, in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A value and where it starts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) spot: Spot,
}

/// A key and where it starts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MapKey {
    pub(crate) text: String,
    pub(crate) spot: Spot,
}

/// A value. Scalars keep their spelling, so that the reader decides by what the field wants.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// An unquoted number, as written.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(MapKey, Node)>),
}

impl Node {
    pub(crate) fn entry(&self, name: &str) -> Option<(&MapKey, &Node)> {
        match &self.value {
            Value::Map(entries) => {
                entries.iter().find(|(key, _)| key.text == name).map(|(key, node)| (key, node))
            }
            _ => None,
        }
    }

    /// The value below `name`; null counts as absent, as in Kubernetes.
    pub(crate) fn child(&self, name: &str) -> Option<&Node> {
        self.entry(name).map(|(_, node)| node).filter(|node| node.value != Value::Null)
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(text) => number(text),
            Value::Text(text) => Json::String(text.clone()),
            Value::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|(key, node)| (key.text.clone(), node.to_json())).collect())
            }
        }
    }
}

/// Names the kind of a value in messages.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(text) => write!(f, "the number {}", text.chars().take(40).collect::<String>()),
            Self::Text(text) => f.write_str(&crate::finding::quote(text)),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping"),
        }
    }
}

fn number(text: &str) -> serde_json::Value {
    if let Some(value) = integer(text) {
        return value.into();
    }
    text.parse::<f64>()
        .ok()
        .and_then(serde_json::Number::from_f64)
        .map_or_else(|| text.to_owned().into(), serde_json::Value::Number)
}

/// An integer of YAML's core schema: decimal, `0x`, `0o`.
pub(crate) fn integer(text: &str) -> Option<i64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).ok();
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return i64::from_str_radix(octal, 8).ok();
    }
    text.parse().ok()
}

/// Why a document has no tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) spot: Spot,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) suggestion: Option<String>,
}

/// One document of a text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    /// Its own text, without separators.
    pub(crate) text: String,
    /// `None` when the troubles leave nothing to look at, or it holds nothing.
    pub(crate) root: Option<Node>,
    pub(crate) troubles: Vec<Trouble>,
}

/// What a text may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    pub(crate) documents: usize,
    pub(crate) depth: usize,
    pub(crate) nodes: usize,
}

pub(crate) const BOUNDS: Bounds = Bounds { bytes: 1 << 20, documents: 2_000, depth: 48, nodes: 100_000 };

/// Reads all documents of a text.
pub(crate) fn load(text: &str, bounds: Bounds) -> Vec<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > bounds.bytes {
        let message = format!(
            "the text has {} bytes, at most {} are read; split it into files",
            text.len(),
            bounds.bytes
        );
        return vec![refused(Spot { line: 1, column: 1 }, crate::finding::code::LIMIT, message)];
    }
    if let Some((spot, found)) = unprintable(text) {
        let message = format!("this is not YAML: it holds the control character U+{:04X}", u32::from(found));
        return vec![refused(spot, crate::finding::code::SYNTAX, message)];
    }
    let mut documents = Vec::new();
    // Shared by all documents: many small ones cost as much as a big one.
    let mut nodes = bounds.nodes;
    for (first_line, chunk) in chunks(text) {
        if documents.len() >= bounds.documents {
            let message =
                format!("the text has more than {} documents; split it into files", bounds.documents);
            documents.push(refused(
                Spot { line: first_line, column: 1 },
                crate::finding::code::LIMIT,
                message,
            ));
            break;
        }
        documents.extend(build::documents(chunk, first_line, bounds.depth, &mut nodes));
    }
    documents
}

fn refused(spot: Spot, code: &'static str, message: String) -> Document {
    let trouble = Trouble { spot, code, message, suggestion: None };
    Document { text: String::new(), root: None, troubles: vec![trouble] }
}

/// The first character that no YAML may hold (1.2.2, c-printable). Parsers differ in what they make of one: NUL ends the
/// text for some, and what stands behind it would be stored unread.
fn unprintable(text: &str) -> Option<(Spot, char)> {
    let control = |c: char| c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r');
    let at = text.find(control)?;
    let line = lines(&text[..at]).count().max(1) as u32 + u32::from(text[..at].ends_with(['\n', '\r']));
    let column = text[..at].chars().rev().take_while(|c| !matches!(c, '\n' | '\r')).count() as u32 + 1;
    Some((Spot { line, column }, text[at..].chars().next()?))
}

/// Lines with their breaks: a line feed, a carriage return, or both (YAML 1.2.2, b-break).
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = match rest.find(['\n', '\r']) {
            Some(at) if rest[at..].starts_with("\r\n") => at + 2,
            Some(at) => at + 1,
            None => rest.len(),
        };
        let (line, after) = rest.split_at(end);
        rest = after;
        (!line.is_empty()).then_some(line)
    })
}

fn is_marker(line: &str, marker: &str) -> bool {
    let rest = line.strip_prefix(marker);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Cuts before lines that start with `---` and after lines that start with `...`, which nothing inside a document may (YAML
/// 1.2.2, c-forbidden). A separator that follows `%` directives belongs to them.
fn chunks(text: &str) -> Vec<(u32, &str)> {
    let mut chunks = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1u32, 0);
    let mut only_directives = false;
    for (index, line) in lines(text).enumerate() {
        let separator = is_marker(line, "---");
        if separator && !only_directives && offset > start {
            chunks.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, index as u32 + 1);
        }
        let trimmed = line.trim();
        if separator {
            only_directives = false;
        } else if line.starts_with('%') && text[start..offset].trim().is_empty() {
            only_directives = true;
        } else if !(trimmed.is_empty() || trimmed.starts_with('#') || line.starts_with('%')) {
            only_directives = false;
        }
        offset += line.len();
        if is_marker(line, "...") {
            chunks.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, index as u32 + 2);
            only_directives = false;
        }
    }
    if offset > start {
        chunks.push((start_line, &text[start..offset]));
    }
    chunks
}

#[cfg(test)]
mod tests;
