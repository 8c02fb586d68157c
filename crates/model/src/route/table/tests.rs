use proptest::prelude::*;

use super::*;
use crate::matcher::{Pattern, StringMatch};
use crate::route::{CookieMatch, HeaderMatch, QueryMatch, Rewrite, RouteMatch, RouteUpgrade, VirtualHost};

struct Request {
    method: &'static str,
    path: String,
    authority: String,
    headers: Vec<(&'static str, &'static str)>,
}

impl RequestView for Request {
    fn method(&self) -> &str {
        self.method
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn authority(&self) -> &str {
        &self.authority
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.headers.iter().filter(move |(n, _)| *n == name).map(|(_, v)| v.as_bytes())
    }
}

fn get(authority: &str, path: &str) -> Request {
    Request { method: "GET", path: path.into(), authority: authority.into(), headers: Vec::new() }
}

fn route(name: &str, matches: RouteMatch) -> Route {
    Route {
        name: name.into(),
        matches,
        action: RouteAction::Forward(Forward {
            clusters: vec![WeightedCluster::only("c")],
            ..Forward::default()
        }),
        ..Route::default()
    }
}

fn on_path(path: PathMatch) -> RouteMatch {
    RouteMatch { path, ..RouteMatch::any() }
}

fn host(name: &str, domains: &[&str], routes: Vec<Route>) -> VirtualHost {
    let domains = domains.iter().map(|d| (*d).to_owned()).collect();
    VirtualHost { name: name.into(), domains, routes, retry: None }
}

fn table(hosts: Vec<VirtualHost>) -> RouteTable {
    RouteTable::compile(&RouteConfig { name: "t".into(), virtual_hosts: hosts }).unwrap()
}

fn found<'a>(table: &'a RouteTable, request: &Request) -> Option<&'a str> {
    table.find(request).map(|found| found.route.config.name.as_str())
}

#[test]
fn domains_are_tried_from_exact_to_any() {
    let one = |name: &str| vec![route(name, RouteMatch::any())];
    let t = table(vec![
        host("any", &["*"], one("any")),
        host("suffix", &["*.shop"], one("suffix")),
        host("longer", &["*.eu.shop"], one("longer")),
        host("prefix", &["api.*"], one("prefix")),
        host("exact", &["web.shop"], one("exact")),
        host("port", &["web.shop:81"], one("port")),
    ]);
    for (authority, name) in [
        ("web.shop", "exact"),
        ("WEB.shop", "exact"),
        ("web.shop:80", "exact"),
        ("web.shop:81", "port"),
        ("a.shop", "suffix"),
        ("a.eu.shop", "longer"),
        ("api.example.org:443", "prefix"),
        ("[::1]:80", "any"),
        ("", "any"),
    ] {
        assert_eq!(found(&t, &get(authority, "/")), Some(name), "{authority}");
    }
}

#[test]
fn the_first_matching_route_wins() {
    let t = table(vec![host(
        "h",
        &["*"],
        vec![
            route("exact", on_path(PathMatch::Exact("/a".into()))),
            route("segments", on_path(PathMatch::Segments("/a/b".into()))),
            route("prefix", on_path(PathMatch::Prefix("/a".into()))),
            route("regex", on_path(PathMatch::Regex("/x[0-9]+".into()))),
        ],
    )]);
    for (path, name) in [
        ("/a", Some("exact")),
        ("/a?b=c", Some("exact")),
        ("/a/b", Some("segments")),
        ("/a/b/c", Some("segments")),
        ("/a/bc", Some("prefix")),
        ("/x12", Some("regex")),
        ("/x12y", None),
        ("/A", None),
    ] {
        assert_eq!(found(&t, &get("h", path)), name, "{path}");
    }
}

#[test]
fn a_negated_condition_that_takes_an_empty_text_takes_no_request_without_the_header() {
    for (value, absent, other) in [
        (StringMatch::regex(".*"), false, false),
        (StringMatch::prefix(""), false, false),
        (StringMatch::regex("v.*"), true, true),
        (StringMatch::present(), true, false),
    ] {
        let mut matches = RouteMatch::any();
        matches.headers = vec![HeaderMatch { name: "x-debug".into(), value, invert: true }];
        let t = table(vec![host("h", &["*"], vec![route("r", matches.clone())])]);
        let mut request = get("h", "/");
        assert_eq!(found(&t, &request).is_some(), absent, "{matches:?}");
        request.headers = vec![("x-debug", "on")];
        assert_eq!(found(&t, &request).is_some(), other, "{matches:?}");
    }
}

