use std::time::Duration;

use outrigger_model::matcher::StringMatch;
use outrigger_model::route::{Cors, FaultStatus, PathMatch, RouteAction};

use crate::intent::{Target, Visibility};
use crate::testing::{objects, one_told, route, told, virtual_service};

mod others;
mod retries;

const TO: &str = "    - destination: {host: reviews}\n";

fn http(fields: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("  {line}\n")).collect();
    virtual_service(&format!("hosts: [reviews]\nhttp:\n- name: a\n{fields}  route:\n{TO}"))
}

#[test]
fn short_hosts_resolve_in_the_namespace_of_the_rule() {
    let route = route(&virtual_service(&format!("hosts: [reviews, ratings.other]\nhttp:\n- route:\n{TO}")));
    let hosts: Vec<&str> = route.hosts.iter().map(|host| host.as_str()).collect();
    assert_eq!(hosts, ["reviews.shop.svc.cluster.local", "ratings.other.svc.cluster.local"]);
    assert_eq!(route.origin.to_string(), "VirtualService shop/reviews");
}

#[test]
fn every_condition_of_a_match_arrives() {
    let match_block = "match:
- uri: {prefix: /Api}
  ignoreUriCase: true
  scheme: {exact: https}
  method: {regex: GET|HEAD}
  authority: {exact: shop.example.com}
  headers:
    End-User: {exact: jason}
    x-debug: {}
  withoutHeaders:
    x-bot: {prefix: crawl}
  queryParams:
    q: {regex: '[0-9]+'}
  port: 80
  sourceLabels: {app: web}
  sourceNamespace: front
";
    let route = route(&http(match_block));
    let found = &route.http[0].matches[0];
    assert_eq!(found.request.path, PathMatch::Prefix("/Api".into()));
    assert!(found.request.ignore_case && !found.is_catch_all());
    assert_eq!(found.method(), Some(&StringMatch::regex("GET|HEAD")));
    let headers: Vec<_> =
        found.request.headers.iter().map(|h| (h.name.as_str(), h.value.clone(), h.invert)).collect();
    let authority = StringMatch { ignore_case: true, ..StringMatch::exact("shop.example.com") };
    assert_eq!(
        headers,
        [
            (":method", StringMatch::regex("GET|HEAD"), false),
            (":authority", authority, false),
            (":scheme", StringMatch::exact("https"), false),
            ("end-user", StringMatch::exact("jason"), false),
            ("x-debug", StringMatch::present(), false),
            ("x-bot", StringMatch::prefix("crawl"), true),
        ]
    );
    assert_eq!(found.request.query[0].value, StringMatch::regex("[0-9]+"));
    assert_eq!((found.port, found.source_namespace.as_deref()), (Some(80), Some("front")));
    assert_eq!(found.source_labels["app"], "web");
}

#[test]
fn weights_headers_and_subsets_arrive() {
    let text = virtual_service(
        "hosts: [reviews]
http:
- route:
  - destination: {host: reviews, subset: v1, port: {number: 9080}}
    weight: 90
    headers: {request: {set: {X-A: '1'}, remove: [X-B]}, response: {add: {x-c: '2'}}}
  - destination: {host: reviews, subset: v2}
    weight: 10",
    );
    let route = route(&text);
    let targets = &route.http[0].targets;
    assert_eq!(targets.iter().map(|t| t.share.weight).collect::<Vec<_>>(), [90, 10]);
    assert_eq!((targets[0].target.subset.as_deref(), targets[0].target.port), (Some("v1"), Some(9080)));
    assert_eq!(targets[0].share.request_headers.set, [("x-a".to_owned(), "1".into())]);
    assert_eq!(targets[0].share.request_headers.remove, ["x-b"]);
    assert_eq!(targets[0].share.response_headers.add, [("x-c".to_owned(), "2".into())]);
}

