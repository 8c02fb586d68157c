//! Routes of TLS, and routes that another object has.

use super::*;

#[test]
fn routes_by_server_name_arrive() {
    let text = virtual_service(
        "hosts: [reviews, '*.example.com']
tls:
- match: [{port: 443, sniHosts: [reviews, A.example.com], sourceLabels: {app: web}}, {sniHosts: ['*.b.example.com']}]
  route: [{destination: {host: reviews, subset: v1}, weight: 3}, {destination: {host: reviews}, weight: 1}]",
    );
    let route = route(&text);
    assert!(route.http.is_empty() && route.tcp.is_empty());
    let tls = &route.tls[0];
    assert_eq!(tls.matches[0].server_names, ["reviews", "a.example.com"]);
    assert_eq!(
        (tls.matches[0].connection.port, tls.matches[0].connection.source_labels.len()),
        (Some(443), 1)
    );
    assert_eq!(tls.matches[1].server_names, ["*.b.example.com"]);
    assert_eq!(tls.targets.iter().map(|t| t.share.weight).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(route.references().count(), 2);
}

#[test]
fn a_tls_route_needs_names_that_are_the_rules_own() {
    let with = |block: &str| {
        virtual_service(&format!(
            "hosts: [reviews]\ntls:\n- {block}\n  route: [{{destination: {{host: reviews}}}}]"
        ))
    };
    let bad = [
        ("match: [{sniHosts: [other.example.com]}]", "is none of the hosts of the rule"),
        ("match: [{sniHosts: ['*']}]", "is none of the hosts of the rule"),
        ("match: [{sniHosts: ['rev*']}]", "must be a server name"),
        ("match: [{port: 443}]", "sniHosts"),
        ("match: []", "match"),
    ];
    for (block, why) in bad {
        let told = told(&with(block));
        assert!(told.iter().any(|line| line.contains("error") && line.contains(why)), "{block}: {told:#?}");
    }
    assert!(told(&with("match: [{sniHosts: [reviews.shop.svc.cluster.local]}]")).is_empty());
    let later = with("match: [{sniHosts: [reviews], destinationSubnets: [10.0.0.0/8]}]");
    assert!(told(&later).iter().any(|line| line.contains("destinationSubnets")), "{later}");
    assert_eq!(objects(&later)[0].intents, [], "rather nothing than too much");
}

#[test]
fn a_route_may_be_another_objects() {
    let route = route(&virtual_service(
        "hosts: [reviews]\nhttp:\n- timeout: 1s\n  delegate: {name: part, namespace: team}",
    ));
    let delegate = route.http[0].delegate.clone().unwrap();
    assert_eq!((delegate.namespace.as_str(), delegate.name.as_str()), ("team", "part"));
    assert!(route.http[0].said.timeout && !route.http[0].said.retries);
    let near = virtual_service("hosts: [reviews]\nhttp:\n- delegate: {name: part}");
    assert_eq!(crate::testing::route(&near).http[0].delegate.as_ref().unwrap().namespace, "shop");
    let both =
        virtual_service(&format!("hosts: [reviews]\nhttp:\n- delegate: {{name: part}}\n  route:\n{TO}"));
    assert!(one_told(&both).contains("exactly one of them"));
    let chain = virtual_service("http:\n- delegate: {name: part}");
    assert!(one_told(&chain).contains("cannot delegate"));
    for more in ["gateways: [mesh]", "tcp: [{route: [{destination: {host: reviews}}]}]"] {
        let text = virtual_service(&format!("{more}\nhttp:\n- route:\n{TO}"));
        assert!(one_told(&text).contains("needs hosts"), "{more}");
    }
}

#[test]
fn what_is_taken_and_without_effect_is_told() {
    let to = "route: [{destination: {host: reviews}}]";
    let told =
        one_told(&virtual_service(&format!("hosts: [reviews]\nhttp:\n- match: [{{statPrefix: a}}]\n  {to}")));
    assert!(told.contains("warning OUT0005: spec.http[0].match[0].statPrefix"), "{told}");
    for list in ["http", "tcp"] {
        let text =
            virtual_service(&format!("hosts: [reviews]\n{list}:\n- match: [{{gateways: [public]}}]\n  {to}"));
        let told = one_told(&text);
        assert!(
            told.contains(&format!("warning OUT0006: spec.{list}[0].match[0].gateways names none")),
            "{told}"
        );
        assert_eq!(objects(&text)[0].intents, []);
    }
    let own = virtual_service(&format!(
        "hosts: [reviews]\ngateways: [mesh, public]\nhttp:\n- match: [{{gateways: [public]}}, {{gateways: [mesh]}}]\n  {to}"
    ));
    assert!(one_told(&own).contains("OUT0005: spec.gateways"), "the rule tells enough of its own");
    let headers = "route: [{destination: {host: reviews}, headers: {request: {set: {a: b}}}}]";
    for list in
        [format!("tcp:\n- {headers}"), format!("tls:\n- match: [{{sniHosts: [reviews]}}]\n  {headers}")]
    {
        let told = one_told(&virtual_service(&format!("hosts: [reviews]\n{list}")));
        assert!(
            told.contains("error IST0106: unknown field \"headers\" in a destination of connections"),
            "{told}"
        );
    }
    for empty in ["http: []", "tcp: []\ntls: []"] {
        let told = one_told(&virtual_service(&format!("hosts: [reviews]\n{empty}")));
        assert!(told.contains("needs http, tls or tcp routes"), "{told}");
    }
}

#[test]
fn an_empty_export_list_is_none() {
    let text = virtual_service(&format!("hosts: [reviews]\nexportTo: []\nhttp:\n- route:\n{TO}"));
    assert_eq!(route(&text).visibility, Visibility::Everyone);
    let nobody = virtual_service(&format!("hosts: [reviews]\nexportTo: ['~']\nhttp:\n- route:\n{TO}"));
    assert_eq!(route(&nobody).visibility, Visibility::Namespaces(Vec::new()));
}

#[test]
fn all_hosts_of_the_mesh_at_once_and_hosts_that_cover_each_other_are_refused() {
    let hosts = |hosts: &str| virtual_service(&format!("hosts: [{hosts}]\nhttp:\n- route:\n{TO}"));
    let told = one_told(&hosts("'*'"));
    assert!(
        told.contains(
            "error IST0106: spec.hosts[0]: the host \"*\" would take the requests to every service"
        ),
        "{told}"
    );
    let gateways = |names: &str| hosts("'*'").replace("  http:", &format!("  gateways: [{names}]\n  http:"));
    let errors =
        |text: &str| crate::testing::told(text).iter().filter(|told| told.contains(" error ")).count();
    assert_eq!((errors(&gateways("mesh, front")), errors(&gateways("front"))), (1, 0));
    for (pair, one) in [
        ("reviews, reviews", true),
        ("'*.foo.com', a.foo.com", true),
        ("a.foo.com, '*.foo.com'", true),
        ("'*.foo.com', '*.com'", true),
        ("'*.com', '*.foo.com'", true),
        ("'*.foo.com', foo.com", false),
        ("'*.foo.com', '*.bar.com'", false),
        ("reviews, reviews.shop.svc.cluster.local", false),
    ] {
        let told = crate::testing::told(&hosts(pair));
        assert_eq!(told.len(), usize::from(one), "{pair}: {told:?}");
        assert!(!one || told[0].contains("error IST0106: spec.hosts[1]: "), "{told:?}");
    }
}
