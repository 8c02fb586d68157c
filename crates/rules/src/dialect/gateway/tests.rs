use outrigger_model::ext_authz::AuthzService;
use outrigger_model::matcher::StringMatch;
use outrigger_model::route::{
    Cors, Forward, HeaderEdits, HeaderText, NoCluster, PathMatch, Redirect, RetryOn, Rewrite, RouteAction,
};

use crate::intent::{AttachedIntent, HttpRoute};
use crate::testing::{attached, object, one_told, told};

const PARENT: &str = "parentRefs: [{group: '', kind: Service, name: catalog}]\n";

fn http(rules: &str) -> String {
    object("gateway.networking.k8s.io/v1", "HTTPRoute", &format!("{PARENT}rules:\n{rules}"))
}

fn grpc(rules: &str) -> String {
    object("gateway.networking.k8s.io/v1", "GRPCRoute", &format!("{PARENT}rules:\n{rules}"))
}

/// The only rule of an HTTPRoute without findings.
fn rule(rule: &str) -> HttpRoute {
    let text = http(&format!("- {rule}"));
    assert_eq!(told(&text), Vec::<String>::new());
    attached(&text).http.remove(0)
}

fn forward(route: &HttpRoute) -> &Forward {
    route.forward().unwrap_or_else(|| panic!("{route:?} does not forward"))
}

fn redirect(route: &HttpRoute) -> &Redirect {
    match &route.route.action {
        RouteAction::Redirect(redirect) => redirect,
        other => panic!("{other:?} is no redirect"),
    }
}

#[test]
fn parents_are_services_in_the_route_s_namespace_or_another() {
    let text = object(
        "gateway.networking.k8s.io/v1beta1",
        "HTTPRoute",
        "parentRefs:\n- {group: '', kind: Service, name: catalog, port: 8080}\n\
         - {group: '', kind: Service, name: pay, namespace: bank, sectionName: web}\n\
         - {group: '', kind: Service, name: catalog, port: 80}\n",
    );
    let AttachedIntent { parents, hosts, http, .. } = attached(&text);
    let read: Vec<_> =
        parents.iter().map(|p| (p.host.as_ref().unwrap().as_str(), p.port, p.section.as_deref())).collect();
    assert_eq!(
        read,
        [
            ("catalog.shop.svc.cluster.local", Some(8080), None),
            ("pay.bank.svc.cluster.local", None, Some("web")),
            ("catalog.shop.svc.cluster.local", Some(80), None),
        ]
    );
    assert_eq!(hosts.len(), 2);
    // Without rules there is the API's default: everything, to nowhere.
    assert_eq!((http.len(), http[0].matches.len(), http[0].lost), (1, 0, 1));
}

#[test]
fn what_is_no_service_is_told_and_hostnames_mean_nothing() {
    let text = object(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        "hostnames: [a.example]\nparentRefs: [{name: edge}, {kind: ServiceImport, group: x, name: y}, {group: '', kind: Service, name: a}]",
    );
    let told = told(&text);
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(told.iter().any(|t| t.contains("there are no Gateways yet")), "{told:#?}");
    assert!(told.iter().any(|t| t.contains("ServiceImport")), "{told:#?}");
    assert!(told.iter().any(|t| t.contains("spec.hostnames has no effect")), "{told:#?}");
    let parents = attached(&text).parents;
    assert_eq!(parents.iter().filter(|parent| parent.host.is_some()).count(), 1);
}

#[test]
fn matches_are_read() {
    let route = rule(
        "matches:\n  - path: {type: Exact, value: /a}\n    method: PUT\n    headers: [{name: X-A, value: b}]\n    queryParams: [{name: Q, value: '1.*', type: RegularExpression}]\n  \
         - path: {value: /a/b/}\n  - path: {type: RegularExpression, value: '/x+'}\n  - method: CONNECT\n  backendRefs: [{name: catalog, port: 80}]",
    );
    let paths: Vec<_> = route.matches.iter().map(|m| m.request.path.clone()).collect();
    assert_eq!(
        paths,
        [
            PathMatch::Exact("/a".into()),
            PathMatch::Segments("/a/b".into()),
            PathMatch::Regex("/x+".into()),
            PathMatch::Connect,
        ]
    );
    let first = &route.matches[0].request;
    let headers: Vec<_> = first.headers.iter().map(|h| (h.name.as_str(), h.value.clone())).collect();
    assert_eq!(headers, [(":method", StringMatch::exact("PUT")), ("x-a", StringMatch::exact("b"))]);
    assert_eq!((first.query[0].name.as_str(), &first.query[0].value), ("Q", &StringMatch::regex("1.*")));
    assert!(rule("backendRefs: [{name: catalog, port: 80}]").is_catch_all());
}

