use outrigger_model::identity::SpiffeId;
use outrigger_rules::intent::Host;
use outrigger_rules::parse;

use super::*;
use crate::instance::{Protocol, sample};

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

fn objects(text: &str) -> Vec<Object> {
    let parsed = parse("rules.yaml", text);
    assert!(!parsed.has_errors(), "{:?}", parsed.findings);
    parsed.objects
}

async fn keeper(dir: &std::path::Path) -> (Keeper, Store) {
    let store = Store::open(&dir.join("s.redb")).unwrap();
    let start = Start {
        store: store.clone(),
        contents: store.load().unwrap(),
        settings: MeshSettings::default(),
        files: Vec::new(),
        roots_pem: "roots".into(),
    };
    (Keeper::start(start).await.unwrap(), store)
}

/// A keeper ends when its handles are gone, and then the store can be opened again.
async fn reopened(dir: &std::path::Path, old: (Keeper, Store)) -> (Keeper, Store) {
    let mut generation = old.0.subscribe();
    drop(old);
    while generation.changed().await.is_ok() {}
    keeper(dir).await
}

#[tokio::test]
async fn rules_and_registrations_are_there_after_a_restart_and_generations_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = keeper(dir.path()).await;
    first.0.register(catalog_instance("c1"), operator()).await.unwrap();
    let applied =
        first.0.apply(objects(&format!("{SUBSETS}---{ROUTE}")), "default", "ann", false).await.unwrap();
    assert_eq!(
        applied.objects.iter().map(|o| (o.version, o.action)).collect::<Vec<_>>(),
        [(1, Action::Created); 2]
    );
    assert_eq!(first.0.published().generation(), applied.generation);

    let (keeper, store) = reopened(dir.path(), first).await;
    let published = keeper.published();
    assert!(published.generation() > applied.generation, "a proxy must never see a generation twice");
    assert_eq!(published.rules.len(), 2);
    let world = published.compiled.world();
    assert!(world.instance("c1").is_some());
    let host: Host = world.resolver.service("catalog", "shop");
    assert!(world.route_for(&host, "shop").is_some(), "the stored rule is in force again");

    let changed = ROUTE.replace("subset: v1", "subset: v1, port: {number: 8080}");
    let again = keeper.apply(objects(&changed), "default", "bob", false).await.unwrap();
    assert_eq!((again.objects[0].version, again.objects[0].action), (2, Action::Updated));
    keeper.delete("VirtualService/shop/catalog", "bob").await.unwrap();
    let history = store.history("VirtualService/shop/catalog").unwrap();
    assert_eq!(
        history.iter().map(|e| (e.version, e.author.as_str())).collect::<Vec<_>>(),
        [(3, "bob"), (2, "bob"), (1, "ann")]
    );
    assert!(keeper.delete("VirtualService/shop/catalog", "bob").await.is_err());
}

#[tokio::test]
async fn an_application_with_an_error_changes_nothing_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (keeper, store) = keeper(dir.path()).await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    let before = keeper.published().generation();
    let bad = ROUTE.replace("subset: v1", "subset: v9");
    let refused =
        keeper.apply(objects(&format!("{SUBSETS}---{bad}")), "default", "ann", false).await.unwrap_err();
    let Refused::Findings(findings) = refused else { panic!("{refused}") };
    assert!(findings.iter().any(|f| f.is_error() && f.code == "IST0101" && f.line > 0), "{findings:?}");
    assert_eq!(keeper.published().generation(), before);
    assert!(keeper.published().rules.is_empty() && store.load().unwrap().rules.is_empty());
}

#[tokio::test]
async fn a_dry_run_judges_and_changes_nothing_and_the_same_text_twice_is_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let (keeper, _) = keeper(dir.path()).await;
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
async fn an_error_that_was_there_before_does_not_block_others() {
    let dir = tempfile::tempdir().unwrap();
    let (keeper, _) = keeper(dir.path()).await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    keeper.apply(objects(&format!("{SUBSETS}---{ROUTE}")), "default", "ann", false).await.unwrap();
    // The service goes, so the stored route now names a host that does not exist.
    keeper.deregister("c1", operator()).await.unwrap();
    let other = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: bank}\nspec: {mtls: {mode: STRICT}}\n";
    keeper.apply(objects(other), "default", "ann", false).await.unwrap();
}

