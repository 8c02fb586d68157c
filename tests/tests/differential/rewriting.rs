//! What becomes of paths, hosts and headers on their way, redirects, and answers of routes themselves.

use serde_json::{Value, json};

use super::case::{Group, to};

const PATHS: &[&str] = &[
    "GET /a",
    "GET /a/",
    "GET /a/b/c",
    "GET /ab",
    "GET /a?x=y",
    "GET /a/b?x=/a/",
    "GET /a/a",
    "GET /a%20b/c",
    "GET /a/\nHost: rewritten.test:8080",
];

fn rewrite(name: &str, matches: Value, action: Value, requests: &[&str]) -> Group {
    Group::new(name, json!([to(matches, "a", action), to(json!({ "prefix": "/" }), "b", json!({}))]))
        .ask(requests.iter().map(|request| request.replace("rewritten.test", &format!("{name}.test"))))
}

fn paths() -> Vec<Group> {
    let prefix = |prefix: &str| json!({ "prefix": prefix });
    let regex = |pattern: &str, with: &str| json!({ "regex_rewrite": { "pattern": { "regex": pattern }, "substitution": with } });
    vec![
        rewrite("prefix-to-prefix", prefix("/a"), json!({ "prefix_rewrite": "/z" }), PATHS),
        rewrite("prefix-to-root", prefix("/a"), json!({ "prefix_rewrite": "/" }), PATHS),
        rewrite("slashed-to-root", prefix("/a/"), json!({ "prefix_rewrite": "/" }), PATHS),
        rewrite("root-to-prefix", prefix("/"), json!({ "prefix_rewrite": "/z/" }), PATHS),
        rewrite(
            "segments-to-prefix",
            json!({ "path_separated_prefix": "/a" }),
            json!({ "prefix_rewrite": "/z" }),
            PATHS,
        ),
        rewrite("path-to-path", json!({ "path": "/a" }), json!({ "prefix_rewrite": "/z" }), PATHS),
        rewrite(
            "folded-to-prefix",
            json!({ "prefix": "/A", "case_sensitive": false }),
            json!({ "prefix_rewrite": "/z" }),
            PATHS,
        ),
        rewrite(
            "regex-to-prefix",
            json!({ "safe_regex": { "regex": "/a/[bc]/?.*" } }),
            json!({ "prefix_rewrite": "/z" }),
            PATHS,
        ),
        rewrite("regex-all", prefix("/a"), regex("a", "z"), PATHS),
        rewrite("regex-groups", prefix("/a"), regex("^/a/([^/]+)(.*)$", "/\\2/\\1"), PATHS),
        rewrite("regex-none", prefix("/a"), regex("nothing", "z"), PATHS),
        rewrite("regex-whole", prefix("/a"), regex("/a.*", "/\\0-z"), PATHS),
    ]
}

fn hosts() -> Vec<Group> {
    let all = || json!({ "prefix": "/" });
    let requests = ["GET /", "GET /\nHost: rewritten.test:8080", "GET /\nx-host: other.test", "GET /a/b"];
    let of_path = |mut more: Value| {
        more["host_rewrite_path_regex"] =
            json!({ "pattern": { "regex": "^/a/([a-z]+)(/.*)?$" }, "substitution": "\\1.test" });
        more
    };
    vec![
        rewrite("host", all(), json!({ "host_rewrite_literal": "new.test" }), &requests),
        rewrite("host-of-header", all(), json!({ "host_rewrite_header": "X-Host" }), &requests),
        rewrite(
            "host-of-path",
            json!({ "prefix": "/a/" }),
            of_path(json!({})),
            &["GET /a/b", "GET /a/b?c=/d/e", "GET /a/b/c"],
        ),
        rewrite(
            "host-of-path-and-prefix",
            json!({ "prefix": "/a/" }),
            of_path(json!({ "prefix_rewrite": "/z/" })),
            &["GET /a/b"],
        ),
        rewrite(
            "host-kept",
            all(),
            json!({ "host_rewrite_header": "x-host", "append_x_forwarded_host": true }),
            &[
                "GET /",
                "GET /\nx-host: other.test",
                "GET /\nx-host: other.test\nx-forwarded-host: first.test",
                "GET /\nx-host: other.test\nx-forwarded-host: first.test,host-kept.test",
                "GET /\nx-host: other.test\nx-host: second.test",
            ],
        ),
        rewrite(
            "host-and-path",
            json!({ "prefix": "/a" }),
            json!({ "host_rewrite_literal": "new.test:81", "prefix_rewrite": "/z" }),
            &requests,
        ),
    ]
}

