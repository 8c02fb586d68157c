//! Faults, other origins, mirrors.

use serde_json::{Value, json};

use super::case::{Case, Group, cluster, to, typed};

/// A route that forwards to `a`, with the configuration of a filter.
fn with(filter: &str, kind: &str, config: Value, action: Value) -> Value {
    let mut route = to(json!({ "prefix": "/" }), "a", action);
    route["typed_per_filter_config"] = json!({ filter: typed(kind, config) });
    route
}

fn faults() -> Vec<Group> {
    let percent = |percent: u32| json!({ "numerator": percent, "denominator": "HUNDRED" });
    let fault = |name: &str, fault: Value| {
        let route = with(
            "envoy.filters.http.fault",
            "envoy.extensions.filters.http.fault.v3.HTTPFault",
            fault,
            json!({}),
        );
        Group::new(name, json!([route])).ask([
            "GET /",
            "HEAD /",
            "POST /\n\nhello",
            "POST /\ncontent-type: application/grpc\n\nx",
        ])
    };
    let mut all = vec![
        fault("delay", json!({ "delay": { "fixed_delay": "0.05s", "percentage": percent(100) } })),
        fault("delay-never", json!({ "delay": { "fixed_delay": "60s", "percentage": percent(0) } })),
        fault("abort-never", json!({ "abort": { "http_status": 503, "percentage": percent(0) } })),
        fault(
            "delay-and-abort",
            json!({ "delay": { "fixed_delay": "0.05s", "percentage": percent(100) },
                    "abort": { "http_status": 418, "percentage": percent(100) } }),
        ),
        fault(
            "abort-million",
            json!({ "abort": { "http_status": 500, "percentage": { "numerator": 1_000_000, "denominator": "MILLION" } } }),
        ),
    ];
    for status in [400, 404, 429, 500, 503] {
        let abort = json!({ "abort": { "http_status": status, "percentage": percent(100) } });
        all.push(fault(&format!("abort-{status}"), abort));
    }
    for status in [0, 5, 14] {
        let abort = json!({ "abort": { "grpc_status": status, "percentage": percent(100) } });
        all.push(fault(&format!("abort-grpc-{status}"), abort));
    }
    all
}

fn origins() -> Vec<Group> {
    let mut requests = Vec::new();
    for origin in [
        "https://shop.example",
        "https://a.trusted.example",
        "https://evil.example",
        "null",
        "HTTPS://shop.example",
    ] {
        for (method, more) in [
            ("GET", ""),
            ("POST", "\ncontent-type: text/plain"),
            ("OPTIONS", ""),
            ("OPTIONS", "\nAccess-Control-Request-Method: PUT"),
            ("OPTIONS", "\nAccess-Control-Request-Method: PUT\nAccess-Control-Request-Headers: x-a, x-b"),
            ("OPTIONS", "\nAccess-Control-Request-Method: PUT\nAccess-Control-Request-Private-Network: true"),
        ] {
            requests.push(format!("{method} /\nOrigin: {origin}{more}"));
        }
    }
    requests.push("OPTIONS /\nAccess-Control-Request-Method: PUT".into());
    requests.push("GET /".into());
    requests.push(
        "GET /\nOrigin: https://shop.example\nx-answers: 200+access-control-allow-origin=*+vary=accept"
            .into(),
    );
    let cors = |name: &str, policy: Value| {
        let route = with(
            "envoy.filters.http.cors",
            "envoy.extensions.filters.http.cors.v3.CorsPolicy",
            policy,
            json!({}),
        );
        Group::new(name, json!([route])).ask(requests.clone())
    };
    let allowed = json!([{ "exact": "https://shop.example" }, { "suffix": ".trusted.example" }]);
    vec![
        cors(
            "cors",
            json!({ "allow_origin_string_match": allowed, "allow_methods": "GET, PUT", "allow_headers": "x-a,x-b",
                             "expose_headers": "x-app", "max_age": "600", "allow_credentials": true }),
        ),
        cors("cors-bare", json!({ "allow_origin_string_match": allowed })),
        cors(
            "cors-any",
            json!({ "allow_origin_string_match": [{ "safe_regex": { "regex": ".*" } }], "allow_methods": "*",
                                 "allow_headers": "*" }),
        ),
        cors(
            "cors-strict",
            json!({ "allow_origin_string_match": allowed, "forward_not_matching_preflights": false,
                                    "allow_private_network_access": true, "allow_methods": "PUT" }),
        ),
        cors(
            "cors-off",
            json!({ "allow_origin_string_match": allowed,
                                 "filter_enabled": { "default_value": { "numerator": 0, "denominator": "HUNDRED" } } }),
        ),
    ]
}

