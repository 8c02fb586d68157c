//! Whom a Service of a cluster gives its clients: of their node, near them, or the same each time.

use std::collections::BTreeMap;

use outrigger_model::cluster::Balance;
use outrigger_model::route::HashOn;

use super::*;

fn pod(id: &str, host: u8, zone: &str, node: &str) -> Instance {
    let name = id.split('-').next().unwrap();
    let mut pod = sample(id, name, "v1", &format!("127.0.0.{host}"), 8080, Protocol::Http);
    pod.services = Some(vec![name.to_owned()]);
    pod.metadata = BTreeMap::from([("node".to_owned(), node.to_owned())]);
    (pod.region, pod.zone) = ("eu".into(), zone.into());
    pod
}

fn pods() -> Vec<Instance> {
    let mut far = pod("catalog-4", 24, "a", "");
    far.region = "us".into();
    vec![
        pod("web-1", 10, "a", "n1"),
        pod("catalog-1", 21, "a", "n1"),
        pod("catalog-2", 22, "a", "n2"),
        pod("catalog-3", 23, "b", "n3"),
        far,
    ]
}

fn service(of: &str, rule: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: catalog, namespace: shop}}
spec:
  {of}
  ports: [{{port: 8080, name: http}}]
{rule}"
    )
}

fn cluster(of: &str, rule: &str) -> Compiled {
    compiled(pods(), &service(of, rule))
}

/// The last parts of the addresses, by priority.
fn wanted(compiled: &Compiled, client: &Scope) -> Vec<Vec<u8>> {
    let Some(Resource::Endpoints(set)) = get(compiled, client, ResourceKind::Endpoints, CATALOG) else {
        panic!("no endpoints")
    };
    let mut found: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    for place in &set.localities {
        let hosts = place.endpoints.iter().map(|endpoint| match endpoint.address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        });
        found.entry(place.priority).or_default().extend(hosts);
    }
    found.into_values().collect()
}

#[test]
fn who_is_near_goes_first_and_others_stay_behind() {
    let zone: &[&[u8]] = &[&[21, 22], &[23], &[24]];
    for (said, expected) in [
        ("type: ClusterIP", &[&[21, 22, 23, 24][..]][..]),
        ("trafficDistribution: PreferClose", zone),
        ("trafficDistribution: PreferSameZone", zone),
        ("trafficDistribution: PreferSameNode", &[&[21], &[22], &[23], &[24]]),
        ("internalTrafficPolicy: Local", &[&[21]]),
    ] {
        let compiled = cluster(said, "");
        assert_eq!(wanted(&compiled, &web()), expected, "{said}");
    }
    // Who has no place is near nobody but those of its node.
    let nowhere = |said: &str| {
        let mut pods = pods();
        (pods[0].region, pods[0].zone) = Default::default();
        wanted(&compiled(pods, &service(said, "")), &web())
    };
    assert_eq!(nowhere("trafficDistribution: PreferSameZone"), [[21, 22, 23, 24]]);
    assert_eq!(nowhere("trafficDistribution: PreferSameNode"), [&[21][..], &[22, 23, 24]]);
    // Who is on no node has all of them.
    let elsewhere = Scope { instance: None, ..web() };
    assert_eq!(wanted(&cluster("internalTrafficPolicy: Local", ""), &elsewhere)[0].len(), 4);
    // A rule that says more goes before.
    let rule = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, trafficPolicy: {loadBalancer: {localityLbSetting: {enabled: false}}}}
";
    assert_eq!(wanted(&cluster("trafficDistribution: PreferSameZone", rule), &web()).len(), 1);
}

#[test]
fn a_client_keeps_the_same_one_unless_a_rule_balances_otherwise() {
    let rule = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
";
    for (rule, sticky) in [("", true), (rule, false)] {
        let compiled = cluster("sessionAffinity: ClientIP", rule);
        let Some(Resource::Cluster(cluster)) = get(&compiled, &web(), ResourceKind::Cluster, CATALOG) else {
            panic!("no cluster")
        };
        assert_eq!(cluster.balance.hashes(), sticky, "{:?}", cluster.balance);
        assert!(sticky || cluster.balance == Balance::Random);
        let Some(Resource::Routes(route)) = get(&compiled, &web(), ResourceKind::Routes, CATALOG) else {
            panic!("no routes")
        };
        let RouteAction::Forward(forward) = &route.virtual_hosts[0].routes[0].action else {
            panic!("{route:?}")
        };
        let expected = if sticky { vec![HashOn::SourceAddress] } else { Vec::new() };
        assert_eq!(forward.hash, expected);
    }
}

/// Whom an EndpointSlice means its endpoints for, where each has a word of it.
#[test]
fn hints_of_endpoint_slices_are_followed_where_all_have_them_and_one_is_the_client_s() {
    let hinted = |zones: [&str; 4], nodes: [&str; 4], state: [State; 4]| {
        let mut pods = pods();
        for (pod, ((zone, node), state)) in pods[1..].iter_mut().zip(zones.into_iter().zip(nodes).zip(state))
        {
            for (key, said) in
                [("for-zones/catalog", zone), ("for-nodes/catalog", node), ("for-zones/other", "z")]
            {
                if !said.is_empty() {
                    pod.metadata.insert(key.to_owned(), said.to_owned());
                }
            }
            pod.state = state;
        }
        wanted(&compiled(pods, &service("type: ClusterIP", "")), &web()).concat()
    };
    let (none, up) = ([""; 4], [State::Running; 4]);
    let ill = [State::Running, State::Running, State::Running, State::Unhealthy];
    for (zones, nodes, state, expected) in [
        (["a", "b", "b,a", "b"], none, up, &[21, 23][..]),
        // One that is ready has none, one that is not need not have any.
        (["a", "b", "b", ""], none, up, &[21, 22, 23, 24]),
        (["a", "b", "b", ""], none, ill, &[21]),
        // Nobody is meant for the client's zone.
        (["b", "b", "c", "ab"], none, up, &[21, 22, 23, 24]),
        // A node goes before a zone, unless nobody is meant for it.
        (["b", "a", "a", "a"], ["n1", "n2", "n2", "n2"], up, &[21]),
        (["b", "a", "b", "b"], ["n2"; 4], up, &[22]),
    ] {
        assert_eq!(hinted(zones, nodes, state), expected, "{zones:?} {nodes:?}");
    }
    // Who is nowhere has all of them.
    let mut pods = pods();
    pods[1..].iter_mut().for_each(|pod| drop(pod.metadata.insert("for-zones/catalog".into(), "a".into())));
    pods[0].zone = String::new();
    assert_eq!(wanted(&compiled(pods, &service("type: ClusterIP", "")), &web()).concat().len(), 4);
}
