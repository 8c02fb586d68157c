//! Policies of action CUSTOM, and rate limits, whose provider cannot be asked, or would be asked about itself.

use std::collections::BTreeSet;

use super::policies::reaches_port;
use super::{Scene, finding, joined, short};
use crate::catalog::{CatalogProvider, CatalogService, Labels, ServiceCatalog};
use crate::finding::{Finding, Severity, closest, code, quote};
use crate::intent::{AuthorizationIntent, Host, Known, Place, ServiceIntent};

/// The policies that ask somebody, with whom.
fn asking<'s>(scene: &'s Scene<'_>) -> impl Iterator<Item = (&'s AuthorizationIntent, &'s str)> {
    scene.authorization.iter().filter_map(|policy| Some((*policy, policy.action.provider()?)))
}

pub(super) fn absent(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for (policy, name) in asking(scene) {
        // Those whom the policy is for look for the provider, each through its own namespace's eyes.
        let workloads = catalog.selected(&policy.origin.namespace, &policy.selector);
        let mut asking: BTreeSet<&str> = workloads.map(|workload| workload.namespace.as_str()).collect();
        if asking.is_empty() {
            asking.insert(&policy.origin.namespace);
        }
        let Some(why) = trouble(scene, catalog, &asking, name, false) else { continue };
        let place = Place { path: format!("{}.provider.name", policy.place.path), ..policy.place.clone() };
        let message = format!("{} asks {}, {why}; what it matches is denied", policy.origin, quote(name));
        findings.push(told(
            catalog,
            name,
            finding(Severity::Warning, code::PROVIDER, &policy.origin, &place, message),
        ));
    }
    for rule in &scene.limits {
        // Only the namespace's own services are limited.
        let asking = BTreeSet::from([rule.origin.namespace.as_str()]);
        for global in &rule.global {
            let (name, place) = (global.provider.as_str(), &global.place);
            let Some(why) = trouble(scene, catalog, &asking, name, true) else { continue };
            let message = format!("{} asks {}, {why}; so it limits nothing", rule.origin, quote(name));
            findings.push(told(
                catalog,
                name,
                finding(Severity::Warning, code::PROVIDER, &rule.origin, place, message),
            ));
        }
    }
}

/// With the name that was meant.
fn told(catalog: &ServiceCatalog, name: &str, mut found: Finding) -> Finding {
    if !catalog.providers.contains_key(name) {
        found.suggestion = closest(name, catalog.providers.keys().map(String::as_str));
    }
    found
}

/// Why compilation would have nobody asked, in one of the namespaces that ask.
fn trouble(
    scene: &Scene<'_>,
    catalog: &ServiceCatalog,
    asking: &BTreeSet<&str>,
    name: &str,
    limiter: bool,
) -> Option<String> {
    let Some(provider) = catalog.providers.get(name) else {
        return Some(
            "but extensionProviders of the control plane's settings has no such provider".to_owned(),
        );
    };
    match (provider.limiter, limiter) {
        (true, false) => {
            return Some("which is a rate limit service and knows nothing of policies".to_owned());
        }
        (false, true) => return Some("which is no rate limit service (envoyRateLimitGrpc)".to_owned()),
        _ => {}
    }
    let (host, port) = (quote(short(&provider.host)), provider.port);
    let Some(meant) = meant(scene, catalog, &provider.host) else {
        return Some(format!("but there is no service {host}, which it is"));
    };
    let registered = meant.registered.is_some_and(|service| service.registered.contains(&port));
    if !registered && !meant.described.iter().any(|service| service.ports.contains_key(&port)) {
        return Some(format!("but service {host}, which it is, has no port {port}"));
    }
    let known = Known { home: &meant.home, described: &meant.described, registered };
    asking.iter().find_map(|namespace| match (known.owner(port, namespace), &provider.namespace) {
        (None, _) => Some(format!(
            "but service {host}, which it is, has no port {port} that is exported to namespace {namespace}"
        )),
        (Some(owner), Some(named)) if owner != named => {
            Some(format!("but service {host}, which it is, is what namespace {owner} says, not {named}"))
        }
        _ => None,
    })
}

/// The service that a host means.
struct Meant<'s> {
    home: String,
    described: Vec<&'s ServiceIntent>,
    registered: Option<&'s CatalogService>,
}

/// As compilation finds it: the very host, or a described one of two labels that was read as a service of a namespace.
fn meant<'s>(scene: &'s Scene<'_>, catalog: &'s ServiceCatalog, host: &Host) -> Option<Meant<'s>> {
    let resolver = catalog.resolver();
    let of = |host: &Host| {
        let counts = |service: &&ServiceIntent| {
            let namespace = &service.origin.namespace;
            service.hosts.contains(host) && resolver.has_say(namespace, catalog.is_root(namespace), host)
        };
        let mut described: Vec<_> = scene.services.iter().copied().filter(counts).collect();
        described.sort_by(|a, b| a.origin.cmp(&b.origin));
        let registered = catalog.services.get(host).filter(|service| !service.instances.is_empty());
        let home = resolver.split(host).map(|(_, namespace)| namespace.to_owned()).unwrap_or_default();
        (registered.is_some() || !described.is_empty()).then_some(Meant { home, described, registered })
    };
    of(host).or_else(|| of(&resolver.bare(host)?).filter(|meant| !meant.described.is_empty()))
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
                !protocol.is_http() && policy.rules.iter().any(|rule| reaches_port(rule, **port))
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
    for rule in &scene.limits {
        let itself =
            |name: &str| catalog.providers.get(name).is_some_and(|provider| provider.host == rule.host);
        for global in rule.global.iter().filter(|global| itself(&global.provider)) {
            let message = format!(
                "{} has {} asked about requests to itself, so each question would be asked about: it is not, and nothing is \
                 limited; limit other services",
                rule.origin,
                quote(&global.provider)
            );
            findings.push(finding(Severity::Warning, code::PROVIDER, &rule.origin, &global.place, message));
        }
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
