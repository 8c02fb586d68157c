//! Services that users describe instead of registering them, by host and by address; and the workloads that they may select.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use outrigger_rules::intent::{
    Host, IpFamily, ObjectKind, Resolution, ServiceIntent, ServicePort, ServiceProtocol, WorkloadIntent,
};

use crate::instance::{Instance, Protocol};

/// All of them.
#[derive(Debug, Default)]
pub struct Described {
    /// By origin.
    pub(crate) services: Vec<Arc<ServiceIntent>>,
    /// By origin.
    pub(crate) entries: Vec<Arc<WorkloadIntent>>,
    by_host: BTreeMap<Host, Vec<Arc<ServiceIntent>>>,
    /// Of addresses of one's own: a cluster has thousands.
    exact: HashMap<IpAddr, Vec<Host>>,
    /// All others, the longest first.
    blocks: Vec<(IpNet, Host)>,
    workloads: BTreeMap<String, Vec<Arc<WorkloadIntent>>>,
}

/// A port of a service as the clients of a namespace see it.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// What it speaks.
    pub protocol: Protocol,
    /// Who describes it; absent where instances alone do.
    pub described: Option<&'a Arc<ServiceIntent>>,
}

impl Described {
    /// In the order of the objects' names, so that the result does not depend on the order of application.
    /// A description counts where `may` says that its namespace has a say in the host.
    pub(crate) fn new(
        mut services: Vec<Arc<ServiceIntent>>,
        mut workloads: Vec<Arc<WorkloadIntent>>,
        may: impl Fn(&Host, &str) -> bool,
    ) -> Self {
        services.sort_by(|a, b| a.origin.cmp(&b.origin));
        workloads.sort_by(|a, b| a.origin.cmp(&b.origin));
        let mut described = Self::default();
        for service in &services {
            for host in service.hosts.iter().filter(|host| may(host, &service.origin.namespace)) {
                for block in &service.addresses {
                    match block.prefix_len() == block.max_prefix_len() {
                        true => {
                            let at = described.exact.entry(block.addr()).or_default();
                            // The address that the cluster gave to a Service is not another's to describe.
                            let of_cluster = service.origin.kind == ObjectKind::Service;
                            at.insert(if of_cluster { 0 } else { at.len() }, host.clone());
                        }
                        false => described.blocks.push((*block, host.clone())),
                    }
                }
                described.by_host.entry(host.clone()).or_default().push(service.clone());
            }
        }
        described.blocks.sort_by_key(|(block, _)| std::cmp::Reverse(block.prefix_len()));
        for workload in &workloads {
            let namespace = workload.origin.namespace.clone();
            described.workloads.entry(namespace).or_default().push(workload.clone());
        }
        Self { services, entries: workloads, ..described }
    }

    /// The hosts.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.by_host.keys()
    }

    /// Those who describe a host, by origin.
    pub(crate) fn of(&self, host: &Host) -> &[Arc<ServiceIntent>] {
        self.by_host.get(host).map_or(&[], Vec::as_slice)
    }

    /// The hosts that an address was said to stand for, the narrowest block first.
    pub(crate) fn at(&self, address: IpAddr) -> impl Iterator<Item = &Host> {
        let exact = self.exact.get(&address).into_iter().flatten();
        exact.chain(
            self.blocks.iter().filter(move |(block, _)| block.contains(&address)).map(|(_, host)| host),
        )
    }

    /// The described workloads of a namespace.
    pub(crate) fn workloads(&self, namespace: &str) -> &[Arc<WorkloadIntent>] {
        self.workloads.get(namespace).map_or(&[], Vec::as_slice)
    }
}

/// The port at which an instance serves a described port of this number.
pub(crate) fn target(port: &ServicePort, number: u16, instance: &Instance) -> Option<u16> {
    let name = port.target_name.as_str();
    let named = instance.ports.iter().find(|port| port.is_called(name));
    let number = if name.is_empty() { port.target.or(Some(number)) } else { port.target };
    named.or_else(|| number.and_then(|number| instance.port(number))).map(|port| port.number)
}

/// The address at which an instance serves it: of the family that is meant, if it has one.
pub(crate) fn address(service: &ServiceIntent, instance: &Instance) -> Option<IpAddr> {
    let of = |family: &IpFamily| instance.addresses.iter().find(|address| IpFamily::of(**address) == *family);
    service.families.iter().find_map(of).or(instance.addresses.first()).copied()
}

/// Whether the name stands for those who serve it, at their own addresses.
pub(crate) fn is_headless(described: &[Arc<ServiceIntent>]) -> bool {
    described.iter().any(|service| service.headless)
}

/// Whether an address can stand for the service: one that goes where the client was going must leave it its way.
pub(crate) fn wants_address(host: &Host, described: &[Arc<ServiceIntent>]) -> bool {
    let wants =
        |service: &Arc<ServiceIntent>| service.resolution != Resolution::None && service.addresses.is_empty();
    !host.is_wildcard() && described.iter().any(wants)
}

/// What an instance's port would say.
pub(crate) fn protocol(described: ServiceProtocol) -> Protocol {
    match described {
        ServiceProtocol::Detect => Protocol::Auto,
        ServiceProtocol::Http => Protocol::Http,
        ServiceProtocol::Http2 => Protocol::Http2,
        ServiceProtocol::Grpc => Protocol::Grpc,
        ServiceProtocol::Tls => Protocol::Tls,
        ServiceProtocol::Tcp => Protocol::Tcp,
    }
}

#[cfg(test)]
mod tests {
    use crate::world::sample::world;

    #[test]
    fn the_address_that_a_cluster_gave_to_a_service_is_not_anothers() {
        let rules = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: mine, namespace: evil}
spec: {hosts: [x.evil.example], addresses: [10.96.0.7, 10.96.0.0/16], resolution: STATIC, ports: [{number: 80}], endpoints: [{address: 192.0.2.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}
";
        let world = world(Vec::new(), rules);
        let at = |address: &str| -> Vec<String> {
            world.described_at(address.parse().unwrap()).map(|host| host.as_str().to_owned()).collect()
        };
        assert_eq!(at("10.96.0.7"), ["catalog.shop.svc.cluster.local", "x.evil.example", "x.evil.example"]);
        assert_eq!(at("10.96.0.8"), ["x.evil.example"]);
    }
}
