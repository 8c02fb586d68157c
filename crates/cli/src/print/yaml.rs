//! JSON as YAML in blocks, as a document or for what stands behind a user's own text.

use std::fmt::Write as _;

use serde_json::Value;

/// A field and its value at the left margin.
pub(crate) fn field(name: &str, value: &Value) -> String {
    let mut out = String::new();
    entry(&mut out, name, value, 0);
    out
}

/// A whole document.
pub(crate) fn document(value: &Value) -> String {
    let mut out = String::new();
    match scalar(value) {
        Some(text) => drop(writeln!(out, "{text}")),
        None => block(&mut out, value, 0),
    }
    out
}

fn entry(out: &mut String, name: &str, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match scalar(value) {
        Some(text) => drop(writeln!(out, "{pad}{}: {text}", key(name))),
        None => {
            let _ = writeln!(out, "{pad}{}:", key(name));
            block(out, value, indent + 2);
        }
    }
}

fn block(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                entry(out, name, value, indent);
            }
        }
        Value::Array(items) => {
            for item in items {
                let mut inner = String::new();
                match scalar(item) {
                    Some(text) => drop(writeln!(inner, "{}{text}", " ".repeat(indent + 2))),
                    None => block(&mut inner, item, indent + 2),
                }
                // The dash stands in the place of the first two blanks.
                inner.replace_range(indent..=indent, "-");
                out.push_str(&inner);
            }
        }
        _ => {}
    }
}

/// What fits behind the colon: JSON is YAML.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Object(fields) if !fields.is_empty() => None,
        Value::Array(items) if !items.is_empty() => None,
        other => Some(other.to_string()),
    }
}

/// Names of fields are plain words; what is none is quoted.
fn key(name: &str) -> String {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphabetic());
    if plain { name.to_owned() } else { Value::from(name).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_reads_as_the_same() {
        for value in [
            serde_json::json!([{ "a": { "b": [1, "x: y"] }, "c": [] }, {}, ["d"]]),
            serde_json::json!({ "n": null, "on": "on", "list": [[1, 2], { "k": 0.5 }] }),
            serde_json::json!([]),
        ] {
            let text = document(&value);
            assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn what_stands_behind_a_rule_reads_as_the_same_and_the_rule_is_taken_back() {
        let value = serde_json::json!({
            "parents": [{ "a": "x: y # \"z\"", "n": 1, "list": [{ "t": true, "e": [] }, { "u": {} }] }, { "b": ["s", 2] }],
            "a/b": "line\nbreak",
        });
        let text = field("status", &value);
        assert!(text.starts_with("status:\n  "), "{text}");
        let rule = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a}\nspec:\n  \
                    parentRefs: [{group: '', kind: Service, name: a}]\n";
        let parsed = outrigger_rules::parse("rule.yaml", &format!("{rule}{text}"));
        assert_eq!(parsed.findings, [], "{text}");
        assert_eq!(parsed.objects[0].json["status"], value, "{text}");
    }
}
