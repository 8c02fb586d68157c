//! Hedges.

use super::*;

fn page(spec: &str) -> String {
    object("outrigger.io/v1", "TrafficRules", &format!("service: reviews\n{spec}"))
}

#[test]
fn a_hedge_that_is_never_sent_is_told() {
    for spec in [
        "hedge: {delay: 50ms}",
        "timeout: 1s\nhedge: {delay: p95}",
        "timeout: 1s\nhedge: {delay: 50ms}\nretry: {perTryTimeout: 100ms}",
        "hedge: {hedgeOnPerTryTimeout: true}\nretry: {perTryTimeout: 100ms}",
        "hedge: {delay: 200ms, hedgeOnPerTryTimeout: true}\nretry: {perTryTimeout: 100ms}",
    ] {
        silent(&page(spec));
    }
    for (spec, wanted) in [
        ("hedge: {hedgeOnPerTryTimeout: true}", "has no perTryTimeout"),
        ("timeout: 50ms\nhedge: {delay: 50ms}", "the timeout of the whole request is 50ms"),
        ("hedge: {delay: 200ms}\nretry: {perTryTimeout: 100ms}", "an attempt ends after 100ms"),
    ] {
        let told = only(&page(spec));
        assert!(told.contains("warning OUT0116") && told.contains(wanted), "{told}");
    }
}

#[test]
fn a_hedge_of_methods_that_may_not_be_repeated_is_told() {
    let route =
        |matches: &str, hedge: &str| page(&format!("routes:\n- match: {matches}\n  hedge: {{{hedge}}}"));
    for matches in ["{method: POST}", "[{method: POST}, {method: PATCH, path: {prefix: /a}}]"] {
        let told = only(&route(matches, "delay: 50ms"));
        assert!(told.contains("warning OUT0116") && told.contains("write allMethods"), "{told}");
        silent(&route(matches, "delay: 50ms, allMethods: true"));
    }
    for matches in [
        "{method: GET}",
        "[{method: POST}, {method: PUT}]",
        "{path: {prefix: /a}}",
        "{method: {regex: 'P.*'}}",
    ] {
        silent(&route(matches, "delay: 50ms"));
    }
    let mut catalog = catalog();
    let reviews = Resolver::default().service("reviews", "shop");
    catalog.services.get_mut(&reviews).unwrap().ports.insert(80, PortProtocol::Grpc);
    let told = |text: &str| analyze(&objects(text), Some(&catalog));
    assert!(told(&page("hedge: {delay: 50ms}"))[0].to_string().contains("gRPC's is POST"));
    assert_eq!(told(&page("hedge: {delay: 50ms, allMethods: true}")), []);
    catalog.services.get_mut(&reviews).unwrap().ports.insert(81, PortProtocol::Http);
    assert_eq!(analyze(&objects(&page("hedge: {delay: 50ms}")), Some(&catalog)), []);
}
