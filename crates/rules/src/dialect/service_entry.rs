//! Istio's ServiceEntry: a service that is described instead of registered, mostly one of the world outside.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::shared::{bounded, identity, visibility};
use super::workload_entry::workload;
use crate::finding::{code, quote};
use crate::intent::{
    Host, Intent, Location, Preference, Resolution, ServiceIntent, ServicePort, ServiceProtocol, Workload,
};
use crate::reader::{At, Fields, Reader, Table};

const SPEC: Table = Table::new(
    "a ServiceEntry",
    &[
        "hosts",
        "addresses",
        "ports",
        "location",
        "resolution",
        "endpoints",
        "workloadSelector",
        "exportTo",
        "subjectAltNames",
    ],
);
const PORT: Table = Table::new("a port", &["number", "name", "protocol", "targetPort"]);
const SELECTOR: Table = Table::new("a workload selector", &["labels"]);

/// What Istio's words for protocols are here; `None`: nothing here carries it.
const PROTOCOLS: [(&str, Option<ServiceProtocol>); 13] = [
    ("HTTP", Some(ServiceProtocol::Http)),
    ("HTTPS", Some(ServiceProtocol::Tls)),
    ("HTTP2", Some(ServiceProtocol::Http2)),
    ("GRPC", Some(ServiceProtocol::Grpc)),
    ("GRPC-WEB", Some(ServiceProtocol::Http)),
    ("TLS", Some(ServiceProtocol::Tls)),
    ("TCP", Some(ServiceProtocol::Tcp)),
    ("MONGO", Some(ServiceProtocol::Tcp)),
    ("MYSQL", Some(ServiceProtocol::Tcp)),
    ("REDIS", Some(ServiceProtocol::Tcp)),
    ("AUTO", Some(ServiceProtocol::Detect)),
    ("", Some(ServiceProtocol::Detect)),
    ("UDP", None),
];

pub(super) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let locations = [("MESH_EXTERNAL", Location::Outside), ("MESH_INTERNAL", Location::Inside)];
    let intent = ServiceIntent {
        headless: false,
        families: Vec::new(),
        preference: Preference::default(),
        origin: reader.origin.clone(),
        place: fields.get("hosts").as_ref().unwrap_or(spec).place(),
        hosts: hosts(reader, &fields),
        addresses: addresses(reader, &fields),
        ports: ports(reader, &fields),
        location: reader.choice(fields.get("location"), &locations).unwrap_or_default(),
        resolution: resolution(reader, &fields),
        endpoints: reader
            .list(fields.get("endpoints"))
            .iter()
            .filter_map(|at| workload(reader, at))
            .collect(),
        selector: selector(reader, &fields),
        visibility: visibility(reader, fields.get("exportTo")),
        subject_alt_names: reader.texts(fields.get("subjectAltNames")),
        unready: false,
    };
    // As Istio's: their products are kept.
    bounded(reader, &fields, &[("hosts", 256), ("addresses", 256), ("ports", 256), ("endpoints", 4096)]);
    check_names(reader, &fields, &intent);
    check_sources(reader, &fields, &intent);
    check_resolution(reader, &fields, &intent);
    check_endpoints(reader, &fields, &intent);
    vec![Intent::Service(intent)]
}

fn check_names(reader: &mut Reader<'_>, fields: &Fields<'_>, intent: &ServiceIntent) {
    for (item, name) in reader.list(fields.get("subjectAltNames")).iter().zip(&intent.subject_alt_names) {
        if intent.location == Location::Inside {
            identity(reader, item, name);
        }
    }
}

