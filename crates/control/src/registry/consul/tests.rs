use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::super::health::{Condition, Table};
use super::super::{Heard, Voice, keep};
use super::*;
use crate::instance::{Protocol, State as Life};

fn entry(more: Value) -> Entry {
    let mut entry = json!({
        "Node": { "Node": "n1", "Address": "10.0.0.1", "Datacenter": "dc1", "Meta": null },
        "Service": {
            "ID": "web/1", "Service": "Web_Front", "Port": 8080, "Tags": ["grpc", "blue"], "Meta": { "version": "v2", "zone": "z1" },
            "Weights": { "Passing": 5, "Warning": 2 }, "Something": "new",
        },
        "Checks": [{ "CheckID": "serfHealth", "Status": "passing" }],
    });
    for (part, fields) in more.as_object().unwrap() {
        match fields.as_object() {
            Some(fields) => entry[part].as_object_mut().unwrap().extend(fields.clone()),
            None => entry[part] = fields.clone(),
        }
    }
    serde_json::from_value(entry).unwrap()
}

fn instance(more: Value) -> Result<Instance, String> {
    entry(more).instance(&ConsulSettings { namespace: "shop".into(), ..ConsulSettings::default() })
}

#[test]
fn weight_version_zone_tags_protocol_and_health_are_taken_over() {
    let plain = instance(json!({})).unwrap();
    assert_eq!((&*plain.id, &*plain.service, &*plain.namespace), ("web_1@n1", "web-front", "shop"));
    assert_eq!((plain.addresses[0].to_string().as_str(), plain.ports[0].number), ("10.0.0.1", 8080));
    assert_eq!((plain.weight, plain.version.as_deref(), &*plain.labels["version"]), (500, Some("v2"), "v2"));
    assert_eq!((&*plain.region, &*plain.zone, plain.ports[0].protocol), ("dc1", "z1", Protocol::Grpc));
    assert_eq!((plain.tags.len(), plain.state, plain.sidecar), (2, Life::Running, false));
    let of = |checks: Value| instance(json!({ "Checks": checks })).map(|i| (i.state, i.weight)).unwrap();
    assert_eq!(of(json!([{ "Status": "passing" }, { "Status": "warning" }])), (Life::Running, 200));
    assert_eq!(of(json!([{ "Status": "passing" }, { "Status": "critical" }])).0, Life::Unhealthy);
    assert_eq!(of(json!([{ "CheckID": "_node_maintenance", "Status": "critical" }])).0, Life::Maintenance);
    assert_eq!(of(Value::Null), (Life::Running, 500), "without a check it is well");
    let own = instance(
        json!({ "Service": { "Address": "fd00::7", "Meta": { "sidecar": "true", "protocol": "tcp" } } }),
    )
    .unwrap();
    assert_eq!(
        (own.addresses[0].to_string().as_str(), own.sidecar, own.ports[0].protocol),
        ("fd00::7", true, Protocol::Tcp)
    );
    assert!(entry(json!({ "Service": { "Kind": "connect-proxy" } })).is_of_the_mesh());
    for (wrong, word) in [
        (json!({ "Service": { "Address": "db.internal" } }), "no IP address"),
        (json!({ "Service": { "Address": "0.0.0.0" } }), "nobody's own"),
        (json!({ "Service": { "Service": "a b$" } }), "service"),
    ] {
        assert!(instance(wrong).unwrap_err().contains(word), "{word}");
    }
}

#[test]
fn an_index_that_goes_backwards_begins_anew_and_zero_does_not_spin() {
    let mut index = Index::default();
    assert_eq!(index.of_last(), None);
    for (got, next) in [(7, Some(7)), (7, Some(7)), (3, None), (3, Some(3)), (0, None), (0, Some(1))] {
        index.take(got);
        assert_eq!(index.of_last(), next, "after {got}");
    }
}

/// What a Consul of the test answers.
#[derive(Clone, Default)]
struct Scene {
    index: u64,
    services: Value,
    /// By service.
    entries: BTreeMap<String, Value>,
    filtered: bool,
    status: u16,
}

async fn consul(
    State(scene): State<watch::Receiver<Scene>>,
    uri: Uri,
    RawQuery(query): RawQuery,
) -> (StatusCode, HeaderMap, String) {
    let mut scene = scene;
    let asked = query.unwrap_or_default();
    let index = asked.split('&').find_map(|pair| pair.strip_prefix("index=")?.parse::<u64>().ok());
    let now = scene.wait_for(|scene| index != Some(scene.index) || scene.status != 0).await.unwrap().clone();
    let status = StatusCode::from_u16(now.status).unwrap_or(StatusCode::OK);
    let mut headers = HeaderMap::new();
    headers.insert("x-consul-index", now.index.into());
    if now.filtered {
        headers.insert("x-consul-results-filtered-by-acls", "true".parse().unwrap());
    }
    let body = match uri.path().strip_prefix("/v1/health/service/") {
        Some(name) => now.entries.get(name).cloned().unwrap_or_else(|| json!([])),
        None => now.services,
    };
    (status, headers, if body.is_string() { body.as_str().unwrap().to_owned() } else { body.to_string() })
}

