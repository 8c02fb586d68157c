//! The difference of two documents as a JSON patch (RFC 6902): only what has changed, so that webhooks of others keep their part. And
//! one document laid over another (RFC 7386).

use serde_json::{Value, json};

/// Operations that make `to` of `from`, in their order.
pub fn diff(from: &Value, to: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    walk("", from, to, &mut operations);
    operations
}

fn walk(path: &str, from: &Value, to: &Value, out: &mut Vec<Value>) {
    match (from, to) {
        (from, to) if from == to => {}
        (Value::Object(from), Value::Object(to)) => {
            for key in from.keys().filter(|key| !to.contains_key(*key)) {
                out.push(json!({"op": "remove", "path": below(path, key)}));
            }
            for (key, value) in to {
                match from.get(key) {
                    Some(before) => walk(&below(path, key), before, value, out),
                    None => out.push(json!({"op": "add", "path": below(path, key), "value": value})),
                }
            }
        }
        (Value::Array(from), Value::Array(to)) => lists(path, from, to, out),
        _ => out.push(json!({"op": "replace", "path": path, "value": to})),
    }
}

/// Both begin and end with the same elements, which may have changed within; between, all that was goes and all that is comes.
fn lists(path: &str, from: &[Value], to: &[Value], out: &mut Vec<Value>) {
    let first = from.iter().zip(to).take_while(|(a, b)| same(a, b)).count();
    let rest = from[first..].iter().rev().zip(to[first..].iter().rev());
    let last = rest.take_while(|(a, b)| same(a, b)).count();
    let (gone, come) = (first..from.len() - last, first..to.len() - last);
    for at in gone.rev() {
        out.push(json!({"op": "remove", "path": format!("{path}/{at}")}));
    }
    for at in come {
        out.push(json!({"op": "add", "path": format!("{path}/{at}"), "value": to[at]}));
    }
    let pairs =
        (0..first).map(|at| (at, at)).chain((1..=last).map(|back| (from.len() - back, to.len() - back)));
    for (before, after) in pairs {
        walk(&format!("{path}/{after}"), &from[before], &to[after], out);
    }
}

/// Elements of Kubernetes' lists are told apart by name.
fn same(a: &Value, b: &Value) -> bool {
    a == b || (a["name"].is_string() && a["name"] == b["name"])
}

/// RFC 6901, section 3.
fn below(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// Lays a document over another, field by field; null takes a field away.
pub(super) fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return *into = patch.clone() };
    if !into.is_object() {
        *into = json!({});
    }
    let Value::Object(into) = into else { return };
    for (key, value) in patch {
        if value.is_null() {
            into.remove(key);
        } else {
            merge(into.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
