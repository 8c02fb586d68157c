//! No field is taken and does nothing: each field of each kind is changed in an example, and what proxies get must change with it, or a
//! finding must name it.
//!
//! The examples are in `fields.yaml`: groups with a line `# ===` between them, of which the first object is the example and the others
//! are there for it to have an effect. Which fields a mapping may have it says itself, when it is asked with one that there is not.
//! Fields without an example stand there, too, in lines such as `# without: KIND, MAPPING: FIELD: why`.
//!
//! What is accepted on the way compiles: routes to a table, and every example and every seventh change of one twice to the same.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_model::route::table::RouteTable;
use outrigger_rules::{Finding, analyze, parse};
use serde_json::Value;

use super::super::cache::once;
use super::*;
use crate::keeper::catalog;

/// Words of all kinds: one that a field takes, and that is another than its own, is there for every field.
const WORDS: &[&str] = &[
    "7s",
    "77ms",
    "other",
    "v2",
    "catalog",
    "stock",
    "/other",
    "/v9/.*",
    "10.9.9.0/24",
    "10.9.9.9",
    "b.example.com",
    "*.example.com",
    "81",
    "RANDOM",
    "ROUND_ROBIN",
    "STRICT",
    "DISABLE",
    "PERMISSIVE",
    "ALLOW",
    "DENY",
    "GET",
    "POST",
    "https",
    "http",
    "UPGRADE",
    "gateway-error",
    "SIMPLE",
    "MUTUAL",
    "ISTIO_MUTUAL",
    "FROM_REQUEST_PORT",
    "MESH_INTERNAL",
    "STATIC",
    "DNS",
    "NONE",
    "IGNORE",
    "FORWARD",
    "REGISTRY_ONLY",
    "ALLOW_ANY",
    "DEFAULT",
    "TCP",
    "HTTP",
    "GRPC",
    "TLS",
    "Exact",
    "RegularExpression",
    "PathPrefix",
    "ReplaceFullPath",
    "random",
    "roundRobin",
    "path",
    "address",
    "slidingWindow",
    "https://b.example/keys",
    "127.0.0.1:81",
    "*/*",
    "UNAVAILABLE",
    "NOT_FOUND",
    "front",
    ".",
    "REQUIRED",
    "cluster.local/ns/x/sa/y",
    "spiffe://cluster.local/ns/x/sa/y",
    "x-other",
    "request",
    "p90",
    "source.namespace",
    "HTTPRoute",
    "seconds",
    "session",
    "Session",
    "Header",
    "Hostname",
    "URI",
];
const NUMBERS: &[u64] = &[1, 2, 3, 7, 11, 50, 307, 404, 81, 8080, 7000, 65537, 100_003];
const UNKNOWN: &str = "zzqq";

pub(super) fn instances() -> Vec<Instance> {
    let mut all = shop();
    // A target without a port would mean its only one.
    let port = all[3].ports[0].clone();
    all[3].ports.push(crate::instance::Port { number: 7001, ..port });
    let mut more = |id: &str, version: &str, address: &str, port: u16, protocol| {
        let mut instance = sample(id, id.split('-').next().unwrap(), version, address, port, protocol);
        instance.labels = [("app".to_owned(), instance.service.clone())].into_iter().collect();
        (instance.region, instance.zone) = ("r1".into(), format!("z{version}"));
        all.push(instance);
    };
    more("front-1", "v1", "127.0.0.20", 8080, Protocol::Http);
    more("vault-1", "v1", "127.0.0.21", 8443, Protocol::Tls);
    more("auto-1", "v1", "127.0.0.22", 9000, Protocol::Auto);
    more("rpc-1", "v1", "127.0.0.23", 9090, Protocol::Grpc);
    more("catalog-v4", "v4", "127.0.0.25", 8080, Protocol::Http);
    more("web-2", "v4", "127.0.0.26", 8080, Protocol::Http);
    all.push(sample("catalog-v3", "catalog", "v3", "127.0.0.24", 8080, Protocol::Http));
    for instance in &mut all {
        let region = ["catalog-v2", "catalog-v3"].iter().position(|id| *id == instance.id);
        instance.labels.insert("app".to_owned(), instance.service.clone());
        if instance.region.is_empty() {
            let version = instance.version.clone().unwrap_or_default();
            let region = region.map_or("r1", |at| ["r2", "r3"][at]);
            (instance.region, instance.zone) = (region.into(), format!("z{version}"));
        }
    }
    all
}