/// What a virtual host has for filters, and what its routes say against it.
fn places() -> Vec<Group> {
    const FAULT: &str = "envoy.filters.http.fault";
    const CORS: &str = "envoy.filters.http.cors";
    let percent = json!({ "numerator": 100, "denominator": "HUNDRED" });
    let abort = |status: u32| {
        let abort = json!({ "abort": { "http_status": status, "percentage": percent } });
        typed("envoy.extensions.filters.http.fault.v3.HTTPFault", abort)
    };
    let off = || typed("envoy.config.route.v3.FilterConfig", json!({ "disabled": true }));
    let cors = |fields: Value| typed("envoy.extensions.filters.http.cors.v3.CorsPolicy", fields);
    let route = |prefix: &str, config: Value| {
        let mut route = to(json!({ "prefix": prefix }), "a", json!({}));
        route["typed_per_filter_config"] = config;
        route
    };
    let faults = json!({
        "routes": [route("/own", json!({ FAULT: abort(418) })), route("/off", json!({ FAULT: off() })), route("/", json!({}))],
        "typed_per_filter_config": { FAULT: abort(503) },
    });
    let own = json!({ "allow_methods": "DELETE", "max_age": "9" });
    let origins = json!([{ "exact": "https://shop.example" }]);
    let policies = json!({
        "routes": [route("/own", json!({ CORS: cors(own) })), route("/off", json!({ CORS: off() })), route("/", json!({}))],
        "typed_per_filter_config": { CORS: cors(json!({ "allow_origin_string_match": origins, "allow_methods": "GET",
                                                       "allow_headers": "x-a", "allow_credentials": true })) },
    });
    let mut requests = Vec::new();
    for path in ["/", "/own", "/off"] {
        requests.push(format!("GET {path}\nOrigin: https://shop.example"));
        requests.push(format!(
            "OPTIONS {path}\nOrigin: https://shop.example\nAccess-Control-Request-Method: GET"
        ));
    }
    vec![
        Group::host("host-faults", faults).ask(["GET /", "GET /own", "GET /off"]),
        Group::host("host-origins", policies).ask(requests),
    ]
}

fn mirrors() -> Vec<Group> {
    let fraction =
        |percent: u32| json!({ "default_value": { "numerator": percent, "denominator": "HUNDRED" } });
    let mirror = |name: &str, policies: Value, action: Value, copies: usize| {
        let mut action = action;
        action["request_mirror_policies"] = policies;
        let mut route = to(json!({ "prefix": "/" }), "a", action);
        route["request_headers_to_add"] = json!([{ "header": { "key": "x-set", "value": "yes" } }]);
        let requests = [
            "GET /",
            "GET /b?c=d\nx-answers: 500",
            "POST /\n\nhello",
            "PUT /x\nHost: NAME.test:8080\n\nhello",
            "DELETE /x\nx-answers: reset",
        ];
        requests.iter().fold(Group::new(name, json!([route])), |group, request| {
            let request = request.replace("NAME", name);
            group.case(Case::new(request.replace('\n', " | "), [request]).copies(copies))
        })
    };
    vec![
        mirror("mirror", json!([{ "cluster": "m" }]), json!({}), 2),
        mirror(
            "mirror-two",
            json!([{ "cluster": "m" }, { "cluster": "n", "disable_shadow_host_suffix_append": true }]),
            json!({}),
            3,
        ),
        mirror("mirror-never", json!([{ "cluster": "m", "runtime_fraction": fraction(0) }]), json!({}), 1),
        mirror(
            "mirror-rewritten",
            json!([{ "cluster": "m" }]),
            json!({ "prefix_rewrite": "/z/", "host_rewrite_literal": "new.test" }),
            2,
        ),
        mirror("mirror-nobody", json!([{ "cluster": "nobody" }]), json!({}), 1),
        mirror("mirror-dead", json!([{ "cluster": "dead" }, { "cluster": "n" }]), json!({}), 2),
        mirror("mirror-empty", json!([{ "cluster": "mirror-of-none" }]), json!({}), 1).cluster(cluster(
            "mirror-of-none",
            &[],
            json!({}),
        )),
    ]
}

pub fn groups() -> Vec<Group> {
    [faults(), origins(), places(), mirrors()].into_iter().flatten().collect()
}
