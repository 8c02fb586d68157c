//! Sidecars: two for the same workloads, ones for nobody, hosts that nobody serves.

use std::collections::BTreeMap;

use super::{Scene, finding, joined, short};
use crate::catalog::{CatalogWorkload, PortProtocol, ServiceCatalog};
use crate::finding::{Finding, Severity, code, quote};
use crate::intent::{Egress, Host, Import, Place, ServiceProtocol, SidecarIntent, Unknown, Whose};

/// Two for a whole namespace: only the older one holds (istioctl's IST0111).
pub(super) fn namespace_wide(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let mut wide: BTreeMap<&str, Vec<&SidecarIntent>> = BTreeMap::new();
    for sidecar in scene.sidecars.iter().filter(|sidecar| sidecar.selector.is_empty()) {
        wide.entry(&sidecar.origin.namespace).or_default().push(sidecar);
    }
    for (namespace, mut all) in wide {
        all.sort_by(|a, b| a.age().cmp(&b.age()));
        let Some((first, others)) = all.split_first() else { continue };
        for other in others {
            let message = format!(
                "{} is for all workloads of namespace {namespace}, as {} is, which is older and holds: give it a workloadSelector, or \
                 put both into one",
                other.origin, first.origin
            );
            findings.push(finding(Severity::Warning, code::SIDECARS, &other.origin, &other.place, message));
        }
    }
}

/// Two that select one workload: only the older one holds (istioctl's IST0110); and those that select none.
pub(super) fn selectors(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog.filter(|catalog| !catalog.workloads.is_empty()) else { return };
    let selecting = || scene.sidecars.iter().filter(|sidecar| !sidecar.selector.is_empty());
    let is_of = |sidecar: &SidecarIntent, workload: &CatalogWorkload| {
        let has = |(key, value)| workload.labels.get(key) == Some(value);
        workload.namespace == sidecar.origin.namespace && sidecar.selector.iter().all(has)
    };
    for sidecar in selecting() {
        let chosen: Vec<_> = catalog.workloads.iter().filter(|workload| is_of(sidecar, workload)).collect();
        let mut tell = |code, message| {
            findings.push(finding(Severity::Warning, code, &sidecar.origin, &sidecar.place, message));
        };
        if chosen.is_empty() {
            let wanted = joined(sidecar.selector.iter().map(|(key, value)| format!("{key}={value}")));
            let namespace = &sidecar.origin.namespace;
            tell(
                code::NO_WORKLOADS,
                format!(
                    "{} selects {wanted}, but no workload of namespace {namespace} has that, so it has no effect",
                    sidecar.origin
                ),
            );
            continue;
        }
        let older = selecting().filter(|other| other.age() < sidecar.age());
        for other in older.filter(|other| other.origin.namespace == sidecar.origin.namespace) {
            let both = chosen.iter().filter(|workload| is_of(other, workload)).count();
            if both > 0 {
                tell(
                    code::SIDECAR_SELECTORS,
                    format!(
                        "{} selects {both} workloads that {} does, too, which is older and holds for them: let their labels tell them \
                         apart",
                        sidecar.origin, other.origin
                    ),
                );
            }
        }
    }
}

/// Hosts that name no service, so that nobody is let through to them.
pub(super) fn hosts(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog.filter(|catalog| !catalog.services.is_empty()) else { return };
    let known = services(scene, catalog);
    for sidecar in &scene.sidecars {
        let origin = sidecar.origin.namespace.as_str();
        // It holds for workloads of every namespace, and "." is theirs.
        let is_wide = sidecar.selector.is_empty() && catalog.is_root(origin);
        for egress in sidecar.egress.iter().flatten() {
            for import in egress.hosts.iter().filter(|import| !import.exclude) {
                let covers = |(namespace, host): &&(&str, &Host)| {
                    import.covers(if is_wide { namespace } else { origin }, namespace, host)
                };
                let named: Vec<_> = known.iter().filter(covers).collect();
                // All of a namespace may come later.
                if named.is_empty() && !import.hosts.iter().any(|host| host.as_str() == "*") {
                    let message = nobody(sidecar, import, is_wide);
                    let place = &import.place;
                    findings.push(finding(Severity::Warning, code::NOBODY, &sidecar.origin, place, message));
                }
                if let [(_, host)] = named.as_slice()
                    && let Some((place, message)) = otherwise(scene, catalog, (sidecar, egress, import), host)
                {
                    findings.push(finding(
                        Severity::Warning,
                        code::NO_EFFECT,
                        &sidecar.origin,
                        place,
                        message,
                    ));
                }
            }
        }
    }
}

