//! Rules against a real Envoy: whatever rule is taken, Envoy refuses nothing of what it is sent, and the routes of other services
//! go on. What it would refuse is left out, and the rule says so.

use outrigger_control::api::types::RuleState;
use outrigger_tests::app::{echo, exchange, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::require;
use outrigger_tests::wait::eventually;

use crate::BINARY;
use crate::foreign::start_envoy;
use crate::thin_thread::catalog;

/// What becomes of a rule.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// `apply` refuses it, as Istio does.
    Refused,
    /// Envoy has it.
    Enforced,
    /// The route is left out for Envoy.
    LeftOut,
}
use Fate::{Enforced, LeftOut, Refused};

/// Fields of a VirtualService's route beside its destination.
const ROUTES: &[(&str, Fate)] = &[
    ("match: [{uri: {regex: '/api/v[0-9]+/.*'}}]", Enforced),
    ("match: [{uri: {regex: 'x{90}'}}]", Enforced),
    ("match: [{uri: {regex: 'x{100}'}}]", LeftOut),
    ("match: [{uri: {regex: '/static/[a-zA-Z0-9._-]{0,200}/'}}]", LeftOut),
    ("match: [{headers: {x-a: {regex: '[^/]{50}'}}}]", LeftOut),
    ("match: [{queryParams: {q: {regex: '.{20}'}}}]", LeftOut),
    ("match: [{uri: {regex: '/a(?<n>b)'}}]", LeftOut),
    ("match: [{uri: {regex: '[a-z&&[^b]]+'}}]", Refused),
    ("match: [{uri: {regex: '(a{100}){20}'}}]", LeftOut),
    ("match: [{uri: {regex: ''}}]", Refused),
    ("rewrite: {uriRegexRewrite: {match: '^/a/(.*)$', rewrite: '/b/\\1'}}", Enforced),
    ("rewrite: {uriRegexRewrite: {match: '^/a/(.*)$', rewrite: '/b/\\2'}}", Refused),
    ("rewrite: {}", Refused),
    ("rewrite: {uri: /b, authority: other.test}", Enforced),
    ("timeout: 100us", Refused),
    ("timeout: 1ms", Enforced),
    ("headers: {request: {set: {':authority': other.test, x-b: '100%%'}, add: {x-c: d}}}", Enforced),
    ("headers: {request: {remove: [host]}}", Refused),
    ("headers: {request: {set: {x-b: '100%'}}}", Refused),
    ("headers: {request: {set: {x-b: '%UPSTREAM_HOST%'}}}", Refused),
    (
        "headers: {request: {set: {x-a: '%REQ(x-b?:path):9% %PROTOCOL% %START_TIME% %START_TIME(%Y-%m-%d %s %3f)% %DOWNSTREAM_REMOTE_ADDRESS% \
         %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% \
         %DOWNSTREAM_LOCAL_PORT% %REQUESTED_SERVER_NAME% %DOWNSTREAM_PEER_URI_SAN% %ROUTE_NAME% %UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW%'}}}",
        Enforced,
    ),
    (
        "headers: {response: {add: {x-a: '%RESP(x-b?:status)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS% %UPSTREAM_HOST% \
         %UPSTREAM_REMOTE_ADDRESS% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_LOCAL_PORT% \
         %UPSTREAM_REQUEST_ATTEMPT_COUNT%'}}}",
        Enforced,
    ),
    (
        "fault: {delay: {fixedDelay: 1ms, percentage: {value: 0.01}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 1}}}",
        Enforced,
    ),
    (
        "corsPolicy: {allowOrigins: [{exact: 'https://a.test'}, {regex: 'https://[ab].test'}], allowMethods: [GET], maxAge: 1h}",
        Enforced,
    ),
    ("corsPolicy: {allowOrigins: [{regex: 'https://.{100}'}]}", LeftOut),
    (
        "mirrors: [{destination: {host: catalog}, percentage: {value: 0.5}}, {destination: {host: catalog}}]",
        Enforced,
    ),
    ("retries: {attempts: 3, retryOn: '5xx,429', perTryTimeout: 1s, backoff: 1ms}", Enforced),
];

/// Fields of a DestinationRule's policy.
const POLICIES: &[(&str, Fate)] = &[
    ("connectionPool: {tcp: {connectTimeout: 100us}}", Refused),
    ("connectionPool: {}", Refused),
    (
        "connectionPool: {tcp: {maxConnections: 5, connectTimeout: 1ms}, http: {idleTimeout: 1s, maxRequestsPerConnection: 3, maxConcurrentStreams: 2147483647}}",
        Enforced,
    ),
    (
        "outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 600s, maxEjectionPercent: 100}",
        Enforced,
    ),
    (
        "loadBalancer: {simple: LEAST_REQUEST, warmup: {duration: 30s, minimumPercent: 1, aggression: 2}}",
        Enforced,
    ),
    ("loadBalancer: {consistentHash: {httpHeaderName: x-user, maglev: {tableSize: 65537}}}", Enforced),
    ("loadBalancer: {consistentHash: {useSourceIp: true, ringHash: {minimumRingSize: 8388608}}}", Enforced),
    ("loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 65536}}}", Refused),
    ("retryBudget: {percent: 0.5, minRetryConcurrency: 1}", Enforced),
    (
        "outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2, minHealthPercent: 50}",
        Enforced,
    ),
    ("loadBalancer: {zoneAwareLbSetting: {enabled: true}}", Enforced),
];

