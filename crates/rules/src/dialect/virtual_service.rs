//! Istio's VirtualService: routing of HTTP, TLS and TCP for a set of hosts.
//!
//! What cannot be honoured narrows a rule (a match block or a route is left out, with a warning); it never widens one.

mod connections;
mod effects;
mod http;
mod mirror;

pub(super) use effects::grpc_status;

use outrigger_model::route::WeightedCluster;

use super::shared::{header_edits, visibility};
use crate::finding::code;
use crate::intent::{Host, Intent, Place, RouteIntent, Target, WeightedTarget};
use crate::reader::{At, Reader, Table};
use crate::yaml::Value;

const SPEC: Table = Table::new("a VirtualService", &["hosts", "gateways", "http", "tls", "tcp", "exportTo"]);
const ROUTE: Table = Table::new("a route destination", &["destination", "weight", "headers"]);
const DESTINATION: Table = Table::new("a destination", &["host", "subset", "port"]);
const PORT: Table = Table::new("a port selector", &["number"]);

/// What all routes of a rule share.
struct Rule<'r> {
    /// Its routes are for others to delegate to.
    is_delegate: bool,
    /// What it is about, resolved and as written.
    hosts: &'r [Host],
    names: &'r [String],
    /// As written; none = the mesh.
    gateways: Vec<String>,
}

pub(super) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let hosts_at = fields.get("hosts");
    let place = hosts_at.as_ref().unwrap_or(spec).place();
    let items = reader.list(hosts_at);
    let hosts: Vec<Host> = items.iter().filter_map(|item| reader.host(Some(item.clone()))).collect();
    let names: Vec<String> = items.iter().filter_map(|item| reader.text(Some(item.clone()))).collect();
    let gateways = reader.texts(fields.get("gateways"));
    let rule = Rule { is_delegate: items.is_empty(), hosts: &hosts, names: &names, gateways };
    let in_mesh = in_mesh(reader, fields.get("gateways"), &rule);
    let lists = ["http", "tls", "tcp"].map(|name| reader.list(fields.get(name)));
    let [http, tls, tcp] = &lists;
    let http: Vec<_> = http.iter().filter_map(|route| http::route(reader, route, &rule)).collect();
    let tls: Vec<_> = tls.iter().filter_map(|route| connections::tls_route(reader, route, &rule)).collect();
    let tcp: Vec<_> = tcp.iter().filter_map(|route| connections::tcp_route(reader, route, &rule)).collect();
    // An empty list is none, as in protobuf.
    let written = lists.map(|list| !list.is_empty());
    if rule.is_delegate {
        only_http(reader, spec, &rule, written);
    } else if written == [false; 3] {
        reader.error(spec, "a VirtualService needs http, tls or tcp routes");
    }
    let visibility = visibility(reader, fields.get("exportTo"));
    if !in_mesh || (http.is_empty() && tls.is_empty() && tcp.is_empty()) {
        return Vec::new();
    }
    vec![Intent::Route(RouteIntent {
        origin: reader.origin.clone(),
        hosts,
        place,
        visibility,
        http,
        tls,
        tcp,
    })]
}

/// Without hosts its routes are for others to delegate to.
fn only_http(reader: &mut Reader<'_>, spec: &At<'_>, rule: &Rule<'_>, [http, tls, tcp]: [bool; 3]) {
    let message = "a VirtualService needs hosts; only one to which others delegate has none, and that has http routes, and no \
                   gateways, tls or tcp";
    if !http || tls || tcp || !rule.gateways.is_empty() {
        reader.error(spec, message);
    }
}

/// Whether a rule is for sidecars. Gateways are another program's business so far.
fn in_mesh(reader: &mut Reader<'_>, at: Option<At<'_>>, rule: &Rule<'_>) -> bool {
    let Some(at) = at else { return true };
    let gateways = &rule.gateways;
    let mesh = gateways.iter().any(|name| name == "mesh") || gateways.is_empty();
    if !gateways.iter().all(|name| name == "mesh") {
        let rest = if mesh { "only \"mesh\" is served" } else { "without \"mesh\" the rule has no effect" };
        reader.not_implemented(&at, &format!("there are no gateways, {rest}"));
    }
    mesh
}

