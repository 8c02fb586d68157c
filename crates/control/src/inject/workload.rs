//! Where Pods are described: in a Pod itself, in what makes Pods, in lists of such.

use serde_json::Value;

/// What a document has to do with Pods.
#[derive(Debug, PartialEq)]
pub enum Kind {
    /// It is one.
    Pod,
    /// It has the template of some at this place (RFC 6901).
    Template(&'static str),
    /// It has documents of its own below `items`.
    List,
    /// Nothing.
    Other,
}

/// By group and kind; whatever its version.
pub fn kind(document: &Value) -> Kind {
    let version = document["apiVersion"].as_str().unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    match (group, document["kind"].as_str().unwrap_or_default()) {
        ("", "Pod") => Kind::Pod,
        ("", "ReplicationController")
        | ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job") => Kind::Template("/spec/template"),
        ("batch", "CronJob") => Kind::Template("/spec/jobTemplate/spec/template"),
        (_, kind) if kind.ends_with("List") && document["items"].is_array() => Kind::List,
        _ => Kind::Other,
    }
}

/// As messages call it.
pub fn called(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = document["metadata"]["name"].as_str().or(document["metadata"]["generateName"].as_str());
    format!("{} {}", text(&document["kind"]), name.unwrap_or("(without a name)"))
}