fn nobody(sidecar: &SidecarIntent, import: &Import, is_wide: bool) -> String {
    let name = import.hosts.first().map_or("", short);
    let (name, of) = match &import.namespace {
        Whose::Own if is_wide && import.is_short => (name.split('.').next().unwrap_or(name), None),
        Whose::Own if is_wide => (name, None),
        Whose::Own => (name, Some(&sidecar.origin.namespace)),
        Whose::Named(one) => (name, Some(one)),
        Whose::Any => (name, None),
    };
    let of = of.map_or("any namespace".to_owned(), |one| format!("namespace {one}"));
    format!("{} names {} of {of}, and there is no such service", sidecar.origin, quote(name))
}

/// A listener's protocol that is not the service's: what its service says is what is spoken.
fn otherwise<'s>(
    scene: &Scene<'_>,
    catalog: &ServiceCatalog,
    (sidecar, egress, import): (&SidecarIntent, &Egress, &'s Import),
    host: &Host,
) -> Option<(&'s Place, String)> {
    let (port, said) = (egress.port?, egress.protocol?);
    let described = scene.services.iter().filter(|service| service.hosts.contains(host));
    let described =
        described.flat_map(|service| service.ports.get(&port)).next().map(|port| class(port.protocol));
    let registered = || catalog.services.get(host)?.ports.get(&port).copied();
    let spoken = described.or_else(registered)?;
    let is_declared = spoken != PortProtocol::Detect && said != ServiceProtocol::Detect;
    let differs = is_declared && !class(said).is_alike(spoken);
    differs.then(|| {
        let message = format!(
            "{}: port {port} of {} was registered with another protocol than the listener says, and that holds",
            sidecar.origin,
            short(host)
        );
        (&import.place, message)
    })
}

fn class(protocol: ServiceProtocol) -> PortProtocol {
    match protocol {
        ServiceProtocol::Detect => PortProtocol::Detect,
        ServiceProtocol::Http => PortProtocol::Http,
        ServiceProtocol::Http2 => PortProtocol::Http2,
        ServiceProtocol::Grpc => PortProtocol::Grpc,
        ServiceProtocol::Tls => PortProtocol::Tls,
        ServiceProtocol::Tcp => PortProtocol::Tcp,
    }
}

/// Egress proxies that are not there: what they are to take fails.
pub(super) fn proxies(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for sidecar in &scene.sidecars {
        let Some(Unknown::Through(target)) = &sidecar.unknown else { continue };
        let ports = scene.ports_of(catalog, &target.host);
        let missing = match (ports, target.port) {
            (None, _) => format!("there is no service {}", short(&target.host)),
            (Some(ports), Some(port)) if !ports.contains(&port) => {
                format!("{} has no port {port}, only {}", short(&target.host), joined(ports))
            }
            _ => continue,
        };
        let message = format!("{}: {missing}, so connections to what is not known fail", sidecar.origin);
        let place = Place { path: "spec.outboundTrafficPolicy.egressProxy".into(), ..sidecar.place.clone() };
        findings.push(finding(Severity::Warning, code::REFERENCE, &sidecar.origin, &place, message));
    }
}

/// Addresses of `ingress` that no workload has: what is said of their ports holds nowhere.
pub(super) fn binds(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for sidecar in &scene.sidecars {
        let origin = &sidecar.origin;
        // One with labels is for its own namespace, also in the root namespace.
        let is_of = |workload: &&CatalogWorkload| {
            sidecar.selector.is_empty() || workload.namespace == origin.namespace
        };
        let chosen = || catalog.selected(&origin.namespace, &sidecar.selector).filter(is_of);
        if chosen().next().is_none() {
            continue;
        }
        for ingress in &sidecar.ingress {
            let Some(bind) = ingress.bind else { continue };
            if !chosen().any(|workload| workload.addresses.contains(&bind)) {
                let message = format!(
                    "{origin} says of port {} what holds at {bind}, and none of its workloads has that address: leave bind out, or name \
                     one of theirs",
                    ingress.port
                );
                findings.push(finding(Severity::Warning, code::NO_EFFECT, origin, &ingress.place, message));
            }
        }
    }
}

/// All services with the namespace that says where they are.
fn services<'s>(scene: &'s Scene<'_>, catalog: &'s ServiceCatalog) -> Vec<(&'s str, &'s Host)> {
    let described = scene
        .services
        .iter()
        .flat_map(|service| service.hosts.iter().map(|host| (service.origin.namespace.as_str(), host)));
    let registered = catalog.services.keys().filter_map(|host| Some((owner(host)?, host)));
    let mut all: Vec<_> = described.chain(registered).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn owner(host: &Host) -> Option<&str> {
    host.as_str()
        .split_once(".svc.")
        .and_then(|(name, _)| name.rsplit_once('.'))
        .map(|(_, namespace)| namespace)
}

#[cfg(test)]
mod tests;
