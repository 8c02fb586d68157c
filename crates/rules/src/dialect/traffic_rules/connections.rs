//! Routes of connections of a native page: bytes, and TLS that is not ended, by the server name that the client asks for.

use super::routes::{Page, target};
use crate::dialect::virtual_service::server_names;
use crate::intent::{Host, TcpMatch, TcpRoute, TlsMatch, TlsRoute};
use crate::reader::{At, Reader, Table};
use crate::yaml::Value;

pub(super) const ROUTE: Table = Table::new("a route of connections", &["match", "to"]);
pub(super) const MATCH: Table =
    Table::new("a match of connections", &["serverNames", "port", "sourceLabels", "sourceNamespace"]);
pub(super) const TO: Table =
    Table::new("a target of connections", &["service", "subset", "version", "port", "weight"]);

/// Those with server names are for TLS, the others for all connections. `written` is how the page names its service.
pub(super) fn read(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    written: Option<String>,
    page: &mut Page,
) -> (Vec<TlsRoute>, Vec<TcpRoute>) {
    let (mut tls, mut tcp) = (Vec::new(), Vec::new());
    let hosts: Vec<Host> = page.host.iter().cloned().collect();
    let names: Vec<String> = written.into_iter().collect();
    for item in reader.list(at) {
        let Some(fields) = reader.fields(&item, &ROUTE) else { continue };
        let match_at = fields.get("match");
        let blocks = match &match_at {
            Some(one) if matches!(one.node.value, Value::Map(_)) => vec![one.clone()],
            _ => reader.list(match_at),
        };
        let (mut named, mut all) = (Vec::new(), Vec::new());
        for block in &blocks {
            let Some(fields) = reader.fields(block, &MATCH) else { continue };
            let connection = TcpMatch {
                port: reader.port(fields.get("port")),
                source_labels: reader.labels(fields.get("sourceLabels")),
                source_namespace: reader.text(fields.get("sourceNamespace")),
            };
            if fields.has("serverNames") {
                let items = reader.list(fields.get("serverNames"));
                if items.is_empty() {
                    reader.missing(&fields, "serverNames");
                }
                let server_names = server_names(reader, items, &hosts, &names);
                named.push(TlsMatch { server_names, connection });
            } else {
                all.push(connection);
            }
        }
        if !named.is_empty() && !all.is_empty() {
            let message = format!(
                "{}: some matches have serverNames and some have not; write a route for each kind",
                item.path
            );
            reader.error(&item, message);
        }
        let to = reader.list(fields.get("to"));
        if to.is_empty() {
            reader.missing(&fields, "to");
        }
        let mut targets = Vec::new();
        for one in &to {
            let subsets = (&TO, &mut page.subsets);
            targets.extend(target(reader, one, page.host.as_ref(), to.len() == 1, subsets));
        }
        let place = item.place();
        match named.is_empty() {
            true => tcp.push(TcpRoute { matches: all, targets, lost: 0, place }),
            false => tls.push(TlsRoute { matches: named, targets, lost: 0, place }),
        }
    }
    (tls, tcp)
}
