//! Routes of connections: TLS by the server name that the client asks for, and TCP.

use super::{Rule, block_in_mesh, keep, targets};
use crate::finding::quote;
use crate::intent::{Host, TcpMatch, TcpRoute, TlsMatch, TlsRoute};
use crate::reader::{At, Fields, Reader, Table};

/// Connections have no headers.
const SHARE: Table = Table::new("a destination of connections", &["destination", "weight"]);
const TCP: Table = Table::new("a TCP route", &["match", "route"]);
const TCP_MATCH: Table = Table::new("a TCP match", &["port", "sourceLabels", "sourceNamespace", "gateways"])
    .later(&["destinationSubnets", "sourceSubnet"]);
const TLS: Table = Table::new("a TLS route", &["match", "route"]);
const TLS_MATCH: Table =
    Table::new("a TLS match", &["sniHosts", "port", "sourceLabels", "sourceNamespace", "gateways"])
        .later(&["destinationSubnets"]);

pub(super) fn tcp_route(reader: &mut Reader<'_>, at: &At<'_>, rule: &Rule<'_>) -> Option<TcpRoute> {
    let fields = reader.fields(at, &TCP)?;
    let blocks = reader.list(fields.get("match"));
    let written = blocks.len();
    let mut matches = Vec::new();
    for block in blocks {
        let Some(fields) = reader.fields(&block, &TCP_MATCH) else { continue };
        let read = connection(reader, &fields);
        if block_in_mesh(reader, fields.get("gateways"), rule) && keep(reader, &block, fields.has_later()) {
            matches.push(read);
        }
    }
    let targets = targets(reader, fields.get("route"), &SHARE);
    if !fields.has("route") {
        reader.missing(&fields, "route");
    }
    (!targets.is_empty() && (written == 0 || !matches.is_empty())).then(|| TcpRoute {
        matches,
        targets,
        lost: 0,
        place: at.place(),
    })
}

pub(super) fn tls_route(reader: &mut Reader<'_>, at: &At<'_>, rule: &Rule<'_>) -> Option<TlsRoute> {
    let fields = reader.fields(at, &TLS)?;
    let blocks = reader.list(fields.get("match"));
    if blocks.is_empty() {
        reader.missing(&fields, "match");
    }
    let mut matches = Vec::new();
    for block in blocks {
        let Some(fields) = reader.fields(&block, &TLS_MATCH) else { continue };
        let connection = connection(reader, &fields);
        let items = reader.list(fields.get("sniHosts"));
        if items.is_empty() {
            reader.missing(&fields, "sniHosts");
        }
        let server_names = server_names(reader, items, rule.hosts, rule.names);
        let in_mesh = block_in_mesh(reader, fields.get("gateways"), rule);
        let whole = in_mesh && keep(reader, &block, fields.has_later());
        if whole && !server_names.is_empty() {
            matches.push(TlsMatch { server_names, connection });
        }
    }
    let targets = targets(reader, fields.get("route"), &SHARE);
    if !fields.has("route") {
        reader.missing(&fields, "route");
    }
    (!targets.is_empty() && !matches.is_empty()).then(|| TlsRoute {
        matches,
        targets,
        lost: 0,
        place: at.place(),
    })
}

fn connection(reader: &mut Reader<'_>, fields: &Fields<'_>) -> TcpMatch {
    TcpMatch {
        port: reader.port(fields.get("port")),
        source_labels: reader.labels(fields.get("sourceLabels")),
        source_namespace: reader.text(fields.get("sourceNamespace")),
    }
}

/// Names that are of the rule's hosts, resolved or as written.
pub(in crate::dialect) fn server_names(
    reader: &mut Reader<'_>,
    items: Vec<At<'_>>,
    hosts: &[Host],
    names: &[String],
) -> Vec<String> {
    let mut found = Vec::new();
    for item in items {
        let Some(name) = reader.text(Some(item.clone())) else { continue };
        let name = name.to_ascii_lowercase();
        let is_name = name == "*" || name.strip_prefix("*.").unwrap_or(&name).split('.').all(is_label);
        if !is_name {
            let message = format!(
                "{} must be a server name or \"*.\" before one, not {}: nothing else is in a ClientHello",
                item.path,
                quote(&name)
            );
            reader.error(&item, message);
            continue;
        }
        let is_of = |host: &str| host == name || within(&name, host);
        let (hosts, names) = (hosts.iter().map(Host::as_str), names.iter().map(String::as_str));
        if !hosts.chain(names).any(is_of) {
            let message = format!("{}: {} is none of the hosts of the rule", item.path, quote(&name));
            reader.error(&item, message);
        } else {
            found.push(name);
        }
    }
    found
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Whether all that a name may be is below a wildcard.
fn within(name: &str, wildcard: &str) -> bool {
    wildcard == "*"
        || wildcard.strip_prefix('*').is_some_and(|suffix| {
            suffix.starts_with('.') && name.len() > suffix.len() && name.ends_with(suffix)
        })
}
