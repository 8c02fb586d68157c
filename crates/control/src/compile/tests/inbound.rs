//! What comes in to a workload, and who may send it.

use super::*;

#[test]
fn strict_leaves_no_chain_for_plain_text() {
    let strict = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";
    let input = |tls, protocols| ChainInput {
        destination_port: 8080,
        tls,
        server_name: None,
        application_protocols: protocols,
    };
    for (yaml, plain) in [("", true), (strict, false)] {
        let c = compiled(shop(), yaml);
        let name = "inbound|127.0.0.10:8080";
        let Some(Resource::Listener(l)) = get(&c, &web(), ResourceKind::Listener, name) else {
            panic!("none")
        };
        assert_eq!(l.select(&input(false, &[])).is_some(), plain);
        let mesh = l.select(&input(true, &["istio-http/1.1"])).unwrap();
        assert!(mesh.tls.is_some());
    }
}

#[test]
fn an_authorization_policy_decides_by_identity_and_path() {
    let c = compiled(
        shop(),
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: stock, namespace: shop}
spec:
  selector: {matchLabels: {app: stock}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
",
    );
    let own = scope(ClientKind::Outrigger, "stock", "stock-1");
    let Some(Resource::Listener(l)) = get(&c, &own, ResourceKind::Listener, "inbound|127.0.0.13:7000") else {
        panic!("none")
    };
    let set = PolicySet::compile(&l.chains[0].authorization).unwrap();
    let address = "127.0.0.13:7000".parse().unwrap();
    let decide = |id: &str| {
        let peer = outrigger_model::identity::SpiffeId::parse(id).unwrap();
        let view =
            ConnectionView { peer: Some(&peer), source: address, destination: address, server_name: None };
        set.decide_connection(&view).is_allow()
    };
    assert!(decide("spiffe://cluster.local/ns/shop/sa/web"));
    assert!(!decide("spiffe://cluster.local/ns/shop/sa/load"));
    let Some(Resource::Listener(other)) = get(&c, &web(), ResourceKind::Listener, "inbound|127.0.0.10:8080")
    else {
        panic!("none")
    };
    let Terminal::Http(http) = &other.chains[0].terminal else { panic!("no http") };
    assert!(!http.filters.iter().any(|f| matches!(f, HttpFilter::Rbac(_))));
}

/// The chains of a listener of catalog-v1 that take plain text.
fn plain_chains(yaml: &str, port: u16) -> usize {
    let c = compiled(shop(), yaml);
    let catalog = scope(ClientKind::Outrigger, "catalog", "catalog-v1");
    let name = format!("inbound|127.0.0.11:{port}");
    assert!(c.wildcard(&catalog, ResourceKind::Listener).iter().any(|v| *v.name == name), "{name} is sent");
    let Some(Resource::Listener(listener)) = get(&c, &catalog, ResourceKind::Listener, &name) else {
        panic!("no listener {name}")
    };
    listener.chains.iter().filter(|chain| chain.tls.is_none()).count()
}

#[test]
fn port_level_mtls_holds_for_a_port_that_is_not_registered() {
    let yaml = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: catalog, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  mtls: {mode: PERMISSIVE}
  portLevelMtls: {9999: {mode: STRICT}}
";
    assert_eq!(plain_chains(yaml, 9999), 0, "STRICT by name");
    assert!(plain_chains(yaml, 8080) > 0 && plain_chains(yaml, 0) > 0, "the rest is as it was");
}

#[test]
fn a_policy_in_istio_system_holds_for_the_mesh() {
    let yaml = |namespace: &str| {
        format!(
            "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: {namespace}}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: none, namespace: {namespace}}}
spec: {{}}
"
        )
    };
    let catalog = scope(ClientKind::Outrigger, "catalog", "catalog-v1");
    for (namespace, root, holds) in [
        ("istio-system", "outrigger-system", true),
        ("outrigger-system", "outrigger-system", true),
        ("istio-system", "mesh-config", false),
        ("other", "outrigger-system", false),
    ] {
        let settings = MeshSettings { root_namespace: root.into(), ..MeshSettings::default() };
        let world = World::new(7, settings, shop().into_iter().map(Arc::new), intents(&yaml(namespace)));
        let c = Compiled::new(Arc::new(world), "roots".into(), Arc::default());
        let Some(Resource::Listener(listener)) =
            get(&c, &catalog, ResourceKind::Listener, "inbound|127.0.0.11:8080")
        else {
            panic!("no listener")
        };
        let strict = listener.chains.iter().all(|chain| chain.tls.is_some());
        let Terminal::Http(http) = &listener.chains[0].terminal else { panic!("no HTTP") };
        assert_eq!((strict, !http.filters.is_empty()), (holds, holds), "{namespace} under {root}");
    }
}

