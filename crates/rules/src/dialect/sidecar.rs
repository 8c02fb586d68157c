//! Istio's Sidecar: which services the sidecars of workloads know, and what comes in to them.

mod egress;
mod ingress;

use super::destination_rule::policy::pool;
use super::service_entry::spoken;
use super::virtual_service::destination_of;
use crate::finding::code;
use crate::intent::{Intent, ServiceProtocol, SidecarIntent, Unknown};
use crate::reader::{At, Reader, Table};

const SPEC: Table = Table::new(
    "a Sidecar",
    &["workloadSelector", "ingress", "egress", "inboundConnectionPool", "outboundTrafficPolicy"],
);
const SELECTOR: Table = Table::new("a workload selector", &["labels"]);
const POLICY: Table = Table::new("an outbound traffic policy", &["mode", "egressProxy"]);
const PORT: Table = Table::new("a port", &["number", "protocol", "name", "targetPort"]);

/// How traffic comes to a listener; `true`: by nobody's doing.
const CAPTURE: [(&str, bool); 3] = [("DEFAULT", false), ("IPTABLES", false), ("NONE", true)];

pub(super) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let parts = ["ingress", "egress", "inboundConnectionPool", "outboundTrafficPolicy"];
    if !parts.iter().any(|part| fields.has(part)) {
        reader.error(spec, format!("{} says nothing: it needs one of {}", spec.path, parts.join(", ")));
    }
    let selector_at = fields.get("workloadSelector");
    let place = selector_at.as_ref().unwrap_or(spec).place();
    let selector = selector_at.map(|at| selector(reader, &at)).unwrap_or_default();
    let intent = SidecarIntent {
        origin: reader.origin.clone(),
        created: reader.created.clone(),
        selector,
        place,
        egress: egress::read(reader, fields.get("egress")),
        unknown: fields.get("outboundTrafficPolicy").and_then(|at| unknown(reader, &at)),
        ingress: ingress::read(reader, fields.get("ingress")),
        inbound_pool: fields.get("inboundConnectionPool").and_then(|at| pool(reader, &at)),
    };
    vec![Intent::Sidecar(intent)]
}

fn selector(reader: &mut Reader<'_>, at: &At<'_>) -> std::collections::BTreeMap<String, String> {
    let Some(fields) = reader.fields(at, &SELECTOR) else { return Default::default() };
    let labels = reader.labels(fields.get("labels"));
    for (key, value) in &labels {
        if key.is_empty() || key.contains('*') || value.contains('*') {
            let message = format!("{}.labels: {key}={value} must be one label, without wildcards", at.path);
            reader.error(at, message);
        }
    }
    if labels.is_empty() {
        let message = format!("{} has no labels, so it is for all workloads of the namespace", at.path);
        reader.warn(code::NO_EFFECT, at, message);
    }
    labels
}

/// What becomes of what nobody knows. Protobuf's 0 is REGISTRY_ONLY, so that is what `{}` says.
fn unknown(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Unknown> {
    let fields = reader.fields(at, &POLICY)?;
    let modes = [("REGISTRY_ONLY", Unknown::Refused), ("ALLOW_ANY", Unknown::Allowed)];
    let mode = match fields.get("mode") {
        Some(mode) => reader.choice(Some(mode), &modes)?,
        None => {
            let message = format!(
                "{} without a mode is REGISTRY_ONLY (Istio's default is ALLOW_ANY): write it",
                at.path
            );
            reader.warn(code::NO_EFFECT, at, message);
            Unknown::Refused
        }
    };
    let Some(proxy) = fields.get("egressProxy") else { return Some(mode) };
    if mode == Unknown::Refused {
        reader.error(&proxy, format!("{} needs the mode ALLOW_ANY: nothing else goes there", proxy.path));
    }
    let (target, _) = destination_of(reader, &proxy)?;
    if target.port.is_none() {
        reader.error(&proxy, format!("{}.port is missing: an egress proxy needs it", proxy.path));
    }
    Some(Unknown::Through(target))
}

/// Number and protocol of a `SidecarPort`; 0 goes with a socket file.
fn port(reader: &mut Reader<'_>, at: &At<'_>) -> Option<(u32, ServiceProtocol)> {
    let fields = reader.fields(at, &PORT)?;
    for name in ["number", "protocol", "name"] {
        if !fields.has(name) {
            reader.missing(&fields, name);
        }
    }
    reader.text(fields.get("name"));
    if let Some(at) = fields.get("targetPort") {
        let message = format!(
            "{} has no effect, as in Istio: where the application is, defaultEndpoint of ingress says",
            at.path
        );
        reader.warn(code::NO_EFFECT, &at, message);
    }
    let number = reader.number(fields.get("number"), 0..=65535);
    let protocol = fields.get("protocol").map(|at| spoken(reader, &at));
    Some((number?, protocol??))
}

/// Nobody opens a port beside those that a sidecar has.
fn not_bound(reader: &mut Reader<'_>, at: Option<At<'_>>, captured: &str) -> Option<()> {
    let at = at?;
    if reader.choice(Some(at.clone()), &CAPTURE)? {
        reader.not_implemented(&at, captured);
    }
    Some(())
}

#[cfg(test)]
mod tests;
