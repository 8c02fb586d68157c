use std::net::SocketAddr;

use outrigger_model::endpoint::Health;
use outrigger_model::endpoint::spread::Bearing;
use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_xds::ClientKind;

use super::*;
use crate::compile::tests::{CATALOG, compiled, get, scope};
use crate::instance::{Instance, Protocol, State, sample};

fn at(id: &str, host: u8, place: &str) -> Instance {
    let service = id.split('-').next().unwrap();
    let mut instance = sample(id, service, "v1", &format!("127.0.0.{host}"), 8080, Protocol::Http);
    let mut parts = place.splitn(3, '/').map(str::to_owned);
    instance.region = parts.next().unwrap_or_default();
    instance.zone = parts.next().unwrap_or_default();
    instance.metadata.extend(parts.next().map(|part| ("subZone".to_owned(), part)));
    instance
}

fn mesh(client: &str) -> Vec<Instance> {
    let mut heavy = at("catalog-4", 24, "us/a");
    heavy.weight = 300;
    vec![
        at("web-1", 10, client),
        at("catalog-1", 21, "eu/a"),
        at("catalog-2", 22, "eu/b"),
        at("catalog-3", 23, "us/a"),
        heavy,
        at("catalog-5", 25, "asia/a"),
    ]
}

fn rule(setting: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: catalog, namespace: shop}}
spec: {{host: catalog, trafficPolicy: {{loadBalancer: {{localityLbSetting: {setting}}}}}}}
"
    )
}

#[test]
fn weights_that_no_client_could_add_up_keep_their_proportion() {
    let endpoint = |weight: u32| {
        let mut instance = at("catalog-1", 21, "eu/a");
        instance.weight = weight;
        let compiled = compiled(vec![at("web-1", 10, "eu/a"), instance], "");
        let web = scope(ClientKind::Outrigger, "web", "web-1");
        let Some(Resource::Endpoints(set)) = get(&compiled, &web, ResourceKind::Endpoints, CATALOG) else {
            panic!("no endpoints")
        };
        set.localities[0].endpoints[0].clone()
    };
    let mut all = vec![endpoint(1_000_000); 6_000];
    all.push(endpoint(1));
    fit(&mut all);
    let sum: u64 = all.iter().map(|one| u64::from(one.weight)).sum();
    assert!(sum <= u64::from(u32::MAX) && sum > u64::from(u32::MAX) * 99 / 100, "{sum}");
    assert_eq!((all[0].weight, all[6_000].weight), (all[1].weight, 1));
    let mut few = vec![endpoint(7), endpoint(3)];
    fit(&mut few);
    assert_eq!((few[0].weight, few[1].weight), (7, 3));
}

/// Region, zone, priority and weight of each place.
fn places(client: &str, setting: &str) -> Vec<(String, u32, u32)> {
    places_by(client, &rule(setting))
}

fn places_by(client: &str, rules: &str) -> Vec<(String, u32, u32)> {
    let compiled = compiled(mesh(client), rules);
    let web = scope(ClientKind::Outrigger, "web", "web-1");
    let Some(Resource::Endpoints(set)) = get(&compiled, &web, ResourceKind::Endpoints, CATALOG) else {
        panic!("no endpoints")
    };
    let place =
        |p: &LocalityEndpoints| (format!("{}/{}", p.locality.region, p.locality.zone), p.priority, p.weight);
    set.localities.iter().map(place).collect()
}

fn priorities(client: &str, setting: &str) -> Vec<(String, u32)> {
    places(client, setting).into_iter().map(|(place, priority, _)| (place, priority)).collect()
}

fn wanted(places: &[(&str, u32)]) -> Vec<(String, u32)> {
    places.iter().map(|(place, priority)| ((*place).to_owned(), *priority)).collect()
}