/// The authority of the endpoint that an attempt goes to, and of a share.
fn hosts_of_targets() -> Vec<Group> {
    let all = || json!({ "prefix": "/" });
    let auto = |more: Value| {
        let mut action = more;
        action["auto_host_rewrite"] = true.into();
        action
    };
    let again = json!({ "retry_policy": { "retry_on": "5xx", "num_retries": 1,
                        "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" } } });
    let requests = ["GET /", "GET /\nHost: rewritten.test:8080", "GET /\nx-forwarded-host: first.test"];
    let share = |name: &str, action: Value| {
        let mut action = action;
        let share = json!({ "name": "a", "weight": 1, "host_rewrite_literal": "share.test" });
        action["weighted_clusters"] = json!({ "clusters": [share] });
        Group::new(name, json!([{ "match": all(), "route": action }])).ask(["GET /", "GET /a?b"])
    };
    vec![
        rewrite("host-of-endpoint", all(), auto(json!({})), &requests),
        rewrite("host-of-endpoint-kept", all(), auto(json!({ "append_x_forwarded_host": true })), &requests),
        rewrite("host-of-endpoint-and-path", all(), auto(json!({ "prefix_rewrite": "/z/" })), &["GET /a"]),
        Group::host(
            "host-of-endpoint-again",
            json!({ "routes": [to(all(), "a", auto(again))], "include_request_attempt_count": true }),
        )
        .ask(["GET /\nx-answers: 503, 200"]),
        rewrite("host-of-endpoint-not", all(), json!({ "auto_host_rewrite": false }), &["GET /"]),
        share("host-of-share", json!({})),
        share("host-of-share-kept", json!({ "append_x_forwarded_host": true })),
        share("host-of-share-and-route", json!({ "host_rewrite_literal": "route.test" })),
        share("host-of-share-and-endpoint", json!({ "auto_host_rewrite": true })),
        share("host-of-share-and-path", json!({ "prefix_rewrite": "/z/" })),
    ]
}

/// An edit of headers, by Envoy's word for how.
fn edit(name: &str, value: &str, how: &str) -> Value {
    json!({ "header": { "key": name, "value": value }, "append_action": how })
}

const APPEND: &str = "APPEND_IF_EXISTS_OR_ADD";
const OVERWRITE: &str = "OVERWRITE_IF_EXISTS_OR_ADD";
const FILL: &str = "ADD_IF_ABSENT";
const REPLACE: &str = "OVERWRITE_IF_EXISTS";

fn request_headers() -> Vec<Group> {
    let requests =
        ["GET /", "GET /\nx-a: old", "GET /\nx-a: old\nx-a: older", "GET /\nX-A:", "GET /\nx-b: b\nx-c: c"];
    let edits = |name: &str, add: Value, remove: Value| {
        let mut route = to(json!({ "prefix": "/" }), "a", json!({}));
        route["request_headers_to_add"] = add;
        route["request_headers_to_remove"] = remove;
        Group::new(name, json!([route])).ask(requests)
    };
    vec![
        edits("request-append", json!([edit("x-a", "new", APPEND)]), json!([])),
        edits("request-overwrite", json!([edit("x-a", "new", OVERWRITE)]), json!([])),
        edits("request-remove", json!([]), json!(["x-a", "x-b"])),
        edits("request-remove-and-append", json!([edit("x-a", "new", APPEND)]), json!(["x-a"])),
        edits("request-twice", json!([edit("x-a", "one", APPEND), edit("x-a", "two", APPEND)]), json!([])),
        edits(
            "request-overwrite-twice",
            json!([edit("x-a", "one", OVERWRITE), edit("x-a", "two", OVERWRITE)]),
            json!([]),
        ),
        edits(
            "request-overwrite-then-append",
            json!([edit("x-a", "one", OVERWRITE), edit("x-a", "two", APPEND)]),
            json!([]),
        ),
        edits(
            "request-append-then-overwrite",
            json!([edit("x-a", "one", APPEND), edit("x-a", "two", OVERWRITE)]),
            json!([]),
        ),
        edits("request-fill", json!([edit("x-a", "new", FILL)]), json!([])),
        edits("request-replace", json!([edit("x-a", "new", REPLACE)]), json!([])),
        edits(
            "request-fill-removed",
            json!([edit("x-a", "new", FILL), edit("x-b", "new", REPLACE)]),
            json!(["x-a", "x-b"]),
        ),
        edits(
            "request-replace-or-fill",
            json!([edit("x-a", "one", REPLACE), edit("x-a", "two", FILL)]),
            json!([]),
        ),
        edits("request-percent", json!([edit("x-a", "100%% of it", OVERWRITE)]), json!([])),
        edits("request-empty", json!([edit("x-a", "", OVERWRITE)]), json!([])),
    ]
}

