//! A scripted xDS client against a whole control plane: join, subscribe, ACK, refuse.

use std::time::Duration;

use outrigger_identity::csr::client::request_certificate;
use outrigger_identity::{ControlPeer, ControlPlane as Channel, CredentialStore, JoinFile};
use outrigger_model::resource::{Invalid, Resource};
use outrigger_xds::client::{self, Event, Events, Options};

use super::*;
use crate::api::types::{ApplyQuery, RevocationRequest, RuleState, TokenRequest, WaitQuery};
use crate::instance::{Protocol, sample};
use crate::{ControlPlane, PlaintextXds, Running, Settings};

mod trust;

const ROUTE: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec: {hosts: [catalog], http: [{timeout: 3s, route: [{destination: {host: catalog}}]}]}
";
const CATALOG: &str = "outbound|8080||catalog.shop.svc.cluster.local";

async fn start() -> (Running, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let running = ControlPlane::start(Settings::ephemeral(dir.path())).await.unwrap();
    let api = running.client();
    api.register(&sample("web-1", "web", "v1", "127.0.0.10", 8080, Protocol::Http)).await.unwrap();
    api.register(&sample("catalog-1", "catalog", "v1", "127.0.0.11", 8080, Protocol::Http)).await.unwrap();
    (running, dir)
}

async fn join(running: &Running, account: &str) -> JoinFile {
    let request =
        TokenRequest { namespace: "shop".into(), service_account: account.into(), ..TokenRequest::default() };
    running.client().create_token(&request).await.unwrap()
}

/// Joins as a sidecar does: token, CSR, certificate.
async fn credentials(running: &Running, account: &str) -> (Channel, CredentialStore) {
    let join = join(running, account).await;
    let store = CredentialStore::new(join.bundle().unwrap());
    let peer = ControlPeer::outrigger(&join.trust_domain).unwrap();
    let channel = Channel::new(&[&join.address], peer, store.clone()).unwrap();
    let hour = Duration::from_secs(3600);
    let issued = request_certificate(channel.channel(), &join.identity, hour, Some(&join.token)).await;
    store.replace_certificate(Arc::new(issued.unwrap_or_else(|_| panic!("no certificate")).certificate));
    (channel, store)
}

struct Sidecar {
    client: client::Client,
    events: Events,
    task: tokio::task::JoinHandle<()>,
}

fn connect(channel: Channel, instance: &str, user_agent: &str) -> Sidecar {
    let node = NodeInfo {
        id: instance.into(),
        user_agent: user_agent.into(),
        version: "0.1".into(),
        metadata: serde_json::json!({ "INSTANCE": instance }),
        ..NodeInfo::default()
    };
    let open = move || {
        let channel = channel.clone();
        async move { Ok(channel.channel()) }
    };
    let (client, events, run) = client::start(open, node, Options::default());
    Sidecar { client, events, task: tokio::spawn(run) }
}

impl Sidecar {
    async fn until<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let found = async {
            loop {
                let event = self.events.recv().await.unwrap();
                if let Some(found) = wanted(&event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), found).await.unwrap()
    }

    async fn resource(&mut self, kind: ResourceKind, name: &str) -> (Resource, String) {
        self.client.subscribe(kind, name);
        self.until(|event| match event {
            Event::Update { upserts, .. } => {
                upserts.iter().find(|(r, _)| r.kind() == kind && r.name() == name).cloned()
            }
            _ => None,
        })
        .await
    }

