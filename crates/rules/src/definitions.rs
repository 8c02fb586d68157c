//! The CustomResourceDefinitions of our own kinds.

use serde_json::{Value, json};

use crate::dialect::traffic_rules;
use crate::schema::{list, one_of, text};

/// The definitions of all kinds of our own.
pub fn definitions() -> Vec<Value> {
    vec![traffic_rules()]
}

fn traffic_rules() -> Value {
    let column = |name: &str, kind: &str, path: &str, what: &str| json!({"name": name, "type": kind, "jsonPath": path, "description": what});
    let aside = |mut column: Value| {
        column["priority"] = 1.into();
        column
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "trafficrules.outrigger.io", "labels": {"app": "outrigger-control"}},
        "spec": {
            "group": "outrigger.io",
            "scope": "Namespaced",
            "names": {
                "kind": "TrafficRules", "listKind": "TrafficRulesList", "plural": "trafficrules", "singular": "trafficrules",
                "shortNames": ["trules"], "categories": ["outrigger"],
            },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Service", "string", ".spec.service", "The service whose page this is"),
                    column("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status", "Whether it holds as it is written"),
                    column("In force", "string", ".status.inForce", "At how many of the connected proxies"),
                    aside(column("Why", "string", ".status.conditions[?(@.type==\"Accepted\")].message", "What is wrong")),
                    column("Age", "date", ".metadata.creationTimestamp", ""),
                ],
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "description": "One page for one service: routes, subsets, balancing, circuit breaker, health check, rate limits, timeout, retry and hedge.",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
                        "spec": traffic_rules::schema(),
                        "status": status(),
                    },
                }},
            }],
        },
    })
}

/// What the control plane writes.
fn status() -> Value {
    let condition = json!({
        "type": "object", "required": ["type", "status"],
        "properties": {
            "type": text("Accepted, or Enforced."), "status": one_of(&["True", "False", "Unknown"], ""),
            "reason": text("One word."), "message": text("What is wrong, and what to do."),
            "observedGeneration": {"type": "integer", "format": "int64"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
    });
    let mut conditions =
        list(condition, "Whether it holds as it is written, and whether every proxy enforces it.");
    conditions["x-kubernetes-list-type"] = "map".into();
    conditions["x-kubernetes-list-map-keys"] = json!(["type"]);
    json!({
        "type": "object", "description": "Written by the control plane.",
        "properties": {
            "observedGeneration": {"type": "integer", "format": "int64", "description": "The generation of this object that the rest is about."},
            "conditions": conditions,
            "inForce": text("At how many of the connected proxies, and since which generation of the mesh."),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field of every table is described, and every node has a type or takes anything.
    fn structural(schema: &Value, path: &str) {
        let typed = schema["type"].is_string();
        let open = ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"];
        assert!(typed || open.iter().any(|open| schema[*open] == true), "{path}: {schema}");
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            structural(field, &format!("{path}.{name}"));
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(inner) {
                structural(inner, &format!("{path}[]"));
            }
        }
    }

    #[test]
    fn every_field_that_is_read_has_a_type() {
        for definition in definitions() {
            structural(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "");
        }
        let spec = traffic_rules::schema();
        for path in [
            "/routes/items/properties/to/items/properties/version",
            "/circuitBreaker/properties/trip/properties/probes",
            "/healthCheck/properties/http/properties/expectedStatuses",
        ] {
            assert!(spec["properties"].pointer(path).is_some(), "{path}");
        }
    }
}
