//! Rules that do nothing, or turn against whoever calls.

use super::*;

fn routes(http: &str) -> String {
    virtual_service(&format!("hosts: [reviews]\nhttp:\n{http}"))
}

fn rule(host: &str, spec: &str) -> String {
    object("networking.istio.io/v1", "DestinationRule", &format!("host: {host}\n{spec}"))
}

#[test]
fn a_subset_s_policy_that_no_route_sends_anything_to_is_told() {
    let subset =
        |more: &str| rule("reviews", &format!("subsets: [{{name: v1, labels: {{version: v1}}{more}}}]"));
    let policy = ", trafficPolicy: {loadBalancer: {simple: RANDOM}}";
    let told = only(&subset(policy));
    assert!(
        told.contains("OUT0006: subset \"v1\" of DestinationRule shop/reviews has a policy of its own"),
        "{told}"
    );
    silent(&subset(""));
    silent(&both(&subset(policy), &to("host: reviews, subset: v1")));
    assert_eq!(analyze(&objects(&subset(policy)), None), [], "alone nobody knows what routes there are");
}

#[test]
fn a_redirect_to_where_it_came_from_is_told() {
    for circle in [
        "- redirect: {derivePort: FROM_REQUEST_PORT}",
        "- redirect: {authority: reviews.shop.svc.cluster.local}",
        "- match: [{uri: {exact: /a}}]\n  redirect: {uri: /a}",
    ] {
        let told = only(&routes(circle));
        assert!(told.contains("warning OUT0113") && told.contains("again and again"), "{told}");
    }
    for good in [
        "- redirect: {scheme: https}",
        "- redirect: {authority: stock.shop}",
        "- redirect: {port: 81}",
        "- match: [{uri: {exact: /a}}]\n  redirect: {uri: /b}",
        "- match: [{uri: {exact: /b}}, {uri: {exact: /a}}]\n  redirect: {uri: /a}",
    ] {
        silent(&routes(good));
    }
}

#[test]
fn a_mirror_for_who_has_the_requests_is_told() {
    let mirror = |to: &str| {
        routes(&format!("- route: [{{destination: {{host: reviews}}}}]\n  mirror: {{host: {to}}}"))
    };
    let told = only(&mirror("reviews"));
    assert!(told.contains("warning OUT0114") && told.contains("has each of them twice"), "{told}");
    silent(&mirror("stock, port: {number: 90}"));
}

#[test]
fn rules_for_requests_to_a_service_without_http_are_told() {
    let pool = |host: &str, pool: &str| rule(host, &format!("trafficPolicy: {{connectionPool: {{{pool}}}}}"));
    let told = only(&pool("stock", "http: {http2MaxRequests: 5}"));
    assert!(told.contains("OUT0006: DestinationRule shop/reviews has settings for requests"), "{told}");
    assert!(told.contains("stock.shop speaks no HTTP (port 90)"), "{told}");
    silent(&pool("reviews", "http: {http2MaxRequests: 5}"));
    silent(&pool("stock", "tcp: {maxConnections: 5}"));
    let hash =
        |of: &str| rule("stock", &format!("trafficPolicy: {{loadBalancer: {{consistentHash: {{{of}}}}}}}"));
    assert!(only(&hash("httpHeaderName: x-user")).contains("hashes a part of requests"));
    silent(&hash("useSourceIp: true"));
    let of = |kind: &str| {
        virtual_service(&format!("hosts: [stock]\n{kind}:\n- route: [{{destination: {{host: stock}}}}]"))
    };
    assert!(only(&of("http")).contains("routes requests, but stock.shop speaks no HTTP"));
    silent(&of("tcp"));
}

#[test]
fn a_target_without_a_port_that_has_not_the_one_that_is_called_is_told() {
    let mut catalog = catalog();
    for port in [91, 92] {
        catalog
            .services
            .get_mut(&Resolver::default().service("stock", "shop"))
            .unwrap()
            .ports
            .insert(port, PortProtocol::Tcp);
    }
    let found = |text: &str| analyze(&objects(text), Some(&catalog));
    let told = found(&to("host: stock"));
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(
        told[0].to_string().contains("IST0112")
            && told[0].message.contains("what comes for port 80 has none there")
    );
    assert_eq!(found(&to("host: stock, port: {number: 91}")), []);
    // Its only one is meant.
    silent(&to("host: stock"));
    silent(&to("host: reviews"));
}

#[test]
fn a_match_that_an_earlier_route_has_is_told_once() {
    let route = "route: [{destination: {host: reviews}}]";
    let a = "{uri: {prefix: /a}}";
    let told = only(&routes(&format!(
        "- match: [{a}]\n  {route}\n- match: [{{uri: {{prefix: /b}}}}, {a}]\n  {route}"
    )));
    assert!(told.contains("info IST0131") && told.contains("spec.http[1].match[1] has no effect"), "{told}");
    let whole = only(&routes(&format!("- match: [{a}]\n  {route}\n- match: [{a}]\n  {route}")));
    assert!(whole.contains("IST0130"), "a route that has nothing left is told as a whole: {whole}");
    silent(&routes(&format!("- match: [{a}]\n  {route}\n- match: [{{uri: {{prefix: /b}}}}]\n  {route}")));
}

#[test]
fn a_pattern_that_cannot_be_used_has_istio_s_code() {
    let pattern = |text: &str| {
        crate::testing::told(&routes(&format!(
            "- match: [{{uri: {{regex: '{text}'}}}}]\n  route: [{{destination: {{host: reviews}}}}]"
        )))
    };
    let told = pattern("a(");
    assert!(told.len() == 1 && told[0].contains("error IST0122"), "{told:?}");
    assert_eq!(pattern("a.*"), [""; 0]);
}