/// Values with commands: of requests, and of answers.
fn commands() -> Vec<Group> {
    let values = [
        "%REQ(x-a)%",
        "%REQ(x-none?x-a)%",
        "%REQ(X-A):2%",
        "a %REQ(x-none)% b",
        "%REQ(x-none)%",
        "%REQ(:METHOD)% %REQ(:PATH)% %REQ(:AUTHORITY)% %REQ(:SCHEME)%",
        "%PROTOCOL%",
        "100%% of %REQ(x-a)%",
        "%ROUTE_NAME%",
        "%UPSTREAM_CLUSTER%",
        "%REQUESTED_SERVER_NAME%",
        "%DOWNSTREAM_PEER_URI_SAN%",
        "%START_TIME(%Y)%",
        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
    ];
    let of_answers = [
        "%RESPONSE_CODE%",
        "%RESPONSE_FLAGS%",
        "%RESPONSE_CODE_DETAILS%",
        "%RESP(x-count)%",
        "%RESP(x-none?x-app)%",
        "%RESP(x-none)%",
        "%UPSTREAM_HOST%",
        "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "%REQ(x-a)%",
        "%PROTOCOL%",
    ];
    let requests = ["GET /p?q=r", "GET /\nx-a: first\nx-a: second", "POST /\nx-a: one, two\n\nhello"];
    let route = |field: &str, value: &str, how: &str| {
        let mut route = to(json!({ "prefix": "/" }), "a", json!({}));
        route["name"] = "the-route".into();
        route[field] = json!([edit("x-said", value, how), edit("x-a", "written", OVERWRITE)]);
        route
    };
    let mut all = Vec::new();
    for (i, value) in values.iter().enumerate() {
        let route = route("request_headers_to_add", value, OVERWRITE);
        all.push(Group::new(format!("command-{i}"), json!([route])).ask(requests));
    }
    for (i, value) in of_answers.iter().enumerate() {
        let route = route("response_headers_to_add", value, APPEND);
        let more = ["GET /\nx-answers: 503+x-said=app", "GET /\nx-answers: reset", "HEAD /"];
        all.push(Group::new(format!("answer-command-{i}"), json!([route])).ask(requests).ask(more));
    }
    all
}

fn response_headers() -> Vec<Group> {
    let requests = [
        "GET /",
        "GET /\nx-answers: 200+x-a=old",
        "GET /\nx-answers: 503+x-a=old+x-a=older",
        "HEAD /",
        "GET /\nx-answers: 204+x-b=b",
    ];
    let edits = |name: &str, add: Value, remove: Value| {
        let mut route = to(json!({ "prefix": "/" }), "a", json!({}));
        route["response_headers_to_add"] = add;
        route["response_headers_to_remove"] = remove;
        Group::new(name, json!([route])).ask(requests)
    };
    vec![
        edits("response-append", json!([edit("x-a", "new", APPEND)]), json!([])),
        edits("response-overwrite", json!([edit("x-a", "new", OVERWRITE)]), json!([])),
        edits("response-remove", json!([]), json!(["x-a", "x-b", "x-count"])),
        edits("response-fill", json!([edit("x-a", "new", FILL)]), json!([])),
        edits("response-replace", json!([edit("x-a", "new", REPLACE)]), json!([])),
        edits("response-remove-and-append", json!([edit("x-a", "new", APPEND)]), json!(["x-a"])),
    ]
}

/// Edits of a cluster's share, of the route and of its host, one after the other.
fn levels() -> Vec<Group> {
    let both = |place: &str| [edit("x-order", place, APPEND), edit("x-last", place, OVERWRITE)].to_vec();
    let share = json!({ "name": "a", "weight": 1, "request_headers_to_add": both("share"),
                        "response_headers_to_add": both("share") });
    let route = json!({ "match": { "prefix": "/" }, "route": { "weighted_clusters": { "clusters": [share] } },
                        "request_headers_to_add": both("route"), "response_headers_to_add": both("route"),
                        "request_headers_to_remove": ["x-r"], "response_headers_to_remove": ["x-s"] });
    let host = json!({ "routes": [route], "request_headers_to_add": both("host"), "response_headers_to_add": both("host"),
                       "request_headers_to_remove": ["x-h"], "response_headers_to_remove": ["x-i"] });
    let requests = [
        "GET /",
        "GET /\nx-order: client\nx-last: client\nx-r: 1\nx-h: 2\nx-answers: 200+x-order=app+x-last=app+x-s=1+x-i=2",
    ];
    vec![Group::host("levels", host).ask(requests)]
}

