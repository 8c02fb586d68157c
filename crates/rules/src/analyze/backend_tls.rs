//! TLS towards backends (BackendTLSPolicy): targets that are not there, certificates that nobody could verify, and rules that hold instead.

use std::collections::BTreeMap;

use super::attached::Known;
use super::{Scene, finding, seen_from, short};
use crate::conditions::{Surroundings, of_backend_tls};
use crate::finding::{Finding, Severity, code, quote};
use crate::intent::{
    BackendTls, DestinationIntent, Host, Origin, Say, ServiceIntent, ServiceProtocol, SubsetIntent,
    TrafficPolicy,
};

/// Policies that do not hold where they are meant to, or let nothing through.
pub(super) fn conditions(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    let known = Known(scene, catalog);
    let find = |namespace: &str, name: &str| {
        let is = |origin: &Origin| origin.namespace == namespace && origin.name == name;
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
            for (rule, of) in instead(scene, tls, host, &known) {
                let other = seen_from(&tls.origin, &rule.origin);
                tell(format!("what {other} says of TLS to {of}{} holds instead", short(host)));
            }
            if let Some(service) = doubly(scene, tls, host) {
                tell(format!(
                    "the application's own TLS is spoken there, as {} says, and would be wrapped once more",
                    seen_from(&tls.origin, service)
                ));
            }
            for service in scene.services.iter().filter(|service| service.hosts.contains(host)) {
                if !service.subject_alt_names.is_empty() {
                    let other = seen_from(&tls.origin, &service.origin);
                    tell(format!(
                        "the subjectAltNames of {other} are not looked at: the certificate must have a name of this policy"
                    ));
                }
            }
        }
    }
}

/// Rules that say themselves what TLS is spoken to the service, for some client, and of which part of it.
fn instead<'s>(
    scene: &Scene<'s>,
    tls: &BackendTls,
    host: &Host,
    known: &Known<'_, '_>,
) -> Vec<(&'s DestinationIntent, String)> {
    let all = scene.destinations_of(host);
    let port = tls.section.as_ref().and_then(|name| known.port_named(host, name));
    let mut found = Vec::new();
    for rule in all.iter().copied().filter(|rule| rule.backend_tls.is_empty()) {
        let holds = |namespace: &str| {
            let say = Say { owner: Some(&tls.origin.namespace), ..scene.say(host, namespace) };
            DestinationIntent::in_force(&all, host, &say, namespace)
                .iter()
                .any(|one| std::ptr::eq(**one, rule))
        };
        // For clients beside the service, or for those of the rule's own namespace.
        if !holds(&tls.origin.namespace) && !holds(&rule.origin.namespace) {
            continue;
        }
        found.extend(parts(rule, port).map(|of| (rule, of)));
    }
    found
}

/// Of which parts of its host a rule says what TLS is spoken; `port` alone is meant, if any.
fn parts(rule: &DestinationIntent, port: Option<u16>) -> impl Iterator<Item = String> {
    let says = |policy: &TrafficPolicy, ports: &BTreeMap<u16, TrafficPolicy>| {
        let of_port = |(number, policy): (&u16, &TrafficPolicy)| {
            let is = policy.tls.is_some() && port.is_none_or(|port| port == *number);
            is.then(|| format!("port {number} of "))
        };
        // A port's policy inherits nothing.
        let whole = policy.tls.is_some() && port.is_none_or(|port| !ports.contains_key(&port));
        whole.then(String::new).into_iter().chain(ports.iter().filter_map(of_port)).collect::<Vec<_>>()
    };
    let own = says(&rule.policy, &rule.ports);
    let of_subset = move |subset: &SubsetIntent| {
        let said = says(&subset.policy, &subset.ports);
        said.into_iter().map(|of| format!("{of}subset {} of ", quote(&subset.name))).collect::<Vec<_>>()
    };
    own.into_iter().chain(rule.subsets.iter().flat_map(of_subset).collect::<Vec<_>>())
}

/// Who says that the port speaks TLS itself.
fn doubly<'s>(scene: &Scene<'s>, tls: &BackendTls, host: &Host) -> Option<&'s Origin> {
    let speaks = |service: &&&'s ServiceIntent| {
        let meant = |name: &str| tls.section.as_deref().is_none_or(|section| section == name);
        service.hosts.contains(host)
            && service.ports.values().any(|port| port.protocol == ServiceProtocol::Tls && meant(&port.name))
    };
    scene.services.iter().find(speaks).map(|service| &service.origin)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::analyze;
    use crate::catalog::{PortProtocol, ServiceCatalog};
    use crate::host::Resolver;
    use crate::testing::{objects, quoted_certificate};

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
                 data: {{ca.crt: {}}}\n",
                quoted_certificate()
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

    #[test]
    fn rules_that_hold_for_a_part_or_by_a_wildcard_are_told_where_they_do() {
        let rule = |namespace: &str, spec: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {namespace}, namespace: {namespace}}}\n\
                 spec: {{{spec}}}\n"
            )
        };
        let off = "trafficPolicy: {tls: {mode: DISABLE}}";
        let wild = rule("shop", &format!("host: '*.local', {off}"));
        let found = told(&wild, SYSTEM);
        assert!(
            found.len() == 1 && found[0].contains("what DestinationRule shop says of TLS to catalog.shop"),
            "{found:?}"
        );
        // One for the very host goes before the wildcard, and says nothing of TLS.
        let exact =
            rule("shop", "host: catalog, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 9}}}");
        assert_eq!(told(&(wild.replace("name: shop", "name: wild") + &exact), SYSTEM), Vec::<String>::new());
        let of_client = rule("front", &format!("host: catalog.shop.svc.cluster.local, {off}"));
        let found = told(&of_client, SYSTEM);
        assert!(found.len() == 1 && found[0].contains("DestinationRule front/front"), "{found:?}");
        let subset = rule("shop", &format!("host: catalog, subsets: [{{name: v1, {off}}}]"));
        let found = told(&subset, SYSTEM);
        assert!(found.len() == 1 && found[0].contains("TLS to subset \"v1\" of catalog.shop"), "{found:?}");
        let port = "host: catalog, trafficPolicy: {portLevelSettings: [{port: {number: 8080}, tls: {mode: DISABLE}}]}";
        let found = told(&rule("shop", port), SYSTEM);
        assert!(found.len() == 1 && found[0].contains("TLS to port 8080 of catalog.shop"), "{found:?}");
    }

    #[test]
    fn what_a_description_says_of_the_same_servers_is_told() {
        let entry = |more: &str, protocol: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: catalog, namespace: shop}}\nspec:\n  \
                 {{hosts: [catalog.shop.svc.cluster.local], location: MESH_EXTERNAL, resolution: STATIC, endpoints: [{{address: 192.0.2.1}}], {more}ports: [{{number: 8080, name: web, protocol: {protocol}}}]}}\n"
            )
        };
        assert_eq!(told(&entry("", "HTTP"), SYSTEM), Vec::<String>::new());
        let found = told(&entry("subjectAltNames: [a.b], ", "HTTP"), SYSTEM);
        assert!(
            found.len() == 1
                && found[0].contains("subjectAltNames of ServiceEntry catalog are not looked at"),
            "{found:?}"
        );
        let found = told(&entry("", "TLS"), SYSTEM);
        assert!(found.len() == 1 && found[0].contains("would be wrapped once more"), "{found:?}");
    }
}