#[test]
fn the_nearest_go_first_and_priorities_have_no_gap() {
    let near = wanted(&[("eu/a", 0), ("eu/b", 1), ("asia/a", 2), ("us/a", 2)]);
    assert_eq!(priorities("eu/a", "{}"), near);
    assert_eq!(priorities("eu/c", "{}"), wanted(&[("eu/a", 0), ("eu/b", 0), ("asia/a", 1), ("us/a", 1)]));
    let all = wanted(&[("asia/a", 0), ("eu/a", 0), ("eu/b", 0), ("us/a", 0)]);
    assert_eq!(priorities("africa/a", "{}"), all, "nobody is near");
    assert_eq!(priorities("/a", "{}"), all, "it says no region");
    assert_eq!(priorities("eu/a", "{enabled: false}"), all);
    let over = "{failover: [{from: eu, to: us}]}";
    assert_eq!(priorities("eu/a", over), wanted(&[("eu/a", 0), ("eu/b", 1), ("us/a", 2), ("asia/a", 3)]));
    assert_eq!(priorities("asia/a", over), wanted(&[("asia/a", 0), ("eu/a", 1), ("eu/b", 1), ("us/a", 1)]));
}

#[test]
fn within_a_zone_its_parts_are_nearer_and_farther() {
    let all = vec![
        at("web-1", 10, "eu/a/r1"),
        at("catalog-1", 21, "eu/a/r1"),
        at("catalog-2", 22, "eu/a/r2"),
        at("catalog-3", 23, "eu/b/r1"),
        at("catalog-4", 24, "us/a/r1"),
    ];
    let by_label = "{failoverPriority: [topology.kubernetes.io/region, topology.kubernetes.io/zone, topology.istio.io/subzone]}";
    for setting in ["{}", by_label] {
        let compiled = compiled(all.clone(), &rule(setting));
        let web = scope(ClientKind::Outrigger, "web", "web-1");
        let Some(Resource::Endpoints(set)) = get(&compiled, &web, ResourceKind::Endpoints, CATALOG) else {
            panic!("no endpoints")
        };
        let place = |p: &LocalityEndpoints| {
            (format!("{}/{}/{}", p.locality.region, p.locality.zone, p.locality.sub_zone), p.priority)
        };
        let found: Vec<_> = set.localities.iter().map(place).collect();
        assert_eq!(
            found,
            wanted(&[("eu/a/r1", 0), ("eu/a/r2", 1), ("eu/b/r1", 2), ("us/a/r1", 3)]),
            "{setting}"
        );
    }
}

#[test]
fn of_those_that_are_alike_by_labels_a_failover_makes_the_nearest_go_first() {
    let setting = "{failoverPriority: [version], failover: [{from: eu, to: us}]}";
    let order = wanted(&[("eu/a", 0), ("eu/b", 1), ("us/a", 2), ("asia/a", 3)]);
    assert_eq!(priorities("eu/a", setting), order, "all are of the client's version");
    // A place where nobody has the label comes last, however near it is.
    let setting =
        "{failoverPriority: ['topology.kubernetes.io/region=asia'], failover: [{from: eu, to: us}]}";
    let order = wanted(&[("asia/a", 0), ("eu/a", 1), ("eu/b", 2), ("us/a", 3)]);
    assert_eq!(priorities("eu/a", setting), order);
    let alike = wanted(&[("asia/a", 0), ("eu/a", 0), ("eu/b", 0), ("us/a", 0)]);
    assert_eq!(priorities("/a", "{failoverPriority: [version], failover: [{from: eu, to: us}]}"), alike);
}

#[test]
fn shares_go_where_the_rule_says_and_nowhere_else() {
    let setting = "{distribute: [{from: eu/*, to: {eu/a: 70, eu: 10, us: 20}}]}";
    let found = places("eu/b", setting);
    let of = |place: &str, share: u32| (place.to_owned(), 0, share * 1_000);
    assert_eq!(found, [of("eu/a", 70), of("eu/b", 10), of("us/a", 20)], "asia has no share");
    assert_eq!(places("us/a", setting).len(), 4, "nothing is said of clients there");
    let page = "apiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {name: catalog, namespace: shop}\nspec:\n  service: catalog\n  \
                loadBalancing: {locality: {distribute: [{from: eu, to: {eu/a: 0, '*': 100}}]}}\n";
    let apart = places_by("eu/a", page);
    assert_eq!(
        apart.iter().map(|(place, ..)| place.as_str()).collect::<Vec<_>>(),
        ["asia/a", "eu/b", "us/a"]
    );
    let weights: Vec<u32> = apart.iter().map(|(.., weight)| *weight).collect();
    assert_eq!(weights, [16_666, 16_666, 66_666], "by what serves there: 100, 100 and 400 of 600");
}