#[tokio::test]
async fn a_burst_of_changes_costs_few_worlds() {
    let dir = tempfile::tempdir().unwrap();
    let (keeper, _) = keeper(dir.path()).await;
    let before = keeper.published().generation();
    let changes = (0..100).map(|n| keeper.register(catalog_instance(&format!("c{n}")), operator()));
    let answers = futures(changes).await;
    let published = keeper.published();
    assert_eq!(published.compiled.world().instances().count(), 100);
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

#[tokio::test(start_paused = true)]
async fn a_silent_instance_expires_and_after_a_restart_its_time_runs_anew() {
    let dir = tempfile::tempdir().unwrap();
    let first = keeper(dir.path()).await;
    let leased = Instance { ttl_seconds: Some(30), ..catalog_instance("c1") };
    first.0.register(leased, operator()).await.unwrap();
    tokio::time::advance(Duration::from_secs(20)).await;
    first.0.heartbeat("c1", operator()).await.unwrap();
    tokio::time::advance(Duration::from_secs(20)).await;
    assert!(first.0.published().compiled.world().instance("c1").is_some(), "the heartbeat renewed it");

    let (keeper, store) = reopened(dir.path(), first).await;
    tokio::time::advance(Duration::from_secs(20)).await;
    assert!(keeper.published().compiled.world().instance("c1").is_some(), "the time runs anew");
    let mut generation = keeper.subscribe();
    generation.mark_unchanged();
    generation.changed().await.unwrap();
    assert!(keeper.published().compiled.world().instance("c1").is_none());
    assert!(store.load().unwrap().instances.is_empty());
    assert!(matches!(keeper.heartbeat("c1", operator()).await, Err(Refused::Unknown(_))));
}

#[tokio::test(start_paused = true)]
async fn when_all_heartbeats_stop_at_once_everything_stays_and_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (keeper, _) = keeper(dir.path()).await;
    for n in 0..5 {
        let leased = Instance { ttl_seconds: Some(30), ..catalog_instance(&format!("c{n}")) };
        keeper.register(leased, operator()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    let published = keeper.published();
    assert_eq!(published.compiled.world().instances().count(), 5);
    assert_eq!(published.held.len(), 1);
    assert_eq!(published.held[0].instances.len(), 5);
    keeper.deregister("c0", operator()).await.unwrap();
    assert_eq!(keeper.published().compiled.world().instances().count(), 4, "an operator's word counts");
}

#[tokio::test]
async fn a_file_and_the_api_do_not_share_an_instance() {
    let dir = tempfile::tempdir().unwrap();
    let (keeper, _) = keeper(dir.path()).await;
    let event = Event::Reset(vec![Arc::new(catalog_instance("c1"))]);
    keeper.registry("web.yaml".into(), event).await.unwrap();
    let refused = keeper.register(catalog_instance("c1"), operator()).await.unwrap_err();
    assert!(matches!(&refused, Refused::Conflict(text) if text.contains("web.yaml")), "{refused}");
    assert!(matches!(keeper.deregister("c1", operator()).await, Err(Refused::Conflict(_))));
    keeper.registry("web.yaml".into(), Event::Remove("c1".into())).await.unwrap();
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
}

#[tokio::test]
async fn a_workload_cannot_take_over_the_instance_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let (keeper, _) = keeper(dir.path()).await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    let identity = SpiffeId::workload("cluster.local", "shop", "web").unwrap();
    let web = Caller::Workload { identity, services: vec!["web".into()] };
    let stolen = sample("c1", "web", "v1", "127.0.0.66", 8080, Protocol::Http);
    assert!(matches!(keeper.register(stolen, web.clone()).await, Err(Refused::Conflict(_))));
    assert!(matches!(keeper.set_state("c1", State::Stopped, web.clone()).await, Err(Refused::Forbidden(_))));
    assert!(matches!(keeper.deregister("c1", web).await, Err(Refused::Forbidden(_))));
}

#[tokio::test]
async fn maintenance_survives_the_sidecars_own_registration_but_not_the_operators_word() {
    let dir = tempfile::tempdir().unwrap();
    let (keeper, _) = keeper(dir.path()).await;
    let identity = SpiffeId::workload("cluster.local", "shop", "catalog").unwrap();
    let own = Caller::Workload { identity, services: vec!["catalog".into()] };
    keeper.register(catalog_instance("c1"), own.clone()).await.unwrap();
    keeper.set_state("c1", State::Maintenance, operator()).await.unwrap();
    keeper.register(catalog_instance("c1"), own).await.unwrap();
    let state = || keeper.published().compiled.world().instance("c1").unwrap().state;
    assert_eq!(state(), State::Maintenance);
    keeper.set_state("c1", State::Running, operator()).await.unwrap();
    assert_eq!(state(), State::Running);
}

#[tokio::test]
async fn new_roots_make_a_new_world() {
    let dir = tempfile::tempdir().unwrap();
    let (keeper, _) = keeper(dir.path()).await;
    let mut generation = keeper.subscribe();
    keeper.roots("other roots".into()).await;
    generation.changed().await.unwrap();
}
