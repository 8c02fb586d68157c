//! HTTPRoute: its rules and what they match.

use outrigger_model::matcher::{HeaderMatch, StringMatch};
use outrigger_model::route::{NoCluster, PathMatch, RouteMatch};

use super::filter::{self, Effects};
use super::flaw::Flaws;
use super::headers::{header_matches, query_matches};
use super::route::route;
use super::{backend, limits, path, session};
use crate::dialect::sessions;
use crate::dialect::shared::bounded;
use crate::finding::code;
use crate::intent::{HttpMatch, HttpRoute, Intent};
use crate::reader::{At, Fields, Reader, Table};

const RULE: Table = Table::new(
    "a rule",
    &["name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence"],
);
const MATCH: Table = Table::new("a match", &["path", "headers", "queryParams", "method"]);

const METHODS: [(&str, &str); 9] = [
    ("GET", "GET"),
    ("HEAD", "HEAD"),
    ("POST", "POST"),
    ("PUT", "PUT"),
    ("DELETE", "DELETE"),
    ("CONNECT", "CONNECT"),
    ("OPTIONS", "OPTIONS"),
    ("TRACE", "TRACE"),
    ("PATCH", "PATCH"),
];

pub(in crate::dialect) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    // The API's default is one match for everything.
    route(reader, spec, 1, rules)
}

fn rules(reader: &mut Reader<'_>, fields: &Fields<'_>, flaws: &mut Flaws) -> Vec<HttpRoute> {
    let items = reader.list(fields.get("rules"));
    if items.is_empty() {
        // The API's default: one rule for everything, which goes nowhere.
        let lost = HttpRoute { place: fields.at.place(), ..HttpRoute::default() };
        return vec![backend::sent(lost, NoCluster::InternalError)];
    }
    let rules: Vec<_> = items.iter().filter_map(|item| rule(reader, item, flaws)).collect();
    sessions::mixed_up(reader, &items, &rules);
    rules
}

fn rule(reader: &mut Reader<'_>, at: &At<'_>, flaws: &mut Flaws) -> Option<HttpRoute> {
    let fields = reader.fields(at, &RULE)?;
    bounded(reader, &fields, &[("matches", 64), ("filters", 16), ("backendRefs", 16)]);
    let blocks = reader.list(fields.get("matches"));
    let matches: Vec<HttpMatch> = blocks.iter().filter_map(|block| matching(reader, block)).collect();
    let prefix = match matches.as_slice() {
        [] if blocks.is_empty() => Some(""),
        [only] => path::prefix_of(&only.request.path),
        _ => None,
    };
    let mut effects = Effects::default();
    filter::read(reader, fields.get("filters"), prefix, flaws, &mut effects);
    let (timeout, retry) = limits::read(reader, &fields);
    let session = session::read(reader, &fields, &matches);
    let mut rule = HttpRoute { matches: matches.clone(), place: at.place(), ..HttpRoute::default() };
    backend::read(reader, fields.get("backendRefs"), prefix, flaws, &mut rule, &mut effects);
    if let Some(at) =
        fields.get("backendRefs").filter(|_| effects.redirect.is_some() && !rule.targets.is_empty())
    {
        reader.error(&at, format!("{} can not stand beside a RequestRedirect", at.path));
    }
    rule.route.name = reader.text(fields.get("name")).unwrap_or_default();
    let mut rule = filter::applied(rule, effects, timeout, retry);
    if let Some(at) = fields.get("sessionPersistence").filter(|_| rule.forward().is_none()) {
        reader.warn(code::NO_EFFECT, &at, format!("{} has no effect beside a redirect", at.path));
    }
    rule.route.session = session.filter(|_| rule.forward().is_some());
    Some(backend::sent(rule, NoCluster::InternalError))
}

fn matching(reader: &mut Reader<'_>, at: &At<'_>) -> Option<HttpMatch> {
    let fields = reader.fields(at, &MATCH)?;
    bounded(reader, &fields, &[("headers", 16), ("queryParams", 16)]);
    let path = path::matching(reader, fields.get("path"));
    let headers = header_matches(reader, fields.get("headers"));
    let query = query_matches(reader, fields.get("queryParams"));
    let method = match fields.get("method") {
        Some(at) => Some(reader.choice(Some(at), &METHODS)?),
        None => None,
    };
    // A tunnel has no path that could match.
    let path = match (path?, method) {
        (path, Some("CONNECT")) if path == PathMatch::default() => PathMatch::Connect,
        (path, _) => path,
    };
    let method = method.map(|method| HeaderMatch {
        name: ":method".to_owned(),
        value: StringMatch::exact(method),
        invert: false,
    });
    let headers = method.into_iter().chain(headers).collect();
    let request = RouteMatch { path, headers, query, ..RouteMatch::default() };
    Some(HttpMatch { request, place: at.place(), ..HttpMatch::default() })
}
