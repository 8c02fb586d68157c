use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::super::health::{Condition, Table};
use super::super::opened::keep;
use super::super::parts::Said;
use super::super::{Heard, Item, Voice};
use super::entry::{Entry, Row};
use super::*;
use crate::instance::{Instance, Protocol, State as Life};

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
    assert_eq!((&*plain.id, &*plain.service, &*plain.namespace), ("web_1@n1.dc1", "web-front", "shop"));
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
        let voice = Voice::new(1, &row, words, &BTreeMap::new());
        tasks.spawn(keep(Consul::new(settings, "us".into()), voice));
        Self { scene, table, heard: Heard::new(row, receiver), _tasks: tasks }
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
            let mut changed = row.health.subscribe();
            let problems: Vec<String> = row.health.problems().iter().map(ToString::to_string).collect();
            let error = row.health.state().error.map_or_else(String::new, |error| error.message);
            if is(row.condition(), &format!("{} {error}", problems.join(" "))) {
                return;
            }
            tokio::select! {
                Some(said) = self.heard.next() => assert!(said.is_empty(), "{said:?}"),
                news = changed.changed() => news.unwrap(),
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
    play.scene.send_replace(scene(2, &["a"]));
    let missing = |text: &str| text.contains("does not list what it listed before");
    let said = |text: &str| missing(text) && text.contains("filtered by ACLs");
    tokio::time::timeout(Duration::from_secs(60), async {
        // The one that is listed is said anew.
        assert_eq!(play.next(1).await, [("a".to_owned(), 1)].into());
        play.until(|condition, text| condition == Condition::Degraded && missing(text)).await;
        // And of what the token does not see each is asked for by itself.
        play.scene.send_replace(Scene { filtered: true, ..scene(3, &["a"]) });
        assert_eq!(play.next(3).await, all.map(|name| (name.to_owned(), 1)).into());
        play.until(|condition, text| condition == Condition::Degraded && said(text)).await;
        play.scene.send_replace(scene(4, &all));
        assert_eq!(play.next(3).await, all.map(|name| (name.to_owned(), 1)).into());
        play.until(|condition, _| condition == Condition::Connected).await;
    })
    .await
    .unwrap();
}

fn row(service: &str, id: &str) -> Value {
    json!({ "Node": { "Node": "n1", "Address": "10.0.0.1" }, "Service": { "ID": id, "Service": service, "Port": 80 } })
}

fn rows(all: &[Value]) -> Vec<Said> {
    all.iter().cloned().map(|row| Row::of(row).read(&ConsulSettings::default(), "us")).collect()
}

fn ids(items: &[Item]) -> Vec<String> {
    let id = |item: &Item| match item {
        Item::Instance(instance) => instance.id.clone(),
        Item::Rule(_) => panic!("a rule"),
    };
    items.iter().map(id).collect()
}

/// Parts of two services, `web` with four instances and `db` with one.
fn parts(now: Instant) -> Parts {
    let mut parts = Parts::new(Duration::from_secs(60));
    let web = rows(&["a", "b", "c", "d"].map(|id| row("web", id)));
    assert_eq!(parts.part("web", web, Missing::Gone, now).len(), 4);
    assert_eq!(parts.part("db", rows(&[row("db", "x")]), Missing::Gone, now).len(), 1);
    parts
}

fn listed(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_was_lost_comes_back_one_by_one_and_the_rest_is_held_meanwhile() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut parts = parts(now);
    assert_eq!(parts.list(&listed(&[]), false, false, at(1)).len(), 0, "all of it at once has not gone");
    assert_eq!(parts.hold_ends(), Some(at(61)));
    assert_eq!(parts.list(&listed(&["web"]), false, false, at(2)).len(), 0);
    let left = parts.part("web", rows(&[row("web", "a")]), Missing::Gone, at(3));
    assert_eq!(
        ids(&left),
        ["a@n1", "b@n1", "c@n1", "d@n1"],
        "the first that is back does not end it for the others"
    );
    parts.part("web", rows(&[row("web", "a"), row("web", "b")]), Missing::Gone, at(4));
    let left = parts.let_go(at(61));
    let left: Vec<_> = left.iter().map(|(part, left)| (part.as_str(), ids(left))).collect();
    assert_eq!(left, [("db", vec![]), ("web", vec!["a@n1".to_owned(), "b@n1".to_owned()])]);
    assert!(!parts.is_holding());
}

#[test]
fn one_service_that_goes_and_instances_of_one_that_stays_have_gone() {
    let now = Instant::now();
    let mut all = parts(now);
    for name in ["c", "d", "e"] {
        all.part(name, rows(&[row(name, name)]), Missing::Gone, now);
    }
    let left = all.list(&listed(&["web", "c", "d", "e"]), false, false, now);
    assert_eq!(left.iter().map(|(part, left)| (part.as_str(), left.len())).collect::<Vec<_>>(), [("db", 0)]);
    let left = all.part("web", rows(&[row("web", "d")]), Missing::Gone, now);
    assert_eq!(ids(&left), ["d@n1"]);
    // While it recovers, and where the token does not see, nothing has.
    let held = all.part("c", Vec::new(), Missing::Lost, now);
    assert_eq!(ids(&held), ["c@n1"]);
    let hidden = all.part("d", Vec::new(), Missing::Hidden, now);
    assert_eq!((ids(&hidden), all.held_in("d")), (vec!["d@n1".to_owned()], 0));
    assert_eq!(all.list(&listed(&["web", "c", "d"]), false, true, now).len(), 0);
}

