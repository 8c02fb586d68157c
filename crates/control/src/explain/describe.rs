//! A service as its clients have it: what holds for each of its ports, and which object says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrigger_model::endpoint::{EndpointSet, Health};
use outrigger_model::listener::{FilterChain, Terminal};
use outrigger_model::rate_limit::RateLimit;
use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_model::route::{Route, VirtualHost};
use outrigger_rules::intent::{AuthorizationAction, AuthorizationIntent, GlobalIntent, LimitsIntent};
use outrigger_rules::{Finding, Object, analyze};
use outrigger_xds::ClientKind;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::body::{LevelBody, Lost, RouteBody};
use super::inbound::mode_name;
use super::{MOST_LOST, See, Unexplained, levels, lost, source, words};
use crate::compile::names;
use crate::compile::scope::{REGEX_LIMIT, Scope};
use crate::keeper::rules::catalog;
use crate::world::{Service, World};

/// Which service to describe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct DescribeQuery {
    /// As `reviews`, `reviews.shop`, `shop/reviews`, or a whole host.
    pub service: String,
    /// As a sidecar of this instance or service has it. Default: any client of the service's own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// The effective rules of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// The generation of the world that it was looked up in.
    pub generation: u64,
    /// Its host.
    pub host: String,
    /// Its namespace.
    pub namespace: String,
    /// Whose view this is.
    pub seen_by: String,
    /// How many instances are registered.
    pub instances: usize,
    /// The user objects that describe it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub described_by: Vec<String>,
    /// What stands for it where there is only room for an address.
    pub addresses: Vec<String>,
    /// Its ports.
    pub ports: Vec<PortBody>,
    /// Limits of rate, and of requests under way, that hold for what comes in, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// Policies that hold for what comes in.
    pub policies: Vec<PolicyBody>,
    /// Rules for it that do not hold here, and why.
    pub lost: Vec<Lost>,
    /// What is wrong with any of these rules.
    #[schema(value_type = Vec<crate::api::types::FindingBody>)]
    pub findings: Vec<Finding>,
}

/// A port of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortBody {
    /// Its number.
    pub port: u16,
    /// What it speaks.
    pub protocol: String,
    /// Its routes, in the order in which they are looked at; at most 200.
    pub routes: Vec<RouteBody>,
    /// How many these are in all.
    pub routes_count: usize,
    /// The whole service, and each of its subsets.
    pub clusters: Vec<ClusterBody>,
    /// What its instances accept.
    pub mtls: Vec<ModeBody>,
}

/// A service's port as a whole, or a subset of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterBody {
    /// Its name; empty for the whole.
    pub subset: String,
    /// Labels that instances must have.
    pub labels: BTreeMap<String, String>,
    /// The user object that shapes it; absent: nobody's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Balancing, TLS, limits and ejection, in words.
    pub policy: Vec<String>,
    /// How requests are spread over priorities and places, the nearest first; empty where there is only one, or where that depends on
    /// the client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<LevelBody>,
    /// Endpoints that take requests; absent: the proxies find them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy: Option<usize>,
    /// All endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<usize>,
}

/// An mTLS mode and where it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModeBody {
    /// `STRICT`, `PERMISSIVE` or `DISABLE`; `none` where there is no sidecar.
    pub mode: String,
    /// The user object that says so; absent: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Of how many instances.
    pub instances: usize,
}

/// A policy for what comes in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyBody {
    /// The user object.
    pub origin: String,
    /// `ALLOW`, `DENY`, `AUDIT`, or `CUSTOM` and who is asked.
    pub action: String,
    /// How many rules it has; with none an ALLOW denies everything.
    pub rules: usize,
    /// At how many instances.
    pub instances: usize,
}

/// Describes a service; `objects` are all rules of the mesh.
///
/// # Errors
/// There is no such service, or no such client.
pub(crate) fn describe(
    world: &Arc<World>,
    objects: &[Object],
    query: &DescribeQuery,
) -> Result<Description, Unexplained> {
    let service = service(world, &query.service).map_err(Unexplained::Unknown)?;
    let (see, seen_by) = match &query.from {
        Some(from) => {
            let instance = source::instance(world, from).map_err(Unexplained::Unknown)?;
            let see = See::own(world, instance);
            let by = see.sidecar().map_or(String::new(), |sidecar| format!(", with {}", sidecar.origin));
            (see, format!("{} ({}{by})", instance.id, source::service_of(instance)))
        }
        None => {
            (anybody(world, &service.namespace), format!("clients of the namespace {}", service.namespace))
        }
    };
    let mut lost = BTreeSet::new();
    let ports = service.ports.keys().filter_map(|number| {
        lost.extend(
            lost::rules(&see, service, *number).into_iter().map(|one| (one.origin, one.rule, one.why)),
        );
        port(&see, service, *number)
    });
    let ports = ports.collect();
    let lost = lost.into_iter().take(MOST_LOST).map(|(origin, rule, why)| Lost { rule, origin, why });
    Ok(Description {
        generation: world.generation,
        host: service.host.to_string(),
        namespace: service.namespace.clone(),
        seen_by,
        instances: service.instances.len(),
        described_by: service.described.iter().map(|intent| intent.origin.to_string()).collect(),
        addresses: service.addresses(see.namespace()).iter().map(ToString::to_string).collect(),
        ports,
        limits: limits(world, service),
        policies: policies(world, service),
        lost: lost.collect(),
        findings: findings(world, service, objects),
    })
}