pub(super) fn settings() -> MeshSettings {
    let providers = "[{name: limiter, envoyRateLimitGrpc: {service: shop/rpc.shop.svc.cluster.local, port: 9090}}, \
                     {name: opa, envoyExtAuthzGrpc: {service: shop/rpc.shop.svc.cluster.local, port: 9090}}]";
    MeshSettings { providers: serde_saphyr::from_str(providers).unwrap(), ..MeshSettings::default() }
}

/// What proxies get of a world, by who asks and for what.
pub(super) fn picture(world: &Arc<World>) -> BTreeMap<String, String> {
    let scopes = [
        web(),
        Scope { namespace: "front".into(), instance: None, ..web() },
        scope(ClientKind::Outrigger, "catalog", "catalog-v1"),
        scope(ClientKind::Outrigger, "stock", "stock-1"),
    ];
    let mut names: BTreeSet<(ResourceKind, String)> = BTreeSet::new();
    let mut add = |kind, name: String| names.insert((kind, name));
    for (host, ports) in world.services().map(|service| (service.host.as_str(), service.ports.keys())) {
        for port in ports {
            add(ResourceKind::Destination, format!("{host}:{port}"));
            add(ResourceKind::Listener, format!("outbound|{port}||{host}"));
            add(ResourceKind::Routes, format!("outbound|{port}||{host}"));
            for subset in ["", "v1", "v2", "new"] {
                add(ResourceKind::Cluster, format!("outbound|{port}|{subset}|{host}"));
                add(ResourceKind::Endpoints, format!("outbound|{port}|{subset}|{host}"));
            }
            add(ResourceKind::Listener, format!("outbound|{port}||*"));
            add(ResourceKind::Routes, format!("outbound|{port}||*"));
            add(ResourceKind::Destination, format!("/10.9.9.9:{port}"));
            add(ResourceKind::Listener, format!("egress|{port}||{host}"));
        }
        add(ResourceKind::Host, host.to_owned());
    }
    for (address, port) in [
        ("127.0.0.10", 8080),
        ("127.0.0.11", 8080),
        ("127.0.0.11", 81),
        ("127.0.0.11", 0),
        ("127.0.0.13", 7000),
    ] {
        add(ResourceKind::Listener, format!("inbound|{address}:{port}"));
        add(ResourceKind::Cluster, format!("inbound|{port}||"));
        add(ResourceKind::Destination, format!("/{address}:{port}"));
    }
    add(ResourceKind::Destination, "/192.0.2.1:80".into());
    let mut seen = BTreeMap::new();
    for (at, scope) in scopes.iter().enumerate() {
        for (kind, name) in &names {
            if let Some(resource) = once(world, scope, *kind, name) {
                if let Resource::Routes(config) = &resource {
                    RouteTable::compile(config).unwrap_or_else(|why| panic!("{name}: {why:?}\n{config:#?}"));
                }
                seen.insert(format!("{at} {kind:?} {name}"), format!("{resource:?}"));
            }
        }
    }
    let keys: Vec<_> = world.key_sources().into_iter().collect();
    seen.insert("keys".into(), format!("{keys:?}"));
    seen
}

/// An example with its company.
pub(super) struct Example {
    kind: String,
    pub(super) object: Value,
    pub(super) company: Vec<Value>,
}

struct Outcome {
    picture: BTreeMap<String, String>,
    findings: Vec<Finding>,
}

