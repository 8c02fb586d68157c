//! What a native page says that the other dialects have in several objects.

use outrigger_model::rate_limit::By;
use outrigger_model::route::{HashOn, Redirect, Rewrite, RouteAction};

use super::*;
use crate::intent::{ClientTlsMode, H2Upgrade, LoadBalancing, Visibility};
use crate::testing::{limits, told};

const WHOLE: &str = include_str!("../../../../../../config/examples/whole-page.yaml");

#[test]
fn routes_redirect_answer_rewrite_and_edit() {
    let found = route(WHOLE);
    assert_eq!(found.visibility, Visibility::Namespaces(vec!["shop".into(), "front".into()]));
    let [moved, closed, searches, versioned, rest] = found.http.as_slice() else { panic!("{found:?}") };
    let wanted = Redirect {
        prefix: Some("/new/".into()),
        scheme: Some("https".into()),
        port: Some(8443),
        status: 308,
        ..Redirect::default()
    };
    assert_eq!(moved.route.action, RouteAction::Redirect(wanted));
    assert!(moved.targets.is_empty() && !moved.to_request_port);
    let body = "not from here\n".to_owned();
    assert_eq!(closed.route.action, RouteAction::Direct { status: 403, body });
    assert!(closed.matches[0].request.ignore_case);
    assert_eq!(closed.route.response_headers.set, [("cache-control".to_owned(), "no-store".into())]);
    assert!(
        versioned.route.request_headers.has_commands() && versioned.route.response_headers.has_commands()
    );
    assert_eq!(searches.route.request_headers.add, [("x-search".to_owned(), "1".into())]);
    let regex = Some(("^/v[0-9]+".to_owned(), "/api".to_owned()));
    let authority = Some("api.shop.internal".to_owned());
    assert_eq!(forward(versioned).rewrite, Rewrite { regex, authority, ..Rewrite::default() });
    assert_eq!(forward(versioned).timeout, Some(Duration::from_secs(2)), "the page's");
    assert_eq!(rest.targets[1].share.response_headers.set, [("x-canary".to_owned(), "yes".into())]);
    assert!(retry(rest).avoid_previous_hosts);
    let other = route(&page("service: a\nretry: {avoidPreviousHosts: false}"));
    assert!(!retry(&other.http[0]).avoid_previous_hosts);
    assert_eq!((retry(rest).leave_priorities, retry(&other.http[0]).leave_priorities), (2, 0));
    let whole = route(&page("service: a\nroutes:\n- rewrite: {path: '/x\\y'}\n- redirect: {port: request}"));
    assert_eq!(forward(&whole.http[0]).rewrite.regex, Some(("^[^?]*".into(), "/x\\\\y".into())));
    assert!(whole.http[1].to_request_port);
}

#[test]
fn a_limit_of_a_route_counts_what_the_route_matches() {
    let found = limits(WHOLE);
    let [limit] = found.limits.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (limit.name.as_str(), limit.requests, limit.by.as_slice()),
        ("searches", 50, &[By::Caller][..])
    );
    assert_eq!(limit.matches, route(WHOLE).http[2].matches[0].request);
    let both = limits(&page(
        "service: a\nrateLimit: {requests: 9, per: 1s}\nroutes:\n- rateLimit: [{requests: 1, per: 1s}, {requests: 2, per: 1m}]",
    ));
    let all: Vec<_> = both.limits.iter().map(|limit| (limit.name.as_str(), limit.requests)).collect();
    assert_eq!(all, [("1", 9), ("2", 1), ("3", 2)]);
    for (route, wanted) in [
        ("match: [{path: /a}, {path: /b}]", "several matches"),
        ("match: {port: 80}", "instances are not told"),
        ("match: {sourceNamespace: x}", "instances are not told"),
        ("rewrite: {prefix: /x}", "changes what it matches"),
        ("match: {headers: {x-a: b}}, headers: {request: {remove: [x-a]}}", "changes what it matches"),
        ("to: [{service: b}]", "go to other services"),
    ] {
        let told = one_told(&page(&format!(
            "service: a\nroutes: [{{{route}, rateLimit: {{requests: 1, per: 1s}}}}]"
        )));
        assert!(told.contains(wanted) && told.contains("spec.routes[0].rateLimit"), "{route}: {told}");
    }
    let own = page("service: a\nroutes: [{rateLimit: {requests: 1, per: 1s, match: {path: /a}}}]");
    assert!(one_told(&own).contains("unknown field \"match\""));
}

