//! Services that mean one port of the same Pods and say different things of what is spoken there. A Pod's sidecar hears one of them, and each
//! has its own clients: those of the others send what the Pod does not take.

use std::collections::BTreeMap;

use outrigger_rules::intent::{ServiceIntent, ServiceProtocol};

use super::{Cluster, Named};

/// Others that a Service is compared with, when it changes.
const MOST: usize = 16;

impl Cluster {
    /// What another Service of the same selector says otherwise, if one does.
    pub(in crate::registry::kubernetes) fn disputed(&self, (namespace, name): &Named) -> Option<String> {
        let services = self.services.get(namespace)?;
        let own = services.get(name).filter(|own| !own.selector.is_empty())?;
        let said: BTreeMap<(u16, &str), ServiceProtocol> = spoken(own).collect();
        let others = services.iter().filter(|(other, of)| *other != name && of.selector == own.selector);
        others.take(MOST).find_map(|(other, of)| {
            let mut all = spoken(of);
            let ((number, port), _) = all.find(|(target, protocol)| {
                said.get(target).is_some_and(|own| differs(*own, *protocol))
            })?;
            let port = if port.is_empty() { number.to_string() } else { port.to_owned() };
            Some(format!(
                "Service {other} has the same Pods and says something else of what their port {port} speaks: their sidecars go by the first of \
                 the two by name, and clients by the one that they call; say the same at both"
            ))
        })
    }
}

/// Ports of Pods, by number or by name, and what is spoken there.
fn spoken(service: &ServiceIntent) -> impl Iterator<Item = ((u16, &str), ServiceProtocol)> {
    service.ports.iter().map(|(own, port)| match port.target_name.as_str() {
        "" => ((port.target.unwrap_or(*own), ""), port.protocol),
        name => ((0, name), port.protocol),
    })
}

/// What is found out for each connection is no contradiction, unless the other says that it is bytes.
fn differs(one: ServiceProtocol, other: ServiceProtocol) -> bool {
    use ServiceProtocol::{Detect, Tcp};
    one != other && ([one, other].contains(&Tcp) || ![one, other].contains(&Detect))
}

#[cfg(test)]
mod tests {
    use super::super::SERVICE;
    use super::super::tests::{named, service};
    use super::*;

    #[test]
    fn services_that_say_different_things_of_one_port_are_told() {
        let told = |one: &str, other: &str, selector: &str| {
            let mut cluster = Cluster::default();
            let mut put = |name: &str, selector: &str, ports: &str| {
                let spec = format!("{{selector: {{app: {selector}}}, ports: [{ports}]}}");
                cluster.put(SERVICE, &named(name), service(name, &spec));
            };
            put("db", "db", one);
            put("db-read", selector, other);
            let both = [cluster.disputed(&named("db")), cluster.disputed(&named("db-read"))];
            both.map(|said| said.unwrap_or_default())
        };
        let bytes = "{port: 5432, name: tcp}";
        for (other, port) in [("{port: 5432}", "5432"), ("{port: 80, name: http, targetPort: 5432}", "5432")]
        {
            let [of_db, of_read] = told(bytes, other, "db");
            assert!(of_db.starts_with("Service db-read has the same Pods"), "{of_db}");
            assert!(
                of_read.starts_with("Service db has") && of_read.contains(&format!("port {port} ")),
                "{of_read}"
            );
        }
        let [by_name, _] =
            told("{port: 80, name: http, targetPort: web}", "{port: 81, name: grpc, targetPort: web}", "db");
        assert!(by_name.contains("port web "), "{by_name}");
        for (one, other, selector) in [
            (bytes, bytes, "db"),
            (bytes, "{port: 5433}", "db"),
            (bytes, "{port: 5432, name: http}", "another"),
            ("{port: 80, name: http}", "{port: 80, name: web}", "db"),
        ] {
            assert_eq!(told(one, other, selector), [""; 2], "{one} {other} {selector}");
        }
    }
}
