//! The native TrafficRules: one page per service with routing, balancing, circuit breaker, rate limits, timeout, retry and fault.
//!
//! Becomes a route intent (when the page says anything about requests or connections), a destination intent (when it says anything
//! about calling the service's instances), and one of their limits.

mod actions;
mod adaptive;
mod connections;
mod health;
mod hedge;
mod limits;
mod matches;
mod policy;
mod retry;
mod routes;
mod schema;
mod session;
mod streams;
mod upgrades;

use std::collections::BTreeMap;

use super::destination_rule::subset_name;
use super::sessions;
use super::shared::visibility;
use crate::finding::quote;
use crate::intent::{
    DestinationIntent, Fallback, HttpRoute, Intent, LimitsIntent, Place, RouteIntent, SubsetIntent,
    TrafficPolicy,
};
use crate::reader::{At, Fields, Reader, Table};

pub(crate) use schema::spec as schema;

const SPEC: Table = Table::new(
    "TrafficRules",
    &[
        "service",
        "exportTo",
        "routes",
        "connectionRoutes",
        "subsets",
        "loadBalancing",
        "circuitBreaker",
        "connections",
        "tls",
        "ports",
        "healthCheck",
        "timeout",
        "streams",
        "retry",
        "hedge",
        "session",
        "rateLimit",
        "adaptiveConcurrency",
        "upgrades",
    ],
);
const SUBSET: Table = Table::new(
    "a subset",
    &["name", "labels", "fallback", "loadBalancing", "circuitBreaker", "connections", "tls"],
);

pub(super) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let service_at = fields.get("service");
    if service_at.is_none() {
        reader.missing(&fields, "service");
    }
    let place = service_at.as_ref().unwrap_or(spec).place();
    let host = reader.one_host(service_at.clone());
    let policy = whole_policy(reader, &fields);
    let ports = policy::ports(reader, fields.get("ports"), &policy);
    let defaults = routes::Defaults {
        timeout: reader.duration(fields.get("timeout")).filter(|timeout| !timeout.is_zero()),
        streams: streams::read(reader, fields.get("streams")),
        retry: retry::read(reader, fields.get("retry")).unwrap_or_default(),
        hedge: hedge::read(reader, fields.get("hedge")),
        session: session::read(reader, fields.get("session")),
    };
    let subsets = subsets(reader, fields.get("subsets"), &policy);
    let limits = limits::Limits::of_page(reader, fields.get("rateLimit"));
    let concurrency = adaptive::read(reader, fields.get("adaptiveConcurrency"));
    let upgrades = upgrades::read(reader, fields.get("upgrades"));
    let mut page = routes::Page { host, defaults, subsets, limits };
    let items = reader.list(fields.get("routes"));
    let mut http: Vec<HttpRoute> = Vec::new();
    for item in &items {
        http.extend(routes::route(reader, item, &mut page));
    }
    let written = service_at.and_then(|at| at.node.as_text().map(str::to_owned));
    let by_connection = connections::read(reader, fields.get("connectionRoutes"), written, &mut page);
    let visibility = visibility(reader, fields.get("exportTo"));
    sessions::mixed_up(reader, &items, &http);
    let Some(host) = page.host.clone() else { return Vec::new() };
    let (origin, created) = (reader.origin.clone(), reader.created.clone());
    if items.is_empty()
        && ["timeout", "streams", "retry", "hedge", "session"].into_iter().any(|field| fields.has(field))
    {
        http.push(routes::everything(&page, &host, place.clone(), &origin));
    }
    let routes::Page { subsets, limits, .. } = page;
    let mut intents = Vec::new();
    let (tls, tcp) = by_connection;
    if !http.is_empty() || !tls.is_empty() || !tcp.is_empty() {
        let (origin, hosts) = (origin.clone(), vec![host.clone()]);
        let (place, visibility) = (place.clone(), visibility.clone());
        let created = created.clone();
        let route = RouteIntent { origin, created, hosts, place, visibility, http, tls, tcp };
        intents.push(Intent::Route(route));
    }
    if !limits.is_empty() || concurrency.is_some() || !upgrades.is_empty() {
        let (origin, place, host) = (origin.clone(), place.clone(), host.clone());
        let (limits, global) = (limits.own, limits.global);
        intents.push(Intent::Limits(LimitsIntent {
            origin,
            host,
            limits,
            global,
            concurrency,
            upgrades,
            place,
        }));
    }
    if !policy.is_empty() || !ports.is_empty() || !subsets.is_empty() {
        intents.push(Intent::Destination(DestinationIntent {
            origin,
            created,
            host,
            place,
            visibility,
            policy,
            ports,
            subsets,
            subsets_only: false,
            merged: Vec::new(),
            backend_tls: Vec::new(),
        }));
    }
    if intents.is_empty() {
        says_nothing(reader, spec, &fields);
    }
    intents
}

