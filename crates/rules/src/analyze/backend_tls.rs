//! TLS towards backends (BackendTLSPolicy): targets that are not there, certificates that nobody could verify, and rules that hold instead.

use super::attached::Known;
use super::{Scene, finding, seen_from, short};
use crate::conditions::of_backend_tls;
use crate::finding::{Finding, Severity, code};
use crate::intent::BackendTls;

/// Policies that do not hold where they are meant to, or let nothing through.
pub(super) fn conditions(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    let known = Known(scene, catalog);
    let find = |namespace: &str, name: &str| {
        let is = |origin: &crate::intent::Origin| origin.namespace == namespace && origin.name == name;
        scene.roots.iter().find(|roots| is(&roots.origin)).map(|roots| roots.pem.as_str())
    };
    for (host, rules) in &scene.by_host {
        let mut all: Vec<BackendTls> =
            rules.iter().flat_map(|rule| rule.backend_tls.iter().cloned()).collect();
        all.iter_mut().for_each(|tls| tls.resolve(find));
        for tls in &all {
            let mut tell = |message: String| {
                let message = format!("{}: {message}", tls.origin);
                findings.push(finding(
                    Severity::Warning,
                    code::ROUTE_CONDITION,
                    &tls.origin,
                    &tls.place,
                    message,
                ));
            };
            for condition in of_backend_tls(tls, host, &all, &known).iter().filter(|one| !one.holds) {
                // What is wrong with its text reading has told.
                let written = |flaw: &crate::intent::RouteFlaw| condition.message == flaw.message;
                if !tls.flaws.iter().any(written) {
                    let (kind, reason) = (condition.kind.as_str(), &condition.reason);
                    tell(format!("{} ({kind}: {reason})", condition.message));
                }
            }
            let instead = rules.iter().find(|rule| {
                rule.policy.tls.is_some() || rule.ports.values().any(|policy| policy.tls.is_some())
            });
            if let Some(other) = instead {
                let other = seen_from(&tls.origin, &other.origin);
                tell(format!("what {other} says of TLS to {} holds instead", short(host)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::analyze;
    use crate::catalog::{PortProtocol, ServiceCatalog};
    use crate::host::Resolver;
    use crate::testing::objects;

    fn told(more: &str, validation: &str) -> Vec<String> {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: b, namespace: shop}}\nspec:\n  \
             targetRefs: [{{group: '', kind: Service, name: catalog}}]\n  validation: {validation}\n---\n{more}"
        );
        let mut catalog = ServiceCatalog::default();
        let service =
            catalog.services.entry(Resolver::default().resolve("catalog", "shop").unwrap()).or_default();
        service.ports = BTreeMap::from([(8080, PortProtocol::Http)]);
        analyze(&objects(&text), Some(&catalog))
            .into_iter()
            .filter(|finding| finding.code == "OUT0109")
            .map(|finding| finding.message)
            .collect()
    }

    const SYSTEM: &str = "{hostname: a, wellKnownCACertificates: System}";
    const MAP: &str = "{hostname: a, caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]}";

    #[test]
    fn certificates_that_are_not_there_are_told_and_those_that_are_not() {
        let map = |namespace: &str| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: roots, namespace: {namespace}}}\n\
                 data: {{ca.crt: '-----BEGIN CERTIFICATE-----'}}\n"
            )
        };
        assert_eq!(told("", SYSTEM), Vec::<String>::new());
        assert_eq!(told(&map("shop"), MAP), Vec::<String>::new());
        let lost = told(&map("other"), MAP);
        assert!(lost[0].contains("answered with an error (Accepted: NoValidCACertificate)"), "{lost:?}");
        assert!(
            lost[1].contains("no ConfigMap roots") && lost[1].contains("InvalidCACertificateRef"),
            "{lost:?}"
        );
    }

    #[test]
    fn another_policy_and_a_rule_that_hold_instead_are_told() {
        let other = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\n\
                     metadata: {name: a, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}\nspec:\n  \
                     targetRefs: [{group: '', kind: Service, name: catalog}]\n  \
                     validation: {hostname: a, wellKnownCACertificates: System}\n";
        let found = told(other, SYSTEM);
        assert!(found.len() == 1 && found[0].contains("BackendTLSPolicy shop/a holds"), "{found:?}");
        let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: c, namespace: shop}\n\
                    spec: {host: catalog, trafficPolicy: {tls: {mode: DISABLE}}}\n";
        let found = told(rule, SYSTEM);
        assert!(found.len() == 1 && found[0].contains("what DestinationRule c says of TLS"), "{found:?}");
        let gone = told("", SYSTEM);
        assert!(gone.is_empty(), "{gone:?}");
    }
}
