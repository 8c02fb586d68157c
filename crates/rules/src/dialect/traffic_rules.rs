//! The native TrafficRules: one page per service with routing, balancing, circuit breaker, rate limits, timeout, retry and fault.
//!
//! Becomes a route intent (when the page says anything about requests), a destination intent (when it says anything about calling
//! the service's instances), and one of their limits.

mod health;
mod hedge;
mod limits;
mod routes;
mod schema;

use std::collections::BTreeMap;

use outrigger_model::cluster::{Balance, Breaker, Outlier, RetryBudget, SHORTEST_BREAKER_INTERVAL};
use outrigger_model::route::RetryPolicy;

use super::destination_rule::subset_name;
use super::nearness;
use super::shared::retry_on;
use crate::finding::quote;
use crate::intent::{
    ConnectionPool, DestinationIntent, HttpRoute, Intent, LimitsIntent, LoadBalancing, RouteIntent,
    SubsetIntent, TrafficPolicy, Visibility,
};
use crate::reader::{At, Reader, Table};
use crate::yaml::Value;

pub(crate) use schema::spec as schema;

const SPEC: Table = Table::new(
    "TrafficRules",
    &[
        "service",
        "routes",
        "subsets",
        "loadBalancing",
        "circuitBreaker",
        "healthCheck",
        "timeout",
        "retry",
        "hedge",
        "rateLimit",
    ],
);
const SUBSET: Table = Table::new("a subset", &["name", "labels"]);
const BALANCING: Table = Table::new("load balancing", &["policy", "locality"]);
const BREAKER: Table = Table::new(
    "a circuit breaker",
    &[
        "maxConnections",
        "maxPending",
        "maxRequests",
        "maxRetries",
        "consecutiveErrors",
        "interval",
        "ejectionTime",
        "maxEjectionPercent",
        "trip",
    ],
);
const TRIP: Table = Table::new(
    "what trips a circuit breaker",
    &["failurePercent", "minRequests", "interval", "consecutiveFailures", "openTime", "probes"],
);
const RETRY: Table =
    Table::new("a retry", &["attempts", "retryOn", "on", "perTryTimeout", "backoff", "budget"]);
const BUDGET: Table = Table::new("a retry budget", &["percent", "minConcurrency"]);

pub(super) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let service_at = fields.get("service");
    if service_at.is_none() {
        reader.missing(&fields, "service");
    }
    let place = service_at.as_ref().unwrap_or(spec).place();
    let host = reader.one_host(service_at);
    let mut subsets = subsets(reader, fields.get("subsets"));
    let defaults = routes::Defaults {
        timeout: reader.duration(fields.get("timeout")).filter(|timeout| !timeout.is_zero()),
        retry: retry(reader, fields.get("retry")).unwrap_or_default(),
        hedge: hedge::read(reader, fields.get("hedge")),
    };
    let items = reader.list(fields.get("routes"));
    let mut http: Vec<HttpRoute> = Vec::new();
    for item in &items {
        http.extend(routes::route(reader, item, host.as_ref(), &defaults, &mut subsets));
    }
    let policy = policy(reader, &fields);
    let (limits, global) = limits::read(reader, fields.get("rateLimit"));
    let Some(host) = host else { return Vec::new() };
    if items.is_empty() && ["timeout", "retry", "hedge"].into_iter().any(|field| fields.has(field)) {
        http.push(routes::everything(&host, defaults, place.clone()));
    }
    let origin = reader.origin.clone();
    let mut intents = Vec::new();
    if !http.is_empty() {
        let hosts = vec![host.clone()];
        let visibility = Visibility::Everyone;
        let (origin, place) = (origin.clone(), place.clone());
        let (tls, tcp) = (Vec::new(), Vec::new());
        intents.push(Intent::Route(RouteIntent { origin, hosts, place, visibility, http, tls, tcp }));
    }
    if !limits.is_empty() || !global.is_empty() {
        let (origin, place, host) = (origin.clone(), place.clone(), host.clone());
        intents.push(Intent::Limits(LimitsIntent { origin, host, limits, global, place }));
    }
    if !policy.is_empty() || !subsets.is_empty() {
        intents.push(Intent::Destination(DestinationIntent {
            origin,
            host,
            place,
            visibility: Visibility::Everyone,
            policy,
            ports: BTreeMap::new(),
            subsets,
            subsets_only: false,
            merged: Vec::new(),
        }));
    }
    if intents.is_empty() && !fields.has("rateLimit") && !fields.has("healthCheck") {
        reader.error(spec, "TrafficRules say nothing about their service; write routes, timeout, retry, hedge, loadBalancing, circuitBreaker, healthCheck, rateLimit or subsets");
    }
    intents
}

