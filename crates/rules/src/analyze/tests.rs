use super::*;
use crate::catalog::{CatalogProvider, CatalogService, CatalogWorkload, Labels, PortProtocol};
use crate::host::Resolver;
use crate::testing::{object, objects, virtual_service};

mod callers;
mod checks;
mod delegates;
mod effect;
mod hedges;
mod istio;
mod limits;
mod mtls;
mod namespaces;
mod paths;
mod providers;
mod requests;
mod services;
mod tokens;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// `reviews.shop` with v1 to v3 on port 80 (HTTP), `stock.shop` on port 90 (TCP).
fn catalog() -> ServiceCatalog {
    let mut catalog = ServiceCatalog::default();
    let mut add = |name: &str, port: u16, protocol, versions: &[&str]| {
        let instances: Vec<Labels> =
            versions.iter().map(|version| labels(&[("app", name), ("version", version)])).collect();
        for labels in &instances {
            let ports = BTreeMap::from([(port, protocol)]);
            catalog.workloads.push(CatalogWorkload {
                namespace: "shop".into(),
                service_account: name.into(),
                labels: labels.clone(),
                ports,
                ..CatalogWorkload::default()
            });
        }
        let service = CatalogService {
            ports: BTreeMap::from([(port, protocol)]),
            registered: BTreeSet::from([port]),
            instances,
            ..CatalogService::default()
        };
        catalog.services.insert(Resolver::default().service(name, "shop"), service);
    };
    add("reviews", 80, PortProtocol::Http, &["v1", "v2", "v3"]);
    add("stock", 90, PortProtocol::Tcp, &["v1"]);
    catalog
}

fn found(text: &str) -> Vec<String> {
    analyze(&objects(text), Some(&catalog())).iter().map(Finding::to_string).collect()
}

