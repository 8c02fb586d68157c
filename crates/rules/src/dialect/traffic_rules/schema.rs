//! The fields of a page as a schema, for CustomResourceDefinitions.

use serde_json::Value;

use super::actions::{DIRECT, REDIRECT, REGEX, REWRITE};
use super::policy::{BALANCING, CONNECTIONS, HASH, POLICIES, PORT, TRIP, tuning_schema};
use super::routes::{ABORT, DELAY, FAULT, ROUTE, TO};
use super::{SPEC, SUBSET, adaptive, connections, health, hedge, retry, session, streams, upgrades};
use crate::dialect::destination_rule::policy::{COOKIE, TLS, WARMUP};
use crate::dialect::shared::{EDITS, OPERATIONS};
use crate::dialect::{cors, ejection, nearness};
use crate::schema::{DURATION, any, boolean, described, list, mapping, number, object, one_of, text};

/// The whole page.
pub(crate) fn spec() -> Value {
    object(&SPEC, &["service"], |name| match name {
        "service" => text("The service that this page is about, as a host in the object's namespace."),
        "exportTo" => list(text(""), "Namespaces whose clients it is for: names, . for its own, * for all."),
        "routes" => list(route(), "Routes, the first that matches takes a request."),
        "connectionRoutes" => list(connection_route(), "Routes of bytes, and of TLS by its server name."),
        "subsets" => list(subset(), "Parts of the service by labels of its instances."),
        "ports" => list(port(), "What holds for single ports instead; what they leave out is the page's."),
        "healthCheck" => health::schema(),
        "timeout" => text(&format!("For a whole request, {DURATION} 0s is none.")),
        "streams" => streams::schema(),
        "retry" => retry::schema(),
        "hedge" => hedge::schema(),
        "session" => session::schema(),
        "rateLimit" => any(
            "How many requests each instance takes, or all of them together by a service's word: one limit, or a list of up to 32.",
        ),
        "adaptiveConcurrency" => adaptive::schema(),
        "upgrades" => upgrades::schema(),
        part => policy(part),
    })
}

/// The fields that a page, a port and a subset have alike.
fn policy(name: &str) -> Value {
    match name {
        "loadBalancing" => balancing(),
        "circuitBreaker" => breaker(),
        "connections" => connections_schema(),
        "tls" => tls(),
        _ => Value::Null,
    }
}

fn port() -> Value {
    object(&PORT, &["port"], |name| match name {
        "port" => number("Its number."),
        part => policy(part),
    })
}

fn subset() -> Value {
    object(&SUBSET, &["name"], |name| match name {
        "name" => text("Its name."),
        "labels" => mapping(text(""), "Labels that its instances have."),
        "fallback" => text("Who serves while nobody of it runs: any, or the name of another subset."),
        part => policy(part),
    })
}

fn balancing() -> Value {
    let words: Vec<&str> = POLICIES.iter().map(|(word, _)| *word).collect();
    let schema = object(&BALANCING, &[], |name| match name {
        "policy" => one_of(&words, "Which instance is next."),
        "hash" => hash(),
        "size" => number(
            "Of a ring, then laid out as an Envoy does, at least so many places, or of a Maglev table so many, a prime.",
        ),
        "warmup" => object(&WARMUP, &["duration"], |name| match name {
            "duration" => text(&format!("How long an instance that is new has less, {DURATION}")),
            "minimumPercent" => any("How much it has at first."),
            "aggression" => any("How it grows: 1 evenly, more means more at the end."),
            _ => Value::Null,
        }),
        "locality" => nearness::schema(),
        other => tuning_schema(other),
    });
    described(schema, "How requests are shared out.")
}

fn hash() -> Value {
    let schema = object(&HASH, &[], |name| match name {
        "header" => text("The values of this header."),
        "cookie" => object(&COOKIE, &["name"], |name| match name {
            "name" => text("Its name."),
            "path" => text("Its path, where it is made."),
            "ttl" => text("With it a request without the cookie is given one; 0s is until the browser ends."),
            _ => Value::Null,
        }),
        "query" => text("This query parameter."),
        "source" => boolean("The address of the caller."),
        _ => Value::Null,
    });
    described(schema, "What has an instance of its own, for ringHash and maglev.")
}

