//! TCPRoute and TLSRoute: where connections go, and of TLS that is not ended by the server name that it asks for.

use std::net::IpAddr;

use outrigger_model::route::WeightedCluster;

use super::backend::HEAVIEST;
use super::flaw::Flaws;
use super::reference::target;
use super::route::attached;
use crate::dialect::shared::bounded;
use crate::finding::{code, quote};
use crate::intent::{Intent, TcpMatch, TcpRoute, TlsMatch, TlsRoute, WeightedTarget};
use crate::reader::{At, Fields, Reader, Table};

const TCP: Table = Table::new("a route", &["parentRefs", "rules"]).later(&["useDefaultGateways"]);
const TLS: Table =
    Table::new("a route", &["parentRefs", "hostnames", "rules"]).later(&["useDefaultGateways"]);
const RULE: Table = Table::new("a rule", &["name", "backendRefs"]);
const BACKEND: Table =
    Table::new("a backend reference", &["group", "kind", "namespace", "name", "port", "weight"]);

/// Rules of a route. None of them has matches: what the first does not take there is not.
const MOST_RULES: usize = 1;
/// Of `v1alpha2`, which also takes routes without hostnames.
const MOST_OLD_RULES: usize = 16;
const MOST_NAMES: usize = 1024;
const LONGEST_NAME: usize = 253;

pub(in crate::dialect) fn tcp(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &TCP) else { return Vec::new() };
    bounded(reader, &fields, &[("parentRefs", 32), ("rules", most_rules(reader))]);
    let mut flaws = Flaws::new();
    let rules = rules(reader, &fields, &mut flaws);
    let tcp = rules.into_iter().map(|rule| TcpRoute {
        matches: Vec::new(),
        targets: rule.targets,
        lost: rule.lost,
        place: rule.at.place(),
    });
    let tcp = tcp.collect();
    let route = attached(reader, &fields, flaws);
    vec![Intent::Attached(crate::intent::AttachedIntent { tcp, ..route })]
}

pub(in crate::dialect) fn tls(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &TLS) else { return Vec::new() };
    let most = [("parentRefs", 32), ("hostnames", MOST_NAMES), ("rules", most_rules(reader))];
    bounded(reader, &fields, &most);
    let server_names = server_names(reader, &fields);
    let mut flaws = Flaws::new();
    let rules = rules(reader, &fields, &mut flaws);
    let tls = rules.into_iter().map(|rule| TlsRoute {
        matches: vec![TlsMatch { server_names: server_names.clone(), connection: TcpMatch::default() }],
        targets: rule.targets,
        lost: rule.lost,
        place: rule.at.place(),
    });
    let tls = tls.collect();
    let route = attached(reader, &fields, flaws);
    vec![Intent::Attached(crate::intent::AttachedIntent { tls, ..route })]
}

fn is_old(reader: &Reader<'_>) -> bool {
    reader.api_version.ends_with("/v1alpha2")
}

fn most_rules(reader: &Reader<'_>) -> usize {
    if is_old(reader) { MOST_OLD_RULES } else { MOST_RULES }
}

/// Names that a ClientHello may ask for; of an old route that says none any.
fn server_names(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Vec<String> {
    let items = reader.list(fields.get("hostnames"));
    if items.is_empty() && !is_old(reader) {
        reader.missing(fields, "hostnames");
    }
    if items.is_empty() {
        return vec!["*".to_owned()];
    }
    let mut names = Vec::new();
    for item in items {
        let Some(name) = reader.text(Some(item.clone())) else { continue };
        let address = name.parse::<IpAddr>().is_ok();
        if address || !is_name(name.strip_prefix("*.").unwrap_or(&name)) {
            let message = format!(
                "{} must be a server name in lower case, or \"*.\" before one, not {}: {}",
                item.path,
                quote(&name),
                if address {
                    "TLS asks for no addresses (RFC 6066)"
                } else {
                    "nothing else is in a ClientHello"
                }
            );
            reader.error(&item, message);
        } else if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// RFC 1123, as the API server has it.
fn is_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(|b| inner(*b))
            && bytes.last().is_some_and(|b| inner(*b))
            && bytes.iter().all(|b| inner(*b) || *b == b'-')
    };
    !name.is_empty() && name.len() <= LONGEST_NAME && name.split('.').all(label)
}

struct Rule<'n> {
    at: At<'n>,
    targets: Vec<WeightedTarget>,
    lost: u32,
}

fn rules<'n>(reader: &mut Reader<'_>, fields: &Fields<'n>, flaws: &mut Flaws) -> Vec<Rule<'n>> {
    let items = reader.list(fields.get("rules"));
    if items.is_empty() {
        reader.missing(fields, "rules");
    }
    if let Some(second) = items.get(1).filter(|_| is_old(reader)) {
        let message = format!("{} and what follows has no effect: the first rule takes all", second.path);
        reader.warn(code::NO_EFFECT, second, message);
    }
    items.into_iter().filter_map(|at| rule(reader, at, flaws)).collect()
}

fn rule<'n>(reader: &mut Reader<'_>, at: At<'n>, flaws: &mut Flaws) -> Option<Rule<'n>> {
    let fields = reader.fields(&at, &RULE)?;
    bounded(reader, &fields, &[("backendRefs", 16)]);
    reader.text(fields.get("name"));
    let items = reader.list(fields.get("backendRefs"));
    if items.is_empty() {
        reader.missing(&fields, "backendRefs");
    }
    let (mut targets, mut lost) = (Vec::new(), 0);
    for item in items {
        let Some(fields) = reader.fields(&item, &BACKEND) else { continue };
        let weight = reader.number(fields.get("weight"), 0..=HEAVIEST).unwrap_or(1);
        let otherwise = "its share of the connections is reset";
        match target(reader, &item, &fields, flaws, otherwise) {
            Some(target) => {
                let share = WeightedCluster { weight, ..WeightedCluster::default() };
                targets.push(WeightedTarget { target, share, place: item.place() });
            }
            None => lost += weight,
        }
    }
    let total: u64 = targets.iter().map(|target| u64::from(target.share.weight)).sum();
    if total + u64::from(lost) == 0 {
        // Nobody has a weight: all of them are lost.
        lost = 1;
    }
    Some(Rule { at, targets, lost })
}

#[cfg(test)]
mod tests;
