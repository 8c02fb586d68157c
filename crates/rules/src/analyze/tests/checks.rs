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
fn a_check_that_no_port_takes_by_itself_is_told() {
    let found = |spoken: PortProtocol, check: &str| {
        let mut catalog = catalog();
        let reviews = Resolver::default().service("reviews", "shop");
        catalog.services.get_mut(&reviews).unwrap().ports.insert(80, spoken);
        let told = analyze(&objects(&page("reviews", check)), Some(&catalog));
        told.iter().map(Finding::to_string).collect::<Vec<_>>()
    };
    use PortProtocol::{Detect, Grpc, Http, Http2};
    for (spoken, check, wanted) in [
        (Http, "{grpc: {}}", "no port of \"reviews.shop\" is declared to speak gRPC or HTTP/2"),
        (Detect, "{grpc: {}}", "no port of \"reviews.shop\" is declared to speak gRPC or HTTP/2"),
        (Grpc, "{http: {path: /}}", "all HTTP that \"reviews.shop\" speaks is gRPC"),
    ] {
        let told = found(spoken, check);
        assert!(told.len() == 1 && told[0].contains("warning OUT0115"), "{spoken:?} {check}: {told:#?}");
        assert!(told[0].contains(wanted), "{told:#?}");
        assert_eq!(found(spoken, &check.replace("}}", "}, port: 80}")), Vec::<String>::new(), "it is named");
    }
    for (spoken, check) in [
        (Grpc, "{grpc: {}}"),
        (Http2, "{grpc: {}}"),
        (Http2, "{http: {path: /}}"),
        (Detect, "{http: {path: /}}"),
    ] {
        assert_eq!(found(spoken, check), Vec::<String>::new(), "{spoken:?} {check}");
    }
}

#[test]
fn a_check_that_no_port_takes_is_told() {
    for (service, check) in [
        ("reviews", "{http: {path: /}}"),
        ("reviews", "{http: {path: /}, port: 80}"),
        ("reviews", "{grpc: {}, port: 80}"),
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