/// Edits of answers that the proxy makes of failures.
fn failures() -> Vec<Group> {
    let failed = |name: &str, cluster: &str| {
        let mut route = to(json!({ "prefix": "/" }), cluster, json!({}));
        route["response_headers_to_add"] = json!([edit("x-a", "b", APPEND)]);
        Group::new(name, json!([route])).ask(["GET /"])
    };
    vec![
        failed("failed-to-connect", "dead"),
        failed("failed-to-find", "nobody"),
        failed("failed-to-answer", "a").ask(["GET /\nx-answers: reset"]),
    ]
}

fn redirects() -> Vec<Group> {
    let redirect = |name: &str, matches: Value, redirect: Value| {
        let routes =
            json!([{ "match": matches, "redirect": redirect }, to(json!({ "prefix": "/" }), "b", json!({}))]);
        let requests = [
            "GET /a",
            "GET /a/b?x=y",
            "HEAD /a",
            "POST /a\n\nx",
            "GET /a\nHost: NAME.test:8080",
            "GET /a\nx-forwarded-proto: https",
            "POST /a\ncontent-type: application/grpc\n\nx",
        ];
        Group::new(name, routes).ask(requests.map(|request| request.replace("NAME", name)))
    };
    let a = || json!({ "prefix": "/a" });
    let mut all = vec![
        redirect("to-https", a(), json!({ "https_redirect": true })),
        redirect("to-scheme", a(), json!({ "scheme_redirect": "https", "response_code": "FOUND" })),
        redirect("to-host", a(), json!({ "host_redirect": "new.test" })),
        redirect("to-host-port", a(), json!({ "host_redirect": "new.test", "port_redirect": 8443 })),
        redirect("to-port", a(), json!({ "port_redirect": 8443 })),
        redirect("to-port-80", a(), json!({ "port_redirect": 80 })),
        redirect("to-https-443", a(), json!({ "https_redirect": true, "port_redirect": 443 })),
        redirect("to-path", a(), json!({ "path_redirect": "/z" })),
        redirect("to-path-query", a(), json!({ "path_redirect": "/z?q=1" })),
        redirect("to-prefix", a(), json!({ "prefix_rewrite": "/z" })),
        redirect("to-root", a(), json!({ "prefix_rewrite": "/" })),
        redirect(
            "to-regex",
            a(),
            json!({ "regex_rewrite": { "pattern": { "regex": "/a(.*)" }, "substitution": "/z\\1" } }),
        ),
        redirect("without-query", a(), json!({ "path_redirect": "/z", "strip_query": true })),
        redirect("prefix-without-query", a(), json!({ "prefix_rewrite": "/z", "strip_query": true })),
    ];
    for (name, code) in
        [("see-other", "SEE_OTHER"), ("temporary", "TEMPORARY_REDIRECT"), ("permanent", "PERMANENT_REDIRECT")]
    {
        all.push(redirect(name, a(), json!({ "path_redirect": "/z", "response_code": code })));
    }
    all
}

fn direct() -> Vec<Group> {
    let direct = |name: &str, status: u16, body: &str| {
        let mut answer = json!({ "status": status });
        if !body.is_empty() {
            answer["body"] = json!({ "inline_string": body });
        }
        let route = json!({ "match": { "prefix": "/" }, "direct_response": answer,
                            "response_headers_to_add": [edit("x-a", "b", APPEND)],
                            "response_headers_to_remove": ["x-b"] });
        let plain = json!({ "match": { "prefix": "/plain" }, "direct_response": route["direct_response"] });
        Group::new(name, json!([plain, route])).ask([
            "GET /",
            "GET /plain",
            "HEAD /plain",
            "POST /plain\n\nx",
            "POST /\ncontent-type: application/grpc\n\nx",
            "POST /plain\ncontent-type: application/grpc+proto\n\nx",
        ])
    };
    vec![
        direct("direct-200", 200, "hello"),
        direct("direct-204", 204, ""),
        direct("direct-404", 404, ""),
        direct("direct-503", 503, "no, not today"),
        direct("direct-301", 301, "elsewhere"),
    ]
}

pub fn groups() -> Vec<Group> {
    [
        paths(),
        hosts(),
        hosts_of_targets(),
        request_headers(),
        commands(),
        response_headers(),
        levels(),
        failures(),
        redirects(),
        direct(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
