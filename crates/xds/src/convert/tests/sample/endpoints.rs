//! Endpoints of a cluster.

use super::*;

fn endpoint<A: std::fmt::Debug>(address: impl Strategy<Value = A>) -> impl Strategy<Value = Endpoint<A>> {
    let workload = (text(), text(), text(), text())
        .prop_map(|(name, namespace, service, revision)| Workload { name, namespace, service, revision });
    let health = prop_oneof![Just(Health::Healthy), Just(Health::Unhealthy), Just(Health::Draining)];
    (address, 1_u32..1000, health, of(identity()), any::<bool>(), of(workload), of(name())).prop_map(
        |(address, weight, health, identity, mesh_tls, workload, hostname)| Endpoint {
            address,
            weight,
            health,
            identity,
            mesh_tls,
            workload: workload.map(Arc::new),
            hostname: hostname.map(Into::into),
            labels: None,
        },
    )
}

pub(super) fn endpoints() -> impl Strategy<Value = EndpointSet> {
    (name(), vec(locality(address(), 0..4), 0..4))
        .prop_map(|(cluster, localities)| EndpointSet::new(cluster, localities))
}

pub(super) fn locality<A: std::fmt::Debug>(
    address: impl Strategy<Value = A>,
    count: std::ops::Range<usize>,
) -> impl Strategy<Value = LocalityEndpoints<A>> {
    let place = (token(), token(), prop_oneof![token(), Just(String::new())])
        .prop_map(|(region, zone, sub_zone)| Locality { region, zone, sub_zone });
    (place, 0_u32..4, 0_u32..100, vec(endpoint(address), count)).prop_map(
        |(locality, priority, weight, endpoints)| LocalityEndpoints { locality, priority, weight, endpoints },
    )
}
