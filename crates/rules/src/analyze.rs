//! What is wrong with rules that are each well-formed: references to nothing, rules that fight, rules without effect.
//!
//! One row per check, one file per topic. A check looks at all objects together and, where it needs to, at the services
//! that exist. Each row has a test for when it speaks and one for when it must be silent.

mod attached;
mod backend_tls;
mod callers;
mod checks;
mod conflicts;
mod cors;
mod delegates;
mod effect;
mod foreign;
mod hedges;
mod limits;
mod mtls;
mod nobody;
mod paths;
mod policies;
mod providers;
mod references;
mod requests;
mod routes;
mod servers;
mod services;
mod sidecars;
mod tokens;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::ServiceCatalog;
use crate::finding::{Finding, Severity, code};
use crate::intent::{
    AttachedIntent, AuthorizationIntent, DestinationIntent, Host, Intent, LimitsIntent, MtlsIntent,
    ObjectKind, Origin, Place, RootsIntent, RouteIntent, Say, ServiceIntent, SidecarIntent, Target,
    TokensIntent, Visibility,
};
use crate::object::Object;
use crate::suppress;

/// One check.
pub struct Check {
    /// The code of its findings.
    pub code: &'static str,
    /// What it looks for.
    pub what: &'static str,
    run: fn(&Scene<'_>, &mut Vec<Finding>),
}

/// Every check, in the order in which they run.
pub const CHECKS: &[Check] = &[
    Check { code: code::DUPLICATE_OBJECT, what: "the same object twice", run: conflicts::duplicate_objects },
    Check {
        code: code::REFERENCE,
        what: "a route to a host or port that does not exist",
        run: references::hosts,
    },
    Check {
        code: code::REFERENCE,
        what: "a route to a subset that nobody defines",
        run: references::subsets,
    },
    Check { code: code::REFERENCE, what: "a delegate that does not exist", run: delegates::missing },
    Check { code: code::LIMIT, what: "more matches by delegation than are taken", run: delegates::too_much },
    Check { code: code::NO_EFFECT, what: "a delegate that nobody uses", run: delegates::nobody },
    Check { code: code::EMPTY_SUBSET, what: "a subset without instances", run: references::empty_subsets },
    Check { code: code::NO_WEIGHT, what: "weights that sum to 0", run: routes::no_weight },
    Check {
        code: code::ROUTE_CONDITION,
        what: "a route without effect at a parent, or with a backend that cannot be used",
        run: attached::conditions,
    },
    Check {
        code: code::ROUTE_CONDITION,
        what: "TLS for a backend that is not there, or that nobody could verify",
        run: backend_tls::conditions,
    },
    Check { code: code::NO_WEIGHT, what: "a rule that sends nothing anywhere", run: attached::no_weight },
    Check { code: code::CONFLICT, what: "another kind of rule that a route covers", run: attached::shadowed },
    Check { code: code::UNREACHABLE, what: "a route that no request reaches", run: routes::unreachable },
    Check { code: code::SAME_MATCH, what: "a match that an earlier route has", run: routes::repeated },
    Check { code: code::CIRCLE, what: "a redirect to where it came from", run: effect::circles },
    Check { code: code::TWICE, what: "a mirror to where requests go", run: effect::mirrored_twice },
    Check { code: code::NO_PORT, what: "a target without the port that is called", run: effect::no_port },
    Check { code: code::NO_EFFECT, what: "a policy of a subset without routes", run: effect::unused_subsets },
    Check { code: code::NO_EFFECT, what: "a rule for requests for TCP ports", run: effect::http_for_tcp },
    Check { code: code::MTLS, what: "calls that are refused for want of mTLS", run: mtls::refused },
    Check { code: code::SAME_SCOPE, what: "two policies of mTLS for one scope", run: mtls::twice },
    Check { code: code::TOKENS_ON_TCP, what: "tokens of workloads without HTTP", run: tokens::without_http },
    Check { code: code::LONG_ATTEMPT, what: "perTryTimeout longer than timeout", run: routes::long_attempts },
    Check { code: code::CONFLICT, what: "two objects that route one host", run: conflicts::routes },
    Check { code: code::CONFLICT, what: "a wildcard whose routes another takes", run: conflicts::wildcards },
    Check { code: code::CONFLICT, what: "two objects that describe one port", run: services::conflicts },
    Check {
        code: code::DUPLICATE_DESTINATION,
        what: "policies for one host of which one is lost",
        run: conflicts::destinations,
    },
    Check { code: code::NOBODY, what: "a rule for a host that does not exist", run: nobody::hosts },
    Check {
        code: code::UNKNOWN_HOST,
        what: "a DestinationRule for a host that does not exist",
        run: nobody::destinations,
    },
    Check { code: code::PUBLIC_ROOTS, what: "TLS without roots of its own", run: servers::public_roots },
    Check {
        code: code::PUBLIC_ROOTS_OF_PORT,
        what: "TLS of a port without roots of its own",
        run: servers::public_roots_by_port,
    },
    Check { code: code::NO_ADDRESS, what: "bytes without an address", run: servers::without_address },
    Check { code: code::NOBODY, what: "a rule for callers that do not exist", run: nobody::callers },
    Check { code: code::NOBODY, what: "a match on callers that do not exist", run: callers::unknown },
    Check { code: code::NOBODY, what: "a match on a port that nobody calls", run: callers::ports },
    Check { code: code::NOBODY, what: "a rule for a method that does not exist", run: nobody::methods },
    Check { code: code::NO_SUCH_PATH, what: "a path that no request has", run: paths::impossible },
    Check { code: code::STAR, what: "a path of a route with a * in it", run: paths::stars },
    Check { code: code::NO_WORKLOADS, what: "a selector without workloads", run: policies::no_workloads },
    Check { code: code::NO_EFFECT, what: "a policy for tokens that nobody looks at", run: tokens::unseen },
    Check { code: code::NO_WORKLOADS, what: "a service without workloads", run: services::selectors },
    Check { code: code::NO_EFFECT, what: "a service of another namespace", run: services::foreign },
    Check { code: code::DOUBLE_TLS, what: "TLS that cannot work", run: services::tls },
    Check {
        code: code::HTTP_ON_TCP,
        what: "HTTP attributes in a DENY rule for TCP",
        run: policies::http_on_tcp,
    },
    Check { code: code::PROVIDER, what: "a provider that cannot be asked", run: providers::absent },
    Check {
        code: code::PROVIDER,
        what: "a provider that is asked about itself",
        run: providers::about_itself,
    },
    Check { code: code::HTTP_ON_TCP, what: "a provider for TCP ports", run: providers::without_say },
    Check { code: code::NO_EFFECT, what: "a rate limit for another namespace", run: limits::foreign },
    Check {
        code: code::NO_EFFECT,
        what: "a destination's policy for clients of another namespace",
        run: foreign::destinations,
    },
    Check { code: code::HTTP_ON_TCP, what: "a rate limit for TCP ports", run: limits::without_http },
    Check { code: code::LIMIT, what: "more rate limits than are held", run: limits::too_many },
    Check { code: code::SIDECARS, what: "two Sidecars for a namespace", run: sidecars::namespace_wide },
    Check { code: code::SIDECAR_SELECTORS, what: "two Sidecars for a workload", run: sidecars::selectors },
    Check { code: code::NOBODY, what: "an egress host that does not exist", run: sidecars::hosts },
    Check { code: code::REFERENCE, what: "an egress proxy that does not exist", run: sidecars::proxies },
    Check { code: code::NO_EFFECT, what: "a bind that is no workload's address", run: sidecars::binds },
    Check { code: code::CHECK, what: "a health check that waits too long", run: checks::slow },
    Check { code: code::CHECK, what: "a health check that no port takes", run: checks::unasked },
    Check { code: code::HEDGE, what: "a hedge that is never sent", run: hedges::unsent },
    Check { code: code::OPEN_CORS, what: "credentials for pages of every origin", run: cors::open },
];

/// Looks at objects together. Without a catalog, only what the objects themselves can tell is checked.
pub fn analyze(objects: &[Object], catalog: Option<&ServiceCatalog>) -> Vec<Finding> {
    let scene = Scene::new(objects, catalog);
    let mut findings = Vec::new();
    for check in CHECKS {
        (check.run)(&scene, &mut findings);
    }
    let annotated = objects.iter().filter(|object| object.annotations.contains_key(suppress::ANNOTATION));
    let annotated = annotated.map(|object| (object.id(), &object.annotations)).collect();
    suppress::of_analysis(&annotated, &mut findings);
    findings.sort_by(|a, b| (&a.file, a.line, a.column, &a.code).cmp(&(&b.file, b.line, b.column, &b.code)));
    findings
}

/// All objects, sorted by what they say.
struct Scene<'o> {
    objects: &'o [Object],
    catalog: Option<&'o ServiceCatalog>,
    routes: Vec<&'o RouteIntent>,
    destinations: Vec<&'o DestinationIntent>,
    by_host: BTreeMap<&'o Host, Vec<&'o DestinationIntent>>,
    authorization: Vec<&'o AuthorizationIntent>,
    mtls: Vec<&'o MtlsIntent>,
    tokens: Vec<&'o TokensIntent>,
    services: Vec<&'o ServiceIntent>,
    attached: Vec<&'o AttachedIntent>,
    limits: Vec<&'o LimitsIntent>,
    sidecars: Vec<&'o SidecarIntent>,
    roots: Vec<&'o RootsIntent>,
}

