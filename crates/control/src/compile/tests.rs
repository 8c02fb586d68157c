use std::sync::Arc;

use outrigger_model::cluster::ClientTls;
use outrigger_model::listener::{ChainInput, HttpFilter, Terminal};
use outrigger_model::path::PathNormalization;
use outrigger_model::policy::decide::PolicySet;
use outrigger_model::rate_limit::RateLimit;
use outrigger_model::request::ConnectionView;
use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_model::route::{Route, RouteAction};
use outrigger_xds::ClientKind;

use super::cache::Compiled;
use super::scope::Scope;
use crate::instance::{Instance, Protocol, State, sample};
use crate::world::sample::{intents, world};
use crate::world::{MeshSettings, World};

mod addresses;
mod changes;
mod custom;
mod deadlines;
mod destinations;
mod deterministic;
mod fields;
mod headless;
mod inbound;
mod precedence;
mod preferences;
mod reach;
mod remembered;
mod split;
mod twins;
mod upgrades;

pub(super) fn shop() -> Vec<Instance> {
    let mut v2 = sample("catalog-v2", "catalog", "v2", "127.0.0.12", 8080, Protocol::Http);
    v2.weight = 50;
    vec![
        sample("web-1", "web", "v1", "127.0.0.10", 8080, Protocol::Http),
        sample("catalog-v1", "catalog", "v1", "127.0.0.11", 8080, Protocol::Http),
        v2,
        sample("stock-1", "stock", "v1", "127.0.0.13", 7000, Protocol::Tcp),
    ]
}

pub(super) fn compiled(instances: Vec<Instance>, yaml: &str) -> Compiled {
    Compiled::new(Arc::new(world(instances, yaml)), "roots".into(), Arc::default())
}

pub(super) fn scope(kind: ClientKind, account: &str, instance: &str) -> Scope {
    Scope {
        kind,
        namespace: "shop".into(),
        service_account: account.into(),
        instance: Some(instance.into()),
        bind: None,
        secure: false,
        regex_limit: super::scope::REGEX_LIMIT,
    }
}

fn web() -> Scope {
    scope(ClientKind::Outrigger, "web", "web-1")
}

pub(super) fn get(compiled: &Compiled, scope: &Scope, kind: ResourceKind, name: &str) -> Option<Resource> {
    compiled.resource(scope, kind, name).and_then(|versioned| versioned.resource())
}

pub(super) const CATALOG: &str = "outbound|8080||catalog.shop.svc.cluster.local";

const CANARY: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 9}}, outlierDetection: {consecutive5xxErrors: 3}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - route:
    - {destination: {host: catalog, subset: v1}, weight: 90}
    - {destination: {host: catalog, subset: v2}, weight: 10}
";

#[test]
fn a_destination_leads_to_listener_routes_cluster_and_endpoints() {
    let c = compiled(shop(), "");
    let Some(Resource::Destination(d)) = get(&c, &web(), ResourceKind::Destination, "catalog:8080") else {
        panic!("no destination")
    };
    assert_eq!(d.listener, CATALOG);
    assert!(get(&c, &web(), ResourceKind::Destination, "nobody:80").is_none());
    let Some(Resource::Listener(listener)) = get(&c, &web(), ResourceKind::Listener, CATALOG) else {
        panic!("no listener")
    };
    assert!(matches!(listener.chains[0].terminal, Terminal::Http(_)));
    let Some(Resource::Endpoints(set)) = get(&c, &web(), ResourceKind::Endpoints, CATALOG) else {
        panic!("no endpoints")
    };
    assert_eq!(set.len(), 2);
    let identity = set.iter().next().and_then(|e| e.identity.clone()).unwrap();
    assert_eq!(identity.as_str(), "spiffe://cluster.local/ns/shop/sa/catalog");
}

