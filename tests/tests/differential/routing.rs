//! Which route takes a request.

use serde_json::{Value, json};

use super::case::{Group, cluster, says, to};

/// Each match before a route that takes the rest, for each request: the body says whether it matched.
fn matched(name: &str, matches: Value, requests: &[&str]) -> Group {
    let routes = json!([says(matches, "matched"), says(json!({ "prefix": "/" }), "other")]);
    Group::new(name, routes).ask(requests.iter().copied())
}

const PATHS: &[&str] = &[
    "GET /a",
    "GET /a/",
    "GET /a/b",
    "GET /ab",
    "GET /A",
    "GET /",
    "GET /a?b=c",
    "GET /a?",
    "GET /a%2Fb",
    "GET //a",
    "GET /b/../a",
    "GET /%61",
    "GET /a;b",
    "GET http://a.test/a",
];

const HEADERS: &[&str] = &[
    "GET /",
    "GET /\nx-a: v",
    "GET /\nx-a: V",
    "GET /\nX-A: v",
    "GET /\nx-a: v1",
    "GET /\nx-a: 1v",
    "GET /\nx-a: 1v1",
    "GET /\nx-a:",
    "GET /\nx-a: v\nx-a: w",
    "GET /\nx-a: w\nx-a: v",
];

/// What is a digit, a letter or a blank to Unicode is none to RE2.
const DIGITS: &[&str] = &[
    "GET /\nx-a: 12",
    "GET /\nx-a: \u{663}",
    "GET /\nx-a: a b",
    "GET /\nx-a: a\u{a0}b",
    "GET /\nx-a: \u{e4} b",
    "GET /\nx-a: \u{e4}z",
    "GET /\nx-a: az",
];

const QUERIES: &[&str] = &[
    "GET /",
    "GET /?q=v",
    "GET /?q=V",
    "GET /?q=v1",
    "GET /?q",
    "GET /?q=",
    "GET /?p=v&q=v",
    "GET /?q=w&q=v",
    "GET /?Q=v",
    "GET /?q=%76",
    "GET /?qq=v",
    "GET /?q=v#f",
    "GET /?q=v=w",
    "GET /?&q=v&",
];

const NUMBERS: &[&str] = &[
    "GET /",
    "GET /\nx-a: 1",
    "GET /\nx-a: 9",
    "GET /\nx-a: 10",
    "GET /\nx-a: 0",
    "GET /\nx-a: -5",
    "GET /\nx-a: +5",
    "GET /\nx-a: 05",
    "GET /\nx-a: 5.0",
    "GET /\nx-a: 5x",
    "GET /\nx-a: 0x5",
    "GET /\nx-a:",
    "GET /\nx-a: 5, 6",
    "GET /\nx-a: 5\nx-a: 60",
    "GET /\nx-a: 99999999999999999999",
];

const COOKIES: &[&str] = &[
    "GET /",
    "GET /\nCookie: c=v",
    "GET /\nCookie: c=V",
    "GET /\nCookie: C=v",
    "GET /\nCookie: a=b; c=v",
    "GET /\nCookie: a=b;c=v;d=e",
    "GET /\nCookie: c=\"v\"",
    "GET /\nCookie: c=\"v",
    "GET /\nCookie: c=",
    "GET /\nCookie: c",
    "GET /\nCookie: c; a=b",
    "GET /\nCookie: c=w; c=v",
    "GET /\nCookie: c=v; c=w",
    "GET /\nCookie: c=w\nCookie: c=v",
    "GET /\nCookie: a=b\nCookie: c=v",
    "GET /\nCookie: c =v",
    "GET /\nCookie: c= v",
    "GET /\nCookie: c=v ; a=b",
    "GET /\nCookie: cc=v",
    "GET /\nCookie: c=v=w",
];

const HOSTS: &[&str] = &[
    "GET /\nHost: one.example",
    "GET /\nHost: ONE.example",
    "GET /\nHost: one.example:80",
    "GET /\nHost: one.example:8080",
    "GET /\nHost: one.example.",
    "GET /\nHost: a.one.example",
    "GET /\nHost: b.a.one.example",
    "GET /\nHost: .one.example",
    "GET /\nHost: two.example:81",
    "GET /\nHost: two.example:82",
    "GET /\nHost: three.a",
    "GET /\nHost: three.",
    "GET /\nHost: three",
    "GET /\nHost: unknown.example",
    "GET http://one.example/\nHost: two.example",
];

