//! Every sample under `config/examples` is taken without a complaint and does what its comment says: `explain` decides by the resources
//! that proxies get and by the code that they run.

use std::collections::BTreeMap;

use outrigger_model::listener::Terminal;
use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_model::route::{HashOn, RouteAction};
use outrigger_rules::analyze;
use outrigger_rules::finding::Severity;
use outrigger_xds::ClientKind;

use super::*;
use crate::compile::cache::once;
use crate::compile::scope::{REGEX_LIMIT, Scope};
use crate::keeper::catalog;

/// Who calls, what, and what stands in the explanation.
type Case = (&'static str, &'static str, &'static [&'static str]);

fn instances() -> Vec<Instance> {
    let all = [
        ("web-1", "web", "v1", 8080, Protocol::Http),
        ("front-1", "front", "v1", 8080, Protocol::Http),
        ("catalog-v1", "catalog", "v1", 8080, Protocol::Http),
        ("catalog-v2", "catalog", "v2", 8080, Protocol::Http),
        ("catalog-next-1", "catalog-next", "v1", 8080, Protocol::Http),
        ("reviews-v1", "reviews", "v1", 9080, Protocol::Http),
        ("reviews-v2", "reviews", "v2", 9080, Protocol::Http),
        ("reviews-v3", "reviews", "v3", 9080, Protocol::Http),
        ("stock-1", "stock", "v1", 7070, Protocol::Grpc),
        ("stock-reserve-1", "stock-reserve", "v1", 7070, Protocol::Grpc),
        ("carts-1", "carts", "v1", 8080, Protocol::Http),
        ("cart-1", "cart", "v1", 8080, Protocol::Http),
        ("pricing-1", "pricing", "v1", 9090, Protocol::Grpc),
        ("cache-1", "cache", "v1", 6379, Protocol::Tcp),
        ("database-1", "database", "v1", 5432, Protocol::Tcp),
        ("database-next-1", "database-next", "v1", 5432, Protocol::Tcp),
        ("vault-1", "vault", "v1", 443, Protocol::Tls),
        ("vault-next-1", "vault-next", "v1", 443, Protocol::Tls),
        ("billing-1", "billing", "v1", 443, Protocol::Http),
        ("accounts-1", "accounts", "v1", 8080, Protocol::Http),
        ("ledger-app-1", "ledger-app", "v1", 8080, Protocol::Http),
    ];
    let made = all.into_iter().enumerate().map(|(at, (id, service, version, port, protocol))| {
        let mut one = sample(id, service, version, &format!("127.0.1.{}", at + 1), port, protocol);
        one.labels.insert("app".into(), service.into());
        one.labels.insert("version".into(), version.into());
        match service {
            "accounts" => one.namespace = "bank".into(),
            "billing" => (one.ports[0].name, one.sidecar) = ("https".into(), false),
            "stock" => one.ports.push(crate::instance::Port {
                number: 9102,
                protocol: Protocol::Http,
                ..one.ports[0].clone()
            }),
            "catalog" => one.ports.push(crate::instance::Port {
                number: 9090,
                protocol: Protocol::Grpc,
                ..one.ports[0].clone()
            }),
            _ => {}
        }
        one
    });
    made.collect()
}

const WEB: &str = "mTLS as spiffe://cluster.local/ns/shop/sa/web";
const UNKNOWN: &str = "it is not known, and the outbound policy is REGISTRY_ONLY";

