//! Rules of several namespaces for one host.

use super::*;

fn of(namespace: &str, text: &str) -> String {
    text.replace("namespace: shop", &format!("namespace: {namespace}"))
        .replace("host: reviews", "host: reviews.shop")
        .replace("hosts: [reviews]", "hosts: [reviews.shop]")
        .replace("service: reviews", "service: reviews.shop")
}

fn exported(to: &str, text: &str) -> String {
    text.replace("spec:\n", &format!("spec:\n  exportTo: [{to}]\n"))
}

/// The catalog, and somebody who calls from a namespace.
fn with_clients(namespace: &str) -> ServiceCatalog {
    let mut catalog = catalog();
    let client = CatalogWorkload { namespace: namespace.into(), ..CatalogWorkload::default() };
    catalog.workloads.push(client);
    catalog
}

fn told(text: &str, clients: &str) -> Vec<String> {
    analyze(&objects(text), Some(&with_clients(clients))).iter().map(Finding::to_string).collect()
}

#[test]
fn a_policy_of_another_namespace_is_told_where_nobody_has_it() {
    let policy = object(
        "networking.istio.io/v1",
        "DestinationRule",
        "host: reviews\ntrafficPolicy: {tls: {mode: DISABLE}}",
    );
    let foreign = of("web", &policy);
    let found = only(&foreign);
    assert!(
        found.contains(
            "warning OUT0006: DestinationRule web/reviews is for reviews.shop, which is not namespace web's"
        ) && found.contains("there is no workload in it"),
        "{found}"
    );
    assert_eq!(told(&foreign, "web"), [""; 0], "its own clients have it");
    silent(&policy);
    silent(&of("outrigger-system", &policy));
    silent(&of("istio-system", &policy));
    // Whom it names and who does not have it.
    let named = exported("., front", &foreign);
    let found = told(&named, "web");
    assert!(
        found.len() == 1 && found[0].contains("not for those of front, whom its exportTo names"),
        "{found:?}"
    );
    assert_eq!(told(&exported("., front", &policy), "web"), [""; 0]);
    let page =
        object("outrigger.io/v1", "TrafficRules", "service: reviews\ncircuitBreaker: {maxConnections: 5}");
    assert!(only(&of("web", &page)).contains("TrafficRules web/reviews is for reviews.shop"));
    let routes = object("outrigger.io/v1", "TrafficRules", "service: reviews\ntimeout: 1s");
    assert!(only(&of("web", &routes)).contains("TrafficRules web/reviews is for reviews.shop"));
    silent(&routes);
    // All hosts of a namespace are that namespace's; a wider wildcard may cover the rule's own.
    let wildcard = |host: &str| of("web", &policy.replace("host: reviews", &format!("host: '{host}'")));
    assert!(only(&wildcard("*.shop.svc.cluster.local")).contains("OUT0006"));
    assert_eq!(told(&wildcard("*.svc.cluster.local"), "front"), [""; 0]);
}

#[test]
fn policies_of_namespaces_whose_clients_never_have_both_are_no_fight() {
    let policy = |of_whom: &str, balance: &str| {
        let spec = format!("host: reviews\ntrafficPolicy: {{loadBalancer: {{simple: {balance}}}}}");
        of(of_whom, &object("networking.istio.io/v1", "DestinationRule", &spec))
    };
    let (web, front) = (policy("web", "RANDOM"), policy("front", "ROUND_ROBIN"));
    let fights = |rules: &str| {
        let all = told(rules, "web").into_iter().filter(|one| one.contains("OUT0102"));
        all.collect::<Vec<_>>()
    };
    assert_eq!(fights(&both(&web, &front)), [""; 0], "each holds for its own clients");
    for rules in [both(&policy("shop", "ROUND_ROBIN"), &web), both(&web, &policy("shop", "ROUND_ROBIN"))] {
        let found = fights(&rules);
        assert!(found.len() == 1 && found[0].contains("warning OUT0102"), "{found:?}");
        let who = "clients of namespace web have theirs alone; say in DestinationRule web/reviews";
        assert!(found[0].contains(who), "{found:?}");
    }
    let away = exported("front", &policy("shop", "ROUND_ROBIN"));
    assert_eq!(fights(&both(&away, &web)), [""; 0], "those of web have but their own");
    let root = policy("istio-system", "RANDOM");
    let found = fights(&both(&policy("shop", "ROUND_ROBIN"), &root));
    assert!(found.len() == 1 && found[0].contains("or else of the host's"), "{found:?}");
}

#[test]
fn a_subset_that_some_clients_lack_is_an_error_where_such_clients_are_there() {
    let routed = to("host: reviews, subset: v1");
    let own = exported(".", &destination(&["v1"]));
    let rules = both(&routed, &own);
    let found = only(&rules);
    assert!(found.contains("warning IST0101") && found.contains("clients in other namespaces"), "{found}");
    let found = told(&rules, "web");
    assert!(found.len() == 1 && found[0].contains("error IST0101"), "{found:?}");
    assert!(found[0].contains("clients in namespace web"), "{found:?}");
    assert_eq!(told(&both(&exported(".", &routed), &own), "web"), [""; 0], "nobody else is routed there");
    // A consumer's rules, which nobody but its own clients may have.
    let consumer =
        both(&of("web", &exported(".", &routed)), &of("web", &exported(".", &destination(&["v1"]))));
    assert_eq!(told(&consumer, "web"), [""; 0]);
    let open = both(&of("web", &routed), &of("web", &destination(&["v1"])));
    let found = told(&open, "web");
    assert!(found.len() == 1 && found[0].contains("error IST0101"), "those of shop lack it: {found:?}");
}

#[test]
fn two_that_route_a_host_are_an_error_where_the_same_clients_have_both() {
    let producer = to("host: reviews");
    let consumer = of("web", &exported(".", &producer));
    let found = told(&both(&producer, &consumer), "web");
    assert!(
        found.len() == 1 && found[0].contains("warning IST0109: VirtualService web/reviews"),
        "{found:?}"
    );
    assert!(
        found[0].contains("clients whom both are for have only the one that is for fewer namespaces"),
        "{found:?}"
    );
    let named = |namespace: &str, to: &str| of(namespace, &exported(to, &producer));
    let severity = |one: &str, other: &str| {
        let found = told(&both(one, other), "web");
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].split(' ').nth(1).map(str::to_owned).unwrap_or_default()
    };
    assert_eq!(severity(&consumer, &named("front", "web")), "warning");
    assert_eq!(severity(&named("bank", "web"), &named("front", "web")), "error");
    assert_eq!(severity(&producer, &of("bank", &producer)), "error");
    // Where a third is for the same clients as the second, that is told.
    let third = producer.replace("name: reviews", "name: late");
    let found = told(&both(&both(&consumer, &producer), &third), "web");
    assert!(
        found.len() == 2 && found.iter().any(|one| one.contains("error IST0109: VirtualService shop/late")),
        "{found:?}"
    );
    // A page that has no say is for its own clients.
    let page = of("web", &object("outrigger.io/v1", "TrafficRules", "service: reviews\ntimeout: 1s"));
    assert_eq!(severity(&producer, &page), "warning");
}
