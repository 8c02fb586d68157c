//! GRPCRoute: its rules, and methods as paths.

use outrigger_model::route::{NoCluster, PathMatch, RetryPolicy, RouteMatch};

use super::filter::{self, Effects};
use super::flaw::Flaws;
use super::headers::header_matches;
use super::route::route;
use super::{backend, session};
use crate::dialect::sessions;
use crate::dialect::shared::bounded;
use crate::finding::quote;
use crate::intent::{HttpMatch, HttpRoute, Intent};
use crate::reader::{At, Reader, Table};

const RULE: Table =
    Table::new("a rule", &["name", "matches", "filters", "backendRefs", "sessionPersistence"]);
const MATCH: Table = Table::new("a match", &["method", "headers"]);
const METHOD: Table = Table::new("a method match", &["type", "service", "method"]);

pub(in crate::dialect) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    route(reader, spec, 0, |reader, fields, flaws| {
        let items = reader.list(fields.get("rules"));
        let rules: Vec<_> = items.iter().filter_map(|item| rule(reader, item, flaws)).collect();
        sessions::mixed_up(reader, &items, &rules);
        rules
    })
}

fn rule(reader: &mut Reader<'_>, at: &At<'_>, flaws: &mut Flaws) -> Option<HttpRoute> {
    let fields = reader.fields(at, &RULE)?;
    bounded(reader, &fields, &[("matches", 64), ("filters", 16), ("backendRefs", 16)]);
    let blocks = reader.list(fields.get("matches"));
    let matches: Vec<HttpMatch> = blocks.iter().filter_map(|block| matching(reader, block)).collect();
    let mut effects = Effects::default();
    filter::read_grpc(reader, fields.get("filters"), flaws, &mut effects);
    let session = session::read(reader, &fields, &matches);
    let mut rule = HttpRoute { matches, place: at.place(), ..HttpRoute::default() };
    backend::read_grpc(reader, fields.get("backendRefs"), flaws, &mut rule, &mut effects);
    rule.route.name = reader.text(fields.get("name")).unwrap_or_default();
    let mut rule = filter::applied(rule, effects, None, RetryPolicy::default());
    rule.route.session = session;
    // UNAVAILABLE, as gRPC reads a 503.
    Some(backend::sent(rule, NoCluster::Unavailable))
}

fn matching(reader: &mut Reader<'_>, at: &At<'_>) -> Option<HttpMatch> {
    let fields = reader.fields(at, &MATCH)?;
    bounded(reader, &fields, &[("headers", 16)]);
    let headers = header_matches(reader, fields.get("headers"));
    let (path, said) = match fields.get("method") {
        Some(at) => method(reader, &at)?,
        None => (PathMatch::default(), (0, 0)),
    };
    let request = RouteMatch { path, headers, ..RouteMatch::default() };
    Some(HttpMatch { request, grpc: Some(said), place: at.place(), ..HttpMatch::default() })
}

/// A method is the path `/package.Service/Method`; and how much is said of either.
fn method(reader: &mut Reader<'_>, at: &At<'_>) -> Option<(PathMatch, (usize, usize))> {
    let fields = reader.fields(at, &METHOD)?;
    let is_pattern = match fields.get("type") {
        Some(at) => reader.choice(Some(at), &[("Exact", false), ("RegularExpression", true)])?,
        None => false,
    };
    if !fields.has("service") && !fields.has("method") {
        reader.error(at, format!("{} needs service or method", at.path));
        return None;
    }
    if is_pattern {
        let mut part = |name| match fields.get(name) {
            Some(at) => reader.pattern(Some(at)).map(|pattern| (format!("(?:{pattern})"), pattern.len())),
            None => Some(("[^/]+".to_owned(), 0)),
        };
        let ((service, of_service), (method, of_method)) = (part("service")?, part("method")?);
        return Some((PathMatch::Regex(format!("/{service}/{method}")), (of_service, of_method)));
    }
    let mut part = |name| {
        let Some(at) = fields.get(name) else { return Some(None) };
        let text = reader.text(Some(at.clone()))?;
        let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._".contains(&b));
        if !good {
            reader.error(
                &at,
                format!("{} must be a name of letters, digits, '_' and '.', not {}", at.path, quote(&text)),
            );
            return None;
        }
        Some(Some(text))
    };
    let (service, method) = (part("service")?, part("method")?);
    let said = |part: &Option<String>| part.as_ref().map_or(0, String::len);
    let said = (said(&service), said(&method));
    let path = match (service, method) {
        (Some(service), Some(method)) => PathMatch::Exact(format!("/{service}/{method}")),
        (Some(service), None) => PathMatch::Prefix(format!("/{service}/")),
        (None, Some(method)) => PathMatch::Regex(format!("/[^/]+/{}", regex::escape(&method))),
        (None, None) => PathMatch::default(),
    };
    Some((path, said))
}
