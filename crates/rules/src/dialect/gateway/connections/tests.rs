use crate::intent::AttachedIntent;
use crate::testing::{attached, object, one_told, told};

const V1: &str = "gateway.networking.k8s.io/v1";
const OLD: &str = "gateway.networking.k8s.io/v1alpha2";
const PARENT: &str = "parentRefs: [{group: '', kind: Service, name: vault, port: 443}]";
const BACKEND: &str = "backendRefs: [{name: vault, port: 443}]";

fn tcp(version: &str, rules: &str) -> String {
    object(version, "TCPRoute", &format!("{PARENT}\nrules: {rules}\n"))
}

fn tls(version: &str, names: &str) -> String {
    object(version, "TLSRoute", &format!("{PARENT}\n{names}\nrules: [{{{BACKEND}}}]\n"))
}

#[test]
fn shares_of_connections_are_read_and_what_is_no_service_is_lost() {
    let backends = "[{name: a, port: 5432, weight: 3}, {name: b, namespace: bank, port: 5433}, \
                    {kind: ServiceImport, group: x, name: c, port: 1, weight: 5}]";
    let text = tcp(V1, &format!("[{{name: all, backendRefs: {backends}}}]"));
    let told = one_told(&text);
    assert!(told.contains("its share of the connections is reset"), "{told}");
    let AttachedIntent { tcp, tls, http, flaws, hosts, .. } = attached(&text);
    let [route] = tcp.as_slice() else { panic!("{tcp:?}") };
    let shares: Vec<_> =
        route.targets.iter().map(|t| (t.target.host.as_str(), t.target.port, t.share.weight)).collect();
    assert_eq!(
        shares,
        [("a.shop.svc.cluster.local", Some(5432), 3), ("b.bank.svc.cluster.local", Some(5433), 1)]
    );
    assert_eq!((route.lost, flaws[0].reason.as_str(), hosts.len()), (5, "InvalidKind", 1));
    assert!(tls.is_empty() && http.is_empty());
    let nowhere = attached(&tcp_of("[{name: a, port: 1, weight: 0}]"));
    assert_eq!(nowhere.tcp[0].lost, 1, "without any weight all are lost");
}

fn tcp_of(backends: &str) -> String {
    tcp(V1, &format!("[{{backendRefs: {backends}}}]"))
}

#[test]
fn server_names_are_read_each_once() {
    let text = tls(V1, "hostnames: [a.example, '*.b.example', a.example]");
    assert_eq!(told(&text), Vec::<String>::new());
    let AttachedIntent { tls, .. } = attached(&text);
    assert_eq!(tls[0].matches[0].server_names, ["a.example", "*.b.example"]);
    for version in ["v1", "v1alpha3", "v1alpha2"] {
        let text = text.replace("k8s.io/v1\n", &format!("k8s.io/{version}\n"));
        assert_eq!(told(&text), Vec::<String>::new(), "{version}");
    }
}

#[test]
fn what_the_api_server_would_refuse_is_refused_by_place() {
    for (name, word) in [
        ("10.0.0.1", "no addresses"),
        ("'::1'", "no addresses"),
        ("A.example", "in lower case"),
        ("'*'", "in lower case"),
        ("a.*.example", "in lower case"),
        ("'*.'", "in lower case"),
        ("-a.example", "in lower case"),
        ("''", "in lower case"),
    ] {
        let error = one_told(&tls(V1, &format!("hostnames: [{name}]")));
        assert!(error.contains("error IST0106 spec.hostnames[0]") || error.contains(word), "{name}: {error}");
        assert!(error.contains(word), "{name}: {error}");
    }
    for (text, word) in [
        (tls(V1, "hostnames: []"), "hostnames is missing"),
        (object(V1, "TCPRoute", PARENT), "rules is missing"),
        (tcp(V1, "[{name: a}]"), "backendRefs is missing"),
        (tcp(V1, &format!("[{{{BACKEND}}}, {{{BACKEND}}}]")), "has 2 items, and may have 1"),
        (tcp_of("[{name: a}]"), "port is missing"),
        (tcp_of("[{name: a, port: 1, filters: []}]"), "unknown field \"filters\""),
        (tcp_of("[{name: a, port: 1, weight: 1000001}]"), "from 0 to 1000000"),
        (tcp(V1, &format!("[{{matches: [], {BACKEND}}}]")), "unknown field \"matches\""),
        (
            object(V1, "TCPRoute", &format!("{PARENT}\nhostnames: [a]\nrules: [{{{BACKEND}}}]")),
            "unknown field",
        ),
        (tcp("gateway.networking.k8s.io/v1alpha3", "[]"), "unknown apiVersion"),
    ] {
        let told = told(&text);
        assert!(told.iter().any(|one| one.contains("error") && one.contains(word)), "{word}: {told:#?}");
    }
}

#[test]
fn the_old_version_takes_more_rules_and_routes_without_names() {
    let told = one_told(&tcp(OLD, &format!("[{{{BACKEND}}}, {{{BACKEND}}}]")));
    assert!(told.contains("warning OUT0006") && told.contains("spec.rules[1]"), "{told}");
    let any = tls(OLD, "");
    assert_eq!(attached(&any).tls[0].matches[0].server_names, ["*"]);
}

#[test]
fn what_has_no_effect_is_told() {
    let all = format!("{PARENT}\nuseDefaultGateways: All\nrules: [{{{BACKEND}}}]");
    assert!(one_told(&object(V1, "TCPRoute", &all)).contains("useDefaultGateways is not implemented"));
    let gateway = format!("parentRefs: [{{name: edge}}]\nrules: [{{{BACKEND}}}]");
    assert!(one_told(&object(V1, "TCPRoute", &gateway)).contains("there are no Gateways yet"));
}
