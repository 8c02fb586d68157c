use std::collections::BTreeMap;

use outrigger_model::cluster::Cluster;
use outrigger_model::endpoint::EndpointSet;
use parking_lot::Mutex;

use super::engine::{Engine, Outgoing};
use super::*;
use crate::wire::{discovery, rpc};
use crate::{nack, type_url};

mod over_the_wire;
mod within;

/// A view whose contents the test changes.
struct Shelf {
    kind: ClientKind,
    items: Mutex<BTreeMap<(ResourceKind, String), Arc<Versioned>>>,
    events: Mutex<Vec<ClientEvent>>,
    let_go: Mutex<Vec<(ResourceKind, String)>>,
    audience: Arc<Audience>,
}

/// One stream's view of a shelf.
struct Reader {
    shelf: Arc<Shelf>,
    seat: Arc<Seat>,
}

impl Shelf {
    fn new(kind: ClientKind) -> Arc<Self> {
        Arc::new(Self {
            kind,
            items: Mutex::default(),
            events: Mutex::default(),
            let_go: Mutex::default(),
            audience: Audience::new(0),
        })
    }

    fn view(self: &Arc<Self>) -> Arc<dyn View> {
        Arc::new(Reader { shelf: self.clone(), seat: Arc::new(self.audience.join(None)) })
    }

    fn put(&self, resource: Resource) {
        let key = (resource.kind(), resource.name().to_owned());
        self.items.lock().insert(key.clone(), Arc::new(Versioned::new(resource, self.kind)));
        self.mark(key);
    }

    fn take(&self, kind: ResourceKind, name: &str) {
        self.items.lock().remove(&(kind, name.to_owned()));
        self.mark((kind, name.to_owned()));
    }

    fn mark(&self, (kind, name): (ResourceKind, String)) {
        let names = [(kind, name.into()), (kind, WILDCARD.into())];
        self.audience.changed(self.audience.generation(), &names, [], []);
    }

    fn version(&self, kind: ResourceKind, name: &str) -> String {
        self.items.lock()[&(kind, name.to_owned())].version.to_string()
    }

    fn events(&self) -> Vec<ClientEvent> {
        std::mem::take(&mut self.events.lock())
    }
}

impl View for Reader {
    fn kind(&self) -> ClientKind {
        self.shelf.kind
    }
    fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
    fn resource(&self, kind: ResourceKind, name: &str) -> Option<Arc<Versioned>> {
        assert!(
            self.shelf.audience.holds(kind, name),
            "{name} is looked at and not held: its changes would be missed"
        );
        self.shelf.items.lock().get(&(kind, name.to_owned())).cloned()
    }
    fn version(&self, kind: ResourceKind, name: &str) -> Option<Version> {
        self.resource(kind, name).map(|versioned| versioned.version)
    }
    fn wildcard_names(&self, kind: ResourceKind) -> Arc<[Arc<str>]> {
        let items = self.shelf.items.lock();
        items.iter().filter(|((k, _), _)| *k == kind).map(|(_, v)| v.name.clone()).collect()
    }
    fn let_go(&self, kind: ResourceKind, name: &str) {
        self.shelf.let_go.lock().push((kind, name.to_owned()));
    }
    fn report(&self, event: ClientEvent) {
        self.shelf.events.lock().push(event);
    }
}

/// What the engine sends once it has seen what was marked.
fn next(engine: &mut Engine, generation: u64) -> Vec<Outgoing> {
    engine.look_up();
    engine.next(generation)
}

fn cluster(name: &str, requests: u32) -> Resource {
    let mut cluster = Cluster::new(name);
    cluster.max_requests_per_connection = requests;
    Resource::Cluster(cluster)
}

fn endpoints(name: &str) -> Resource {
    Resource::Endpoints(EndpointSet::new(name, Vec::new()))
}