    async fn barrier(&mut self, least: u64) -> u64 {
        self.until(|event| match event {
            Event::Update { upserts, .. } => upserts.iter().find_map(|(r, _)| match r {
                Resource::Barrier(barrier) if barrier.generation >= least => Some(barrier.generation),
                _ => None,
            }),
            _ => None,
        })
        .await
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn apply_with_wait_returns_when_the_barrier_is_acknowledged() {
    let (running, _dir) = start().await;
    let (channel, _) = credentials(&running, "web").await;
    let mut web = connect(channel, "web-1", "outrigger");
    web.client.subscribe(ResourceKind::Barrier, "barrier");
    let first = web.barrier(0).await;
    web.client.ack_barrier(first);
    web.resource(ResourceKind::Destination, "catalog.shop.svc.cluster.local:8080").await;
    web.resource(ResourceKind::Routes, CATALOG).await;
    let api = running.client();
    let applying = tokio::spawn({
        let api = api.clone();
        async move { api.apply(ROUTE, &ApplyQuery { wait: true, ..ApplyQuery::default() }).await.unwrap() }
    });
    let generation = {
        let mut changes = running.keeper().subscribe();
        changes.wait_for(|_| !running.keeper().published().rules.is_empty()).await.unwrap();
        running.keeper().published().generation()
    };
    let barrier = web.barrier(generation).await;
    assert!(!applying.is_finished(), "the barrier was sent, not acknowledged");
    let status = api.rules_status().await.unwrap();
    assert_eq!((status[0].state, status[0].proxies, status[0].of), (RuleState::Stale, 0, 1));
    assert_eq!(status[0].waiting, ["web-1"]);
    web.client.ack_barrier(barrier);
    let applied = applying.await.unwrap();
    let in_force = applied.in_force.unwrap();
    assert!(in_force.complete && in_force.proxies == 1, "{in_force:?}");
    assert!(applied.in_force_millis.unwrap() > 0.0);
    assert_eq!(api.rules_status().await.unwrap()[0].state, RuleState::InForce);
    let status = api.status().await.unwrap();
    assert_eq!(status.proxies[0].instance.as_deref(), Some("web-1"));
    assert_eq!(status.proxies[0].identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/web"));
    drop(web);
    running.stop().await;
}

#[tokio::test]
async fn a_refusal_reaches_the_rule_with_reason_and_field() {
    let (running, _dir) = start().await;
    let (channel, _) = credentials(&running, "web").await;
    let api = running.client();
    api.apply(ROUTE, &ApplyQuery::default()).await.unwrap();
    let mut web = connect(channel, "web-1", "outrigger");
    web.client.subscribe(ResourceKind::Barrier, "barrier");
    let (_, version) = web.resource(ResourceKind::Routes, CATALOG).await;
    let invalid = Invalid {
        kind: ResourceKind::Routes,
        name: CATALOG.into(),
        field: "virtual_hosts[0].routes[0]".into(),
        reason: "no thanks".into(),
    };
    web.client.reject(ResourceKind::Routes, CATALOG, &version, invalid);
    let refused = async {
        loop {
            let status = api.rules_status().await.unwrap();
            if status[0].state == RuleState::Refused {
                return status[0].reasons.clone();
            }
            tokio::task::yield_now().await;
        }
    };
    let reasons = tokio::time::timeout(Duration::from_secs(20), refused).await.unwrap();
    assert!(
        reasons[0].contains("no thanks") && reasons[0].contains("virtual_hosts[0].routes[0]"),
        "{reasons:?}"
    );
    assert_eq!(api.status().await.unwrap().proxies[0].refused[0].rules, ["VirtualService shop/catalog"]);
    let state = api.wait(&WaitQuery { generation: None, timeout: Some(0.1) }).await.unwrap();
    assert!(!state.complete);
    running.stop().await;
}

#[tokio::test]
async fn a_node_that_names_the_instance_of_another_is_only_a_client() {
    let (running, _dir) = start().await;
    let (channel, _) = credentials(&running, "web").await;
    let mut thief = connect(channel, "catalog-1", "outrigger");
    thief.client.subscribe(ResourceKind::Listener, "inbound|127.0.0.11:8080");
    let removed = thief
        .until(|event| match event {
            Event::Update { kind: ResourceKind::Listener, upserts, removed } => {
                assert!(upserts.is_empty(), "{upserts:?}");
                Some(removed.clone())
            }
            _ => None,
        })
        .await;
    assert_eq!(removed, ["inbound|127.0.0.11:8080"]);
    assert_eq!(running.board().proxies(0)[0].instance, None);
    running.stop().await;
}

#[tokio::test]
async fn without_a_certificate_nobody_is_told_anything() {
    let (running, _dir) = start().await;
    let join = join(&running, "web").await;
    let peer = ControlPeer::outrigger(&join.trust_domain).unwrap();
    let channel = Channel::new(&[&join.address], peer, CredentialStore::new(join.bundle().unwrap())).unwrap();
    let mut nobody = connect(channel, "web-1", "outrigger");
    nobody.client.wildcard(ResourceKind::Cluster);
    let reason = nobody
        .until(|event| match event {
            Event::Disconnected { reason } => Some(reason.clone()),
            Event::Update { .. } => panic!("{event:?}"),
            _ => None,
        })
        .await;
    assert!(reason.contains("certificate"), "{reason}");
    assert!(running.board().is_empty());
    running.stop().await;
}

#[tokio::test]
async fn a_foreign_client_has_a_rule_when_it_acknowledged_every_type() {
    let (running, _dir) = start().await;
    let (channel, _) = credentials(&running, "web").await;
    let mut envoy = connect(channel, "some-envoy", "envoy");
    envoy.client.wildcard(ResourceKind::Cluster);
    let update =
        |event: &Event| matches!(event, Event::Update { upserts, .. } if !upserts.is_empty()).then_some(());
    envoy.until(update).await;
    let api = running.client();
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: catalog, namespace: shop}\n\
                spec: {host: catalog, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 7}}}}\n";
    let query = ApplyQuery { wait: true, timeout: Some(20.0), ..ApplyQuery::default() };
    let applied = api.apply(rule, &query).await.unwrap();
    let in_force = applied.in_force.unwrap();
    assert!(in_force.complete && in_force.of == 1, "{in_force:?}");
    envoy.until(update).await;
    let status = api.status().await.unwrap();
    assert_eq!((status.proxies[0].client.as_str(), status.proxies[0].synced), ("envoy", true));
    assert_eq!(status.proxies[0].types["Cluster"].state, "SYNCED");
    // Something that changes nothing for it is in force as well.
    api.register(&sample("stock-1", "stock", "v1", "127.0.0.13", 7000, Protocol::Tcp)).await.unwrap();
    api.deregister("stock-1").await.unwrap();
    assert!(api.wait(&WaitQuery { generation: None, timeout: Some(20.0) }).await.unwrap().complete);
    running.stop().await;
}

