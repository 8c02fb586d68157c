use crate::intent::{Intent, RouteIntent, SidecarIntent};
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
        assert_eq!(sidecar(hosts).imports_rule(&rule(rules)), holds, "{hosts} and {rules}");
    }
}
