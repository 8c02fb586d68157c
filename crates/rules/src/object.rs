//! From a text to objects: apiVersion, kind, metadata, and the hand-over to the dialect of the kind.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::dialect::{self, Row};
use crate::finding::{Finding, Severity, closest, code, quote};
use crate::intent::{Intent, ObjectKind, Origin};
use crate::options::ParseOptions;
use crate::reader::{At, Reader, Table};
use crate::suppress;
use crate::yaml::{self, Node, Spot, Value};

/// One object of a user, without errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    /// As written, such as `networking.istio.io/v1`.
    pub api_version: String,
    /// Its kind.
    pub kind: ObjectKind,
    /// `default` when not written.
    pub namespace: String,
    /// Unique with kind and namespace.
    pub name: String,
    /// Labels of the metadata.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the metadata.
    pub annotations: BTreeMap<String, String>,
    /// The document as the user wrote it, comments included; [`parse`] reads it again.
    pub source: String,
    /// The same as JSON.
    pub json: serde_json::Value,
    /// Where it comes from.
    pub origin: Origin,
    /// What it means.
    pub intents: Vec<Intent>,
}

impl Object {
    /// Kind, namespace and name, as in `VirtualService shop/catalog`.
    pub fn id(&self) -> String {
        self.origin.to_string()
    }
}

/// What a text contained.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Parsed {
    /// The objects without errors, in order.
    pub objects: Vec<Object>,
    /// Errors and warnings, in order of position.
    pub findings: Vec<Finding>,
}

impl Parsed {
    /// Whether something must be refused.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(Finding::is_error)
    }
}

/// Findings kept of one text; a text that is wrong in more places is not what somebody wrote.
const MOST_FINDINGS: usize = 500;
/// Patterns compiled for one text.
const MOST_PATTERNS: usize = 500;

const OBJECT: Table =
    Table::new("an object", &["apiVersion", "kind", "metadata", "spec"]).ignored(&["status"]);
/// A ConfigMap has no spec; what is in its place is the user's.
const CONFIG_MAP: Table = Table::new("a ConfigMap", &["apiVersion", "kind", "metadata", "data"])
    .ignored(&["binaryData", "immutable"]);
const METADATA: Table =
    Table::new("metadata", &["name", "namespace", "labels", "annotations", "creationTimestamp"]).ignored(&[
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ]);
const LIST: Table = Table::new("a List", &["apiVersion", "kind", "items"]).ignored(&["metadata"]);

/// Reads YAML or JSON with any number of documents. `source_name` is the file's name in findings.
pub fn parse(source_name: &str, text: &str) -> Parsed {
    parse_with(source_name, text, &ParseOptions::default())
}

/// [`parse`] with options.
pub fn parse_with(source_name: &str, text: &str, options: &ParseOptions) -> Parsed {
    let mut run = Run { file: source_name, options, patterns_left: MOST_PATTERNS, parsed: Parsed::default() };
    for document in yaml::load(text, yaml::BOUNDS) {
        let clean = document.troubles.is_empty();
        for trouble in document.troubles {
            let path = At { node: &Node { value: Value::Null, spot: trouble.spot }, path: String::new() };
            run.note(trouble.code, &path, trouble.message, trouble.suggestion);
        }
        if let Some(root) = document.root {
            run.document(&root, document.text, clean);
        }
    }
    run.finish()
}

/// [`parse`] of bytes that may not be UTF-8.
pub fn parse_bytes(source_name: &str, bytes: &[u8], options: &ParseOptions) -> Parsed {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse_with(source_name, text, options),
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|b| **b == b'\n').count();
            let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
            let spot =
                Spot { line: u32::try_from(line).unwrap_or(0), column: u32::try_from(column).unwrap_or(0) };
            let mut run = Run { file: source_name, options, patterns_left: 0, parsed: Parsed::default() };
            let at = At { node: &Node { value: Value::Null, spot }, path: String::new() };
            run.note(code::SYNTAX, &at, "the text is not UTF-8".to_owned(), None);
            run.finish()
        }
    }
}

struct Run<'c> {
    file: &'c str,
    options: &'c ParseOptions,
    patterns_left: usize,
    parsed: Parsed,
}

impl<'c> Run<'c> {
    fn note(&mut self, code: &'static str, at: &At<'_>, message: String, suggestion: Option<String>) {
        self.parsed.findings.push(Finding {
            severity: Severity::Error,
            code: Cow::Borrowed(code),
            file: self.file.to_owned(),
            line: at.node.spot.line,
            column: at.node.spot.column,
            object: None,
            path: at.path.clone(),
            message,
            suggestion,
        });
    }

