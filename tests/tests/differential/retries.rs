//! Attempts after failures, and the time that they have.

use serde_json::{Value, json};

use super::case::{Case, Group, cluster, to, typed};

/// What the first attempts are answered; then comes a good answer.
const FAILURES: &[&str] = &[
    "500", "501", "502", "503", "504", "404", "409", "429", "reset", "grpc1", "grpc4", "grpc8", "grpc13",
    "grpc14", "grpc2",
];

const CONDITIONS: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// A policy whose back-off costs no time.
fn policy(on: &str, count: u32) -> Value {
    json!({ "retry_on": on, "num_retries": count,
            "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" } })
}

fn group(name: &str, to_cluster: &str, policy: Value, more: Value) -> Group {
    let mut action = more;
    action["retry_policy"] = policy;
    let host = json!({ "routes": [to(json!({ "prefix": "/" }), to_cluster, action)], "include_request_attempt_count": true });
    Group::host(name, host)
}

fn conditions() -> Vec<Group> {
    let one = |on: &&str| {
        let requests = FAILURES.iter().map(|failure| {
            let kind = if failure.starts_with("grpc") { "\ncontent-type: application/grpc" } else { "" };
            format!("GET /\nx-answers: {failure}, 200{kind}")
        });
        group(&format!("retry-{on}"), "a", policy(on, 1), json!({})).ask(requests)
    };
    CONDITIONS.iter().map(one).collect()
}

fn counts() -> Vec<Group> {
    let mut statuses = policy("retriable-status-codes", 2);
    statuses["retriable_status_codes"] = json!([418, 500]);
    let mut unsaid = policy("connect-failure", 1);
    unsaid["retriable_status_codes"] = json!([503]);
    let requests = [
        "GET /\nx-answers: 503, 503, 200",
        "GET /\nx-answers: 503, 503, 503, 200",
        "GET /\nx-answers: 503, reset, 503, 503, 200",
        "POST /\nx-answers: 503, 503, 200\n\nhello",
        "POST /\nx-answers: reset, 200\n\nhello",
        "HEAD /\nx-answers: 503, 200",
        "GET /\nx-answers: 404",
        "GET /\nx-answers: cut, 200",
    ];
    let default = json!({ "retry_on": "5xx", "retry_back_off": { "base_interval": "0.001s" } });
    vec![
        group("no-retries", "a", policy("5xx", 0), json!({})).ask(requests),
        group("retries-by-default", "a", default, json!({})).ask(requests),
        group("two-retries", "a", policy("5xx", 2), json!({})).ask(requests),
        group("five-retries", "a", policy("5xx,reset", 5), json!({})).ask(requests),
        group("no-condition", "a", policy("", 3), json!({}))
            .ask(["GET /\nx-answers: 503, 200", "GET /\nx-answers: reset, 200"]),
        group("statuses-without-the-word", "a", unsaid, json!({}))
            .ask(["POST /\nx-answers: 503, 200\n\nx", "GET /\nx-answers: reset, 200"]),
        group("statuses", "a", statuses, json!({})).ask([
            "GET /\nx-answers: 418, 500, 200",
            "GET /\nx-answers: 503, 200",
            "GET /\nx-answers: 418, 418, 418, 200",
        ]),
    ]
}