/// The service that is meant.
fn service<'w>(world: &'w World, text: &str) -> Result<&'w Service, String> {
    let whole = match text.split_once('/') {
        Some((namespace, name)) => world.resolver.resolve(name, namespace).ok(),
        None => world.resolver.resolve(text, "").ok().filter(|_| text.contains('.')),
    };
    if let Some(host) = whole {
        let found = world.service(&host).or_else(|| world.service(&world.resolver.bare(&host)?));
        return found.ok_or_else(|| {
            format!("there is no service {text:?}; GET /v1/services lists those that there are")
        });
    }
    let found: Vec<_> = world.services().filter(|service| service.name == text).collect();
    match found.as_slice() {
        [] => Err(format!("there is no service {text:?}; GET /v1/services lists those that there are")),
        [only] => Ok(only),
        several => {
            let names = several.iter().map(|service| format!("{}.{}", service.name, service.namespace));
            Err(format!("{text:?} may be {}; say which", source::listed(names)))
        }
    }
}

fn anybody<'w>(world: &'w Arc<World>, namespace: &str) -> See<'w> {
    let scope = Scope {
        kind: ClientKind::Outrigger,
        namespace: namespace.to_owned(),
        service_account: String::new(),
        instance: None,
        bind: None,
        secure: false,
        regex_limit: REGEX_LIMIT,
    };
    See { world, scope }
}

fn port(see: &See<'_>, service: &Service, number: u16) -> Option<PortBody> {
    let protocol = service.offer(number, see.namespace())?.protocol;
    let name = names::outbound(number, "", service.host.as_str());
    let chains = see.listener(&name).map(|listener| listener.chains).unwrap_or_default();
    let mut routes: Vec<RouteBody> = chains.iter().flat_map(|chain| of_chain(see, chain)).collect();
    let routes_count = routes.len();
    routes.truncate(MOST_LOST);
    let rule = see.world.destination_for(&service.host, see.namespace());
    let subsets = rule.iter().flat_map(|rule| &rule.subsets);
    let parts = subsets.map(|subset| (subset.name.clone(), subset.labels.clone()));
    let parts = std::iter::once((String::new(), BTreeMap::new())).chain(parts);
    let clusters = parts.filter_map(|(subset, labels)| cluster(see, service, number, subset, labels));
    let protocol = serde_json::to_value(protocol).ok();
    Some(PortBody {
        port: number,
        protocol: protocol.and_then(|protocol| protocol.as_str().map(str::to_owned)).unwrap_or_default(),
        routes,
        routes_count,
        clusters: clusters.collect(),
        mtls: modes(see.world, service, number),
    })
}

/// Routes of HTTP; of bytes one, where connections go.
fn of_chain(see: &See<'_>, chain: &FilterChain) -> Vec<RouteBody> {
    match &chain.terminal {
        Terminal::Http(http) => {
            let routes = see.routes(http);
            let hosts = routes.iter().flat_map(|routes| &routes.virtual_hosts);
            hosts.flat_map(|host| host.routes.iter().map(move |route| body(host, route))).collect()
        }
        Terminal::Tcp(tcp) => vec![words::connections(chain, tcp)],
    }
}

fn body(host: &VirtualHost, route: &Route) -> RouteBody {
    words::route(&host.name, route, host.retry.as_ref())
}

