//! Services that are described.

use super::*;

fn entry(name: &str, spec: &str) -> String {
    object("networking.istio.io/v1", "ServiceEntry", spec).replace("name: reviews", &format!("name: {name}"))
}

const API: &str = "hosts: [api.example.com, example.com, '*.wiki.org']\nports: [{number: 443, protocol: TLS}, {number: 80, protocol: HTTP}]";

#[test]
fn a_route_to_a_described_host_is_none_to_nowhere() {
    for host in ["api.example.com", "example.com"] {
        silent(&both(&entry("api", API), &to(&format!("host: {host}, port: {{number: 80}}"))));
    }
    let below = both(&entry("api", API), &to("host: en.wiki.org, port: {number: 80}"));
    assert!(only(&below).contains("error IST0101"), "it has no endpoints of its own");
    let told = only(&both(&entry("api", API), &to("host: api.example.com, port: {number: 81}")));
    assert!(told.contains("has only 80, 443"), "{told}");
    let rule = |host: &str| object("networking.istio.io/v1", "DestinationRule", &format!("host: '{host}'"));
    for host in ["api.example.com", "example.com", "*.wiki.org", "*.org"] {
        silent(&both(&entry("api", API), &rule(host)));
    }
    assert!(only(&both(&entry("api", API), &rule("www.example.net"))).contains("IST0174"));
    let told = only(&both(&entry("api", API), &rule("en.wiki.org")));
    assert!(told.contains("described only as a part of \"*.wiki.org\""), "{told}");
}

#[test]
fn a_description_of_another_namespaces_service_is_told() {
    let spec = |host: &str| {
        format!(
            "hosts: [{host}]\nports: [{{number: 80}}]\nresolution: STATIC\nendpoints: [{{address: 10.0.0.1}}]"
        )
    };
    let told = only(&entry("theirs", &spec("payments.bank.svc.cluster.local")));
    assert!(told.contains("warning OUT0006") && told.contains("which is namespace bank's"), "{told}");
    silent(&entry("ours", &spec("payments.shop.svc.cluster.local")));
}

#[test]
fn two_that_describe_one_port_are_told_unless_nobody_sees_both() {
    let told = found(&both(&entry("one", API), &entry("two", API)));
    assert_eq!(told.len(), 6, "{told:#?}");
    assert!(told[0].contains("IST0109: ServiceEntry shop/two describes port 80 of"), "{told:#?}");
    let to = |namespace: &str| format!("{API}\nexportTo: [{namespace}]");
    silent(&both(&entry("one", &to("a")), &entry("two", &to("b"))));
    let other = "hosts: [api.example.com]\nports: [{number: 8443, protocol: TLS}]";
    silent(&both(&entry("one", API), &entry("two", other)));
}

#[test]
fn a_service_that_selects_nobody_is_told() {
    let spec = "hosts: [db.example.com]\nports: [{number: 80}]\nresolution: STATIC\nworkloadSelector: {labels: {app: vm}}";
    let told = only(&entry("db", spec));
    assert!(told.contains("IST0127: ServiceEntry shop/db selects app=vm"), "{told}");
    silent(&entry("db", &spec.replace("vm", "stock")));
    let vm = object("networking.istio.io/v1", "WorkloadEntry", "address: 10.0.0.1\nlabels: {app: vm}");
    silent(&both(&entry("db", spec), &vm));
}

#[test]
fn tls_around_tls_is_told() {
    let rule = |host: &str, tls: &str| {
        let spec = format!("host: '{host}'\ntrafficPolicy: {{tls: {{{tls}}}}}");
        object("networking.istio.io/v1", "DestinationRule", &spec)
    };
    let simple = "mode: SIMPLE, caCertificates: /ca.pem".to_owned();
    for host in ["api.example.com", "example.com"] {
        let told = only(&both(&entry("api", API), &rule(host, &simple)));
        assert!(told.contains("OUT0108") && told.contains("wrapped once more"), "{told}");
    }
    silent(&both(&entry("api", API), &rule("api.example.com", "mode: DISABLE")));
    let web = API.replace("{number: 443, protocol: TLS}, ", "");
    silent(&both(&entry("api", &web), &rule("api.example.com", &simple)));
    let told = only(&both(&entry("api", &web), &rule("*.wiki.org", &simple)));
    assert!(told.contains("set sni"), "{told}");
    silent(&both(&entry("api", &web), &rule("*.wiki.org", &format!("{simple}, sni: en.wiki.org"))));
}
