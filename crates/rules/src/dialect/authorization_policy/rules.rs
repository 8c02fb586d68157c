//! The rules of an AuthorizationPolicy: sources, operations, conditions.

use outrigger_model::matcher::{Pattern, StringMatch};

use crate::finding::{Severity, closest, code, quote};
use crate::intent::{AuthorizationRule, Condition, IpKey, Operation, ServiceAccountMatch, Source, TextKey};
use crate::reader::{At, Fields, Reader, Table};
use crate::yaml::Value;

const RULE: Table = Table::new("an authorization rule", &["from", "to", "when"]);
const FROM: Table = Table::new("an entry of from", &["source"]);
const TO: Table = Table::new("an entry of to", &["operation"]);
const SOURCE: Table = Table::new(
    "a source",
    &[
        "principals",
        "notPrincipals",
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "ipBlocks",
        "notIpBlocks",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
        "requestPrincipals",
        "notRequestPrincipals",
    ],
)
.later(&["trustDomains", "notTrustDomains"]);
const OPERATION: Table = Table::new(
    "an operation",
    &["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"],
);
const WHEN: Table = Table::new("a condition", &["key", "values", "notValues"]);

/// One rule; `None` when it must be left out.
pub(super) fn rule(reader: &mut Reader<'_>, at: &At<'_>, allows: bool) -> Option<AuthorizationRule> {
    let fields = reader.fields(at, &RULE)?;
    let mut whole = true;
    let mut from = Vec::new();
    for item in reader.list(fields.get("from")) {
        let Some(fields) = reader.fields(&item, &FROM) else { continue };
        match fields.get("source") {
            Some(at) => match source(reader, &at, &mut whole) {
                Some(source) => from.push(source),
                None => continue,
            },
            None => reader.missing(&fields, "source"),
        }
    }
    let mut to = Vec::new();
    for item in reader.list(fields.get("to")) {
        let Some(fields) = reader.fields(&item, &TO) else { continue };
        match fields.get("operation") {
            Some(at) => to.extend(operation(reader, &at)),
            None => reader.missing(&fields, "operation"),
        }
    }
    let mut when = Vec::new();
    for item in reader.list(fields.get("when")) {
        match condition(reader, &item) {
            Read::Condition(condition) => when.push(condition),
            Read::Unimplemented => whole = false,
            Read::Wrong => {}
        }
    }
    for name in ["from", "to"] {
        empty_list(reader, &fields, name);
    }
    if !whole {
        let consequence = match allows {
            true => "this rule is left out",
            false => "it is left out, so this rule matches more",
        };
        reader.not_implemented(at, &format!("a part of it is not; {consequence}"));
        if allows {
            return None;
        }
    }
    Some(AuthorizationRule { from, to, when, place: at.place() })
}

/// Istio refuses an empty list here: it looks like "nobody" and would mean "everybody".
fn empty_list(reader: &mut Reader<'_>, fields: &Fields<'_>, name: &'static str) {
    if let Some(at) = fields.get(name)
        && matches!(&at.node.value, Value::List(items) if items.is_empty())
    {
        reader.error(&at, format!("{} must not be an empty list: leave it out to match everything", at.path));
    }
}

fn source(reader: &mut Reader<'_>, at: &At<'_>, whole: &mut bool) -> Option<Source> {
    let fields = reader.fields(at, &SOURCE)?;
    *whole &= !fields.has_later();
    no_empty_lists(reader, at);
    if fields.has("serviceAccounts") && (fields.has("principals") || fields.has("namespaces")) {
        reader.error(
            at,
            format!(
                "{} has serviceAccounts beside principals or namespaces, which can not hold together",
                at.path
            ),
        );
    }
    Some(Source {
        principals: patterns(reader, fields.get("principals")),
        not_principals: patterns(reader, fields.get("notPrincipals")),
        namespaces: patterns(reader, fields.get("namespaces")),
        not_namespaces: patterns(reader, fields.get("notNamespaces")),
        service_accounts: accounts(reader, fields.get("serviceAccounts")),
        not_service_accounts: accounts(reader, fields.get("notServiceAccounts")),
        ip_blocks: reader.ip_blocks(fields.get("ipBlocks")),
        not_ip_blocks: reader.ip_blocks(fields.get("notIpBlocks")),
        remote_ip_blocks: reader.ip_blocks(fields.get("remoteIpBlocks")),
        not_remote_ip_blocks: reader.ip_blocks(fields.get("notRemoteIpBlocks")),
        request_principals: patterns(reader, fields.get("requestPrincipals")),
        not_request_principals: patterns(reader, fields.get("notRequestPrincipals")),
    })
}