fn delta(kind: ResourceKind, subscribe: &[&str], nonce: &str) -> discovery::DeltaDiscoveryRequest {
    discovery::DeltaDiscoveryRequest {
        type_url: type_url(kind).to_owned(),
        resource_names_subscribe: subscribe.iter().map(|s| (*s).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

fn ask(engine: &mut Engine, request: discovery::DeltaDiscoveryRequest) -> Vec<Outgoing> {
    delta::take(engine, &request).unwrap();
    next(engine, 1)
}

fn upserts(out: &[Outgoing]) -> Vec<&str> {
    out.iter().flat_map(|o| o.difference.upserts.iter().map(|v| &*v.name)).collect()
}

const CDS: ResourceKind = ResourceKind::Cluster;
const EDS: ResourceKind = ResourceKind::Endpoints;

#[test]
fn a_wildcard_gets_everything_once() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    shelf.put(cluster("a", 0));
    shelf.put(cluster("b", 0));
    let mut engine = Engine::new(shelf.view(), false);
    let out = ask(&mut engine, delta(CDS, &["*"], ""));
    assert_eq!(upserts(&out), ["a", "b"]);
    assert!(ask(&mut engine, delta(CDS, &[], &out[0].nonce)).is_empty());
    shelf.put(cluster("b", 1));
    assert_eq!(upserts(&next(&mut engine, 2)), ["b"]);
}

#[test]
fn a_name_that_does_not_exist_is_removed_and_sent_when_it_appears() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    let mut engine = Engine::new(shelf.view(), false);
    let out = ask(&mut engine, delta(EDS, &["x"], ""));
    assert_eq!(out[0].difference.absent, ["x".into()]);
    assert!(ask(&mut engine, delta(EDS, &[], &out[0].nonce)).is_empty());
    shelf.put(endpoints("x"));
    assert_eq!(upserts(&next(&mut engine, 2)), ["x"]);
}

#[test]
fn a_slow_client_sees_only_the_latest() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    shelf.put(cluster("a", 0));
    let mut engine = Engine::new(shelf.view(), false);
    let out = ask(&mut engine, delta(CDS, &["*"], ""));
    for requests in 1..=5 {
        shelf.put(cluster("a", requests));
        assert!(next(&mut engine, u64::from(requests)).is_empty());
    }
    let out = ask(&mut engine, delta(CDS, &[], &out[0].nonce));
    let latest = out[0].difference.upserts[0].wired().value();
    let Ok(Resource::Cluster(latest)) = crate::decode(type_url(CDS), latest) else { panic!("no cluster") };
    assert_eq!((out.len(), latest.max_requests_per_connection), (1, 5));
}

#[test]
fn an_addition_goes_before_a_removal() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    shelf.put(cluster("old", 0));
    let mut engine = Engine::new(shelf.view(), false);
    let out = ask(&mut engine, delta(CDS, &["*"], ""));
    ask(&mut engine, delta(CDS, &[], &out[0].nonce));
    shelf.take(CDS, "old");
    shelf.put(cluster("new", 0));
    let out = next(&mut engine, 2);
    assert_eq!((upserts(&out), out[0].difference.removed.len()), (vec!["new"], 0));
    let out = ask(&mut engine, delta(CDS, &[], &out[0].nonce));
    assert_eq!(out[0].difference.removed, ["old".into()]);
}

fn barrier_of(out: &[Outgoing]) -> Option<u64> {
    out.iter().flat_map(|outgoing| &outgoing.difference.upserts).find_map(|versioned| {
        match versioned.resource() {
            Some(Resource::Barrier(barrier)) => Some(barrier.generation),
            _ => None,
        }
    })
}

#[test]
fn the_barrier_goes_with_the_last_that_there_is_to_send() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    shelf.put(cluster("a", 0));
    let mut engine = Engine::new(shelf.view(), false);
    assert_eq!(barrier_of(&ask(&mut engine, delta(ResourceKind::Barrier, &["barrier"], ""))), Some(1));
    ask(&mut engine, delta(ResourceKind::Barrier, &[], "1"));
    let out = ask(&mut engine, delta(CDS, &["*"], ""));
    assert_eq!(barrier_of(&out), None, "the same generation");
    shelf.put(cluster("b", 0));
    assert!(next(&mut engine, 2).is_empty(), "b waits for the answer to a, and so does the barrier");
    delta::take(&mut engine, &delta(CDS, &[], &out[0].nonce)).unwrap();
    shelf.take(CDS, "a");
    let out = next(&mut engine, 3);
    assert_eq!((upserts(&out), barrier_of(&out)), (vec!["b"], None), "a is to be removed yet");
    delta::take(&mut engine, &delta(CDS, &[], &out[0].nonce)).unwrap();
    let out = next(&mut engine, 3);
    assert_eq!((out[0].difference.removed.len(), barrier_of(&out)), (1, None));
    shelf.events();
    delta::take(&mut engine, &delta(CDS, &[], &out[0].nonce)).unwrap();
    let out = next(&mut engine, 3);
    assert_eq!(barrier_of(&out), Some(3));
    shelf.put(cluster("b", 1));
    delta::take(&mut engine, &delta(ResourceKind::Barrier, &[], &out[0].nonce)).unwrap();
    let out = next(&mut engine, 4);
    assert_eq!((upserts(&out), barrier_of(&out)), (vec!["b", "barrier"], Some(4)), "in one go");
    shelf.events();
    ask(&mut engine, delta(ResourceKind::Barrier, &[], &out[1].nonce));
    assert_eq!(shelf.events(), [ClientEvent::BarrierAcked { generation: 4 }]);
}