/// What is wrong itself was told.
fn says_nothing(reader: &mut Reader<'_>, spec: &At<'_>, fields: &Fields<'_>) {
    let says: Vec<&str> =
        SPEC.known.iter().copied().filter(|name| !["service", "exportTo"].contains(name)).collect();
    if says.iter().all(|name| !fields.has(name)) {
        let message =
            format!("TrafficRules say nothing about their service; write one of {}", says.join(", "));
        reader.error(spec, message);
    }
}

fn subsets(reader: &mut Reader<'_>, at: Option<At<'_>>, page: &TrafficPolicy) -> Vec<SubsetIntent> {
    let (mut subsets, mut fallbacks): (Vec<SubsetIntent>, Vec<(At<'_>, String, Fallback)>) =
        Default::default();
    for item in reader.list(at) {
        let Some(fields) = reader.fields(&item, &SUBSET) else { continue };
        let labels = reader.labels(fields.get("labels"));
        if !fields.has("name") {
            reader.missing(&fields, "name");
        }
        // Limits that it leaves out are the page's.
        let mut policy = policy::read(reader, &fields);
        policy.connection_pool = policy.connection_pool.map(|pool| pool.over(page.connection_pool.as_ref()));
        let Some(name) = subset_name(reader, fields.get("name")) else { continue };
        if subsets.iter().any(|other| other.name == name) {
            reader.error(&item, format!("{}: the subset {} is defined twice", item.path, quote(&name)));
        }
        let fallback = reader.text(fields.get("fallback")).map(|other| match other.as_str() {
            "any" => Fallback::Any,
            _ => Fallback::Subset(other),
        });
        fallbacks.extend(
            fields.get("fallback").zip(fallback.clone()).map(|(at, other)| (at, name.clone(), other)),
        );
        subsets.push(SubsetIntent { fallback, ..subset(name, labels, policy, item.place(), reader) });
    }
    for (at, of, other) in fallbacks {
        let Fallback::Subset(other) = other else {
            if subsets.iter().any(|subset| subset.name == "any") {
                let message = format!(
                    "{} is any, which is all instances, and a subset, too; name the subset otherwise",
                    at.path
                );
                reader.error(&at, message);
            }
            continue;
        };
        if other == of || subsets.iter().all(|subset| subset.name != other) {
            let message =
                format!("{} must be any, or the name of another subset, not {}", at.path, quote(&other));
            reader.error(&at, message);
        }
    }
    subsets
}

fn subset(
    name: String,
    labels: BTreeMap<String, String>,
    policy: TrafficPolicy,
    place: Place,
    reader: &Reader<'_>,
) -> SubsetIntent {
    let (ports, origin) = (BTreeMap::new(), reader.origin.clone());
    SubsetIntent { name, labels, policy, ports, fallback: None, place, origin }
}

/// What holds for the service as a whole.
fn whole_policy(reader: &mut Reader<'_>, fields: &Fields<'_>) -> TrafficPolicy {
    let mut policy = policy::read(reader, fields);
    policy.health_check = health::read(reader, fields.get("healthCheck"));
    // The service's budget also holds for routes with retries of their own.
    if let Some(budget) = fields.get("retry").and_then(|at| {
        let budget = at.node.child("budget")?;
        Some(At { node: budget, path: format!("{}.budget", at.path) })
    }) {
        let noted = reader.findings.len();
        policy.retry_budget = retry::budget(reader, &budget);
        reader.findings.truncate(noted); // told when the retry itself was read
    }
    policy
}

#[cfg(test)]
mod tests;