fn places() -> Vec<Group> {
    let previous = typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", json!({}));
    let mut avoiding = policy("5xx,connect-failure", 3);
    avoiding["retry_host_predicate"] =
        json!([{ "name": "envoy.retry_host_predicates.previous_hosts", "typed_config": previous }]);
    avoiding["host_selection_retry_max_attempts"] = 10.into();
    let case = |name: &str, request: &str| Case::new(name, [request]).by_chance();
    let far = |every: u32| {
        let config = typed(
            "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            json!({ "update_frequency": every }),
        );
        let mut far = policy("5xx", 5);
        far["retry_priority"] =
            json!({ "name": "envoy.retry_priorities.previous_priorities", "typed_config": config });
        let (name, places) = (format!("priorities-after-{every}"), format!("near-and-far-{every}"));
        group(&name, &places, far, json!({}))
            .cluster(cluster(&places, &["a", "b^1", "c^2"], json!({})))
            .ask(["GET /\nx-answers: 503, 200", "GET /\nx-answers: 503, 503, 200", "GET /\nx-answers: 503"])
    };
    let host = |name: &str, retry: Value, action: Value| {
        Group::host(
            name,
            json!({ "routes": [to(json!({ "prefix": "/" }), "a", action)], "retry_policy": retry,
                                  "include_request_attempt_count": true }),
        )
    };
    vec![
        far(1),
        far(2),
        group("other-endpoints", "three", avoiding.clone(), json!({}))
            .case(case("one fails", "GET /\nx-answers: 503, 200"))
            .case(case("two fail", "GET /\nx-answers: 503, 503, 200"))
            .case(case("all fail", "GET /\nx-answers: 503, 503, 404")),
        group("beside-the-dead", "half-dead", avoiding, json!({}))
            .cluster(cluster("half-dead", &["a", "dead"], json!({})))
            .case(case("once", "GET /"))
            .case(case("twice", "GET /"))
            .case(case("with a body", "POST /\n\nhello")),
        group("all-dead", "dead", policy("connect-failure", 2), json!({})).ask(["GET /", "POST /\n\nhello"]),
        Group::new("given-up", json!([to(json!({ "prefix": "/" }), "kept", json!({}))]))
            .cluster(cluster("kept", &["a"], json!({})))
            .case(Case::new("on a reused connection", ["GET /", "GET /\nx-answers: reset, 200"])),
        host("retries-of-the-host", policy("5xx", 1), json!({}))
            .ask(["GET /\nx-answers: 503, 200", "GET /\nx-answers: 404, 200"]),
        host("retries-of-the-route", policy("5xx", 1), json!({ "retry_policy": policy("retriable-4xx", 1) }))
            .ask(["GET /\nx-answers: 503, 200", "GET /\nx-answers: 409, 200"]),
    ]
}

fn timeouts() -> Vec<Group> {
    let timed =
        |name: &str, action: Value| Group::new(name, json!([to(json!({ "prefix": "/" }), "a", action)]));
    let per_try = |count: u32, on: &str, time: &str| {
        let mut policy = policy(on, count);
        policy["per_try_timeout"] = time.into();
        policy
    };
    let requests = [
        "GET /",
        "GET /\nx-answers: hang",
        "HEAD /\nx-answers: hang",
        "POST /\nx-answers: hang\n\nhello",
        "GET /\nx-answers: late",
    ];
    vec![
        timed("timeout", json!({ "timeout": "0.5s" })).ask(requests),
        timed("timeout-short", json!({ "timeout": "0.1s" })).ask(["GET /", "GET /\nx-answers: late"]),
        timed("no-timeout", json!({ "timeout": "0s" })).ask(["GET /", "GET /\nx-answers: late"]),
        group("per-try", "a", per_try(2, "5xx", "0.5s"), json!({})).ask([
            "GET /\nx-answers: hang, 200",
            "GET /\nx-answers: hang, hang, 200",
            "GET /\nx-answers: hang",
            "POST /\nx-answers: hang, 200\n\nhello",
        ]),
        group("per-try-gateway", "a", per_try(1, "gateway-error", "0.5s"), json!({}))
            .ask(["GET /\nx-answers: hang, 200"]),
        group("per-try-reset", "a", per_try(1, "reset", "0.5s"), json!({}))
            .ask(["GET /\nx-answers: hang, 200"]),
        group("per-try-connect", "a", per_try(1, "connect-failure", "0.5s"), json!({}))
            .ask(["GET /\nx-answers: hang, 200"]),
        group("per-try-and-all", "a", per_try(5, "5xx", "0.5s"), json!({ "timeout": "1s" }))
            .ask(["GET /\nx-answers: hang", "GET /\nx-answers: hang, 200"]),
        group("per-try-longer", "a", per_try(5, "5xx", "5s"), json!({ "timeout": "0.5s" }))
            .ask(["GET /\nx-answers: hang", "GET /"]),
    ]
}

