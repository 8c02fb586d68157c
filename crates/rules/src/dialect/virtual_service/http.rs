//! HTTP routes: their matches, and which of the three actions they take.

use outrigger_model::matcher::{Pattern, StringMatch};
use outrigger_model::route::{Forward, Route, RouteAction};

use super::effects::{direct_response, fault, redirect, retries, rewrite};
use super::{ROUTE, Rule, block_in_mesh, keep, mirror, targets};
use crate::dialect::cors;
use crate::dialect::shared::{
    RequestMatch, Spelling, header_edits, header_matches, one_authority, query_matches, string_match,
};
use crate::finding::code;
use crate::intent::{Delegate, HttpMatch, HttpRoute, Said};
use crate::reader::{At, Fields, Reader, Table};

const HTTP: Table = Table::new(
    "an HTTP route",
    &[
        "name",
        "match",
        "route",
        "redirect",
        "rewrite",
        "directResponse",
        "timeout",
        "retries",
        "fault",
        "headers",
        "delegate",
        "mirror",
        "mirrors",
        "mirrorPercentage",
        "mirrorPercent",
        "mirror_percent",
        "corsPolicy",
    ],
);
const DELEGATE: Table = Table::new("a delegate", &["name", "namespace"]);
const MATCH: Table = Table::new(
    "an HTTP match",
    &[
        "name",
        "uri",
        "scheme",
        "method",
        "authority",
        "headers",
        "withoutHeaders",
        "queryParams",
        "ignoreUriCase",
        "port",
        "sourceLabels",
        "sourceNamespace",
        "gateways",
        "statPrefix",
    ],
);

pub(super) fn route(reader: &mut Reader<'_>, at: &At<'_>, rule: &Rule<'_>) -> Option<HttpRoute> {
    let fields = reader.fields(at, &HTTP)?;
    let blocks = reader.list(fields.get("match"));
    let written = blocks.len();
    let matches: Vec<HttpMatch> = blocks.iter().filter_map(|block| http_match(reader, block, rule)).collect();
    let header_edits = header_edits(reader, fields.get("headers"));
    let forward = Forward {
        timeout: reader.duration(fields.get("timeout")).filter(|timeout| !timeout.is_zero()),
        retry: Some(retries(reader, fields.get("retries"))),
        rewrite: fields.get("rewrite").and_then(|at| rewrite(reader, &at)).unwrap_or_default(),
        ..Forward::default()
    };
    let (name, fault) = (reader.text(fields.get("name")), fault(reader, fields.get("fault")));
    let cors = cors::read(reader, fields.get("corsPolicy"), Spelling::Istio);
    let mirrors = mirror::read(reader, at, &fields);
    let mut route = match fields.get("delegate") {
        Some(to) => delegated(reader, at, &to, &fields, forward, rule.is_delegate)?,
        None => action(reader, at, &fields, forward)?,
    };
    let retries = fields.get("retries");
    let previous_hosts = retries.and_then(|at| at.node.child("retryIgnorePreviousHosts")).is_some();
    route.said = Said { timeout: fields.has("timeout"), retries: fields.has("retries"), previous_hosts };
    (route.route.cors, route.mirrors) = (cors, mirrors);
    route.route.name = name.unwrap_or_default();
    route.route.fault = fault;
    (route.route.request_headers, route.route.response_headers) = header_edits;
    (route.matches, route.place) = (matches, at.place());
    one_authority(reader, fields.get("headers"), &route);
    // All of its blocks are for gateways: here it matches nothing.
    (written == 0 || !route.matches.is_empty()).then_some(route)
}

