use crate::host::Resolver;
use crate::intent::{Intent, Origin, RouteIntent, SidecarIntent};
use crate::testing::{object, objects, route};

fn sidecar(hosts: &str) -> SidecarIntent {
    let text = object("networking.istio.io/v1", "Sidecar", &format!("egress: [{{hosts: [{hosts}]}}]"));
    match objects(&text).remove(0).intents.remove(0) {
        Intent::Sidecar(intent) => intent,
        other => panic!("{other:?}"),
    }
}

fn rule(hosts: &str) -> RouteIntent {
    let spec = format!("hosts: [{hosts}]\nhttp: [{{route: [{{destination: {{host: a}}}}]}}]\n");
    route(&object("networking.istio.io/v1", "VirtualService", &spec))
}

#[test]
fn a_dot_is_the_namespace_of_the_workload() {
    let host = |name: &str| Resolver::default().service(name, "bank");
    let knows = |hosts: &str, own: &str, name: &str| sidecar(hosts).imports(own, "bank", &host(name), 80);
    // It is in shop itself, as one of the root namespace is in that.
    for (hosts, name, known) in [
        ("./*", "pay", true),
        ("./pay", "pay", true),
        ("./pay", "payment", false),
        ("./pay.bank.svc.cluster.local", "pay", true),
        ("'./*.svc.cluster.local'", "pay", true),
        ("'*/*', ~./pay", "pay", false),
        ("'*/*', ~./pay", "stock", true),
    ] {
        assert_eq!(knows(hosts, "bank", name), known, "{hosts} and {name} to bank");
    }
    assert!(!knows("./*", "shop", "pay") && !knows("./pay", "shop", "pay"));
    assert!(knows("'*/*', ~./pay", "shop", "pay"), "it is excluded for its own namespace alone");
    assert!(sidecar("bank/*, ./a").is_relative() && !sidecar("bank/*, '*/*'").is_relative());
    let theirs = |text: &str| RouteIntent {
        origin: Origin { namespace: "bank".into(), ..rule(text).origin },
        ..rule(text)
    };
    let pay = "pay.bank.svc.cluster.local";
    assert!(sidecar("./pay").imports_rule("bank", &theirs(pay)));
    assert!(sidecar("./pay").imports_rule("bank", &theirs("'*.svc.cluster.local'")));
    assert!(!sidecar("./pay").imports_rule("shop", &theirs(pay)));
}

#[test]
fn rules_of_what_is_not_known_do_not_hold() {
    for (hosts, rules, holds) in [
        ("'*/*'", "reviews", true),
        ("./*", "reviews", true),
        ("bank/*", "reviews", false),
        ("bank/*, ./reviews", "reviews", true),
        ("./other", "reviews", false),
        ("./other", "reviews, other", true),
        ("./a.example.com", "'*.example.com'", true),
        ("./a.example.org", "'*.example.com'", false),
        ("'*/*', ~./reviews", "reviews", false),
        ("'*/*', ~./reviews", "reviews, other", true),
    ] {
        assert_eq!(sidecar(hosts).imports_rule("shop", &rule(rules)), holds, "{hosts} and {rules}");
    }
}
