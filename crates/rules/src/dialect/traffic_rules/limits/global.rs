//! A rate limit that a service keeps for all instances.

use outrigger_model::global_limit::{Entry, EntryValue, GlobalLimit};
use outrigger_model::rate_limit::By;
use outrigger_model::route::RouteMatch;

use super::{WORDS, header_of};
use crate::finding::quote;
use crate::intent::GlobalIntent;
use crate::reader::{At, Fields, Reader, Table};
use crate::yaml::Value;

/// Of a limit that instances keep.
const OWN: [&str; 5] = ["requests", "per", "algorithm", "burst", "by"];
const ENTRY: Table = Table::new("an entry of a descriptor", &["header", "key", "value"]);

pub(super) fn limit(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    name: String,
    matches: Option<RouteMatch>,
) -> Option<GlobalIntent> {
    for needed in ["service", "descriptor"] {
        if !fields.has(needed) {
            reader.missing(fields, needed);
        }
    }
    if let Some(at) = OWN.iter().find_map(|own| fields.get(own)) {
        let message = format!("{}: how many pass says the service that is asked; leave it out", at.path);
        reader.error(&at, message);
    }
    let service = fields.get("service")?;
    let provider = reader.text(Some(service.clone()))?;
    let descriptor = descriptor(reader, fields.get("descriptor")?);
    let limit = GlobalLimit { name, matches: matches?, descriptor: descriptor?, origin: None };
    if let (Err((_, why)), Some(at)) = (limit.check(), fields.get("descriptor")) {
        reader.error(&at, format!("{}: {why}", at.path));
        return None;
    }
    Some(GlobalIntent { provider, place: service.place(), limit })
}

/// Nothing where one of them is none; that is told. `caller`, `address` (by Envoy's key `remote_address`), `path`, `{header: NAME, key: KEY}`, or `{key: KEY, value: TEXT}`; one or a list.
fn descriptor(reader: &mut Reader<'_>, at: At<'_>) -> Option<Vec<Entry>> {
    let items = match at.node.value {
        Value::List(_) => reader.list(Some(at)),
        _ => vec![at],
    };
    let all: Vec<Option<Entry>> = items.into_iter().map(|item| entry(reader, item)).collect();
    all.into_iter().collect()
}

fn key(by: &By) -> &str {
    match by {
        By::Caller => "caller",
        By::Address => "remote_address",
        By::Path => "path",
        By::Header(name) => name,
    }
}

fn entry(reader: &mut Reader<'_>, at: At<'_>) -> Option<Entry> {
    if !matches!(at.node.value, Value::Map(_)) {
        let by = reader.choice(Some(at), &WORDS)?;
        return Some(Entry { key: key(&by).to_owned(), value: EntryValue::Of(by) });
    }
    let fields = reader.fields(&at, &ENTRY)?;
    let given = reader.text(fields.get("key"));
    match (fields.get("header"), fields.get("value")) {
        (Some(header), None) => {
            let by = By::Header(header_of(reader, header)?);
            let key = given.unwrap_or_else(|| key(&by).to_owned());
            Some(Entry { key, value: EntryValue::Of(by) })
        }
        (None, Some(value)) => {
            let text = reader.text(Some(value))?;
            if given.is_none() {
                reader.missing(&fields, "key");
            }
            Some(Entry { key: given?, value: EntryValue::Text(text) })
        }
        _ => {
            let message = format!("{}: write one of {} and {}", at.path, quote("header"), quote("value"));
            reader.error(&at, message);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{limits, object, one_told};

    fn page(limit: &str) -> String {
        object("outrigger.io/v1", "TrafficRules", &format!("service: reviews\nrateLimit: {limit}"))
    }

    #[test]
    fn a_limit_of_a_service_has_its_descriptor_in_order() {
        let text = "{service: limiter, descriptor: [caller, address, path, {header: X-User, key: user}, {header: X-A}, {key: plan, value: free}], \
                    match: {path: {prefix: /api}}}";
        let found = limits(&page(text));
        assert!(found.limits.is_empty());
        let [one] = found.global.as_slice() else { panic!("{found:?}") };
        assert_eq!((&*one.provider, &*one.limit.name), ("limiter", "1"));
        let header = |name: &str| EntryValue::Of(By::Header(name.into()));
        let wanted = [
            ("caller", EntryValue::Of(By::Caller)),
            ("remote_address", EntryValue::Of(By::Address)),
            ("path", EntryValue::Of(By::Path)),
            ("user", header("x-user")),
            ("x-a", header("x-a")),
            ("plan", EntryValue::Text("free".into())),
        ];
        let wanted = wanted.map(|(key, value)| Entry { key: key.into(), value });
        assert_eq!(one.limit.descriptor, wanted);
        assert_ne!(one.limit.matches, RouteMatch::any());
        let both = limits(&page("[{requests: 5, per: 1s}, {service: limiter, descriptor: caller}]"));
        assert_eq!((both.limits.len(), &*both.global[0].limit.name, both.count()), (1, "2", 2));
    }

    #[test]
    fn a_limit_of_a_service_that_cannot_be_is_an_error_that_says_why() {
        for (limit, wanted) in [
            ("{service: limiter}", "descriptor"),
            ("{descriptor: caller}", "service"),
            ("{service: limiter, descriptor: caller, requests: 5}", "how many pass says the service"),
            ("{service: limiter, descriptor: []}", "must have 1 to 16 entries"),
            ("{service: limiter, descriptor: calller}", "Did you mean \"caller\"?"),
            ("{service: limiter, descriptor: {key: a}}", "write one of \"header\" and \"value\""),
            ("{service: limiter, descriptor: {header: a, value: b}}", "write one of"),
            ("{service: limiter, descriptor: {value: b}}", "key"),
            ("{service: limiter, descriptor: {key: a, value: ''}}", "1 to 256 bytes"),
            ("{service: limiter, descriptor: {header: 'a b'}}", "header"),
            (
                "[{name: a, service: l, descriptor: path}, {name: a, requests: 1, per: 1s}]",
                "two rate limits \"a\"",
            ),
        ] {
            let told = one_told(&page(limit));
            assert!(told.contains(wanted), "{limit}: {told}");
        }
    }
}