/// What it does with a request; `forward` is for one that is sent on.
fn action(reader: &mut Reader<'_>, at: &At<'_>, fields: &Fields<'_>, forward: Forward) -> Option<HttpRoute> {
    let given: Vec<&'static str> =
        ["route", "redirect", "directResponse"].into_iter().filter(|name| fields.has(name)).collect();
    match given.as_slice() {
        ["route"] => {
            let targets = targets(reader, fields.get("route"), &ROUTE);
            let answer = answer(RouteAction::Forward(forward));
            (!targets.is_empty()).then_some(HttpRoute { targets, ..answer })
        }
        ["redirect"] => {
            for refused in ["rewrite", "fault"] {
                if let Some(at) = fields.get(refused) {
                    reader.error(&at, format!("{} can not stand beside a redirect", at.path));
                }
            }
            useless(reader, fields, &["timeout", "retries", "mirror", "mirrors"], "a redirect");
            let (redirect, to_request_port) = redirect(reader, &fields.get("redirect")?)?;
            Some(HttpRoute { to_request_port, ..answer(RouteAction::Redirect(redirect)) })
        }
        ["directResponse"] => {
            let unsent = ["timeout", "retries", "rewrite", "mirror", "mirrors"];
            useless(reader, fields, &unsent, "a direct response");
            direct_response(reader, &fields.get("directResponse")?).map(answer)
        }
        [] => {
            reader.error(at, format!("{} needs one of route, redirect or directResponse", at.path));
            None
        }
        several => {
            reader.error(
                at,
                format!("{} has {}, but a route takes exactly one of them", at.path, several.join(" and ")),
            );
            None
        }
    }
}

/// What is about requests that are sent on says nothing of an answer of our own.
fn useless(reader: &mut Reader<'_>, fields: &Fields<'_>, names: &[&'static str], beside: &str) {
    for at in names.iter().filter_map(|name| fields.get(name)) {
        reader.warn(code::NO_EFFECT, &at, format!("{} has no effect beside {beside}", at.path));
    }
}

/// A route in whose place another object's stand.
fn delegated(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    to: &At<'_>,
    fields: &Fields<'_>,
    forward: Forward,
    is_delegate: bool,
) -> Option<HttpRoute> {
    if is_delegate {
        let message =
            format!("{}: what others delegate to cannot delegate; give the rule hosts, or routes", to.path);
        reader.error(to, message);
    }
    for own in ["route", "redirect", "directResponse"] {
        if fields.has(own) {
            let message =
                format!("{} has delegate and {own}, but a route takes exactly one of them", at.path);
            reader.error(at, message);
        }
    }
    let of = reader.fields(to, &DELEGATE)?;
    if !of.has("name") {
        reader.missing(&of, "name");
    }
    let namespace = reader.text(of.get("namespace")).filter(|namespace| !namespace.is_empty());
    let delegate = Delegate {
        namespace: namespace.unwrap_or_else(|| reader.origin.namespace.clone()),
        name: reader.text(of.get("name"))?,
        place: to.place(),
    };
    Some(HttpRoute { delegate: Some(delegate), ..answer(RouteAction::Forward(forward)) })
}

fn answer(action: RouteAction) -> HttpRoute {
    HttpRoute { route: Route { action, ..Route::default() }, ..HttpRoute::default() }
}

fn http_match(reader: &mut Reader<'_>, at: &At<'_>, rule: &Rule<'_>) -> Option<HttpMatch> {
    let fields = reader.fields(at, &MATCH)?;
    let mut plain = |name| string_match(reader, fields.get(name), Spelling::Istio, false);
    let (uri, scheme, method, authority) =
        (plain("uri"), plain("scheme"), plain("method"), plain("authority"));
    let mut headers = header_matches(reader, fields.get("headers"), Spelling::Istio, false);
    headers.extend(header_matches(reader, fields.get("withoutHeaders"), Spelling::Istio, true));
    let ignore_uri_case = reader.boolean(fields.get("ignoreUriCase")).unwrap_or(false);
    let is_pattern = matches!(&uri, Some(StringMatch { pattern: Pattern::Regex(_), .. }));
    if let Some(at) = fields.get("ignoreUriCase").filter(|_| ignore_uri_case && is_pattern) {
        let message = format!("{} has no effect on a regex: start the pattern with (?i)", at.path);
        reader.warn(code::NO_EFFECT, &at, message);
    }
    let query = query_matches(reader, fields.get("queryParams"), Spelling::Istio);
    let request = RequestMatch {
        uri,
        ignore_case: ignore_uri_case,
        scheme,
        method,
        authority,
        headers,
        query,
        ..RequestMatch::default()
    };
    let read = HttpMatch {
        name: reader.text(fields.get("name")),
        request: request.build(),
        port: reader.port(fields.get("port")),
        source_labels: reader.labels(fields.get("sourceLabels")),
        source_namespace: reader.text(fields.get("sourceNamespace")),
        grpc: None,
        place: at.place(),
    };
    reader.not_yet(&fields, &["statPrefix"], "no statistics of their own are kept for a match");
    (block_in_mesh(reader, fields.get("gateways"), rule) && keep(reader, at, fields.has_later()))
        .then_some(read)
}
