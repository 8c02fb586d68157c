//! `localityLbSetting` and `zoneAwareLbSetting` of a DestinationRule, and `loadBalancing.locality` of a native page, which has all of
//! their fields and more.

use crate::finding::code;
use crate::finding::quote;
use crate::intent::{Distribution, Nearness, PlacePattern, ZoneAware};
use crate::reader::{At, Fields, Reader, Table};
use crate::schema;

const SETTING: Table =
    Table::new("a locality setting", &["distribute", "failover", "failoverPriority", "enabled"]);
const ZONE_SETTING: Table =
    Table::new("a zone-aware setting", &["enabled", "minClusterSize", "failover", "failoverPriority"]);
const NATIVE: Table = Table::new(
    "a locality setting",
    &["distribute", "failover", "failoverPriority", "costs", "zoneAware", "capacity", "enabled"],
);
const ZONE_AWARE: Table = Table::new("zone-aware routing", &["minEndpoints", "percent"]);
const DISTRIBUTE: Table = Table::new("a distribution", &["from", "to"]);
const FAILOVER: Table = Table::new("a failover", &["from", "to"]);

/// The fields as a schema.
pub(super) fn schema() -> serde_json::Value {
    let from_to = |table, to: serde_json::Value| {
        schema::object(table, &["from", "to"], |name| match name {
            "from" => schema::text("Where clients are."),
            _ => to.clone(),
        })
    };
    let shares = schema::mapping(schema::number(""), "Shares in percent, by place.");
    let schema = schema::object(&NATIVE, &[], |name| match name {
        "distribute" => schema::list(from_to(&DISTRIBUTE, shares.clone()), "Shares instead of an order."),
        "failover" => schema::list(
            from_to(&FAILOVER, schema::text("The region that is next.")),
            "Regions that go before others.",
        ),
        "failoverPriority" => schema::list(
            schema::text(""),
            "Labels; who has more of them in common with the client is nearer.",
        ),
        "costs" => schema::mapping(
            schema::number(""),
            "What it costs to go to a place; the cheapest come first, and who has no cost last.",
        ),
        "zoneAware" => schema::described(
            schema::object(&ZONE_AWARE, &[], |name| match name {
                "minEndpoints" => schema::number("With fewer in the region all are alike; 6 without it."),
                "percent" => schema::number("Of a hundred requests so many; the others go to all."),
                _ => serde_json::Value::Null,
            }),
            "The own zone takes what its part of the service can bear.",
        ),
        "capacity" => schema::number(
            "So many requests under way for each instance fill who is nearest; what comes then goes on.",
        ),
        "enabled" => schema::boolean("Whether nearness counts."),
        _ => serde_json::Value::Null,
    });
    schema::described(schema, "Which instances a client goes to first.")
}

/// Labels that stand for a client's place: with them the order of places is said, and a failover would say another.
const OF_PLACE: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// Most entries of each list.
const MOST: usize = 64;

/// `localityLbSetting`, or what a native page has in its place.
pub(super) fn read(reader: &mut Reader<'_>, at: &At<'_>, native: bool) -> Option<Nearness> {
    let fields = reader.fields(at, if native { &NATIVE } else { &SETTING })?;
    // In Istio a place that is to get nothing is left out.
    let mut nearness = order(reader, at, &fields, Some(if native { 0 } else { 1 }))?;
    if native {
        more(reader, at, &fields, &mut nearness);
    }
    Some(nearness)
}