/// The last instance of a service is deregistered: both the service's answer and the list say so, in either order.
#[test]
fn a_service_that_ends_has_gone_whichever_answer_comes_first() {
    let now = Instant::now();
    let five = || {
        let mut all = parts(now);
        for name in ["c", "d", "e"] {
            all.part(name, rows(&[row(name, name)]), Missing::Gone, now);
        }
        all
    };
    let rest = listed(&["web", "c", "d", "e"]);
    for hidden in [false, true] {
        let mut all = five();
        assert_eq!(ids(&all.part("db", Vec::new(), Missing::Emptied, now)), ["x@n1"], "it is listed still");
        let left = all.list(&rest, hidden, false, now);
        assert_eq!(
            left.iter().map(|(part, left)| (part.as_str(), left.len())).collect::<Vec<_>>(),
            [("db", 0)]
        );
        assert!(!all.is_holding());
    }
    let mut all = five();
    all.list(&rest, true, false, now);
    assert!(all.part("db", Vec::new(), Missing::Gone, now).is_empty(), "not listed, and answered for");
    // All of them at once have not ended.
    let mut all = five();
    for name in ["db", "c", "d"] {
        all.part(name, Vec::new(), Missing::Emptied, now);
    }
    assert_eq!(all.list(&listed(&["web", "e"]), false, false, now).len(), 0);
    assert!(all.is_holding());
}

#[test]
fn a_list_that_the_token_does_not_see_all_of_takes_nothing_away() {
    let now = Instant::now();
    let mut all = parts(now);
    for name in ["c", "d", "e", "f", "g", "h", "i", "j"] {
        all.part(name, rows(&[row(name, name)]), Missing::Gone, now);
    }
    let nine = listed(&["web", "c", "d", "e", "f", "g", "h", "i", "j"]);
    assert_eq!(all.list(&nine, true, false, now).len(), 0);
    assert!(all.has("db") && !all.is_holding(), "it is not held for a time: nothing is known of it");
    assert_eq!(all.list(&nine, false, false, now).len(), 1, "now that it shows everything, it has gone");
}

#[test]
fn the_time_of_an_outage_is_not_counted_and_what_has_passed_is() {
    let now = Instant::now();
    let mut parts = parts(now);
    parts.list(&listed(&[]), false, false, now);
    let outage = Duration::from_secs(3600);
    parts.pause(outage);
    let at = |seconds| now + outage + Duration::from_secs(seconds);
    assert_eq!(parts.hold_ends(), Some(at(60)));
    parts.pause(outage);
    assert_eq!(parts.let_go(at(60)).len(), 0);
    assert_eq!(parts.let_go(at(60) + outage).len(), 2);
    assert_eq!(parts.hold_ends(), None);
}

#[test]
fn a_row_that_cannot_be_read_costs_nobody_else_anything() {
    let now = Instant::now();
    let mut parts = parts(now);
    let mut bad = row("web", "b");
    bad["Service"]["Port"] = json!(70_000);
    let left = parts.part("web", rows(&[row("web", "a"), bad]), Missing::Gone, now);
    assert_eq!(ids(&left), ["a@n1", "b@n1"], "it keeps what it was, c and d have gone");
    assert!(parts.problems().any(|p| p.file == "web" && p.message.contains("\"b@n1\" cannot be read")));
    let left = parts.part("web", rows(&[row("web", "a"), json!({ "Node": 7 })]), Missing::Gone, now);
    assert_eq!(ids(&left), ["a@n1", "b@n1"], "anybody may be the one without a name");
    let left = parts.part("web", rows(&[row("web", "a")]), Missing::Gone, now);
    assert_eq!((ids(&left), parts.problems().count()), (vec!["a@n1".to_owned()], 0));
}

#[tokio::test]
async fn a_service_that_cannot_be_heard_of_takes_nobody_along() {
    let mut play = Play::of(scene(5, &["a", "b"])).await;
    play.heard.first().await.unwrap();
    let mut bad = scene(6, &["a", "b"]);
    bad.entries.insert("a".into(), json!("<html>"));
    bad.entries.insert("b".into(), json!([row("b", "b"), row("b", "more")]));
    play.scene.send_replace(bad);
    assert_eq!(play.next(1).await, [("b".to_owned(), 2)].into());
    play.until(|condition, said| condition == Condition::Degraded && said.contains("/v1/health/service/a"))
        .await;
    play.scene.send_replace(scene(7, &["a", "b"]));
    assert_eq!(play.next(2).await, [("a".to_owned(), 1), ("b".to_owned(), 1)].into());
    play.until(|condition, _| condition == Condition::Connected).await;
}

#[test]
fn tls_is_not_off_where_it_was_meant() {
    let settings = |address: &str| ConsulSettings {
        address: address.into(),
        ca_file: Some("/ca.pem".into()),
        ..ConsulSettings::default()
    };
    assert_eq!(settings("https://consul:8501").validate(), Ok(()));
    assert!(settings("http://consul:8500").validate().unwrap_err().contains("address is http://"));
}

#[test]
fn services_that_are_not_wanted_any_more_are_not_recalled() {
    let of = |name: &str| {
        let one = Arc::new(instance(json!({ "Service": { "ID": name, "Service": name } })).unwrap());
        (name.to_owned(), vec![Item::Instance(one)])
    };
    let before = BTreeMap::from(["a", "b", "c", "d"].map(of));
    for (services, left) in [(&[][..], Some(4)), (&["a", "b"], Some(2)), (&["x"], None)] {
        let services = services.iter().map(|name: &&str| (*name).to_owned()).collect();
        let mut consul = Consul::new(ConsulSettings { services, ..ConsulSettings::default() }, "us".into());
        let mut said = before.clone();
        assert_eq!(consul.recall(&mut said).then_some(said.len()), left);
        assert_eq!(consul.parts.names().count(), left.unwrap_or(0));
    }
}
