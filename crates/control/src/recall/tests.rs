use serde_json::json;

use super::*;
use crate::keeper::tests::{keeper, objects};
use crate::registry::{Event, Key, Source};
use crate::store::memory::Memory as InMemory;

fn rows(address: &str, token: &str) -> Vec<Row> {
    let rows = json!([{"name": "dc1", "consul": {"address": address, "tokenFile": token}}, {"file": {"paths": ["/none"]}}]);
    serde_json::from_value(rows).unwrap()
}

fn instance(id: &str) -> Item {
    let instance = json!({"id": id, "service": "web", "namespace": "shop", "addresses": ["10.0.0.7"],
        "ports": [{"number": 8080, "protocol": "http"}]});
    Item::Instance(Arc::new(serde_json::from_value::<Instance>(instance).unwrap().normalise()))
}

const POLICY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guard, namespace: shop}
spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}
";

fn source(place: usize, registry: &str, part: &str) -> Arc<Source> {
    Arc::new(Source { last: false, place, registry: registry.into(), part: part.to_owned() })
}

/// What is in the store, as a start with these rows finds it.
async fn found(store: &Arc<InMemory>, rows: &[Row]) -> Memories {
    let (contents, store): (_, Arc<dyn Store>) = (store.contents(), store.clone());
    load(&store, &contents, rows, &MeshSettings::default()).await.unwrap()
}