impl<'o> Scene<'o> {
    fn new(objects: &'o [Object], catalog: Option<&'o ServiceCatalog>) -> Self {
        let mut scene = Self {
            objects,
            catalog,
            routes: Vec::new(),
            destinations: Vec::new(),
            by_host: BTreeMap::new(),
            authorization: Vec::new(),
            mtls: Vec::new(),
            tokens: Vec::new(),
            services: Vec::new(),
            attached: Vec::new(),
            limits: Vec::new(),
            sidecars: Vec::new(),
            roots: Vec::new(),
        };
        for intent in objects.iter().flat_map(|object| &object.intents) {
            match intent {
                Intent::Route(route) => scene.routes.push(route),
                Intent::Destination(destination) => {
                    scene.destinations.push(destination);
                    scene.by_host.entry(&destination.host).or_default().push(destination);
                }
                Intent::Authorization(policy) => scene.authorization.push(policy),
                Intent::Mtls(policy) => scene.mtls.push(policy),
                Intent::Tokens(tokens) => scene.tokens.push(tokens),
                Intent::Service(service) => scene.services.push(service),
                Intent::Attached(route) => scene.attached.push(route),
                Intent::Limits(limits) => scene.limits.push(limits),
                Intent::Sidecar(sidecar) => scene.sidecars.push(sidecar),
                Intent::Roots(roots) => scene.roots.push(roots),
                Intent::Workload(_) => {}
            }
        }
        scene
    }