fn hosts(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Vec<Host> {
    let items = reader.list(fields.get("hosts"));
    if items.is_empty() {
        reader.missing(fields, "hosts");
    }
    let mut hosts: Vec<Host> = Vec::new();
    for item in items {
        let Some(text) = reader.text(Some(item.clone())) else { continue };
        match reader.resolver().resolve_whole(&text, &reader.origin.namespace) {
            Ok(host) if host.as_str() == "*" => {
                let message = format!("{}: \"*\" would be every host; name those that are meant", item.path);
                reader.error(&item, message);
            }
            Ok(host) if hosts.contains(&host) => {
                reader.error(&item, format!("{}: {} is there twice", item.path, quote(&text)));
            }
            Ok(host) => hosts.push(host),
            Err(error) => reader.error(&item, format!("{}: {error}", item.path)),
        }
    }
    hosts
}

fn addresses(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Vec<IpNet> {
    let blocks = reader.ip_blocks(fields.get("addresses"));
    if let Some(at) = fields.get("addresses")
        && blocks.iter().any(|block| block.prefix_len() == 0)
    {
        reader.error(&at, format!("{}: a block of length 0 is every address", at.path));
    }
    blocks
}

fn ports(reader: &mut Reader<'_>, fields: &Fields<'_>) -> BTreeMap<u16, ServicePort> {
    let items = reader.list(fields.get("ports"));
    if items.is_empty() {
        reader.missing(fields, "ports");
    }
    let mut ports: BTreeMap<u16, ServicePort> = BTreeMap::new();
    for item in items {
        let Some((number, port)) = port(reader, &item) else { continue };
        let same_name = |other: &ServicePort| !port.name.is_empty() && other.name == port.name;
        if ports.contains_key(&number) {
            reader.error(&item, format!("{}: the port {number} is defined twice", item.path));
        } else if ports.values().any(same_name) {
            let message = format!("{}: the name {} is another port's already", item.path, quote(&port.name));
            reader.error(&item, message);
        } else {
            ports.insert(number, port);
        }
    }
    ports
}

fn port(reader: &mut Reader<'_>, at: &At<'_>) -> Option<(u16, ServicePort)> {
    let fields = reader.fields(at, &PORT)?;
    if !fields.has("number") {
        reader.missing(&fields, "number");
    }
    let number = reader.port(fields.get("number"));
    let name = reader.text(fields.get("name")).unwrap_or_default();
    let target = reader.port(fields.get("targetPort"));
    let protocol = match fields.get("protocol") {
        None => ServiceProtocol::default(),
        Some(at) => spoken(reader, &at)?,
    };
    Some((number?, ServicePort { name, protocol, target, target_name: String::new() }))
}

/// One of Istio's words for protocols; of those that nothing here carries none, which is told.
pub(super) fn spoken(reader: &mut Reader<'_>, word_at: &At<'_>) -> Option<ServiceProtocol> {
    let word = reader.text(Some(word_at.clone()))?.to_ascii_uppercase();
    match PROTOCOLS.iter().find(|(known, _)| *known == word) {
        Some((_, Some(protocol))) => Some(*protocol),
        Some((_, None)) => {
            let message = format!("{}: Outrigger carries no {word}: the port has no effect", word_at.path);
            reader.warn(code::NO_EFFECT, word_at, message);
            None
        }
        None => {
            let names: Vec<&str> =
                PROTOCOLS.iter().map(|(known, _)| *known).filter(|known| !known.is_empty()).collect();
            let message =
                format!("{} must be one of {}, not {}", word_at.path, names.join(", "), quote(&word));
            reader.error(word_at, message);
            None
        }
    }
}

fn resolution(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Resolution {
    let words = [
        ("NONE", Some(Resolution::None)),
        ("STATIC", Some(Resolution::Static)),
        ("DNS", Some(Resolution::Dns)),
        ("DNS_ROUND_ROBIN", Some(Resolution::DnsRoundRobin)),
        ("DYNAMIC_DNS", None),
    ];
    let at = fields.get("resolution");
    match (reader.choice(at.clone(), &words), at) {
        (Some(None), Some(at)) => {
            let message = format!(
                "{}: DYNAMIC_DNS, a name by request, is not implemented by Outrigger; name the hosts and use DNS, or NONE to go \
                 where the client was going",
                at.path
            );
            reader.error(&at, message);
            Resolution::None
        }
        (Some(found), _) => found.unwrap_or_default(),
        (None, _) => Resolution::None,
    }
}

fn selector(reader: &mut Reader<'_>, fields: &Fields<'_>) -> BTreeMap<String, String> {
    let Some(at) = fields.get("workloadSelector") else { return BTreeMap::new() };
    let Some(selector) = reader.fields(&at, &SELECTOR) else { return BTreeMap::new() };
    let labels = reader.labels(selector.get("labels"));
    if labels.is_empty() {
        reader.error(&at, format!("{} needs labels: without any it would select everything", at.path));
    }
    labels
}

/// Where endpoints may come from, and how many sources there may be.
fn check_sources(reader: &mut Reader<'_>, fields: &Fields<'_>, intent: &ServiceIntent) {
    let endpoints = fields.get("endpoints").filter(|_| !intent.endpoints.is_empty());
    if let (Some(at), Some(_)) = (&endpoints, fields.get("workloadSelector")) {
        reader.error(at, format!("{}: a service has endpoints or a workloadSelector, not both", at.path));
    }
    match intent.resolution {
        Resolution::None => {
            for at in endpoints.into_iter().chain(fields.get("workloadSelector")) {
                let message = format!(
                    "{}: with resolution NONE connections go where the client was going; use STATIC, or DNS for names",
                    at.path
                );
                reader.error(&at, message);
            }
            if let Some(at) =
                fields.get("ports").filter(|_| intent.ports.values().any(|p| p.target.is_some()))
            {
                let message =
                    format!("{}: targetPort has no endpoints to mean with resolution NONE", at.path);
                reader.error(&at, message);
            }
        }
        Resolution::Static if intent.endpoints.is_empty() && intent.selector.is_empty() => {
            let message =
                format!("{}: resolution STATIC needs endpoints or a workloadSelector", fields.at.path);
            reader.error(&fields.at, message);
        }
        Resolution::DnsRoundRobin if intent.endpoints.len() > 1 => {
            if let Some(at) = endpoints {
                let message = format!("{}: resolution DNS_ROUND_ROBIN takes one endpoint", at.path);
                reader.error(&at, message);
            }
        }
        Resolution::Static | Resolution::Dns | Resolution::DnsRoundRobin => {}
    }
}

/// What resolutions ask of hosts and addresses.
fn check_resolution(reader: &mut Reader<'_>, fields: &Fields<'_>, intent: &ServiceIntent) {
    let by_dns = matches!(intent.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    if let Some(at) = fields.get("hosts").filter(|_| by_dns && intent.endpoints.is_empty()) {
        for host in intent.hosts.iter().filter(|host| host.is_wildcard()) {
            let message = format!(
                "{}: DNS cannot be asked for {}; name endpoints, or use resolution NONE",
                at.path,
                quote(host.as_str())
            );
            reader.error(&at, message);
        }
        if !intent.selector.is_empty() {
            let message = "with a workloadSelector the endpoints are known: use resolution STATIC";
            reader.error(&fields.at, format!("{}: {message}", fields.at.path));
        }
    }
    let block = intent.addresses.iter().find(|block| block.prefix_len() != block.max_prefix_len());
    if let (Some(at), Some(block), true) = (fields.get("addresses"), block, by_dns) {
        let message = format!("{}: the block {block} needs resolution NONE or STATIC", at.path);
        reader.error(&at, message);
    }
    let opaque = intent.ports.values().any(|port| port.protocol == ServiceProtocol::Tcp);
    if let Some(at) = fields.get("hosts").filter(|_| opaque && intent.addresses.is_empty()) {
        let wildcard = intent.hosts.iter().find(|host| host.is_wildcard());
        if let Some(host) = wildcard {
            let message = format!(
                "{}: bytes of a TCP port do not say which host they are for, so {} has no effect there; name addresses",
                at.path,
                quote(host.as_str())
            );
            reader.warn(code::NO_EFFECT, &at, message);
        }
    }
}

fn check_endpoints(reader: &mut Reader<'_>, fields: &Fields<'_>, intent: &ServiceIntent) {
    for (item, endpoint) in reader.list(fields.get("endpoints")).iter().zip(&intent.endpoints) {
        let is_address = endpoint.address.parse::<std::net::IpAddr>().is_ok();
        if intent.resolution == Resolution::Static && !is_address {
            let message = format!(
                "{}: {} is a name; with resolution STATIC endpoints have IP addresses, DNS takes names",
                item.path,
                quote(&endpoint.address)
            );
            reader.error(item, message);
        }
        unknown_ports(reader, item, endpoint, intent);
    }
}

fn unknown_ports(reader: &mut Reader<'_>, at: &At<'_>, endpoint: &Workload, intent: &ServiceIntent) {
    for name in endpoint.ports.keys() {
        if !intent.ports.values().any(|port| port.name == *name) {
            let known: Vec<&str> = intent.ports.values().map(|port| port.name.as_str()).collect();
            let message = format!(
                "{}.ports: no port of the service is called {}; there are {}",
                at.path,
                quote(name),
                known.join(", ")
            );
            reader.error_meant(at, message, crate::finding::closest(name, known.iter().copied()));
        }
    }
}

#[cfg(test)]
mod tests;