    fn finish(mut self) -> Parsed {
        let findings = &mut self.parsed.findings;
        findings.sort_by_key(|finding| (finding.line, finding.column));
        if findings.len() > MOST_FINDINGS {
            let more = findings.len() - MOST_FINDINGS;
            // Errors must survive the cut, or a refused text would look accepted.
            findings.sort_by_key(|finding| (finding.severity, finding.line, finding.column));
            findings.truncate(MOST_FINDINGS);
            let message = format!("{more} further findings are not shown");
            let at = At {
                node: &Node { value: Value::Null, spot: Spot { line: 0, column: 0 } },
                path: String::new(),
            };
            self.note(code::LIMIT, &at, message, None);
        }
        self.parsed
    }

    /// One document: an object, or a `List` of them, or a sequence of them.
    fn document(&mut self, root: &Node, text: String, clean: bool) {
        let kind = root.child("kind").and_then(Node::as_text).unwrap_or_default();
        if kind == "List" && root.child("apiVersion").and_then(Node::as_text) == Some("v1") {
            let mut reader = self.reader(self.origin(ObjectKind::TrafficRules, root));
            let at = At { node: root, path: String::new() };
            let items =
                reader.fields(&at, &LIST).map(|fields| reader.list(fields.get("items"))).unwrap_or_default();
            for mut finding in reader.findings {
                finding.object = None;
                self.parsed.findings.push(finding);
            }
            for item in items {
                let json = item.node.to_json();
                let text = serde_json::to_string_pretty(&json).unwrap_or_default() + "\n";
                self.object(item.node, text, clean);
            }
            return;
        }
        self.object(root, text, clean);
    }

    fn origin(&self, kind: ObjectKind, root: &Node) -> Origin {
        Origin {
            kind,
            namespace: self.options.default_namespace.clone(),
            name: String::new(),
            file: (!self.file.is_empty()).then(|| self.file.to_owned()),
            line: root.spot.line,
        }
    }

    fn reader(&self, origin: Origin) -> Reader<'c> {
        let labels = BTreeMap::new();
        Reader {
            origin,
            api_version: String::new(),
            labels,
            opaque: Default::default(),
            created: None,
            options: self.options,
            patterns_left: self.patterns_left,
            findings: Vec::new(),
        }
    }

    fn object(&mut self, root: &Node, text: String, clean: bool) {
        let Some((row, api_version)) = self.row(root) else { return };
        let mut reader = self.reader(self.origin(row.kind, root));
        reader.api_version.clone_from(&api_version);
        let at = At { node: root, path: String::new() };
        let (table, spec) = match row.kind {
            ObjectKind::ConfigMap => (&CONFIG_MAP, "data"),
            _ => (&OBJECT, "spec"),
        };
        let Some(fields) = reader.fields(&at, table) else { return };
        let (labels, annotations) = match fields.get("metadata") {
            Some(metadata) => read_metadata(&mut reader, &metadata),
            None => {
                reader.missing(&fields, "metadata");
                Default::default()
            }
        };
        reader.labels.clone_from(&labels);
        // `spec: {}` and no spec at all mean the same in Kubernetes, and in a policy they mean a lot.
        let empty = Node { value: Value::Map(Vec::new()), spot: root.spot };
        let spec = fields.get(spec).unwrap_or(At { node: &empty, path: spec.to_owned() });
        let intents = (row.read)(&mut reader, &spec);
        self.patterns_left = reader.patterns_left;
        suppress::of_reading(&annotations, &mut reader.findings);
        if clean && !reader.findings.iter().any(Finding::is_error) {
            self.parsed.objects.push(Object {
                api_version,
                kind: row.kind,
                namespace: reader.origin.namespace.clone(),
                name: reader.origin.name.clone(),
                labels,
                annotations,
                source: text,
                json: root.to_json(),
                origin: reader.origin,
                intents,
            });
        }
        self.parsed.findings.append(&mut reader.findings);
    }

    /// The dialect of a document, by apiVersion and kind.
    fn row(&mut self, root: &Node) -> Option<(&'static Row, String)> {
        let whole = At { node: root, path: String::new() };
        if !matches!(root.value, Value::Map(_)) {
            let message = format!(
                "a document must be an object with apiVersion, kind, metadata and spec, not {}",
                root.value
            );
            self.note(code::UNKNOWN_KIND, &whole, message, None);
            return None;
        }
        let mut word = |name: &'static str| match root.child(name) {
            Some(node) => match node.as_text() {
                Some(text) => Some((At { node, path: name.to_owned() }, text)),
                None => {
                    let at = At { node, path: name.to_owned() };
                    self.note(
                        code::UNKNOWN_KIND,
                        &at,
                        format!("{name} must be a text, not {}", node.value),
                        None,
                    );
                    None
                }
            },
            None => {
                self.note(
                    code::UNKNOWN_KIND,
                    &whole,
                    format!("{name} is missing: every object needs it"),
                    None,
                );
                None
            }
        };
        let (version, kind) = (word("apiVersion"), word("kind"));
        let ((version_at, version), (kind_at, kind)) = (version?, kind?);
        let Some(row) = dialect::ROWS.iter().find(|row| row.kind.as_str() == kind) else {
            let kinds: Vec<&str> = dialect::ROWS.iter().map(|row| row.kind.as_str()).collect();
            let meant = closest(kind, kinds.iter().copied());
            let reason = dialect::FOREIGN.iter().find(|known| known.kind == kind);
            let message = match reason {
                Some(known) => format!("{kind} {}; the known kinds are {}", known.reason, kinds.join(", ")),
                None => format!("unknown kind {}; the known kinds are {}", quote(kind), kinds.join(", ")),
            };
            self.note(code::UNKNOWN_KIND, &kind_at, message, meant);
            return None;
        };
        if !row.versions.contains(&version) {
            let meant = closest(version, row.versions.iter().copied());
            let message = format!(
                "unknown apiVersion {} for {kind}: it is one of {}",
                quote(version),
                row.versions.join(", ")
            );
            self.note(code::UNKNOWN_KIND, &version_at, message, meant);
            return None;
        }
        Some((row, version.to_owned()))
    }
}

