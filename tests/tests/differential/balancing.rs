//! Which endpoint gets a request, which are out for a while, and what is over a limit.

use serde_json::{Value, json};

use super::case::{Case, Group, Step, cluster, to, typed};

const FIVE: &[&str] = &["a", "b", "c", "d", "e"];

fn hashed(name: &str, lb: Value, policies: Value, requests: Vec<String>) -> Group {
    let own = format!("{name}-endpoints");
    Group::new(name, json!([to(json!({ "prefix": "/" }), &own, json!({ "hash_policy": policies }))]))
        .cluster(cluster(&own, FIVE, lb))
        .ask(requests)
}

fn hashing() -> Vec<Group> {
    let ring = || json!({ "lb_policy": "RING_HASH" });
    let maglev = || json!({ "lb_policy": "MAGLEV" });
    let each = |make: &dyn Fn(usize) -> String| (0..12).map(make).collect::<Vec<_>>();
    let by_header = || json!([{ "header": { "header_name": "x-user" } }]);
    let by_cookie = || json!([{ "cookie": { "name": "who" } }]);
    let by_query = || json!([{ "query_parameter": { "name": "who" } }]);
    let users = || each(&|n| format!("GET /\nx-user: user-{n}"));
    let mut all = vec![
        hashed("ring-header", ring(), by_header(), users()),
        hashed("maglev-header", maglev(), by_header(), users()),
        hashed("ring-cookie", ring(), by_cookie(), each(&|n| format!("GET /\nCookie: a=b; who={n}; c=d"))),
        hashed("maglev-cookie", maglev(), by_cookie(), each(&|n| format!("GET /\nCookie: who=\"{n}\""))),
        hashed("ring-query", ring(), by_query(), each(&|n| format!("GET /?a=b&who={n}"))),
        hashed("maglev-query", maglev(), by_query(), each(&|n| format!("GET /?who={n}&who=x"))),
        hashed(
            "ring-source",
            ring(),
            json!([{ "connection_properties": { "source_ip": true } }]),
            vec!["GET /".into(), "GET /a".into()],
        ),
        hashed(
            "maglev-source",
            maglev(),
            json!([{ "connection_properties": { "source_ip": true } }]),
            vec!["GET /".into()],
        ),
        hashed(
            "ring-both",
            ring(),
            json!([{ "header": { "header_name": "x-user" } }, { "query_parameter": { "name": "who" } }]),
            each(&|n| format!("GET /?who={}\nx-user: user-{n}", n % 3)),
        ),
        hashed(
            "ring-second",
            ring(),
            json!([{ "header": { "header_name": "x-none" } }, { "query_parameter": { "name": "who" } }]),
            each(&|n| format!("GET /?who={n}")),
        ),
        hashed("ring-lines", ring(), by_header(), each(&|n| format!("GET /\nx-user: a{n}\nx-user: b{n}"))),
        hashed(
            "ring-small",
            json!({ "lb_policy": "RING_HASH", "ring_hash_lb_config": { "minimum_ring_size": 7, "maximum_ring_size": 7 } }),
            by_header(),
            users(),
        ),
        hashed(
            "maglev-small",
            json!({ "lb_policy": "MAGLEV", "maglev_lb_config": { "table_size": 11 } }),
            by_header(),
            users(),
        ),
    ];
    for (name, lb) in [("ring", ring()), ("maglev", maglev())] {
        let of = format!("{name}-weighted-endpoints");
        let route = to(json!({ "prefix": "/" }), &of, json!({ "hash_policy": by_header() }));
        let weighted = cluster(&of, &["a*3", "b", "c*7", "d*2", "e*100"], lb.clone());
        all.push(Group::new(format!("{name}-weighted"), json!([route])).cluster(weighted).ask(users()));
        let policies = json!([{ "header": { "header_name": "x-none" } }, { "header": { "header_name": "x-user" }, "terminal": true }]);
        all.push(hashed(&format!("{name}-terminal"), lb, policies, users()));
    }
    all
}