/// Whether a match block applies to sidecars; one for gateways of the rule is left out without a word, as the rule told enough.
fn block_in_mesh(reader: &mut Reader<'_>, at: Option<At<'_>>, rule: &Rule<'_>) -> bool {
    let Some(at) = at else { return true };
    let gateways = reader.texts(Some(at.clone()));
    let mesh = gateways.is_empty() || gateways.iter().any(|name| name == "mesh");
    if !mesh && !gateways.iter().any(|name| rule.gateways.contains(name)) {
        let message = format!(
            "{} names none of the rule's own gateways and not \"mesh\", so that its match never holds and is left out; name \
             \"mesh\", or leave gateways out",
            at.path
        );
        reader.warn(code::NO_EFFECT, &at, message);
    }
    mesh
}

/// A match block with a condition that we cannot check matches nothing.
fn keep(reader: &mut Reader<'_>, block: &At<'_>, has_later: bool) -> bool {
    if has_later {
        let message = format!("{} is left out, because a condition of it is not implemented", block.path);
        reader.warn(code::NOT_IMPLEMENTED, block, message);
    }
    !has_later
}

/// The destinations of a route, which have the fields of the table.
fn targets(reader: &mut Reader<'_>, at: Option<At<'_>>, table: &'static Table) -> Vec<WeightedTarget> {
    let items = reader.list(at.clone());
    if let Some(at) = at.filter(|at| matches!(&at.node.value, Value::List(items) if items.is_empty())) {
        reader.error(&at, format!("{} must name at least one destination", at.path));
    }
    let lone = items.len() == 1;
    let mut total = 0u32;
    let mut targets = Vec::new();
    for item in items {
        let Some(target) = target(reader, &item, lone, table) else { continue };
        match total.checked_add(target.share.weight) {
            Some(sum) => total = sum,
            None => reader
                .error(&item, format!("{}: the weights of a route must sum to less than 2³²", item.path)),
        }
        targets.push(target);
    }
    targets
}

fn target(
    reader: &mut Reader<'_>,
    item: &At<'_>,
    lone: bool,
    table: &'static Table,
) -> Option<WeightedTarget> {
    let fields = reader.fields(item, table)?;
    // Protobuf cannot tell 0 from absent, so Istio gives a lone destination everything.
    let written = reader.number(fields.get("weight"), 0..=u32::MAX).unwrap_or(0);
    let weight = if lone { written.max(1) } else { written };
    let edits = table.known.contains(&"headers").then(|| fields.get("headers")).flatten();
    let (request_headers, response_headers) = header_edits(reader, edits);
    let Some(destination) = fields.get("destination") else {
        reader.missing(&fields, "destination");
        return None;
    };
    let (target, place) = destination_of(reader, &destination)?;
    let share = WeightedCluster { weight, request_headers, response_headers, ..WeightedCluster::default() };
    Some(WeightedTarget { target, share, place })
}

/// A destination, and where the narrowest part of it was written.
pub(super) fn destination_of(reader: &mut Reader<'_>, at: &At<'_>) -> Option<(Target, Place)> {
    let fields = reader.fields(at, &DESTINATION)?;
    if !fields.has("host") {
        reader.missing(&fields, "host");
    }
    let host = reader.one_host(fields.get("host"));
    let subset_at = fields.get("subset");
    let place = subset_at.as_ref().map_or_else(|| at.place(), At::place);
    let subset = reader.text(subset_at).filter(|name| !name.is_empty());
    let port = port_selector(reader, fields.get("port"));
    Some((Target { host: host?, subset, port }, place))
}

/// `port: {number: 80}`.
pub(super) fn port_selector(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<u16> {
    let fields = reader.fields(&at?, &PORT)?;
    if !fields.has("number") {
        reader.missing(&fields, "number");
    }
    reader.port(fields.get("number"))
}

#[cfg(test)]
mod tests;
