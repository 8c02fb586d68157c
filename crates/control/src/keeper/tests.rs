use outrigger_model::identity::SpiffeId;
use outrigger_rules::intent::{Carried, Host};
use outrigger_rules::{ParseOptions, parse};
use tokio::task::JoinSet;

use super::*;
use crate::api::registries::bodies;
use crate::instance::{Protocol, sample};
use crate::registry::claim::Reach;
use crate::registry::file::FileSettings;
use crate::registry::health::Table;
use crate::registry::{Item, Key, Memories, Row, open};
use crate::store::memory::Memory;

mod instances;
mod replicas;
mod words;

const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, subsets: [{name: v1, labels: {version: v1}}]}
";

const ROUTE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec: {hosts: [catalog], http: [{route: [{destination: {host: catalog, subset: v1}}]}]}
";

fn catalog_instance(id: &str) -> Instance {
    sample(id, "catalog", "v1", "127.0.0.5", 8080, Protocol::Http)
}

fn operator() -> Caller {
    Caller::Operator("ann".into())
}

fn workload(account: &str, source: &str) -> Caller {
    let identity = SpiffeId::workload("cluster.local", "shop", account).unwrap();
    let reach = Reach { source: Some(source.parse().unwrap()), ranges: Vec::new() };
    Caller::Workload { identity, services: vec![account.to_owned()], reach, incarnation: None }
}

pub(crate) fn objects(text: &str) -> Vec<Object> {
    let parsed = parse("rules.yaml", text);
    assert!(!parsed.has_errors(), "{:?}", parsed.findings);
    parsed.objects
}

pub(crate) async fn keeper() -> (Keeper, Arc<Memory>) {
    on(Arc::default()).await
}

async fn on(store: Arc<Memory>) -> (Keeper, Arc<Memory>) {
    let start = Start {
        store: store.clone(),
        contents: store.contents(),
        settings: MeshSettings::default(),
        said: Vec::new(),
        roots_pem: "roots".into(),
    };
    (Keeper::start(start).await.unwrap(), store)
}

/// A keeper ends when its handles are gone; another begins with what it has stored.
async fn reopened((keeper, store): (Keeper, Arc<Memory>)) -> (Keeper, Arc<Memory>) {
    let mut generation = keeper.subscribe();
    drop(keeper);
    while generation.changed().await.is_ok() {}
    on(store).await
}

#[tokio::test]
async fn rules_and_registrations_are_there_after_a_restart_and_generations_go_on() {
    let first = keeper().await;
    first.0.register(catalog_instance("c1"), operator()).await.unwrap();
    let applied =
        first.0.apply(objects(&format!("{SUBSETS}---{ROUTE}")), "default", "ann", false).await.unwrap();
    assert_eq!(
        applied.objects.iter().map(|o| (o.version, o.action)).collect::<Vec<_>>(),
        [(1, Action::Created); 2]
    );
    assert_eq!(first.0.published().generation(), applied.generation);

    let (keeper, store) = reopened(first).await;
    let published = keeper.published();
    assert!(published.generation() > applied.generation, "a proxy must never see a generation twice");
    assert_eq!(published.rules.len(), 2);
    let world = &published.world;
    assert!(world.instance("c1").is_some());
    let host: Host = world.resolver.service("catalog", "shop");
    assert!(world.route_for(&host, "shop", Carried::Http).is_some(), "the stored rule is in force again");

    let changed = ROUTE.replace("subset: v1", "subset: v1, port: {number: 8080}");
    let again = keeper.apply(objects(&changed), "default", "bob", false).await.unwrap();
    assert_eq!((again.objects[0].version, again.objects[0].action), (2, Action::Updated));
    keeper.delete("VirtualService/shop/catalog", "bob", false, false).await.unwrap();
    let history = store.history("VirtualService/shop/catalog".into()).await.unwrap();
    assert_eq!(
        history.iter().map(|e| (e.version, e.author.as_str())).collect::<Vec<_>>(),
        [(3, "bob"), (2, "bob"), (1, "ann")]
    );
    assert!(keeper.delete("VirtualService/shop/catalog", "bob", false, false).await.is_err());
}

#[tokio::test]
async fn an_application_with_an_error_changes_nothing_at_all() {
    let (keeper, store) = keeper().await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    let before = keeper.published().generation();
    let bad = ROUTE.replace("subset: v1", "subset: v9");
    let refused =
        keeper.apply(objects(&format!("{SUBSETS}---{bad}")), "default", "ann", false).await.unwrap_err();
    let Refused::Findings(findings) = refused else { panic!("{refused}") };
    assert!(findings.iter().any(|f| f.is_error() && f.code == "IST0101" && f.line > 0), "{findings:?}");
    assert_eq!(keeper.published().generation(), before);
    assert!(keeper.published().rules.is_empty() && store.contents().rules.is_empty());
}