fn only(text: &str) -> String {
    let mut found = found(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

fn silent(text: &str) {
    assert_eq!(found(text), Vec::<String>::new());
}

fn destination(subsets: &[&str]) -> String {
    let subsets: String =
        subsets.iter().map(|name| format!("- name: {name}\n  labels: {{version: {name}}}\n")).collect();
    object("networking.istio.io/v1", "DestinationRule", &format!("host: reviews\nsubsets:\n{subsets}"))
}

fn to(destination: &str) -> String {
    virtual_service(&format!("hosts: [reviews]\nhttp:\n- route:\n  - destination: {{{destination}}}"))
}

fn both(one: &str, other: &str) -> String {
    format!("{one}---\n{other}")
}

#[test]
fn a_route_to_a_missing_host_is_told_with_the_nearest() {
    assert_eq!(
        only(&to("host: revews")),
        "rules.yaml:9:20 error IST0101: VirtualService shop/reviews routes to host \"revews.shop\", but there is no such \
         service. Did you mean \"reviews.shop\"?"
    );
    silent(&to("host: reviews"));
    assert_eq!(analyze(&objects(&to("host: revews")), None), [], "without a catalog nothing is missing");
}

#[test]
fn a_mirror_is_looked_at_as_any_target_is() {
    let mirror = |to: &str| {
        virtual_service(&format!(
            "hosts: [reviews]\nhttp:\n- mirror: {{{to}}}\n  route: [{{destination: {{host: reviews}}}}]"
        ))
    };
    assert!(only(&mirror("host: revews")).contains("error IST0101"));
    assert!(only(&mirror("host: reviews, subset: v4")).contains("routes to subset \"v4\""));
    silent(&mirror("host: stock, port: {number: 90}"));
}

#[test]
fn a_route_to_a_port_that_the_service_has_not_is_told() {
    assert!(
        only(&to("host: reviews, port: {number: 81}")).contains("port 81 of reviews.shop, which has only 80")
    );
    silent(&to("host: reviews, port: {number: 80}"));
}

#[test]
fn a_route_to_a_missing_subset_is_told_with_those_that_exist() {
    let rules = both(&to("host: reviews, subset: v4"), &destination(&["v1", "v2", "v3"]));
    assert_eq!(
        only(&rules),
        "rules.yaml:9:44 error IST0101: VirtualService shop/reviews routes to subset \"v4\", but DestinationRule reviews \
         defines v1, v2, v3. Did you mean \"v3\"?"
    );
    assert!(
        only(&to("host: reviews, subset: v1")).contains("no DestinationRule defines subsets of reviews.shop")
    );
    silent(&both(&to("host: reviews, subset: v3"), &destination(&["v1", "v2", "v3"])));
}

#[test]
fn a_subset_may_come_from_a_wildcard_rule_or_a_native_page() {
    let wildcard = object(
        "networking.istio.io/v1",
        "DestinationRule",
        "host: '*.shop.svc.cluster.local'\nsubsets: [{name: v1, labels: {version: v1}}]",
    );
    silent(&both(&to("host: reviews, subset: v1"), &wildcard));
    silent(&object("outrigger.io/v1", "TrafficRules", "service: reviews\nroutes: [{to: [{version: v2}]}]"));
}

#[test]
fn a_subset_without_instances_is_told() {
    let told = only(&destination(&["v1", "v9"]));
    assert!(told.contains("warning IST0173: subset \"v9\"") && told.contains("wants version=v9"), "{told}");
    silent(&destination(&["v1"]));
    let mut empty = catalog();
    empty.services.get_mut(&Resolver::default().service("reviews", "shop")).unwrap().instances.clear();
    assert_eq!(
        analyze(&objects(&destination(&["v9"])), Some(&empty)),
        [],
        "a service that is down is not the rule's fault"
    );
}

#[test]
fn weights_that_sum_to_nothing_are_an_error() {
    let split = |one, other| {
        let spec = format!(
            "hosts: [reviews]\nhttp:\n- route:\n  - {{destination: {{host: reviews}}, weight: {one}}}\n  - {{destination: {{host: stock}}, weight: {other}}}"
        );
        virtual_service(&spec)
    };
    assert!(only(&split(0, 0)).contains("error OUT0103"));
    silent(&split(0, 1));
    silent(&virtual_service(
        "hosts: [reviews]\nhttp:\n- route:\n  - {destination: {host: reviews}, weight: 0}",
    ));
}

#[test]
fn a_route_behind_a_catch_all_is_told() {
    let routes = |first: &str, second: &str| {
        virtual_service(&format!(
            "hosts: [reviews]\nhttp:\n- {first}\n  route: [{{destination: {{host: reviews}}}}]\n- {second}\n  route: [{{destination: {{host: stock}}}}]"
        ))
    };
    let narrow = "match: [{uri: {prefix: /a}}]";
    let told = only(&routes("name: all", narrow));
    assert!(
        told.contains("warning IST0130") && told.contains("spec.http[0] (line 8) matches every request"),
        "{told}"
    );
    assert!(only(&routes("match: [{uri: {prefix: /}}]", narrow)).contains("IST0130"));
    assert!(only(&routes(narrow, narrow)).contains("has the same matches"));
    silent(&routes(narrow, "name: all"));
    silent(&routes("match: [{uri: {prefix: /}, method: {exact: GET}}]", narrow));
    assert!(only(&routes(narrow, "match: [{uri: {prefix: /a}}, {uri: {prefix: /b}}]")).contains("IST0131"));
}

#[test]
fn a_tcp_route_behind_a_catch_all_is_told() {
    let routes = |first: &str, second: &str| {
        virtual_service(&format!(
            "hosts: [stock]\ntcp:\n- route: [{{destination: {{host: stock}}}}]\n{first}- route: [{{destination: {{host: stock}}}}]\n{second}"
        ))
    };
    let narrow = "  match: [{port: 90}]\n";
    assert!(only(&routes("", narrow)).contains("IST0130"));
    silent(&routes(narrow, ""));
}

#[test]
fn an_attempt_longer_than_the_request_is_told() {
    let times = |attempt, whole| {
        virtual_service(&format!(
            "hosts: [reviews]\nhttp:\n- timeout: {whole}\n  retries: {{attempts: 2, perTryTimeout: {attempt}}}\n  route: [{{destination: {{host: reviews}}}}]"
        ))
    };
    assert!(only(&times("3s", "2s")).contains("warning OUT0104"));
    silent(&times("1s", "2s"));
    silent(&times("3s", "0s"));
}

#[test]
fn two_objects_that_route_one_host_are_both_named() {
    let other = to("host: stock").replace("name: reviews", "name: late");
    let told = only(&both(&to("host: reviews"), &other));
    assert!(told.starts_with("rules.yaml:16:10 error IST0109: VirtualService shop/late and VirtualService reviews (at rules.yaml:6)"), "{told}");
    let native = object("outrigger.io/v1", "TrafficRules", "service: reviews\ntimeout: 1s");
    assert!(
        only(&both(&to("host: reviews"), &native))
            .contains("TrafficRules shop/reviews and VirtualService reviews")
    );
    silent(&both(
        &to("host: reviews"),
        &other.replace("hosts: [reviews]\n  http:", "hosts: [stock]\n  tcp:"),
    ));
    let narrow = |namespace: &str, name: &str| {
        to("host: reviews")
            .replace("name: reviews", &format!("name: {name}"))
            .replace("  hosts:", &format!("  exportTo: [{namespace}]\n  hosts:"))
    };
    silent(&both(&narrow("a", "x"), &narrow("b", "y")));
    assert!(only(&both(&narrow("a", "x"), &narrow("a", "y"))).contains("IST0109"));
}

#[test]
fn routes_of_different_protocols_do_not_fight() {
    let tcp = virtual_service("hosts: [reviews]\ntcp:\n- route: [{destination: {host: stock}}]")
        .replace("name: reviews", "name: tcp");
    silent(&both(&to("host: reviews"), &tcp));
}

#[test]
fn rules_for_one_host_are_merged_and_what_would_be_lost_is_an_error() {
    let named = |text: String, name: &str| {
        text.replace("name: reviews\n", &format!("name: {name}\n"))
            .replace("name: reviews,", &format!("name: {name},"))
    };
    let late = named(destination(&["v2"]), "late");
    assert_ne!(late, destination(&["v2"]));
    silent(&both(&destination(&["v1"]), &late));
    // Both subsets are there for routes.
    silent(&both(&to("host: reviews, subset: v2"), &both(&destination(&["v1"]), &late)));
    silent(&both(&destination(&["v1"]), &named(destination(&["v1"]), "late")));
    let other = named(destination(&["v1"]), "late").replace("version: v1", "version: v2");
    assert!(
        only(&both(&destination(&["v1"]), &other))
            .contains("error OUT0102: DestinationRule shop/late and DestinationRule reviews (at rules.yaml")
    );
    let policy = |name: &str, simple: &str| {
        let spec = format!("host: reviews\ntrafficPolicy: {{loadBalancer: {{simple: {simple}}}}}");
        named(object("networking.istio.io/v1", "DestinationRule", &spec), name)
    };
    let told = only(&both(&policy("a", "RANDOM"), &policy("b", "ROUND_ROBIN")));
    assert!(
        told.contains("error OUT0102") && told.contains("both have a traffic policy for reviews.shop"),
        "{told}"
    );
    silent(&both(&policy("a", "RANDOM"), &policy("b", "RANDOM")));
    silent(&both(&policy("a", "RANDOM"), &destination(&["v1"])));
}

#[test]
fn a_rule_that_hides_the_subsets_of_another_namespaces_rule_is_told() {
    let hiding = destination(&["v2"])
        .replace("namespace: shop", "namespace: web")
        .replace("host: reviews", "host: reviews.shop");
    let rules = both(&to("host: reviews, subset: v1"), &both(&destination(&["v1"]), &hiding));
    let findings: Vec<String> =
        analyze(&objects(&rules), Some(&catalog())).iter().map(ToString::to_string).collect();
    let told = |part: &str| findings.iter().any(|finding| finding.contains(part));
    assert!(told("warning IST0101: VirtualService shop/reviews routes to subset \"v1\""), "{findings:?}");
    assert!(
        told(
            "clients in namespace web have of reviews.shop: DestinationRule shop/reviews does not hold for them"
        ),
        "{findings:?}"
    );
    assert!(told("warning OUT0102: DestinationRule web/reviews"), "{findings:?}");
}

#[test]
fn the_same_object_twice_is_an_error() {
    let told = only(&both(&destination(&["v1"]), &destination(&["v1"])));
    assert!(told.contains("error OUT0007") && told.contains("first at rules.yaml:1"), "{told}");
    silent(&both(&destination(&["v1"]), &to("host: reviews")));
}

fn policy(selector: &str, rest: &str) -> String {
    object(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        &format!("selector: {{matchLabels: {{{selector}}}}}\n{rest}"),
    )
}

#[test]
fn a_selector_without_workloads_is_told() {
    let told = only(&policy("app: revews", "rules: [{}]"));
    assert!(told.contains("warning IST0127") && told.contains("app=revews"), "{told}");
    silent(&policy("app: reviews", "rules: [{}]"));
    silent(&object("security.istio.io/v1", "AuthorizationPolicy", "rules: [{}]"));
    let elsewhere = policy("app: reviews", "rules: [{}]").replace("namespace: shop", "namespace: other");
    assert!(only(&elsewhere).contains("no workload of namespace other"));
    silent(&elsewhere.replace("namespace: other", "namespace: outrigger-system"));
    let mtls = |app: &str| {
        object(
            "security.istio.io/v1",
            "PeerAuthentication",
            &format!("selector: {{matchLabels: {{app: {app}}}}}"),
        )
    };
    assert!(only(&mtls("nobody")).contains("IST0127"));
    silent(&mtls("reviews"));
}

#[test]
fn http_attributes_in_a_deny_rule_on_tcp_are_told() {
    let deny = |selector: &str, rule: &str| policy(selector, &format!("action: DENY\nrules: [{{{rule}}}]"));
    let methods = "to: [{operation: {methods: [DELETE]}}]";
    let told = only(&deny("app: stock", methods));
    assert!(told.contains("warning OUT0105") && told.contains("port 90"), "{told}");
    assert!(
        only(&deny("app: stock", "when: [{key: 'request.headers[a]', values: [b]}]")).contains("OUT0105")
    );
    silent(&deny("app: reviews", methods));
    silent(&deny("app: stock", "to: [{operation: {methods: [DELETE], ports: [80]}}]"));
    silent(&deny("app: stock", "to: [{operation: {ports: ['90']}}]"));
    silent(&policy("app: stock", &format!("rules: [{{{methods}}}]")));
}

#[test]
fn every_check_has_a_code_of_the_list() {
    for check in CHECKS {
        assert!(code::ALL.iter().any(|(code, _)| *code == check.code), "{}", check.what);
    }
}

#[test]
fn a_rule_for_a_host_that_nobody_serves_is_told() {
    let told = only(&object(
        "networking.istio.io/v1",
        "DestinationRule",
        "host: revews\ntrafficPolicy: {loadBalancer: {simple: RANDOM}}",
    ));
    assert!(
        told.contains("warning IST0174: DestinationRule shop/reviews is for host \"revews.shop\""),
        "{told}"
    );
    assert!(told.contains("affects nobody. Did you mean \"reviews.shop\"?"), "{told}");
    let virtual_service = |host: &str| {
        virtual_service(&format!("hosts: [{host}]\nhttp:\n- route: [{{destination: {{host: reviews}}}}]"))
    };
    assert!(only(&virtual_service("api.example.com")).contains("OUT0106"));
    silent(&virtual_service("'*.shop.svc.cluster.local'"));
    assert_eq!(
        analyze(&objects(&virtual_service("revews")), None),
        [],
        "without a catalog nothing is missing"
    );
}

fn rule_of(action: &str, rule: &str) -> String {
    object("security.istio.io/v1", "AuthorizationPolicy", &format!("action: {action}\nrules: [{{{rule}}}]"))
}

#[test]
fn a_policy_for_callers_or_methods_that_do_not_exist_is_told() {
    for (rule, part) in [
        (
            "from: [{source: {principals: [cluster.local/ns/shop/sa/reveiws]}}]",
            "the principal \"cluster.local/ns/shop/sa/reveiws\"",
        ),
        ("from: [{source: {namespaces: [shpo]}}]", "Did you mean \"shop\"?"),
        ("from: [{source: {serviceAccounts: [nobody]}}]", "the service account \"shop/nobody\""),
        ("when: [{key: source.namespace, values: [nowhere]}]", "the namespace \"nowhere\""),
        ("to: [{operation: {methods: [get], ports: [80]}}]", "Did you mean \"GET\"?"),
        ("to: [{operation: {methods: [GETT], ports: [80]}}]", "the method \"GETT\""),
    ] {
        let told = only(&rule_of("DENY", rule));
        assert!(told.contains("warning OUT0106") && told.contains(part), "{told}");
    }
    for rule in [
        "from: [{source: {principals: ['cluster.local/ns/shop/*', '*/sa/stock', '*'], namespaces: [shop]}}]",
        "from: [{source: {serviceAccounts: [stock], notNamespaces: [nowhere]}}]",
        "to: [{operation: {methods: [GET, 'P*'], ports: [80]}}]",
        "to: [{operation: {methods: [PURGE, QUERY, LINK, UNLINK, UNBIND, MKCALENDAR], ports: [80]}}]",
    ] {
        silent(&rule_of("DENY", rule));
    }
}

#[test]
fn a_policy_for_an_empty_namespace_is_told() {
    let told = only(&rule_of("ALLOW", "").replace("namespace: shop", "namespace: empty"));
    assert!(
        told.contains("IST0127") && told.contains("all workloads of namespace empty, but it has none"),
        "{told}"
    );
    silent(&rule_of("ALLOW", "").replace("namespace: shop", "namespace: outrigger-system"));
}

#[test]
fn a_path_that_no_request_has_once_normalised_is_told_with_the_one_it_has() {
    let route = |uri: &str| {
        virtual_service(&format!(
            "hosts: [reviews]\nhttp:\n- match: [{{uri: {{{uri}}}}}]\n  route: [{{destination: {{host: reviews}}}}]"
        ))
    };
    for (uri, meant) in [
        ("exact: /a//b", "/a/b"),
        ("prefix: /a//b", "/a/b"),
        ("exact: /a/./b", "/a/b"),
        ("prefix: /a/../b/", "/b/"),
        ("exact: /%61b", "/ab"),
        ("prefix: /x/%61b", "/x/ab"),
        ("exact: '/a?b=c'", "/a"),
        ("exact: a/b", "/a/b"),
        ("prefix: a", "/a"),
    ] {
        let told = only(&route(uri));
        assert!(
            told.contains("warning OUT0107: VirtualService shop/reviews: spec.http[0].match[0] names"),
            "{told}"
        );
        assert!(told.ends_with(&format!("Did you mean \"{meant}\"?")), "{uri}: {told}");
    }
    for uri in [
        "exact: /a/b",
        "prefix: /a/",
        "prefix: /a/.",
        "prefix: /a/..b",
        "exact: /a%2fb",
        "prefix: /a/%6",
        "exact: '*'",
        "exact: /a.b/~c-d_e",
        "regex: /a//b",
        "prefix: ''",
    ] {
        silent(&route(uri));
    }
    let text = object(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        "action: DENY\nrules: [{to: [{operation: {ports: ['80'], paths: ['/admin//*', '*//x'], notPaths: [/a/../b]}}]}]",
    );
    let told = found(&text);
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told.iter().any(|line| line.ends_with("Did you mean \"/admin/\"?")), "{told:#?}");
    let exact = ServiceCatalog { path: outrigger_model::path::PathNormalization::NONE, ..catalog() };
    assert_eq!(analyze(&objects(&route("exact: /a//b")), Some(&exact)), [], "as the mesh has it");
}

#[test]
fn credentials_for_pages_of_every_origin_are_told() {
    let cors = |origins: &str, credentials: bool| {
        virtual_service(&format!(
            "hosts: [reviews]\nhttp:\n- corsPolicy: {{allowOrigins: [{origins}], allowCredentials: {credentials}}}\n  \
             route: [{{destination: {{host: reviews}}}}]"
        ))
    };
    for all in
        ["{exact: '*'}", "{regex: '.*'}", "{prefix: 'https://'}", "{prefix: h}", "{regex: 'https?://.+'}"]
    {
        let all = format!("{{exact: 'https://shop.example'}}, {all}");
        assert!(only(&cors(&all, true)).contains("warning OUT0110"), "{all}");
        silent(&cors(&all, false));
    }
    for some in
        ["{exact: 'https://shop.example'}", "{regex: 'https://.*[.]example'}", "{prefix: 'https://shop.'}"]
    {
        silent(&cors(some, true));
    }
    silent(&virtual_service("hosts: [reviews]\nhttp:\n- route: [{destination: {host: reviews}}]"));
}

#[test]
fn every_finding_is_documented() {
    let page = include_str!("../../../../docs/findings.md");
    for (code, what) in code::ALL {
        let row = page.lines().find(|line| line.starts_with(&format!("| {code} | {what} |")));
        let row = row.unwrap_or_else(|| panic!("docs/findings.md has no row for {code}: {what}"));
        for check in CHECKS.iter().filter(|check| check.code == *code) {
            assert!(row.contains(check.what), "docs/findings.md, {code}: \"{}\" is missing", check.what);
        }
    }
}
