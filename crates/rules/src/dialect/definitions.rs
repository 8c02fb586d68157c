//! No field of others' kinds is unknown here, and none is passed over: each that the CustomResourceDefinitions of Istio and of the Gateway
//! API have is put into an object by itself. Then it is told (not implemented, or wrong as it stands), or it is one of those that the
//! examples of `control/src/compile/tests/fields.yaml` have, of which a test there shows that they act.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::ROWS;
use crate::finding::code;
use crate::intent::ObjectKind;
use crate::yaml::{Bounds, Node, load};
use crate::{Finding, parse};

const UNKNOWN: &str = "zzqq";
const FOLDERS: [&str; 2] = ["istio-crds", "gateway-api-crds"];
/// Kinds without a definition of others.
const OURS: [ObjectKind; 3] = [ObjectKind::ConfigMap, ObjectKind::Service, ObjectKind::TrafficRules];

/// A step from a mapping or list to what is in it.
#[derive(Debug, Clone)]
enum Step {
    Field(String),
    Item,
    /// A key of the user's.
    Key,
}

fn folder(name: &str) -> Option<PathBuf> {
    let tools = std::env::var_os("OUTRIGGER_TOOLS").map(PathBuf::from);
    let tools = tools.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/outrigger")));
    let found = tools.map(|tools| tools.join(name)).filter(|folder| folder.is_dir());
    if found.is_none() {
        let required = std::env::var("OUTRIGGER_REQUIRE").is_ok_and(|level| level == "all");
        assert!(!required, "the folder {name} is required and missing (`bash .ci/run tools` fetches it)");
        eprintln!("SKIPPED: there is no folder {name} of definitions");
    }
    found
}

/// By kind: its versions, with the schema of their specs.
fn definitions() -> Option<BTreeMap<String, Vec<(String, Value)>>> {
    let mut found: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
    for folder in FOLDERS.map(folder) {
        for file in std::fs::read_dir(folder?).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let bounds = Bounds { bytes: 1 << 24, documents: 100, depth: 200, nodes: 10_000_000 };
            for document in load(&text, bounds) {
                let Some(definition) = document.root.as_ref().map(Node::to_json) else { continue };
                let Some(kind) = definition.pointer("/spec/names/kind").and_then(Value::as_str) else {
                    continue;
                };
                let group = definition["spec"]["group"].as_str().unwrap().to_owned();
                for version in definition["spec"]["versions"].as_array().unwrap() {
                    if version["served"] == json!(true) {
                        let name = format!("{group}/{}", version["name"].as_str().unwrap());
                        let spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"].clone();
                        found.entry(kind.to_owned()).or_default().push((name, spec));
                    }
                }
            }
        }
    }
    Some(found)
}

/// The way to each value that has no parts.
fn leaves(schema: &Value, way: &[Step], found: &mut Vec<Vec<Step>>) {
    let with = |step| [way, &[step]].concat();
    let fields = schema["properties"].as_object().filter(|fields| !fields.is_empty());
    if let Some(fields) = fields {
        for (name, of) in fields {
            leaves(of, &with(Step::Field(name.clone())), found);
        }
    } else if schema["items"].is_object() {
        leaves(&schema["items"], &with(Step::Item), found);
    } else if schema["additionalProperties"].is_object() {
        leaves(&schema["additionalProperties"], &with(Step::Key), found);
    } else {
        found.push(way.to_vec());
    }
}

/// A value that a schema takes, as small as it can be.
fn least(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|words| words.iter().find(|word| *word != "")) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let fields = required.map(|name| (name.to_owned(), least(&schema["properties"][name])));
            Value::Object(fields.collect())
        }
        Some("array") => json!([least(&schema["items"])]),
        Some("integer" | "number") => {
            schema.get("minimum").filter(|least| **least != json!(0)).cloned().unwrap_or(json!(1))
        }
        Some("boolean") => json!(true),
        _ if schema["format"] == "date-time" => json!("2026-01-31T10:00:00Z"),
        _ if schema["x-kubernetes-int-or-string"] == true => json!(1),
        _ => json!("a"),
    }
}

/// A value with what a way leads to and no more than that needs. `mark`: the last mapping on the way has a field that there is not.
fn with(schema: &Value, way: &[Step], mark: bool) -> Value {
    let last = way.iter().rposition(|step| matches!(step, Step::Field(_))) == Some(0);
    match way.split_first() {
        None => least(schema),
        Some((Step::Item, rest)) => json!([with(&schema["items"], rest, mark)]),
        // A port is a key that every mapping takes.
        Some((Step::Key, rest)) => json!({ "8080": with(&schema["additionalProperties"], rest, mark) }),
        Some((Step::Field(name), rest)) => {
            let mut fields = Map::new();
            let mut required: Vec<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            // What says of which kind the rest is.
            required.extend(schema["properties"].get("type").map(|_| "type"));
            if name == "provider" {
                fields.insert("action".to_owned(), json!("CUSTOM"));
            }
            for other in required.into_iter().filter(|other| other != name) {
                let of = &schema["properties"][other];
                let words = of["enum"].as_array().into_iter().flatten();
                let meant = words.filter_map(Value::as_str).find(|word| word.eq_ignore_ascii_case(name));
                fields.insert(other.to_owned(), meant.map_or_else(|| least(of), Value::from));
            }
            fields.insert(name.clone(), with(&schema["properties"][name], rest, mark && !last));
            if mark && last {
                fields.insert(UNKNOWN.to_owned(), json!(true));
            }
            Value::Object(fields)
        }
    }
}