#[test]
fn headers_query_and_method_must_all_match() {
    let mut matches = RouteMatch::any();
    matches.headers = vec![
        HeaderMatch { name: "end-user".into(), value: StringMatch::exact("jason"), invert: false },
        HeaderMatch { name: ":method".into(), value: StringMatch::exact("GET"), invert: false },
        HeaderMatch { name: "x-off".into(), value: StringMatch::present(), invert: true },
    ];
    matches.query = vec![QueryMatch { name: "v".into(), value: StringMatch::exact("2") }];
    let t = table(vec![host("h", &["*"], vec![route("r", matches)])]);
    let with = |headers: &[(&'static str, &'static str)], path: &str| {
        let mut request = get("h", path);
        request.headers = headers.to_vec();
        found(&t, &request).is_some()
    };
    assert!(with(&[("end-user", "jason")], "/?v=2"));
    assert!(!with(&[("end-user", "jason")], "/?v=3"));
    assert!(!with(&[("end-user", "jason")], "/"));
    assert!(!with(&[], "/?v=2"));
    assert!(!with(&[("end-user", "jason"), ("x-off", "")], "/?v=2"));
    assert!(with(&[("end-user", "jason"), ("end-user", "x")], "/?v=2"));
}

#[test]
fn a_header_of_several_lines_matches_by_any_of_them_or_as_one_list() {
    let matches = |exact: &str, invert: bool| {
        let mut matches = RouteMatch::any();
        matches.headers = vec![HeaderMatch { name: "x".into(), value: StringMatch::exact(exact), invert }];
        let t = table(vec![host("h", &["*"], vec![route("r", matches)])]);
        let mut request = get("h", "/");
        request.headers = vec![("x", "a"), ("x", "b"), ("x", "c")];
        found(&t, &request).is_some()
    };
    for (exact, taken) in [("a,b,c", true), ("a", true), ("c", true), ("a,b", false)] {
        assert_eq!(matches(exact, false), taken, "{exact}");
        assert_eq!(matches(exact, true), !taken, "not {exact}");
    }
}

#[test]
fn a_request_without_a_path_meets_no_condition_on_it() {
    for invert in [false, true] {
        let mut matches = on_path(PathMatch::Connect);
        matches.headers = vec![HeaderMatch { name: ":path".into(), value: StringMatch::exact("/"), invert }];
        let t = table(vec![host("h", &["*"], vec![route("r", matches)])]);
        let mut request = get("h", "");
        request.method = "CONNECT";
        assert!(found(&t, &request).is_none());
    }
}

#[test]
fn what_cannot_be_taken_is_named_by_its_path() {
    let compile =
        |hosts| RouteTable::compile(&RouteConfig { name: "t".into(), virtual_hosts: hosts }).unwrap_err();
    let error = compile(vec![host("a", &["x"], vec![]), host("b", &["X"], vec![])]);
    assert_eq!(error.field, "virtual_hosts[1].domains[0]");
    let error = compile(vec![host("a", &["x"], vec![route("r", on_path(PathMatch::Regex("(".into())))])]);
    assert_eq!(error.field, "virtual_hosts[0].routes[0].match.safe_regex");
    let mut zero = route("r", RouteMatch::any());
    zero.action = RouteAction::Forward(Forward {
        clusters: vec![WeightedCluster::share("c", 0)],
        ..Forward::default()
    });
    let error = compile(vec![host("a", &["x"], vec![zero])]);
    assert_eq!(error.field, "virtual_hosts[0].routes[0].route.weighted_clusters");
}

