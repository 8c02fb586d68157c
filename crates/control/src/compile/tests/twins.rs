//! Workloads that two registries know.

use outrigger_model::endpoint::Health::{Healthy, Unhealthy};

use super::*;

#[test]
fn a_workload_in_two_registries_is_one_endpoint() {
    let twice = |states: [State; 2]| {
        let mut one = sample("catalog@n1.dc1", "catalog", "v1", "127.0.0.11", 8080, Protocol::Http);
        let mut other = Instance { id: "catalog-1".into(), weight: 300, ..one.clone() };
        (other.state, one.state) = (states[0], states[1]);
        let far = sample("catalog-2", "catalog", "v1", "127.0.0.12", 8080, Protocol::Http);
        let compiled = compiled(vec![one, other, far], "");
        let Some(Resource::Endpoints(set)) = get(&compiled, &web(), ResourceKind::Endpoints, CATALOG) else {
            panic!("no endpoints");
        };
        let all = set.iter().filter(|e| e.address.ip().to_string() == "127.0.0.11");
        let all: Vec<_> = all.map(|e| (e.health, e.weight)).collect();
        assert_eq!((all.len(), set.iter().count()), (1, 2), "{set:?}");
        all[0]
    };
    assert_eq!(twice([State::Running, State::Running]), (Healthy, 300), "the first by its id");
    assert_eq!(twice([State::Unhealthy, State::Running]), (Healthy, 100), "who takes requests");
    assert_eq!(twice([State::Running, State::Maintenance]), (Unhealthy, 100), "an operator's word");
}

#[test]
fn a_workload_in_two_registries_keeps_its_sidecar_its_network_and_its_identity() {
    let own = sample("catalog-v1", "catalog", "v1", "127.0.0.11", 8080, Protocol::Http);
    let plain = Instance { id: "127.0.0.11:8080@catalog".into(), sidecar: false, ..own.clone() };
    let at = |instances: Vec<Instance>, yaml: &str, name: &str| {
        let compiled = compiled(
            [vec![sample("web-1", "web", "v1", "127.0.0.10", 8080, Protocol::Http)], instances].concat(),
            yaml,
        );
        let Some(Resource::Endpoints(set)) = get(&compiled, &web(), ResourceKind::Endpoints, name) else {
            panic!("no endpoints");
        };
        set.iter().map(|e| (e.health, e.mesh_tls, e.identity.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(at(vec![own.clone(), plain.clone()], "", CATALOG), [(Healthy, true, true)]);
    let stopped = Instance { state: State::Stopped, ..own.clone() };
    assert_eq!(at(vec![stopped, plain.clone()], "", CATALOG), [(Healthy, false, false)]);
    let elsewhere =
        Instance { network: "edge".into(), id: "other".into(), state: State::Maintenance, ..own.clone() };
    assert_eq!(at(vec![own.clone(), elsewhere], "", CATALOG).len(), 2, "of another network");
    let foreign = Instance { service_account: "mallory".into(), id: "a".into(), ..own.clone() };
    assert_eq!(at(vec![own.clone(), foreign.clone()], "", CATALOG).len(), 2, "of another identity");
    // Whoever calls the address itself means who has it.
    let called = "outbound|8080||127.0.0.11";
    let open = Instance { sidecar: false, ..foreign.clone() };
    for (other, named) in [(foreign, "mallory"), (open, "catalog")] {
        let all = compiled(vec![own.clone(), other], "");
        let Some(Resource::Endpoints(set)) = get(&all, &web(), ResourceKind::Endpoints, called) else {
            panic!("no endpoints");
        };
        let who: Vec<_> = set.iter().filter_map(|e| e.identity.as_ref().map(ToString::to_string)).collect();
        assert!(who.len() == 1 && who[0].ends_with(named), "{who:?}");
    }
    // A neighbour on the same host, with another port, is out.
    let mut beside = Instance { id: "catalog-2".into(), state: State::Maintenance, ..own.clone() };
    beside.ports[0].number = 8081;
    assert_eq!(at(vec![own.clone(), beside], "", CATALOG), [(Healthy, true, true)]);
    // Taken out in one, and asked for by the label of the other.
    let labelled = |instance: &Instance, from: &str, state| {
        let labels = [("from".to_owned(), from.to_owned())].into();
        Instance { labels, state, ..instance.clone() }
    };
    let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, subsets: [{name: new, labels: {from: etcd}}]}
";
    let new = "outbound|8080|new|catalog.shop.svc.cluster.local";
    for (state, health) in [(State::Running, Healthy), (State::Maintenance, Unhealthy)] {
        let both = vec![labelled(&own, "etcd", State::Running), labelled(&plain, "consul", state)];
        assert_eq!(at(both, rule, new), [(health, true, true)]);
    }
}
