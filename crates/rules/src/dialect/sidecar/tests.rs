use std::net::SocketAddr;

use crate::finding::Finding;
use crate::intent::{AppAddress, Host, Intent, ServiceProtocol, SidecarIntent, Unknown};
use crate::parse;
use crate::testing::{object, one_told, told};

fn sidecar(spec: &str) -> String {
    object("networking.istio.io/v1", "Sidecar", spec)
}

fn read(spec: &str) -> SidecarIntent {
    let parsed = parse("rules.yaml", &sidecar(spec));
    assert!(
        !parsed.has_errors(),
        "{:#?}",
        parsed.findings.iter().map(Finding::to_string).collect::<Vec<_>>()
    );
    let mut intents = parsed.objects.into_iter().flat_map(|object| object.intents);
    match intents.next() {
        Some(Intent::Sidecar(intent)) => intent,
        other => panic!("{other:?}"),
    }
}

fn host(name: &str) -> Host {
    crate::host::Resolver::default().resolve_whole(name, "").unwrap()
}

const REVIEWS: &str = "reviews.shop.svc.cluster.local";
const PAY: &str = "pay.bank.svc.cluster.local";

#[test]
fn hosts_are_namespaces_and_names() {
    for (hosts, known, unknown) in [
        ("'*/*'", vec![("shop", REVIEWS), ("bank", PAY), ("x", "a.example.com")], vec![]),
        ("./*", vec![("shop", REVIEWS), ("shop", "a.example.com")], vec![("bank", PAY)]),
        ("bank/*", vec![("bank", PAY)], vec![("shop", REVIEWS)]),
        (
            "'./reviews.shop.svc.cluster.local'",
            vec![("shop", REVIEWS)],
            vec![("shop", "b.shop.svc.cluster.local"), ("bank", REVIEWS)],
        ),
        ("./reviews", vec![("shop", REVIEWS)], vec![("bank", PAY)]),
        ("'*/pay.bank'", vec![("bank", PAY)], vec![("shop", REVIEWS)]),
        (
            "'*/*.example.com'",
            vec![("x", "a.example.com"), ("y", "*.example.com")],
            vec![("x", "example.com"), ("shop", REVIEWS)],
        ),
        ("'~/*'", vec![], vec![("shop", REVIEWS), ("bank", PAY)]),
        ("'*/*', ~bank/*", vec![("shop", REVIEWS)], vec![("bank", PAY)]),
        (
            "'*/*', '~./reviews'",
            vec![("bank", PAY), ("shop", "b.shop.svc.cluster.local")],
            vec![("shop", REVIEWS)],
        ),
    ] {
        let intent = read(&format!("egress: [{{hosts: [{hosts}]}}]"));
        let at = |(namespace, name): &(&str, &str)| intent.imports("shop", namespace, &host(name), 80);
        assert!(known.iter().all(at), "{hosts} are {known:?}");
        assert!(!unknown.iter().any(at), "{hosts} are none of {unknown:?}");
    }
    let all = read("outboundTrafficPolicy: {mode: ALLOW_ANY}");
    assert!(all.imports("shop", "bank", &host(PAY), 1) && all.egress.is_none());
}

#[test]
fn a_port_is_the_listener_s_that_names_it() {
    let port = |number: u16| format!("port: {{number: {number}, protocol: HTTP, name: a}}");
    let spec = format!("egress: [{{{}, hosts: [bank/*]}}, {{hosts: [./*]}}]", port(9080));
    let intent = read(&spec);
    assert_eq!(intent.egress.as_ref().unwrap()[0].protocol, Some(ServiceProtocol::Http));
    let known = |namespace, name, port| intent.imports("shop", namespace, &host(name), port);
    assert!(known("bank", PAY, 9080) && !known("bank", PAY, 80));
    assert!(known("shop", REVIEWS, 80) && !known("shop", REVIEWS, 9080));
}

