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
