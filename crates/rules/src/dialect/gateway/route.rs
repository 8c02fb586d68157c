//! What routes of all kinds have.

use super::flaw::Flaws;
use super::parent;
use crate::dialect::shared::bounded;
use crate::intent::{AttachedIntent, HttpRoute, Intent};
use crate::reader::{At, Fields, Reader, Table};

/// Of all kinds of routes.
const SPEC: Table =
    Table::new("a route", &["parentRefs", "hostnames", "rules"]).later(&["useDefaultGateways"]);

/// A route of any kind; `rules` reads its rules.
pub(super) fn route(
    reader: &mut Reader<'_>,
    spec: &At<'_>,
    rules: fn(&mut Reader<'_>, &Fields<'_>, &mut Flaws) -> Vec<HttpRoute>,
) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    // These and those of the rules are the API server's.
    bounded(reader, &fields, &[("parentRefs", 32), ("hostnames", 16), ("rules", 16)]);
    let parents = parent::parents(reader, &fields);
    parent::hostnames(reader, fields.get("hostnames"), &parents);
    let mut flaws = Flaws::new();
    let http = rules(reader, &fields, &mut flaws);
    let mut hosts: Vec<_> = parents.iter().filter_map(|parent| parent.host.clone()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let (origin, created) = (reader.origin.clone(), reader.created.clone());
    vec![Intent::Attached(AttachedIntent { origin, created, parents, hosts, http, flaws })]
}