fn limits_of(compiled: &Compiled, scope: &Scope, name: &str) -> Vec<RateLimit> {
    let Some(Resource::Listener(listener)) = get(compiled, scope, ResourceKind::Listener, name) else {
        panic!("none")
    };
    let mut found = Vec::new();
    for chain in &listener.chains {
        let Terminal::Http(http) = &chain.terminal else { continue };
        let limits = http.filters.iter().filter_map(|filter| match filter {
            HttpFilter::RateLimit(limits) => Some(limits.clone()),
            _ => None,
        });
        found = limits.flatten().collect();
    }
    found
}

#[test]
fn rate_limits_are_held_by_the_instances_of_their_service_and_are_their_own_namespaces_word() {
    let page = |namespace: &str, service: &str| {
        format!(
            "
apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {{name: limits, namespace: {namespace}}}
spec: {{service: {service}, rateLimit: {{requests: 5, per: 1s}}}}
"
        )
    };
    let c = compiled(shop(), &page("shop", "web"));
    let limits = limits_of(&c, &web(), "inbound|127.0.0.10:8080");
    assert_eq!(limits.len(), 1);
    assert_eq!(limits[0].origin.as_ref().unwrap().to_string(), "TrafficRules shop/limits");
    let foreign = compiled(shop(), &page("bank", "web.shop.svc.cluster.local"));
    assert_eq!(limits_of(&foreign, &web(), "inbound|127.0.0.10:8080"), []);
    let another = compiled(shop(), &page("shop", "catalog"));
    assert_eq!(limits_of(&another, &web(), "inbound|127.0.0.10:8080"), []);
}

#[test]
fn adaptive_concurrency_is_the_last_filter_with_its_rule_and_other_namespaces_have_no_say() {
    let page = |namespace: &str, service: &str| {
        format!(
            "
apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {{name: limits, namespace: {namespace}}}
spec: {{service: {service}, rateLimit: {{requests: 5, per: 1s}}, adaptiveConcurrency: {{maxLimit: 77}}}}
"
        )
    };
    let filters = |text: &str| {
        let c = compiled(shop(), text);
        let Some(Resource::Listener(listener)) =
            get(&c, &web(), ResourceKind::Listener, "inbound|127.0.0.10:8080")
        else {
            panic!("none")
        };
        let Terminal::Http(http) = &listener.chains[0].terminal else { panic!("no HTTP") };
        http.filters.clone()
    };
    let own = filters(&page("shop", "web"));
    let [HttpFilter::RateLimit(_), HttpFilter::Concurrency(limit)] = own.as_slice() else {
        panic!("{own:?}")
    };
    assert_eq!(limit.max_limit, 77);
    assert_eq!(limit.origin.as_ref().unwrap().to_string(), "TrafficRules shop/limits");
    assert_eq!(filters(&page("bank", "web.shop.svc.cluster.local")), []);
    assert_eq!(filters(&page("shop", "catalog")), []);
}

#[test]
fn a_limit_that_a_service_keeps_is_asked_of_its_cluster_and_never_by_itself() {
    let page = |service: &str, provider: &str| {
        format!(
            "
apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {{name: limits, namespace: shop}}
spec: {{service: {service}, rateLimit: [{{requests: 5, per: 1s}}, {{service: {provider}, descriptor: [caller, path]}}]}}
"
        )
    };
    let providers = "- {name: limiter, envoyRateLimitGrpc: {service: shop/catalog.shop.svc.cluster.local, port: 8080, failOpen: false}}";
    let filters = |text: &str, scope: &Scope, name: &str| {
        let mut world = world(shop(), text);
        let settings =
            MeshSettings { providers: serde_saphyr::from_str(providers).unwrap(), ..MeshSettings::default() };
        world.settings = Arc::new(settings);
        let c = Compiled::new(Arc::new(world), "roots".into(), Arc::default());
        let Some(Resource::Listener(listener)) = get(&c, scope, ResourceKind::Listener, name) else {
            panic!()
        };
        let Terminal::Http(http) = &listener.chains[0].terminal else { panic!() };
        http.filters.clone()
    };
    let at_web = "inbound|127.0.0.10:8080";
    let all = filters(&page("web", "limiter"), &web(), at_web);
    let [HttpFilter::RateLimit(_), HttpFilter::GlobalLimit(global)] = all.as_slice() else {
        panic!("{all:?}")
    };
    assert_eq!((&*global.cluster, global.status_on_error), (CATALOG, Some(500)));
    assert_eq!((&*global.domain, global.limits[0].descriptor.len()), ("limiter", 2));
    assert_eq!(global.limits[0].origin.as_ref().unwrap().to_string(), "TrafficRules shop/limits");
    let unknown = filters(&page("web", "limitr"), &web(), at_web);
    assert!(matches!(unknown.as_slice(), [HttpFilter::RateLimit(_)]), "{unknown:?}");
    let catalog = scope(ClientKind::Outrigger, "catalog", "catalog-v1");
    let itself = filters(&page("catalog", "limiter"), &catalog, "inbound|127.0.0.11:8080");
    assert!(matches!(itself.as_slice(), [HttpFilter::RateLimit(_)]), "{itself:?}");
}
