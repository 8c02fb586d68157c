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