#[test]
fn the_same_generation_needs_no_second_barrier() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    let mut engine = Engine::new(shelf.view(), false);
    let out = ask(&mut engine, delta(ResourceKind::Barrier, &["barrier"], ""));
    assert_eq!(barrier_of(&out), Some(1));
    assert!(ask(&mut engine, delta(ResourceKind::Barrier, &[], &out[0].nonce)).is_empty());
    assert_eq!(barrier_of(&next(&mut engine, 2)), Some(2));
}

#[test]
fn a_change_marks_those_who_hold_it_and_no_others() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    let (one, other) = (shelf.view(), shelf.view());
    let mut engines = [Engine::new(one.clone(), false), Engine::new(other.clone(), false)];
    for (engine, name) in engines.iter_mut().zip(["a", "b"]) {
        let out = ask(engine, delta(EDS, &[name], ""));
        ask(engine, delta(EDS, &[], &out[0].nonce));
    }
    shelf.audience.changed(7, &[(EDS, "a".into())], [], []);
    assert_eq!((one.seat().due(), other.seat().due()), (7, 0));
    ask(&mut engines[0], {
        let mut request = delta(EDS, &[], "");
        request.resource_names_unsubscribe = vec!["a".into()];
        request
    });
    assert!(!shelf.audience.holds(EDS, "a") && shelf.audience.holds(EDS, "b"));
    drop(engines);
    assert!(!shelf.audience.holds(EDS, "b"), "a stream that ends lets go");
    assert_eq!(*shelf.let_go.lock(), [(EDS, "a".to_owned()), (EDS, "b".to_owned())]);
}

#[test]
fn endpoints_do_not_wait_for_clusters_but_listeners_do() {
    let shelf = Shelf::new(ClientKind::Envoy);
    shelf.put(cluster("a", 0));
    let mut engine = Engine::new(shelf.view(), false);
    // An Envoy answers clusters only when they have their endpoints.
    assert_eq!(upserts(&ask(&mut engine, delta(CDS, &["*"], ""))), ["a"]);
    shelf.put(cluster("b", 0));
    shelf.put(endpoints("a"));
    assert!(ask(&mut engine, delta(ResourceKind::Listener, &["*"], "")).is_empty());
    assert_eq!(upserts(&ask(&mut engine, delta(ResourceKind::Endpoints, &["a"], ""))), ["a"]);
    let out = ask(&mut engine, delta(CDS, &[], "1"));
    assert_eq!(out.iter().map(|o| o.kind).collect::<Vec<_>>(), [CDS, ResourceKind::Listener]);
}

#[test]
fn an_envoy_gets_the_endpoints_of_a_changed_cluster_again() {
    let shelf = Shelf::new(ClientKind::Envoy);
    shelf.put(cluster("a", 0));
    shelf.put(endpoints("a"));
    let mut engine = Engine::new(shelf.view(), false);
    ask(&mut engine, delta(CDS, &["*"], ""));
    ask(&mut engine, delta(CDS, &[], "1"));
    assert_eq!(upserts(&ask(&mut engine, delta(ResourceKind::Endpoints, &["a"], ""))), ["a"]);
    ask(&mut engine, delta(ResourceKind::Endpoints, &[], "2"));
    shelf.put(cluster("a", 5));
    let out = next(&mut engine, 2);
    assert_eq!(
        out.iter().map(|o| (o.kind, o.difference.upserts.len())).collect::<Vec<_>>(),
        [(CDS, 1), (ResourceKind::Endpoints, 1)]
    );
}

#[test]
fn a_suspect_that_is_gone_holds_nobody_up() {
    let shelf = Shelf::new(ClientKind::Envoy);
    shelf.put(cluster("a", 0));
    shelf.put(cluster("b", 0));
    let mut engine = Engine::new(shelf.view(), false);
    ask(&mut engine, delta(CDS, &["*"], ""));
    let mut refusal = delta(CDS, &[], "1");
    refusal.error_detail = Some(rpc::Status { message: "no".into(), ..Default::default() });
    shelf.take(CDS, "a");
    assert_eq!(upserts(&ask(&mut engine, refusal)), ["b"]);
    let out = ask(&mut engine, delta(CDS, &[], "2"));
    assert_eq!(out[0].difference.removed, ["a".into()], "what the client may have of it is taken back");
}