#[test]
fn weights_become_clusters_of_subsets() {
    let c = compiled(shop(), CANARY);
    let Some(Resource::Routes(routes)) = get(&c, &web(), ResourceKind::Routes, CATALOG) else {
        panic!("no routes")
    };
    let RouteAction::Forward(forward) = &routes.virtual_hosts[0].routes[0].action else {
        panic!("no forward")
    };
    let shares: Vec<_> = forward.clusters.iter().map(|c| (c.cluster.as_str(), c.weight)).collect();
    assert_eq!(
        shares,
        [
            ("outbound|8080|v1|catalog.shop.svc.cluster.local", 90),
            ("outbound|8080|v2|catalog.shop.svc.cluster.local", 10)
        ]
    );
    let Some(Resource::Cluster(cluster)) = get(&c, &web(), ResourceKind::Cluster, shares[1].0) else {
        panic!("no cluster")
    };
    assert_eq!(cluster.limits.max_requests, 9);
    assert_eq!(cluster.outlier.map(|o| o.consecutive_5xx), Some(3));
    let Some(Resource::Endpoints(set)) = get(&c, &web(), ResourceKind::Endpoints, shares[1].0) else {
        panic!("no endpoints")
    };
    assert_eq!(set.iter().map(|e| e.address.to_string()).collect::<Vec<_>>(), ["127.0.0.12:8080"]);
}

#[test]
fn a_subset_that_nobody_defined_has_no_endpoints() {
    let c = compiled(shop(), CANARY);
    let name = "outbound|8080|v9|catalog.shop.svc.cluster.local";
    let Some(Resource::Endpoints(set)) = get(&c, &web(), ResourceKind::Endpoints, name) else {
        panic!("none")
    };
    assert!(set.is_empty());
}

#[test]
fn only_running_instances_take_new_requests() {
    let mut instances = shop();
    instances[1].state = State::Maintenance;
    instances[2].state = State::Stopped;
    let c = compiled(instances, "");
    let Some(Resource::Endpoints(set)) = get(&c, &web(), ResourceKind::Endpoints, CATALOG) else {
        panic!("none")
    };
    let health: Vec<_> = set.iter().map(|e| e.health).collect();
    assert_eq!(health, [outrigger_model::endpoint::Health::Unhealthy]);
}

#[test]
fn a_client_sees_only_its_own_inbound_listeners() {
    let c = compiled(shop(), "");
    let names: Vec<_> =
        c.wildcard(&web(), ResourceKind::Listener).iter().map(|v| v.name.to_string()).collect();
    assert_eq!(names, ["inbound|127.0.0.10:8080", "inbound|127.0.0.10:0"]);
    for other in ["inbound|127.0.0.11:8080", "inbound|127.0.0.11:0", "inbound|127.0.0.10:8081"] {
        assert!(get(&c, &web(), ResourceKind::Listener, other).is_none(), "{other}");
    }
    let impostor = scope(ClientKind::Outrigger, "web", "catalog-v1");
    assert!(c.wildcard(&impostor, ResourceKind::Listener).is_empty());
}

#[test]
fn a_workload_that_is_called_by_its_second_address_is_dialled_there() {
    let mut instances = shop();
    let v6: std::net::IpAddr = "fd00::11".parse().unwrap();
    instances[1].addresses.push(v6);
    let c = compiled(instances, "");
    for (name, wanted) in [("outbound|8080||fd00::11", v6), (CATALOG, "127.0.0.11".parse().unwrap())] {
        let Some(Resource::Endpoints(set)) = get(&c, &web(), ResourceKind::Endpoints, name) else {
            panic!("no endpoints of {name}")
        };
        assert_eq!(set.iter().next().map(|endpoint| endpoint.address.ip()), Some(wanted), "{name}");
    }
}