#[test]
fn balancing_connections_and_limits_are_of_the_page_its_ports_and_its_subsets() {
    let found = destination(WHOLE);
    let cookie =
        HashOn::Cookie { name: "shop-user".into(), path: None, ttl: Some(Duration::from_secs(3600)) };
    let wanted = LoadBalancing { hash: Some(cookie), ..Balance::Maglev { size: 65537 }.into() };
    assert_eq!(found.policy.load_balancing, Some(wanted.clone()));
    let pool = found.policy.connection_pool.clone().unwrap();
    assert_eq!((pool.max_requests, pool.connect_timeout), (Some(256), Some(Duration::from_secs(1))));
    assert_eq!(
        (pool.http_idle_timeout, pool.max_requests_per_connection, pool.max_streams_per_connection),
        (Some(Duration::from_secs(300)), Some(10_000), Some(100))
    );
    let outlier = found.policy.outlier.clone().unwrap();
    assert_eq!((outlier.consecutive_5xx, outlier.consecutive_gateway), (0, 3));
    assert_eq!(found.subset("v2").unwrap().fallback, Some(crate::intent::Fallback::Subset("v1".into())));
    let new = found.effective(Some("v2"), 80).connection_pool.unwrap();
    assert_eq!(
        (new.max_requests, new.max_connections),
        (Some(20), Some(100)),
        "what it leaves out is the page's"
    );
    let port = found.effective(None, 9090);
    assert_eq!(port.load_balancing, Some(Balance::LeastRequest.into()));
    assert_eq!(port.warmup.unwrap().minimum_percent, 10.0);
    let pool = port.connection_pool.unwrap();
    assert_eq!((pool.h2_upgrade, pool.max_requests), (Some(H2Upgrade::Always), Some(256)));
    assert_eq!(port.outlier, found.policy.outlier);
}

#[test]
fn every_hash_and_tls_is_there() {
    let hash = |block: &str| {
        let text = page(&format!("service: a\nloadBalancing: {{{block}}}"));
        destination(&text).policy.load_balancing.unwrap()
    };
    let ring = |size| Balance::ring(Some(size));
    for (block, balance, on) in [
        ("hash: {header: X-User}", Balance::SteadyRing, HashOn::Header("x-user".into())),
        ("policy: ringHash, size: 9, hash: {query: q}", ring(9), HashOn::Query("q".into())),
        ("policy: maglev, size: 7, hash: {source: true}", Balance::Maglev { size: 7 }, HashOn::SourceAddress),
    ] {
        assert_eq!(hash(block), LoadBalancing { hash: Some(on), ..balance.into() }, "{block}");
    }
    let tls =
        destination(&page("service: a\ntls: {mode: SIMPLE, sni: a.b, caCertificates: /ca.pem}")).policy.tls;
    assert_eq!(tls.unwrap().mode, ClientTlsMode::Simple);
    let tcp = destination(&page(
        "service: a\nconnections: {tcpIdleTimeout: 9s, maxDuration: 1h, useClientProtocol: true}",
    ));
    let pool = tcp.policy.connection_pool.unwrap();
    assert_eq!(pool.max_connection_duration, Some(Duration::from_secs(3600)));
    assert!(pool.use_client_protocol && pool.tcp_idle_timeout == Some(Duration::from_secs(9)));
}