#[test]
fn values_of_headers_have_envoys_commands() {
    let of = |way: &str, name: &str, value: &str| {
        virtual_service(&format!(
            "hosts: [reviews]\nhttp:\n- route: [{{destination: {{host: reviews}}}}]\n  headers: {{{way}: {{set: {{'{name}': '{value}'}}}}}}"
        ))
    };
    let edits = route(&of("request", "x-a", "%REQ(x-b?:path):9% of %PROTOCOL%")).http[0]
        .route
        .request_headers
        .clone();
    assert!(edits.has_commands());
    assert_eq!(edits.set[0].1.to_string(), "%REQ(x-b?:path):9% of %PROTOCOL%");
    let edits = route(&of("response", "x-a", "50%%")).http[0].route.response_headers.clone();
    assert_eq!((edits.has_commands(), edits.set[0].1.to_string()), (false, "50%".to_owned()));
    assert!(route(&of("response", "x-a", "%UPSTREAM_HOST%")).http[0].route.response_headers.has_commands());
    for (way, name, value, wanted) in [
        ("request", "x-a", "50%", "set.x-a: a percent sign begins a command"),
        ("request", "x-a", "%NOTHING%", "%NOTHING% is no command that headers have here"),
        ("request", "x-a", "%UPSTREAM_HOST%", "%UPSTREAM_HOST% is for headers of responses"),
        ("request", "x-a", "%ENVIRONMENT(HOME)%", "%ENVIRONMENT% is no command"),
        ("response", "x-a", "%DURATION%", "is known only when a request is over"),
        ("request", ":authority", "%REQ(x-host)%", "a command is no authority"),
        ("request", "Host", "%REQ(x-host)%", "a command is no authority"),
    ] {
        let told = one_told(&of(way, name, value));
        assert!(told.contains(wanted), "{value}: {told}");
    }
}

#[test]
fn a_lone_destination_without_weight_gets_everything() {
    assert_eq!(route(&http("")).http[0].targets[0].share.weight, 1);
}

#[test]
fn faults_arrive_with_their_share() {
    let text = http(
        "fault:\n  delay: {fixedDelay: 5s, percentage: {value: 0.1}}\n  abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}",
    );
    let fault = route(&text).http[0].route.fault.clone().unwrap();
    let (delay, abort) = (fault.delay.unwrap(), fault.abort.unwrap());
    assert_eq!((delay.duration, delay.percentage), (Duration::from_secs(5), 0.1));
    assert_eq!((abort.status, abort.percentage), (FaultStatus::Grpc(14), 100.0));
}

#[test]
fn a_fault_without_percentage_never_happens_and_says_so() {
    let text = http("fault: {abort: {httpStatus: 500}}");
    assert!(one_told(&text).contains("so it never happens"));
    let fault = route(&text).http[0].route.fault.clone().unwrap();
    assert_eq!(fault.abort.unwrap().percentage, 0.0);
}

#[test]
fn redirects_rewrites_and_own_answers_arrive() {
    let text = virtual_service(
        "hosts: [reviews]
http:
- match: [{uri: {prefix: /old}}]
  redirect: {uri: /new, authority: example.com, derivePort: FROM_REQUEST_PORT, redirectCode: 308}
- match: [{uri: {prefix: /down}}]
  directResponse: {status: 503, body: {string: gone}}
- rewrite: {uriRegexRewrite: {match: '^/a/(.*)', rewrite: '/b/\\1'}, authority: other}
  route: [{destination: {host: reviews}}]",
    );
    let route = route(&text);
    let RouteAction::Redirect(redirect) = &route.http[0].route.action else { panic!("{:?}", route.http[0]) };
    assert_eq!((redirect.status, redirect.port, route.http[0].to_request_port), (308, None, true));
    let gone = RouteAction::Direct { status: 503, body: "gone".into() };
    assert_eq!(route.http[1].route.action, gone);
    let rewrite = &route.http[2].forward().unwrap().rewrite;
    assert_eq!(rewrite.regex.as_ref().unwrap().1, "/b/\\1");
}

#[test]
fn what_says_nothing_of_an_answer_of_our_own_is_told() {
    for (action, useless) in [
        ("directResponse: {status: 503}", "rewrite: {uri: /b}"),
        ("directResponse: {status: 503}", "timeout: 1s"),
        ("directResponse: {status: 503}", "retries: {attempts: 1}"),
        ("redirect: {uri: /new}", "timeout: 1s"),
    ] {
        let text = virtual_service(&format!("hosts: [reviews]\nhttp:\n- {action}\n  {useless}"));
        let told = one_told(&text);
        assert!(told.contains("warning OUT0006") && told.contains("has no effect beside a"), "{told}");
    }
}