#[test]
fn the_explanation_names_the_losing_routes() {
    let t = table(vec![host(
        "h",
        &["*"],
        vec![
            route("a", on_path(PathMatch::Exact("/a".into()))),
            route("b", on_path(PathMatch::Prefix("/b".into()))),
            route("c", RouteMatch::any()),
            route("d", on_path(PathMatch::Exact("/a".into()))),
        ],
    )]);
    let explanation = t.explain(&get("h", "/b"));
    let named =
        |(route, why): &(&CompiledRoute, Option<Mismatch<'_>>)| (route.config.name.clone(), why.is_some());
    assert_eq!(explanation.rejected.iter().map(|(_, why)| *why).collect::<Vec<_>>(), [Mismatch::Path]);
    assert_eq!(explanation.route.map(|r| r.config.name.as_str()), Some("b"));
    let behind: Vec<_> = explanation.behind.iter().map(named).collect();
    assert_eq!(
        behind,
        [("c".to_owned(), false), ("d".to_owned(), true)],
        "the one comes too late, the other never"
    );
}

#[test]
fn a_prefix_rewrite_keeps_the_rest_and_the_query() {
    let t = table(vec![host("h", &["*"], vec![route("r", on_path(PathMatch::Prefix("/api".into())))])]);
    let found = t.find(&get("h", "/api/v1?x=1")).unwrap();
    assert_eq!(found.route.replace_prefix("/api/v1?x=1", "/internal"), "/internal/v1?x=1");
}

#[test]
fn an_authority_may_be_a_headers_or_made_of_the_path() {
    let authority = |of: Option<AuthorityOf>, literal: Option<&str>, request: &Request| {
        let rewrite =
            Rewrite { authority: literal.map(str::to_owned), authority_of: of, ..Rewrite::default() };
        let mut route = route("r", RouteMatch::any());
        let clusters = vec![WeightedCluster::only("c")];
        route.action =
            RouteAction::Forward(Forward { clusters, rewrite: rewrite.clone(), ..Forward::default() });
        let table = table(vec![host("h", &["*"], vec![route])]);
        let found = table.find(request).unwrap();
        found.route.authority(&rewrite, request).map(|text| text.into_owned())
    };
    let header = || Some(AuthorityOf::Header("x-host".into()));
    let path = || Some(AuthorityOf::Path("^/([^/]+)/.*$".into(), r"\1.test".into()));
    let plain = get("h", "/a/b?c=/d/");
    assert_eq!(authority(None, None, &plain), None);
    assert_eq!(authority(None, Some("x"), &plain), Some("x".into()));
    assert_eq!(authority(header(), None, &plain), None, "there is no such header");
    assert_eq!(authority(path(), None, &plain), Some("a.test".into()));
    let mut said = get("h", "/");
    said.headers.push(("x-host", "other.test"));
    assert_eq!(authority(header(), None, &said), Some("other.test".into()));
}

#[test]
fn a_regex_rewrite_speaks_re2_and_keeps_the_query() {
    let mut rewriting = route("r", RouteMatch::any());
    rewriting.action = RouteAction::Forward(Forward {
        clusters: vec![WeightedCluster::only("c")],
        rewrite: Rewrite {
            regex: Some(("^/v([0-9]+)/(.*)$".into(), r"/\2/$/\1".into())),
            ..Rewrite::default()
        },
        ..Forward::default()
    });
    let t = table(vec![host("h", &["*"], vec![rewriting])]);
    let found = t.find(&get("h", "/v2/items?x=/v9/y")).unwrap();
    assert_eq!(found.route.replace_regex("/v2/items?x=/v9/y").as_deref(), Some("/items/$/2?x=/v9/y"));
}

proptest! {
    #[test]
    fn clusters_are_picked_by_their_share(weights in proptest::collection::vec(0u32..5, 1..5)) {
        prop_assume!(weights.iter().sum::<u32>() > 0);
        let clusters: Vec<_> = weights.iter().map(|w| WeightedCluster::share(format!("c{w}"), *w)).collect();
        let forward = Forward { clusters, ..Forward::default() };
        let mut one = route("r", RouteMatch::any());
        one.action = RouteAction::Forward(forward.clone());
        let compiled = CompiledRoute::compile(&one, 0, None).unwrap();
        let total: u32 = weights.iter().sum();
        let mut counts = vec![0; weights.len()];
        for ticket in 0..u64::from(total) {
            counts[compiled.pick_cluster(&forward, ticket).unwrap().0] += 1;
        }
        if weights.len() > 1 {
            prop_assert_eq!(counts, weights);
        }
    }

    #[test]
    fn no_request_panics(authority in ".{0,20}", path in ".{0,20}") {
        let t = table(vec![
            host("a", &["*.x", "y.*", "z"], vec![route("p", on_path(PathMatch::Prefix("/ä".into())))]),
            host("b", &["*"], vec![route("q", on_path(PathMatch::Segments("/é/".into())))]),
        ]);
        let _ = t.find(&get(&authority, &path));
    }
}

#[test]
fn connect_goes_only_where_a_route_asks_for_it() {
    let connect = Request { method: "CONNECT", path: String::new(), ..get("elsewhere.example:443", "") };
    let paths =
        [PathMatch::Prefix("/".into()), PathMatch::Regex(".*".into()), PathMatch::Prefix(String::new())];
    let others = paths.into_iter().map(|path| route("web", on_path(path))).collect::<Vec<_>>();
    let only_others = table(vec![host("h", &["*"], others.clone())]);
    assert!(only_others.find(&connect).is_none());
    let asked = [others, vec![route("tunnel", on_path(PathMatch::Connect))]].concat();
    let asked = table(vec![host("h", &["*"], asked)]);
    assert_eq!(asked.find(&connect).unwrap().route.config.name, "tunnel");
    assert_eq!(asked.find(&get("a", "/")).unwrap().route.config.name, "web");
}

#[test]
fn the_dot_of_a_full_name_does_not_count() {
    let any = || vec![route("r", RouteMatch::any())];
    let table =
        table(vec![host("exact", &["catalog.shop", "catalog.shop:80"], any()), host("rest", &["*"], any())]);
    for authority in ["catalog.shop.", "Catalog.Shop.:80", "catalog.shop:8080", "catalog.shop.:8080"] {
        assert_eq!(table.find_host(authority).unwrap().name, "exact", "{authority}");
    }
    for authority in [".", "..", ".:80", "other."] {
        assert_eq!(table.find_host(authority).unwrap().name, "rest", "{authority}");
    }
    // However many there are: on a worker's stack, which a look for each of them would have overrun.
    let many = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let dots = ".".repeat(60_000);
        let name = |authority: String| table.find_host(&authority).unwrap().name.clone();
        assert_eq!(name(format!("catalog.shop{dots}")), "exact");
        assert_eq!(name(format!("catalog.shop{dots}:80")), "exact");
        assert_eq!(name(format!("a{dots}")), "rest");
        assert_eq!(name(dots), "rest");
    });
    many.unwrap().join().unwrap();
}

