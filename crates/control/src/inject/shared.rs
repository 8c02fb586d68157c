//! Resources that a Pod has for all of its containers together (`spec.resources`).
//!
//! An API server takes such a Pod only where no container may use more than the Pod may, and where all of them together ask for no more than the
//! Pod asks for: with what settings say of each sidecar it would be refused. So of what the Pod says the sidecar says nothing, and is bound by the
//! Pod's limit. Which it does not see from inside, so how much that is it is told.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Fields;

/// Workers at most, as the annotation takes them.
const MOST_WORKERS: f64 = 256.0;

/// What of a quantity each of its units is.
const UNITS: [(&str, f64); 14] = [
    ("m", 1e-3),
    ("", 1.0),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
];

/// Takes out of the sidecar's resources what the Pod says for all, and tells its bootstrap of limits; what the author of the Pod should know.
pub(super) fn leave_out(spec: &Value, resources: &mut Value, bootstrap: &mut Fields) -> Option<String> {
    let of_pod = &spec["resources"];
    let named = |list: &str| of_pod[list].as_object().into_iter().flat_map(Fields::keys).map(String::as_str);
    let shared: BTreeSet<&str> = named("requests").chain(named("limits")).collect();
    let mut gone: Vec<&str> = Vec::new();
    for name in shared {
        let limits = [&of_pod["limits"][name], &resources["limits"][name]];
        let limit = limits.into_iter().filter_map(quantity).reduce(f64::min);
        let mut was = false;
        for list in ["requests", "limits"] {
            let all = resources.get_mut(list).and_then(Value::as_object_mut);
            was |= all.is_some_and(|all| all.remove(name).is_some());
        }
        if !was {
            continue;
        }
        gone.push(name);
        match (name, limit) {
            ("cpu", Some(limit)) => {
                let workers = limit.ceil().clamp(1.0, MOST_WORKERS) as u64;
                bootstrap.insert("workers".to_owned(), workers.into());
            }
            ("memory", Some(limit)) => {
                bootstrap.insert("memory_limit".to_owned(), (limit.max(1.0) as u64).into());
            }
            _ => {}
        }
    }
    (!gone.is_empty()).then(|| {
        format!(
            "the Pod says {} for all of its containers together (spec.resources): the sidecar has none of its own, which would have the Pod refused, \
             and uses the Pod's; count it in there, or give it a share by its annotations (sidecar.istio.io/proxyCPU, proxyMemory, …Limit)",
            gone.join(" and ")
        )
    })
}

/// As Kubernetes writes them, or as a number.
fn quantity(value: &Value) -> Option<f64> {
    let Value::String(text) = value else { return value.as_f64() };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    Some(number.parse::<f64>().ok()? * factor)
}