/// `zoneAwareLbSetting`.
pub(super) fn zone_aware(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Nearness> {
    let fields = reader.fields(at, &ZONE_SETTING)?;
    let mut nearness = order(reader, at, &fields, None)?;
    let default = ZoneAware::default();
    let min_endpoints =
        reader.number(fields.get("minClusterSize"), 0..=u32::MAX).unwrap_or(default.min_endpoints);
    nearness.zone_aware = Some(ZoneAware { min_endpoints, ..default });
    Some(nearness)
}

/// What only a native page has.
fn more(reader: &mut Reader<'_>, at: &At<'_>, fields: &Fields<'_>, nearness: &mut Nearness) {
    let entries = reader.entries(fields.get("costs"));
    if let Some(at) = fields.get("costs").filter(|_| entries.len() > MOST) {
        reader.error(&at, format!("{} has more than {MOST} entries", at.path));
    }
    for (key, item) in entries {
        let cost = reader.number(Some(item.clone()), 0..=1_000_000);
        nearness.costs.extend(pattern(reader, &item, &key.text).zip(cost));
    }
    if let Some(fields) = fields.get("zoneAware").and_then(|at| reader.fields(&at, &ZONE_AWARE)) {
        let default = ZoneAware::default();
        let min = reader.number(fields.get("minEndpoints"), 0..=u32::MAX);
        let percent = reader.number(fields.get("percent"), 1..=100);
        nearness.zone_aware = Some(ZoneAware {
            min_endpoints: min.unwrap_or(default.min_endpoints),
            percent: percent.unwrap_or(default.percent),
            ..default
        });
    }
    nearness.capacity = reader.number(fields.get("capacity"), 1..=1_000_000);
    let two = !nearness.failover.is_empty() && !nearness.costs.is_empty();
    if let Some(at) = fields.get("failover").filter(|_| two) {
        let message = format!("{} cannot hold together with costs: these say which region is next", at.path);
        reader.error(&at, message);
    }
    let orders = [
        !nearness.distribute.is_empty(),
        !nearness.priority.is_empty(),
        !nearness.costs.is_empty(),
        nearness.zone_aware.is_some(),
    ];
    if orders.into_iter().filter(|said| *said).count() > 1 {
        let message =
            format!("{}: only one of distribute, failoverPriority, costs and zoneAware can hold", at.path);
        reader.error(at, message);
    }
    if let Some(at) = fields.get("capacity").filter(|_| !nearness.distribute.is_empty()) {
        let message = format!("{} has no effect together with distribute: there is no next place", at.path);
        reader.warn(code::NO_EFFECT, &at, message);
    }
}

/// What all settings have alike: in which order places come. `least`: the setting has shares, too, of at least so much.
fn order(reader: &mut Reader<'_>, at: &At<'_>, fields: &Fields<'_>, least: Option<u32>) -> Option<Nearness> {
    let enabled = reader.boolean(fields.get("enabled")).unwrap_or(true);
    let shares = least.and_then(|_| fields.get("distribute"));
    let lists = [shares.clone(), fields.get("failover"), fields.get("failoverPriority")];
    for list in lists.into_iter().flatten() {
        if reader.list(Some(list.clone())).len() > MOST {
            reader.error(&list, format!("{} has more than {MOST} entries", list.path));
            return None;
        }
    }
    let mut nearness = Nearness::default();
    for item in reader.list(shares.clone()) {
        nearness.distribute.extend(distribution(reader, &item, least.unwrap_or(0)));
    }
    for (i, one) in nearness.distribute.iter().enumerate() {
        if let Some(at) = &shares
            && nearness.distribute[..i].iter().any(|other| other.from.overlaps(&one.from))
        {
            reader.error(at, format!("{}[{i}].from overlaps with one before it", at.path));
        }
    }
    for item in reader.list(fields.get("failover")) {
        nearness.failover.extend(failover(reader, &item));
    }
    for item in reader.list(fields.get("failoverPriority")) {
        let Some(text) = reader.text(Some(item.clone())) else { continue };
        let (key, value) =
            text.split_once('=').map_or((text.as_str(), None), |(key, value)| (key, Some(value)));
        if key.is_empty() {
            reader.error(&item, format!("{} must be a label, or LABEL=VALUE", item.path));
        }
        if value.is_none() && OF_PLACE.contains(&key) && !nearness.failover.is_empty() {
            let message = format!(
                "{} names {key}, and failover says which region is next: leave out one of them, or put failoverPriority's \
                 other labels beside failover, which goes by places then",
                item.path
            );
            reader.error(&item, message);
        }
        nearness.priority.push((key.to_owned(), value.map(str::to_owned)));
    }
    let ordered = !nearness.failover.is_empty() || !nearness.priority.is_empty();
    if ordered && !nearness.distribute.is_empty() {
        let message =
            format!("{} has shares and an order: only distribute, or the others, can hold", at.path);
        reader.error(at, message);
    }
    nearness.off = !enabled;
    Some(nearness)
}

fn pattern(reader: &mut Reader<'_>, at: &At<'_>, text: &str) -> Option<PlacePattern> {
    let found = PlacePattern::parse(text);
    if found.is_none() {
        let message = format!(
            "{} must be REGION/ZONE/SUBZONE or a beginning of it, or end in *, not {}",
            at.path,
            quote(text)
        );
        reader.error(at, message);
    }
    found
}

fn distribution(reader: &mut Reader<'_>, at: &At<'_>, least: u32) -> Option<Distribution> {
    let fields = reader.fields(at, &DISTRIBUTE)?;
    for needed in ["from", "to"] {
        if !fields.has(needed) {
            reader.missing(&fields, needed);
        }
    }
    let from_at = fields.get("from")?;
    let text = reader.text(Some(from_at.clone()))?;
    let from = pattern(reader, &from_at, &text);
    let to_at = fields.get("to")?;
    let entries = reader.entries(Some(to_at.clone()));
    let count = entries.len();
    let mut to = Vec::new();
    for (key, item) in entries {
        let share = reader.number(Some(item.clone()), least..=100);
        to.extend(pattern(reader, &item, &key.text).zip(share));
    }
    let sum: u32 = to.iter().map(|(_, share)| share).sum();
    if sum != 100 && to.len() == count {
        reader.error(&to_at, format!("{}: the shares sum to {sum}, not to 100", to_at.path));
    }
    Some(Distribution { from: from?, to })
}

fn failover(reader: &mut Reader<'_>, at: &At<'_>) -> Option<(String, String)> {
    let fields = reader.fields(at, &FAILOVER)?;
    let mut region = |name| {
        let Some(at) = fields.get(name) else {
            reader.missing(&fields, name);
            return None;
        };
        let text = reader.text(Some(at.clone()))?;
        if text.is_empty() || text.contains(['/', '*']) {
            reader.error(
                &at,
                format!("{} must be a region, without zones and *, not {}", at.path, quote(&text)),
            );
            return None;
        }
        Some(text)
    };
    let (from, to) = (region("from"), region("to"));
    let (from, to) = (from?, to?);
    if from == to {
        reader.error(at, format!("{} leads from {} to itself", at.path, quote(&from)));
    }
    Some((from, to))
}
