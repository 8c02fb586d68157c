//! Routes of a native page.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_model::route::{
    Fault, FaultAbort, FaultDelay, FaultStatus, Forward, HedgePolicy, Mirror, RetryPolicy, Route,
    RouteAction, Session, StreamLimits, WeightedCluster,
};

use super::actions::{self, Answer};
use super::limits::Limits;
use super::matches::request;
use super::{hedge, retry, session, streams, subset};
use crate::dialect::cors;
use crate::dialect::destination_rule::subset_name;
use crate::dialect::shared::{Spelling, header_edits, one_authority, string_match};
use crate::dialect::virtual_service::grpc_status;
use crate::finding::{code, quote};
use crate::intent::{
    Host, HttpMatch, HttpRoute, MirrorTarget, Origin, Place, Said, SubsetIntent, Target, TrafficPolicy,
    WeightedTarget,
};
use crate::reader::{At, Fields, Reader, Table};
use crate::yaml::Value;

pub(super) const ROUTE: Table = Table::new(
    "a route",
    &[
        "name",
        "match",
        "to",
        "redirect",
        "directResponse",
        "rewrite",
        "headers",
        "timeout",
        "streams",
        "retry",
        "hedge",
        "session",
        "fault",
        "cors",
        "mirror",
        "rateLimit",
    ],
);
const MATCH: Table = Table::new(
    "a match",
    &[
        "path",
        "ignoreCase",
        "method",
        "scheme",
        "authority",
        "headers",
        "withoutHeaders",
        "query",
        "cookies",
        "port",
        "sourceLabels",
        "sourceNamespace",
    ],
);
pub(super) const TO: Table =
    Table::new("a target", &["service", "subset", "version", "port", "weight", "headers"]);
const MIRROR: Table = Table::new("a mirror", &["service", "subset", "version", "port", "percent"]);
pub(super) const FAULT: Table = Table::new("a fault", &["delay", "abort"]);
pub(super) const DELAY: Table = Table::new("a fault's delay", &["duration", "percent"]);
pub(super) const ABORT: Table = Table::new("a fault's abort", &["status", "grpcStatus", "percent"]);

/// What the page says for every route.
#[derive(Clone)]
pub(super) struct Defaults {
    pub(super) timeout: Option<Duration>,
    pub(super) streams: Option<StreamLimits>,
    /// And whether it says which endpoints a retry goes to.
    pub(super) retry: (RetryPolicy, bool),
    pub(super) hedge: Option<HedgePolicy>,
    pub(super) session: Option<Session>,
}

/// What of the page its routes depend on, and what they add to it.
pub(super) struct Page {
    pub(super) host: Option<Host>,
    pub(super) defaults: Defaults,
    pub(super) subsets: Vec<SubsetIntent>,
    pub(super) limits: Limits,
}

impl Page {
    /// Its service and its session.
    fn own(&self) -> (Option<&Host>, Option<&Session>) {
        (self.host.as_ref(), self.defaults.session.as_ref())
    }
}

pub(super) fn route(reader: &mut Reader<'_>, at: &At<'_>, page: &mut Page) -> Option<HttpRoute> {
    let fields = reader.fields(at, &ROUTE)?;
    let match_at = fields.get("match");
    let blocks = match &match_at {
        Some(block) if matches!(block.node.value, Value::Map(_)) => vec![block.clone()],
        _ => reader.list(match_at),
    };
    let matches = blocks.iter().filter_map(|block| http_match(reader, block)).collect();
    let mut route = match actions::answer(reader, at, &fields) {
        Answer::None => forwarded(reader, at, &fields, page),
        Answer::Wrong => None,
        Answer::Own(route) => Some(*route),
    };
    let name = reader.text(fields.get("name")).unwrap_or_default();
    let fault = fault(reader, fields.get("fault"));
    let cors = cors::read(reader, fields.get("cors"), Spelling::Native);
    let edits = header_edits(reader, fields.get("headers"));
    if let Some(route) = &mut route {
        (route.matches, route.place) = (matches, at.place());
        (route.route.name, route.route.fault, route.route.cors) = (name, fault, cors);
        (route.route.request_headers, route.route.response_headers) = edits;
        one_authority(reader, fields.get("headers"), route);
        page.limits.of_route(reader, &fields, route, page.host.as_ref());
    }
    route
}