type Labels = BTreeMap<String, String>;

fn read_metadata(reader: &mut Reader<'_>, at: &At<'_>) -> (Labels, Labels) {
    let Some(fields) = reader.fields(at, &METADATA) else { return Default::default() };
    match fields.get("name") {
        Some(name) => {
            if let Some(text) = read_name(reader, &name, 253, true) {
                reader.origin.name = text;
            }
        }
        None => reader.missing(&fields, "name"),
    }
    if let Some(text) = fields.get("namespace").and_then(|namespace| read_name(reader, &namespace, 63, false))
    {
        reader.origin.namespace = text;
    }
    reader.created = fields.get("creationTimestamp").and_then(|at| at.node.as_text().and_then(timestamp));
    // What was noted before the name was known learns it now.
    let object = reader.origin.to_string();
    for finding in &mut reader.findings {
        finding.object = Some(object.clone());
    }
    let annotations_at = fields.get("annotations");
    let annotations = reader.labels(annotations_at.clone());
    if let Some(at) = annotations_at {
        // istioctl has more codes than we.
        let unknown = |word: &&str| {
            *word != "*" && !word.starts_with("IST") && !code::ALL.iter().any(|(known, _)| known == word)
        };
        if let Some(word) = suppress::named(&annotations).find(unknown) {
            let message =
                format!("{}: {} is no code of a finding, so it suppresses nothing", at.path, quote(word));
            reader.warn(code::NO_EFFECT, &at, message);
        }
        if reader.origin.kind == ObjectKind::Service {
            dialect::service::annotated(reader, &at, &annotations);
        }
    }
    (reader.labels(fields.get("labels")), annotations)
}

/// A time as Kubernetes writes it, which is ordered as a text is. Whatever else stands there is the surroundings' business.
fn timestamp(text: &str) -> Option<String> {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    (shape == "0000-00-00T00:00:00Z").then(|| text.to_owned())
}

fn read_name(reader: &mut Reader<'_>, at: &At<'_>, longest: usize, dots: bool) -> Option<String> {
    let text = reader.text(Some(at.clone()))?;
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.');
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let good = text.len() <= longest
        && text.bytes().all(allowed)
        && edge(text.bytes().next())
        && edge(text.bytes().last());
    if !good {
        let extra = if dots { ", '-' and '.'" } else { " and '-'" };
        let message = format!(
            "{} must have 1 to {longest} lower-case letters, digits{extra}, and start and end with a letter or digit, not {}",
            at.path,
            quote(&text)
        );
        reader.error(at, message);
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests;