#[test]
fn a_cookie_is_told_by_its_name_and_the_first_of_a_name_counts() {
    let takes = |value: StringMatch, invert: bool, lines: &[&'static str]| {
        let cookies = vec![CookieMatch { name: "user".into(), value, invert }];
        let table =
            table(vec![host("h", &["*"], vec![route("r", RouteMatch { cookies, ..RouteMatch::any() })])]);
        let mut request = get("a", "/");
        request.headers = lines.iter().map(|line| ("cookie", *line)).collect();
        let why = table.explain(&request);
        let rejected = why.rejected.first().map(|(_, why)| why.to_string());
        assert_eq!(rejected.is_some(), table.find(&request).is_none());
        assert!(rejected.is_none_or(|why| why == "the cookie user does not match"));
        table.find(&request).is_some()
    };
    let ann = || StringMatch::exact("ann");
    for lines in
        [&["user=ann"][..], &["a=b; user=ann;c"], &["a=b", "user=\"ann\"; user=bob"], &["a;user=ann"]]
    {
        assert!(takes(ann(), false, lines), "{lines:?}");
        assert!(!takes(ann(), true, lines), "{lines:?}");
        assert!(takes(StringMatch::present(), false, lines), "{lines:?}");
    }
    for lines in [&[][..], &["user=bob; user=ann"], &["User=ann"], &["xuser=ann"], &["user =ann"], &["user"]]
    {
        assert!(!takes(ann(), false, lines), "{lines:?}");
        assert!(takes(ann(), true, lines), "{lines:?}");
    }
    assert!(takes(StringMatch::exact(""), false, &["user="]));
    assert!(takes(StringMatch::prefix("a=b"), false, &["user=a=b=c"]));
}

#[test]
fn a_header_is_told_by_a_number_in_it() {
    let takes = |invert: bool, lines: &[&'static str]| {
        let header = HeaderMatch { name: "x-n".into(), value: StringMatch::range(1, 10), invert };
        let matches = RouteMatch { headers: vec![header], ..RouteMatch::any() };
        let table = table(vec![host("h", &["*"], vec![route("r", matches)])]);
        let mut request = get("a", "/");
        request.headers = lines.iter().map(|line| ("x-n", *line)).collect();
        table.find(&request).is_some()
    };
    assert!(takes(false, &["1"]) && takes(false, &["9"]) && takes(false, &["x", "5"]));
    assert!(!takes(false, &["10"]) && !takes(false, &["0"]) && !takes(false, &[]) && !takes(false, &["5,6"]));
    assert!(takes(true, &[]) && takes(true, &["10"]) && !takes(true, &["5"]));
}

#[test]
fn crumbs_are_one_cookie() {
    let value =
        StringMatch { pattern: Pattern::Regex("^(.*?; ?)?(user=jason)(; ?.*)?$".into()), ignore_case: false };
    let header = HeaderMatch { name: "cookie".into(), value, invert: false };
    let matches = RouteMatch { headers: vec![header], ..RouteMatch::any() };
    let table = table(vec![host("h", &["*"], vec![route("jason", matches)])]);
    let mut request = get("a", "/");
    request.headers = vec![("cookie", "a=1"), ("cookie", "user=jason"), ("cookie", "b=2")];
    assert!(table.find(&request).is_some());
}

#[test]
fn an_upgrade_is_the_routes_word_then_the_listeners() {
    let mut forward = Forward::default();
    let listener = ["websocket".to_owned(), "spdy/3.1".to_owned()];
    let allowed = |forward: &Forward, protocol: &str| forward.allows_upgrade(protocol, &listener);
    assert!(allowed(&forward, "WebSocket") && allowed(&forward, "SPDY/3.1"));
    assert!(!allowed(&forward, "tcp") && !allowed(&forward, "SPDY/2"));
    forward.upgrades = vec![
        RouteUpgrade { protocol: "websocket".into(), allowed: false },
        RouteUpgrade { protocol: "tcp".into(), allowed: true },
    ];
    assert!(allowed(&forward, "tcp") && allowed(&forward, "TCP/1") && !allowed(&forward, "websocket"));
}