/// A route that sends requests on.
fn forwarded(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    fields: &Fields<'_>,
    page: &mut Page,
) -> Option<HttpRoute> {
    let items = reader.list(fields.get("to"));
    let lone = items.len() == 1;
    let mut targets = Vec::new();
    for item in &items {
        targets.extend(target(reader, item, page.host.as_ref(), lone, (&TO, &mut page.subsets)));
    }
    if items.is_empty() {
        targets.extend(page.host.as_ref().map(|host| plain_target(host, at.place())));
    }
    let timeout = match fields.get("timeout") {
        None => page.defaults.timeout,
        own => reader.duration(own).filter(|timeout| !timeout.is_zero()),
    };
    let retry = own_retry(reader, fields).unwrap_or_else(|| page.defaults.retry.clone());
    let hedge = match fields.get("hedge") {
        None => page.defaults.hedge.clone(),
        own => hedge::read(reader, own),
    };
    let streams = match fields.get("streams") {
        None => page.defaults.streams,
        own => streams::read(reader, own),
    };
    let session = match fields.get("session") {
        None => page.defaults.session.clone(),
        own => session::read(reader, own),
    };
    let rewrite = fields.get("rewrite").and_then(|at| actions::rewrite(reader, &at)).unwrap_or_default();
    let mut route = to(targets, Defaults { timeout, streams, retry, hedge, session: None }, at.place());
    route.route.session =
        session.map(|session| Box::new(session::named(session, &route, page.own(), &reader.origin)));
    if let RouteAction::Forward(forward) = &mut route.route.action {
        forward.rewrite = rewrite;
    }
    route.mirrors = mirrors(reader, fields.get("mirror"), page.host.as_ref(), &mut page.subsets);
    (!route.targets.is_empty()).then_some(route)
}

/// A route for every request.
fn to(targets: Vec<WeightedTarget>, of: Defaults, place: Place) -> HttpRoute {
    let Defaults { timeout, streams, retry, hedge, session } = of;
    let (limits, hedge) = (streams.and_then(StreamLimits::if_any), hedge.map(Box::new));
    let (retry, previous_hosts) = retry;
    let forward = Forward { timeout, limits, retry: Some(retry), hedge, ..Forward::default() };
    let said = Said { previous_hosts, ..Said::default() };
    let route =
        Route { action: RouteAction::Forward(forward), session: session.map(Box::new), ..Route::default() };
    HttpRoute { route, targets, said, place, ..HttpRoute::default() }
}

fn own_retry(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<(RetryPolicy, bool)> {
    let at = fields.get("retry")?;
    if let Some(budget) = at.node.child("budget") {
        let budget = At { node: budget, path: format!("{}.budget", at.path) };
        reader.not_implemented(&budget, "the budget of the service's own retry holds; write it there");
    }
    retry::read(reader, Some(at))
}

/// The route of a page that has none: all requests to the service.
pub(super) fn everything(page: &Page, host: &Host, place: Place, of: &Origin) -> HttpRoute {
    let targets = vec![plain_target(host, place.clone())];
    let mut route = to(targets, page.defaults.clone(), place);
    let session = route.route.session.take();
    route.route.session = session.map(|session| Box::new(session::named(*session, &route, page.own(), of)));
    route
}

fn plain_target(host: &Host, place: Place) -> WeightedTarget {
    let target = Target { host: host.clone(), subset: None, port: None };
    WeightedTarget { target, share: WeightedCluster::share("", 1), place }
}

fn http_match(reader: &mut Reader<'_>, at: &At<'_>) -> Option<HttpMatch> {
    let fields = reader.fields(at, &MATCH)?;
    let mut request = request(reader, &fields);
    request.ignore_case = reader.boolean(fields.get("ignoreCase")).unwrap_or(false);
    if let Some(at) = fields.get("ignoreCase").filter(|_| request.ignore_case)
        && matches!(request.path, outrigger_model::route::PathMatch::Regex(_))
    {
        let message = format!("{} has no effect on a pattern: start it with (?i)", at.path);
        reader.warn(code::NO_EFFECT, &at, message);
    }
    if let Some(scheme) = string_match(reader, fields.get("scheme"), Spelling::Native, false) {
        request.headers.push(outrigger_model::matcher::HeaderMatch {
            name: ":scheme".to_owned(),
            value: scheme,
            invert: false,
        });
    }
    Some(HttpMatch {
        request,
        port: reader.port(fields.get("port")),
        source_labels: reader.labels(fields.get("sourceLabels")),
        source_namespace: reader.text(fields.get("sourceNamespace")),
        place: at.place(),
        ..HttpMatch::default()
    })
}

/// A target with the fields of the table; a version may add its subset to the page's.
pub(super) fn target(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    host: Option<&Host>,
    lone: bool,
    (table, subsets): (&'static Table, &mut Vec<SubsetIntent>),
) -> Option<WeightedTarget> {
    let fields = reader.fields(at, table)?;
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
    let edits = table.known.contains(&"headers").then(|| fields.get("headers")).flatten();
    let (request_headers, response_headers) = header_edits(reader, edits);
    let (target, place) = destination_of(reader, at, &fields, host, subsets)?;
    let share = WeightedCluster { request_headers, response_headers, ..WeightedCluster::share("", weight) };
    Some(WeightedTarget { target, share, place })
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
        if percentage == 0.0 {
            let message = format!("{} gets 0 % of the requests, so it has no effect", item.path);
            reader.warn(code::NO_EFFECT, item, message);
            continue;
        }
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
    subsets.push(subset(version.clone(), labels, TrafficPolicy::default(), at.place(), reader));
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
