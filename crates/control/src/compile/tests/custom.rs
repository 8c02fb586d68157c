//! Policies of action CUSTOM.

use outrigger_model::ext_authz::ExtAuthz;
use outrigger_model::listener::{FilterChain, Listener};
use outrigger_model::policy::{Rbac, RbacAction};

use super::*;
use crate::provider::ExtensionProvider;

const PROVIDERS: &str = "
- name: http
  envoyExtAuthzHttp: {service: shop/guard.shop.svc.cluster.local, port: 9000}
- name: grpc
  envoyExtAuthzGrpc: {service: guard.shop.svc.cluster.local, port: 9000}
- name: elsewhere
  envoyExtAuthzHttp: {service: bank/guard.shop.svc.cluster.local, port: 9000}
- name: outside
  envoyExtAuthzHttp: {service: bank/opa.example.com, port: 9000}
- name: portless
  envoyExtAuthzHttp: {service: guard.shop.svc.cluster.local, port: 9001}
";

fn settings() -> MeshSettings {
    let providers: Vec<ExtensionProvider> = serde_saphyr::from_str(PROVIDERS).unwrap();
    crate::provider::validate(&providers).unwrap();
    MeshSettings { providers, ..MeshSettings::default() }
}

fn policy(name: &str, action: &str, path: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  {action}
  rules: [{{to: [{{operation: {{paths: [{path}]}}}}]}}]
---"
    )
}

fn custom(name: &str, provider: &str, path: &str) -> String {
    policy(name, &format!("action: CUSTOM\n  provider: {{name: {provider}}}"), path)
}

fn world(yaml: &str, guarded: bool) -> World {
    let mut instances = shop();
    if guarded {
        instances.push(sample("guard-1", "guard", "v1", "127.0.0.14", 9000, Protocol::Http));
    }
    instances.push(sample("shelf-1", "shelf", "v1", "127.0.0.15", 8080, Protocol::Auto));
    World::new(7, settings(), instances.into_iter().map(Arc::new), intents(yaml))
}

fn listener(world: World, account: &str, instance: &str, name: &str) -> Listener {
    let c = Compiled::new(Arc::new(world), "roots".into(), Arc::default());
    let client = scope(ClientKind::Outrigger, account, instance);
    match get(&c, &client, ResourceKind::Listener, name) {
        Some(Resource::Listener(listener)) => listener,
        other => panic!("{other:?}"),
    }
}

fn of_catalog(yaml: &str) -> Vec<HttpFilter> {
    let listener = listener(world(yaml, true), "catalog", "catalog-v1", "inbound|127.0.0.11:8080");
    match &listener.chains[0].terminal {
        Terminal::Http(http) => http.filters.clone(),
        Terminal::Tcp(_) => panic!("no HTTP"),
    }
}

fn names(rbac: &Rbac) -> Vec<&str> {
    rbac.policies.keys().map(String::as_str).collect()
}

fn asks(filter: &HttpFilter) -> &ExtAuthz {
    match filter {
        HttpFilter::ExtAuthz(authz) => authz,
        other => panic!("{other:?}"),
    }
}