fn paths() -> Vec<Group> {
    let regex = |regex: &str| json!({ "safe_regex": { "regex": regex } });
    vec![
        matched("prefix", json!({ "prefix": "/a" }), PATHS),
        matched("slashed", json!({ "prefix": "/a/" }), PATHS),
        matched("exact", json!({ "path": "/a" }), PATHS),
        matched("segments", json!({ "path_separated_prefix": "/a" }), PATHS),
        matched("regex", regex("/a(/.*)?"), PATHS),
        matched("unanchored", regex("/a"), PATHS),
        matched("folded", json!({ "prefix": "/a", "case_sensitive": false }), PATHS),
        matched("folded-exact", json!({ "path": "/A", "case_sensitive": false }), PATHS),
    ]
}

fn headers() -> Vec<Group> {
    let text = |name: &str, text: Value| {
        let both = [("", false), ("-not", true)];
        both.map(|(end, invert)| {
            let header = json!({ "name": "x-a", "string_match": text, "invert_match": invert });
            matched(&format!("header-{name}{end}"), json!({ "prefix": "/", "headers": [header] }), HEADERS)
        })
    };
    let one =
        |name: &str, header: Value| matched(name, json!({ "prefix": "/", "headers": [header] }), HEADERS);
    let mut all: Vec<Group> = [
        text("exact", json!({ "exact": "v" })),
        text("prefix", json!({ "prefix": "v" })),
        text("suffix", json!({ "suffix": "v" })),
        text("contains", json!({ "contains": "v" })),
        text("regex", json!({ "safe_regex": { "regex": "v.?" } })),
        text("folded", json!({ "exact": "V", "ignore_case": true })),
    ]
    .into_iter()
    .flatten()
    .collect();
    all.push(one("header-present", json!({ "name": "x-a", "present_match": true })));
    all.push(one("header-absent", json!({ "name": "x-a", "present_match": false })));
    all.push(one(
        "header-present-not",
        json!({ "name": "x-a", "present_match": true, "invert_match": true }),
    ));
    all.push(one("header-alone", json!({ "name": "x-a" })));
    let missing = json!({ "name": "x-a", "string_match": { "exact": "v" }, "invert_match": true,
                          "treat_missing_header_as_empty": true });
    all.push(one("header-missing-not", missing));
    // Nothing is left that it could take: an absent field is an empty text.
    let anything = json!({ "name": "x-a", "string_match": { "safe_regex": { "regex": "v?.*" } }, "invert_match": true,
                           "treat_missing_header_as_empty": true });
    all.push(one("header-anything-not", anything));
    let digits =
        json!({ "name": "x-a", "string_match": { "safe_regex": { "regex": "\\d+|\\w\\s\\w|.*\\bz" } } });
    let header = json!({ "prefix": "/", "headers": [digits] });
    all.push(matched("header-digits", header, DIGITS));
    all
}

fn pseudo() -> Vec<Group> {
    let header = |name: &str, of: &str, text: Value, requests: &[&str]| {
        let header = json!({ "name": of, "string_match": text });
        matched(name, json!({ "prefix": "/", "headers": [header] }), requests)
    };
    vec![
        header(
            "method",
            ":method",
            json!({ "exact": "POST" }),
            &["GET /", "POST /\n\nx", "HEAD /", "OPTIONS /", "PUT /\n\nx"],
        ),
        header("path-header", ":path", json!({ "prefix": "/a?b" }), &["GET /a", "GET /a?b", "GET /a?b=c"]),
        header(
            "scheme",
            ":scheme",
            json!({ "exact": "http" }),
            &["GET /", "GET http://scheme.test/", "GET /\nx-forwarded-proto: https"],
        ),
        header(
            "authority",
            ":authority",
            json!({ "exact": "authority.test" }),
            &["GET /", "GET /\nHost: authority.test:80", "GET /\nHost: AUTHORITY.test"],
        ),
    ]
}