#[test]
fn a_place_gets_the_share_of_those_of_it_that_serve() {
    let mut instances = vec![at("web-1", 10, "eu/c")];
    for host in 0..10 {
        let mut leaving = at(&format!("catalog-a{host}"), 30 + host, "eu/a");
        leaving.state = if host < 2 { State::Running } else { State::Stopping };
        instances.push(leaving);
        let mut failing = at(&format!("catalog-b{host}"), 50 + host, "eu/b");
        failing.state = if host < 8 { State::Running } else { State::Unhealthy };
        instances.push(failing);
    }
    for rule in ["", &rule("{}")] {
        let compiled = compiled(instances.clone(), rule);
        let web = scope(ClientKind::Outrigger, "web", "web-1");
        let Some(Resource::Endpoints(set)) = get(&compiled, &web, ResourceKind::Endpoints, CATALOG) else {
            panic!("no endpoints")
        };
        let parts: Vec<_> = set.localities.iter().map(|place| Bearing::of(place).whole()).collect();
        assert_eq!((parts.len(), parts[0] * 8), (2, parts[1] * 2), "two serve here, and eight there");
    }
}

#[test]
fn an_envoy_goes_by_places_only_where_they_have_shares() {
    for (setting, by_place) in [
        ("{}", false),
        ("{enabled: false}", false),
        ("{distribute: [{from: us/*, to: {eu: 100}}]}", false),
        ("{distribute: [{from: eu/*, to: {eu: 70, us: 30}}]}", true),
    ] {
        let compiled = compiled(mesh("eu/a"), &rule(setting));
        let web = scope(ClientKind::Envoy, "web", "web-1");
        let Some(Resource::Cluster(cluster)) = get(&compiled, &web, ResourceKind::Cluster, CATALOG) else {
            panic!("no cluster")
        };
        assert_eq!(cluster.place_weights, by_place, "{setting}");
    }
}

#[test]
fn an_address_comes_once_whatever_came_before() {
    let (here, there) = (Locality::default(), Locality { region: "eu".into(), ..Locality::default() });
    let endpoint = |port| Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port)));
    let (mut places, none) = (Places::alike(), Labels::new());
    let spot = |place: &Locality| Spot { locality: place.clone(), labels: &none, node: None };
    places.put(spot(&here), endpoint(1));
    for port in [1, 2, 2] {
        places.put_once(spot(&here), endpoint(port));
    }
    places.put(spot(&here), endpoint(3));
    places.put_once(spot(&here), endpoint(3));
    places.retain(|endpoint| endpoint.address.port() != 2);
    for port in [1, 2] {
        places.put_once(spot(&here), endpoint(port));
        places.put_once(spot(&there), endpoint(port));
    }
    let set = places.into_set("c");
    let ports: Vec<Vec<u16>> = set
        .localities
        .iter()
        .map(|place| place.endpoints.iter().map(|endpoint| endpoint.address.port()).collect())
        .collect();
    assert_eq!(ports, [vec![1, 3, 2], vec![1, 2]]);
    assert!(set.iter().all(|endpoint| endpoint.health == Health::Healthy));
}

#[test]
fn labels_in_common_go_before_places() {
    let mut own = Labels::new();
    own.extend([("rack".to_owned(), "7".to_owned()), ("row".to_owned(), "b".to_owned())]);
    let endpoint = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let priority =
        [("row".to_owned(), None), ("rack".to_owned(), None), ("tier".to_owned(), Some("gold".to_owned()))];
    for (labels, rank) in [
        (endpoint(&[("row", "b"), ("rack", "7"), ("tier", "gold")]), 0),
        (endpoint(&[("row", "b"), ("rack", "7")]), 1),
        (endpoint(&[("row", "b"), ("tier", "gold")]), 2),
        (endpoint(&[("rack", "7"), ("tier", "gold")]), 3),
        (endpoint(&[]), 3),
    ] {
        assert_eq!(
            by_labels(&priority, (None, Some(&own), None), (None, Some(&labels), None)),
            rank,
            "{labels:?}"
        );
    }
    assert_eq!(
        by_labels(&priority[..1], (None, None, None), (None, None, None)),
        0,
        "what neither has is alike"
    );
    let near = wanted(&[("eu/a", 0), ("eu/b", 1), ("asia/a", 2), ("us/a", 2)]);
    let istio = "{failoverPriority: [topology.kubernetes.io/region, topology.kubernetes.io/zone]}";
    assert_eq!(priorities("eu/a", istio), near, "places are labels, too");
}
