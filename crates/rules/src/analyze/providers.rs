//! Policies of action CUSTOM whose provider cannot be asked, or would be asked about itself.

use std::collections::BTreeSet;

use super::policies::reaches_port;
use super::{Scene, finding, joined, short};
use crate::catalog::{CatalogProvider, Labels, PortProtocol, ServiceCatalog};
use crate::finding::{Finding, Severity, closest, code, quote};
use crate::intent::{AuthorizationIntent, Host, Place};

/// The policies that ask somebody, with whom.
fn asking<'s>(scene: &'s Scene<'_>) -> impl Iterator<Item = (&'s AuthorizationIntent, &'s str)> {
    scene.authorization.iter().filter_map(|policy| Some((*policy, policy.action.provider()?)))
}

pub(super) fn absent(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for (policy, name) in asking(scene) {
        let Some(why) = trouble(scene, catalog, name) else { continue };
        let place = Place { path: format!("{}.provider.name", policy.place.path), ..policy.place.clone() };
        let message = format!("{} asks {}, {why}; what it matches is denied", policy.origin, quote(name));
        let mut found = finding(Severity::Warning, code::PROVIDER, &policy.origin, &place, message);
        if !catalog.providers.contains_key(name) {
            found.suggestion = closest(name, catalog.providers.keys().map(String::as_str));
        }
        findings.push(found);
    }
}

fn trouble(scene: &Scene<'_>, catalog: &ServiceCatalog, name: &str) -> Option<String> {
    let Some(provider) = catalog.providers.get(name) else {
        return Some(
            "but extensionProviders of the control plane's settings has no such provider".to_owned(),
        );
    };
    let host = quote(short(&provider.host));
    match scene.ports_of(catalog, &provider.host) {
        None => Some(format!("but there is no service {host}, which it is")),
        Some(ports) if !ports.contains(&provider.port) => {
            Some(format!("but service {host}, which it is, has no port {}", provider.port))
        }
        Some(_) => {
            let namespace = provider.namespace.as_ref()?;
            let owner = owner(scene, &provider.host, provider.port)?;
            (owner != *namespace).then(|| {
                format!("but service {host}, which it is, is what namespace {owner} says, not {namespace}")
            })
        }
    }
}

/// Who says where clients of a namespace of its own find a service; they may have one of their own.
fn owner(scene: &Scene<'_>, host: &Host, port: u16) -> Option<String> {
    let split = |host: &Host| Some(short(host).rsplit_once('.')?.1.to_owned());
    if host.as_str().contains(".svc.") {
        return split(host);
    }
    let mut describing: Vec<_> = scene
        .services
        .iter()
        .filter(|service| service.hosts.contains(host) && service.ports.contains_key(&port))
        .collect();
    describing.sort_by(|a, b| a.origin.cmp(&b.origin));
    Some(describing.first()?.origin.namespace.clone())
}

/// Nobody is asked about bytes.
pub(super) fn without_say(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for (policy, name) in asking(scene) {
        let Some(provider) = catalog.providers.get(name) else { continue };
        let workloads = catalog.selected(&policy.origin.namespace, &policy.selector);
        let tcp: BTreeSet<u16> = workloads
            .flat_map(|workload| &workload.ports)
            .filter(|(port, protocol)| {
                **protocol == PortProtocol::Tcp && policy.rules.iter().any(|rule| reaches_port(rule, **port))
            })
            .map(|(port, _)| *port)
            .collect();
        if tcp.is_empty() {
            continue;
        }
        let ports = joined(tcp);
        let consequence = match provider.grpc {
            true => format!(
                "is not asked about TCP by Outrigger: connections to port {ports} that it would be asked about are denied; name \
                 the HTTP ports in its rules"
            ),
            false => format!(
                "speaks HTTP and has no say over TCP: connections to port {ports} pass without a question; name the HTTP ports in \
                 its rules, and others in a DENY policy"
            ),
        };
        let message = format!("{} asks {}, which {consequence}", policy.origin, quote(name));
        findings.push(finding(Severity::Warning, code::HTTP_ON_TCP, &policy.origin, &policy.place, message));
    }
}

/// Its own sidecar would ask it about each question, and so on until the time is up.
pub(super) fn about_itself(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for (policy, name) in asking(scene) {
        let Some(provider) = catalog.providers.get(name).filter(|its| is_selected(catalog, policy, its))
        else {
            continue;
        };
        let message = format!(
            "{} is also for {}, which is {} itself, so each question would be asked about; select other workloads, or exempt its \
             port {}",
            policy.origin,
            quote(short(&provider.host)),
            quote(name),
            provider.port
        );
        findings.push(finding(Severity::Warning, code::PROVIDER, &policy.origin, &policy.place, message));
    }
}

fn is_selected(catalog: &ServiceCatalog, policy: &AuthorizationIntent, provider: &CatalogProvider) -> bool {
    let Some(service) = catalog.services.get(&provider.host) else { return false };
    let Some((_, namespace)) = short(&provider.host).split_once('.') else { return false };
    let in_scope = namespace == policy.origin.namespace || catalog.is_root(&policy.origin.namespace);
    let matches = |labels: &Labels| policy.selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    in_scope
        && service.instances.iter().any(matches)
        && policy.rules.iter().any(|rule| reaches_port(rule, provider.port))
}
