//! Where requests go: `backendRefs` with their weights and filters. What cannot be sent to keeps its share, which is lost.

use outrigger_model::route::{Forward, NoCluster, RouteAction, WeightedCluster};

use super::filter::{self, Effects};
use super::flaw::{Flaws, UNSUPPORTED, flaw};
use super::reference::target;
use crate::dialect::shared::bounded;
use crate::intent::{HttpRoute, WeightedTarget};
use crate::reader::{At, Reader, Table};

const BACKEND: Table =
    Table::new("a backend reference", &["group", "kind", "namespace", "name", "port", "weight", "filters"]);

/// The largest weight that the API takes.
pub(super) const HEAVIEST: u32 = 1_000_000;

type Filters = fn(&mut Reader<'_>, Option<At<'_>>, Option<&str>, &mut Flaws, &mut Effects);

/// Backends of a rule; what only a lone backend can have of filters becomes the rule's.
pub(super) fn read(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    prefix: Option<&str>,
    flaws: &mut Flaws,
    rule: &mut HttpRoute,
    effects: &mut Effects,
) {
    backends(reader, at, (filter::read, prefix), flaws, rule, effects);
}

pub(super) fn read_grpc(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    flaws: &mut Flaws,
    rule: &mut HttpRoute,
    effects: &mut Effects,
) {
    let filters: Filters = |reader, at, _, flaws, effects| filter::read_grpc(reader, at, flaws, effects);
    backends(reader, at, (filters, None), flaws, rule, effects);
}

fn backends(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    (filters, prefix): (Filters, Option<&str>),
    flaws: &mut Flaws,
    rule: &mut HttpRoute,
    effects: &mut Effects,
) {
    let items = reader.list(at);
    let lone = items.len() == 1;
    for item in items {
        let Some(fields) = reader.fields(&item, &BACKEND) else { continue };
        bounded(reader, &fields, &[("filters", 16)]);
        let weight = reader.number(fields.get("weight"), 0..=HEAVIEST).unwrap_or(1);
        let mut own = Effects::default();
        filters(reader, fields.get("filters"), prefix, flaws, &mut own);
        let Some(target) = target(reader, &item, &fields, flaws, "its share of them is lost") else {
            rule.lost += weight;
            continue;
        };
        let mut share = WeightedCluster { weight, ..WeightedCluster::default() };
        std::mem::swap(&mut share.request_headers, &mut own.request);
        std::mem::swap(&mut share.response_headers, &mut own.response);
        if !lone {
            share.authority = own.rewrite.authority.take();
        }
        let (names, is_refused) = (own.names().join(", "), own.refused);
        let fits = (names.is_empty() && !is_refused) || (lone && effects.absorb(own));
        if !fits {
            // One that nobody runs has said so.
            if !names.is_empty() {
                let why = match lone {
                    true => "the rule has a filter of this type already",
                    false => "one of several backends can have header modifiers and a new hostname only",
                };
                let message = format!(
                    "{}.filters: {names} is not implemented here, as {why}: its share of the requests is answered with an error",
                    item.path
                );
                flaw(reader, flaws, &item, UNSUPPORTED, message);
            }
            rule.lost += weight;
            continue;
        }
        rule.targets.push(WeightedTarget { target, share, place: item.place() });
    }
    if effects.refused {
        rule.targets.clear();
        rule.lost = 1;
    }
}

/// A rule that forwards always has somewhere to go, if only nowhere.
pub(super) fn sent(mut rule: HttpRoute, no_cluster: NoCluster) -> HttpRoute {
    if let RouteAction::Forward(forward) = &mut rule.route.action {
        *forward = Forward { no_cluster, ..std::mem::take(forward) };
        let total: u64 = rule.targets.iter().map(|target| u64::from(target.share.weight)).sum();
        if total + u64::from(rule.lost) == 0 {
            rule.lost = 1;
        }
    }
    rule
}
