//! mTLS that two sides do not agree on: clients that are told to call in another way than servers take, and two policies for one scope.

use std::collections::BTreeMap;

use super::attached::Known;
use super::{Scene, finding, joined, namespace_of, seen_from, short};
use crate::catalog::{CatalogService, Labels, ServiceCatalog};
use crate::conditions::Surroundings;
use crate::finding::{Finding, Severity, code};
use crate::intent::{ClientTlsMode, DestinationIntent, MtlsIntent, MtlsMode};

/// Plain text, or TLS without the mesh's certificate, to workloads that take mTLS only.
pub(super) fn refused(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for rule in &scene.destinations {
        let Some(service) = catalog.services.get(&rule.host).filter(|service| service.sidecars) else {
            continue;
        };
        let Some(namespace) = namespace_of(&rule.host) else { continue };
        let plain: Vec<u16> =
            service.registered.iter().copied().filter(|port| is_plain(scene, catalog, rule, *port)).collect();
        if plain.is_empty() {
            continue;
        }
        let scopes = Scopes::of(scene, catalog, namespace);
        let ports: Vec<u16> = plain.into_iter().filter(|port| scopes.are_strict(service, *port)).collect();
        if ports.is_empty() {
            continue;
        }
        let message = format!(
            "{} has clients call port {} of {} without mTLS, but its workloads take nothing else (PeerAuthentication STRICT), so every \
             call is refused; {}",
            rule.origin,
            joined(ports),
            short(&rule.host),
            match rule.backend_tls.is_empty() {
                true => "leave tls out, or say ISTIO_MUTUAL",
                false => "such a policy is for servers without a sidecar",
            }
        );
        findings.push(finding(Severity::Warning, code::MTLS, &rule.origin, &rule.place, message));
    }
}

fn is_plain(scene: &Scene<'_>, catalog: &ServiceCatalog, rule: &DestinationIntent, port: u16) -> bool {
    let named = |name: &String| Known(scene, catalog).port_named(&rule.host, name) == Some(port);
    let tls = rule.effective(None, port).tls;
    tls.is_some_and(|tls| tls.mode != ClientTlsMode::IstioMutual)
        || rule.backend_tls.iter().any(|tls| tls.section.as_ref().is_none_or(named))
}

/// The policies that have a say in a namespace, by name: its own, and those of the mesh.
struct Scopes<'o> {
    own: Vec<&'o MtlsIntent>,
    roots: Vec<&'o MtlsIntent>,
}

impl<'o> Scopes<'o> {
    fn of(scene: &Scene<'o>, catalog: &ServiceCatalog, namespace: &str) -> Self {
        let of = |in_scope: &dyn Fn(&str) -> bool| {
            let all = scene.mtls.iter().copied().filter(|policy| in_scope(&policy.origin.namespace));
            let mut all: Vec<_> = all.collect();
            all.sort_by(|a, b| a.origin.cmp(&b.origin));
            all
        };
        Self { own: of(&|scope| scope == namespace), roots: of(&|scope| catalog.is_root(scope)) }
    }

    /// Whether all that serve it take mTLS only.
    fn are_strict(&self, service: &CatalogService, port: u16) -> bool {
        let mut all = service.instances.iter().map(|labels| self.mode(labels, port)).peekable();
        all.peek().is_some() && all.all(|mode| mode == Some(MtlsMode::Strict))
    }

    /// The narrowest scope that says something.
    fn mode(&self, labels: &Labels, port: u16) -> Option<MtlsMode> {
        let selects =
            |policy: &MtlsIntent| policy.selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        let narrow = self.own.iter().find(|policy| !policy.selector.is_empty() && selects(policy));
        let narrow = narrow.and_then(|policy| policy.ports.get(&port).copied().flatten().or(policy.mode));
        let mut wide = self.own.iter().chain(&self.roots).filter(|policy| policy.selector.is_empty());
        narrow.or_else(|| wide.find_map(|policy| policy.mode))
    }
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