#[test]
fn envoy_gets_everything_and_grpc_what_it_names() {
    let c = compiled(shop(), CANARY);
    let envoy = scope(ClientKind::Envoy, "web", "envoy");
    assert_eq!(c.wildcard(&envoy, ResourceKind::Listener).len(), 1);
    assert_eq!(c.wildcard(&envoy, ResourceKind::Cluster).len(), 5);
    let Some(Resource::Routes(routes)) = get(&c, &envoy, ResourceKind::Routes, "8080") else {
        panic!("no routes")
    };
    assert_eq!(routes.virtual_hosts.len(), 2);
    let grpc = scope(ClientKind::Grpc, "web", "grpc");
    let Some(Resource::Listener(l)) = get(&c, &grpc, ResourceKind::Listener, "catalog.shop:8080") else {
        panic!("no listener")
    };
    assert_eq!(l.name, "catalog.shop:8080");
    let Some(Resource::Cluster(cluster)) = get(&c, &grpc, ResourceKind::Cluster, CATALOG) else {
        panic!("none")
    };
    assert_eq!(cluster.tls, ClientTls::None);
}

#[test]
fn a_consistent_hash_is_the_clusters_table_and_the_routes_key() {
    use outrigger_model::cluster::Balance;
    use outrigger_model::route::HashOn;
    let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: X-User, minimumRingSize: 64}}}
  subsets:
  - {name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {}}}}}
";
    let hash_of = |compiled: &Compiled| {
        let Some(Resource::Routes(routes)) = get(compiled, &web(), ResourceKind::Routes, CATALOG) else {
            panic!()
        };
        let RouteAction::Forward(forward) = routes.virtual_hosts[0].routes[0].action.clone() else {
            panic!()
        };
        forward.hash
    };
    let plain = compiled(shop(), rule);
    assert_eq!(hash_of(&plain), [HashOn::Header("x-user".into())]);
    let balance = |compiled: &Compiled, name: &str| {
        let Some(Resource::Cluster(cluster)) = get(compiled, &web(), ResourceKind::Cluster, name) else {
            panic!()
        };
        cluster.balance
    };
    assert_eq!(balance(&plain, CATALOG), Balance::RingHash { minimum: 64, maximum: 262_144 });
    let routed = format!(
        "{rule}---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: catalog, namespace: shop}}
spec:
  hosts: [catalog]
  http:
  - route:
    - {{destination: {{host: catalog}}, weight: 50}}
    - {{destination: {{host: catalog, subset: v1}}, weight: 50}}
"
    );
    let routed = compiled(shop(), &routed);
    assert_eq!(hash_of(&routed), [HashOn::Header("x-user".into()), HashOn::SourceAddress]);
    let v1 = "outbound|8080|v1|catalog.shop.svc.cluster.local";
    assert_eq!(balance(&routed, v1), Balance::Maglev { size: 65_537 });
}

#[test]
fn the_tls_mode_of_a_rule_is_obeyed_and_never_falls_back_to_plain_text() {
    let tls = |mode: &str, kind| {
        let rule = format!(
            "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: catalog, namespace: shop}}
spec: {{host: catalog, trafficPolicy: {{tls: {mode}}}}}
"
        );
        let compiled = compiled(shop(), &rule);
        let client = scope(kind, "web", "web-1");
        let Some(Resource::Cluster(cluster)) = get(&compiled, &client, ResourceKind::Cluster, CATALOG) else {
            panic!()
        };
        cluster.tls
    };
    let ours = ClientKind::Outrigger;
    assert_eq!(tls("{mode: DISABLE}", ours), ClientTls::None);
    assert!(
        matches!(tls("{mode: ISTIO_MUTUAL}", ours), ClientTls::Mesh { required: true, identities, .. } if identities.len() == 1)
    );
    let simple = tls("{mode: SIMPLE, caCertificates: /ca.pem, subjectAltNames: [a.test]}", ours);
    let ClientTls::Outside(simple) = simple else { panic!("{simple:?}") };
    assert_eq!(
        simple.server_name, "catalog.shop.svc.cluster.local",
        "the host, unless the rule names another"
    );
    assert_eq!((simple.roots_file.as_deref(), simple.client_files), (Some("/ca.pem"), None));
    let mutual = tls("{mode: MUTUAL, sni: b.test, clientCertificate: /c.pem, privateKey: /k.pem}", ours);
    let ClientTls::Outside(mutual) = mutual else { panic!("{mutual:?}") };
    assert_eq!((mutual.server_name.as_str(), mutual.roots_file), ("b.test", None));
    assert_eq!(mutual.client_files, Some(("/c.pem".into(), "/k.pem".into())));
    // Also for a client of which the mesh's mTLS is not asked.
    assert!(matches!(tls("{mode: SIMPLE}", ClientKind::Grpc), ClientTls::Outside(_)));
}

