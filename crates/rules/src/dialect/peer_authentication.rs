//! Istio's PeerAuthentication: which mTLS mode workloads accept.

use std::collections::BTreeMap;

use super::shared::selector;
use crate::intent::{Intent, MtlsIntent, MtlsMode};
use crate::reader::{At, Reader, Table};

const SPEC: Table = Table::new("a PeerAuthentication", &["selector", "mtls", "portLevelMtls"]);
const MTLS: Table = Table::new("an mTLS setting", &["mode"]);
const MODES: [(&str, Option<MtlsMode>); 4] = [
    ("UNSET", None),
    ("DISABLE", Some(MtlsMode::Disable)),
    ("PERMISSIVE", Some(MtlsMode::Permissive)),
    ("STRICT", Some(MtlsMode::Strict)),
];

pub(super) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let selector = selector(reader, fields.get("selector"));
    let whole = fields.get("mtls").and_then(|at| mode(reader, &at));
    let mut ports = BTreeMap::new();
    for (key, item) in reader.entries(fields.get("portLevelMtls")) {
        match key.text.parse::<u16>() {
            Ok(port @ 1..) => {
                let accepted = mode(reader, &item);
                ports.insert(port, accepted);
            }
            _ => reader.error(&item, format!("{}: the key must be a port from 1 to 65535", item.path)),
        }
    }
    if let Some(at) = fields.get("portLevelMtls").filter(|_| ports.is_empty()) {
        reader.error(&at, format!("{} must name a port, or be left out", at.path));
    }
    if let Some(at) = fields.get("portLevelMtls").filter(|_| selector.is_empty()) {
        reader.error(&at, format!("{} needs a selector: ports are those of certain workloads", at.path));
    }
    let origin = reader.origin.clone();
    vec![Intent::Mtls(MtlsIntent { origin, selector, mode: whole, ports, place: spec.place() })]
}

fn mode(reader: &mut Reader<'_>, at: &At<'_>) -> Option<MtlsMode> {
    let fields = reader.fields(at, &MTLS)?;
    reader.choice(fields.get("mode"), &MODES).flatten()
}

#[cfg(test)]
mod tests;