#[tokio::test]
async fn the_port_without_tls_is_closed_unless_asked_for_and_then_gives_everybody_one_identity() {
    let dir = tempfile::tempdir().unwrap();
    let closed = ControlPlane::start(Settings::ephemeral(dir.path())).await.unwrap();
    assert_eq!(closed.addresses.plaintext_xds, None);
    closed.stop().await;
    let identity = SpiffeId::workload("cluster.local", "shop", "web").unwrap();
    let plain = PlaintextXds { address: "127.0.0.1:0".parse().unwrap(), identity: Some(identity.clone()) };
    let settings = Settings { plaintext_xds: Some(plain), ..Settings::ephemeral(dir.path()) };
    let running = ControlPlane::start(settings).await.unwrap();
    running
        .client()
        .register(&sample("web-1", "web", "v1", "127.0.0.10", 8080, Protocol::Http))
        .await
        .unwrap();
    let address = running.addresses.plaintext_xds.unwrap();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let node = NodeInfo { id: "web-1".into(), user_agent: "envoy".into(), ..NodeInfo::default() };
    let open = move || {
        let endpoint = endpoint.clone();
        async move { endpoint.connect().await.map_err(|error| error.to_string()) }
    };
    let (client, events, run) = client::start(open, node, Options::default());
    let mut envoy = Sidecar { client, events, task: tokio::spawn(run) };
    envoy.client.wildcard(ResourceKind::Cluster);
    envoy.until(|event| matches!(event, Event::Update { .. }).then_some(())).await;
    let proxy = &running.board().proxies(0)[0];
    assert_eq!(
        (proxy.identity.as_deref(), proxy.instance.as_deref()),
        (Some(identity.as_str()), Some("web-1"))
    );
    running.stop().await;
}

#[tokio::test]
async fn stopping_ends_streams_and_frees_the_store() {
    let (running, dir) = start().await;
    let (channel, _) = credentials(&running, "web").await;
    let mut web = connect(channel, "web-1", "outrigger");
    web.client.subscribe(ResourceKind::Barrier, "barrier");
    web.barrier(0).await;
    running.stop().await;
    web.until(|event| matches!(event, Event::Disconnected { .. }).then_some(())).await;
    let again = ControlPlane::start(Settings::ephemeral(dir.path())).await.unwrap();
    assert_eq!(again.client().status().await.unwrap().instances, 2);
    again.stop().await;
}

#[tokio::test]
async fn a_sidecar_that_is_not_what_it_is_meant_to_be_is_told_of() {
    let (running, _dir) = start().await;
    let registry = outrigger_telemetry::Registry::with_process("test", "1");
    let source = XdsSource::new(
        running.keeper().clone(),
        running.board().clone(),
        Metrics::new(&registry),
        Rejections::default(),
        "cluster.local",
    );
    let trouble = |instance: &str, account: &str| {
        let scope = Scope {
            kind: ClientKind::Outrigger,
            namespace: "shop".into(),
            service_account: account.into(),
            instance: Some(instance.into()),
            bind: None,
            secure: false,
            regex_limit: REGEX_LIMIT,
        };
        source.trouble(&scope, &SpiffeId::workload("cluster.local", "shop", account).unwrap())
    };
    assert_eq!(trouble("web-1", "web"), None);
    let said = trouble("web-2", "web").unwrap();
    assert!(said.contains("no registered instance") && said.contains("shop/web"), "{said}");
    let said = trouble("web-1", "catalog").unwrap();
    assert!(said.contains("sa/catalog") && said.contains("runs as shop/web"), "{said}");
    let mut web = connect(credentials(&running, "web").await.0, "web-1", "outrigger");
    web.client.subscribe(ResourceKind::Barrier, "barrier");
    web.barrier(0).await;
    assert!(trouble("web-1", "web").unwrap().contains("two have that node.id"));
    running.stop().await;
}

