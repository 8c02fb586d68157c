//! A network in which the address of a Service never comes to a sidecar: something on the nodes has turned it into a Pod's when the application
//! connected. Then what rules say of the Service has no effect, and nothing fails that would tell.
//!
//! Known by what sidecars ask for: nothing is counted where requests go by. Whether it is so nobody here can know, so it is said as what is seen.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use outrigger_model::resource::ResourceKind;
use outrigger_xds::server::Audience;

use crate::canonical;
use crate::world::World;

/// Pods that are called at their own addresses, and sidecars that call them so, from which on it is said: one that scrapes Pods means them.
const LEAST: (usize, usize) = (3, 2);

/// Addresses that are looked at: names that sidecars hold are copied under a lock that every stream takes.
const MOST_LOOKED_AT: usize = 100_000;

/// What an operator should know of it.
pub(super) fn notice(audience: &Audience, world: &World) -> Option<String> {
    let mut called: Vec<(IpAddr, Vec<u64>)> = Vec::new();
    audience.any_held(ResourceKind::Destination, |name, streams| {
        let address = name.split_once('/').and_then(|(_, address)| address.parse::<SocketAddr>().ok());
        called.extend(address.map(|address| (address.ip(), streams.to_vec())));
        called.len() >= MOST_LOOKED_AT
    });
    let is_service = |ip: IpAddr| world.virtual_at(ip).is_some() || world.described_at(ip).next().is_some();
    if called.iter().any(|(ip, _)| is_service(*ip)) {
        return None;
    }
    let (mut pods, mut callers) = (BTreeSet::new(), BTreeSet::<u64>::new());
    let mut such: Option<String> = None;
    for (ip, streams) in called {
        if let Some(service) = member_of(world, ip) {
            pods.insert(ip);
            callers.extend(streams);
            such = such.into_iter().chain([service]).min();
        }
    }
    let such = such.filter(|_| pods.len() >= LEAST.0 && callers.len() >= LEAST.1)?;
    Some(format!(
        "{} sidecars call addresses of Pods ({}, such as of {such}) and none calls a Service's. Where applications call Services, something on the \
         nodes turns their addresses into Pods' before the sidecar sees them (Cilium's socketLB, Calico's eBPF), and what rules say of a Service has no effect \
         on such calls: docs/kubernetes.md, \"What else is on the cluster\"",
        callers.len(),
        pods.len()
    ))
}

/// The Service that a Pod with this address serves, if each of its Services has an address of its own: whoever calls a member of another means
/// that one.
fn member_of(world: &World, ip: IpAddr) -> Option<String> {
    let pod = world.instances_at(ip).next().filter(|pod| pod.metadata.contains_key(canonical::UID))?;
    let first = pod.serves().first()?;
    let mut all = world.served_by(pod).map(|host| world.service(&host));
    let has_address = all.all(|service| {
        service.is_some_and(|service| {
            !service.is_headless() && service.described.iter().any(|intent| !intent.addresses.is_empty())
        })
    });
    has_address.then(|| format!("{first}.{}", pod.namespace))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::instance::{Instance, Protocol, sample};
    use crate::world::sample::world;

    const SERVICES: &str = "apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: catalog}, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432, name: tcp}]}
";

    fn pod(host: u8, services: &[&str]) -> Instance {
        let id = format!("pod-{host}");
        let mut pod = sample(&id, "pod", "v1", &format!("10.1.0.{host}"), 8080, Protocol::Http);
        pod.services = Some(services.iter().map(|name| (*name).to_owned()).collect());
        pod.metadata = BTreeMap::from([(canonical::UID.to_owned(), id)]);
        pod
    }

    #[test]
    fn that_calls_come_at_addresses_of_pods_alone_is_said_and_nothing_is_where_a_service_is_called() {
        let pods = [(1, "catalog"), (2, "catalog"), (3, "catalog"), (4, "db"), (5, "db"), (6, "db")];
        let mut pods: Vec<Instance> = pods.iter().map(|(host, service)| pod(*host, &[service])).collect();
        // Its members are called by their own addresses, whatever else it serves.
        pods.push(pod(7, &["catalog", "db"]));
        let world = world(pods, SERVICES);
        let audience = Audience::new(7);
        let [one, two] = ["one", "two"].map(|subject| audience.join(Some(subject)));
        let hold = |seat: &outrigger_xds::server::Seat, name: &str| {
            drop(seat.hold(ResourceKind::Destination, name));
        };
        let said = || notice(&audience, &world);
        assert_eq!(said(), None);
        for host in 4..=7 {
            hold(&one, &format!("/10.1.0.{host}:8080"));
            hold(&two, &format!("/10.1.0.{host}:8080"));
        }
        hold(&one, "/10.1.0.1:8080");
        hold(&two, "/10.1.0.2:8080");
        assert_eq!(said(), None, "two may be meant so");
        hold(&two, "/10.1.0.3:8080");
        let text = said().unwrap();
        assert!(text.starts_with("2 sidecars") && text.contains("(3, such as of catalog.shop)"), "{text}");
        // Another name, and an address of nobody's, say nothing.
        hold(&one, "catalog.shop.svc.cluster.local:80");
        hold(&one, "/192.0.2.1:443");
        assert_eq!(said().as_ref(), Some(&text));
        hold(&one, "/10.96.0.7:80");
        assert_eq!(said(), None, "somebody calls a Service");
        one.let_go(ResourceKind::Destination, "/10.96.0.7:80");
        one.let_go(ResourceKind::Destination, "/10.1.0.1:8080");
        hold(&two, "/10.1.0.1:8080");
        assert_eq!(said(), None, "one alone may mean Pods, as whoever scrapes them does");
    }
}
