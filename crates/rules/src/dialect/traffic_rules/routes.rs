//! Routes of a native page.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_model::route::{
    Fault, FaultAbort, FaultDelay, FaultStatus, Forward, HedgePolicy, Mirror, RetryPolicy, Route,
    RouteAction, RouteMatch, WeightedCluster,
};

use super::{hedge, retry};
use crate::dialect::cors;
use crate::dialect::destination_rule::subset_name;
use crate::dialect::shared::{RequestMatch, Spelling, header_matches, query_matches, string_match};
use crate::dialect::virtual_service::grpc_status;
use crate::finding::quote;
use crate::intent::{
    Host, HttpMatch, HttpRoute, MirrorTarget, Place, SubsetIntent, Target, TrafficPolicy, WeightedTarget,
};
use crate::reader::{At, Fields, Reader, Table};
use crate::yaml::Value;

pub(super) const ROUTE: Table =
    Table::new("a route", &["name", "match", "to", "timeout", "retry", "hedge", "fault", "cors", "mirror"]);
const MATCH: Table = Table::new(
    "a match",
    &[
        "path",
        "method",
        "authority",
        "headers",
        "withoutHeaders",
        "query",
        "port",
        "sourceLabels",
        "sourceNamespace",
    ],
);
pub(super) const TO: Table = Table::new("a target", &["service", "subset", "version", "port", "weight"]);
const MIRROR: Table = Table::new("a mirror", &["service", "subset", "version", "port", "percent"]);
pub(super) const FAULT: Table = Table::new("a fault", &["delay", "abort"]);
pub(super) const DELAY: Table = Table::new("a fault's delay", &["duration", "percent"]);
pub(super) const ABORT: Table = Table::new("a fault's abort", &["status", "grpcStatus", "percent"]);

/// What the page says for every route.
pub(super) struct Defaults {
    pub(super) timeout: Option<Duration>,
    pub(super) retry: RetryPolicy,
    pub(super) hedge: Option<HedgePolicy>,
}

pub(super) fn route(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    host: Option<&Host>,
    defaults: &Defaults,
    subsets: &mut Vec<SubsetIntent>,
) -> Option<HttpRoute> {
    let fields = reader.fields(at, &ROUTE)?;
    let match_at = fields.get("match");
    let blocks = match &match_at {
        Some(block) if matches!(block.node.value, Value::Map(_)) => vec![block.clone()],
        _ => reader.list(match_at),
    };
    let matches = blocks.iter().filter_map(|block| http_match(reader, block)).collect();
    let items = reader.list(fields.get("to"));
    let lone = items.len() == 1;
    let mut targets = Vec::new();
    for item in &items {
        targets.extend(target(reader, item, host, lone, subsets));
    }
    if items.is_empty() {
        targets.extend(host.map(|host| plain_target(host, at.place())));
    }
    let timeout = match fields.get("timeout") {
        None => defaults.timeout,
        own => reader.duration(own).filter(|timeout| !timeout.is_zero()),
    };
    let retry = own_retry(reader, &fields).unwrap_or_else(|| defaults.retry.clone());
    let hedge = match fields.get("hedge") {
        None => defaults.hedge.clone(),
        own => hedge::read(reader, own),
    };
    let mut route = to(targets, Defaults { timeout, retry, hedge }, at.place());
    route.matches = matches;
    route.route.name = reader.text(fields.get("name")).unwrap_or_default();
    route.route.fault = fault(reader, fields.get("fault"));
    route.route.cors = cors::read(reader, fields.get("cors"), Spelling::Native);
    route.mirrors = mirrors(reader, fields.get("mirror"), host, subsets);
    (!route.targets.is_empty()).then_some(route)
}

/// A route for every request.
fn to(targets: Vec<WeightedTarget>, of: Defaults, place: Place) -> HttpRoute {
    let Defaults { timeout, retry, hedge } = of;
    let hedge = hedge.map(Box::new);
    let action = RouteAction::Forward(Forward { timeout, retry: Some(retry), hedge, ..Forward::default() });
    let route = Route { action, ..Route::default() };
    HttpRoute { route, targets, place, ..HttpRoute::default() }
}