#[test]
fn connections_are_routed_by_name_and_by_port() {
    let found = route(&page(
        "service: reviews
connectionRoutes:
- match: {serverNames: [reviews, REVIEWS.shop.svc.cluster.local], port: 443}
  to: [{version: v1, weight: 1}, {service: other, port: 444, weight: 3}]
- to: [{version: v2}]",
    ));
    assert!(found.http.is_empty());
    assert_eq!(found.tls[0].matches[0].server_names, ["reviews", "reviews.shop.svc.cluster.local"]);
    assert_eq!(found.tls[0].matches[0].connection.port, Some(443));
    assert_eq!(found.tls[0].targets[1].target.port, Some(444));
    assert!(found.tcp[0].matches.is_empty());
    assert_eq!(found.tcp[0].targets[0].target.subset.as_deref(), Some("v2"));
    for (route, wanted) in [
        ("match: [{serverNames: [reviews]}, {port: 1}], to: [{version: v1}]", "write a route for each kind"),
        ("match: {serverNames: [b.example]}, to: [{version: v1}]", "none of the hosts"),
        ("match: {serverNames: []}, to: [{version: v1}]", "serverNames is missing"),
        ("match: {port: 1}", "to is missing"),
        ("to: [{version: v1, headers: {}}]", "unknown field \"headers\""),
    ] {
        let told = one_told(&page(&format!("service: reviews\nconnectionRoutes: [{{{route}}}]")));
        assert!(told.contains(wanted), "{route}: {told}");
    }
}

#[test]
fn what_cannot_be_or_does_nothing_is_told() {
    for (spec, wanted) in [
        ("routes: [{redirect: {}}]", "says nothing"),
        ("routes: [{redirect: {path: /a, prefix: /b}}]", "path and prefix"),
        ("routes: [{redirect: {path: /a, status: 304}}]", "301, 302, 303, 307 or 308"),
        ("routes: [{redirect: {path: /a}, to: [{version: v1}]}]", "to and redirect"),
        ("routes: [{redirect: {path: /a}, rewrite: {path: /b}}]", "can not stand beside a redirect"),
        ("routes: [{redirect: {path: /a}, timeout: 1s}]", "warning OUT0006: spec.routes[0].timeout"),
        ("routes: [{directResponse: {status: 200}, rateLimit: {requests: 1, per: 1s}}]", "OUT0006"),
        ("routes: [{directResponse: {body: a}}]", "status is missing"),
        ("routes: [{rewrite: {}}]", "says nothing"),
        ("routes: [{rewrite: {path: /a, prefix: /b}}]", "path and prefix"),
        ("routes: [{rewrite: {authority: a}, headers: {request: {set: {host: b}}}}]", "more than once"),
        ("routes: [{mirror: {version: v1, percent: 0}}]", "gets 0 %"),
        ("routes: [{match: {path: {regex: /a}, ignoreCase: true}}]", "has no effect on a pattern"),
        ("loadBalancing: {policy: maglev}", "hash is missing"),
        ("loadBalancing: {policy: random, hash: {source: true}}", "leave it out"),
        ("loadBalancing: {policy: random, size: 9}", "leave it out"),
        ("loadBalancing: {policy: maglev, size: 8, hash: {source: true}}", "must be a prime"),
        ("loadBalancing: {hash: {source: true, query: a}}", "exactly one of"),
        ("loadBalancing: {hash: {source: false}}", "can only be true"),
        ("loadBalancing: {hash: {source: true}, warmup: {duration: 1s}}", "a key has its endpoint"),
        (
            "loadBalancing: {locality: {costs: {eu: 1}, failover: [{from: eu, to: us}]}}",
            "locality.failover cannot hold together with costs",
        ),
        ("circuitBreaker: {maxConnections: 0}", "maxConnections"),
        ("circuitBreaker: {consecutiveErrors: 2, consecutiveGatewayErrors: 3}", "has no effect"),
        ("connections: {}", "says nothing"),
        ("ports: [{port: 80}]", "says nothing"),
        ("ports: [{tls: {mode: DISABLE}}]", "port is missing"),
        ("ports: [{port: 80, tls: {}}, {port: 80, tls: {}}]", "there already"),
    ] {
        let told = told(&page(&format!("service: a\n{spec}")));
        assert!(told.iter().any(|line| line.contains(wanted)), "{spec}: {told:?}");
    }
}

#[test]
fn what_replaces_a_path_or_an_authority_must_not_be_empty() {
    for (field, what) in [
        ("rewrite", "prefix"),
        ("rewrite", "authority"),
        ("redirect", "path"),
        ("redirect", "prefix"),
        ("redirect", "authority"),
    ] {
        let told = one_told(&page(&format!("service: a\nroutes:\n- {field}: {{{what}: ''}}")));
        assert!(told.contains(&format!("{field}.{what} must not be empty")), "{told}");
    }
}