    /// The rules that may hold for a host: those for exactly it, and wildcards over it.
    fn destinations_of(&self, host: &Host) -> Vec<&'o DestinationIntent> {
        let exact = self.by_host.get(host).into_iter().flatten().copied();
        let wildcards =
            self.destinations.iter().filter(|intent| intent.host.is_wildcard() && intent.host != *host);
        exact.chain(wildcards.filter(|intent| intent.host.covers(host.as_str())).copied()).collect()
    }

    /// Whose rules for a host's destination count for clients of a namespace, as the control plane has it.
    fn say<'h>(&'h self, host: &'h Host, namespace: &str) -> Say<'h> {
        let roots = || match self.catalog {
            Some(catalog) => catalog.roots(),
            None => DEFAULT_ROOTS.to_vec(),
        };
        let describes = |name: &str| {
            let all = self.services.iter().copied();
            let of = all.filter(|service| service.hosts.iter().any(|known| known.as_str() == name));
            of.filter(|service| service.visibility.includes(namespace)).map(|service| &service.origin).min()
        };
        let is_registered = self.catalog.is_some_and(|catalog| catalog.services.contains_key(host));
        // `example.com` was read as a service of a namespace.
        let bare = Some(short(host)).filter(|name| *name != host.as_str() && !is_registered);
        let described = bare.and_then(describes).map(|origin| origin.namespace.as_str());
        let named = || namespace_of(host);
        let owner = described.or_else(named).or_else(|| Some(describes(host.as_str())?.namespace.as_str()));
        Say { owner, roots: roots() }
    }

    /// Which clients have an object's routes for a host: a page that has no say there is for its own.
    fn clients_of(&self, route: &'o RouteIntent, host: &Host) -> Cow<'o, Visibility> {
        let own = &route.origin.namespace;
        let say = self.say(host, own);
        let is_foreign =
            route.origin.kind == ObjectKind::TrafficRules && say.owner.is_some() && !say.counts(own);
        match is_foreign {
            true => Cow::Owned(Visibility::Namespaces(vec![own.clone()])),
            false => Cow::Borrowed(&route.visibility),
        }
    }

    /// The ports of the service that rules mean by a host, registered or described; `None` where there is no such service.
    fn ports_of(&self, catalog: &ServiceCatalog, host: &Host) -> Option<BTreeSet<u16>> {
        let name = short(host);
        // A name below a described wildcard is the wildcard's: it has no routes, policy or endpoints of its own.
        let means = |known: &Host| known == host || known.as_str() == name;
        let described: Vec<_> =
            self.services.iter().filter(|service| service.hosts.iter().any(means)).collect();
        let exact = catalog.services.get(host);
        let registered = exact
            .or_else(|| catalog.services.iter().find(|(known, _)| means(known)).map(|(_, service)| service));
        if registered.is_none() && described.is_empty() {
            return None;
        }
        let ports = described.into_iter().flat_map(|service| service.ports.keys());
        Some(ports.chain(registered.into_iter().flat_map(|service| service.ports.keys())).copied().collect())
    }

    /// Every target of every route, and where it was written, with the route's object.
    fn targets(&self) -> impl Iterator<Item = (&'o RouteIntent, (&'o Target, &'o Place))> {
        self.routes.iter().flat_map(|route| route.references().map(move |target| (*route, target)))
    }
}