#[test]
fn of_a_name_only_the_first_match_counts() {
    let text = http(
        "- matches: [{headers: [{name: Foo, value: a}, {name: foo, value: b}]}]\n  backendRefs: [{name: catalog, port: 80}]",
    );
    assert!(told(&text)[0].contains("only the first match of a name counts"), "{:?}", told(&text));
    assert_eq!(attached(&text).http[0].matches[0].request.headers.len(), 1);
}

#[test]
fn backends_have_weights_and_edits_and_lost_ones_keep_their_share() {
    let text = http(
        "- backendRefs:\n  - {name: a, port: 80, weight: 3, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X, value: y}]}}, \
         {type: URLRewrite, urlRewrite: {hostname: other.example}}]}\n  - {name: b, namespace: bank, port: 81}\n  \
         - {kind: ServiceImport, group: multicluster.x-k8s.io, name: c, port: 80, weight: 5}\n",
    );
    let intent = attached(&text);
    let [route] = intent.http.as_slice() else { panic!("{intent:?}") };
    let targets: Vec<_> =
        route.targets.iter().map(|t| (t.target.host.as_str(), t.target.port, t.share.weight)).collect();
    assert_eq!(
        targets,
        [("a.shop.svc.cluster.local", Some(80), 3), ("b.bank.svc.cluster.local", Some(81), 1)]
    );
    let edits = &route.targets[0].share.request_headers.set;
    let pair = |name: &str, value: &str| (name.to_owned(), HeaderText::from(value));
    assert_eq!(*edits, [pair("x", "y")]);
    let hosts: Vec<_> = route.targets.iter().map(|target| target.share.authority.as_deref()).collect();
    assert_eq!(hosts, [Some("other.example"), None]);
    assert_eq!((route.lost, intent.flaws.len(), intent.flaws[0].reason.as_str()), (5, 1, "InvalidKind"));
    assert_eq!(forward(route).no_cluster, NoCluster::InternalError);
}

#[test]
fn a_rule_without_weight_goes_nowhere() {
    for backends in ["backendRefs: []", "backendRefs: [{name: a, port: 80, weight: 0}]", "name: nothing"] {
        let route = rule(backends);
        assert_eq!(route.lost, 1, "{backends}");
        assert!(route.forward().is_some(), "{backends}");
    }
}

#[test]
fn filters_of_a_rule_become_effects() {
    let route = rule(
        "filters:\n  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: '1'}], add: [{name: B, value: '%REQ(x)%'}], remove: [C]}}\n  \
         - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: D, value: '3'}]}}\n  \
         - {type: URLRewrite, urlRewrite: {hostname: x.example, path: {type: ReplaceFullPath, replaceFullPath: /new}}}\n  \
         - {type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 80}, fraction: {numerator: 1, denominator: 8}}}\n  \
         - {type: RequestMirror, requestMirror: {backendRef: {name: all, port: 80}}}\n  \
         - {type: CORS, cors: {allowOrigins: ['https://*.a.example', 'https://b.example'], allowMethods: [GET, PUT], allowCredentials: true}}\n  \
         backendRefs: [{name: catalog, port: 80}]",
    );
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let edit = |name: &str, value: &str| (name.to_owned(), HeaderText::from(value));
    let edits = HeaderEdits {
        set: vec![edit("a", "1")],
        add: vec![edit("b", "%REQ(x)%")],
        remove: vec!["c".into()],
        ..HeaderEdits::default()
    };
    assert_eq!(route.route.request_headers, edits);
    assert_eq!(route.route.response_headers.add, [edit("d", "3")]);
    let regex = Some(pair("^[^?]*", "/new"));
    let rewrite = Rewrite { regex, authority: Some("x.example".into()), ..Rewrite::default() };
    assert_eq!(forward(&route).rewrite, rewrite);
    let mirrors: Vec<_> = route
        .mirrors
        .iter()
        .map(|m| (m.target.host.as_str(), m.mirror.percentage, m.mirror.keep_host))
        .collect();
    assert_eq!(
        mirrors,
        [("copy.shop.svc.cluster.local", 12.5, true), ("all.shop.svc.cluster.local", 100.0, true)]
    );
    let Some(Cors { allow_origins, allow_methods, max_age, forward_not_matching, .. }) = &route.route.cors
    else {
        panic!("no cors")
    };
    assert_eq!(
        *allow_origins,
        [StringMatch::regex("https://.+\\.a\\.example"), StringMatch::exact("https://b.example")]
    );
    assert_eq!((allow_methods.as_str(), max_age.as_str(), *forward_not_matching), ("GET,PUT", "5", false));
}

