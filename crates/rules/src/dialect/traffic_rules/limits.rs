//! Rate limits of a native page, and of its routes.

use outrigger_model::rate_limit::{Algorithm, By, MOST_LIMITS, MOST_PARTS, MOST_REQUESTS, RateLimit, TIMES};
use outrigger_model::route::RouteMatch;

use super::matches::request;
use crate::finding::quote;
use crate::intent::{GlobalIntent, Host, HttpMatch, HttpRoute};
use crate::reader::{At, Fields, Reader, Table};
use crate::yaml::Value;

mod global;

const LIMIT: Table = Table::new(
    "a rate limit",
    &["name", "requests", "per", "algorithm", "burst", "by", "match", "service", "descriptor"],
);
/// What its route matches, counts.
const LIMIT_OF_ROUTE: Table = Table::new(
    "a rate limit of a route",
    &["name", "requests", "per", "algorithm", "burst", "by", "service", "descriptor"],
);
const WORDS: [(&str, By); 3] = [("caller", By::Caller), ("address", By::Address), ("path", By::Path)];
const BY: Table = Table::new("what counts are kept for", &["header"]);
const MATCH: Table =
    Table::new("a match", &["path", "method", "authority", "headers", "withoutHeaders", "query", "cookies"]);

/// All limits of a page: those that instances keep, and those that a service keeps.
#[derive(Default)]
pub(super) struct Limits {
    names: Vec<String>,
    pub(super) own: Vec<RateLimit>,
    pub(super) global: Vec<GlobalIntent>,
}

impl Limits {
    pub(super) fn is_empty(&self) -> bool {
        self.own.is_empty() && self.global.is_empty()
    }

    /// Those of the page itself.
    pub(super) fn of_page(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Self {
        let mut limits = Self::default();
        if let Some(at) = at {
            limits.add(reader, &at, None);
        }
        limits
    }

    /// Those of a route. Instances keep them, who see a request as it comes and nothing of its route: it must be told by that.
    pub(super) fn of_route(
        &mut self,
        reader: &mut Reader<'_>,
        fields: &Fields<'_>,
        route: &HttpRoute,
        host: Option<&Host>,
    ) {
        // Beside an answer of its own it was told already.
        let Some(at) = fields.get("rateLimit").filter(|_| route.forward().is_some()) else { return };
        if let Some(why) = untold(route, host) {
            let message = format!("{}: {why}; write a limit with a match of its own for the page", at.path);
            reader.error(&at, message);
            return;
        }
        let matches = route.matches.first().map_or_else(RouteMatch::any, |found| found.request.clone());
        self.add(reader, &at, Some(&matches));
    }

    /// One limit, or a list of them.
    fn add(&mut self, reader: &mut Reader<'_>, at: &At<'_>, of: Option<&RouteMatch>) {
        let items = match at.node.value {
            Value::Map(_) => vec![at.clone()],
            _ => reader.list(Some(at.clone())),
        };
        if self.names.len() + items.len() > MOST_LIMITS {
            reader.error(at, format!("{}: a service has at most {MOST_LIMITS} rate limits", at.path));
            return;
        }
        let table = if of.is_some() { &LIMIT_OF_ROUTE } else { &LIMIT };
        for item in &items {
            let Some(fields) = reader.fields(item, table) else { continue };
            let name = reader.text(fields.get("name")).unwrap_or_else(|| (self.names.len() + 1).to_string());
            if self.names.contains(&name) {
                reader.error(item, format!("{}: there are two rate limits {}", item.path, quote(&name)));
            }
            self.names.push(name.clone());
            let matches = match of {
                Some(matches) => Some(matches.clone()),
                None => matches(reader, &fields),
            };
            match fields.has("service") || fields.has("descriptor") {
                true => self.global.extend(global::limit(reader, &fields, name, matches)),
                false => self.own.extend(limit(reader, &fields, name, matches)),
            }
        }
    }
}

/// Why instances cannot tell the requests of a route.
fn untold(route: &HttpRoute, host: Option<&Host>) -> Option<&'static str> {
    let forward = route.forward()?;
    let of_caller = |found: &HttpMatch| {
        found.port.is_some() || !found.source_labels.is_empty() || found.source_namespace.is_some()
    };
    let edits = &route.route.request_headers;
    let edited = |name: &str| {
        let mut set = edits.set.iter().chain(&edits.add).map(|(name, _)| name);
        set.any(|edit| edit == name) || edits.remove.iter().any(|edit| edit == name)
    };
    let by_edited =
        |found: &HttpMatch| found.request.headers.iter().any(|header| edited(header.name.as_str()));
    if route.matches.len() > 1 {
        Some("its route has several matches, which would have a count each")
    } else if route.matches.iter().any(of_caller) {
        Some(
            "its route asks for what instances are not told: the port that was called, the caller's labels or namespace",
        )
    } else if forward.rewrite != Default::default() || route.matches.iter().any(by_edited) {
        Some("its route changes what it matches, and instances see what comes of it")
    } else if !route.targets.iter().any(|share| Some(&share.target.host) == host) {
        Some("its requests go to other services")
    } else {
        None
    }
}