fn told(version: &str, kind: &str, spec: &Value) -> Vec<Finding> {
    let metadata = json!({"name": "a", "namespace": "shop"});
    let object = json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec});
    parse("definitions", &object.to_string()).findings
}

/// How findings write a way, and its last field.
fn written(way: &[Step]) -> (String, &str) {
    let (mut path, mut last) = ("spec".to_owned(), "");
    for step in way {
        match step {
            Step::Field(name) => {
                path.push_str(&format!(".{name}"));
                last = name;
            }
            Step::Item => path.push_str("[0]"),
            Step::Key => path.push_str(".8080"),
        }
    }
    (path, last)
}

/// What a mapping is and which fields it has, if it is looked at.
fn table(findings: &[Finding]) -> Option<(String, Vec<String>)> {
    let mark = format!("unknown field \"{UNKNOWN}\" in ");
    let told = findings.iter().find_map(|finding| finding.message.strip_prefix(&mark))?;
    let (what, fields) = told.split_once("; its fields are ")?;
    Some((what.to_owned(), fields.split(", ").map(str::to_owned).collect()))
}

/// What the examples are made of: kinds and their mappings.
fn shown() -> BTreeSet<(String, String)> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../control/src/compile/tests/fields.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let mut shown = BTreeSet::new();
    for group in text.split("# ===").filter(|group| group.contains("kind:")) {
        let object = parse("fields.yaml", group).objects.into_iter().next().unwrap();
        let mut ways = vec![String::from("/spec")];
        while let Some(way) = ways.pop() {
            match object.json.pointer(&way) {
                Some(Value::Object(fields)) => {
                    ways.extend(fields.keys().map(|name| format!("{way}/{}", name.replace('/', "~1"))));
                    let mut asked = object.json.clone();
                    let mapping = asked.pointer_mut(&way).and_then(Value::as_object_mut).unwrap();
                    mapping.insert(UNKNOWN.to_owned(), json!(true));
                    let table = table(&parse("fields.yaml", &asked.to_string()).findings);
                    shown.extend(table.map(|(what, _)| (object.kind.to_string(), what)));
                }
                Some(Value::Array(items)) => ways.extend((0..items.len()).map(|at| format!("{way}/{at}"))),
                _ => {}
            }
        }
    }
    shown
}

/// Why a field is not as it should be.
fn fault(
    version: &str,
    kind: &str,
    schema: &Value,
    way: &[Step],
    shown: &BTreeSet<(String, String)>,
) -> Option<String> {
    let (path, last) = written(way);
    let findings = told(version, kind, &with(schema, way, false));
    let unknown = |finding: &&Finding| finding.message.starts_with("unknown field");
    if let Some(finding) = findings.iter().find(unknown) {
        return Some(format!("{version} {kind} {path}: {}", finding.message));
    }
    let is_told = findings.iter().any(|finding| {
        let above = || path.strip_prefix(&finding.path).is_some_and(|rest| rest.starts_with(['.', '[']));
        let refused = finding.message.contains("is not implemented by Outrigger");
        let idle = refused || finding.code == code::NOT_IMPLEMENTED || finding.code == code::NO_EFFECT;
        finding.path.starts_with(&path) || (idle && above())
    });
    if is_told {
        return None;
    }
    match table(&told(version, kind, &with(schema, way, true))) {
        Some((what, fields)) if fields.iter().any(|field| field == last) => {
            // What it refers to says itself that it has no effect.
            let known = kind == "ReferenceGrant" || shown.contains(&(kind.to_owned(), what.clone()));
            (!known).then(|| format!("{kind} {path}: no example in fields.yaml has {what}"))
        }
        _ => Some(format!("{version} {kind} {path} is passed over: {findings:?}")),
    }
}

#[test]
fn every_field_of_others_definitions_acts_or_is_told() {
    let Some(definitions) = definitions() else { return };
    let shown = shown();
    let (mut faults, mut fields) = (Vec::new(), 0);
    for row in ROWS.iter().filter(|row| !OURS.contains(&row.kind)) {
        let kind = row.kind.as_str();
        let versions = definitions.get(kind).unwrap_or_else(|| panic!("nobody defines {kind}"));
        for (version, schema) in versions {
            if !row.versions.contains(&version.as_str()) {
                faults.push(format!("{kind} is not read in {version}"));
                continue;
            }
            let mut ways = Vec::new();
            leaves(schema, &[], &mut ways);
            fields += ways.len();
            faults.extend(ways.iter().filter_map(|way| fault(version, kind, schema, way, &shown)));
        }
    }
    faults.sort();
    assert!(faults.is_empty(), "{} of {fields}: {faults:#?}", faults.len());
    assert!(fields > 1500, "{fields} fields are not all there are");
}