/// By sample.
const CASES: [(&str, &[Case]); 23] = [
    (
        "adaptive-concurrency",
        &[(
            "web",
            "GET http://catalog:8080/",
            &["5 to 200 requests under way, by p90 of 250ms", "every 60s by 50 requests"],
        )],
    ),
    (
        "authorization",
        &[
            ("web", "GET http://reviews:9080/reviews/1", &["\"kind\":\"forwarded\""]),
            ("web", "DELETE http://reviews:9080/reviews/1", &["denied with 403", "reviews-no-delete"]),
            ("web", "DELETE http://reviews:9080/else", &["\"kind\":\"forwarded\""]),
            ("front", "GET http://reviews:9080/reviews/1", &["denied with 403"]),
        ],
    ),
    (
        "backend-tls",
        &[
            ("web", "GET http://billing:443/", &["TLS to billing.example.com"]),
            ("accounts.bank", "GET http://billing.shop:443/", &["TLS to billing.example.com"]),
        ],
    ),
    (
        "canary",
        &[(
            "web",
            "GET http://catalog:8080/",
            &["|v1|catalog.shop.svc.cluster.local (90 of 100)", "(10 of 100)", "catalog-v2"],
        )],
    ),
    (
        "circuit-breaker",
        &[(
            "web",
            "GET http://catalog:8080/",
            &[
                "at most 100 connections, 64 pending requests, 256 requests, 16 retries",
                "ejects for 15s after 5 errors in a row",
                "connects within 1s",
                "round robin",
            ],
        )],
    ),
    ("consistent-hash", &[("web", "GET http://carts:8080/", &["ring hash", "carts-1"])]),
    (
        "fault",
        &[(
            "web",
            "GET http://reviews:9080/",
            &["delays 50% by 300ms", "answered with 503", "injected in 10%", "reviews-v1"],
        )],
    ),
    (
        "grpc-route",
        &[
            (
                "web",
                "POST http://stock:7070/shop.Stock/Reserve",
                &["\"instances\":[\"stock-reserve-1\"]", "adds x-route: reserve"],
            ),
            ("web", "POST http://stock:7070/shop.Stock/Count", &["\"instances\":[\"stock-1\"]"]),
        ],
    ),
    (
        "header-route",
        &[
            ("web", "GET http://reviews:9080/ -H end-user: tester", &["\"instances\":[\"reviews-v3\"]"]),
            ("web", "GET http://reviews:9080/", &["\"instances\":[\"reviews-v1\"]"]),
        ],
    ),
    (
        "health-check",
        &[
            (
                "web",
                "GET http://catalog:8080/",
                &["by GET /healthz every 10s: away after 3 failures in a row, back after 2 successes"],
            ),
            ("web", "GET http://pricing:9090/", &["by gRPC for shop.Pricing every 10s"]),
            ("web", "GET http://cache:6379/", &["by a connection every 5s"]),
        ],
    ),
    (
        "hedging",
        &[
            (
                "web",
                "GET http://reviews:9080/",
                &["up to 2 attempts after what 95% of first attempts took, where the method may be repeated"],
            ),
            ("web", "POST http://reviews:9080/search", &["hedges with up to 3 attempts after 50ms"]),
            ("web", "GET http://reviews:9080/page", &["up to 2 attempts on the time of one attempt"]),
        ],
    ),
    (
        "http-route",
        &[
            (
                "web",
                "GET http://catalog:8080/v2/x",
                &["\"path\":\"/x\"", "\"instances\":[\"catalog-next-1\"]", "sets x-served-by: next"],
            ),
            (
                "web",
                "GET http://catalog:8080/",
                &["(90 of 100)", "(10 of 100)", "\"timeout\":\"10s\"", "503, each within 2s; back-off 50ms"],
            ),
        ],
    ),
    (
        "mtls-strict",
        &[
            (
                "web",
                "GET http://catalog:8080/",
                &["STRICT by PeerAuthentication shop/default", WEB, "allowed"],
            ),
            ("billing", "GET http://catalog:8080/", &["its sidecar takes no plain text here"]),
            (
                "billing",
                "GET http://stock:9102/",
                &["PERMISSIVE by PeerAuthentication shop/stock", "allowed"],
            ),
            ("billing", "GET http://stock:7070/", &["its sidecar takes no plain text here"]),
        ],
    ),
    (
        "rate-limit",
        &[
            ("web", "GET http://catalog:8080/", &["100 requests in 1s", "1000 requests in 60s each"]),
            ("web", "POST http://catalog:8080/orders -H x-user: ann", &["5 requests in 10s each"]),
        ],
    ),
    (
        "service-entry",
        &[
            (
                "web",
                "GET http://api.example.com/",
                &["TLS to api.example.com", "ejects for 30s after 5 errors in a row"],
            ),
            ("accounts.bank", "GET http://api.example.com/", &["\"kind\":\"outside\""]),
            ("web", "GET http://ledger:5432/", &["10.20.0.7:5432"]),
        ],
    ),
    (
        "session",
        &[
            (
                "web",
                "GET http://cart:8080/api/x",
                &["by the header x-cart-session", "where that is gone, it answers 410"],
            ),
            (
                "web",
                "GET http://cart:8080/x",
                &[
                    "by the cookie cart at the endpoint that has answered it, for 3600s, until it is silent for 600s",
                ],
            ),
            (
                "web",
                "GET http://catalog:8080/",
                &["by the cookie outrigger-session.shop.catalog.all", "for 3600s"],
            ),
        ],
    ),
    (
        "sidecar",
        &[
            ("front", "GET http://catalog:8080/", &["\"kind\":\"forwarded\""]),
            ("front", "GET http://accounts.bank:8080/", &["\"instances\":[\"accounts-1\"]"]),
            ("front", "GET http://example.com/", &["fails with 502", UNKNOWN]),
            ("web", "GET http://catalog:8080/", &["\"kind\":\"forwarded\""]),
            ("web", "GET http://reviews:9080/", &["fails with 502", UNKNOWN, "Sidecar shop/web"]),
        ],
    ),
    ("tcp-route", &[("web", "GET http://database:5432/", &["(4 of 5)", "(1 of 5)", "database-next-1"])]),
    (
        "timeout-retry",
        &[(
            "web",
            "GET http://reviews:9080/",
            &[
                "\"timeout\":\"2s\"",
                "up to 3 times on 5xx, connect-failure, refused-stream, each within 500ms",
            ],
        )],
    ),
    // Whoever speaks no TLS; the names are looked at below.
    ("tls-route", &[("web", "GET http://vault:443/", &["has no chain for such a connection"])]),
    (
        "tokens",
        &[
            ("web", "GET http://catalog:8080/", &["\"kind\":\"forwarded\""]),
            ("web", "POST http://catalog:8080/", &["denied with 403", "catalog-editors"]),
        ],
    ),
    (
        "traffic-rules",
        &[
            (
                "web",
                "GET http://reviews:9080/ -H end-user: tester",
                &["\"instances\":[\"reviews-v3\"]", "\"timeout\":\"2s\""],
            ),
            (
                "web",
                "GET http://reviews:9080/search",
                &["delays 50% by 300ms", "answers 10% with 503", "\"timeout\":\"5s\"", "reviews-v2"],
            ),
            (
                "web",
                "GET http://reviews:9080/",
                &[
                    "(90 of 100)",
                    "(10 of 100)",
                    "sends nothing for 30s after failures of 50% of at least 20 requests in 10s",
                    "16 retries",
                ],
            ),
        ],
    ),
    (
        "whole-page",
        &[
            ("web", "GET http://catalog:8080/old/x", &["answered with 308", "https://catalog:8443/new/x"]),
            ("web", "GET http://catalog:8080/ADMIN", &["answered with 403", "sets cache-control: no-store"]),
            ("web", "GET http://catalog:8080/search", &["adds x-search: 1", "50 requests in 1s each"]),
            ("web", "GET http://catalog:8080/v1/x", &["\"path\":\"/api/x\"", "api.shop.internal"]),
            (
                "web",
                "GET http://catalog:8080/",
                &["(90 of 100)", "at most 100 connections, 20 requests", "Maglev", "lets it be silent 600s"],
            ),
        ],
    ),
];

