//! How a dialect reads a tree: field tables, typed values, and findings that know their place.
//!
//! A reader never stops at an error: it notes it, answers `None`, and the dialect goes on, so that one run tells everything.
//! An object with an error is refused as a whole by the caller.

mod values;

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::Finding;
use crate::dialect::service::Opaque;
use crate::finding::{Severity, closest, code, quote};
use crate::host::Resolver;
use crate::intent::{Origin, Place};
use crate::options::ParseOptions;
use crate::yaml::{MapKey, Node, Value};

pub use values::duration;
pub(crate) use values::is_header_name;

/// The fields of one kind of mapping.
pub(crate) struct Table {
    /// What the mapping is, for messages: "an HTTP route".
    pub(crate) what: &'static str,
    /// Fields that are read.
    pub(crate) known: &'static [&'static str],
    /// Fields that exist in the dialect, but are not implemented: each use is a warning.
    pub(crate) later: &'static [&'static str],
    /// Fields of the surroundings (Kubernetes') that mean nothing here.
    pub(crate) ignored: &'static [&'static str],
}

impl Table {
    pub(crate) const fn new(what: &'static str, known: &'static [&'static str]) -> Self {
        Self { what, known, later: &[], ignored: &[] }
    }

    pub(crate) const fn later(self, later: &'static [&'static str]) -> Self {
        Self { later, ..self }
    }

    pub(crate) const fn ignored(self, ignored: &'static [&'static str]) -> Self {
        Self { ignored, ..self }
    }
}

/// A value and its path.
#[derive(Clone)]
pub(crate) struct At<'n> {
    pub(crate) node: &'n Node,
    pub(crate) path: String,
}

impl At<'_> {
    pub(crate) fn place(&self) -> Place {
        Place { line: self.node.spot.line, column: self.node.spot.column, path: self.path.clone() }
    }
}

/// A mapping whose keys were checked against a table.
pub(crate) struct Fields<'n> {
    pub(crate) at: At<'n>,
    table: &'static Table,
}

impl<'n> Fields<'n> {
    /// The value of a field; null counts as absent.
    pub(crate) fn get(&self, name: &'static str) -> Option<At<'n>> {
        debug_assert!(self.table.known.contains(&name), "{name} is not in the table of {}", self.table.what);
        let node = self.at.node.child(name)?;
        Some(At { node, path: join(&self.at.path, name) })
    }

    pub(crate) fn has(&self, name: &'static str) -> bool {
        self.get(name).is_some()
    }

    /// Whether one of the fields that the table calls unimplemented is there.
    pub(crate) fn has_later(&self) -> bool {
        self.table.later.iter().any(|name| self.at.node.child(name).is_some())
    }
}

/// Reads one object.
pub(crate) struct Reader<'c> {
    pub(crate) origin: Origin,
    /// Version of the object's kind, as it was written.
    pub(crate) api_version: String,
    /// Of the object's metadata.
    pub(crate) labels: BTreeMap<String, String>,
    /// Of a Service's annotations, which of its ports are bytes.
    pub(crate) opaque: Opaque,
    /// When the object was made, if its metadata says so, as `2026-01-31T10:00:00Z`.
    pub(crate) created: Option<String>,
    pub(crate) options: &'c ParseOptions,
    /// How many patterns may still be compiled; compiling is the dearest thing that a text can ask for.
    pub(crate) patterns_left: usize,
    pub(crate) findings: Vec<Finding>,
}