/// When answers say when to come again, and what headers permit.
fn asking() -> Vec<Group> {
    let waits = |reset_headers: Value, max: &str| {
        let mut policy = policy("5xx,retriable-status-codes", 1);
        policy["retriable_status_codes"] = json!([429]);
        policy["rate_limited_retry_back_off"] =
            json!({ "reset_headers": reset_headers, "max_interval": max });
        policy
    };
    let after = || json!([{ "name": "Retry-After", "format": "SECONDS" }]);
    let both = json!([{ "name": "x-reset", "format": "UNIX_TIMESTAMP" }, { "name": "retry-after", "format": "SECONDS" }]);
    let headers = |field: &str, headers: Value, on: &str| {
        let mut policy = policy(on, 1);
        policy[field] = headers;
        policy
    };
    let again = json!([{ "name": "x-again", "string_match": { "exact": "yes" } }, { "name": ":status", "string_match": { "exact": "418" } }]);
    let may = json!([{ "name": "x-may", "present_match": true }, { "name": ":method", "string_match": { "exact": "PUT" } }]);
    vec![
        group("wait", "a", waits(after(), "5s"), json!({ "timeout": "0s" })).ask([
            "GET /\nx-answers: 429+retry-after=1, 200",
            "GET /\nx-answers: 503+Retry-After=1, 200",
            "GET /\nx-answers: 429+retry-after=0, 200",
            "GET /\nx-answers: 429+retry-after=6, 200",
            "GET /\nx-answers: 429+retry-after=soon, 200",
            "GET /\nx-answers: 429, 200",
            "GET /\nx-answers: 404+retry-after=1, 200",
        ]),
        group("wait-until", "a", waits(both, "5s"), json!({ "timeout": "0s" })).ask([
            "GET /\nx-answers: 429+x-reset=1, 200",
            "GET /\nx-answers: 429+x-reset=99999999999+retry-after=1, 200",
        ]),
        group("wait-too-long", "a", waits(after(), "5s"), json!({ "timeout": "0.5s" }))
            .ask(["GET /\nx-answers: 429+retry-after=1, 200"]),
        group("header-again", "a", headers("retriable_headers", again, "retriable-headers"), json!({})).ask(
            [
                "GET /\nx-answers: 200+x-again=yes, 200",
                "GET /\nx-answers: 200+x-again=no, 200",
                "GET /\nx-answers: 418, 200",
                "GET /\nx-answers: 503, 200",
            ],
        ),
        group("header-may", "a", headers("retriable_request_headers", may, "5xx"), json!({})).ask([
            "GET /\nx-answers: 503, 200",
            "GET /\nx-may: 1\nx-answers: 503, 200",
            "PUT /\nx-answers: 503, 200",
            "GET /\nx-answers: reset, 200",
        ]),
        group("limited", "a", policy("5xx", 1), json!({}))
            .ask(["GET /\nx-answers: 503+x-envoy-ratelimited=true, 200"]),
        group("limited-too", "a", policy("5xx,envoy-ratelimited", 1), json!({})).ask([
            "GET /\nx-answers: 503+x-envoy-ratelimited=true, 200",
            "GET /\nx-answers: 429+x-envoy-ratelimited=true, 200",
            "GET /\nx-answers: 429, 200",
        ]),
    ]
}