/// What `explain` has no words for.
fn beside(name: &str, world: &Arc<World>) -> bool {
    let scope = Scope {
        kind: ClientKind::Outrigger,
        namespace: "shop".into(),
        service_account: "web".into(),
        instance: Some("web-1".into()),
        bind: None,
        secure: false,
        regex_limit: REGEX_LIMIT,
    };
    let get = |kind, name: &str| once(world, &scope, kind, name).unwrap_or_else(|| panic!("no {name}"));
    match name {
        "sidecar" => {
            let Resource::Cluster(own) = get(ResourceKind::Cluster, "inbound|8080||") else { return false };
            own.limits.max_requests == 200
        }
        "tls-route" => {
            let vault = "outbound|443||vault.shop.svc.cluster.local";
            let Resource::Listener(vault) = get(ResourceKind::Listener, vault) else { return false };
            // What asks for another name has no chain.
            let [chain] = vault.chains.as_slice() else { return false };
            let Terminal::Tcp(tcp) = &chain.terminal else { return false };
            chain.matches.server_names == ["vault.example.com", "*.vault.example.com"]
                && tcp.clusters.iter().map(|share| share.weight).collect::<Vec<_>>() == [90, 10]
        }
        "consistent-hash" => {
            let carts = "outbound|8080||carts.shop.svc.cluster.local";
            let Resource::Routes(routes) = get(ResourceKind::Routes, carts) else { return false };
            let RouteAction::Forward(forward) = &routes.virtual_hosts[0].routes[0].action else {
                return false;
            };
            let ttl = Some(std::time::Duration::from_secs(3600));
            let cookie = HashOn::Cookie { name: "cart-user".into(), path: Some("/".into()), ttl };
            forward.hash == [cookie]
                && forward.retry.as_ref().is_some_and(|retry| !retry.avoid_previous_hosts)
        }
        "tokens" => {
            let sources: Vec<String> =
                world.key_sources().keys().map(|source| format!("{source:?}")).collect();
            sources.len() == 1 && sources[0].contains("https://accounts.example.com/keys")
        }
        _ => true,
    }
}

#[test]
fn every_sample_is_taken_and_does_what_its_comment_says() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/examples");
    let mut cases: BTreeMap<&str, &[Case]> = CASES.into_iter().collect();
    let mut faults = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let rules = std::fs::read_to_string(&path).unwrap();
        let objects = sample::objects(&rules);
        let intents = objects.iter().flat_map(|object| object.intents.clone());
        let settings = crate::world::MeshSettings::default();
        let world = Arc::new(World::new(7, settings, instances().into_iter().map(Arc::new), intents));
        let found = analyze(&objects, Some(&catalog(&world)));
        let complaints = found.iter().filter(|finding| finding.severity != Severity::Info);
        faults.extend(complaints.map(|finding| format!("{name}: {finding}")));
        if !beside(&name, &world) {
            faults.push(format!("{name}: what it says is not what proxies get"));
        }
        for (from, request, wanted) in cases.remove(&*name).unwrap_or_else(|| panic!("nobody plays {name}")) {
            let answer = asked(&world, from, request);
            let text = serde_json::to_string(&answer).unwrap();
            let missing: Vec<_> = wanted.iter().filter(|word| !text.contains(**word)).collect();
            if !missing.is_empty() {
                faults.push(format!("{name}: {request} from {from}: no {missing:?} in {text}"));
            }
        }
    }
    assert!(cases.is_empty(), "there is no such sample: {:?}", cases.keys());
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}
