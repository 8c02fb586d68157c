//! From the parser's events to a tree: scalars get their type, aliases are copied within a budget, duplicate keys are told.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::{Document, MapKey, Node, Spot, Trouble, Value};
use crate::finding::{code, quote};

/// The documents of one chunk: one, unless it is not YAML.
pub(super) fn documents(chunk: &str, first_line: u32, depth: usize, nodes: &mut usize) -> Vec<Document> {
    let mut builder =
        Builder { first_line, depth, nodes, open: Vec::new(), anchors: HashMap::new(), troubles: Vec::new() };
    let mut documents = Vec::new();
    let mut root = None;
    for event in Parser::new_from_str(chunk) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let spot = builder.spot(*error.marker());
                builder.trouble(spot, code::SYNTAX, format!("this is not YAML: {}", error.info()));
                root = None;
                break;
            }
        };
        match event {
            Event::DocumentEnd => documents.push(builder.finish(root.take(), chunk)),
            Event::StreamEnd => break,
            event => match builder.event(event, span.start) {
                Ok(Some(node)) => root = Some(node),
                Ok(None) => {}
                Err(Stop) => {
                    root = None;
                    break;
                }
            },
        }
    }
    if root.is_some() || !builder.troubles.is_empty() {
        documents.push(builder.finish(root, chunk));
    }
    documents
}

/// The document cannot be read on; the trouble is noted.
struct Stop;

enum Open {
    List(Vec<Node>),
    Map { entries: Vec<(MapKey, Node)>, seen: HashSet<String>, key: Option<MapKey> },
}

struct Frame {
    open: Open,
    spot: Spot,
    anchor: usize,
}

struct Builder<'n> {
    first_line: u32,
    depth: usize,
    nodes: &'n mut usize,
    open: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    troubles: Vec<Trouble>,
}

