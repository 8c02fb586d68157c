//! Who gets copies of a route's requests: `mirrors`, or the older `mirror` with a percentage beside it.

use outrigger_model::route::Mirror;

use super::destination_of;
use crate::finding::code;
use crate::intent::MirrorTarget;
use crate::reader::{At, Fields, Reader, Table};

const MIRROR: Table = Table::new("a mirror", &["destination", "percentage"]);
const PERCENTAGE: Table = Table::new("a percentage", &["value"]);
/// Protobuf's name and the three that were in use before it.
const SHARES: [&str; 3] = ["mirrorPercentage", "mirrorPercent", "mirror_percent"];

pub(super) fn read(reader: &mut Reader<'_>, route: &At<'_>, fields: &Fields<'_>) -> Vec<MirrorTarget> {
    let mut mirrors = Vec::new();
    let shares: Vec<&'static str> = SHARES.into_iter().filter(|name| fields.has(name)).collect();
    if fields.has("mirrors") && (fields.has("mirror") || !shares.is_empty()) {
        let message =
            format!("{} has mirrors beside mirror or its percentage: only one of them can hold", route.path);
        reader.error(route, message);
    }
    for item in reader.list(fields.get("mirrors")) {
        let Some(fields) = reader.fields(&item, &MIRROR) else { continue };
        let percentage = percentage(reader, fields.get("percentage"));
        match fields.get("destination") {
            Some(destination) => mirrors.extend(mirror(reader, &destination, percentage)),
            None => reader.missing(&fields, "destination"),
        }
    }
    let share = match shares.first() {
        Some(name @ &"mirrorPercentage") => percentage(reader, fields.get(name)),
        Some(name) => reader.percent(fields.get(name)).unwrap_or(100.0),
        None => 100.0,
    };
    match fields.get("mirror") {
        Some(destination) => mirrors.extend(mirror(reader, &destination, share)),
        None => {
            if let Some(at) =
                shares.first().and_then(|name| fields.get(name)).filter(|_| !fields.has("mirrors"))
            {
                reader.warn(code::NO_EFFECT, &at, format!("{} has no effect without mirror", at.path));
            }
        }
    }
    mirrors
}

fn percentage(reader: &mut Reader<'_>, at: Option<At<'_>>) -> f64 {
    let Some(fields) = at.and_then(|at| reader.fields(&at, &PERCENTAGE)) else { return 100.0 };
    reader.percent(fields.get("value")).unwrap_or(0.0)
}

fn mirror(reader: &mut Reader<'_>, at: &At<'_>, percentage: f64) -> Option<MirrorTarget> {
    let (target, place) = destination_of(reader, at)?;
    if percentage == 0.0 {
        let message = format!("{} gets 0 % of the requests, so it has no effect", at.path);
        reader.warn(code::NO_EFFECT, at, message);
        return None;
    }
    Some(MirrorTarget { target, mirror: Mirror { percentage, ..Mirror::default() }, place })
}