fn connections_schema() -> Value {
    let schema = object(&CONNECTIONS, &[], |name| match name {
        "connectTimeout" => text(&format!("To open a connection, {DURATION}")),
        "idleTimeout" => text("After which an idle connection for requests is closed; 0s is never."),
        "tcpIdleTimeout" => text("After which a silent connection of bytes is closed; 0s is never."),
        "maxDuration" => text(&format!(
            "How old one may get, {DURATION} One of requests takes no more then; one of bytes is closed."
        )),
        "requestsPerConnection" => number("After which it is closed."),
        "streamsPerConnection" => {
            number("Requests of an HTTP/2 connection at a time; for more another is made.")
        }
        "h2Upgrade" => boolean("Whether requests of HTTP/1 travel as HTTP/2."),
        "useClientProtocol" => boolean("Whether they travel as they came."),
        _ => Value::Null,
    });
    described(schema, "Connections to instances.")
}

fn tls() -> Value {
    let schema = object(&TLS, &[], |name| match name {
        "mode" => one_of(
            &["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"],
            "Plain text, TLS, TLS with a certificate of files, or the mesh's own.",
        ),
        "sni" => text("The name that is asked for."),
        "caCertificates" => text("A file of roots; without it the system's."),
        "clientCertificate" => text("A file, for MUTUAL."),
        "privateKey" => text("A file, for MUTUAL."),
        "subjectAltNames" => list(text(""), "Who the server may be."),
        "credentialName" | "insecureSkipVerify" => any("Not implemented: it has no effect."),
        _ => Value::Null,
    });
    described(schema, "TLS to instances; without it the mesh's own wherever they have it.")
}

fn breaker() -> Value {
    let schema = object(&ejection::BREAKER, &[], |name| match name {
        "maxConnections" => number("Connections to the service."),
        "maxPending" => number("Requests that wait for a connection."),
        "maxRequests" => number("Requests under way."),
        "maxRetries" => number("Retries under way."),
        "trip" => trip(),
        other => ejection::schema(other),
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

/// The fields of a route as a schema.
fn route() -> Value {
    object(&ROUTE, &[], |name| match name {
        "name" => text("For traces and `explain`."),
        "match" => {
            any("Which requests: one match or a list of them, each with path, method, headers and so on.")
        }
        "to" => list(to_schema(), "Where they go; without it, to the service."),
        "redirect" => redirect(),
        "directResponse" => object(&DIRECT, &["status"], |name| match name {
            "status" => number("The HTTP status that is answered."),
            "body" => text("The text that is answered."),
            _ => Value::Null,
        }),
        "rewrite" => rewrite(),
        "headers" => edits(),
        "rateLimit" => any("How many of its requests each instance takes: as the page's, without a match."),
        "timeout" => text("Instead of the page's."),
        "streams" => streams::schema(),
        "retry" => retry::schema(),
        "hedge" => hedge::schema(),
        "session" => session::schema(),
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
        "headers" => edits(),
        _ => Value::Null,
    })
}

fn redirect() -> Value {
    let schema = object(&REDIRECT, &[], |name| match name {
        "path" => text("The whole new path."),
        "prefix" => text("What stands for the prefix that the route matches."),
        "authority" => text("The new host."),
        "scheme" => one_of(&["http", "https"], "The new scheme."),
        "port" => any("The new port, or request: the one that was called."),
        "status" => number("301, 302, 303, 307 or 308; 301 without it."),
        _ => Value::Null,
    });
    described(schema, "Where the client is sent.")
}

fn rewrite() -> Value {
    let schema = object(&REWRITE, &[], |name| match name {
        "path" => text("The whole new path."),
        "prefix" => text("What stands for the prefix that the route matches."),
        "regex" => object(&REGEX, &["pattern", "substitution"], |name| match name {
            "pattern" => text("What of the path is replaced."),
            "substitution" => text("By what; \\1 is the first group."),
            _ => Value::Null,
        }),
        "authority" => text("The new host."),
        _ => Value::Null,
    });
    described(schema, "What the instance sees instead.")
}

fn edits() -> Value {
    let operations = || {
        object(&OPERATIONS, &[], |name| match name {
            "set" => mapping(text(""), "Instead of what is there."),
            "add" => mapping(text(""), "Beside what is there."),
            "remove" => list(text(""), "By name."),
            _ => Value::Null,
        })
    };
    described(object(&EDITS, &[], |_| operations()), "Edits of headers, of the request and of the response.")
}

fn connection_route() -> Value {
    object(&connections::ROUTE, &["to"], |name| match name {
        "match" => {
            any("Which connections: one match or a list of them, each with serverNames, port and so on.")
        }
        "to" => list(
            object(&connections::TO, &[], |name| match name {
                "service" => text("Another service."),
                "subset" => text("A subset by its name."),
                "version" => text("Instances with this label `version`."),
                "port" => number("Another port."),
                "weight" => number("Its share among the targets."),
                _ => Value::Null,
            }),
            "Where they go.",
        ),
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
