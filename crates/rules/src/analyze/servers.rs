//! Servers that are not the mesh's: TLS whose server is not tied to roots of one's own, bytes that no name leads to.

use super::{Scene, finding, joined, short};
use crate::finding::{Finding, Severity, code};
use crate::intent::{
    ClientTls, ClientTlsMode, DestinationIntent, Host, ObjectKind, Resolution, ServiceIntent, ServiceProtocol,
};

/// Without roots of its own a server may be anybody whom the public authorities know. (Older Istio took anybody at all.)
pub(super) fn public_roots(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for rule in &scene.destinations {
        if rule.policy.tls.as_ref().is_some_and(trusts_all) {
            findings.push(trusting(rule, code::PUBLIC_ROOTS, ""));
        }
    }
}

/// The same of single ports.
pub(super) fn public_roots_by_port(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for rule in &scene.destinations {
        let trusting_ports =
            rule.ports.iter().filter(|(_, policy)| policy.tls.as_ref().is_some_and(trusts_all));
        let ports: Vec<u16> = trusting_ports.map(|(port, _)| *port).collect();
        if !ports.is_empty() {
            findings.push(trusting(rule, code::PUBLIC_ROOTS_OF_PORT, &format!(" at port {}", joined(ports))));
        }
    }
}

fn trusts_all(tls: &ClientTls) -> bool {
    matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual) && tls.ca_certificates.is_none()
}

fn trusting(rule: &DestinationIntent, code: &'static str, at: &str) -> Finding {
    let message = format!(
        "{} begins TLS to {}{at} without caCertificates: the server is verified by the system's public roots; name the file of its \
         own authority if it has one",
        rule.origin,
        short(&rule.host)
    );
    finding(Severity::Info, code, &rule.origin, &rule.place, message)
}

/// Bytes name nobody, so that only an address can lead to their service. Sidecars' DNS gives names one, wildcards none.
pub(super) fn without_address(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let described = scene.services.iter().filter(|service| service.origin.kind == ObjectKind::ServiceEntry);
    for service in described.filter(|service| service.addresses.is_empty()) {
        let bytes = service.ports.iter().filter(|(_, port)| port.protocol == ServiceProtocol::Tcp);
        let ports: Vec<u16> = bytes.map(|(number, _)| *number).collect();
        if ports.is_empty() {
            continue;
        }
        let (severity, so) = consequence(service);
        let message = format!(
            "{} has no addresses for port {}, which carries bytes, and bytes name nobody: {so}",
            service.origin,
            joined(ports)
        );
        findings.push(finding(severity, code::NO_ADDRESS, &service.origin, &service.place, message));
    }
}

fn consequence(service: &ServiceIntent) -> (Severity, &'static str) {
    if service.resolution == Resolution::None {
        return (
            Severity::Warning,
            "every connection to the port that is for no other service is taken for its; write addresses",
        );
    }
    if service.hosts.iter().any(Host::is_wildcard) {
        return (
            Severity::Warning,
            "no connection leads to a wildcard's; write addresses, or name the hosts",
        );
    }
    (
        Severity::Info,
        "only clients that ask the sidecar's DNS find it, by its virtual address; write addresses if others should",
    )
}