#[test]
fn a_client_may_refuse_a_version_after_its_ack() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    shelf.put(cluster("a", 0));
    let mut engine = Engine::new(shelf.view(), false);
    let version = ask(&mut engine, delta(CDS, &["*"], ""))[0].difference.upserts[0].version.to_string();
    ask(&mut engine, delta(CDS, &[], "1"));
    shelf.events();
    for (version, reported) in [("another", 0), (version.as_str(), 1)] {
        let mut veto = delta(CDS, &[], "");
        veto.error_detail = Some(nack::status(vec![nack::Entry {
            type_url: type_url(CDS).into(),
            name: "a".into(),
            version: version.into(),
            field: "name".into(),
            reason: "cannot".into(),
        }]));
        assert!(ask(&mut engine, veto).is_empty());
        assert_eq!(shelf.events().len(), reported, "{version}");
    }
}

#[test]
fn a_refusal_with_details_names_the_resource_and_is_not_sent_again() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    for name in ["a", "b", "c"] {
        shelf.put(cluster(name, 0));
    }
    let mut engine = Engine::new(shelf.view(), false);
    let out = ask(&mut engine, delta(CDS, &["*"], ""));
    let entry = nack::Entry {
        type_url: type_url(CDS).into(),
        name: "b".into(),
        version: "v".into(),
        field: "lb_policy".into(),
        reason: "unknown".into(),
    };
    let mut request = delta(CDS, &[], &out[0].nonce);
    request.error_detail = Some(nack::status(vec![entry]));
    shelf.events();
    assert!(ask(&mut engine, request).is_empty());
    let events = shelf.events();
    assert!(
        matches!(&events[0], ClientEvent::Nacked { name, field, .. } if name == "b" && field == "lb_policy")
    );
    shelf.put(cluster("b", 1));
    assert_eq!(upserts(&next(&mut engine, 2)), ["b"]);
}

#[test]
fn suspects_of_a_foreign_refusal_are_sent_one_by_one() {
    let shelf = Shelf::new(ClientKind::Envoy);
    for name in ["a", "b"] {
        shelf.put(cluster(name, 0));
    }
    let mut engine = Engine::new(shelf.view(), false);
    let refuse = |nonce: &str| {
        let mut request = delta(CDS, &[], nonce);
        request.error_detail = Some(rpc::Status { message: "bad".into(), ..Default::default() });
        request
    };
    let out = ask(&mut engine, delta(CDS, &["*"], ""));
    let out = ask(&mut engine, refuse(&out[0].nonce));
    assert_eq!(upserts(&out), ["a"]);
    let out = ask(&mut engine, delta(CDS, &[], &out[0].nonce));
    assert_eq!(upserts(&out), ["b"]);
    shelf.events();
    assert!(ask(&mut engine, refuse(&out[0].nonce)).is_empty());
    let events = shelf.events();
    assert!(matches!(&events[0], ClientEvent::Nacked { name, .. } if name == "b"), "{events:?}");
}

#[test]
fn a_reconnecting_client_gets_only_what_changed() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    shelf.put(endpoints("a"));
    let version = shelf.version(EDS, "a");
    let mut engine = Engine::new(shelf.view(), false);
    let mut request = delta(EDS, &["a", "gone"], "");
    request.initial_resource_versions =
        [("a".to_owned(), version), ("gone".to_owned(), "v".to_owned())].into_iter().collect();
    let out = ask(&mut engine, request);
    assert!(upserts(&out).is_empty());
    assert_eq!(out[0].difference.removed, ["gone".into()]);
}