impl Builder<'_> {
    fn spot(&self, marker: Marker) -> Spot {
        let line = u32::try_from(marker.line()).unwrap_or(u32::MAX).max(1);
        let column = u32::try_from(marker.col()).unwrap_or(u32::MAX);
        Spot { line: (line - 1).saturating_add(self.first_line), column: column.saturating_add(1) }
    }

    fn trouble(&mut self, spot: Spot, code: &'static str, message: String) {
        self.troubles.push(Trouble { spot, code, message, suggestion: None });
    }

    fn finish(&mut self, root: Option<Node>, chunk: &str) -> Document {
        self.anchors.clear();
        self.open.clear();
        let root = root.filter(|node| node.value != Value::Null);
        Document { text: body(chunk), root, troubles: std::mem::take(&mut self.troubles) }
    }

    /// Takes an event; a value that completes the document comes back.
    fn event(&mut self, event: Event<'_>, start: Marker) -> Result<Option<Node>, Stop> {
        let spot = self.spot(start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.charge(1, spot)?;
                let value = scalar(&text, style, tag.as_deref());
                self.complete(Node { value, spot }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.begin(Open::List(Vec::new()), spot, anchor),
            Event::MappingStart(anchor, _) => {
                self.begin(Open::Map { entries: Vec::new(), seen: HashSet::new(), key: None }, spot, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.open.pop() else { return Ok(None) };
                let value = match frame.open {
                    Open::List(items) => Value::List(items),
                    Open::Map { entries, .. } => Value::Map(entries),
                };
                self.complete(Node { value, spot: frame.spot }, frame.anchor)
            }
            Event::Alias(id) => {
                let Some(target) = self.anchors.get(&id).cloned() else {
                    self.trouble(
                        spot,
                        code::SYNTAX,
                        "this alias refers to the value that it stands in".to_owned(),
                    );
                    return Err(Stop);
                };
                self.charge(count(&target), spot)?;
                if self.open.len() + height(&target) > self.depth {
                    return self.too_deep(spot);
                }
                self.complete(Node { value: target.value, spot }, 0)
            }
            _ => Ok(None),
        }
    }

    fn begin(&mut self, open: Open, spot: Spot, anchor: usize) -> Result<Option<Node>, Stop> {
        self.charge(1, spot)?;
        if self.open.len() >= self.depth {
            return self.too_deep(spot);
        }
        self.open.push(Frame { open, spot, anchor });
        Ok(None)
    }

    fn too_deep(&mut self, spot: Spot) -> Result<Option<Node>, Stop> {
        self.trouble(spot, code::LIMIT, format!("nested more than {} levels deep", self.depth));
        Err(Stop)
    }

    fn charge(&mut self, cost: usize, spot: Spot) -> Result<(), Stop> {
        if let Some(left) = self.nodes.checked_sub(cost) {
            *self.nodes = left;
            return Ok(());
        }
        self.trouble(
            spot,
            code::LIMIT,
            "the text has too many values, counting what its aliases repeat".to_owned(),
        );
        Err(Stop)
    }

    fn complete(&mut self, node: Node, anchor: usize) -> Result<Option<Node>, Stop> {
        if anchor != 0 {
            // The copy kept for later aliases is paid for like any other.
            self.charge(count(&node), node.spot)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(frame) = self.open.last_mut() else { return Ok(Some(node)) };
        let mut trouble = None;
        match &mut frame.open {
            Open::List(items) => items.push(node),
            Open::Map { entries, seen, key } => match key.take() {
                Some(name) => {
                    if seen.insert(name.text.clone()) {
                        entries.push((name, node));
                    } else {
                        trouble = Some((
                            name.spot,
                            code::DUPLICATE_KEY,
                            format!("the key {} appears twice in this mapping", quote(&name.text)),
                        ));
                    }
                }
                None => match key_text(node.value) {
                    Ok(text) if text == "<<" => {
                        trouble = Some((
                            node.spot,
                            code::SYNTAX,
                            "merge keys (<<) are not supported: write the fields out".to_owned(),
                        ));
                        *key = Some(MapKey { text, spot: node.spot });
                    }
                    Ok(text) => *key = Some(MapKey { text, spot: node.spot }),
                    Err(value) => {
                        trouble =
                            Some((node.spot, code::SYNTAX, format!("a key must be a text, not {value}")));
                        *key = Some(MapKey { text: String::new(), spot: node.spot });
                    }
                },
            },
        }
        if let Some((spot, code, message)) = trouble {
            self.trouble(spot, code, message);
        }
        Ok(None)
    }
}

fn key_text(value: Value) -> Result<String, Value> {
    match value {
        Value::Text(text) | Value::Number(text) => Ok(text),
        Value::Bool(value) => Ok(value.to_string()),
        other => Err(other),
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(count).sum(),
        Value::Map(entries) => entries.iter().map(|(_, node)| count(node)).sum(),
        _ => 0,
    }
}

fn height(node: &Node) -> usize {
    match &node.value {
        Value::List(items) => 1 + items.iter().map(height).max().unwrap_or(0),
        Value::Map(entries) => 1 + entries.iter().map(|(_, node)| height(node)).max().unwrap_or(0),
        _ => 0,
    }
}

/// YAML's core schema (YAML 1.2.2, 10.3.2): `yes` and `on` are texts.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
    if style != ScalarStyle::Plain || is_text {
        return Value::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::Text(text.to_owned()),
    }
}

fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let looks_so = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains(|c: char| c.is_ascii_digit());
    looks_so
        && (super::integer(text).is_some()
            || (unsigned.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
                && text.parse::<f64>().is_ok()))
}

/// The text of a document without its separator lines.
fn body(chunk: &str) -> String {
    let rest = chunk.strip_prefix("---").map_or(chunk, |rest| rest.trim_start_matches([' ', '\t']));
    let rest = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix(['\n', '\r'])).unwrap_or(rest);
    // Chunks end after an end mark, if there is one; what stands behind it on its line is no part of the document.
    let last = super::lines(rest).last().filter(|line| super::is_marker(line, "...")).unwrap_or_default();
    let mut text = rest[..rest.len() - last.len()].trim_end().to_owned();
    text.push('\n');
    text
}