#[test]
fn what_nobody_knows_goes_on_is_refused_or_goes_through_a_proxy() {
    assert_eq!(read("outboundTrafficPolicy: {mode: REGISTRY_ONLY}").unknown, Some(Unknown::Refused));
    assert_eq!(read("outboundTrafficPolicy: {mode: ALLOW_ANY}").unknown, Some(Unknown::Allowed));
    assert_eq!(read("egress: [{hosts: ['*/*']}]").unknown, None);
    let told = one_told(&sidecar("outboundTrafficPolicy: {}"));
    assert!(told.contains("warning OUT0006") && told.contains("is REGISTRY_ONLY"), "{told}");
    let through = read(
        "outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: out.edge, subset: a, port: {number: 8443}}}",
    );
    let Some(Unknown::Through(target)) = through.unknown else { panic!("{:?}", through.unknown) };
    assert_eq!(
        (target.host.as_str(), target.subset.as_deref(), target.port),
        ("out.edge.svc.cluster.local", Some("a"), Some(8443))
    );
}

#[test]
fn what_comes_in_goes_where_the_application_listens() {
    let listener =
        |port: u16, more: &str| format!("{{port: {{number: {port}, protocol: GRPC, name: a}}{more}}}");
    let spec = [
        listener(1, ", defaultEndpoint: '127.0.0.1:8080'"),
        listener(2, ", defaultEndpoint: '[::1]:8080', connectionPool: {tcp: {maxConnections: 7}}"),
        listener(3, ", defaultEndpoint: '0.0.0.0:8080', bind: 0.0.0.0, captureMode: IPTABLES"),
        listener(4, ", defaultEndpoint: '[::]:8080', bind: 10.0.0.7"),
        listener(5, ", defaultEndpoint: ''"),
    ];
    let intent = read(&format!(
        "inboundConnectionPool: {{http: {{http2MaxRequests: 9}}}}\ningress: [{}]\nworkloadSelector: {{labels: {{app: a}}}}",
        spec.join(", ")
    ));
    let at = |port| intent.ingress_at(port).unwrap();
    let loopback = |text: &str| Some(AppAddress::Loopback(text.parse::<SocketAddr>().unwrap()));
    assert_eq!([at(1).app, at(2).app], [loopback("127.0.0.1:8080"), loopback("[::1]:8080")]);
    assert_eq!([at(3).app, at(4).app], [Some(AppAddress::Instance(8080)); 2]);
    assert_eq!((at(5).app, at(5).protocol), (None, ServiceProtocol::Grpc));
    assert_eq!([at(3).bind, at(4).bind], [None, Some("10.0.0.7".parse().unwrap())]);
    assert_eq!(intent.pool_at(2).unwrap().max_connections, Some(7));
    assert_eq!(intent.pool_at(1).unwrap().max_requests, Some(9));
    assert_eq!(intent.selector["app"], "a");
}

#[test]
fn what_is_not_there_is_told_by_name() {
    let egress = |fields: &str| {
        format!("egress: [{{port: {{number: 80, protocol: HTTP, name: a}}, hosts: ['*/*'], {fields}}}]")
    };
    let ingress =
        |fields: &str| format!("ingress: [{{port: {{number: 80, protocol: HTTP, name: a}}, {fields}}}]");
    for (spec, word) in [
        (egress("captureMode: NONE"), "spec.egress[0].captureMode is not implemented"),
        (egress("bind: 127.0.0.1"), "spec.egress[0].bind is not implemented"),
        (ingress("captureMode: NONE"), "spec.ingress[0].captureMode is not implemented"),
        (ingress("bind: 127.0.0.1"), "spec.ingress[0].bind is not implemented"),
        (
            "egress: [{hosts: ['*/*']}]\nworkloadSelector: {}".to_owned(),
            "spec.workloadSelector has no labels",
        ),
    ] {
        let told = one_told(&sidecar(&spec));
        assert!(told.contains("warning") && told.contains(word), "{spec}: {told}");
    }
    assert_eq!(told(&sidecar(&egress("captureMode: DEFAULT"))), Vec::<String>::new());
}

