//! Istio's WorkloadEntry: a workload that is described instead of registered. The endpoints of a ServiceEntry are written alike.

use std::collections::BTreeMap;
use std::net::IpAddr;

use outrigger_model::identity::SpiffeId;

use crate::finding::{code, quote};
use crate::intent::{Intent, Workload, WorkloadIntent};
use crate::reader::{At, Reader, Table};

const SPEC: Table = Table::new(
    "a WorkloadEntry",
    &["address", "ports", "labels", "network", "locality", "weight", "serviceAccount"],
);

pub(super) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(mut workload) = workload(reader, spec) else { return Vec::new() };
    // Of both, as in Istio: the metadata's go first.
    workload.labels.extend(reader.labels.clone());
    vec![Intent::Workload(WorkloadIntent { origin: reader.origin.clone(), workload })]
}

pub(super) fn workload(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Workload> {
    let fields = reader.fields(at, &SPEC)?;
    let address_at = fields.get("address");
    if address_at.is_none() {
        // Istio's way to say "behind the gateway of its network".
        reader.missing(&fields, "address");
    }
    let address = address(reader, address_at);
    let mut ports = BTreeMap::new();
    for (key, item) in reader.entries(fields.get("ports")) {
        if let Some(number) = reader.port(Some(item)) {
            ports.insert(key.text.clone(), number);
        }
    }
    let locality = fields.get("locality").and_then(|at| locality(reader, &at)).unwrap_or_default();
    let weight = reader.number(fields.get("weight"), 0..=1_000_000).unwrap_or(1).max(1);
    if let Some(at) = fields.get("network") {
        let message = format!(
            "{} has no effect: Outrigger has no gateways between networks, clients of all networks connect to the address itself",
            at.path
        );
        reader.warn(code::NO_EFFECT, &at, message);
    }
    Some(Workload {
        address: address?,
        ports,
        labels: reader.labels(fields.get("labels")),
        network: reader.text(fields.get("network")).unwrap_or_default(),
        locality,
        weight,
        service_account: account(reader, fields.get("serviceAccount")).unwrap_or_default(),
        place: at.place(),
    })
}

/// One that cannot stand in an identity would leave its server without any.
fn account(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<String> {
    let at = at?;
    let account = reader.text(Some(at.clone()))?;
    let is_name = !account.contains('/') && SpiffeId::workload("cluster.local", "default", &account).is_ok();
    if !account.is_empty() && !is_name {
        let message = format!("{} must be the name of a service account, not {}", at.path, quote(&account));
        reader.error(&at, message);
    }
    Some(account)
}

fn address(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<String> {
    let at = at?;
    let text = reader.text(Some(at.clone()))?;
    if text.starts_with("unix:") {
        let message = format!(
            "{}: Outrigger's proxy connects to addresses and names, not to the socket file {}",
            at.path,
            quote(&text)
        );
        reader.error(&at, message);
        return None;
    }
    let name = text.strip_suffix('.').unwrap_or(&text).to_ascii_lowercase();
    let is_name = |name: &str| {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        name.len() <= 253 && name.split('.').all(label)
    };
    if let Ok(ip) = name.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        if ip.is_unspecified() || ip.is_multicast() {
            let message = format!("{}: {ip} is nobody's own; name the one that clients connect to", at.path);
            reader.error(&at, message);
            return None;
        }
        return Some(ip.to_string());
    }
    if !is_name(&name) {
        let message = format!("{} must be an IP address or a DNS name, not {}", at.path, quote(&text));
        reader.error(&at, message);
        return None;
    }
    Some(name)
}

/// `region/zone/sub-zone`, each but the first optional.
fn locality(reader: &mut Reader<'_>, at: &At<'_>) -> Option<[String; 3]> {
    let text = reader.text(Some(at.clone()))?;
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
        let message =
            format!("{} must be region/zone/sub-zone or the beginning of it, not {}", at.path, quote(&text));
        reader.error(at, message);
        return None;
    }
    let part = |i: usize| parts.get(i).map(|part| (*part).to_owned()).unwrap_or_default();
    Some([part(0), part(1), part(2)])
}
