//! mTLS that two sides do not agree on: clients that are told to call in another way than servers take, and two policies for one scope.

use std::collections::BTreeMap;

use super::{Scene, finding, joined, seen_from, short};
use crate::catalog::{CatalogService, Labels, ServiceCatalog};
use crate::finding::{Finding, Severity, code};
use crate::intent::{ClientTlsMode, DestinationIntent, Host, MtlsIntent, MtlsMode};

/// Plain text, or TLS without the mesh's certificate, to workloads that take mTLS only.
pub(super) fn refused(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for rule in &scene.destinations {
        let Some(service) = catalog.services.get(&rule.host).filter(|service| service.sidecars) else {
            continue;
        };
        let Some(namespace) = namespace_of(&rule.host) else { continue };
        let refused =
            |port: &&u16| is_plain(rule, **port) && is_strict(scene, catalog, namespace, service, **port);
        let ports: Vec<u16> = service.registered.iter().filter(refused).copied().collect();
        if ports.is_empty() {
            continue;
        }
        let message = format!(
            "{} has clients call port {} of {} without mTLS, but its workloads take nothing else (PeerAuthentication STRICT), so every \
             call is refused; leave tls out, or say ISTIO_MUTUAL",
            rule.origin,
            joined(ports),
            short(&rule.host)
        );
        findings.push(finding(Severity::Warning, code::MTLS, &rule.origin, &rule.place, message));
    }
}

fn namespace_of(host: &Host) -> Option<&str> {
    host.as_str().split_once(".svc.")?.0.rsplit_once('.').map(|(_, namespace)| namespace)
}

fn is_plain(rule: &DestinationIntent, port: u16) -> bool {
    let tls = rule.effective(None, port).tls;
    tls.is_some_and(|tls| tls.mode != ClientTlsMode::IstioMutual)
}

/// Whether all that serve it take mTLS only.
fn is_strict(
    scene: &Scene<'_>,
    catalog: &ServiceCatalog,
    namespace: &str,
    service: &CatalogService,
    port: u16,
) -> bool {
    let mut all = service.instances.iter().peekable();
    all.peek().is_some()
        && all.all(|labels| mode(scene, catalog, namespace, labels, port) == Some(MtlsMode::Strict))
}

/// The narrowest scope that says something.
fn mode(
    scene: &Scene<'_>,
    catalog: &ServiceCatalog,
    namespace: &str,
    labels: &Labels,
    port: u16,
) -> Option<MtlsMode> {
    let selects =
        |policy: &MtlsIntent| policy.selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let of = |in_scope: &dyn Fn(&str) -> bool| {
        let mut all: Vec<_> = scene.mtls.iter().filter(|policy| in_scope(&policy.origin.namespace)).collect();
        all.sort_by(|a, b| a.origin.cmp(&b.origin));
        all
    };
    let own = of(&|scope| scope == namespace);
    let by_selector = own.iter().find(|policy| !policy.selector.is_empty() && selects(policy));
    let narrow = by_selector.and_then(|policy| policy.ports.get(&port).copied().flatten().or(policy.mode));
    let roots = of(&|scope| catalog.is_root(scope));
    let wide = own.iter().chain(&roots).filter(|policy| policy.selector.is_empty());
    narrow.or_else(|| wide.filter_map(|policy| policy.mode).next())
}

/// Two for the same workloads: only one has a say.
pub(super) fn twice(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let mut first: BTreeMap<(&str, &Labels), &MtlsIntent> = BTreeMap::new();
    let mut policies = scene.mtls.clone();
    policies.sort_by(|a, b| a.origin.cmp(&b.origin));
    for policy in policies {
        let other = *first.entry((&policy.origin.namespace, &policy.selector)).or_insert(policy);
        let same = (other.mode, &other.ports) == (policy.mode, &policy.ports);
        if same || (other.origin.kind, &other.origin.name) == (policy.origin.kind, &policy.origin.name) {
            continue;
        }
        let message = format!(
            "{} and {} are for the same workloads, and only the first by name holds; make them one",
            policy.origin,
            seen_from(&policy.origin, &other.origin)
        );
        findings.push(finding(Severity::Warning, code::SAME_SCOPE, &policy.origin, &policy.place, message));
    }
}