/// Where nobody has chosen another.
const DEFAULT_ROOTS: [&str; 2] = ["outrigger-system", "istio-system"];

/// The namespace of a service of the mesh, also where a wildcard stands for its name.
fn namespace_of(host: &Host) -> Option<&str> {
    host.as_str().split_once(".svc.")?.0.rsplit_once('.').map(|(_, namespace)| namespace)
}

fn finding(
    severity: Severity,
    code: &'static str,
    origin: &Origin,
    place: &Place,
    message: String,
) -> Finding {
    Finding {
        severity,
        code: Cow::Borrowed(code),
        file: origin.file.clone().unwrap_or_default(),
        line: place.line,
        column: place.column,
        object: Some(origin.to_string()),
        path: place.path.clone(),
        message,
        suggestion: None,
    }
}

/// Another object as seen from this one: its namespace only when it is another.
fn seen_from(origin: &Origin, other: &Origin) -> String {
    if origin.namespace == other.namespace {
        return format!("{} {}", other.kind, other.name);
    }
    other.to_string()
}

/// A host as people say it: `reviews.shop` for a service, otherwise all of it.
fn short(host: &Host) -> &str {
    host.as_str().split_once(".svc.").map_or(host.as_str(), |(name, _)| name)
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let mut items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    let more = items.len().saturating_sub(12);
    items.truncate(12);
    let text = items.join(", ");
    if more > 0 { format!("{text} and {more} more") } else { text }
}

#[cfg(test)]
mod tests;
