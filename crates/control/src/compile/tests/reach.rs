//! Who takes requests, by name and by address.

use outrigger_model::endpoint::Health;

use super::*;

/// How the instances of the catalog are, and what callers of this cluster see of them.
fn seen(states: [State; 2], cluster: &str, yaml: &str) -> Vec<Health> {
    let mut instances = shop();
    (instances[1].state, instances[2].state) = (states[0], states[1]);
    let c = compiled(instances, yaml);
    match get(&c, &web(), ResourceKind::Endpoints, cluster) {
        Some(Resource::Endpoints(set)) => set.iter().map(|endpoint| endpoint.health).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_instance_that_is_not_ready_is_reached_by_its_own_address() {
    let at = |state| seen([state, State::Running], "outbound|8080||127.0.0.11", "");
    for state in [State::Running, State::Starting, State::Unhealthy, State::Stopping] {
        assert_eq!(at(state), [Health::Healthy], "{state:?}");
    }
    // An operator has taken it out.
    assert_eq!(at(State::Maintenance), [Health::Unhealthy]);
    assert_eq!(at(State::Stopped), []);
}

#[test]
fn who_is_ending_takes_requests_where_nobody_else_is() {
    let by_name = |states| seen(states, CATALOG, "");
    assert_eq!(by_name([State::Stopping, State::Running]), [Health::Draining, Health::Healthy]);
    assert_eq!(by_name([State::Stopping, State::Unhealthy]), [Health::Healthy, Health::Unhealthy]);
    assert_eq!(by_name([State::Unhealthy, State::Maintenance]), [Health::Unhealthy, Health::Unhealthy]);
    let service = "{apiVersion: v1, kind: Service, metadata: {name: catalog, namespace: shop}, spec: {ports: [{port: 8080}]}}";
    let described = |states| seen(states, CATALOG, service);
    assert_eq!(described([State::Stopping, State::Running]), [Health::Draining, Health::Healthy]);
    assert_eq!(described([State::Stopping, State::Starting]), [Health::Healthy, Health::Unhealthy]);
    let all = service.replace("ports:", "publishNotReadyAddresses: true, ports:");
    let published = |states| seen(states, CATALOG, &all);
    assert_eq!(published([State::Stopping, State::Starting]), [Health::Healthy; 2]);
    assert_eq!(published([State::Unhealthy, State::Maintenance]), [Health::Healthy, Health::Unhealthy]);
}