fn subsets(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<SubsetIntent> {
    let mut subsets: Vec<SubsetIntent> = Vec::new();
    for item in reader.list(at) {
        let Some(fields) = reader.fields(&item, &SUBSET) else { continue };
        let labels = reader.labels(fields.get("labels"));
        if !fields.has("name") {
            reader.missing(&fields, "name");
        }
        let Some(name) = subset_name(reader, fields.get("name")) else { continue };
        if subsets.iter().any(|other| other.name == name) {
            reader.error(&item, format!("{}: the subset {} is defined twice", item.path, quote(&name)));
        }
        subsets.push(SubsetIntent {
            name,
            labels,
            policy: TrafficPolicy::default(),
            ports: BTreeMap::new(),
            place: item.place(),
            origin: reader.origin.clone(),
        });
    }
    subsets
}

fn policy(reader: &mut Reader<'_>, fields: &crate::reader::Fields<'_>) -> TrafficPolicy {
    let words = [
        ("roundRobin", Balance::RoundRobin),
        ("leastRequest", Balance::LeastRequest),
        ("random", Balance::Random),
        ("ROUND_ROBIN", Balance::RoundRobin),
        ("LEAST_REQUEST", Balance::LeastRequest),
        ("RANDOM", Balance::Random),
    ];
    let mut policy = TrafficPolicy::default();
    let balancing = fields.get("loadBalancing");
    if let Some(balancing) = balancing.and_then(|at| reader.fields(&at, &BALANCING)) {
        if !balancing.has("policy") && !balancing.has("locality") {
            reader.missing(&balancing, "policy");
        }
        policy.load_balancing = reader.choice(balancing.get("policy"), &words).map(LoadBalancing::from);
        policy.nearness = balancing.get("locality").and_then(|at| nearness::read(reader, &at));
    }
    if let Some(at) = fields.get("circuitBreaker") {
        breaker(reader, &at, &mut policy);
    }
    policy.health_check = health::read(reader, fields.get("healthCheck"));
    // The service's budget also holds for routes with retries of their own.
    if let Some(budget) = fields.get("retry").and_then(|at| {
        let budget = at.node.child("budget")?;
        Some(At { node: budget, path: format!("{}.budget", at.path) })
    }) {
        let noted = reader.findings.len();
        policy.retry_budget = self::budget(reader, &budget);
        reader.findings.truncate(noted); // told when the retry itself was read
    }
    policy
}

fn breaker(reader: &mut Reader<'_>, at: &At<'_>, policy: &mut TrafficPolicy) {
    let Some(fields) = reader.fields(at, &BREAKER) else { return };
    let mut limit = |name| reader.number(fields.get(name), 0..=u32::MAX);
    let pool = ConnectionPool {
        max_connections: limit("maxConnections"),
        max_pending_requests: limit("maxPending"),
        max_requests: limit("maxRequests"),
        max_retries: limit("maxRetries"),
        ..ConnectionPool::default()
    };
    if pool != ConnectionPool::default() {
        policy.connection_pool = Some(pool);
    }
    policy.breaker = fields.get("trip").and_then(|at| trip(reader, &at));
    let ejection = ["consecutiveErrors", "interval", "ejectionTime", "maxEjectionPercent"];
    if ejection.into_iter().any(|name| fields.has(name)) {
        let default = Outlier::default();
        let base_ejection = reader.positive(fields.get("ejectionTime")).unwrap_or(default.base_ejection);
        policy.outlier = Some(Outlier {
            consecutive_5xx: reader
                .number(fields.get("consecutiveErrors"), 0..=u32::MAX)
                .unwrap_or(default.consecutive_5xx),
            interval: reader.positive(fields.get("interval")).unwrap_or(default.interval),
            base_ejection,
            max_ejection: default.max_ejection.max(base_ejection),
            max_ejection_percent: reader
                .number(fields.get("maxEjectionPercent"), 0..=100)
                .unwrap_or(default.max_ejection_percent),
            ..default
        });
    }
}

/// When nothing more is sent to the service as a whole. Where only failures in a row are said, only they open it.
fn trip(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Breaker> {
    let fields = reader.fields(at, &TRIP)?;
    let default = Breaker::default();
    let consecutive_failures = reader.number(fields.get("consecutiveFailures"), 1..=1_000_000);
    let unsaid = if consecutive_failures.is_some() { 0.0 } else { default.failure_percent };
    let percent = |value: f64| 0.0 < value && value <= 100.0;
    let failure_percent =
        reader.decimal(fields.get("failurePercent"), "a percentage above 0, up to 100", percent);
    let interval = reader.positive(fields.get("interval")).unwrap_or(default.interval);
    if let Some(at) = fields.get("interval").filter(|_| interval < SHORTEST_BREAKER_INTERVAL) {
        reader.error(&at, format!("{}: must be at least 100ms", at.path));
    }
    Some(Breaker {
        failure_percent: failure_percent.unwrap_or(unsaid),
        minimum_requests: reader
            .number(fields.get("minRequests"), 1..=1_000_000)
            .unwrap_or(default.minimum_requests),
        interval,
        consecutive_failures: consecutive_failures.unwrap_or(0),
        open_time: reader.positive(fields.get("openTime")).unwrap_or(default.open_time),
        probes: reader.number(fields.get("probes"), 1..=1_000).unwrap_or(default.probes),
    })
}

/// A retry block; what it leaves out has our defaults.
fn retry(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<RetryPolicy> {
    let fields = reader.fields(&at?, &RETRY)?;
    let mut policy = RetryPolicy::default();
    if let Some(at) = fields.get("on").filter(|_| fields.has("retryOn")) {
        reader.error(&at, format!("{}: on and retryOn are the same field; write retryOn", at.path));
    }
    // kubectl reads YAML 1.1, where a bare `on` is a boolean.
    if let Some(at) = fields.get("retryOn").or(fields.get("on")) {
        // A list, or Envoy's comma-separated text.
        let words = match at.node.as_text() {
            Some(text) => text.to_owned(),
            None => {
                let items = reader.list(Some(at.clone()));
                let words = items.into_iter().filter_map(|item| match &item.node.value {
                    Value::Number(status) => Some(status.clone()),
                    _ => reader.text(Some(item)),
                });
                words.collect::<Vec<_>>().join(",")
            }
        };
        (policy.on, policy.statuses) = retry_on(reader, &at, &words);
    }
    policy.attempts = reader.number(fields.get("attempts"), 0..=100).unwrap_or(policy.attempts);
    policy.per_try_timeout = reader.positive(fields.get("perTryTimeout"));
    // It is the destination's, or has no effect; here it is only looked at.
    fields.get("budget").and_then(|at| budget(reader, &at));
    Some(policy.with_backoff(reader.positive(fields.get("backoff"))))
}

fn budget(reader: &mut Reader<'_>, at: &At<'_>) -> Option<RetryBudget> {
    let fields = reader.fields(at, &BUDGET)?;
    let default = RetryBudget::default();
    Some(RetryBudget {
        percent: reader.percent(fields.get("percent")).unwrap_or(default.percent),
        min_concurrency: reader
            .number(fields.get("minConcurrency"), 0..=u32::MAX)
            .unwrap_or(default.min_concurrency),
    })
}

#[cfg(test)]
mod tests;