#[test]
fn a_timeout_of_zero_is_off() {
    assert_eq!(route(&http("timeout: 0s")).http[0].forward().unwrap().timeout, None);
    assert_eq!(
        route(&http("timeout: 1.5s")).http[0].forward().unwrap().timeout,
        Some(Duration::from_millis(1500))
    );
}

#[test]
fn an_unknown_field_is_an_error_at_its_key_with_a_suggestion() {
    assert_eq!(
        one_told(&http("timout: 1s")),
        "rules.yaml:9:5 error IST0106: unknown field \"timout\" in an HTTP route. Did you mean \"timeout\"?"
    );
}

#[test]
fn a_policy_for_other_origins_arrives() {
    let text = http(
        "corsPolicy:
  allowOrigins: [{exact: 'https://a.test'}, {prefix: 'https://b.'}, {regex: 'https://[a-z]+.c.test'}]
  allowMethods: [GET, POST]
  allowHeaders: [X-A, content-type]
  exposeHeaders: ['*']
  maxAge: 24h
  allowCredentials: true
  unmatchedPreflights: IGNORE",
    );
    let expected = Cors {
        allow_origins: vec![
            StringMatch::exact("https://a.test"),
            StringMatch::prefix("https://b."),
            StringMatch::regex("https://[a-z]+.c.test"),
        ],
        allow_methods: "GET,POST".into(),
        allow_headers: "X-A,content-type".into(),
        expose_headers: "*".into(),
        max_age: "86400".into(),
        allow_credentials: true,
        forward_not_matching: false,
        ..Cors::default()
    };
    assert_eq!(route(&text).http[0].route.cors, Some(expected));
    let old =
        route(&http("corsPolicy: {allowOrigin: ['https://a.test']}")).http[0].route.cors.clone().unwrap();
    assert_eq!(old.allow_origins, [StringMatch::exact("https://a.test")]);
    assert!(old.forward_not_matching && old.max_age.is_empty());
    assert!(one_told(&http("corsPolicy: {allowMethods: [GET]}")).contains("allows no origin"));
    assert!(
        one_told(&http("corsPolicy: {allowOrigins: [{exact: a}], allowHeaders: ['a b']}"))
            .contains("error IST0106: spec.http[0].corsPolicy.allowHeaders[0] must be a header name")
    );
    assert!(one_told(&http("corsPolicy: {allowOrigins: ['https://a.test']}")).contains("not a bare text"));
}

#[test]
fn mirrors_arrive_by_all_their_names() {
    let mirrors = |fields: &str| -> Vec<(String, Option<String>, Option<u16>, f64)> {
        let route = route(&http(fields));
        let all = route.http[0].mirrors.iter();
        all.map(|m| {
            let Target { host, subset, port } = m.target.clone();
            (host.as_str().to_owned(), subset, port, m.mirror.percentage)
        })
        .collect()
    };
    let other = "other.shop.svc.cluster.local".to_owned();
    let whole = (other.clone(), None, None, 100.0);
    assert_eq!(mirrors("mirror: {host: other}"), std::slice::from_ref(&whole));
    let part = (other.clone(), Some("v2".to_owned()), Some(81), 12.5);
    let to = "{host: other, subset: v2, port: {number: 81}}";
    for share in ["mirrorPercentage: {value: 12.5}", "mirror_percent: 12.5", "mirrorPercent: 12.5"] {
        assert_eq!(mirrors(&format!("mirror: {to}\n{share}")), std::slice::from_ref(&part), "{share}");
    }
    let several = format!(
        "mirrors:\n- {{destination: {to}, percentage: {{value: 12.5}}}}\n- destination: {{host: other}}"
    );
    assert_eq!(mirrors(&several), [part, whole]);
    assert!(one_told(&http(&format!("mirror: {to}\n{several}"))).contains("only one of them can hold"));
    assert!(
        one_told(&http("mirror_percent: 5"))
            .contains("warning OUT0006: spec.http[0].mirror_percent has no effect")
    );
    assert!(one_told(&http("mirror: {host: other}\nmirror_percent: 0")).contains("gets 0 %"));
    assert_eq!(mirrors("mirror: {host: other}\nmirror_percent: 0"), []);
}