#[test]
fn subsets_of_several_rules_for_one_host_all_have_endpoints() {
    let rule = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{host: catalog, {spec}}}\n"
        )
    };
    let c = compiled(
        shop(),
        &(rule("a", "subsets: [{name: v1, labels: {version: v1}}]")
            + &rule(
                "b",
                "trafficPolicy: {connectionPool: {http: {http2MaxRequests: 9}}}, subsets: [{name: v2, labels: {version: v2}}]",
            )),
    );
    for (subset, address, rule) in [("v1", "127.0.0.11:8080", "a"), ("v2", "127.0.0.12:8080", "b")] {
        let name = format!("outbound|8080|{subset}|catalog.shop.svc.cluster.local");
        let Some(Resource::Endpoints(set)) = get(&c, &web(), ResourceKind::Endpoints, &name) else {
            panic!()
        };
        assert_eq!(set.iter().map(|e| e.address.to_string()).collect::<Vec<_>>(), [address]);
        let Some(Resource::Cluster(cluster)) = get(&c, &web(), ResourceKind::Cluster, &name) else {
            panic!()
        };
        assert_eq!(cluster.limits.max_requests, 9, "the policy of the one is the policy of all");
        assert_eq!(cluster.origin.unwrap().name, rule);
    }
    let Some(Resource::Cluster(whole)) = get(&c, &web(), ResourceKind::Cluster, CATALOG) else { panic!() };
    assert_eq!(whole.origin.unwrap().name, "b", "who has the policy");
}

#[test]
fn a_server_that_a_rule_does_not_name_is_not_dialled() {
    let rule = |sa: &str| {
        format!("
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: catalog, namespace: shop}}
spec: {{host: catalog, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/{sa}']}}}}}}
")
    };
    for (account, endpoints) in [("catalog", 2), ("other", 0)] {
        let c = compiled(shop(), &rule(account));
        let Some(Resource::Endpoints(set)) = get(&c, &web(), ResourceKind::Endpoints, CATALOG) else {
            panic!()
        };
        assert_eq!(set.len(), endpoints, "{account}");
    }
}

#[test]
fn the_idle_timeout_and_the_age_of_connections_of_a_tcp_service_are_its_rules() {
    for (spec, seconds, age) in [
        ("idleTimeout: 30s", 30, None),
        ("idleTimeout: 0s, maxConnectionDuration: 1h", 315_360_000, Some(3600)),
        ("maxConnections: 5", 3600, None),
    ] {
        let rule = format!(
            "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: stock, namespace: shop}}
spec: {{host: stock, trafficPolicy: {{connectionPool: {{tcp: {{{spec}}}}}}}}}
"
        );
        let c = compiled(shop(), &rule);
        let name = "outbound|7000||stock.shop.svc.cluster.local";
        let Some(Resource::Listener(listener)) = get(&c, &web(), ResourceKind::Listener, name) else {
            panic!()
        };
        let Terminal::Tcp(tcp) = &listener.chains[0].terminal else { panic!() };
        let found = (tcp.idle_timeout.as_secs(), tcp.max_duration.map(|age| age.as_secs()));
        assert_eq!(found, (seconds, age), "{spec}");
        let Some(Resource::Cluster(cluster)) = get(&c, &web(), ResourceKind::Cluster, name) else { panic!() };
        assert_eq!(cluster.max_connection_duration.map(|age| age.as_secs()), age, "{spec}");
    }
}

#[test]
fn pooled_connections_are_idle_as_long_as_the_tcp_settings_say() {
    for (pool, seconds) in [
        ("{tcp: {idleTimeout: 30s}}", 30),
        ("{tcp: {idleTimeout: 30s}, http: {idleTimeout: 9s}}", 9),
        ("{tcp: {maxConnections: 5}}", 3600),
    ] {
        let rule = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: catalog, namespace: shop}}\n\
             spec: {{host: catalog, trafficPolicy: {{connectionPool: {pool}}}}}\n"
        );
        let c = compiled(shop(), &rule);
        let Some(Resource::Cluster(cluster)) = get(&c, &web(), ResourceKind::Cluster, CATALOG) else {
            panic!()
        };
        assert_eq!(cluster.idle_timeout.as_secs(), seconds, "{pool}");
    }
}

