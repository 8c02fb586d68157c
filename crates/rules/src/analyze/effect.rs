//! Rules that are in force and do nothing, or turn against whoever calls.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_model::route::{HashOn, PathMatch, Redirect, RouteAction};

use super::{Scene, finding, joined, short};
use crate::catalog::{CatalogService, ServiceCatalog};
use crate::finding::{Finding, Severity, code};
use crate::intent::{ConnectionPool, Host, HttpRoute, Origin, Place, RouteIntent, TrafficPolicy};

/// A subset's policy is for what routes send to the subset.
pub(super) fn unused_subsets(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    // Without the rest of the mesh there may be a route that is not seen.
    if scene.catalog.is_none() {
        return;
    }
    let mut used: BTreeMap<&str, BTreeSet<&Host>> = BTreeMap::new();
    for (_, (target, _)) in scene.targets() {
        if let Some(subset) = &target.subset {
            used.entry(subset).or_default().insert(&target.host);
        }
    }
    for rule in &scene.destinations {
        for subset in rule.subsets.iter().filter(|s| !(s.policy.is_empty() && s.ports.is_empty())) {
            let used = used.get(subset.name.as_str()).is_some_and(|hosts| {
                let covered = || hosts.iter().any(|host| rule.host.covers(host.as_str()));
                hosts.contains(&rule.host) || (rule.host.is_wildcard() && covered())
            });
            if !used {
                let message = format!(
                    "subset \"{}\" of {} has a policy of its own, but no route sends anything to the subset, so the policy has no effect",
                    subset.name, rule.origin
                );
                findings.push(finding(
                    Severity::Warning,
                    code::NO_EFFECT,
                    &subset.origin,
                    &subset.place,
                    message,
                ));
            }
        }
    }
}

/// Whoever follows a redirect to where it came from goes round until it gives up.
pub(super) fn circles(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for (origin, hosts, http) in scene.http_routes() {
        let RouteAction::Redirect(redirect) = &http.route.action else { continue };
        if leads_back(redirect, http, hosts) {
            let message = format!(
                "{origin}: {} sends who calls to the address that was called, again and again; change the host, the path or the scheme",
                http.place.path
            );
            findings.push(finding(Severity::Warning, code::CIRCLE, origin, &http.place, message));
        }
    }
}

fn leads_back(redirect: &Redirect, http: &HttpRoute, hosts: &[Host]) -> bool {
    let same_host = match (&redirect.authority, hosts) {
        (None, _) => true,
        (Some(authority), [host]) => authority == host.as_str(),
        _ => false,
    };
    let same_path = redirect.path.as_ref().is_none_or(|path| {
        !http.matches.is_empty()
            && http
                .matches
                .iter()
                .all(|of| matches!(&of.request.path, PathMatch::Exact(exact) if exact == path))
    });
    same_host
        && same_path
        && redirect.scheme.is_none()
        && redirect.port.is_none()
        && redirect.prefix.is_none()
        && redirect.regex.is_none()
}

/// Copies for who has the request already.
pub(super) fn mirrored_twice(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for (origin, _, http) in scene.http_routes() {
        let [only] = http.targets.as_slice() else { continue };
        for mirror in http.mirrors.iter().filter(|mirror| mirror.target == only.target) {
            let message = format!(
                "{origin}: {} goes where the requests go themselves, {}, which has each of them twice",
                mirror.place.path,
                short(&mirror.target.host)
            );
            findings.push(finding(Severity::Warning, code::TWICE, origin, &mirror.place, message));
        }
    }
}

/// Rules about requests for a service that has none.
pub(super) fn http_for_tcp(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    let mut tell = |origin: &Origin, place: &Place, what: &str, host: &Host, service: &CatalogService| {
        let message = format!(
            "{origin} {what}, but {} speaks no HTTP (port {}), so that has no effect",
            short(host),
            joined(service.ports.keys())
        );
        findings.push(finding(Severity::Warning, code::NO_EFFECT, origin, place, message));
    };
    for rule in &scene.destinations {
        let Some(service) = without_http(catalog, &rule.host) else { continue };
        let policies = std::iter::once(&rule.policy).chain(rule.ports.values());
        let of_subsets = rule.subsets.iter().flat_map(|s| std::iter::once(&s.policy).chain(s.ports.values()));
        if let Some(what) = policies.chain(of_subsets).find_map(for_requests) {
            tell(&rule.origin, &rule.place, what, &rule.host, service);
        }
    }
    for route in scene.routes.iter().filter(|route| !route.http.is_empty() && route.tcp.is_empty()) {
        let known: Vec<_> =
            route.hosts.iter().map_while(|host| Some((host, without_http(catalog, host)?))).collect();
        if let Some((host, service)) = known.first().filter(|_| known.len() == route.hosts.len()) {
            tell(&route.origin, &route.place, "routes requests", host, service);
        }
    }
}

fn without_http<'c>(catalog: &'c ServiceCatalog, host: &Host) -> Option<&'c CatalogService> {
    let service = catalog.services.get(host)?;
    (!service.ports.is_empty() && service.ports.values().all(|spoken| !spoken.is_http())).then_some(service)
}

/// What of a policy only requests have.
fn for_requests(policy: &TrafficPolicy) -> Option<&'static str> {
    let balancing = policy.load_balancing.as_ref();
    let hash = balancing.filter(|balancing| balancing.balance.hashes());
    let hash = hash.and_then(|balancing| balancing.hash.as_ref());
    if hash.is_some_and(|hash| !matches!(hash, HashOn::SourceAddress)) {
        return Some("hashes a part of requests");
    }
    let ConnectionPool {
        max_requests,
        max_retries,
        max_requests_per_connection,
        max_streams_per_connection,
        http_idle_timeout,
        tcp_idle_timeout,
        h2_upgrade,
        ..
    } = policy.connection_pool.as_ref()?;
    let counted = [max_requests, max_retries, max_requests_per_connection, max_streams_per_connection];
    let limits = counted.into_iter().any(Option::is_some);
    // What is said of connections of bytes holds for those of requests, too, and is no setting for these alone.
    let idle = http_idle_timeout.is_some() && http_idle_timeout != tcp_idle_timeout;
    let ways = idle || h2_upgrade.is_some();
    (limits || ways).then_some("has settings for requests (connectionPool.http)")
}

/// Where no port is named, the request's own is meant, unless there is one only.
pub(super) fn no_port(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog else { return };
    for (route, (target, place)) in scene.targets().filter(|(_, (target, _))| target.port.is_none()) {
        let Some(ports) = scene.ports_of(catalog, &target.host).filter(|ports| ports.len() > 1) else {
            continue;
        };
        let lacking: Vec<u16> = asked_at(scene, catalog, route).difference(&ports).copied().collect();
        if lacking.is_empty() {
            continue;
        }
        let message = format!(
            "{} routes to {} without a port; what comes for port {} has none there, where ports are {}: name one",
            route.origin,
            short(&target.host),
            joined(lacking),
            joined(ports)
        );
        findings.push(finding(Severity::Warning, code::NO_PORT, &route.origin, place, message));
    }
}

/// The ports that requests for a route's hosts come to.
pub(super) fn asked_at(scene: &Scene<'_>, catalog: &ServiceCatalog, route: &RouteIntent) -> BTreeSet<u16> {
    route.hosts.iter().filter_map(|host| scene.ports_of(catalog, host)).flatten().collect()
}