#[test]
fn a_bad_pattern_is_an_error_at_its_place() {
    let told = one_told(&http("match: [{uri: {regex: '(a'}}]"));
    assert!(
        told.starts_with("rules.yaml:9:27 error IST0122: spec.http[0].match[0].uri.regex is not"),
        "{told}"
    );
    for bad in ["a)|(b", "(?x)a # b", "\\w{1000}{1000}"] {
        assert!(
            one_told(&http(&format!("match: [{{uri: {{regex: '{bad}'}}}}]"))).contains("regular expression"),
            "{bad}"
        );
    }
}

#[test]
fn a_duration_without_unit_is_told_with_one() {
    let told = one_told(&http("timeout: 5"));
    assert!(told.ends_with("not the number 5. Did you mean \"5s\"?"), "{told}");
}

#[test]
fn all_errors_of_a_document_are_told_not_only_the_first() {
    let text = virtual_service(
        "hosts: ['a b']
http:
- timeout: soon
  retries: {attempts: -1}
  rout: []
- redirect: {redirectCode: 200}
  route: [{destination: {hots: x}}]",
    );
    let told = told(&text);
    let lines: Vec<&str> = told.iter().map(|line| line.split(' ').next().unwrap()).collect();
    let expected = [
        "rules.yaml:6:11",
        "rules.yaml:8:5",
        "rules.yaml:8:14",
        "rules.yaml:9:25",
        "rules.yaml:10:5",
        "rules.yaml:11:5",
    ];
    assert_eq!(lines, expected, "{told:#?}");
}

#[test]
fn a_rule_for_gateways_only_has_no_effect_and_says_so() {
    let text = virtual_service(&format!("hosts: [reviews]\ngateways: [public]\nhttp:\n- route:\n{TO}"));
    assert!(one_told(&text).contains("warning OUT0005: spec.gateways"));
    assert_eq!(objects(&text)[0].intents, []);
}

#[test]
fn a_match_that_cannot_be_checked_matches_nothing_rather_than_everything() {
    let text = virtual_service(
        "hosts: [reviews]
gateways: [mesh, public]
http:
- match: [{gateways: [public]}]
  route: [{destination: {host: a}}]
- route: [{destination: {host: b}}]
tcp:
- match: [{destinationSubnets: [10.0.0.0/8]}]
  route: [{destination: {host: c}}]",
    );
    let route = route(&text);
    assert_eq!(route.http.len(), 1);
    assert_eq!(route.http[0].targets[0].target.host.as_str(), "b.shop.svc.cluster.local");
    assert_eq!(route.tcp, []);
}

#[test]
fn tcp_routes_and_visibility_arrive() {
    let text = virtual_service(
        "hosts: [stock]
exportTo: ['.', front]
tcp:
- match: [{port: 9000}]
  route: [{destination: {host: stock, port: {number: 9000}}}]",
    );
    let route = route(&text);
    assert_eq!(route.tcp[0].matches[0].port, Some(9000));
    assert_eq!(route.visibility, Visibility::Namespaces(vec!["shop".into(), "front".into()]));
}

#[test]
fn a_route_takes_exactly_one_action() {
    let none = virtual_service("hosts: [reviews]\nhttp:\n- name: x");
    assert!(one_told(&none).contains("needs one of route, redirect or directResponse"));
    let both = virtual_service(&format!("hosts: [reviews]\nhttp:\n- redirect: {{uri: /}}\n  route:\n{TO}"));
    assert!(one_told(&both).contains("route and redirect, but a route takes exactly one"));
}

#[test]
fn weights_cannot_overflow() {
    let text = virtual_service(
        "hosts: [reviews]
http:
- route:
  - {destination: {host: a}, weight: 4294967295}
  - {destination: {host: b}, weight: 1}",
    );
    assert!(one_told(&text).contains("must sum to less than"));
}

