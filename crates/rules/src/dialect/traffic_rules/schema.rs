//! The fields of a page as a schema, for CustomResourceDefinitions.

use serde_json::Value;

use super::routes::{ABORT, DELAY, FAULT, ROUTE, TO};
use super::{BALANCING, BREAKER, BUDGET, RETRY, SPEC, SUBSET, TRIP, health, hedge};
use crate::dialect::{cors, nearness};
use crate::schema::{DURATION, any, described, list, mapping, number, object, one_of, text};

/// The whole page.
pub(crate) fn spec() -> Value {
    object(&SPEC, &["service"], |name| match name {
        "service" => text("The service that this page is about, as a host in the object's namespace."),
        "routes" => list(route(), "Routes, the first that matches takes a request."),
        "subsets" => list(subset(), "Parts of the service by labels of its instances."),
        "loadBalancing" => balancing(),
        "circuitBreaker" => breaker(),
        "healthCheck" => health::schema(),
        "timeout" => text(&format!("For a whole request, {DURATION} 0s is none.")),
        "retry" => retry(),
        "hedge" => hedge::schema(),
        "rateLimit" => any(
            "How many requests each instance takes, or all of them together by a service's word: one limit, or a list of up to 32.",
        ),
        _ => Value::Null,
    })
}

fn subset() -> Value {
    object(&SUBSET, &["name"], |name| match name {
        "name" => text("Its name."),
        "labels" => mapping(text(""), "Labels that its instances have."),
        _ => Value::Null,
    })
}

fn balancing() -> Value {
    let words = ["roundRobin", "leastRequest", "random", "ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"];
    let schema = object(&BALANCING, &[], |name| match name {
        "policy" => one_of(&words, "Which instance is next."),
        "locality" => nearness::schema(),
        _ => Value::Null,
    });
    described(schema, "How requests are shared out.")
}

fn breaker() -> Value {
    let schema = object(&BREAKER, &[], |name| match name {
        "maxConnections" => number("Connections to the service."),
        "maxPending" => number("Requests that wait for a connection."),
        "maxRequests" => number("Requests under way."),
        "maxRetries" => number("Retries under way."),
        "consecutiveErrors" => number("Errors in a row that eject an instance."),
        "interval" => text(&format!("Between two looks at ejected instances, {DURATION}")),
        "ejectionTime" => text(&format!("For how long an instance is ejected at first, {DURATION}")),
        "maxEjectionPercent" => number("How much of the service may be ejected."),
        "trip" => trip(),
        _ => Value::Null,
    });
    described(schema, "Limits, ejection of instances that fail, and when nothing more is sent at all.")
}

fn trip() -> Value {
    let schema = object(&TRIP, &[], |name| match name {
        "failurePercent" => any("Opens at this share of failures, above 0 up to 100."),
        "minRequests" => number("Of so many requests at least."),
        "interval" => text(&format!("In so long a time back, {DURATION}")),
        "consecutiveFailures" => number("Opens after so many in a row."),
        "openTime" => text(&format!("How long nothing is sent, {DURATION}")),
        "probes" => number("How many requests must then succeed."),
        _ => Value::Null,
    });
    described(schema, "When nothing more is sent to the service as a whole.")
}

fn retry() -> Value {
    let schema = object(&RETRY, &[], |name| match name {
        "attempts" => number("Retries after the first attempt."),
        "retryOn" => {
            any("What is retried: a list of Envoy's words and statuses, or a text of them with commas.")
        }
        "on" => any("The same; kubectl takes it only in quotes, as a bare on is a boolean to it."),
        "perTryTimeout" => text(&format!("For one attempt, {DURATION}")),
        "backoff" => text(&format!("Before the first retry, {DURATION}")),
        "budget" => object(&BUDGET, &[], |name| match name {
            "percent" => any("Retries in percent of the requests under way."),
            "minConcurrency" => number("So many are always allowed."),
            _ => Value::Null,
        }),
        _ => Value::Null,
    });
    described(schema, "What is tried again.")
}

/// The fields of a route as a schema.
fn route() -> Value {
    object(&ROUTE, &[], |name| match name {
        "name" => text("For traces and `explain`."),
        "match" => {
            any("Which requests: one match or a list of them, each with path, method, headers and so on.")
        }
        "to" => list(to_schema(), "Where they go; without it, to the service."),
        "timeout" => text("Instead of the page's."),
        "retry" => retry(),
        "hedge" => hedge::schema(),
        "fault" => fault_schema(),
        "cors" => cors::schema(),
        "mirror" => any("Who gets copies: one target or a list of them, each with `percent`."),
        _ => Value::Null,
    })
}

fn to_schema() -> Value {
    object(&TO, &[], |name| match name {
        "service" => text("Another service."),
        "subset" => text("A subset by its name."),
        "version" => text("Instances with this label `version`."),
        "port" => number("Another port."),
        "weight" => number("Its share among the targets."),
        _ => Value::Null,
    })
}

fn fault_schema() -> Value {
    let percent = || any("How many requests, in percent; all without it.");
    object(&FAULT, &[], |name| match name {
        "delay" => object(&DELAY, &["duration"], |name| match name {
            "duration" => text("How long a request waits."),
            "percent" => percent(),
            _ => Value::Null,
        }),
        "abort" => object(&ABORT, &[], |name| match name {
            "status" => number("The HTTP status that is answered."),
            "grpcStatus" => any("The gRPC status instead, by number or name."),
            "percent" => percent(),
            _ => Value::Null,
        }),
        _ => Value::Null,
    })
}