#[tokio::test]
async fn a_dry_run_judges_and_changes_nothing_and_the_same_text_twice_is_unchanged() {
    let (keeper, _) = keeper().await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    let dry = keeper.apply(objects(SUBSETS), "default", "ann", true).await.unwrap();
    assert!(dry.dry_run && dry.objects[0].action == Action::Created);
    assert!(keeper.published().rules.is_empty());
    let real = keeper.apply(objects(SUBSETS), "default", "ann", false).await.unwrap();
    let again = keeper.apply(objects(SUBSETS), "default", "ann", false).await.unwrap();
    assert_eq!(again.objects[0].action, Action::Unchanged);
    assert_eq!(again.objects[0].version, real.objects[0].version);
    assert_eq!(again.generation, real.generation);
}

#[tokio::test]
async fn what_the_store_does_not_take_has_not_happened() {
    let (keeper, store) = keeper().await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    let before = keeper.published().generation();
    store.fail("the lease is lost");
    let refused = keeper.deregister("c1", operator()).await.unwrap_err();
    assert!(matches!(&refused, Refused::Store(text) if text.contains("the lease is lost")), "{refused}");
    let said = Event::Reset(vec![Item::Instance(Arc::new(catalog_instance("c2")))]);
    keeper.registry(file(1, ""), said).await.unwrap();
    let published = keeper.published();
    assert!(published.world.instance("c1").is_some() && published.generation() > before);
    assert!(published.world.instance("c2").is_some(), "what a registry says is not the store's to keep");
    store.clone().retry().await.unwrap();
    keeper.deregister("c1", operator()).await.unwrap();
    assert!(keeper.published().world.instance("c1").is_none());
}

#[tokio::test]
async fn what_a_registry_says_survives_a_change_beside_it_that_cannot_be_stored() {
    let (keeper, store) = keeper().await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    store.fail("the disk is full");
    let said = |id: &str| Event::Reset(vec![Item::Instance(Arc::new(catalog_instance(id)))]);
    let both = vec![(file(1, "a"), said("c2")), (file(1, "b"), said("c3"))];
    // Commands of one moment are one turn.
    let (refused, once, heard) = tokio::join!(
        keeper.deregister("c1", operator()),
        keeper.registry(file(1, "c"), said("c4")),
        keeper.registries(both),
    );
    assert!(
        matches!(refused, Err(Refused::Store(_))) && matches!(once, Err(Refused::Store(_))),
        "it was one turn"
    );
    heard.unwrap();
    let world = keeper.published().world.clone();
    assert!(["c1", "c2", "c3"].iter().all(|id| world.instance(id).is_some()));
}

#[tokio::test]
async fn an_error_that_was_there_before_does_not_block_others() {
    let (keeper, _) = keeper().await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    keeper.apply(objects(&format!("{SUBSETS}---{ROUTE}")), "default", "ann", false).await.unwrap();
    // The service goes, so the stored route now names a host that does not exist.
    keeper.deregister("c1", operator()).await.unwrap();
    let other = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: bank}\nspec: {mtls: {mode: STRICT}}\n";
    keeper.apply(objects(other), "default", "ann", false).await.unwrap();
}

#[tokio::test]
async fn a_burst_of_changes_costs_few_worlds() {
    let (keeper, _) = keeper().await;
    let before = keeper.published().generation();
    let changes = (0..100).map(|n| keeper.register(catalog_instance(&format!("c{n}")), operator()));
    let answers = futures(changes).await;
    let published = keeper.published();
    assert_eq!(published.world.instance_count(), 100);
    assert!(answers.iter().all(|generation| *generation <= published.generation()));
    assert!(published.generation() - before < 50, "{} worlds", published.generation() - before);
}

async fn futures(all: impl Iterator<Item = impl Future<Output = Result<u64, Refused>>>) -> Vec<u64> {
    let mut set = Vec::new();
    let mut pinned: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        pinned.retain_mut(|one| match one.as_mut().poll(cx) {
            std::task::Poll::Ready(answer) => {
                set.push(answer.unwrap());
                false
            }
            std::task::Poll::Pending => true,
        });
        if pinned.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    set
}

fn file(place: usize, part: &str) -> Arc<Source> {
    Arc::new(Source { last: false, place, registry: format!("files{place}").into(), part: part.to_owned() })
}