#[test]
fn a_header_value_with_a_line_break_is_refused() {
    let text = http("headers: {request: {set: {x-a: \"b\\r\\nc: d\"}}}");
    assert!(one_told(&text).contains("control character"));
}

#[test]
fn a_redirect_that_leads_nowhere_else_is_refused_as_in_istio() {
    let redirect =
        |fields: &str| virtual_service(&format!("hosts: [reviews]\nhttp:\n- redirect: {{{fields}}}"));
    for nowhere in ["", "redirectCode: 302", "uri: ''", "authority: '', redirectCode: 307"] {
        assert!(one_told(&redirect(nowhere)).contains("leads nowhere else"), "{nowhere}");
    }
    for somewhere in [
        "uri: /a",
        "prefixRewrite: /a",
        "authority: a.example",
        "scheme: https",
        "port: 8443",
        "derivePort: FROM_REQUEST_PORT",
    ] {
        assert!(told(&redirect(somewhere)).is_empty(), "{somewhere}");
    }
    assert!(told(&http("retries: {attempts: 0, retryOn: '', backoff: 10ms}")).is_empty());
}

#[test]
fn what_istio_refuses_is_refused_here() {
    for (fields, part) in [
        ("rewrite: {}", "spec.http[0].rewrite says nothing"),
        ("rewrite: {uri: '', authority: ''}", "spec.http[0].rewrite says nothing"),
        ("match: [{uri: {regex: ''}}]", "it is empty; .* matches everything"),
        ("match: [{headers: {x-a: {regex: ''}}}]", "it is empty"),
        ("timeout: 100us", "must be whole milliseconds, not 100\u{b5}s"),
        ("timeout: 1.0005s", "must be whole milliseconds"),
        ("retries: {attempts: 1, perTryTimeout: 10ns}", "must be whole milliseconds"),
        (
            "retries: {attempts: 0, perTryTimeout: 1s}",
            "spec.http[0].retries has perTryTimeout, but no attempts, or 0",
        ),
        ("retries: {attempts: 0, retryOn: 5xx}", "spec.http[0].retries has retryOn"),
        ("retries: {retryOn: 5xx}", "spec.http[0].retries has retryOn"),
        ("fault: {delay: {fixedDelay: 1us, percentage: {value: 1}}}", "must be whole milliseconds"),
        ("rewrite: {uriRegexRewrite: {match: '/a/(.*)', rewrite: '/\\2'}}", "\\2 is none of the 1 groups"),
        ("rewrite: {uriRegexRewrite: {match: '/a', rewrite: '/\\x'}}", "\\x is none of the 0 groups"),
        ("headers: {response: {set: {':authority': a}}}", "\":authority\" is not a header name"),
        ("headers: {request: {set: {':path': /a}}}", "\":path\" is not a header name"),
        ("headers: {request: {remove: [host]}}", "a request needs its host"),
        ("rewrite: {authority: a}\nheaders: {request: {set: {':authority': b}}}", "set more than once"),
        ("headers: {request: {set: {':authority': b, Host: c}}}", "set more than once"),
    ] {
        let told = one_told(&http(fields));
        let code =
            if part.contains("pattern") || fields.contains("regex: ''") { "IST0122" } else { "IST0106" };
        assert!(told.contains(&format!(" error {code}: ")) && told.contains(part), "{fields}: {told}");
    }
    for fields in [
        "rewrite: {uriRegexRewrite: {match: '/a/(.*)', rewrite: '/\\0/\\1\\\\'}}",
        "timeout: 1ms",
        "timeout: 0s",
        "headers: {request: {set: {':authority': b}}}",
    ] {
        assert_eq!(told(&http(fields)), Vec::<String>::new(), "{fields}");
    }
    for beside in ["rewrite: {uri: /}", "fault: {abort: {httpStatus: 500, percentage: {value: 1}}}"] {
        let text = virtual_service(&format!("hosts: [reviews]\nhttp:\n- redirect: {{uri: /}}\n  {beside}"));
        assert!(one_told(&text).contains("can not stand beside a redirect"), "{beside}");
    }
}
