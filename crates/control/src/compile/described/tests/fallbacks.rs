//! Who serves in place of a subset that nobody of runs, of services that are described.

use super::*;
use crate::instance::State;

fn page(service: &str, subsets: &str) -> String {
    format!(
        "---\napiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {{name: page, namespace: shop}}\nspec: {{service: \
         {service}, subsets: [{subsets}]}}\n"
    )
}

fn of(compiled: &Compiled, subset: &str, host: &str) -> Vec<String> {
    let mut found = addresses(&endpoints(compiled, &web(), &format!("outbound|80|{subset}|{host}")).unwrap());
    found.sort();
    found
}

#[test]
fn a_subset_of_written_endpoints_has_its_fallbacks() {
    let spec = "hosts: [db.example.com]
resolution: STATIC
ports: [{number: 80, name: http, protocol: HTTP}]
endpoints: [{address: 192.0.2.1, labels: {version: v1}}, {address: 192.0.2.2, labels: {version: v2}}]";
    let subsets = "{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, fallback: v1}, \
                   {name: v3, labels: {version: v3}, fallback: v4}, {name: v4, labels: {version: v4}, fallback: v1}, \
                   {name: v5, labels: {version: v5}, fallback: any}, {name: v6, labels: {version: v6}}";
    let compiled = compiled(shop(), &(entry("db", spec) + &page("db.example.com", subsets)));
    let of = |subset: &str| of(&compiled, subset, "db.example.com");
    assert_eq!(of("v2"), ["192.0.2.2:80"], "it runs");
    assert_eq!(of("v3"), ["192.0.2.1:80"], "one after the other");
    assert_eq!(of("v5"), ["192.0.2.1:80", "192.0.2.2:80"]);
    assert_eq!(of("v6"), Vec::<String>::new());
}

#[test]
fn a_subset_of_instances_that_a_description_selects_has_its_fallback_once_none_runs() {
    let spec = "hosts: [all.example.com]
resolution: STATIC
workloadSelector: {labels: {app: catalog}}
ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]";
    let yaml = entry("all", spec)
        + &page(
            "all.example.com",
            "{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, fallback: v1}",
        );
    let mut instances = shop();
    assert_eq!(of(&compiled(instances.clone(), &yaml), "v2", "all.example.com"), ["127.0.0.12:8080"]);
    for instance in instances.iter_mut().filter(|instance| instance.version.as_deref() == Some("v2")) {
        instance.state = State::Unhealthy;
    }
    assert_eq!(of(&compiled(instances, &yaml), "v2", "all.example.com"), ["127.0.0.11:8080"]);
}

#[test]
fn a_subset_of_names_has_its_fallbacks() {
    let spec = "hosts: [db.example.com]
resolution: DNS
ports: [{number: 80, name: http, protocol: HTTP}]
endpoints: [{address: a.example.com, labels: {version: v1}}]";
    let subsets = "{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, fallback: v1}, {name: v3, labels: {version: v3}}";
    let compiled = compiled(shop(), &(entry("db", spec) + &page("db.example.com", subsets)));
    for (subset, wanted) in [("v2", vec!["a.example.com:80"]), ("v3", vec![])] {
        let found = cluster(&compiled, &web(), &format!("outbound|80|{subset}|db.example.com")).unwrap();
        let Discovery::Dns(dns) = &found.discovery else { panic!("{found:?}") };
        let names: Vec<String> = dns.endpoints.iter().map(|e| e.address.to_string()).collect();
        assert_eq!(names, wanted, "{subset}");
    }
}