impl Example {
    /// What comes of the example in the state of `object`; `Err` is why it is refused.
    fn outcome(&self, object: &Value) -> Result<Outcome, Vec<Finding>> {
        let all = std::iter::once(object).chain(&self.company);
        let text: Vec<String> = all.map(Value::to_string).collect();
        let parsed = parse("fields", &text.join("\n---\n"));
        if parsed.has_errors() {
            return Err(parsed.findings);
        }
        let intents = parsed.objects.iter().flat_map(|object| object.intents.clone());
        let world = World::new(7, settings(), instances().into_iter().map(Arc::new), intents);
        let world = Arc::new(world);
        let mut findings = parsed.findings;
        findings.extend(analyze(&parsed.objects, Some(&catalog(&world))));
        let of = parsed.objects.first().map(outrigger_rules::Object::id);
        findings.retain(|finding| finding.object == of);
        Ok(Outcome { picture: picture(&world), findings })
    }

    /// The fields of a mapping, and what it is; `None` where its keys are the user's.
    fn fields_at(&self, pointer: &str) -> Option<(String, Vec<String>)> {
        let mut asked = self.object.clone();
        asked.pointer_mut(pointer)?.as_object_mut()?.insert(UNKNOWN.into(), Value::Bool(true));
        let findings = parse("fields", &asked.to_string()).findings;
        let mark = format!("unknown field \"{UNKNOWN}\" in ");
        let told = findings.iter().find_map(|finding| finding.message.strip_prefix(&mark))?;
        let (what, fields) = told.split_once("; its fields are ")?;
        Some((what.to_owned(), fields.split(", ").map(str::to_owned).collect()))
    }
}

/// Other values of the same kind.
pub(super) fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(on) => vec![(!on).into()],
        Value::Number(_) => {
            NUMBERS.iter().map(|number| (*number).into()).filter(|other| other != value).collect()
        }
        Value::String(text) => {
            let near = [format!("{text}x"), format!("x{text}"), format!("/x{text}"), format!("2{text}")];
            let words = near.into_iter().chain(WORDS.iter().map(|word| (*word).to_owned()));
            words.filter(|word| word != text).map(Value::from).collect()
        }
        Value::Array(_) | Value::Object(_) | Value::Null => Vec::new(),
    }
}

fn without(object: &Value, parent: &str, key: &str) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.pointer_mut(parent).and_then(Value::as_object_mut) {
        map.remove(key);
    }
    object
}

/// How a pointer is written in findings.
fn path_of(pointer: &str) -> String {
    let parts = pointer.split('/').skip(1);
    parts.fold(String::new(), |path, part| match part.parse::<usize>() {
        Ok(index) => format!("{path}[{index}]"),
        Err(_) if path.is_empty() => part.to_owned(),
        Err(_) => format!("{path}.{part}"),
    })
}

/// Why a field does nothing, if it does nothing. `accepted`: so many changes have been taken.
fn idle(example: &Example, whole: &Outcome, parent: &str, key: &str, accepted: &mut usize) -> Option<String> {
    let pointer = format!("{parent}/{key}");
    let path = path_of(&pointer);
    let within = |finding: &Finding| {
        finding.code == "OUT0005"
            && path.strip_prefix(&finding.path).is_some_and(|rest| rest.starts_with('.'))
    };
    if whole.findings.iter().any(|finding| finding.path.starts_with(&path) || within(finding)) {
        return None;
    }
    let value = example.object.pointer(&pointer)?;
    let mut taken = 0;
    for other in others(value) {
        let mut changed = example.object.clone();
        *changed.pointer_mut(&pointer)? = other;
        let Ok(outcome) = example.outcome(&changed) else { continue };
        taken += 1;
        *accepted += 1;
        if *accepted % 7 == 1 {
            let again = example.outcome(&changed).map(|outcome| outcome.picture).unwrap_or_default();
            assert_eq!(outcome.picture, again, "{} {path}: compiled twice", example.kind);
        }
        let told = outcome.findings.iter().any(|finding| finding.path.starts_with(&path));
        if told || outcome.picture != whole.picture {
            return None;
        }
    }
    if taken > 0 {
        return Some(format!("{} {path}: {taken} other values change nothing", example.kind));
    }
    match example.outcome(&without(&example.object, parent, key)) {
        Ok(outcome) if outcome.picture == whole.picture => {
            Some(format!("{} {path}: nothing changes without it", example.kind))
        }
        // Without it there is no object: it is read.
        _ => None,
    }
}