fn queries() -> Vec<Group> {
    let query = |name: &str, fields: Value| {
        let mut query = fields;
        query["name"] = "q".into();
        matched(name, json!({ "prefix": "/", "query_parameters": [query] }), QUERIES)
    };
    vec![
        query("query-exact", json!({ "string_match": { "exact": "v" } })),
        query("query-prefix", json!({ "string_match": { "prefix": "v" } })),
        query("query-regex", json!({ "string_match": { "safe_regex": { "regex": "v[0-9]*" } } })),
        query("query-folded", json!({ "string_match": { "exact": "V", "ignore_case": true } })),
        query("query-present", json!({ "present_match": true })),
    ]
}

/// A number within bounds in a field.
fn numbers() -> Vec<Group> {
    let range = |name: &str, start: i64, end: i64, more: Value| {
        let mut header = more;
        header["name"] = "x-a".into();
        header["range_match"] = json!({ "start": start, "end": end });
        matched(name, json!({ "prefix": "/", "headers": [header] }), NUMBERS)
    };
    vec![
        range("range", 1, 10, json!({})),
        range("range-below", -5, 1, json!({})),
        range("range-not", 1, 10, json!({ "invert_match": true })),
        range(
            "range-missing-not",
            1,
            10,
            json!({ "invert_match": true, "treat_missing_header_as_empty": true }),
        ),
        range("range-of-none", 5, 5, json!({})),
    ]
}

fn cookies() -> Vec<Group> {
    let cookie = |name: &str, text: Value, invert: bool| {
        let cookie = json!({ "name": "c", "string_match": text, "invert_match": invert });
        matched(name, json!({ "prefix": "/", "cookies": [cookie] }), COOKIES)
    };
    vec![
        cookie("cookie-exact", json!({ "exact": "v" }), false),
        cookie("cookie-exact-not", json!({ "exact": "v" }), true),
        cookie("cookie-prefix", json!({ "prefix": "v" }), false),
        cookie("cookie-regex", json!({ "safe_regex": { "regex": ".*" } }), false),
        cookie("cookie-folded", json!({ "exact": "V", "ignore_case": true }), false),
    ]
}

fn hosts() -> Vec<Group> {
    let host = |name: &str, domains: &[&str]| {
        let route = says(json!({ "prefix": "/" }), name);
        Group::host(name, json!({ "domains": domains, "routes": [route] }))
    };
    vec![
        host("one", &["one.example"]).ask(HOSTS.iter().copied()),
        host("below-one", &["*.one.example"]),
        host("two", &["two.example:81"]),
        host("three", &["three.*"]),
        host("any", &["*"]),
    ]
}

fn clusters() -> Vec<Group> {
    let all = || json!({ "prefix": "/" });
    let share = |name: &str, weight: u32| json!({ "name": name, "weight": weight });
    let weighted =
        |shares: Value| json!([{ "match": all(), "route": { "weighted_clusters": { "clusters": shares } } }]);
    let code = |code: &str| json!([to(all(), "nobody", json!({ "cluster_not_found_response_code": code }))]);
    vec![
        Group::new("first-of-two", weighted(json!([share("a", 100), share("b", 0)])))
            .ask(["GET /", "POST /x\n\nhello"]),
        Group::new("second-of-two", weighted(json!([share("a", 0), share("b", 1)]))).ask(["GET /", "HEAD /"]),
        Group::new("no-cluster", json!([to(all(), "nobody", json!({}))])).ask(["GET /", "HEAD /"]),
        Group::new("no-cluster-404", code("NOT_FOUND")).ask(["GET /"]),
        Group::new("no-cluster-500", code("INTERNAL_SERVER_ERROR")).ask(["GET /"]),
        Group::new("no-endpoint", json!([to(all(), "empty", json!({}))]))
            .cluster(cluster("empty", &[], json!({})))
            .ask(["GET /", "POST /\n\nx"]),
        Group::new("no-route", json!([to(json!({ "prefix": "/a" }), "a", json!({}))]))
            .ask(["GET /b", "GET /a", "HEAD /b"]),
        Group::new("refused", json!([to(all(), "dead", json!({}))])).ask(["GET /", "POST /\n\nx"]),
    ]
}

pub fn groups() -> Vec<Group> {
    [paths(), headers(), numbers(), pseudo(), queries(), cookies(), hosts(), clusters()]
        .into_iter()
        .flatten()
        .collect()
}
