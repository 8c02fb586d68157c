//! Health checks.

use super::*;

fn page(service: &str, check: &str) -> String {
    let spec = format!("service: {service}\nhealthCheck: {check}");
    object("outrigger.io/v1", "TrafficRules", &spec)
}

#[test]
fn a_check_that_waits_longer_than_its_interval_is_told() {
    silent(&page("reviews", "{tcp: {}, timeout: 2s, interval: 2s}"));
    let told = only(&page("reviews", "{tcp: {}, timeout: 3s, interval: 2s}"));
    assert!(told.contains("warning OUT0115") && told.contains("asked only every 5s"), "{told}");
}

#[test]
fn a_check_that_no_port_takes_is_told() {
    for (service, check) in [
        ("reviews", "{http: {path: /}}"),
        ("reviews", "{http: {path: /}, port: 80}"),
        ("reviews", "{grpc: {}}"),
        ("stock", "{tcp: {}}"),
        ("stock", "{tcp: {}, port: 90}"),
    ] {
        silent(&page(service, check));
    }
    for (service, check, wanted) in [
        ("stock", "{http: {path: /}}", "no port of \"stock.shop\" speaks HTTP"),
        ("stock", "{grpc: {}, port: 90}", "port 90 of \"stock.shop\" does not speak HTTP"),
        ("reviews", "{tcp: {}, port: 90}", "\"reviews.shop\" has no port 90"),
    ] {
        let told = only(&page(service, check));
        assert!(told.contains("warning OUT0115") && told.contains(wanted), "{told}");
    }
}