#[test]
fn programs_are_known_by_their_names() {
    for (name, kind) in [
        ("outrigger", ClientKind::Outrigger),
        ("envoy", ClientKind::Envoy),
        ("gRPC C-core Python", ClientKind::Grpc),
        ("grpc-java", ClientKind::Grpc),
        ("", ClientKind::Envoy),
    ] {
        assert_eq!(client_kind(name), kind, "{name}");
    }
}

#[tokio::test]
async fn a_policy_for_a_workload_behind_an_envoy_is_not_in_force_there() {
    let (running, _dir) = start().await;
    let (channel, _) = credentials(&running, "catalog").await;
    let mut envoy = connect(channel, "catalog-1", "envoy");
    envoy.client.wildcard(ResourceKind::Cluster);
    envoy.until(|event| matches!(event, Event::Update { .. }).then_some(())).await;
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: catalog, namespace: shop}\n\
                spec: {selector: {matchLabels: {app: catalog}}, action: DENY, rules: [{}]}\n";
    let query = ApplyQuery { wait: true, timeout: Some(20.0), ..ApplyQuery::default() };
    let in_force = running.client().apply(deny, &query).await.unwrap().in_force.unwrap();
    assert_eq!((in_force.proxies, in_force.of), (0, 1), "the one that is connected does not enforce it");
    assert!(
        in_force.unenforced[0]
            .starts_with("not enforced by catalog-1: an Envoy is given no inbound listener"),
        "{in_force:?}"
    );
    let status = running.client().rules_status().await.unwrap();
    assert_eq!(
        (status[0].state, status[0].proxies, &status[0].reasons),
        (RuleState::NotEnforced, 0, &in_force.unenforced)
    );
    // The callers' own sidecars obey a route: that is enforced.
    running.client().apply(ROUTE, &query).await.unwrap();
    let status = running.client().rules_status().await.unwrap();
    let route = status.iter().find(|rule| rule.kind == "VirtualService").unwrap();
    assert_eq!((route.state, route.proxies), (RuleState::InForce, 1), "{route:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_grpc_client_s_gaps_are_those_of_what_it_asked_for() {
    let (running, _dir) = start().await;
    let (channel, _) = credentials(&running, "web").await;
    let mut grpc = connect(channel, "caller", "grpc-java");
    let fault = ROUTE.replace("timeout: 3s", "fault: {abort: {httpStatus: 500, percentage: {value: 100}}}");
    let query = ApplyQuery { wait: true, timeout: Some(20.0), ..ApplyQuery::default() };
    grpc.resource(ResourceKind::Routes, "outbound|8080||web.shop.svc.cluster.local").await;
    let in_force = running.client().apply(&fault, &query).await.unwrap().in_force.unwrap();
    assert_eq!(in_force.unenforced, Vec::<String>::new(), "it does not call catalog");
    grpc.resource(ResourceKind::Routes, CATALOG).await;
    let status = running.client().rules_status().await.unwrap();
    assert_eq!(status[0].state, RuleState::NotEnforced);
    assert!(
        status[0].reasons[0]
            .starts_with("not enforced by caller: route catalog[0]: gRPC clients know no faults"),
        "{status:?}"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_rule_that_was_refused_before_is_refused_when_it_is_applied_again() {
    let (running, _dir) = start().await;
    let (channel, _) = credentials(&running, "web").await;
    let mut web = connect(channel, "web-1", "outrigger");
    web.client.subscribe(ResourceKind::Barrier, "barrier");
    let first = web.barrier(0).await;
    web.client.ack_barrier(first);
    web.resource(ResourceKind::Routes, CATALOG).await;
    let api = running.client();
    let query = ApplyQuery { wait: true, timeout: Some(20.0), ..ApplyQuery::default() };
    let refuse = async {
        let (_, version) = web
            .until(|event| match event {
                Event::Update { upserts, .. } => {
                    upserts.iter().find(|(r, _)| r.kind() == ResourceKind::Routes).cloned()
                }
                _ => None,
            })
            .await;
        let reason = "it cannot".to_owned();
        let invalid =
            Invalid { kind: ResourceKind::Routes, name: CATALOG.into(), field: String::new(), reason };
        web.client.reject(ResourceKind::Routes, CATALOG, &version, invalid);
    };
    let (applied, ()) = tokio::join!(api.apply(ROUTE, &query), refuse);
    let refused = applied.unwrap().in_force.unwrap().refused;
    assert_eq!(refused, [format!("web-1: Routes \"{CATALOG}\": it cannot")]);
    let again = api.apply(ROUTE, &query).await.unwrap().in_force.unwrap();
    assert_eq!(
        (again.refused, again.complete),
        (refused, false),
        "unchanged, and as little in force as before"
    );
    running.stop().await;
}

#[test]
fn what_a_client_says_of_its_limit_is_one_of_few() {
    assert_eq!([0, 1, 99, 100, 101, 32_768, u32::MAX].map(rounded), [0, 1, 64, 100, 64, 32_768, 1 << 31]);
}