fn scene(index: u64, services: &[&str]) -> Scene {
    let listed: BTreeMap<&str, [&str; 0]> = services.iter().map(|name| (*name, [])).collect();
    let one = |name: &str| {
        json!([{
            "Node": { "Node": "n1", "Address": "10.0.0.1" }, "Service": { "ID": name, "Service": name, "Port": 80 }
        }])
    };
    let entries = services.iter().map(|name| ((*name).to_owned(), one(name))).collect();
    Scene { index, services: json!(listed), entries, ..Scene::default() }
}

struct Play {
    scene: watch::Sender<Scene>,
    table: Table,
    heard: Heard,
    _tasks: JoinSet<()>,
}

impl Play {
    async fn of(first: Scene) -> Self {
        let (scene, seen) = watch::channel(first);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        let router = Router::new().fallback(consul).with_state(seen);
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let settings = ConsulSettings { address, ..ConsulSettings::default() };
        let mut table = Table::new();
        let row = table.add("dc1", "consul");
        let (words, receiver) = mpsc::channel(16);
        let voice = Voice { place: 1, registry: row.name.clone(), words, health: row.health.clone() };
        tasks.spawn(keep(Consul::new(settings), voice));
        Self { scene, table, heard: Heard { row, words: receiver }, _tasks: tasks }
    }

    /// Parts that are said next, and how many instances they have.
    async fn next(&mut self, parts: usize) -> BTreeSet<(String, usize)> {
        let mut said = BTreeSet::new();
        while said.len() < parts {
            for (source, event) in self.heard.next().await.unwrap() {
                let Event::Reset(items) = event else { panic!("{event:?}") };
                said.insert((source.part.clone(), items.len()));
            }
        }
        said
    }

    /// Until its state has something; what is said meanwhile is too much.
    async fn until(&mut self, is: impl Fn(Condition, &str) -> bool) {
        loop {
            let (_, row) = self.table.rows().nth(1).unwrap();
            let problems: Vec<String> = row.health.problems().iter().map(ToString::to_string).collect();
            let error = row.health.state().error.map_or_else(String::new, |error| error.message);
            if is(row.condition(), &format!("{} {error}", problems.join(" "))) {
                return;
            }
            tokio::select! {
                Some(said) = self.heard.next() => assert!(said.is_empty(), "{said:?}"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    }
}

#[tokio::test]
async fn what_is_listed_is_said_part_by_part_and_what_goes_is_said_too() {
    let mut play = Play::of(scene(5, &["a", "b", "c", "d", "consul"])).await;
    let first = play.heard.first().await.unwrap();
    let parts: BTreeSet<&str> = first.iter().map(|(source, _)| &*source.part).collect();
    assert_eq!(parts, ["a", "b", "c", "d"].into(), "its own servers are no service");
    let mut bad = scene(6, &["a", "b", "c"]);
    bad.entries.insert("b".into(), json!([{ "Node": { "Node": "n1" }, "Service": { "ID": "b", "Service": "b", "Address": "b.internal" } }]));
    play.scene.send_replace(bad);
    assert_eq!(
        play.next(2).await,
        [("b".to_owned(), 1), ("d".to_owned(), 0)].into(),
        "b keeps its last good instance"
    );
    play.until(|condition, said| condition == Condition::Degraded && said.contains("b.internal")).await;
}

#[tokio::test]
async fn an_outage_rubbish_and_a_list_that_shrinks_take_nothing_and_are_told() {
    let all = ["a", "b", "c"];
    let mut play = Play::of(scene(5, &all)).await;
    assert_eq!(play.heard.first().await.unwrap().len(), 3);
    for (status, services, said) in [
        (500, json!("No cluster leader"), "500 Internal Server Error: No cluster leader"),
        (403, json!("ACL not found"), "is the token in tokenFile good"),
        (200, json!("<html>"), "/v1/catalog/services cannot be read"),
    ] {
        play.scene.send_modify(|scene| {
            (scene.index, scene.status, scene.services) = (scene.index + 1, status, services.clone())
        });
        play.until(|condition, text| condition == Condition::Away && text.contains(said)).await;
    }
    // Another history, in which there is nothing yet.
    play.scene.send_replace(Scene { filtered: true, ..scene(2, &["a"]) });
    let said = |text: &str| text.contains("2 of 3 services at once") && text.contains("filtered by ACLs");
    tokio::time::timeout(Duration::from_secs(60), async {
        // The one that is listed is said anew.
        assert_eq!(play.next(1).await, [("a".to_owned(), 1)].into());
        play.until(|condition, text| condition == Condition::Degraded && said(text)).await;
        play.scene.send_replace(scene(3, &all));
        assert_eq!(play.next(2).await, [("b".to_owned(), 1), ("c".to_owned(), 1)].into());
        play.until(|condition, _| condition == Condition::Connected).await;
    })
    .await
    .unwrap();
}

#[test]
fn many_services_share_the_connections_and_none_waits_longer_than_a_round() {
    let address = ConsulSettings { connections: 11, ..ConsulSettings::default() };
    let http = Arc::new(Http::open(&address).unwrap());
    let (news, _) = mpsc::channel(1);
    let settings = Arc::new(address);
    let ask = Ask { http, news, places: Arc::new(Semaphore::new(10)), all: Arc::default(), settings };
    for (services, wait) in [(10, 60_000), (20, 5000), (1000, 100)] {
        ask.count(services);
        assert_eq!(ask.wait().as_millis(), wait, "{services}");
    }
}