fn cluster(
    see: &See<'_>,
    service: &Service,
    port: u16,
    subset: String,
    labels: BTreeMap<String, String>,
) -> Option<ClusterBody> {
    let name = names::outbound(port, &subset, service.host.as_str());
    let Some(Resource::Cluster(cluster)) = see.resource(ResourceKind::Cluster, &name) else { return None };
    let set = see.endpoints(&cluster);
    let healthy =
        |set: &EndpointSet| set.iter().filter(|endpoint| endpoint.health == Health::Healthy).count();
    let mut policy = words::policy(&cluster);
    let rule = see.world.destination_for(&service.host, see.namespace());
    let of = Some(subset.as_str()).filter(|subset| !subset.is_empty());
    let nearness = rule.and_then(|rule| rule.effective(of, port).nearness).filter(|nearness| !nearness.off);
    // Where any client is, nobody knows.
    let depends = nearness.is_some() && see.scope.instance.is_none();
    let why = if depends { "; whose these are depends on the client (--from)" } else { "" };
    policy.extend(nearness.map(|nearness| words::nearness(&nearness) + why));
    let levels = set.as_ref().filter(|_| !depends).map(levels::of).unwrap_or_default();
    Some(ClusterBody {
        subset,
        labels,
        origin: cluster.origin.as_ref().map(ToString::to_string),
        policy,
        levels,
        healthy: set.as_ref().map(healthy),
        endpoints: set.as_ref().map(EndpointSet::len),
    })
}

fn modes(world: &World, service: &Service, port: u16) -> Vec<ModeBody> {
    let mut modes: BTreeMap<(&str, Option<String>), usize> = BTreeMap::new();
    for instance in service.instances.iter().filter(|instance| instance.port(port).is_some()) {
        let (mode, by) = world.mtls_of(instance, port);
        let key = match instance.sidecar {
            true => (mode_name(mode), by.map(|intent| intent.origin.to_string())),
            false => ("none", None),
        };
        *modes.entry(key).or_default() += 1;
    }
    let body = |((mode, origin), instances): ((&str, Option<String>), usize)| ModeBody {
        mode: mode.to_owned(),
        origin,
        instances,
    };
    modes.into_iter().map(body).collect()
}

/// All instances have the same.
fn limits(world: &World, service: &Service) -> Vec<String> {
    let intents = service.instances.first().into_iter().flat_map(|instance| world.limits_for(instance));
    let one = |intent: &LimitsIntent| {
        let by = &intent.origin;
        let line = |limit: &RateLimit| format!("{} ({by}): for {}", words::limit(limit), limit.matches);
        let global = |global: &GlobalIntent| {
            let asked = words::global_limit(&global.limit, &global.provider);
            format!("{asked} ({by}): for {}", global.limit.matches)
        };
        let concurrency = |limit| format!("{} ({by})", words::concurrency(limit));
        let rates = intent.limits.iter().map(line).chain(intent.global.iter().map(global));
        rates.chain(intent.concurrency.iter().map(concurrency)).collect::<Vec<_>>()
    };
    intents.flat_map(one).collect()
}

fn policies(world: &World, service: &Service) -> Vec<PolicyBody> {
    let mut found: BTreeMap<String, (&AuthorizationIntent, usize)> = BTreeMap::new();
    for intent in service.instances.iter().flat_map(|instance| world.authorization_for(instance)) {
        found.entry(intent.origin.to_string()).or_insert((intent, 0)).1 += 1;
    }
    let body = |(origin, (intent, instances)): (String, (&AuthorizationIntent, usize))| PolicyBody {
        origin,
        action: match &intent.action {
            AuthorizationAction::Allow => "ALLOW".to_owned(),
            AuthorizationAction::Deny => "DENY".to_owned(),
            AuthorizationAction::Audit => "AUDIT".to_owned(),
            AuthorizationAction::Custom(provider) => format!("CUSTOM by {provider}"),
        },
        rules: intent.rules.len(),
        instances,
    };
    found.into_iter().map(body).collect()
}

/// What the analyzer says of objects that are about the service, for whichever client.
fn findings(world: &World, service: &Service, objects: &[Object]) -> Vec<Finding> {
    let mut about: BTreeSet<String> = BTreeSet::new();
    about.extend(world.routes_over(&service.host).iter().map(|rule| rule.origin.to_string()));
    about.extend(world.attached_over(&service.host).iter().map(|rule| rule.origin.to_string()));
    about.extend(world.destinations_over(&service.host).iter().map(|rule| rule.origin.to_string()));
    about.extend(service.described.iter().map(|rule| rule.origin.to_string()));
    for instance in &service.instances {
        about.extend(world.authorization_for(instance).iter().map(|rule| rule.origin.to_string()));
        about.extend(world.tokens_for(instance).iter().map(|rule| rule.origin.to_string()));
        about.extend(world.limits_for(instance).map(|rule| rule.origin.to_string()));
        about.extend(world.mtls_for(instance).map(|rule| rule.origin.to_string()));
    }
    if about.is_empty() {
        return Vec::new();
    }
    let mut findings = analyze(objects, Some(&catalog(world)));
    findings.retain(|finding| finding.object.as_ref().is_some_and(|object| about.contains(object)));
    findings
}

#[cfg(test)]
mod tests;
