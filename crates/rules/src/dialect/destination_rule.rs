//! Istio's DestinationRule: subsets of a host and the policy of its clients.

pub(super) mod policy;

use std::collections::BTreeMap;

use super::shared::visibility;
use crate::intent::{DestinationIntent, Intent, SubsetIntent, TrafficPolicy};
use crate::reader::{At, Reader, Table};

const SPEC: Table =
    Table::new("a DestinationRule", &["host", "subsets", "trafficPolicy", "exportTo", "workloadSelector"]);
const SUBSET: Table = Table::new("a subset", &["name", "labels", "trafficPolicy"]);

/// A policy and its exceptions by port.
type Policies = (TrafficPolicy, BTreeMap<u16, TrafficPolicy>);

pub(super) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let host_at = fields.get("host");
    if host_at.is_none() {
        reader.missing(&fields, "host");
    }
    let place = host_at.as_ref().unwrap_or(spec).place();
    let host = reader.host(host_at);
    let (mut policy, mut ports): Policies =
        fields.get("trafficPolicy").map(|at| policy::read(reader, &at)).unwrap_or_default();
    let mut subsets: Vec<SubsetIntent> = Vec::new();
    for item in reader.list(fields.get("subsets")) {
        let Some(read) = subset(reader, &item) else { continue };
        if subsets.iter().any(|other| other.name == read.name) {
            reader.error(
                &item,
                format!("{}: the subset {} is defined twice", item.path, crate::finding::quote(&read.name)),
            );
        }
        subsets.push(read);
    }
    let visibility = visibility(reader, fields.get("exportTo"));
    let selector = fields.get("workloadSelector");
    if let Some(selector) = &selector {
        // Ignoring it would apply the policy to every client; what the subsets are is no policy.
        reader.not_implemented(
            selector,
            "its policies have no effect, and its subsets are there for all clients",
        );
        (policy, ports) = Policies::default();
        for subset in &mut subsets {
            (subset.policy, subset.ports) = Policies::default();
        }
    }
    let Some(host) = host else { return Vec::new() };
    let origin = reader.origin.clone();
    vec![Intent::Destination(DestinationIntent {
        origin,
        created: reader.created.clone(),
        host,
        place,
        visibility,
        policy,
        ports,
        subsets,
        subsets_only: selector.is_some(),
        merged: Vec::new(),
        backend_tls: Vec::new(),
    })]
}

fn subset(reader: &mut Reader<'_>, at: &At<'_>) -> Option<SubsetIntent> {
    let fields = reader.fields(at, &SUBSET)?;
    let labels = reader.labels(fields.get("labels"));
    let (policy, ports): Policies =
        fields.get("trafficPolicy").map(|at| policy::read(reader, &at)).unwrap_or_default();
    let name_at = fields.get("name");
    if name_at.is_none() {
        reader.missing(&fields, "name");
    }
    let name = subset_name(reader, name_at)?;
    let origin = reader.origin.clone();
    Some(SubsetIntent { name, labels, policy, ports, fallback: None, place: at.place(), origin })
}

/// A subset's name is part of cluster names and SNI, so it must be a label, with room for the mark that stands behind it there.
pub(super) fn subset_name(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<String> {
    let at = at?;
    let name = reader.text(Some(at.clone()))?;
    let good = (1..=62).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.');
    if !good {
        let message = format!(
            "{} must have 1 to 62 letters, digits, '-', '_' and '.', not {}",
            at.path,
            crate::finding::quote(&name)
        );
        reader.error(&at, message);
    }
    good.then_some(name)
}

#[cfg(test)]
mod tests;