fn own_retry(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<RetryPolicy> {
    let at = fields.get("retry")?;
    if let Some(budget) = at.node.child("budget") {
        let budget = At { node: budget, path: format!("{}.budget", at.path) };
        reader.not_implemented(&budget, "the budget of the service's own retry holds; write it there");
    }
    retry(reader, Some(at))
}

/// The route of a page that has none: all requests to the service.
pub(super) fn everything(host: &Host, defaults: Defaults, place: Place) -> HttpRoute {
    let targets = vec![plain_target(host, place.clone())];
    to(targets, defaults, place)
}

fn plain_target(host: &Host, place: Place) -> WeightedTarget {
    let target = Target { host: host.clone(), subset: None, port: None };
    WeightedTarget { target, share: WeightedCluster::share("", 1), place }
}

fn http_match(reader: &mut Reader<'_>, at: &At<'_>) -> Option<HttpMatch> {
    let fields = reader.fields(at, &MATCH)?;
    Some(HttpMatch {
        request: request(reader, &fields),
        port: reader.port(fields.get("port")),
        source_labels: reader.labels(fields.get("sourceLabels")),
        source_namespace: reader.text(fields.get("sourceNamespace")),
        place: at.place(),
        ..HttpMatch::default()
    })
}

/// What of a match is about the request itself.
pub(super) fn request(reader: &mut Reader<'_>, fields: &Fields<'_>) -> RouteMatch {
    let mut plain = |name| string_match(reader, fields.get(name), Spelling::Native, false);
    let (uri, method, authority) = (plain("path"), plain("method"), plain("authority"));
    let mut headers = header_matches(reader, fields.get("headers"), Spelling::Native, false);
    headers.extend(header_matches(reader, fields.get("withoutHeaders"), Spelling::Native, true));
    let query = query_matches(reader, fields.get("query"), Spelling::Native);
    RequestMatch { uri, method, authority, headers, query, ..RequestMatch::default() }.build()
}

fn target(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    host: Option<&Host>,
    lone: bool,
    subsets: &mut Vec<SubsetIntent>,
) -> Option<WeightedTarget> {
    let fields = reader.fields(at, &TO)?;
    let weight = match reader.number(fields.get("weight"), 0..=1_000_000) {
        Some(weight) => weight,
        None if lone => 1,
        None => {
            if !fields.has("weight") {
                reader.missing(&fields, "weight");
            }
            return None;
        }
    };
    let (target, place) = destination_of(reader, at, &fields, host, subsets)?;
    Some(WeightedTarget { target, share: WeightedCluster::share("", weight), place })
}

/// Who gets copies of the requests: one, or a list.
fn mirrors(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    host: Option<&Host>,
    subsets: &mut Vec<SubsetIntent>,
) -> Vec<MirrorTarget> {
    let items = match &at {
        Some(one) if matches!(one.node.value, Value::Map(_)) => vec![one.clone()],
        _ => reader.list(at),
    };
    let mut mirrors = Vec::new();
    for item in &items {
        let Some(fields) = reader.fields(item, &MIRROR) else { continue };
        let percentage = reader.percent(fields.get("percent")).unwrap_or(100.0);
        let Some((target, place)) = destination_of(reader, item, &fields, host, subsets) else { continue };
        mirrors.push(MirrorTarget { target, mirror: Mirror { percentage, ..Mirror::default() }, place });
    }
    mirrors
}

/// A service, this page's if none is named, or a part of it; and where the narrowest part was written.
fn destination_of(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    fields: &Fields<'_>,
    host: Option<&Host>,
    subsets: &mut Vec<SubsetIntent>,
) -> Option<(Target, Place)> {
    let other = fields.has("service");
    let to = if other { reader.one_host(fields.get("service")) } else { host.cloned() };
    let port = reader.port(fields.get("port"));
    let mut place = at.place();
    let subset = match (fields.get("subset"), fields.get("version")) {
        (Some(_), Some(_)) => {
            reader.error(at, format!("{} has subset and version, but only one of them can hold", at.path));
            None
        }
        (Some(subset), None) => {
            place = subset.place();
            Some(subset_name(reader, Some(subset))?)
        }
        (None, Some(version)) if other => {
            let message = format!(
                "{}: a version is one of this page's service; name a subset of the other service",
                version.path
            );
            reader.error(&version, message);
            None
        }
        (None, Some(version)) => {
            place = version.place();
            Some(version_subset(reader, &version, subsets)?)
        }
        (None, None) => None,
    };
    Some((Target { host: to?, subset, port }, place))
}

/// `version: v2` is the subset with the label `version: v2`, made when the page has none.
fn version_subset(reader: &mut Reader<'_>, at: &At<'_>, subsets: &mut Vec<SubsetIntent>) -> Option<String> {
    let version = subset_name(reader, Some(at.clone()))?;
    let labels = BTreeMap::from([("version".to_owned(), version.clone())]);
    if let Some(same) = subsets.iter().find(|subset| subset.labels == labels) {
        return Some(same.name.clone());
    }
    if subsets.iter().any(|subset| subset.name == version) {
        let message =
            format!("{}: the subset {} has other labels than version: {version}", at.path, quote(&version));
        reader.error(at, message);
        return None;
    }
    subsets.push(SubsetIntent {
        name: version.clone(),
        labels,
        policy: TrafficPolicy::default(),
        ports: BTreeMap::new(),
        place: at.place(),
        origin: reader.origin.clone(),
    });
    Some(version)
}

/// Natively a fault without `percent` hits every request.
fn fault(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<Fault> {
    let fields = at.and_then(|at| reader.fields(&at, &FAULT))?;
    let delay = fields.get("delay").and_then(|at| {
        let fields = reader.fields(&at, &DELAY)?;
        if !fields.has("duration") {
            reader.missing(&fields, "duration");
        }
        let percentage = reader.percent(fields.get("percent")).unwrap_or(100.0);
        Some(FaultDelay { duration: reader.positive(fields.get("duration"))?, percentage })
    });
    let abort = fields.get("abort").and_then(|at| {
        let fields = reader.fields(&at, &ABORT)?;
        let percentage = reader.percent(fields.get("percent")).unwrap_or(100.0);
        let status = match (fields.has("status"), fields.get("grpcStatus")) {
            (true, None) => FaultStatus::Http(reader.status(fields.get("status"))?),
            (false, Some(status)) => FaultStatus::Grpc(grpc_status(reader, &status)?),
            _ => {
                reader.error(&at, format!("{} needs exactly one of status and grpcStatus", at.path));
                return None;
            }
        };
        Some(FaultAbort { status, percentage })
    });
    Fault { delay, abort }.if_any()
}