/// How long streams last, and are silent.
fn streams() -> Vec<Group> {
    let timed =
        |name: &str, action: Value| Group::new(name, json!([to(json!({ "prefix": "/" }), "a", action)]));
    let silent = |count: u32| {
        let mut policy = policy("5xx", count);
        policy["per_try_idle_timeout"] = "0.5s".into();
        policy
    };
    let hangs =
        ["GET /", "GET /\nx-answers: hang", "HEAD /\nx-answers: hang", "POST /\nx-answers: hang\n\nhello"];
    let grpc = |said: &str| {
        format!("POST /\ncontent-type: application/grpc\ngrpc-timeout: {said}\nx-answers: grpc0\n\nx")
    };
    let grpc_hangs = |said: &str| {
        format!("POST /\ncontent-type: application/grpc\ngrpc-timeout: {said}\nx-answers: hang\n\nx")
    };
    let duration = |fields: Value| json!({ "timeout": "0s", "max_stream_duration": fields });
    vec![
        timed("stream", duration(json!({ "max_stream_duration": "0.5s" }))).ask(hangs).ask([
            grpc("5S"),
            grpc("100m"),
            grpc_hangs("5S"),
        ]),
        timed("stream-endless", duration(json!({ "max_stream_duration": "0s" })))
            .ask(["GET /\nx-answers: late"]),
        timed(
            "stream-grpc",
            duration(json!({ "max_stream_duration": "9s", "grpc_timeout_header_max": "2s" })),
        )
        .ask([grpc("1S"), grpc("5S"), grpc("x"), grpc_hangs("300m")]),
        timed(
            "stream-grpc-less",
            duration(json!({ "grpc_timeout_header_max": "0s", "grpc_timeout_header_offset": "0.5s" })),
        )
        .ask([grpc("5S"), grpc_hangs("700m")]),
        timed(
            "grpc-timeout",
            json!({ "timeout": "9s", "max_grpc_timeout": "2s", "grpc_timeout_offset": "0.2s" }),
        )
        .ask([
            grpc("1S"),
            grpc("5S"),
            grpc_hangs("500m"),
            "GET /".to_owned(),
            "POST /\ncontent-type: application/grpc\n\nx".to_owned(),
        ]),
        timed("idle", json!({ "timeout": "0s", "idle_timeout": "0.5s" })).ask(hangs),
        timed("idle-never", json!({ "timeout": "0.5s", "idle_timeout": "0s" })).ask(hangs),
        group("silent", "a", silent(0), json!({ "timeout": "0s" })).ask(hangs),
        group("silent-again", "a", silent(1), json!({ "timeout": "0s" }))
            .ask(["GET /\nx-answers: hang, 200", "GET /\nx-answers: hang"]),
    ]
}

/// How long one attempt lasts, by its cluster.
fn attempts_end() -> Vec<Group> {
    let options = typed(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        json!({ "common_http_protocol_options": { "max_requests_per_connection": 1, "max_stream_duration": "0.5s" },
                "explicit_http_config": { "http_protocol_options": {} } }),
    );
    let fields = json!({ "circuit_breakers": { "thresholds": [{ "max_retries": 1000 }] },
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options } });
    let brief = |name: &str, policy: Value| {
        group(name, name, policy, json!({ "timeout": "0s" })).cluster(cluster(name, &["a"], fields.clone()))
    };
    vec![
        brief("attempt-brief", policy("connect-failure", 1)).ask([
            "GET /",
            "GET /\nx-answers: hang",
            "HEAD /\nx-answers: hang",
            "POST /\nx-answers: hang\n\nhello",
            "POST /\ncontent-type: application/grpc\nx-answers: hang\n\nx",
        ]),
        brief("attempt-brief-again", policy("5xx", 1))
            .ask(["GET /\nx-answers: hang, 200", "GET /\nx-answers: hang"]),
        brief("attempt-brief-reset", policy("reset", 1)).ask(["GET /\nx-answers: hang, 200"]),
    ]
}

/// What a client asks for by headers.
fn asked() -> Vec<Group> {
    let plain =
        |name: &str, action: Value| Group::new(name, json!([to(json!({ "prefix": "/" }), "a", action)]));
    vec![
        plain("asked-retries", json!({})).ask([
            "GET /\nx-answers: 503, 200\nx-envoy-retry-on: 5xx",
            "GET /\nx-answers: 503, 200\nx-envoy-retry-on: 5xx\nx-envoy-max-retries: 3",
        ]),
        plain("asked-time", json!({ "timeout": "2s" })).ask([
            "GET /\nx-envoy-upstream-rq-timeout-ms: 500\nx-answers: hang",
            "GET /\nx-envoy-expected-rq-timeout-ms: 500",
            "GET /\nx-envoy-upstream-alt-response: 1",
        ]),
    ]
}

pub fn groups() -> Vec<Group> {
    [conditions(), counts(), places(), timeouts(), asking(), streams(), attempts_end(), asked()]
        .into_iter()
        .flatten()
        .collect()
}
