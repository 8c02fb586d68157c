use crate::intent::{Location, Resolution, ServiceProtocol, Visibility};
use crate::testing::{object, one_told, service, told, workload};

fn entry(spec: &str) -> String {
    object("networking.istio.io/v1", "ServiceEntry", spec)
}

const API: &str = "hosts: [api.example.com]\nports: [{number: 443, name: tls, protocol: TLS}]\n";

#[test]
fn an_entry_arrives_whole() {
    let found = service(&entry(
        "hosts: [API.example.com., example.com, '*.wiki.org', redis]
addresses: [192.0.2.1, 198.51.100.0/24]
location: MESH_INTERNAL
resolution: STATIC
exportTo: [., other]
subjectAltNames: [spiffe://cluster.local/ns/shop/sa/vm]
ports:
- {number: 80, name: http, protocol: HTTP, targetPort: 8080}
- {number: 443, name: https, protocol: https}
- {number: 6379, name: redis, protocol: REDIS}
- {number: 9000, name: any}
endpoints:
- {address: 10.0.0.1, ports: {http: 18080}, labels: {version: v2}, network: vms, locality: eu/eu-1/rack, weight: 7, serviceAccount: vm}
- {address: '2001:db8::1'}",
    ));
    let hosts: Vec<&str> = found.hosts.iter().map(|host| host.as_str()).collect();
    assert_eq!(hosts, ["api.example.com", "example.com", "*.wiki.org", "redis.shop.svc.cluster.local"]);
    assert_eq!(found.addresses.len(), 2);
    assert_eq!((found.location, found.resolution), (Location::Inside, Resolution::Static));
    assert_eq!(found.visibility, Visibility::Namespaces(vec!["shop".into(), "other".into()]));
    assert_eq!(found.subject_alt_names.len(), 1);
    let protocols: Vec<_> = found.ports.values().map(|port| port.protocol).collect();
    use ServiceProtocol::{Detect, Http, Tcp, Tls};
    assert_eq!(protocols, [Http, Tls, Tcp, Detect]);
    let [first, second] = found.endpoints.as_slice() else { panic!("{found:?}") };
    assert_eq!((first.port(80, &found.ports[&80]), second.port(80, &found.ports[&80])), (18_080, 8080));
    assert_eq!(second.port(443, &found.ports[&443]), 443);
    assert_eq!((first.weight, second.weight, first.network.as_str()), (7, 1, "vms"));
    assert_eq!(first.locality, ["eu", "eu-1", "rack"].map(str::to_owned));
    assert_eq!((first.service_account.as_str(), first.labels["version"].as_str()), ("vm", "v2"));
}

#[test]
fn what_is_not_said_is_outside_everywhere_and_where_the_client_was_going() {
    let found = service(&entry(API));
    assert_eq!((found.location, found.resolution), (Location::Outside, Resolution::None));
    assert_eq!(found.visibility, Visibility::Everyone);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    for (spec, word) in [
        ("ports: [{number: 80}]", "spec.hosts is missing"),
        ("hosts: [a.example.com]", "spec.ports is missing"),
        ("hosts: ['*']\nports: [{number: 80}]", "every host"),
        ("hosts: [a.b.c, A.b.c]\nports: [{number: 80}]", "twice"),
        ("hosts: [a.b.c]\nports: [{number: 80}, {number: 80}]", "the port 80 is defined twice"),
        ("hosts: [a.b.c]\nports: [{number: 80, name: x}, {number: 81, name: x}]", "another port's"),
        ("hosts: [a.b.c]\nports: [{number: 80, protocol: SCTP}]", "must be one of HTTP,"),
        ("hosts: [a.b.c]\nports: [{number: 80}]\nresolution: DYNAMIC_DNS", "DYNAMIC_DNS"),
        (
            "hosts: [a.b.c]\nports: [{number: 80}]\nresolution: STATIC",
            "needs endpoints or a workloadSelector",
        ),
        ("hosts: [a.b.c]\nports: [{number: 80}]\nendpoints: [{address: 10.0.0.1}]", "resolution NONE"),
        ("hosts: [a.b.c]\nports: [{number: 80}]\nworkloadSelector: {labels: {a: b}}", "resolution NONE"),
        ("hosts: [a.b.c]\nports: [{number: 80, targetPort: 81}]", "targetPort"),
        ("hosts: ['*.b.c']\nports: [{number: 80}]\nresolution: DNS", "DNS cannot be asked for"),
        (
            "hosts: [a.b.c]\nports: [{number: 80}]\nresolution: DNS\naddresses: [10.0.0.0/8]",
            "needs resolution NONE or STATIC",
        ),
        ("hosts: [a.b.c]\nports: [{number: 80}]\naddresses: [0.0.0.0/0]", "every address"),
        (
            "hosts: [a.b.c]\nports: [{number: 80}]\nresolution: STATIC\nendpoints: [{address: db.example.com}]",
            "is a name",
        ),
        (
            "hosts: [a.b.c]\nports: [{number: 80}]\nresolution: DNS_ROUND_ROBIN\nendpoints: [{address: a.b}, {address: c.d}]",
            "takes one endpoint",
        ),
        (
            "hosts: [a.b.c]\nports: [{number: 80, name: http}]\nresolution: STATIC\nendpoints: [{address: 10.0.0.1, ports: {htp: 1}}]",
            "Did you mean \"http\"?",
        ),
        (
            "hosts: [a.b.c]\nports: [{number: 80}]\nresolution: STATIC\nendpoints: [{address: 'unix:///run/x'}]",
            "socket file",
        ),
        (
            "hosts: [a.b.c]\nports: [{number: 80}]\nresolution: STATIC\nendpoints: [{address: 0.0.0.0}]",
            "nobody's own",
        ),
        (
            "hosts: [a.b.c]\nports: [{number: 80}]\nresolution: STATIC\nendpoints: [{address: 10.0.0.1, locality: a//b}]",
            "region/zone/sub-zone",
        ),
        (
            "hosts: [a.b.c]\nports: [{number: 80}]\nresolution: STATIC\nendpoints: [{address: 10.0.0.1}]\nworkloadSelector: {labels: {a: b}}",
            "not both",
        ),
        ("hosts: [a.b.c]\nports: [{number: 80}]\nresolution: STATIC\nworkloadSelector: {}", "needs labels"),
        ("hosts: [a.b.c]\nports: [{number: 80, nmae: x}]", "Did you mean \"name\"?"),
    ] {
        let told = told(&entry(spec));
        assert!(told.iter().any(|line| line.contains(word) && line.contains(" error ")), "{spec}: {told:#?}");
    }
}

#[test]
fn what_has_no_effect_is_told_by_name() {
    let told = one_told(&entry("hosts: [a.b.c]\nports: [{number: 53, protocol: UDP}, {number: 80}]"));
    assert!(
        told.contains("warning") && told.contains("spec.ports[0].protocol: Outrigger carries no UDP"),
        "{told}"
    );
    let told = one_told(&entry("hosts: ['*.b.c']\nports: [{number: 5432, protocol: TCP}]"));
    assert!(told.contains("warning") && told.contains("name addresses"), "{told}");
}

#[test]
fn a_workload_has_the_labels_of_its_metadata_too() {
    let text = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm-1, namespace: shop, labels: {app: db, version: v9}}
spec: {address: 10.0.0.9, labels: {version: v1, security.istio.io/tlsMode: istio}, serviceAccount: db}
";
    let found = workload(text);
    assert_eq!(
        (found.workload.labels["app"].as_str(), found.workload.labels["version"].as_str()),
        ("db", "v9")
    );
    assert!(found.workload.has_sidecar());
    assert_eq!(found.origin.to_string(), "WorkloadEntry shop/vm-1");
    let told = one_told(&text.replace("address: 10.0.0.9, ", ""));
    assert!(told.contains("spec.address is missing"), "{told}");
}
