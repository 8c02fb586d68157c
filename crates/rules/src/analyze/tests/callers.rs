//! Conditions of routes on who calls and where.

use super::*;

fn http(block: &str) -> String {
    let more = "- route: [{destination: {host: reviews}}]";
    virtual_service(&format!(
        "hosts: [reviews]\nhttp:\n- match: [{{{block}}}]\n  route: [{{destination: {{host: reviews}}}}]\n{more}"
    ))
}

fn bytes(kind: &str, block: &str) -> String {
    virtual_service(&format!(
        "hosts: [stock]\n{kind}:\n- match: [{{{block}}}]\n  route: [{{destination: {{host: stock}}}}]"
    ))
}

#[test]
fn labels_and_namespaces_that_no_workload_has_are_told() {
    let told = only(&http("sourceLabels: {app: stok}"));
    assert!(
        told.contains("warning OUT0106") && told.contains("spec.http[0].match[0] names the labels"),
        "{told}"
    );
    assert!(told.ends_with("Did you mean \"app=stock\"?"), "{told}");
    let told = only(&http("sourceNamespace: nowhere"));
    assert!(told.contains("the namespace \"nowhere\""), "{told}");
    // Each is there, and nobody has both.
    assert!(only(&http("sourceLabels: {app: stock, version: v3}")).contains("app=stock, version=v3"));
    for (kind, block) in [("tcp", ""), ("tls", "sniHosts: [stock], ")] {
        let told = only(&bytes(kind, &format!("{block}sourceLabels: {{app: none}}")));
        assert!(told.contains(&format!("spec.{kind}[0] names the labels app=none")), "{told}");
        silent(&bytes(kind, &format!("{block}sourceLabels: {{app: reviews}}")));
    }
    silent(&http("sourceLabels: {app: stock, version: v1}"));
    silent(&http("sourceLabels: {app: stock}, sourceNamespace: shop"));
    let nobody = ServiceCatalog { workloads: Vec::new(), ..catalog() };
    assert_eq!(
        analyze(&objects(&http("sourceLabels: {app: none}")), Some(&nobody)),
        [],
        "nothing is registered yet"
    );
}

#[test]
fn conditions_without_end_cost_a_bounded_look_at_workloads() {
    let blocks: String = (0..1200)
        .map(|n| {
            format!("- match: [{{sourceLabels: {{app: stok, n: x{n}}}}}]\n  route: [{{destination: {{host: reviews}}}}]\n")
        })
        .collect();
    let last = "- route: [{destination: {host: reviews}}]";
    let found = found(&virtual_service(&format!("hosts: [reviews]\nhttp:\n{blocks}{last}")));
    assert_eq!(found.len(), 1000);
    assert_eq!(found.iter().filter(|told| told.ends_with("Did you mean \"app=stock\"?")).count(), 100);
}

#[test]
fn a_port_that_nobody_calls_is_told() {
    let told = only(&http("port: 81"));
    assert!(told.contains("warning OUT0106"), "{told}");
    assert!(told.contains("names the port 81, but reviews.shop has only 80, so it matches nobody"), "{told}");
    silent(&http("port: 80"));
    for (kind, block) in [("tcp", ""), ("tls", "sniHosts: [stock], ")] {
        assert!(only(&bytes(kind, &format!("{block}port: 9999"))).contains("has only 90"), "{kind}");
        silent(&bytes(kind, &format!("{block}port: 90")));
    }
    silent(&http("port: 81").replace("hosts: [reviews]", "hosts: ['*.shop.svc.cluster.local']"));
}