/// Waits until so many things of the first row are kept.
async fn kept(table: &Table, count: usize) {
    let (_, row) = table.rows().nth(1).unwrap();
    row.health.subscribe().wait_for(|state| state.kept == Some(count)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_registry_said_is_there_at_the_next_start_unless_another_place_is_asked() {
    let (keeper, store) = keeper().await;
    let rows = rows("http://127.0.0.1:8500", "a");
    let mut table = Table::new();
    table.add("dc1", "consul").health.heard();
    table.add("file", "file");
    tokio::spawn(keep(keeper.clone(), store.clone(), table.clone(), rows.clone()));
    let parts = [source(1, "dc1", "shop/web"), source(1, "dc1", "rules"), source(2, "file", "x")];
    let rule = objects(POLICY).remove(0);
    let said = [
        Event::Reset(vec![instance("a"), instance("b")]),
        Event::Reset(vec![Item::Rule(Box::new(rule.clone()))]),
        Event::Reset(vec![instance("c")]),
    ];
    keeper.registries(parts.iter().cloned().zip(said).collect()).await.unwrap();
    kept(&table, 3).await;

    let mut memories = found(&store, &rows).await;
    assert_eq!(memories.keys().collect::<Vec<_>>(), ["dc1"], "files are there themselves");
    let memory = memories.remove("dc1").unwrap();
    assert!(memory.heard().is_some_and(|heard| heard.elapsed() < Duration::from_secs(60)));
    assert_eq!(memory.parts["shop/web"], [instance("a"), instance("b")]);
    let [Item::Rule(again)] = &*memory.parts["rules"] else { panic!("{:?}", memory.parts) };
    assert_eq!((&again.json, &again.intents), (&rule.json, &rule.intents));

    // Another token asks the same; another address somebody else, and what was said there goes.
    assert_eq!(found(&store, &self::rows("http://127.0.0.1:8500", "b")).await.len(), 1);

    // What goes is kept no longer; what the disk does not take is written when it does.
    store.fail("full");
    let gone = Event::Remove(Key::Instance("a".to_owned()));
    keeper.registries(vec![(parts[0].clone(), gone)]).await.unwrap();
    store.refused().await;
    assert_eq!(found(&store, &rows).await["dc1"].parts["shop/web"].len(), 2);
    store.clone().retry().await.unwrap();
    kept(&table, 2).await;
    assert_eq!(found(&store, &rows).await["dc1"].parts["shop/web"], [instance("b")]);
    assert!(found(&store, &self::rows("http://127.0.0.1:9500", "a")).await.is_empty());
    let as_store: Arc<dyn Store> = store.clone();
    assert_eq!(as_store.said().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_and_cannot_be_read_is_forgotten_alone() {
    let store = Arc::new(InMemory::default());
    let rows = rows("http://127.0.0.1:8500", "a");
    let notes = Notes::from([("dc1".to_owned(), Note::of(&rows[0], Some(Timestamp::now())))]);
    let said = |key: &str, json: &str| {
        let (registry, part) = ("dc1".to_owned(), "shop/web".to_owned());
        Mutation::PutSaid(Box::new(StoredSaid { registry, part, key: key.to_owned(), json: json.to_owned() }))
    };
    let Item::Instance(good) = instance("a") else { unreachable!() };
    let changes = vec![
        said("instance/a", &serde_json::to_string(&Kept::Instance(good)).unwrap()),
        said("instance/b", r#"{"instance": {"id": "b", "unknown": true}}"#),
        said("instance/c", "{"),
        said("X/shop/x", r#"{"rule": {"namespace": "shop", "source": "kind: X"}}"#),
    ];
    let as_store: Arc<dyn Store> = store.clone();
    assert!(write(&as_store, changes, &notes).await);
    assert_eq!(found(&store, &rows).await["dc1"].parts["shop/web"], [instance("a")]);
}

#[test]
fn the_same_is_asked_where_one_place_stays_and_nothing_else_is_asked_for() {
    let note = |row: Value| Note::of(&serde_json::from_value(row).unwrap(), None);
    let etcd =
        |endpoints: &[&str], prefix: &str| note(json!({"etcd": {"endpoints": endpoints, "prefix": prefix}}));
    let before = etcd(&["http://a:1", "http://b:1"], "/x/");
    assert!(before.holds_for(&etcd(&["http://b:1", "http://c:1"], "/x/")));
    assert!(
        !before.holds_for(&etcd(&["http://c:1"], "/x/")) && !before.holds_for(&etcd(&["http://a:1"], "/y/"))
    );
    assert!(!before.holds_for(&note(json!({"consul": {"address": "http://a:1"}}))));
    let consul = |more: &str, value: &str| {
        note(json!({"name": "dc", "consul": {"address": "http://a:1", more: value}}))
    };
    assert!(consul("tokenFile", "/a").holds_for(&consul("tokenFile", "/b")));
    assert!(!consul("datacenter", "a").holds_for(&consul("datacenter", "b")));
    let dns = |name: &str| note(json!({"dns": {"services": [{"service": "web", "name": name, "port": 1}]}}));
    assert!(dns("a.example").holds_for(&dns("b.example")), "what it may recall it knows by itself");
    let old = Note { kept: Timestamp::now() - jiff::SignedDuration::from_hours(25), ..before.clone() };
    assert!(!old.holds_for(&before));
    let ahead = Note { kept: Timestamp::now() + jiff::SignedDuration::from_hours(25), ..before.clone() };
    assert!(ahead.holds_for(&before), "the clock was put back");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_had_nothing_is_known_to_have_had_nothing() {
    let store = Arc::new(InMemory::default());
    let rows = rows("http://127.0.0.1:8500", "a");
    let heard = Notes::from([("dc1".to_owned(), Note::of(&rows[0], Some(Timestamp::now())))]);
    let as_store: Arc<dyn Store> = store.clone();
    assert!(write(&as_store, Vec::new(), &heard).await);
    assert!(found(&store, &rows).await["dc1"].parts.is_empty());
    let never = Notes::from([("dc1".to_owned(), Note::of(&rows[0], None))]);
    assert!(write(&as_store, Vec::new(), &never).await);
    assert!(found(&store, &rows).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_called_otherwise_now_is_forgotten_and_nothing_else() {
    let row = |kind: &str, fields: Value| -> Vec<Row> {
        serde_json::from_value(json!([{ "name": "one", kind: fields }])).unwrap()
    };
    let eureka = |more: Value| {
        let mut fields =
            json!({"urls": ["http://a:1"], "namespace": "shop", "names": {"CART": "web", "X": "y"}});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row("eureka", fields)
    };
    let etcd = |fields: Value| row("etcd", fields);
    let instance = |id: &str, namespace: &str, service: &str| {
        let Item::Instance(one) = instance(id) else { unreachable!() };
        Instance { namespace: namespace.to_owned(), service: service.to_owned(), ..(*one).clone() }
    };
    let all = [("a", "shop", "web"), ("b", "shop", "stock"), ("c", "test", "db")];
    let (same, none): (&[&str], &[&str]) = (&["a", "b", "c"], &[]);
    for (before, now, left) in [
        (eureka(json!({})), eureka(json!({"sidecar": true})), same),
        (eureka(json!({})), eureka(json!({"namespace": "live"})), &["c"][..]),
        (eureka(json!({})), eureka(json!({"names": {"CART": "basket", "X": "y"}})), &["b", "c"]),
        (eureka(json!({})), eureka(json!({"names": {"X": "y"}})), &["b", "c"]),
        // What had no other name had its own.
        (eureka(json!({})), eureka(json!({"names": {"CART": "web", "X": "y", "DB": "store"}})), &["a", "b"]),
        (etcd(json!({})), etcd(json!({"namespace": "shop"})), &["a", "b"]),
        (etcd(json!({"namespace": "shop"})), etcd(json!({"namespace": "live"})), &["c"]),
        (etcd(json!({})), etcd(json!({})), same),
        (etcd(json!({})), etcd(json!({"namespace": "live"})), none),
    ] {
        let store = Arc::new(InMemory::default());
        let as_store: Arc<dyn Store> = store.clone();
        let said = all.map(|(id, namespace, service)| {
            let json =
                serde_json::to_string(&Kept::Instance(Arc::new(instance(id, namespace, service)))).unwrap();
            let (registry, part, key) = ("one".to_owned(), format!("{namespace}/{service}"), id.to_owned());
            Mutation::PutSaid(Box::new(StoredSaid { registry, part, key, json }))
        });
        let notes = Notes::from([("one".to_owned(), Note::of(&before[0], Some(Timestamp::now())))]);
        assert!(write(&as_store, said.to_vec(), &notes).await);
        let found = found(&store, &now).await;
        // Where nothing is left, nothing is known: a start without an answer is none.
        assert_eq!(found.contains_key("one"), !left.is_empty());
        let parts = found.get("one").map(|memory| memory.parts.clone()).unwrap_or_default();
        assert!(parts.values().all(|items| items.len() == 1), "{parts:?}");
        let items = parts.into_values().flatten();
        let ids: BTreeSet<String> = items
            .map(|item| match item {
                Item::Instance(one) => one.id.clone(),
                Item::Rule(_) => unreachable!(),
            })
            .collect();
        assert_eq!(ids.iter().map(String::as_str).collect::<Vec<_>>(), left);
        let kept: Vec<String> = as_store.said().await.unwrap().into_iter().map(|said| said.key).collect();
        assert_eq!(kept.len(), left.len(), "{kept:?}");
    }
    // A note of before that names were noted.
    let mut note = serde_json::to_value(Note::of(&eureka(json!({}))[0], None)).unwrap();
    note.as_object_mut().unwrap().remove("called");
    let note: Note = serde_json::from_value(note).unwrap();
    let now = Note::of(&eureka(json!({"namespace": "live"}))[0], None);
    assert!(
        note.holds_for(&now)
            && !note.renamed(&now).has(&Item::Instance(Arc::new(instance("a", "shop", "web"))))
    );
}
