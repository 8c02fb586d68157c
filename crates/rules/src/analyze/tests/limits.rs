//! Rate limits.

use super::*;

fn page(service: &str) -> String {
    let spec = format!("service: {service}\nrateLimit: {{requests: 5, per: 1s}}");
    object("outrigger.io/v1", "TrafficRules", &spec)
}

#[test]
fn a_limit_that_limits_nothing_is_told() {
    silent(&page("reviews"));
    let told = only(&page("stock"));
    assert!(told.contains("warning OUT0105") && told.contains("all of whose ports are TCP"), "{told}");
    let told = found(&page("pay.bank"));
    assert!(
        told.iter().any(|told| told.contains("which is namespace bank's: it has no effect")),
        "{told:#?}"
    );
    let told = found(&page("api.example.com"));
    assert!(told.iter().any(|told| told.contains("no instances with a sidecar to hold it")), "{told:#?}");
    assert!(only(&page("nobody")).contains("OUT0106"), "there is no such service");
}

#[test]
fn adaptive_concurrency_that_nobody_holds_is_told() {
    let page = |service: &str| {
        object("outrigger.io/v1", "TrafficRules", &format!("service: {service}\nadaptiveConcurrency: {{}}"))
    };
    silent(&page("reviews"));
    let told = only(&page("stock"));
    assert!(told.contains("limits requests to") && told.contains("OUT0105"), "{told}");
    let told = found(&page("pay.bank"));
    assert!(
        told.iter().any(|told| told.contains("which is namespace bank's: it has no effect")),
        "{told:#?}"
    );
}

#[test]
fn upgrades_that_nobody_takes_are_told() {
    let page = |service: &str| {
        object("outrigger.io/v1", "TrafficRules", &format!("service: {service}\nupgrades: [tcp]"))
    };
    silent(&page("reviews"));
    let told = only(&page("stock"));
    assert!(told.contains("lets requests switch protocols to") && told.contains("OUT0105"), "{told}");
    let told = found(&page("pay.bank"));
    assert!(
        told.iter().any(|told| told.contains("which is namespace bank's: it has no effect")),
        "{told:#?}"
    );
}

#[test]
fn more_limits_than_are_held_are_refused() {
    let many = |name: &str, count: usize| {
        let limits: Vec<String> =
            (0..count).map(|n| format!("{{name: l{n}, requests: 5, per: 1s}}")).collect();
        let spec = format!("service: reviews\nrateLimit: [{}]", limits.join(", "));
        object("outrigger.io/v1", "TrafficRules", &spec).replace("name: reviews", &format!("name: {name}"))
    };
    silent(&format!("{}---\n{}", many("one", 16), many("two", 16)));
    let told = only(&format!("{}---\n{}", many("one", 16), many("two", 17)));
    assert!(told.contains("makes 33 rate limits of") && told.contains("error"), "{told}");
}
