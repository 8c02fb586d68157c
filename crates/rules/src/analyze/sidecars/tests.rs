use std::collections::BTreeMap;

use crate::analyze::analyze;
use crate::catalog::{CatalogService, CatalogWorkload, PortProtocol, ServiceCatalog};
use crate::finding::Finding;
use crate::host::Resolver;
use crate::testing::objects;

fn catalog() -> ServiceCatalog {
    let resolver = Resolver::default();
    let service =
        |spoken| CatalogService { ports: BTreeMap::from([(80, spoken)]), ..CatalogService::default() };
    let workload = |version: &str| CatalogWorkload {
        namespace: "shop".into(),
        labels: [("app", "web"), ("version", version)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        addresses: ["10.0.0.7".parse().unwrap()].into(),
        ..CatalogWorkload::default()
    };
    ServiceCatalog {
        services: BTreeMap::from([
            (resolver.service("web", "shop"), service(PortProtocol::Http)),
            (resolver.service("pay", "bank"), service(PortProtocol::Tcp)),
        ]),
        workloads: vec![workload("v1"), workload("v2")],
        ..ServiceCatalog::default()
    }
}

fn sidecar(name: &str, labels: &str, spec: &str) -> String {
    let selector = if labels.is_empty() {
        String::new()
    } else {
        format!("  workloadSelector: {{labels: {{{labels}}}}}\n")
    };
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n{selector}  {spec}\n---\n"
    )
}

fn found(text: &str) -> Vec<String> {
    analyze(&objects(text), Some(&catalog())).iter().map(Finding::to_string).collect()
}