#[test]
fn what_cannot_be_is_refused_by_place() {
    let port = "port: {number: 80, protocol: HTTP, name: a}";
    let egress = |fields: &str| format!("egress: [{{{fields}}}]");
    let ingress = |fields: &str| format!("ingress: [{{{fields}}}]");
    for (spec, word) in [
        ("{}".to_owned(), "says nothing"),
        (egress("hosts: []"), "hosts is missing"),
        (egress("hosts: [reviews]"), "must be a namespace and a host"),
        (egress("hosts: ['*/reviews']"), "is a service of no namespace"),
        (egress("hosts: ['a.b/*']"), "is no namespace"),
        (egress("hosts: ['shop/a.*.b']"), "is not a host"),
        (egress("hosts: ['*/*'], bind: 10.0.0.1"), "needs a port beside it"),
        (egress(&format!("{port}, hosts: ['*/*'], bind: here")), "must be an address or unix://"),
        (egress(&format!("{port}, hosts: ['*/*'], bind: 'unix:///a'")), "is a socket file"),
        (egress("port: {number: 0, protocol: HTTP, name: a}, hosts: ['*/*']"), "from 1 to 65535"),
        (egress("port: {number: 80, protocol: X, name: a}, hosts: ['*/*']"), "must be one of HTTP"),
        (egress("port: {number: 80, protocol: HTTP}, hosts: ['*/*']"), "name is missing"),
        (egress("captureMode: SOME, hosts: ['*/*']"), "must be one of DEFAULT"),
        ("egress: [{hosts: ['*/*']}, {hosts: ['./*']}]".to_owned(), "only the last listener"),
        (
            format!("egress: [{{{port}, hosts: ['*/*']}}, {{{port}, hosts: ['./*']}}]"),
            "has a listener already",
        ),
        (format!("ingress: [{{{port}}}, {{{port}}}]"), "has a listener already"),
        (ingress("defaultEndpoint: '127.0.0.1:1'"), "port is missing"),
        (ingress(&format!("{port}, defaultEndpoint: '127.0.0.2:1'")), "must be 127.0.0.1:PORT"),
        (ingress(&format!("{port}, defaultEndpoint: '10.0.0.1:1'")), "must be 127.0.0.1:PORT"),
        (ingress(&format!("{port}, defaultEndpoint: '127.0.0.1:0'")), "must be 127.0.0.1:PORT"),
        (ingress(&format!("{port}, defaultEndpoint: 'unix:///a'")), "is a socket file"),
        (ingress(&format!("{port}, bind: 'unix:///a'")), "must be an address"),
        (ingress(&format!("{port}, tls: {{mode: SIMPLE}}")), "open to plain text"),
        (ingress(&format!("{port}, tls: {{mod: SIMPLE}}")), "unknown field \"mod\""),
        (ingress(&format!("{port}, endpoint: a")), "unknown field"),
        ("outboundTrafficPolicy: {mode: SOME}".to_owned(), "must be one of REGISTRY_ONLY"),
        (
            "outboundTrafficPolicy: {mode: REGISTRY_ONLY, egressProxy: {host: a, port: {number: 1}}}"
                .to_owned(),
            "needs the mode ALLOW_ANY",
        ),
        ("outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a}}".to_owned(), "port is missing"),
        (
            "workloadSelector: {labels: {app: 'a*'}}\negress: [{hosts: ['*/*']}]".to_owned(),
            "without wildcards",
        ),
    ] {
        let told = told(&sidecar(&spec));
        assert!(told.iter().any(|one| one.contains("error") && one.contains(word)), "{spec}: {told:#?}");
    }
}

#[test]
fn all_versions_of_istio_are_read() {
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let text = object(&format!("networking.istio.io/{version}"), "Sidecar", "egress: [{hosts: ['*/*']}]");
        assert_eq!(told(&text), Vec::<String>::new(), "{version}");
    }
}

#[test]
fn a_target_port_is_told() {
    let spec = "ingress: [{port: {number: 80, protocol: HTTP, name: http, targetPort: 8080}, defaultEndpoint: '127.0.0.1:80'}]";
    let told = one_told(&sidecar(spec));
    assert!(told.contains("warning OUT0006: spec.ingress[0].port.targetPort has no effect"), "{told}");
}