fn walk(example: &Example, whole: &Outcome, pointer: &str, seen: &mut Seen) {
    match example.object.pointer(pointer) {
        Some(Value::Array(items)) => {
            (0..items.len()).for_each(|at| walk(example, whole, &format!("{pointer}/{at}"), seen));
        }
        Some(Value::Object(map)) => {
            let Some((what, fields)) = example.fields_at(pointer) else { return };
            let table = seen.tables.entry((example.kind.clone(), what.clone())).or_default();
            table.extend(fields);
            for key in map.keys() {
                let field = (example.kind.clone(), what.clone(), key.clone());
                if !seen.acting.contains(&field) {
                    match idle(example, whole, pointer, key, &mut seen.accepted) {
                        Some(why) => drop(seen.idle.insert(field, why)),
                        None => drop(seen.acting.insert(field)),
                    }
                }
                walk(example, whole, &format!("{pointer}/{key}"), seen);
            }
        }
        _ => {}
    }
}

/// Kind, mapping and field.
type Field = (String, String, String);

#[derive(Default)]
struct Seen {
    /// By kind and mapping: its fields.
    tables: BTreeMap<(String, String), BTreeSet<String>>,
    /// Those that an example has and that do something in it.
    acting: BTreeSet<Field>,
    /// Those that do nothing in an example, and how that was seen.
    idle: BTreeMap<Field, String>,
    /// Changes that were taken.
    accepted: usize,
}

pub(super) fn file() -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/compile/tests/fields.yaml");
    std::fs::read_to_string(file).unwrap()
}

/// Fields that the file says it has no example for.
fn barred(text: &str) -> BTreeSet<Field> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# without: "));
    let field = |line: &str| {
        let (kind, rest) = line.split_once(", ").unwrap();
        let mut parts = rest.split(": ").map(str::to_owned);
        let mut next = || parts.next().unwrap_or_else(|| panic!("{line} is not KIND, MAPPING: FIELD: why"));
        let (what, field, _why) = (next(), next(), next());
        (kind.to_owned(), what, field)
    };
    lines.map(field).collect()
}

pub(super) fn examples(text: &str) -> Vec<Example> {
    let groups = text.split("# ===").filter(|group| group.contains("kind:"));
    let read = |group: &str| {
        let parsed = parse("fields.yaml", group);
        assert!(!parsed.has_errors(), "{:#?}", parsed.findings);
        let mut objects = parsed.objects.into_iter();
        let first = objects.next().unwrap();
        let company = objects.map(|object| object.json).collect();
        Example { kind: first.kind.to_string(), object: first.json, company }
    };
    groups.map(read).collect()
}

#[test]
fn every_field_of_every_kind_changes_what_proxies_get_or_is_told() {
    let mut seen = Seen::default();
    let text = file();
    for example in examples(&text) {
        let whole =
            example.outcome(&example.object).unwrap_or_else(|why| panic!("{}: {why:#?}", example.kind));
        let again = example.outcome(&example.object).map(|outcome| outcome.picture).unwrap_or_default();
        assert_eq!(whole.picture, again, "{}: compiled twice", example.kind);
        walk(&example, &whole, "/spec", &mut seen);
    }
    let Seen { tables, acting, idle, accepted } = seen;
    assert!(accepted > 100, "only {accepted} changes were taken");
    let barred = barred(&text);
    let all: BTreeSet<Field> = tables
        .into_iter()
        .flat_map(|((kind, what), fields)| {
            fields.into_iter().map(move |field| (kind.clone(), what.clone(), field))
        })
        .collect();
    println!("{} fields, {} of them without an example", all.len(), barred.len());
    let idle: Vec<&String> = idle
        .iter()
        .filter(|(field, _)| !acting.contains(*field) && !barred.contains(*field))
        .map(|(_, why)| why)
        .collect();
    assert!(idle.is_empty(), "{idle:#?}");
    let silent: Vec<&Field> =
        all.iter().filter(|field| !acting.contains(field) && !barred.contains(field)).collect();
    assert!(silent.is_empty(), "no example has {silent:#?}");
    let stale: Vec<&Field> =
        barred.iter().filter(|field| acting.contains(field) || !all.contains(field)).collect();
    assert!(stale.is_empty(), "there is an example, or no such field: {stale:#?}");
}