fn decides(filter: &HttpFilter) -> &Rbac {
    match filter {
        HttpFilter::Rbac(rbac) => rbac,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_provider_is_asked_about_its_own_policies_before_any_other_policy_decides() {
    let yaml = [
        policy("allow", "action: ALLOW", "/allow"),
        policy("deny", "action: DENY", "/deny"),
        custom("one", "http", "/one"),
        custom("two", "http", "/two"),
        custom("three", "grpc", "/three"),
    ]
    .concat();
    let filters = of_catalog(&yaml);
    assert_eq!(filters.len(), 4, "{filters:#?}");
    let cluster = "outbound|9000||guard.shop.svc.cluster.local";
    let (grpc, http) = (asks(&filters[0]), asks(&filters[1]));
    assert_eq!((grpc.cluster.as_str(), http.cluster.as_str()), (cluster, cluster));
    assert_eq!(names(grpc.only.as_ref().unwrap()), ["ns[shop]-policy[three]-rule[0]"]);
    let of_http = http.only.as_ref().unwrap();
    assert_eq!(names(of_http), ["ns[shop]-policy[one]-rule[0]", "ns[shop]-policy[two]-rule[0]"]);
    let origin = of_http.policies["ns[shop]-policy[one]-rule[0]"].origin.as_ref().unwrap();
    assert_eq!(origin.to_string(), "AuthorizationPolicy shop/one");
    assert_eq!(decides(&filters[2]).action, RbacAction::Deny);
    assert_eq!(decides(&filters[3]).action, RbacAction::Allow);
    let listener = listener(world(&yaml, true), "catalog", "catalog-v1", "inbound|127.0.0.11:8080");
    let listener = Resource::Listener(listener);
    assert!(listener.references().contains(&(ResourceKind::Cluster, cluster.into())), "it is subscribed to");
    assert!(listener.origins().iter().any(|origin| origin.name == "three"), "the policy is in force with it");
}

#[test]
fn what_nobody_can_be_asked_about_is_denied() {
    for provider in ["unknown", "elsewhere", "portless"] {
        let filters = of_catalog(&custom("one", provider, "/one"));
        let rbac = decides(&filters[0]);
        assert_eq!((filters.len(), rbac.action), (1, RbacAction::Deny));
        assert_eq!(
            names(rbac),
            [format!("ns[shop]-policy[one]-rule[0]-provider[{provider}]-cannot-be-asked")]
        );
    }
}

#[test]
fn a_provider_of_a_namespace_is_where_that_namespace_says() {
    let describes = |namespace: &str, more: &str| {
        format!(
            "\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: opa, namespace: {namespace}}}\nspec: {{hosts: \
             [opa.example.com], resolution: DNS, ports: [{{number: 9000, protocol: HTTP}}]{more}}}\n---"
        )
    };
    let policy = custom("one", "outside", "/one");
    let is_asked = |more: &str| matches!(of_catalog(&format!("{policy}{more}"))[0], HttpFilter::ExtAuthz(_));
    assert!(is_asked(&describes("bank", "")));
    assert!(!is_asked(&(describes("bank", "") + &describes("shop", ""))), "its clients' own word goes first");
    assert!(
        is_asked(&(describes("bank", "") + &describes("aaa", ", exportTo: ['.']"))),
        "no word of who is not seen"
    );
    assert!(!is_asked(&describes("bank", ", exportTo: ['~']")), "it is there for nobody");
}

#[test]
fn a_provider_that_comes_is_asked_and_one_that_goes_is_missed() {
    let yaml = custom("one", "http", "/one");
    let inbound = "inbound|127.0.0.11:8080";
    let client = scope(ClientKind::Outrigger, "catalog", "catalog-v1");
    let without = world(&yaml, false);
    let mut with = without.clone();
    let mut change = crate::world::Change::default();
    with.generation += 1;
    with.put(Arc::new(sample("guard-1", "guard", "v1", "127.0.0.14", 9000, Protocol::Http)), 0, &mut change);
    let compiled = Compiled::new(Arc::new(without), "roots".into(), Arc::default());
    let first = || match get(&compiled, &client, ResourceKind::Listener, inbound) {
        Some(Resource::Listener(listener)) => match &listener.chains[0].terminal {
            Terminal::Http(http) => http.filters[0].clone(),
            Terminal::Tcp(_) => panic!("no HTTP"),
        },
        other => panic!("{other:?}"),
    };
    decides(&first());
    let stale = compiled.advance(Arc::new(with.clone()), "roots".into(), Arc::default(), &change);
    compiled.settle(with.generation, stale, &change);
    asks(&first());
    let mut gone = crate::world::Change::default();
    with.generation += 1;
    with.take("guard-1", &mut gone);
    let stale = compiled.advance(Arc::new(with.clone()), "roots".into(), Arc::default(), &gone);
    compiled.settle(with.generation, stale, &gone);
    decides(&first());
}

fn opaque(listener: &Listener) -> &FilterChain {
    listener.chains.iter().find(|chain| matches!(chain.terminal, Terminal::Tcp(_))).unwrap()
}

#[test]
fn bytes_that_nobody_can_be_asked_about_pass_only_where_nobody_speaks_http() {
    let inbound = |provider: &str, account: &str, instance: &str, name: &str| {
        listener(world(&custom("one", provider, "/one"), true), account, instance, name)
    };
    let stock = |provider| inbound(provider, "stock", "stock-1", "inbound|127.0.0.13:7000");
    assert_eq!(opaque(&stock("http")).authorization, [], "as with Istio");
    assert_eq!(opaque(&stock("unknown")).authorization.len(), 1);
    for name in ["inbound|127.0.0.15:8080", "inbound|127.0.0.15:0"] {
        let shelf = inbound("http", "shelf", "shelf-1", name);
        let [denied] = opaque(&shelf).authorization.as_slice() else { panic!("{shelf:?}") };
        assert_eq!(denied.action, RbacAction::Deny, "{name}: bytes may be requests that were not understood");
        let denies = PolicySet::compile([denied]).unwrap();
        let address = "127.0.0.15:8080".parse().unwrap();
        let view = ConnectionView { peer: None, source: address, destination: address, server_name: None };
        assert!(!denies.decide_connection(&view).is_allow(), "an attribute of HTTP counts as matching");
    }
}