fn sotw(kind: ResourceKind, names: &[&str], nonce: &str) -> discovery::DiscoveryRequest {
    discovery::DiscoveryRequest {
        type_url: type_url(kind).to_owned(),
        resource_names: names.iter().map(|s| (*s).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

fn ask_whole(
    engine: &mut Engine,
    request: &discovery::DiscoveryRequest,
) -> Vec<discovery::DiscoveryResponse> {
    sotw::take(engine, request).unwrap();
    next(engine, 1).into_iter().filter_map(|out| sotw::response(engine, out)).collect()
}

#[test]
fn whole_sets_keep_what_is_removed_until_the_addition_is_answered() {
    let shelf = Shelf::new(ClientKind::Envoy);
    shelf.put(cluster("old", 0));
    let mut engine = Engine::new(shelf.view(), true);
    let first = ask_whole(&mut engine, &sotw(CDS, &[], ""));
    assert_eq!(first[0].resources.len(), 1);
    assert!(ask_whole(&mut engine, &sotw(CDS, &[], &first[0].nonce)).is_empty());
    shelf.take(CDS, "old");
    shelf.put(cluster("new", 0));
    let added: Vec<_> = next(&mut engine, 2);
    let added = sotw::response(&mut engine, added.into_iter().next().unwrap()).unwrap();
    assert_eq!(added.resources.len(), 2);
    let removed = ask_whole(&mut engine, &sotw(CDS, &[], &added.nonce));
    assert_eq!(removed[0].resources.len(), 1);
}

#[test]
fn whole_sets_answer_names_and_ignore_old_nonces() {
    let shelf = Shelf::new(ClientKind::Grpc);
    shelf.put(endpoints("a"));
    let mut engine = Engine::new(shelf.view(), true);
    assert!(ask_whole(&mut engine, &sotw(EDS, &["b"], "")).is_empty());
    let out = ask_whole(&mut engine, &sotw(EDS, &["a", "b"], ""));
    assert_eq!(out[0].resources.len(), 1);
    assert!(ask_whole(&mut engine, &sotw(EDS, &["a", "b", "c"], "0")).is_empty());
    shelf.put(endpoints("b"));
    let out = ask_whole(&mut engine, &sotw(EDS, &["a", "b"], &out[0].nonce));
    assert_eq!(out[0].resources.len(), 2);
}

#[test]
fn an_envoy_without_anything_is_still_answered() {
    let shelf = Shelf::new(ClientKind::Envoy);
    let mut engine = Engine::new(shelf.view(), true);
    let out = ask_whole(&mut engine, &sotw(ResourceKind::Listener, &[], ""));
    assert_eq!((out.len(), out[0].resources.len()), (1, 0));
}

#[test]
fn names_are_counted_each_once_before_any_is_held() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    let mut engine = Engine::new(shelf.view(), false);
    let names = |from: usize, to: usize| (from..to).map(|n| format!("n{n}")).collect::<Vec<_>>();
    let mut change = |more: Vec<String>, less: Vec<String>| {
        let request = discovery::DeltaDiscoveryRequest {
            resource_names_subscribe: more,
            resource_names_unsubscribe: less,
            ..delta(EDS, &[], "")
        };
        delta::take(&mut engine, &request)
    };
    change(names(0, 20_000), vec![]).unwrap();
    change(names(0, 20_000), vec![]).expect("all of them are known");
    change(names(20_000, 35_000), names(0, 15_000)).expect("as many go as come");
    let refused = change(names(0, 2), vec!["n20000".into(); 2]).unwrap_err();
    assert!(refused.message().contains("20001 subscriptions"), "{refused}");
    assert!(!shelf.audience.holds(EDS, "n0"), "none of them is held");
    let mut engine = Engine::new(Shelf::new(ClientKind::Grpc).view(), true);
    for (from, to) in [(0, 15_000), (15_000, 30_000)] {
        let request = discovery::DiscoveryRequest { resource_names: names(from, to), ..sotw(EDS, &[], "") };
        sotw::take(&mut engine, &request).expect("a set replaces the one before it");
    }
}

#[test]
fn the_names_of_a_client_are_bounded_in_bytes() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    let mut engine = Engine::new(shelf.view(), false);
    let code = |taken: Result<(), tonic::Status>| taken.map_err(|status| status.code());
    let ask = |names: Vec<String>| discovery::DeltaDiscoveryRequest {
        resource_names_subscribe: names,
        ..delta(EDS, &[], "")
    };
    let long = delta::take(&mut engine, &ask(vec!["x".repeat(LONGEST_NAME + 1)]));
    assert_eq!(code(long), Err(tonic::Code::ResourceExhausted));
    let many = |kind: &str| (0..10_000).map(|n| format!("{kind}{n:0500}")).collect::<Vec<_>>();
    assert_eq!(code(delta::take(&mut engine, &ask(many("a")))), Ok(()));
    assert_eq!(code(delta::take(&mut engine, &ask(many("b")))), Err(tonic::Code::ResourceExhausted));
    let instead =
        discovery::DeltaDiscoveryRequest { resource_names_unsubscribe: many("a"), ..ask(many("b")) };
    assert_eq!(code(delta::take(&mut engine, &instead)), Ok(()), "what is given up has room");
}
