//! `localityLbSetting` of a DestinationRule, and `loadBalancing.locality` of a native page: the same fields.

use crate::finding::quote;
use crate::intent::{Distribution, Nearness, PlacePattern};
use crate::reader::{At, Reader, Table};
use crate::schema;

const SETTING: Table =
    Table::new("a locality setting", &["distribute", "failover", "failoverPriority", "enabled"]);
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
    let schema = schema::object(&SETTING, &[], |name| match name {
        "distribute" => schema::list(from_to(&DISTRIBUTE, shares.clone()), "Shares instead of an order."),
        "failover" => schema::list(
            from_to(&FAILOVER, schema::text("The region that is next.")),
            "Regions that go before others.",
        ),
        "failoverPriority" => schema::list(
            schema::text(""),
            "Labels; who has more of them in common with the client is nearer.",
        ),
        "enabled" => schema::boolean("Whether nearness counts."),
        _ => serde_json::Value::Null,
    });
    schema::described(schema, "Which instances a client goes to first.")
}

/// Most entries of each list.
const MOST: usize = 64;

pub(super) fn read(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Nearness> {
    let fields = reader.fields(at, &SETTING)?;
    let enabled = reader.boolean(fields.get("enabled")).unwrap_or(true);
    for name in ["distribute", "failover", "failoverPriority"] {
        if let Some(list) = fields.get(name)
            && reader.list(Some(list.clone())).len() > MOST
        {
            reader.error(&list, format!("{} has more than {MOST} entries", list.path));
            return None;
        }
    }
    let mut nearness = Nearness::default();
    for item in reader.list(fields.get("distribute")) {
        nearness.distribute.extend(distribution(reader, &item));
    }
    for (i, one) in nearness.distribute.iter().enumerate() {
        if let Some(at) = fields.get("distribute")
            && nearness.distribute[..i].iter().any(|other| other.from.overlaps(&one.from))
        {
            reader.error(&at, format!("{}[{i}].from overlaps with one before it", at.path));
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

fn distribution(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Distribution> {
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
        let share = reader.number(Some(item.clone()), 0..=100);
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