/// A cluster of its own for a case whose endpoints remember.
fn own(name: &str, endpoints: &[&str], fields: Value, action: Value) -> Group {
    let endpoints_of = format!("{name}-endpoints");
    let retries = action.get("retry_policy").is_some();
    let routes = json!([to(json!({ "prefix": "/" }), &endpoints_of, action)]);
    Group::host(name, json!({ "routes": routes, "include_request_attempt_count": retries }))
        .cluster(cluster(&endpoints_of, endpoints, fields))
        .in_order()
}

fn ejection() -> Vec<Group> {
    let outlier = |fields: Value| {
        let mut all = json!({ "interval": "60s", "base_ejection_time": "60s", "max_ejection_percent": 100,
                              "enforcing_success_rate": 0 });
        for (name, value) in fields.as_object().expect("fields") {
            all[name] = value.clone();
        }
        json!({ "lb_policy": "ROUND_ROBIN", "outlier_detection": all })
    };
    let sequence = |name: &str, answers: &[&str]| {
        Case::new(name, answers.iter().map(|answer| format!("GET /\nx-answers: {answer}"))).by_chance()
    };
    let one = |name: &str, fields: Value, answers: &[&str]| {
        own(name, &["a"], outlier(fields), json!({})).case(sequence("one endpoint", answers))
    };
    vec![
        one("eject-5xx", json!({ "consecutive_5xx": 3 }), &["500", "503", "500", "200", "200"]),
        one(
            "eject-interrupted",
            json!({ "consecutive_5xx": 3 }),
            &["500", "503", "200", "500", "500", "200"],
        ),
        one("eject-4xx", json!({ "consecutive_5xx": 2 }), &["404", "429", "400", "200"]),
        one("eject-reset", json!({ "consecutive_5xx": 2 }), &["reset", "reset", "200"]),
        one(
            "eject-gateway",
            json!({ "consecutive_5xx": 100, "consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100 }),
            &["500", "502", "504", "200"],
        ),
        one(
            "eject-off",
            json!({ "consecutive_5xx": 2, "enforcing_consecutive_5xx": 0 }),
            &["500", "500", "500", "200"],
        ),
    ]
}

/// So many requests while others are under way.
fn held(name: &str, held: usize, asked: usize) -> Case {
    let hold = std::iter::repeat_n(Step::Hold("GET /\nx-answers: hold".into()), held);
    let ask = std::iter::repeat_n(Step::Ask("GET /".into()), asked);
    let mut case = Case::new(name, [""; 0]);
    case.steps = hold.chain(ask).collect();
    case
}

fn limits() -> Vec<Group> {
    let threshold = |fields: Value| json!({ "circuit_breakers": { "thresholds": [fields] } });
    let retries = json!({ "retry_policy": { "retry_on": "5xx", "num_retries": 3, "retry_back_off": { "base_interval": "0.001s" } } });
    vec![
        own("max-requests-1", &["a"], threshold(json!({ "max_requests": 1 })), json!({}))
            .case(held("one under way", 1, 2))
            .case(held("none under way", 0, 2)),
        own("max-requests-3", &["a"], threshold(json!({ "max_requests": 3 })), json!({}))
            .case(held("two under way", 2, 1))
            .case(held("three under way", 3, 1)),
        own(
            "max-pending-0",
            &["a"],
            threshold(json!({ "max_connections": 1, "max_pending_requests": 0 })),
            json!({}),
        )
        .case(held("none under way", 0, 2))
        .case(held("one under way", 1, 1)),
        own("max-retries-0", &["a"], threshold(json!({ "max_retries": 0 })), retries)
            .case(Case::new("a failure", ["GET /\nx-answers: 503, 200"])),
        own("max-requests-0", &["a"], threshold(json!({ "max_requests": 0 })), json!({})).case(held(
            "none under way",
            0,
            1,
        )),
    ]
}

/// Of requests to listeners with token buckets.
fn rates() -> Vec<Group> {
    let group = |name: &str, listener| {
        Group::new(name, json!([to(json!({ "prefix": "/" }), "a", json!({}))])).at(listener).in_order()
    };
    let rpc = "POST /\ncontent-type: application/grpc\n\nx";
    vec![
        group("rate-of-3", 1)
            .case(Case::new("two", ["GET /", "POST /\n\nhello"]))
            .case(Case::new("three more", ["GET /", "GET /", "HEAD /"]))
            .case(Case::new("and one", [rpc])),
        group("rate-of-1", 2).case(Case::new("calls", [rpc, rpc])),
        group("rate-of-none", 3).case(Case::new("three", ["GET /", "GET /", "GET /"])),
    ]
}

/// Limits of routes and virtual hosts, at a listener whose own is not enabled.
fn places() -> Vec<Group> {
    const KIND: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
    let percent =
        |percent: u32| json!({ "default_value": { "numerator": percent, "denominator": "HUNDRED" } });
    let header = |name: &str| json!([{ "header": { "key": name, "value": "yes" } }]);
    let limit = |tokens: u32, more: Value| {
        let mut limit = json!({ "stat_prefix": "limit", "filter_enabled": percent(100), "filter_enforced": percent(100),
            "token_bucket": { "max_tokens": tokens, "tokens_per_fill": tokens, "fill_interval": "3600s" } });
        limit.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({ "the-limit": typed(KIND, limit) })
    };
    let route = |prefix: &str, config: Value| {
        let mut route = to(json!({ "prefix": prefix }), "a", json!({}));
        route["typed_per_filter_config"] = config;
        route
    };
    let off =
        json!({ "the-limit": typed("envoy.config.route.v3.FilterConfig", json!({ "disabled": true })) });
    let rpc = "POST /\ncontent-type: application/grpc\n\nx";
    let place = |name: &str, more: Value, requests: &[&str]| {
        Group::new(name, json!([route("/", limit(1, more))]))
            .at(3)
            .in_order()
            .case(Case::new("calls", requests.iter().map(|request| (*request).to_owned())))
    };
    let host = json!({
        "routes": [route("/own", limit(1, json!({}))), route("/off", off), route("/a", json!({})), route("/b", json!({}))],
        "typed_per_filter_config": limit(2, json!({})),
    });
    let says = json!([{ "match": { "prefix": "/" }, "direct_response": { "status": 200 },
                        "typed_per_filter_config": limit(1, json!({})) }]);
    vec![
        Group::host("limit-of-host", host).at(3).in_order().case(Case::new(
            "calls",
            [
                "GET /a", "GET /own", "GET /b", "GET /a", "GET /b", "GET /own", "GET /off", "GET /off",
                "GET /off",
            ],
        )),
        place("limit-status", json!({ "status": { "code": 503 } }), &["GET /", "GET /", "HEAD /", rpc]),
        place("limit-status-200", json!({ "status": { "code": 200 } }), &["GET /", "GET /"]),
        place("limit-rpc", json!({ "rate_limited_as_resource_exhausted": true }), &[rpc, rpc, "GET /"]),
        place(
            "limit-headers",
            json!({ "response_headers_to_add": header("x-limited") }),
            &["GET /", "GET /", rpc],
        ),
        place(
            "limit-counts-only",
            json!({ "filter_enforced": percent(0), "request_headers_to_add_when_not_enforced": header("x-over") }),
            &["GET /", "GET /", "POST /\n\nhello"],
        ),
        place("limit-unsaid", json!({ "filter_enabled": percent(0) }), &["GET /", "GET /", "GET /"]),
        Group::new("limit-direct", says).at(3).in_order().case(Case::new("calls", ["GET /", "GET /"])),
    ]
}

/// Of requests to listeners with adaptive concurrency.
fn gradients() -> Vec<Group> {
    let group = |name: &str, listener| {
        Group::new(name, json!([to(json!({ "prefix": "/" }), "a", json!({}))])).at(listener).in_order()
    };
    let mut rpc = held("a call beside one under way", 1, 0);
    rpc.steps.push(Step::Ask("POST /\ncontent-type: application/grpc\n\nx".into()));
    rpc.steps.push(Step::Ask("HEAD /".into()));
    vec![
        group("gradient-of-1", 4)
            .case(held("one under way", 1, 2))
            .case(held("none under way", 0, 2))
            .case(Case::new(
                "failures give their places back",
                ["GET /\nx-answers: reset", "GET /\nx-answers: 500", "GET /"],
            ))
            .case(rpc),
        group("gradient-of-2", 5).case(held("one under way", 1, 1)).case(held("two under way", 2, 1)),
        group("gradient-off", 6).case(held("one under way", 1, 1)),
    ]
}

/// Parts of a cluster by metadata, and who serves where a part is empty.
fn subsets() -> Vec<Group> {
    let wants = |labels: Value| json!({ "metadata_match": { "filter_metadata": { "envoy.lb": labels } } });
    let mut all = Vec::new();
    for (name, fields) in [
        ("subset-none", json!({})),
        ("subset-any", json!({ "fallback_policy": "ANY_ENDPOINT" })),
        (
            "subset-default",
            json!({ "fallback_policy": "DEFAULT_SUBSET", "default_subset": { "stage": "dev" } }),
        ),
    ] {
        let mut config = fields;
        config["subset_selectors"] = json!([{ "keys": ["stage"] }, { "keys": ["stage", "version"], "fallback_policy": "NO_FALLBACK" }]);
        let of = format!("{name}-endpoints");
        let endpoints = ["a@stage=prod,version=1", "b@stage=prod,version=2", "c@stage=dev,version=2"];
        let share = |labels: Value, weight: u32| {
            let mut share = wants(labels);
            share["name"] = of.as_str().into();
            share["weight"] = weight.into();
            share
        };
        let split = json!({ "match": { "path": "/share" }, "route": {
            "metadata_match": wants(json!({ "stage": "prod" }))["metadata_match"],
            "weighted_clusters": { "clusters": [share(json!({ "version": "2" }), 1)] } } });
        let routes = json!([
            to(json!({ "path": "/prod-1" }), &of, wants(json!({ "stage": "prod", "version": "1" }))),
            to(json!({ "path": "/prod-3" }), &of, wants(json!({ "stage": "prod", "version": "3" }))),
            to(json!({ "path": "/dev" }), &of, wants(json!({ "stage": "dev" }))),
            to(json!({ "path": "/test" }), &of, wants(json!({ "stage": "test" }))),
            to(json!({ "path": "/number" }), &of, wants(json!({ "stage": 1 }))),
            to(json!({ "path": "/other" }), &of, wants(json!({ "version": "2" }))),
            split,
            to(json!({ "prefix": "/" }), &of, json!({})),
        ]);
        let lb = json!({ "lb_policy": "ROUND_ROBIN", "lb_subset_config": config });
        let ask = |path: &str| Case::new(path, [format!("GET {path}")]).by_chance();
        let named = ["/prod-1", "/dev", "/share"].map(|path| format!("GET {path}"));
        let group = Group::new(name, routes).cluster(cluster(&of, &endpoints, lb)).ask(named);
        all.push(
            ["/prod-3", "/test", "/number", "/other", "/"]
                .into_iter()
                .fold(group, |group, path| group.case(ask(path))),
        );
    }
    all
}

pub fn groups() -> Vec<Group> {
    [hashing(), ejection(), limits(), rates(), places(), gradients(), subsets()]
        .into_iter()
        .flatten()
        .collect()
}