fn has(instances: &[Instance]) -> Event {
    Event::Reset(instances.iter().map(|instance| Item::Instance(Arc::new(instance.clone()))).collect())
}

#[tokio::test]
async fn a_file_and_the_api_do_not_share_an_instance() {
    let (keeper, _) = keeper().await;
    let source = file(1, "web.yaml");
    keeper.registry(source.clone(), has(&[catalog_instance("c1")])).await.unwrap();
    let refused = keeper.register(catalog_instance("c1"), operator()).await.unwrap_err();
    assert!(
        matches!(&refused, Refused::Conflict(text) if text.contains("registry \"files1\" (web.yaml)")),
        "{refused}"
    );
    assert!(matches!(keeper.deregister("c1", operator()).await, Err(Refused::Conflict(_))));
    keeper.registry(source, Event::Remove(Key::Instance("c1".into()))).await.unwrap();
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
}

#[tokio::test]
async fn what_two_registries_have_is_the_firsts_and_one_that_is_emptied_empties_no_other() {
    let (keeper, _) = keeper().await;
    let (first, second) = (file(1, "a.yaml"), file(2, "b.yaml"));
    let at = |id: &str, ip: &str| sample(id, "catalog", "v1", ip, 8080, Protocol::Http);
    let address = |id: &str| keeper.published().world.instance(id).map(|i| i.addresses[0].to_string());
    keeper.registry(second.clone(), has(&[at("c1", "10.0.0.2"), at("c2", "10.0.0.3")])).await.unwrap();
    keeper.registry(first.clone(), has(&[at("c1", "10.0.0.1"), at("c3", "10.0.0.4")])).await.unwrap();
    assert_eq!(address("c1").unwrap(), "10.0.0.1", "whoever spoke last");
    let told = bodies(&table(), &keeper.published());
    assert_eq!((told[1].instances, told[2].instances, told[1].shadowed_count), (2, 2, 0));
    let [lost] = told[2].shadowed.as_slice() else { panic!("{told:?}") };
    assert_eq!((&*lost.what, &*lost.part, &*lost.by), ("c1", "b.yaml", "registry \"files1\" (a.yaml)"));

    keeper.registry(first, Event::Reset(Vec::new())).await.unwrap();
    assert_eq!(address("c1").unwrap(), "10.0.0.2", "the next has it");
    assert!(address("c2").is_some() && address("c3").is_none());
    let generation = keeper.published().generation();
    let same = keeper.registry(second.clone(), has(&[at("c2", "10.0.0.3"), at("c1", "10.0.0.2")])).await;
    assert_eq!(same.unwrap(), generation, "the same once more is no news");
    let newer = Item::Instance(Arc::new(at("c2", "10.0.0.9")));
    keeper.registry(second, Event::Upsert(newer)).await.unwrap();
    assert_eq!(address("c2").unwrap(), "10.0.0.9");
}

#[tokio::test]
async fn who_claims_the_address_of_another_identity_gets_none_of_its_calls_and_is_told() {
    let (keeper, _) = keeper().await;
    let at = |id: &str, service: &str| sample(id, service, "v1", "10.0.0.7", 8080, Protocol::Http);
    let (thief, source) = (at("a", "thief"), file(1, "thief.yaml"));
    keeper.registry(source.clone(), has(std::slice::from_ref(&thief))).await.unwrap();
    let holders = || {
        let published = keeper.published();
        let all = published.world.workloads_at("", "10.0.0.7:8080".parse().unwrap());
        all.map(|instance| instance.id.clone()).collect::<Vec<_>>()
    };
    let told = || bodies(&table(), &keeper.published());
    assert_eq!((holders(), told()[1].contested_count), (vec!["a".to_owned()], 0), "nobody else is there");

    keeper.registry(file(2, "bank.yaml"), has(&[at("b", "bank")])).await.unwrap();
    let contested = told()[2].contested.clone();
    assert_eq!(holders(), ["a"], "in the order of the settings");
    assert_eq!((&*contested[0].instance, &*contested[0].address), ("b", "10.0.0.7:8080"));
    assert_eq!(contested[0].by, "instance \"a\" (shop/thief) of registry \"files1\" (thief.yaml)");

    let plain = Instance { sidecar: false, ..thief.clone() };
    keeper.registry(source.clone(), has(&[plain])).await.unwrap();
    assert_eq!(holders(), ["b"], "who proves it");
    assert_eq!((told()[1].contested_count, told()[2].contested_count), (1, 0));
    let stopped = Instance { state: State::Stopped, ..thief.clone() };
    keeper.registry(source.clone(), has(&[stopped])).await.unwrap();
    assert_eq!((holders(), told()[1].contested_count), (vec!["b".to_owned()], 0), "who has stopped");

    // The same word from whoever goes before.
    keeper.registry(source, has(&[thief])).await.unwrap();
    assert_eq!(holders(), ["a"]);
    keeper.registry(file(0, ""), has(&[at("b", "bank")])).await.unwrap();
    assert_eq!(holders(), ["b"]);
    assert_eq!((told()[1].contested_count, told()[2].contested_count), (1, 0));
}

