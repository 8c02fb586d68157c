//! Parts that several dialects write alike: string matches, header edits, retry conditions, visibility, selectors.

use std::collections::BTreeMap;

use outrigger_model::cluster::{LONGEST_METRIC, MOST_METRICS};
use outrigger_model::identity::SpiffeId;
use outrigger_model::matcher::{HeaderMatch, Pattern, StringMatch};
use outrigger_model::route::text::Edited;
use outrigger_model::route::{
    CookieMatch, HeaderEdits, HeaderText, PathMatch, QueryMatch, RetryOn, RouteMatch, Written,
};

use crate::finding::{closest, code, quote};
use crate::intent::{HttpRoute, Visibility};
use crate::reader::{At, Fields, Reader, Table, is_header_name};
use crate::yaml::Value;

const ISTIO_MATCH: Table = Table::new("a string match", &["exact", "prefix", "regex"]);
const NATIVE_MATCH: Table = Table::new("a string match", &["exact", "prefix", "suffix", "regex", "present"]);

const NUMBERS: Table = Table::new("a match of a number", &["range"]);
const RANGE: Table = Table::new("a range", &["start", "end"]);

/// The most items that lists may have, because their products are kept.
pub(super) fn bounded(reader: &mut Reader<'_>, fields: &Fields<'_>, most: &[(&'static str, usize)]) {
    for (name, most) in most {
        if let Some(at) = fields.get(name)
            && let Value::List(items) = &at.node.value
            && items.len() > *most
        {
            let message =
                format!("{} has {} items, and may have {most}: write several objects", at.path, items.len());
            reader.error(&at, message);
        }
    }
}

/// Servers of the mesh have no other names than identities; taken for one, another name would let in whom it was to keep out.
pub(super) fn identity(reader: &mut Reader<'_>, at: &At<'_>, name: &str) {
    if SpiffeId::parse(name).is_err() {
        let message = format!(
            "{} must be an identity such as spiffe://cluster.local/ns/shop/sa/catalog, not {}: a server of the mesh has no \
             other name",
            at.path,
            quote(name)
        );
        reader.error(at, message);
    }
}

/// How string matches are spelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `{exact|prefix|regex: …}`.
    Istio,
    /// The same with `suffix` and `present: true`; a bare text is exact.
    Native,
}

/// A string match; `{}` is presence, which only headers and query parameters may ask for.
pub(super) fn string_match(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    spelling: Spelling,
    presence: bool,
) -> Option<StringMatch> {
    let at = at?;
    let table = match spelling {
        Spelling::Istio => &ISTIO_MATCH,
        Spelling::Native => &NATIVE_MATCH,
    };
    if let Value::Text(text) = &at.node.value {
        if spelling == Spelling::Native {
            return Some(StringMatch::exact(text.clone()));
        }
        reader.error(
            &at,
            format!("{} must be a mapping such as {{exact: {}}}, not a bare text", at.path, quote(text)),
        );
        return None;
    }
    let fields = reader.fields(&at, table)?;
    let given: Vec<&'static str> = table.known.iter().copied().filter(|name| fields.has(name)).collect();
    match given.as_slice() {
        ["exact"] => reader.text(fields.get("exact")).map(StringMatch::exact),
        ["prefix"] => reader.text(fields.get("prefix")).map(StringMatch::prefix),
        ["suffix"] => reader.text(fields.get("suffix")).map(StringMatch::suffix),
        ["regex"] => reader.pattern(fields.get("regex")).map(StringMatch::regex),
        ["present"] if presence => match reader.boolean(fields.get("present"))? {
            true => Some(StringMatch::present()),
            false => {
                reader.error(
                    &at,
                    format!("{} can only be true; leave the match out or invert it", join(&at, "present")),
                );
                None
            }
        },
        [] if presence => Some(StringMatch::present()),
        [] => {
            reader.error(&at, format!("{} needs one of {}", at.path, table.known.join(", ")));
            None
        }
        [one] => {
            reader.error(&at, format!("{} can not be used here: it is always there", join(&at, one)));
            None
        }
        several => {
            reader.error(
                &at,
                format!(
                    "{} has {}, but a string match has exactly one of them",
                    at.path,
                    several.join(" and ")
                ),
            );
            None
        }
    }
}

fn join(at: &At<'_>, name: &str) -> String {
    format!("{}.{name}", at.path)
}

/// Conditions on headers.
pub(super) fn header_matches(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    spelling: Spelling,
    invert: bool,
) -> Vec<HeaderMatch> {
    let mut matches = Vec::new();
    for (key, item) in reader.entries(at) {
        if key.text.starts_with("@request.auth.claims") {
            let message = format!(
                "{}: matching on what a token says is for gateways alone, which Outrigger does not have; let an AuthorizationPolicy \
                 decide by claims, or match a header of RequestAuthentication's outputClaimToHeaders",
                item.path
            );
            reader.error_of(code::CLAIM_ROUTE, &item, message);
            continue;
        }
        let name = reader.header_name(&item, &key.text);
        let value = match number_range(reader, &item, spelling) {
            Some(range) => range,
            None => named_value(reader, item, spelling),
        };
        if let (Some(name), Some(value)) = (name, value) {
            matches.push(HeaderMatch { name, value, invert });
        }
    }
    matches
}

/// Natively a header may be a number within bounds; nothing where that is not what is written.
fn number_range(reader: &mut Reader<'_>, at: &At<'_>, spelling: Spelling) -> Option<Option<StringMatch>> {
    let Value::Map(entries) = &at.node.value else { return None };
    if spelling != Spelling::Native || !entries.iter().any(|(key, _)| key.text == "range") {
        return None;
    }
    let Some(at) = reader.fields(at, &NUMBERS).and_then(|fields| fields.get("range")) else {
        return Some(None);
    };
    let Some(bounds) = reader.fields(&at, &RANGE) else { return Some(None) };
    let start = reader.integer(bounds.get("start"));
    let end = reader.integer(bounds.get("end"));
    for name in RANGE.known.iter().filter(|name| !bounds.has(name)) {
        reader.error(&at, format!("{} needs {name}", at.path));
    }
    let (Some(start), Some(end)) = (start, end) else { return Some(None) };
    if start >= end {
        let message = format!("{}: no number is from {start} to below {end}: end must be greater", at.path);
        reader.error(&at, message);
        return Some(None);
    }
    Some(Some(StringMatch::range(start, end)))
}

/// Conditions on cookies.
pub(super) fn cookie_matches(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<CookieMatch> {
    let mut matches = Vec::new();
    for (key, item) in reader.entries(at) {
        if !is_header_name(&key.text) {
            reader.error(&item, format!("{} is not the name of a cookie", quote(&key.text)));
        } else if let Some(value) = named_value(reader, item, Spelling::Native) {
            matches.push(CookieMatch { name: key.text.clone(), value, invert: false });
        }
    }
    matches
}

/// Conditions on query parameters.
pub(super) fn query_matches(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    spelling: Spelling,
) -> Vec<QueryMatch> {
    let mut matches = Vec::new();
    for (key, item) in reader.entries(at) {
        if let Some(value) = named_value(reader, item, spelling) {
            matches.push(QueryMatch { name: key.text.clone(), value });
        }
    }
    matches
}

fn named_value(reader: &mut Reader<'_>, at: At<'_>, spelling: Spelling) -> Option<StringMatch> {
    if at.node.value == Value::Null {
        reader.error(&at, format!("{} has no condition: write {{}} for \"is present\"", at.path));
        return None;
    }
    string_match(reader, Some(at), spelling, true)
}

pub(super) const EDITS: Table = Table::new("header edits", &["request", "response"]);
pub(super) const OPERATIONS: Table = Table::new("header operations", &["set", "add", "remove"]);

/// Header edits of request and response.
pub(super) fn header_edits(reader: &mut Reader<'_>, at: Option<At<'_>>) -> (HeaderEdits, HeaderEdits) {
    let Some(fields) = at.and_then(|at| reader.fields(&at, &EDITS)) else { return Default::default() };
    (one_way(reader, fields.get("request"), true), one_way(reader, fields.get("response"), false))
}

/// Metrics that reports of load name.
pub(super) fn metrics(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<String> {
    let items = reader.list(at.clone());
    if let Some(at) = at.filter(|_| items.len() > MOST_METRICS) {
        reader.error(&at, format!("{}: at most {MOST_METRICS} metrics are looked at", at.path));
    }
    let mut metrics = Vec::new();
    for item in items {
        let Some(name) = reader.text(Some(item.clone())) else { continue };
        let known = ["cpu_utilization", "mem_utilization", "application_utilization"];
        let keyed = ["named_metrics.", "utilization.", "request_cost."];
        let is_keyed = |map: &&str| name.len() > map.len() && name.starts_with(*map);
        if name.len() > LONGEST_METRIC {
            reader.error(&item, format!("{} has more than {LONGEST_METRIC} characters", item.path));
        } else if !known.contains(&&*name) && !keyed.iter().any(is_keyed) {
            let message =
                format!("{} must be {}, or {}KEY", item.path, known.join(", "), keyed.join("KEY, "));
            reader.error(&item, message);
        }
        metrics.push(name);
    }
    metrics
}

/// The authority can be set in one place of a route.
pub(super) fn one_authority(reader: &mut Reader<'_>, headers: Option<At<'_>>, route: &HttpRoute) {
    let edits = &route.route.request_headers;
    let edits = edits.set.iter().chain(&edits.add);
    let edited = edits.filter(|(name, _)| name == ":authority" || name == "host").count();
    let rewritten = usize::from(route.forward().is_some_and(|forward| forward.rewrite.authority.is_some()));
    if edited + rewritten > 1
        && let Some(at) = headers
    {
        let message = format!("{}: the authority is set more than once in this route; keep one", at.path);
        reader.error(&at, message);
    }
}

fn one_way(reader: &mut Reader<'_>, at: Option<At<'_>>, request: bool) -> HeaderEdits {
    let Some(fields) = at.and_then(|at| reader.fields(&at, &OPERATIONS)) else {
        return HeaderEdits::default();
    };
    let mut remove = Vec::new();
    for item in reader.list(fields.get("remove")) {
        if let Some(name) = reader.text(Some(item.clone()))
            && let Some(name) = reader.header_name(&item, &name)
        {
            if request && name == "host" {
                reader.error(
                    &item,
                    format!("{}: a request needs its host; it can be set, not removed", item.path),
                );
            }
            remove.push(name);
        }
    }
    HeaderEdits {
        set: header_values(reader, fields.get("set"), request),
        add: header_values(reader, fields.get("add"), request),
        remove,
        ..HeaderEdits::default()
    }
}

/// Values with Envoy's commands, as people write them for Istio.
fn header_values(reader: &mut Reader<'_>, at: Option<At<'_>>, request: bool) -> Vec<Written> {
    let mut values = Vec::new();
    for (key, item) in reader.entries(at) {
        // `:authority` of a request may be set; the other pseudo-headers have fields of their own.
        let authority = request && key.text.eq_ignore_ascii_case(":authority");
        let good_name = is_header_name(&key.text) || authority;
        if !good_name {
            reader.error(&item, format!("{} is not a header name", quote(&key.text)));
        }
        let Some(value) = reader.text(Some(item.clone())) else { continue };
        if value.bytes().any(|b| b == 0x7f || (b < 0x20 && b != b'\t')) {
            reader.error(
                &item,
                format!("{} has a control character, which a header value must not have", item.path),
            );
        } else if good_name {
            let name = key.text.to_ascii_lowercase();
            values.extend(header_text(reader, &item, &name, &value, request).map(|text| (name, text)));
        }
    }
    values
}

/// A value, with what its commands are; the authority has none.
fn header_text(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    name: &str,
    value: &str,
    request: bool,
) -> Option<HeaderText> {
    let edited = if request { Edited::Request } else { Edited::Response };
    let read = match HeaderText::read(value, edited) {
        Ok(HeaderText::Format(_)) if request && matches!(name, ":authority" | "host") => {
            Err("a command is no authority; a rewrite by a header or the path is what Envoys have for that"
                .to_owned())
        }
        read => read,
    };
    read.map_err(|why| reader.error(at, format!("{}: {why}", at.path))).ok()
}

/// Conditions that Envoy has and we don't.
const UNIMPLEMENTED_CONDITIONS: &[&str] =
    &["http3-post-connect-failure", "reset-after-request", "grpc-retry-pushback"];

/// Envoy's comma-separated list; digits are statuses.
pub(super) fn retry_on(reader: &mut Reader<'_>, at: &At<'_>, text: &str) -> (Vec<RetryOn>, Vec<u16>) {
    let (mut on, mut statuses) = (Vec::new(), Vec::new());
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if let Some(condition) = RetryOn::parse(word) {
            on.push(condition);
        } else if word.bytes().all(|b| b.is_ascii_digit()) {
            match word.parse::<u16>().ok().filter(|status| (100..=599).contains(status)) {
                Some(status) => statuses.push(status),
                None => reader.error(at, format!("{}: {} is not an HTTP status", at.path, quote(word))),
            }
        } else if UNIMPLEMENTED_CONDITIONS.contains(&word) {
            let message = format!(
                "{}: the condition {word} is not implemented by Outrigger: it has no effect",
                at.path
            );
            reader.warn(code::NOT_IMPLEMENTED, at, message);
        } else {
            let meant = closest(word, RetryOn::NAMES.iter().map(|(name, _)| *name));
            let message = format!("{}: {} is not a retry condition (nor a status)", at.path, quote(word));
            reader.error_meant(at, message, meant);
        }
    }
    if statuses.is_empty() && on.contains(&RetryOn::RetriableStatusCodes) {
        let message = format!(
            "{}: retriable-status-codes has no effect without a status beside it, such as 503",
            at.path
        );
        reader.warn(code::NO_EFFECT, at, message);
    }
    // Each once, in one order: two spellings of a list are one resource. That statuses count goes without saying.
    on.retain(|on| statuses.is_empty() || *on != RetryOn::RetriableStatusCodes);
    on.sort_unstable();
    on.dedup();
    statuses.sort_unstable();
    statuses.dedup();
    (on, statuses)
}

/// What a match block says of the request, in the dialects' common words.
#[derive(Default)]
pub(super) struct RequestMatch {
    pub(super) uri: Option<StringMatch>,
    pub(super) ignore_case: bool,
    pub(super) scheme: Option<StringMatch>,
    pub(super) method: Option<StringMatch>,
    pub(super) authority: Option<StringMatch>,
    pub(super) headers: Vec<HeaderMatch>,
    pub(super) query: Vec<QueryMatch>,
    pub(super) cookies: Vec<CookieMatch>,
}

impl RequestMatch {
    pub(super) fn build(self) -> RouteMatch {
        // Whoever names the method asks for tunnels; no other match takes one.
        let connect =
            self.method.as_ref().is_some_and(|method| method.pattern == Pattern::Exact("CONNECT".into()));
        let path = match self.uri.map(|uri| uri.pattern) {
            None if connect => PathMatch::Connect,
            None | Some(Pattern::Present | Pattern::Range(..)) => PathMatch::default(),
            Some(Pattern::Exact(path)) => PathMatch::Exact(path),
            Some(Pattern::Prefix(path)) => PathMatch::Prefix(path),
            Some(Pattern::Regex(path)) => PathMatch::Regex(path),
            Some(Pattern::Suffix(path)) => PathMatch::Regex(format!(".*{}", regex::escape(&path))),
            Some(Pattern::Contains(path)) => PathMatch::Regex(format!(".*{}.*", regex::escape(&path))),
        };
        // Names of hosts know no case.
        let authority = self.authority.map(|authority| StringMatch { ignore_case: true, ..authority });
        let pseudo = [(":method", self.method), (":authority", authority), (":scheme", self.scheme)];
        let pseudo = pseudo.into_iter().filter_map(|(name, value)| {
            Some(HeaderMatch { name: name.to_owned(), value: value?, invert: false })
        });
        let headers = pseudo.chain(self.headers).collect();
        RouteMatch { path, ignore_case: self.ignore_case, headers, query: self.query, cookies: self.cookies }
    }
}

/// `exportTo`: `*`, `.` and names.
pub(super) fn visibility(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Visibility {
    let mut namespaces = Vec::new();
    let items = reader.list(at);
    // Protobuf cannot tell an empty list from none.
    let mut everyone = items.is_empty();
    for item in items {
        match reader.text(Some(item)).as_deref() {
            Some("*") => everyone = true,
            Some(".") => namespaces.push(reader.origin.namespace.clone()),
            Some("~") | None => {}
            Some(name) => namespaces.push(name.to_owned()),
        }
    }
    if everyone { Visibility::Everyone } else { Visibility::Namespaces(namespaces) }
}

const SELECTOR: Table = Table::new("a selector", &["matchLabels"]);

/// Labels of the workloads that a policy is for; empty = all of its namespace.
pub(super) fn selector(reader: &mut Reader<'_>, at: Option<At<'_>>) -> BTreeMap<String, String> {
    let Some(fields) = at.and_then(|at| reader.fields(&at, &SELECTOR)) else { return BTreeMap::new() };
    reader.labels(fields.get("matchLabels"))
}
