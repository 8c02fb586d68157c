use super::*;
use crate::explain::tests::GUARDED;
use crate::instance::{Instance, Protocol, State, sample};
use crate::world::sample;

fn at(region: &str, instance: Instance) -> Instance {
    Instance { region: region.to_owned(), ..instance }
}

fn described(rules: &str, service: &str, from: Option<&str>) -> Result<Description, Unexplained> {
    let mut away = sample("reviews-3", "reviews", "v2", "127.0.0.13", 8080, Protocol::Http);
    away.state = State::Maintenance;
    let mut same = sample("reviews-4", "reviews", "v1", "127.0.0.14", 8080, Protocol::Http);
    same.namespace = "other".into();
    let instances = vec![
        at("eu", sample("web-1", "web", "v1", "127.0.0.10", 8080, Protocol::Http)),
        at("eu", sample("reviews-1", "reviews", "v1", "127.0.0.11", 8080, Protocol::Http)),
        sample("reviews-2", "reviews", "v2", "127.0.0.12", 8080, Protocol::Http),
        away,
        same,
        sample("stock-1", "stock", "v1", "127.0.0.15", 7000, Protocol::Tcp),
    ];
    let query = DescribeQuery { service: service.into(), from: from.map(str::to_owned) };
    describe(&Arc::new(sample::world(instances, rules)), &sample::objects(rules), &query)
}

const RULES: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: web}
spec:
  host: reviews.shop.svc.cluster.local
  trafficPolicy: {outlierDetection: {consecutive5xxErrors: 9}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /new}, sourceLabels: {app: web}}]
    timeout: 2s
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]
";

fn rules() -> String {
    format!("{RULES}---\n{GUARDED}")
}

#[test]
fn what_holds_for_a_service_is_told_with_the_objects_that_say_so() {
    let answer = described(&rules(), "reviews.shop", Some("web")).unwrap();
    let [port] = answer.ports.as_slice() else { panic!("{:?}", answer.ports) };
    let routes: Vec<_> =
        port.routes.iter().map(|route| (route.name.as_str(), route.matches.as_str())).collect();
    assert_eq!(routes, [("reviews[0]", "the path begins with /new"), ("reviews[1]", "every request")]);
    assert_eq!(port.routes[0].origin.as_deref(), Some("VirtualService shop/reviews"));
    assert_eq!(port.routes[0].timeout.as_deref(), Some("2s"));
    let clusters: Vec<_> =
        port.clusters.iter().map(|part| (part.subset.as_str(), part.healthy, part.endpoints)).collect();
    assert_eq!(clusters, [("", Some(2), Some(3)), ("v1", Some(1), Some(1)), ("v2", Some(1), Some(2))]);
    assert_eq!(port.clusters[2].origin.as_deref(), Some("DestinationRule shop/reviews"));
    assert!(port.clusters[2].policy.contains(&"ejects for 30s after 3 errors in a row".to_owned()));
    let strict =
        ModeBody { mode: "STRICT".into(), origin: Some("PeerAuthentication shop/all".into()), instances: 3 };
    assert_eq!(port.mtls, [strict]);
    let origin = "AuthorizationPolicy shop/secrets".to_owned();
    assert_eq!(answer.policies, [PolicyBody { origin, action: "DENY".into(), rules: 1, instances: 2 }]);
    let lost: Vec<_> = answer.lost.iter().map(|lost| lost.origin.as_deref().unwrap_or_default()).collect();
    assert_eq!(lost, ["DestinationRule web/reviews"]);
    // Two that fight: each client has only one of them.
    let fight =
        answer.findings.iter().find(|finding| finding.message.contains("both define subsets or policy"));
    assert!(fight.is_some(), "{:?}", answer.findings);
}

#[test]
fn who_asks_decides_what_holds_and_nobody_is_guessed() {
    let anybody = described(&rules(), "shop/reviews", None).unwrap();
    assert_eq!(anybody.ports[0].routes.len(), 1, "the first route is for clients with a label");
    assert!(
        anybody.lost.iter().any(|lost| lost.why == "it is for clients with app=web"),
        "{:?}",
        anybody.lost
    );
    let bytes = described("", "stock", None).unwrap();
    assert_eq!(
        (bytes.ports[0].protocol.as_str(), bytes.ports[0].routes[0].matches.as_str()),
        ("tcp", "connections of bytes")
    );
    for (service, from, why) in [
        ("reviews", None, "may be reviews.other, reviews.shop"),
        ("nobody", None, "no service"),
        ("reviews.elsewhere", None, "no service"),
        ("reviews.shop", Some("nobody"), "no instance"),
    ] {
        let Err(Unexplained::Unknown(text)) = described(&rules(), service, from) else { panic!("{service}") };
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn which_endpoints_go_first_is_said_in_words_and_for_one_client_in_percent() {
    for (locality, words) in [
        ("{}", "the nearest endpoints first: the client's zone, its region, all others"),
        (
            "{failover: [{from: eu, to: us}]}",
            "the nearest endpoints first: the client's zone, its region, all others; from eu to us before other regions",
        ),
        (
            "{failoverPriority: [app, tier=a]}",
            "first the endpoints with the client's app, tier=a: the more of these, from the first, the sooner",
        ),
        (
            "{failoverPriority: [app], failover: [{from: eu, to: us}]}",
            "first the endpoints with the client's app: the more of these, from the first, the sooner, and of those that are alike the nearest; \
             from eu to us before other regions",
        ),
        (
            "{distribute: [{from: eu/*, to: {eu: 80, us: 20}}]}",
            "shares by place: 80% to eu, 20% to us from eu/*",
        ),
    ] {
        let rules = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews, namespace: shop}}\nspec:\n  host: reviews\n  \
             trafficPolicy: {{loadBalancer: {{localityLbSetting: {locality}}}}}\n"
        );
        let anybody = described(&rules, "shop/reviews", None).unwrap();
        let [cluster] = anybody.ports[0].clusters.as_slice() else { panic!("{anybody:?}") };
        let line = format!("{words}; whose these are depends on the client (--from)");
        assert!(cluster.policy.contains(&line), "{:?}", cluster.policy);
        assert_eq!(cluster.levels, []);
        let web = described(&rules, "shop/reviews", Some("web")).unwrap();
        let cluster = &web.ports[0].clusters[0];
        assert!(cluster.policy.iter().any(|line| line == words), "{:?}", cluster.policy);
        assert!(locality != "{}" || cluster.levels[0].percent == 100, "{:?}", cluster.levels);
        assert!(locality != "{}" || cluster.levels.len() == 2, "{:?}", cluster.levels);
    }
}