/// Fields of a native page.
const PAGES: &[(&str, Fate)] = &[
    (
        "healthCheck: {http: {path: '/h?a=b', host: a.test, method: HEAD, expectedStatuses: [200, 300-399]}, interval: 100ms, \
         initialJitter: 1s, intervalJitter: 1ms, intervalJitterPercent: 5, unhealthyThreshold: 9, noTrafficInterval: 1s}",
        Enforced,
    ),
    ("healthCheck: {tcp: {}}", Enforced),
    (r#"healthCheck: {tcp: {send: "PING\r\n", receive: ["+PONG", "\n"]}, port: 8080}"#, Enforced),
    ("healthCheck: {grpc: {serviceName: a.B, authority: a.test}, port: 8080}", Enforced),
    ("{circuitBreaker: {consecutiveErrors: 3}, healthCheck: {http: {path: /}}}", Enforced),
    ("{hedge: {hedgeOnPerTryTimeout: true, allMethods: true}, retry: {perTryTimeout: 1s}}", Enforced),
    ("{hedge: {hedgeOnPerTryTimeout: true}, retry: {perTryTimeout: 1s}}", LeftOut),
    ("hedge: {delay: p95}", LeftOut),
    (
        "circuitBreaker: {consecutiveErrors: 0, consecutiveConnectErrors: 3, maxEjectionTime: 90s, ejectionJitter: 1s, minHealthPercent: 30, \
         successRate: {minHosts: 3, stdevFactor: 1.5}, failurePercentage: {threshold: 50, minRequests: 9, enforcePercent: 50}}",
        Enforced,
    ),
    ("loadBalancing: {choices: 5, bias: 0, warmup: {duration: 3s}}", Enforced),
    ("loadBalancing: {fullScan: true, bias: 1.5, warmup: {duration: 3s}}", Enforced),
    (
        "loadBalancing: {policy: reportedLoad, reports: {metrics: [named_metrics.a]}, warmup: {duration: 3s}}",
        Enforced,
    ),
    ("loadBalancing: {policy: peakEwma, warmup: {duration: 3s}}", LeftOut),
    ("loadBalancing: {locality: {capacity: 3}}", LeftOut),
    ("loadBalancing: {locality: {costs: {'*': 1}}}", Enforced),
];

fn rule(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n{spec}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_refuses_nothing_of_what_it_is_sent() {
    let Some(envoy) = require::tool("envoy") else { return };
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    echo(catalog.app, "catalog-v1").await;
    mesh.apply(crate::thin_thread::STRICT).await;
    let _envoy = start_envoy(&mesh, &envoy, "DELTA_GRPC").await;
    let entry = mesh.address(30, 8080);
    let call = || async {
        let request = "GET / HTTP/1.1\r\nHost: catalog.shop:8080\r\nConnection: close\r\n\r\n";
        match exchange(entry, request).await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    eventually("a request through Envoy", call).await;
    let route = |fields: &str| {
        let to = "route: [{destination: {host: catalog}}]";
        rule(
            "VirtualService",
            "probe",
            &format!("  hosts: [catalog]\n  http:\n  - {fields}\n    {to}\n  - {to}\n"),
        )
    };
    let policy = |fields: &str| {
        rule("DestinationRule", "probe", &format!("  host: catalog\n  trafficPolicy: {{{fields}}}\n"))
    };
    let routes = ROUTES.iter().map(|(fields, fate)| ("VirtualService", route(fields), *fate));
    let policies = POLICIES.iter().map(|(fields, fate)| ("DestinationRule", policy(fields), *fate));
    let page = |fields: &str| {
        let fields = fields.strip_prefix("{").and_then(|rest| rest.strip_suffix('}')).unwrap_or(fields);
        let page = format!("  {{service: catalog, {fields}}}\n");
        rule("TrafficRules", "probe", &page).replace("networking.istio.io/v1", "outrigger.io/v1")
    };
    let pages = PAGES.iter().map(|(fields, fate)| ("TrafficRules", page(fields), *fate));
    for (kind, text, expected) in routes.chain(policies).chain(pages) {
        let fate = match mesh.try_apply(&text).await {
            Err(error) => {
                assert!(!error.findings().is_empty(), "{text}: {error}");
                Refused
            }
            Ok(applied) => {
                let in_force = applied.in_force.unwrap();
                assert!(in_force.waiting.is_empty() && in_force.refused.is_empty(), "{text}: {in_force:?}");
                let status = mesh.client.rules_status().await.unwrap();
                let rule = status.iter().find(|rule| rule.name == "probe" && rule.kind == kind).unwrap();
                assert_eq!(
                    rule.state == RuleState::NotEnforced,
                    !in_force.unenforced.is_empty(),
                    "{text}: {rule:?}"
                );
                if in_force.unenforced.is_empty() { Enforced } else { LeftOut }
            }
        };
        assert_eq!(fate, expected, "{text}");
        if fate != Refused {
            mesh.client.delete(kind, "shop", "probe", &Default::default()).await.unwrap();
        }
    }
    let (_, stats) = get(mesh.address(30, 15000), "/stats?filter=update_rejected", "").await.unwrap();
    let rejected: Vec<&str> =
        stats.lines().filter(|l| l.contains("update_rejected") && !l.ends_with(": 0")).collect();
    assert!(rejected.is_empty() && stats.contains("update_rejected"), "{rejected:?}");
    eventually("a request through Envoy, as before", call).await;
}