impl Reader<'_> {
    pub(crate) fn resolver(&self) -> &Resolver {
        &self.options.resolver
    }

    pub(crate) fn error(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.note(Severity::Error, code::SCHEMA, at, message.into(), None);
    }

    pub(crate) fn error_of(&mut self, code: &'static str, at: &At<'_>, message: String) {
        self.note(Severity::Error, code, at, message, None);
    }

    pub(crate) fn error_meant(&mut self, at: &At<'_>, message: impl Into<String>, meant: Option<String>) {
        self.note(Severity::Error, code::SCHEMA, at, message.into(), meant);
    }

    pub(crate) fn warn(&mut self, code: &'static str, at: &At<'_>, message: impl Into<String>) {
        self.note(Severity::Warning, code, at, message.into(), None);
    }

    /// Each of these fields that is there and has no effect yet; `without` says what holds instead.
    pub(crate) fn not_yet(&mut self, fields: &Fields<'_>, names: &[&'static str], without: &str) {
        for name in names {
            if let Some(at) = fields.get(name) {
                self.not_implemented(&at, without);
            }
        }
    }

    pub(crate) fn not_implemented(&mut self, at: &At<'_>, consequence: &str) {
        let message = format!("{} is not implemented by Outrigger: {consequence}", at.path);
        self.warn(code::NOT_IMPLEMENTED, at, message);
    }

    pub(crate) fn note(
        &mut self,
        severity: Severity,
        code: &'static str,
        at: &At<'_>,
        message: String,
        meant: Option<String>,
    ) {
        self.findings.push(Finding {
            severity,
            code: Cow::Borrowed(code),
            file: self.origin.file.clone().unwrap_or_default(),
            line: at.node.spot.line,
            column: at.node.spot.column,
            object: Some(self.origin.to_string()),
            path: at.path.clone(),
            message,
            suggestion: meant,
        });
    }

    /// A mapping with the fields of the table; unknown and unimplemented ones are told.
    pub(crate) fn fields<'n>(&mut self, at: &At<'n>, table: &'static Table) -> Option<Fields<'n>> {
        let Value::Map(entries) = &at.node.value else {
            self.error(at, format!("{} must be a mapping ({}), not {}", at.path, table.what, at.node.value));
            return None;
        };
        for (key, value) in entries {
            self.check_field(at, key, value, table);
        }
        Some(Fields { at: at.clone(), table })
    }

    fn check_field(&mut self, at: &At<'_>, key: &MapKey, value: &Node, table: &Table) {
        let name = key.text.as_str();
        if table.known.contains(&name) || table.ignored.contains(&name) {
            return;
        }
        let marker = Node { value: Value::Null, spot: key.spot };
        let field = At { node: &marker, path: join(&at.path, name) };
        if table.later.contains(&name) {
            if value.value != Value::Null {
                self.not_implemented(&field, "it has no effect");
            }
            return;
        }
        let meant = closest(name, table.known.iter().chain(table.later).copied());
        let mut message = format!("unknown field {} in {}", quote(name), table.what);
        if meant.is_none() && !table.known.is_empty() {
            message.push_str(&format!("; its fields are {}", table.known.join(", ")));
        }
        self.error_meant(&field, message, meant);
    }

    /// Notes that a field is missing.
    pub(crate) fn missing(&mut self, fields: &Fields<'_>, name: &str) {
        self.error(
            &fields.at,
            format!("{} is missing: {} needs it", join(&fields.at.path, name), fields.table.what),
        );
    }

    /// The items of a list; none when absent.
    pub(crate) fn list<'n>(&mut self, at: Option<At<'n>>) -> Vec<At<'n>> {
        let Some(at) = at else { return Vec::new() };
        match &at.node.value {
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, node)| At { node, path: format!("{}[{index}]", at.path) })
                .collect(),
            other => {
                let message = format!("{} must be a list, not {other}; start each item with \"- \"", at.path);
                self.error(&at, message);
                Vec::new()
            }
        }
    }

    /// The entries of a mapping with free keys; none when absent.
    pub(crate) fn entries<'n>(&mut self, at: Option<At<'n>>) -> Vec<(&'n MapKey, At<'n>)> {
        let Some(at) = at else { return Vec::new() };
        match &at.node.value {
            Value::Map(entries) => entries
                .iter()
                .map(|(key, node)| (key, At { node, path: join(&at.path, &key.text) }))
                .collect(),
            other => {
                let message = format!("{} must be a mapping, not {other}", at.path);
                self.error(&at, message);
                Vec::new()
            }
        }
    }
}

/// A key as part of a path; quoted when it would be misread there.
fn join(path: &str, key: &str) -> String {
    let shown: Cow<'_, str> = match key.contains(['.', '[', ' ']) || key.len() > 80 {
        true => format!("[{}]", quote(key)).into(),
        false => key.into(),
    };
    match (path.is_empty(), shown.starts_with('[')) {
        (true, _) => shown.into_owned(),
        (false, true) => format!("{path}{shown}"),
        (false, false) => format!("{path}.{shown}"),
    }
}