fn table() -> Table {
    let file = || Some(FileSettings::default());
    let rows =
        ["files1", "files2"].map(|name| Row { name: Some(name.into()), file: file(), ..Row::default() });
    open(&rows, &ParseOptions::default(), &"us".into(), Memories::new(), &mut JoinSet::new()).table
}

#[tokio::test]
async fn a_rule_of_a_registry_is_in_force_and_changed_only_there() {
    let (keeper, store) = keeper().await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    let said = |text: &str| {
        let items = objects(text).into_iter().map(|object| Item::Rule(Box::new(object)));
        Event::Reset(items.collect())
    };
    let source = file(1, "rules.yaml");
    keeper.registry(source.clone(), said(&format!("{SUBSETS}---{ROUTE}"))).await.unwrap();
    let key = "VirtualService/shop/catalog";
    let published = keeper.published();
    let host: Host = published.world.resolver.service("catalog", "shop");
    assert!(published.world.route_for(&host, "shop", Carried::Http).is_some());
    let stored = published.rules[key].stored();
    assert_eq!((stored.version, &*stored.author), (1, "registry \"files1\" (rules.yaml)"));
    for refused in [
        keeper.apply(objects(ROUTE), "default", "ann", false).await.map(drop),
        keeper.delete(key, "ann", true, false).await.map(drop),
    ] {
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("is kept by registry \"files1\" (rules.yaml); change it there"), "{text}");
    }
    let changed = ROUTE.replace("subset: v1", "subset: v1, port: {number: 8080}");
    keeper.registry(source.clone(), said(&format!("{SUBSETS}---{changed}"))).await.unwrap();
    assert_eq!(keeper.published().rules[key].stored().version, 2);
    keeper.registry(source, Event::Remove(Key::Rule(key.into()))).await.unwrap();
    assert!(keeper.published().world.route_for(&host, "shop", Carried::Http).is_none());
    assert_eq!(keeper.published().rules.len(), 1);
    assert!(store.contents().rules.is_empty(), "the registry keeps it, not we");
    keeper.apply(objects(ROUTE), "default", "ann", false).await.unwrap();
}

#[tokio::test]
async fn new_roots_make_a_new_world() {
    let (keeper, _) = keeper().await;
    let mut generation = keeper.subscribe();
    keeper.roots("other roots".into()).await;
    generation.changed().await.unwrap();
}

#[tokio::test]
async fn a_rule_that_another_needs_is_not_deleted_without_force() {
    let (keeper, _store) = keeper().await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    keeper.apply(objects(&format!("{SUBSETS}---{ROUTE}")), "default", "ann", false).await.unwrap();
    let key = "DestinationRule/shop/catalog";
    let Err(Refused::Findings(findings)) = keeper.delete(key, "ann", false, false).await else {
        panic!("deleted")
    };
    assert!(findings[0].is_error() && findings[0].message.contains("subset \"v1\""), "{findings:?}");
    assert_eq!(findings[0].object.as_deref(), Some("VirtualService shop/catalog"));
    assert_eq!(keeper.published().rules.len(), 2);
    let planned = keeper.delete(key, "ann", true, true).await.unwrap();
    assert_eq!((planned.findings.len(), keeper.published().rules.len()), (1, 2), "a dry run deletes nothing");
    let removed = keeper.delete(key, "ann", true, false).await.unwrap();
    assert_eq!((removed.findings.len(), keeper.published().rules.len()), (1, 1));
    // Who is needed by nobody goes.
    assert_eq!(keeper.delete("VirtualService/shop/catalog", "ann", false, false).await.unwrap().findings, []);
}

#[tokio::test]
async fn the_order_of_a_set_means_nothing_and_an_object_twice_is_a_finding() {
    let (keeper, _store) = keeper().await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    let twice = objects(&format!("{SUBSETS}---{SUBSETS}"));
    let Err(Refused::Findings(findings)) = keeper.apply(twice, "default", "ann", false).await else {
        panic!("applied")
    };
    assert_eq!(findings[0].code, "OUT0007", "as `analyze` says it");
    keeper.apply(objects(&format!("{ROUTE}---{SUBSETS}")), "default", "ann", false).await.unwrap();
}