#[test]
fn a_replaced_prefix_follows_the_table_of_the_specification() {
    // (prefix, replacement, path, what becomes of it): api/v1/httproute_types.go, and the prefix that is everything.
    for (prefix, replacement, path, expected) in [
        ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz", "/foo", "/xyz"),
        ("/foo/", "/xyz", "/foo", "/xyz"),
        ("/foo", "/xyz", "/foo/", "/xyz/"),
        ("/foo", "/xyz/", "/foo", "/xyz/"),
        ("/foo", "", "/foo/bar", "/bar"),
        ("/foo", "", "/foo/", "/"),
        ("/foo", "", "/foo", "/"),
        ("/foo", "/", "/foo/", "/"),
        ("/foo", "/", "/foo", "/"),
        ("/foo.", "/", "/foo./b", "/b"),
        ("/", "/xyz", "/bar", "/xyz/bar"),
        ("/", "/", "/bar", "/bar"),
    ] {
        let route = rule(&format!(
            "matches: [{{path: {{value: '{prefix}'}}}}]\n  filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: '{replacement}'}}}}}}]\n  \
             backendRefs: [{{name: catalog, port: 80}}]",
        ));
        let rewrite = &forward(&route).rewrite;
        let found = match (&rewrite.prefix, &rewrite.regex) {
            (Some(by), None) => path.replacen(prefix.trim_end_matches('/'), by, 1),
            (None, Some((pattern, by))) => {
                regex::Regex::new(pattern).unwrap().replace_all(path, by.as_str()).into_owned()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected, "{prefix} by {replacement} in {path}: {rewrite:?}");
    }
}

#[test]
fn redirects_lead_where_the_specification_says() {
    let filter =
        |fields: &str| rule(&format!("filters: [{{type: RequestRedirect, requestRedirect: {{{fields}}}}}]"));
    let route = filter("hostname: example.org");
    let expected = Redirect { authority: Some("example.org".into()), status: 302, ..Redirect::default() };
    assert_eq!((redirect(&route), route.to_request_port), (&expected, true));
    assert!(route.targets.is_empty() && route.lost == 0);
    let route = filter("scheme: https, statusCode: 307, path: {type: ReplaceFullPath, replaceFullPath: /x}");
    assert_eq!((redirect(&route).status, redirect(&route).path.as_deref()), (307, Some("/x")));
    assert!(!route.to_request_port, "a scheme has a port of its own");
    let route = filter("port: 8083, path: {type: ReplacePrefixMatch, replacePrefixMatch: /y/}");
    assert_eq!((redirect(&route).port, route.to_request_port), (Some(8083), false));
    assert_eq!(redirect(&route).regex, Some(("^/?".to_owned(), "/y/".to_owned())));
}

#[test]
fn a_filter_that_nobody_runs_lets_nothing_pass() {
    for (filter, reason) in [
        ("{type: ExtensionRef, extensionRef: {group: x, kind: Y, name: z}}", "InvalidKind"),
        (
            "{type: ExternalAuth, externalAuth: {protocol: HTTP, http: {}, backendRef: {name: a, port: 1}}}",
            "UnsupportedValue",
        ),
    ] {
        let text = http(&format!("- filters: [{filter}]\n  backendRefs: [{{name: catalog, port: 80}}]"));
        let intent = attached(&text);
        assert_eq!((intent.http[0].targets.len(), intent.http[0].lost), (0, 1), "{filter}");
        assert_eq!(intent.flaws[0].reason, reason, "{filter}");
        assert!(told(&text)[0].contains("answered with an error"), "{:?}", told(&text));
    }
}

#[test]
fn a_service_that_is_asked_is_read_with_what_goes_along() {
    let filter = |fields: &str| {
        format!(
            "filters: [{{type: ExternalAuth, externalAuth: {{backendRef: {{name: guard, port: 9000}}, {fields}}}}}]\n  \
             backendRefs: [{{name: catalog, port: 80}}]"
        )
    };
    let auth = |fields: &str| {
        let route = rule(&filter(fields));
        assert_eq!((route.targets.len(), route.lost), (1, 0), "{fields}");
        *route.auth.unwrap()
    };
    let found = auth(
        "protocol: HTTP, http: {path: /check, allowedHeaders: [X-Token], allowedResponseHeaders: [X-User]}, forwardBody: {maxSize: 100}",
    );
    let target = (found.target.host.as_str(), found.target.port);
    assert_eq!(target, ("guard.shop.svc.cluster.local", Some(9000)));
    let AuthzService::Http(http) = &found.filter.service else { panic!("{found:?}") };
    assert_eq!(http.path_prefix, "/check");
    assert_eq!(http.upstream_headers, [StringMatch::exact("x-user")]);
    assert_eq!(found.filter.allowed_headers, Some(vec![StringMatch::exact("x-token")]));
    assert_eq!(found.filter.body.map(|body| (body.max_bytes, body.allow_partial)), Some((100, false)));
    assert!(!found.filter.failure_mode_allow, "it fails closed");
    let found = auth("protocol: GRPC, grpc: {}, forwardBody: {maxSize: 0}");
    assert!(matches!(found.filter.service, AuthzService::Grpc { .. }), "{found:?}");
    assert_eq!((found.filter.allowed_headers, found.filter.body), (None, None));
    for (fields, wanted) in [
        ("protocol: GRPC", "grpc"),
        ("protocol: GRPC, grpc: {}, http: {}", "http belongs to the other protocol"),
        (
            "protocol: HTTP, http: {path: 'a?b', allowedResponseHeaders: [x]}",
            "must be the beginning of a path",
        ),
        ("protocol: GRPC, grpc: {allowedHeaders: ['a b']}", "is not a header name"),
        ("protocol: GRPC, grpc: {}, forwardBody: {maxSize: 70000}", "from 0 to 65535"),
    ] {
        let told = told(&http_text(&filter(fields)));
        assert!(told.iter().any(|told| told.contains(wanted)), "{fields}: {told:?}");
    }
}

fn http_text(rule: &str) -> String {
    http(&format!("- {rule}"))
}

#[test]
fn what_only_a_lone_backend_can_have_is_the_rule_s() {
    let filters = "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 80}}}]";
    let route = rule(&format!("backendRefs: [{{name: catalog, port: 80, {filters}}}]"));
    assert_eq!((route.mirrors.len(), route.targets.len(), route.lost), (1, 1, 0));
    let text = http(&format!(
        "- backendRefs: [{{name: catalog, port: 80}}, {{name: other, port: 80, weight: 4, {filters}}}]"
    ));
    let intent = attached(&text);
    assert_eq!((intent.http[0].mirrors.len(), intent.http[0].targets.len(), intent.http[0].lost), (0, 1, 4));
    assert_eq!(intent.flaws[0].reason, "UnsupportedValue");
}

#[test]
fn a_filter_that_one_of_several_backends_cannot_have_is_named() {
    let path = "{type: URLRewrite, urlRewrite: {hostname: a.test, path: {type: ReplaceFullPath, replaceFullPath: /x}}}";
    let cors = "{type: CORS, cors: {allowOrigins: ['*']}}";
    let redirect = "{type: RequestRedirect, requestRedirect: {hostname: a.test}}";
    let extension = "{type: ExtensionRef, extensionRef: {group: x, kind: Y, name: z}}";
    for (filters, named, reason) in [
        (path, "backendRefs[1].filters: URLRewrite with a path is not implemented here", "UnsupportedValue"),
        (cors, "backendRefs[1].filters: CORS is", "UnsupportedValue"),
        (redirect, "backendRefs[1].filters: RequestRedirect is", "UnsupportedValue"),
        (extension, "knows no filters of others", "InvalidKind"),
    ] {
        let backend = format!("{{name: other, port: 80, weight: 4, filters: [{filters}]}}");
        let text = http(&format!("- backendRefs: [{{name: catalog, port: 80}}, {backend}]"));
        let intent = attached(&text);
        let route = &intent.http[0];
        assert_eq!((route.targets.len(), route.lost), (1, 4), "{filters}");
        let [flaw] = intent.flaws.as_slice() else { panic!("{filters}: {:?}", intent.flaws) };
        assert_eq!(flaw.reason, reason, "{filters}");
        assert!(flaw.message.contains(named), "{}", flaw.message);
    }
}

#[test]
fn timeouts_and_retries_are_read() {
    let route = rule(
        "timeouts: {request: 10s, backendRequest: 2s}\n  retry: {codes: [503, 500], attempts: 3, backoff: 100ms}\n  backendRefs: [{name: catalog, port: 80}]",
    );
    let Forward { timeout, retry: Some(retry), .. } = forward(&route) else { panic!("no retry") };
    assert_eq!((timeout.unwrap().as_secs(), retry.per_try_timeout.unwrap().as_secs()), (10, 2));
    assert_eq!((retry.attempts, retry.statuses.as_slice()), (3, [500, 503].as_slice()));
    let never = rule("retry: {codes: [503], attempts: 0}\n  backendRefs: [{name: catalog, port: 80}]");
    assert_eq!(forward(&never).retry.as_ref().unwrap().attempts, 0);
    assert_eq!(retry.backoff_base.as_millis(), 100);
    assert!(retry.on.contains(&RetryOn::Reset) && retry.on.contains(&RetryOn::ConnectFailure));
    let route = rule("timeouts: {request: 0s}\n  backendRefs: [{name: catalog, port: 80}]");
    assert_eq!(forward(&route).timeout, None);
}

#[test]
fn methods_of_grpc_are_paths() {
    for (method, expected) in [
        ("{service: a.B, method: C}", PathMatch::Exact("/a.B/C".into())),
        ("{service: a.B}", PathMatch::Prefix("/a.B/".into())),
        ("{method: C}", PathMatch::Regex("/[^/]+/C".into())),
        ("{type: RegularExpression, service: 'a.+'}", PathMatch::Regex("/(?:a.+)/[^/]+".into())),
    ] {
        let text =
            grpc(&format!("- matches: [{{method: {method}}}]\n  backendRefs: [{{name: catalog, port: 80}}]"));
        let intent = attached(&text);
        assert_eq!(intent.http[0].matches[0].request.path, expected, "{method}");
        assert_eq!(forward(&intent.http[0]).no_cluster, NoCluster::Unavailable);
    }
}

#[test]
fn what_the_api_server_would_refuse_is_refused_by_place() {
    let backend = "backendRefs: [{name: catalog, port: 80}]";
    for (rule, word) in [
        ("backendRefs: [{name: catalog}]", "port is missing"),
        ("backendRefs: [{port: 80}]", "name is missing"),
        ("backendRefs: [{name: a.b, port: 80}]", "is not the name of a Service"),
        ("matches: [{path: {value: a}}]", "must start with a slash"),
        ("matches: [{path: {value: /a//b}}]", "neither empty elements"),
        ("matches: [{path: {type: Suffix, value: /a}}]", "must be one of Exact, PathPrefix"),
        ("matches: [{path: {type: RegularExpression, value: '('}}]", "regular expression"),
        ("matches: [{method: get}]", "must be one of GET"),
        ("matches: [{headers: [{name: a}]}]", "value is missing"),
        ("filters: [{type: URLRewrite}]", "urlRewrite is missing"),
        (
            "filters: [{type: CORS, urlRewrite: {}, cors: {allowOrigins: ['*']}}]",
            "belongs to a filter of another type",
        ),
        ("filters: [{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}]", "only once"),
        (
            "filters: [{type: URLRewrite, urlRewrite: {}}, {type: RequestRedirect, requestRedirect: {}}]",
            "only one of them",
        ),
        (
            "filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}]",
            "301, 302, 303, 307 or 308",
        ),
        ("timeouts: {request: 1s, backendRequest: 2s}", "must not be longer than request"),
        ("retry: {codes: [200]}", "whole number from 400 to 599"),
        ("filter: []", "unknown field \"filter\""),
        (
            "matches: [{path: {type: Exact, value: /a}}]\n  filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]",
            "exactly one match",
        ),
    ] {
        let rule =
            if rule.contains("backendRefs") { rule.to_owned() } else { format!("{rule}\n  {backend}") };
        let told = told(&http(&format!("- {rule}")));
        assert!(told.iter().any(|t| t.contains("error") && t.contains(word)), "{rule}: {told:#?}");
    }
}

#[test]
fn a_grant_is_read_and_told_to_have_no_effect() {
    let grant = |spec: &str| object("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", spec);
    let whole = grant(
        "from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: bank}]\nto: [{group: '', kind: Service, name: a}]",
    );
    assert!(one_told(&whole).contains("warning OUT0006"));
    let bad = told(&grant("from: [{group: gateway.networking.k8s.io, kind: HTTPRoute}]"));
    assert_eq!(bad.iter().filter(|line| line.contains("error IST0106")).count(), 2, "{bad:#?}");
}

#[test]
fn lists_are_as_long_as_the_api_takes_them() {
    let refs = |n: usize| vec!["{name: a, port: 80}"; n].join(", ");
    let rule = |n: usize| http(&format!("- backendRefs: [{}]", refs(n)));
    assert!(told(&rule(16)).is_empty());
    assert!(told(&rule(17)).iter().any(|line| line.contains("has 17 items, and may have 16")));
    let matches = |n: usize| http(&format!("- matches: [{}]", vec!["{method: GET}"; n].join(", ")));
    assert!(told(&matches(65)).iter().any(|line| line.contains("may have 64")));
    let rules = |n: usize| http(&"- backendRefs: []\n".repeat(n));
    assert!(told(&rules(17)).iter().any(|line| line.contains("spec.rules has 17 items")));
}

#[test]
fn the_matches_of_all_rules_are_counted_together() {
    let rules = |one: &str, counts: &[usize]| -> String {
        let rule = |n: &usize| format!("- matches: [{}]\n  backendRefs: []\n", vec![one; *n].join(", "));
        counts.iter().map(rule).collect()
    };
    for (kind, wrap, one) in [
        ("HTTPRoute", http as fn(&str) -> String, "{method: GET}"),
        ("GRPCRoute", grpc, "{method: {service: a}}"),
    ] {
        let text = |counts: &[usize]| wrap(&rules(one, counts));
        assert_eq!(told(&text(&[64, 64])), Vec::<String>::new());
        let error = one_told(&text(&[64, 64, 1]));
        let words =
            "shop/reviews has 129 matches over all of its rules, and may have 128: write several routes";
        assert!(error.contains("error IST0106") && error.contains(&format!("{kind} {words}")), "{error}");
    }
    // Of a rule that says none an HTTPRoute has one, and a GRPCRoute has none.
    let unsaid = "- backendRefs: []\n";
    let full = [64, 64];
    assert!(one_told(&http(&(rules("{method: GET}", &full) + unsaid))).contains("has 129 matches"));
    assert_eq!(told(&http(&(rules("{method: GET}", &[64, 63]) + unsaid))), Vec::<String>::new());
    assert_eq!(told(&grpc(&(rules("{method: {service: a}}", &full) + unsaid))), Vec::<String>::new());
}

#[test]
fn the_age_of_an_object_is_read_and_anything_else_there_is_ignored() {
    let aged = |text: &str| {
        let text = http("- backendRefs: []")
            .replace("namespace: shop", &format!("namespace: shop, creationTimestamp: {text}"));
        attached(&text).created
    };
    assert_eq!(aged("'2026-01-31T10:00:00Z'").as_deref(), Some("2026-01-31T10:00:00Z"));
    assert_eq!((aged("null"), aged("yesterday"), aged("7")), (None, None, None));
}