fn only(text: &str) -> String {
    let mut found = found(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

const ALL: &str = "egress: [{hosts: ['*/*']}]";

#[test]
fn two_for_a_whole_namespace_are_told() {
    let told = only(&(sidecar("a", "", ALL) + &sidecar("b", "", ALL)));
    assert!(told.contains("warning IST0111") && told.contains("Sidecar shop/b is for all"), "{told}");
    let elsewhere = sidecar("b", "", ALL).replace("namespace: shop", "namespace: bank");
    assert_eq!(found(&(sidecar("a", "", ALL) + &elsewhere)), Vec::<String>::new());
    assert_eq!(found(&(sidecar("a", "", ALL) + &sidecar("b", "app: web", ALL))), Vec::<String>::new());
}

#[test]
fn two_that_select_one_workload_are_told() {
    let told = only(&(sidecar("a", "app: web", ALL) + &sidecar("b", "version: v1", ALL)));
    assert!(
        told.contains("warning IST0110") && told.contains("Sidecar shop/b selects 1 workloads"),
        "{told}"
    );
    // The older one holds, whatever its name.
    let old = sidecar("b", "version: v1", ALL)
        .replace("namespace: shop", "namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'");
    let told = only(&(sidecar("a", "app: web", ALL) + &old));
    assert!(told.contains("Sidecar shop/a selects 1 workloads that Sidecar shop/b does"), "{told}");
    let apart = sidecar("a", "version: v1", ALL) + &sidecar("b", "version: v2", ALL);
    assert_eq!(found(&apart), Vec::<String>::new());
}

#[test]
fn one_that_selects_nobody_is_told() {
    let told = only(&sidecar("a", "app: none", ALL));
    assert!(told.contains("warning IST0127") && told.contains("selects app=none"), "{told}");
}

#[test]
fn hosts_that_nobody_serves_are_told_and_namespaces_that_are_empty_are_not() {
    for hosts in ["bank/pay.shop.svc.cluster.local", "'./api.example.com'", "bank/web"] {
        let told = only(&sidecar("a", "", &format!("egress: [{{hosts: [{hosts}]}}]")));
        assert!(told.contains("warning OUT0106") && told.contains("no such service"), "{told}");
    }
    for hosts in
        ["'*/*'", "'~/*'", "empty/*", "bank/pay", "./web", "'*/web.shop.svc.cluster.local'", "'~./none'"]
    {
        assert_eq!(
            found(&sidecar("a", "", &format!("egress: [{{hosts: [{hosts}]}}]"))),
            Vec::<String>::new(),
            "{hosts}"
        );
    }
    let described = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: api, namespace: shop}\nspec: {hosts: \
                     [api.example.com], ports: [{number: 80, protocol: HTTP}]}\n---\n";
    let text = described.to_owned() + &sidecar("a", "", "egress: [{hosts: [./api.example.com]}]");
    assert_eq!(found(&text), Vec::<String>::new());
}

#[test]
fn of_the_root_namespace_a_dot_is_everybody_s_own() {
    let spec = |host: &str| format!("egress: [{{hosts: ['./{host}']}}]");
    let root = |host: &str, labels: &str| {
        sidecar("a", labels, &spec(host)).replace("namespace: shop", "namespace: istio-system")
    };
    for host in ["web", "pay", "pay.bank.svc.cluster.local"] {
        assert_eq!(found(&root(host, "")), Vec::<String>::new(), "{host}");
    }
    let told = only(&root("none", ""));
    assert!(told.contains("names \"none\"") && told.contains("of any namespace"), "{told}");
    // With labels it is for workloads of the root namespace alone.
    let told = found(&root("web", "app: web"));
    assert!(told.iter().any(|one| one.contains("of namespace istio-system, and there is no")), "{told:#?}");
}

#[test]
fn a_listener_that_speaks_otherwise_than_its_service_is_told() {
    let spec = |protocol: &str, host: &str| {
        format!("egress: [{{port: {{number: 80, protocol: {protocol}, name: a}}, hosts: [{host}]}}]")
    };
    assert_eq!(found(&sidecar("a", "", &spec("GRPC", "./web"))), Vec::<String>::new());
    for (protocol, host) in [("TCP", "./web"), ("HTTP", "bank/pay")] {
        let told = only(&sidecar("a", "", &spec(protocol, host)));
        assert!(told.contains("warning OUT0006") && told.contains("another protocol"), "{told}");
    }
    for (protocol, host) in [("HTTP", "./web"), ("GRPC", "./web"), ("TCP", "bank/pay"), ("HTTP", "'*/*'")] {
        assert_eq!(
            found(&sidecar("a", "", &spec(protocol, host))),
            Vec::<String>::new(),
            "{protocol} {host}"
        );
    }
}

#[test]
fn an_egress_proxy_that_is_not_there_is_told() {
    let spec = |host: &str, port: u16| {
        format!(
            "outboundTrafficPolicy: {{mode: ALLOW_ANY, egressProxy: {{host: {host}, port: {{number: {port}}}}}}}"
        )
    };
    for (host, port, word) in [("none", 80, "no service none.shop"), ("web", 81, "has no port 81, only 80")] {
        let told = only(&sidecar("a", "", &spec(host, port)));
        assert!(told.contains("warning IST0101") && told.contains(word), "{told}");
    }
    assert_eq!(found(&sidecar("a", "", &spec("web", 80))), Vec::<String>::new());
}

#[test]
fn a_bind_that_is_no_workload_s_address_is_told() {
    let spec =
        |bind: &str| format!("ingress: [{{port: {{number: 80, protocol: HTTP, name: a}}, bind: {bind}}}]");
    let told = only(&sidecar("a", "app: web", &spec("10.0.0.8")));
    assert!(told.contains("warning OUT0006") && told.contains("of port 80 what holds at 10.0.0.8"), "{told}");
    for bind in ["10.0.0.7", "0.0.0.0"] {
        assert_eq!(found(&sidecar("a", "app: web", &spec(bind))), Vec::<String>::new(), "{bind}");
    }
    // Nobody is there yet who could have it.
    let empty = sidecar("a", "", &spec("10.0.0.8")).replace("namespace: shop", "namespace: empty");
    assert_eq!(found(&empty), Vec::<String>::new());
}