fn operation(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Operation> {
    let fields = reader.fields(at, &OPERATION)?;
    no_empty_lists(reader, at);
    Some(Operation {
        hosts: hosts(reader, fields.get("hosts")),
        not_hosts: hosts(reader, fields.get("notHosts")),
        ports: ports(reader, fields.get("ports")),
        not_ports: ports(reader, fields.get("notPorts")),
        methods: patterns(reader, fields.get("methods")),
        not_methods: patterns(reader, fields.get("notMethods")),
        paths: paths(reader, fields.get("paths")),
        not_paths: paths(reader, fields.get("notPaths")),
    })
}

/// `principals: []` looks like "nobody" and would mean "everybody".
fn no_empty_lists(reader: &mut Reader<'_>, at: &At<'_>) {
    let Value::Map(entries) = &at.node.value else { return };
    if entries.is_empty() {
        reader.error(at, format!("{} must not be empty: leave the entry out to match everything", at.path));
    }
    for (key, node) in entries {
        if matches!(&node.value, Value::List(items) if items.is_empty()) {
            let item = At { node, path: format!("{}.{}", at.path, key.text) };
            reader.error(
                &item,
                format!("{} must not be an empty list: leave it out to match everything", item.path),
            );
        }
    }
}

/// `x`, `x*`, `*x`, `*`.
fn pattern(text: &str) -> StringMatch {
    if text == "*" {
        StringMatch::present()
    } else if let Some(suffix) = text.strip_prefix('*') {
        StringMatch::suffix(suffix)
    } else if let Some(prefix) = text.strip_suffix('*') {
        StringMatch::prefix(prefix)
    } else {
        StringMatch::exact(text)
    }
}

fn patterns(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<StringMatch> {
    reader.list(at).into_iter().filter_map(|item| one_pattern(reader, &item)).collect()
}

/// Names of hosts know no case.
fn hosts(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<StringMatch> {
    let all = patterns(reader, at).into_iter();
    all.map(|host| StringMatch { ignore_case: true, ..host }).collect()
}

fn one_pattern(reader: &mut Reader<'_>, at: &At<'_>) -> Option<StringMatch> {
    let text = reader.text(Some(at.clone()))?;
    if text.is_empty() {
        reader.error(at, format!("{} must not be empty", at.path));
        return None;
    }
    if let Some(principal) =
        text.strip_prefix("spiffe://").filter(|_| at.path.to_lowercase().contains("principal"))
    {
        let message = format!("{} is written without spiffe://, or it never matches", at.path);
        reader.error_meant(at, message, Some(principal.to_owned()));
        return None;
    }
    let pattern = pattern(&text);
    if let Pattern::Exact(rest) | Pattern::Prefix(rest) | Pattern::Suffix(rest) = &pattern.pattern
        && rest.contains('*')
        && !rest.contains(['{', '}'])
    {
        star(reader, at, &text);
    }
    Some(pattern)
}

/// Only at one end a `*` stands for something; elsewhere a DENY would be a hole. Of a path whole segments have a template.
fn star(reader: &mut Reader<'_>, at: &At<'_>, text: &str) {
    let is_path = [".paths[", ".notPaths["].iter().any(|name| at.path.contains(name));
    let segments: Vec<&str> = text.split('/').map(|part| if part == "*" { "{*}" } else { part }).collect();
    let meant = Some(segments.join("/")).filter(|path| is_path && template(path).is_some());
    let message = format!(
        "{} has a * in {} that is a character like any other: only one at the beginning or at the end, or alone, stands for \
         something",
        at.path,
        quote(text)
    );
    reader.note(Severity::Warning, code::STAR, at, message, meant);
}

/// Paths may hold `{*}` (one segment) and, once, `{**}` (the rest or any number of segments).
fn paths(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<StringMatch> {
    let mut paths = Vec::new();
    for item in reader.list(at) {
        let Some(plain) = one_pattern(reader, &item) else { continue };
        let Pattern::Exact(text) = &plain.pattern else {
            paths.push(plain);
            continue;
        };
        if !text.contains(['{', '}']) {
            paths.push(plain);
            continue;
        }
        match template(text) {
            Some(regex) => paths.push(StringMatch::regex(regex)),
            None => {
                let message = format!(
                    "{}: {} is not a path template: {{*}} and {{**}} stand for whole segments, and {{**}} only once",
                    item.path,
                    quote(text)
                );
                reader.error(&item, message);
            }
        }
    }
    paths
}

fn template(text: &str) -> Option<String> {
    let mut pattern = String::new();
    let mut rest_seen = false;
    for segment in text.strip_prefix('/')?.split('/') {
        match segment {
            "{*}" => pattern.push_str("/[^/]+"),
            "{**}" if !rest_seen => {
                rest_seen = true;
                pattern.push_str("(?:/.*)?");
            }
            plain if !plain.contains(['{', '}', '*']) => {
                pattern.push('/');
                pattern.push_str(&regex::escape(plain));
            }
            _ => return None,
        }
    }
    Some(pattern)
}

fn accounts(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<ServiceAccountMatch> {
    let mut accounts = Vec::new();
    for item in reader.list(at) {
        let Some(text) = reader.text(Some(item.clone())) else { continue };
        let own = reader.origin.namespace.clone();
        let (namespace, name) =
            text.split_once('/').map_or((own, text.as_str()), |(ns, name)| (ns.to_owned(), name));
        if name.is_empty() || namespace.is_empty() || name.contains(['*', '/']) {
            let message = format!("{} must be NAME or NAMESPACE/NAME, not {}", item.path, quote(&text));
            reader.error(&item, message);
            continue;
        }
        accounts.push(ServiceAccountMatch { namespace, name: name.to_owned() });
    }
    accounts
}

fn ports(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<u16> {
    reader.list(at).into_iter().filter_map(|item| reader.port(Some(item))).collect()
}

enum Read {
    Condition(Condition),
    /// Valid, but we cannot check it.
    Unimplemented,
    /// Told already.
    Wrong,
}

const KEYS: [&str; 12] = [
    "request.headers[NAME]",
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "destination.ip",
    "destination.port",
    "connection.sni",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[NAME]",
];
const LATER_KEYS: [&str; 1] = ["source.serviceAccount"];

fn condition(reader: &mut Reader<'_>, at: &At<'_>) -> Read {
    let Some(fields) = reader.fields(at, &WHEN) else { return Read::Wrong };
    no_empty_lists(reader, at);
    if !fields.has("values") && !fields.has("notValues") {
        reader.error(at, format!("{} needs values or notValues", at.path));
    }
    let Some(key_at) = fields.get("key") else {
        reader.missing(&fields, "key");
        return Read::Wrong;
    };
    let Some(key) = reader.text(Some(key_at.clone())) else { return Read::Wrong };
    let (values, not_values) = (fields.get("values"), fields.get("notValues"));
    let text = match key.as_str() {
        "source.principal" => TextKey::SourcePrincipal,
        "source.namespace" => TextKey::SourceNamespace,
        "connection.sni" => TextKey::ConnectionSni,
        "request.auth.principal" => TextKey::RequestPrincipal,
        "request.auth.audiences" => TextKey::Claim(vec!["aud".to_owned()]),
        "request.auth.presenter" => TextKey::Claim(vec!["azp".to_owned()]),
        "source.ip" | "remote.ip" | "destination.ip" => {
            let which = match key.as_str() {
                "source.ip" => IpKey::Source,
                "remote.ip" => IpKey::Remote,
                _ => IpKey::Destination,
            };
            let (values, not_values) = (reader.ip_blocks(values), reader.ip_blocks(not_values));
            return Read::Condition(Condition::Ip { key: which, values, not_values });
        }
        "destination.port" => {
            let (values, not_values) = (ports(reader, values), ports(reader, not_values));
            return Read::Condition(Condition::DestinationPort { values, not_values });
        }
        other => match other.strip_prefix("request.headers[").and_then(|rest| rest.strip_suffix(']')) {
            Some(name) => match reader.header_name(&key_at, name) {
                Some(name) => TextKey::RequestHeader(name),
                None => return Read::Wrong,
            },
            None => match other.strip_prefix("request.auth.claims").and_then(claim) {
                Some(path) => TextKey::Claim(path),
                None => return unknown_key(reader, &key_at, other),
            },
        },
    };
    let is_host = match &text {
        TextKey::ConnectionSni => true,
        TextKey::RequestHeader(name) => matches!(name.as_str(), "host" | ":authority"),
        _ => false,
    };
    let read = if is_host { hosts } else { patterns };
    let (values, not_values) = (read(reader, values), read(reader, not_values));
    Read::Condition(Condition::Text { key: text, values, not_values })
}

/// `[a][b]`.
fn claim(text: &str) -> Option<Vec<String>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let path: Vec<String> = inner.split("][").map(str::to_owned).collect();
    path.iter().all(|part| !part.is_empty() && !part.contains(['[', ']'])).then_some(path)
}

fn unknown_key(reader: &mut Reader<'_>, at: &At<'_>, key: &str) -> Read {
    let stem = key.split('[').next().unwrap_or(key);
    if LATER_KEYS.contains(&stem) || key.starts_with("experimental.") {
        reader.not_implemented(at, &format!("the key {} can not be checked", quote(key)));
        return Read::Unimplemented;
    }
    let meant = closest(key, KEYS.into_iter().chain(LATER_KEYS));
    reader.error_meant(at, format!("unknown key {}; the keys are {}", quote(key), KEYS.join(", ")), meant);
    Read::Wrong
}
