//! What routes of all kinds have, and those of requests.

use super::flaw::Flaws;
use super::parent;
use crate::dialect::shared::bounded;
use crate::intent::{AttachedIntent, HttpRoute, Intent, Parent};
use crate::reader::{At, Fields, Reader, Table};
use crate::yaml::{Node, Value};

/// Of routes of requests.
const SPEC: Table =
    Table::new("a route", &["parentRefs", "hostnames", "rules"]).later(&["useDefaultGateways"]);

/// Of all rules together, as the API server counts them: beside 64 of one rule and 16 rules.
const MOST_MATCHES: usize = 128;

/// A route of requests; `rules` reads its rules, of which one that says no `matches` has `unsaid` of them.
pub(super) fn route(
    reader: &mut Reader<'_>,
    spec: &At<'_>,
    unsaid: usize,
    rules: fn(&mut Reader<'_>, &Fields<'_>, &mut Flaws) -> Vec<HttpRoute>,
) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    // These and those of the rules are the API server's.
    bounded(reader, &fields, &[("parentRefs", 32), ("hostnames", 16), ("rules", 16)]);
    matches(reader, &fields, unsaid);
    let parents = parent::parents(reader, &fields);
    parent::hostnames(reader, fields.get("hostnames"), &parents);
    let mut flaws = Flaws::new();
    let http = rules(reader, &fields, &mut flaws);
    vec![Intent::Attached(AttachedIntent { http, ..of(reader, parents, flaws) })]
}

/// A route that says nothing yet, at the parents that its spec names.
pub(super) fn attached(reader: &mut Reader<'_>, spec: &Fields<'_>, flaws: Flaws) -> AttachedIntent {
    let parents = parent::parents(reader, spec);
    of(reader, parents, flaws)
}

fn of(reader: &Reader<'_>, parents: Vec<Parent>, flaws: Flaws) -> AttachedIntent {
    let mut hosts: Vec<_> = parents.iter().filter_map(|parent| parent.host.clone()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let (origin, created) = (reader.origin.clone(), reader.created.clone());
    let (http, tls, tcp) = Default::default();
    AttachedIntent { origin, created, parents, hosts, http, tls, tcp, flaws }
}

fn matches(reader: &mut Reader<'_>, fields: &Fields<'_>, unsaid: usize) {
    let Some(at) = fields.get("rules") else { return };
    let Value::List(rules) = &at.node.value else { return };
    let of = |rule: &Node| match rule.child("matches").map(|matches| &matches.value) {
        Some(Value::List(matches)) => matches.len(),
        _ => unsaid,
    };
    let total: usize = rules.iter().map(of).sum();
    if total > MOST_MATCHES {
        let message = format!(
            "{} has {total} matches over all of its rules, and may have {MOST_MATCHES}: write several routes",
            reader.origin
        );
        reader.error(&at, message);
    }
}