/// The routes of a listener's or route configuration's first virtual host.
fn routes_of(resource: Option<Resource>) -> Vec<Route> {
    let config = match resource {
        Some(Resource::Routes(config)) => config,
        Some(Resource::Listener(listener)) => match &listener.chains[0].terminal {
            Terminal::Http(http) => match &http.routes {
                outrigger_model::listener::RouteSource::Inline(config) => config.clone(),
                outrigger_model::listener::RouteSource::Named(_) => panic!("no routes in place"),
            },
            Terminal::Tcp(_) => panic!("no HTTP"),
        },
        _ => panic!("no routes"),
    };
    config.virtual_hosts[0].routes.clone()
}

#[test]
fn the_mode_of_paths_is_the_meshs() {
    let settings = MeshSettings { path: PathNormalization::BASE, ..MeshSettings::default() };
    let world = World::new(7, settings, shop().into_iter().map(Arc::new), Vec::new());
    let base = Compiled::new(Arc::new(world), "roots".into(), Arc::default());
    for (c, wanted) in
        [(compiled(shop(), ""), PathNormalization::MERGE_SLASHES), (base, PathNormalization::BASE)]
    {
        let catalog = scope(ClientKind::Outrigger, "catalog", "catalog-v1");
        for (scope, name) in [(&web(), CATALOG), (&catalog, "inbound|127.0.0.11:8080")] {
            let Some(Resource::Listener(listener)) = get(&c, scope, ResourceKind::Listener, name) else {
                panic!("no listener {name}")
            };
            let Terminal::Http(http) = &listener.chains[0].terminal else { panic!("no HTTP") };
            assert_eq!(http.path, wanted);
        }
    }
}

#[test]
fn mirrors_and_policies_for_other_origins_reach_the_route() {
    let rule = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - corsPolicy: {allowOrigins: [{exact: 'https://a.test'}], allowMethods: [GET, PUT]}
    mirrors:
    - {destination: {host: stock, port: {number: 7000}}, percentage: {value: 5}}
    - destination: {host: catalog, subset: v2}
    route: [{destination: {host: catalog}}]
";
    let routes = routes_of(get(&compiled(shop(), rule), &web(), ResourceKind::Routes, CATALOG));
    assert_eq!(routes[0].cors.as_ref().unwrap().allow_methods, "GET,PUT");
    let RouteAction::Forward(forward) = &routes[0].action else { panic!("{routes:?}") };
    let mirrors: Vec<_> = forward.mirrors.iter().map(|m| (m.cluster.as_str(), m.percentage)).collect();
    assert_eq!(
        mirrors,
        [
            ("outbound|7000||stock.shop.svc.cluster.local", 5.0),
            ("outbound|8080|v2|catalog.shop.svc.cluster.local", 100.0)
        ]
    );
}