/// The requests that count.
fn matches(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<RouteMatch> {
    match fields.get("match") {
        Some(at) => reader.fields(&at, &MATCH).map(|fields| request(reader, &fields)),
        None => Some(RouteMatch::any()),
    }
}

fn limit(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    name: String,
    matches: Option<RouteMatch>,
) -> Option<RateLimit> {
    for needed in ["requests", "per"] {
        if !fields.has(needed) {
            reader.missing(fields, needed);
        }
    }
    let requests = reader.number(fields.get("requests"), 1..=MOST_REQUESTS);
    let per = reader.duration(fields.get("per"));
    if let (Some(per), Some(at)) = (per, fields.get("per"))
        && !(TIMES.0..=TIMES.1).contains(&per)
    {
        reader.error(&at, format!("{} must be from 10ms to 24h", at.path));
    }
    let words = [("tokenBucket", false), ("slidingWindow", true)];
    let sliding = reader.choice(fields.get("algorithm"), &words).unwrap_or(false);
    let burst = reader.number(fields.get("burst"), 1..=MOST_REQUESTS);
    if let Some(at) = fields.get("burst").filter(|_| sliding) {
        reader.error(&at, format!("{}: a sliding window has no burst; leave it out", at.path));
    }
    let by = by(reader, fields.get("by"));
    let requests = requests?;
    Some(RateLimit {
        name,
        matches: matches?,
        by,
        requests,
        per: per?,
        algorithm: match sliding {
            true => Algorithm::SlidingWindow,
            false => Algorithm::TokenBucket { burst: burst.unwrap_or(requests) },
        },
        origin: None,
    })
}

/// `caller`, `address`, `path`, or `{header: NAME}`; one or a list.
fn by(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<By> {
    let Some(at) = at else { return Vec::new() };
    let items = match at.node.value {
        Value::List(_) => reader.list(Some(at.clone())),
        _ => vec![at.clone()],
    };
    if items.len() > MOST_PARTS {
        reader.error(&at, format!("{}: at most {MOST_PARTS} parts tell counts apart", at.path));
        return Vec::new();
    }
    let mut parts = Vec::new();
    for item in items {
        if !matches!(item.node.value, Value::Map(_)) {
            parts.extend(reader.choice(Some(item), &WORDS));
            continue;
        }
        let Some(fields) = reader.fields(&item, &BY) else { continue };
        match fields.get("header") {
            Some(header) => parts.extend(header_of(reader, header).map(By::Header)),
            None => reader.missing(&fields, "header"),
        }
    }
    parts
}

fn header_of(reader: &mut Reader<'_>, at: At<'_>) -> Option<String> {
    let name = reader.text(Some(at.clone()))?;
    Some(reader.header_name(&at, &name)?.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{limits, object, one_told};

    fn page(limits: &str) -> String {
        object("outrigger.io/v1", "TrafficRules", &format!("service: reviews\nrateLimit: {limits}"))
    }

    #[test]
    fn a_limit_is_a_token_bucket_as_large_as_its_number_for_all_requests() {
        let found = limits(&page("{requests: 100, per: 1s}"));
        assert_eq!(found.host.as_str(), "reviews.shop.svc.cluster.local");
        let wanted = RateLimit {
            name: "1".into(),
            matches: RouteMatch::any(),
            by: Vec::new(),
            requests: 100,
            per: Duration::from_secs(1),
            algorithm: Algorithm::TokenBucket { burst: 100 },
            origin: None,
        };
        assert_eq!(found.limits, [wanted]);
    }

    #[test]
    fn limits_have_names_algorithms_parts_and_matches() {
        let text = page(
            "[{name: a, requests: 5, per: 1m, algorithm: slidingWindow, by: [caller, {header: X-User}, path]},\
             {requests: 5, per: 1m, burst: 9, by: address, match: {path: {prefix: /api}, method: POST}}]",
        );
        let found = limits(&text).limits;
        assert_eq!((found[0].name.as_str(), found[1].name.as_str()), ("a", "2"));
        assert_eq!(found[0].algorithm, Algorithm::SlidingWindow);
        assert_eq!(found[0].by, [By::Caller, By::Header("x-user".into()), By::Path]);
        assert_eq!(found[1].algorithm, Algorithm::TokenBucket { burst: 9 });
        assert_eq!(found[1].by, [By::Address]);
        assert_eq!(found[1].matches.headers.len(), 1);
        assert!(found.iter().all(|limit| limit.check().is_ok()));
    }

    #[test]
    fn a_limit_that_cannot_be_is_an_error_that_says_why() {
        for (block, wanted) in [
            ("{per: 1s}", "requests"),
            ("{requests: 1}", "per"),
            ("{requests: 0, per: 1s}", "requests"),
            ("{requests: 1, per: 1ms}", "per must be from 10ms to 24h"),
            ("{requests: 1, per: 25h}", "per must be from 10ms to 24h"),
            ("{requests: 1, per: 1s, algorithm: leakyBucket}", "tokenBucket, slidingWindow"),
            ("{requests: 1, per: 1s, algorithm: slidingWindow, burst: 2}", "a sliding window has no burst"),
            ("{requests: 1, per: 1s, by: calller}", "Did you mean \"caller\"?"),
            ("{requests: 1, per: 1s, by: [{}]}", "header"),
            ("{requests: 1, per: 1s, by: {header: 'a b'}}", "header"),
            ("{requests: 1, per: 1s, match: {sourceNamespace: x}}", "sourceNamespace"),
            ("[{name: a, requests: 1, per: 1s}, {name: a, requests: 1, per: 1s}]", "two rate limits \"a\""),
        ] {
            let told = one_told(&page(block));
            assert!(told.contains(wanted), "{block}: {told}");
        }
    }
}
