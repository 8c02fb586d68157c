use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::super::parts::Said;
use super::super::{ORIGIN, Word};
use super::*;
use crate::instance::{Instance, Protocol, State as Life};
use crate::registry::write::Writer;

fn info(id: &str, app: &str, more: Value) -> Value {
    let mut info = json!({
        "instanceId": id, "app": app, "hostName": "host-1", "ipAddr": "10.0.0.1", "status": "UP", "overriddenStatus": "UNKNOWN",
        "port": { "$": 8080, "@enabled": "true" }, "securePort": { "$": 443, "@enabled": "false" }, "countryId": 1,
        "dataCenterInfo": { "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn" },
        "metadata": { "@class": "java.util.Collections$EmptyMap", "version": "v2", "zone": "z1", "weight": "30", "management.port": "9" },
        "isCoordinatingDiscoveryServer": "false", "actionType": "ADDED",
    });
    info.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    info
}

/// An answer with these; each stands alone in its application, once as a list and once not.
fn answer(version: u64, hash: &str, all: &[Value]) -> Value {
    let of = |one: &Value| json!({ "name": one["app"], "instance": if version.is_multiple_of(2) { json!([one]) } else { one.clone() } });
    let all: Vec<Value> = all.iter().map(of).collect();
    json!({ "applications": { "versions__delta": version.to_string(), "apps__hashcode": hash, "application": all } })
}

fn settings() -> EurekaSettings {
    let names = BTreeMap::from([("LEGACY$APP".to_owned(), "legacy".to_owned())]);
    EurekaSettings { namespace: "shop".into(), names, ..EurekaSettings::default() }
}

fn read(one: Value) -> Result<Instance, String> {
    let read = entry::read(answer(1, "", &[one]).to_string().as_bytes(), &settings(), "us")?;
    match read.rows.into_iter().next().unwrap().said {
        Said::Instance(_, instance) => Ok((*instance).clone()),
        Said::Wrong(_, why) => Err(why),
        Said::Nobody => Err("nobody".to_owned()),
    }
}

#[test]
fn address_ports_status_and_metadata_are_taken_over() {
    let one = read(info("h:catalog:8080", "CATALOG_V", json!({}))).unwrap();
    assert_eq!((&*one.id, &*one.service, &*one.namespace), ("h:catalog:8080@catalog-v", "catalog-v", "shop"));
    assert_eq!(
        (one.version.as_deref(), &*one.zone, one.weight, one.state),
        (Some("v2"), "z1", 30, Life::Running)
    );
    assert_eq!((one.ports.len(), one.ports[0].number, one.labels.contains_key("@class")), (1, 8080, false));
    for (status, state) in [
        ("DOWN", Life::Unhealthy),
        ("STARTING", Life::Starting),
        ("OUT_OF_SERVICE", Life::Maintenance),
        ("UNKNOWN", Life::Unhealthy),
    ] {
        assert_eq!(read(info("a", "A", json!({ "status": status }))).unwrap().state, state);
    }
    let secure = json!({
        "port": { "$": "80", "@enabled": false }, "securePort": { "$": "8443", "@enabled": true }, "ipAddr": "", "hostName": "fd00::7",
        "metadata": { "sidecar": "true" }, "dataCenterInfo": { "metadata": { "availability-zone": "eu-1a" } },
    });
    let secure = read(info("a", "LEGACY$APP", secure)).unwrap();
    assert_eq!((secure.ports[0].number, secure.ports[0].protocol), (8443, Protocol::Tls));
    assert_eq!((&*secure.service, &*secure.zone, secure.sidecar), ("legacy", "eu-1a", true));
    assert_eq!(secure.addresses[0].to_string(), "fd00::7");
    let both = json!({ "securePort": { "$": 8080, "@enabled": "true" } });
    let both = read(info("a", "A", both)).unwrap().ports;
    assert_eq!(
        both.iter().map(|port| (port.number, port.protocol)).collect::<Vec<_>>(),
        [(8080, Protocol::Tls)]
    );
    for (more, word) in [
        (json!({ "ipAddr": "catalog.internal" }), "no IP address"),
        (json!({ "ipAddr": "0.0.0.0" }), "nobody's own"),
        (json!({ "port": { "$": 70000, "@enabled": true } }), "port: 70000"),
        (json!({ "status": "FINE" }), "status"),
        (json!({ "hostName": 7 }), "cannot be read"),
        (json!({ "metadata": { "a": "b".repeat(20_000) } }), "16384"),
    ] {
        let why = read(info("i1", "A", more)).unwrap_err();
        assert!(why.contains(word) && why.contains("A/i1"), "{why}");
    }
    assert_eq!(read(info("a", "A", json!({ "metadata": { ORIGIN: "us" } }))).unwrap_err(), "nobody");
    assert_eq!(
        read(info("a", "A", json!({ "isCoordinatingDiscoveryServer": "true" }))).unwrap_err(),
        "nobody"
    );
    for rubbish in ["", "[]", "{}", "<html>", "{\"applications\": 7}"] {
        assert!(entry::read(rubbish.as_bytes(), &settings(), "us").is_err(), "{rubbish}");
    }
}

#[tokio::test]
async fn what_is_registered_goes_to_another_server_where_one_answers_with_errors() {
    // Of A all but what has changed fails, or that, too; what B has been told is told on.
    for (status, fails_at_once) in [(503, true), (401, true), (500, false)] {
        let (told, mut heard) = mpsc::channel(8);
        let mut urls = Vec::new();
        for (name, fails) in [("A", true), ("B", false)] {
            let told = told.clone();
            let answer = move |method: Method, uri: Uri| {
                let (told, path) = (told.clone(), uri.path().to_owned());
                async move {
                    let is_read = path == "/eureka/apps/delta";
                    if fails && (fails_at_once || !is_read) {
                        return StatusCode::from_u16(status).unwrap();
                    }
                    if !is_read {
                        told.send(format!("{name}: {method} {path}")).await.unwrap();
                    }
                    if is_read { StatusCode::FORBIDDEN } else { StatusCode::NO_CONTENT }
                }
            };
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            urls.push(format!("http://{}/eureka", listener.local_addr().unwrap()));
            let router = Router::new().fallback(answer);
            tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        }
        let settings = EurekaSettings { urls, ..settings() };
        let one = read(info("a1", "A", json!({}))).unwrap();
        let mut writer = writer::EurekaWriter::new(settings, "us".into());
        let mut first = writer.open().await;
        if !fails_at_once {
            first = match first {
                Ok(()) => writer.put(&one).await.map_err(crate::registry::write::Unput::text),
                Err(why) => panic!("{why}"),
            };
            assert!(first.unwrap_err().contains("500"));
            first = writer.open().await;
        }
        assert_eq!(first, Ok(()));
        writer.put(&one).await.unwrap();
        assert_eq!(heard.recv().await.unwrap(), "B: POST /eureka/apps/A");
    }
}

/// What a Eureka of the test answers.
#[derive(Clone, Default)]
struct Scene {
    all: Value,
    delta: Value,
    /// Full answers that were given.
    full: usize,
}

async fn eureka(State(scene): State<Arc<watch::Sender<Scene>>>, headers: HeaderMap, uri: Uri) -> Response {
    // me:secret.
    if headers.get("authorization").is_none_or(|value| value != "Basic bWU6c2VjcmV0") {
        return (StatusCode::UNAUTHORIZED, "who are you?").into_response();
    }
    let now = scene.borrow().clone();
    match uri.path() {
        "/eureka/apps" => {
            scene.send_modify(|scene| scene.full += 1);
            now.all.to_string().into_response()
        }
        "/eureka/apps/delta" if now.delta.is_null() => StatusCode::FORBIDDEN.into_response(),
        "/eureka/apps/delta" => now.delta.to_string().into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

struct Play {
    scene: Arc<watch::Sender<Scene>>,
    eureka: Eureka,
    http: Http,
    voice: Voice,
    words: mpsc::Receiver<Word>,
}

impl Play {
    async fn new() -> Self {
        let scene = Arc::new(watch::Sender::new(Scene::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let router = Router::new().fallback(eureka).with_state(scene.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let urls = vec![format!("http://me:secret@{at}/eureka/")];
        let eureka = Eureka::new(EurekaSettings { urls, interval_seconds: 600, ..settings() }, "us".into());
        let http = opened(&eureka.settings, 0).await.unwrap();
        let (voice, words) = Voice::of_a_test();
        Self { scene, eureka, http, voice, words }
    }

    fn set(&self, all: Value, delta: Value) {
        self.scene.send_modify(|scene| (scene.all, scene.delta) = (all, delta));
    }

    /// One round; parts that are said, and how many instances they have.
    async fn round(&mut self, anew: bool) -> BTreeMap<String, usize> {
        self.round_at(0, anew).await
    }

    /// The same, at one of several servers.
    async fn round_at(&mut self, server: usize, anew: bool) -> BTreeMap<String, usize> {
        let mut said = BTreeMap::new();
        self.eureka.round(server, &mut self.http, anew, &self.voice).await.unwrap();
        while let Ok(word) = self.words.try_recv() {
            if let Word::Event(source, Event::Reset(items)) = word {
                said.insert(source.part.clone(), items.len());
            }
        }
        said
    }

    fn problems(&self) -> String {
        self.voice.health.problems().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

fn counts(parts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    parts.iter().map(|(part, count)| ((*part).to_owned(), *count)).collect()
}

#[tokio::test]
async fn what_changed_is_enough_until_the_hash_is_another() {
    let mut play = Play::new().await;
    let (a, b) = (info("a1", "A", json!({})), info("b1", "B", json!({})));
    let full = |play: &Play| play.scene.borrow().full;
    play.set(answer(2, "UP_2_", &[a.clone(), b.clone()]), answer(3, "UP_2_", &[]));
    assert_eq!(play.round(true).await, counts(&[("shop/a", 1), ("shop/b", 1)]));
    // One comes, one goes, one changes: nothing is asked for anew.
    let gone = info("b1", "B", json!({ "actionType": "DELETED" }));
    let more = info("a2", "A", json!({ "status": "DOWN" }));
    play.set(json!("rubbish"), answer(4, "DOWN_1_UP_1_", &[gone, more.clone()]));
    assert_eq!(play.round(false).await, counts(&[("shop/a", 2), ("shop/b", 0)]));
    assert_eq!(full(&play), 1);
    // A change that nobody told: all is asked for at once.
    play.set(answer(4, "UP_1_", std::slice::from_ref(&a)), answer(6, "UP_1_", &[]));
    assert_eq!(play.round(false).await.get("shop/a"), Some(&1));
    assert_eq!(full(&play), 2);
    // One that cannot be read stays what it was, and holds up nobody.
    let bad = info("a1", "A", json!({ "ipAddr": "nowhere" }));
    play.set(Value::Null, answer(8, "UP_2_", &[bad, b.clone()]));
    assert_eq!(play.round(false).await, counts(&[("shop/a", 1), ("shop/b", 1)]));
    assert!(play.problems().contains("A/a1"), "{}", play.problems());
    // It tells no changes: all is asked for each time.
    play.set(answer(2, "UP_2_", &[a, b]), Value::Null);
    assert!(play.eureka.round(0, &mut play.http, true, &play.voice).await.unwrap());
    assert_eq!((full(&play), play.problems().as_str()), (3, ""));
}

#[tokio::test]
async fn what_a_server_lacks_that_was_not_asked_before_is_held_one_by_one_until_it_is_back() {
    let all: Vec<Value> = (1..=3).map(|id| info(&format!("a{id}"), "A", json!({}))).collect();
    let of = |one: &Value| Item::Instance(Arc::new(read(one.clone()).unwrap()));
    for tells_deltas in [true, false] {
        let delta = |version, hash| if tells_deltas { answer(version, hash, &[]) } else { Value::Null };
        // It has started together with us.
        let mut play = Play::new().await;
        let mut before = BTreeMap::from([("shop/a".to_owned(), all.iter().map(of).collect())]);
        assert!(play.eureka.recall(&mut before));
        play.set(answer(2, "UP_1_", &all[..1]), delta(1, "UP_1_"));
        assert_eq!(play.round(true).await, counts(&[("shop/a", 3)]));
        assert!(play.problems().contains("does not list what it listed before"), "{}", play.problems());
        assert_eq!(play.eureka.keys.parts.held_in("shop/a"), 2);
        play.set(answer(2, "UP_3_", &all), delta(3, "UP_3_"));
        assert_eq!(play.round(true).await, counts(&[("shop/a", 3)]));
        assert!(play.problems().is_empty() && play.eureka.begun_anew.is_none());
        // Now it is known, and what goes has gone.
        play.set(answer(2, "UP_2_", &all[1..]), delta(4, "UP_2_"));
        assert_eq!(play.round(true).await, counts(&[("shop/a", 2)]));
        // Another server has just started.
        play.set(answer(2, "UP_1_", &all[2..]), delta(5, "UP_1_"));
        assert_eq!(play.round_at(1, true).await, counts(&[("shop/a", 2)]));
        assert_eq!(play.eureka.keys.parts.held_in("shop/a"), 1);
    }
    // Who knows nothing has nothing to hold.
    let mut play = Play::new().await;
    play.set(answer(2, "UP_3_", &all), answer(3, "UP_3_", &[]));
    assert_eq!(play.round(true).await, counts(&[("shop/a", 3)]));
    play.set(answer(2, "UP_1_", &all[..1]), answer(4, "UP_1_", &[]));
    assert_eq!(play.round(true).await, counts(&[("shop/a", 1)]));
}

#[tokio::test]
async fn who_is_said_to_have_gone_is_not_held_with_those_that_are_missing() {
    let all: Vec<Value> = (1..=3).map(|id| info(&format!("a{id}"), "A", json!({}))).collect();
    let gone = |id: &str| info(id, "A", json!({ "actionType": "DELETED" }));
    let mut play = Play::new().await;
    play.set(answer(2, "UP_3_", &all), answer(9, "UP_3_", &[]));
    assert_eq!(play.round(true).await, counts(&[("shop/a", 3)]));
    // It has started, and a3 is not back.
    play.set(answer(2, "UP_2_", &all[..2]), answer(1, "UP_2_", &[]));
    assert_eq!(play.round(true).await, counts(&[("shop/a", 3)]));
    for (version, id, hash, left, held) in [(2, "a2", "UP_1_", 2, 1), (3, "a3", "UP_1_", 1, 0)] {
        play.set(Value::Null, answer(version, hash, &[gone(id)]));
        assert_eq!(play.round(false).await, counts(&[("shop/a", left)]));
        assert_eq!(play.eureka.keys.parts.held_in("shop/a"), held);
    }
    // The last one of all that there was.
    play.set(Value::Null, answer(4, "", &[gone("a1")]));
    play.round(false).await;
    assert_eq!(play.eureka.keys.parts.items("shop/a").len(), 1);
}

#[tokio::test]
async fn a_server_that_has_started_a_rubbish_answer_and_a_bad_password_take_nothing() {
    let mut play = Play::new().await;
    let all: Vec<Value> =
        ["a", "b", "c"].iter().map(|app| info(&format!("{app}1"), app, json!({}))).collect();
    play.set(answer(2, "UP_3_", &all), answer(40, "UP_3_", &[]));
    let three = counts(&[("shop/a", 1), ("shop/b", 1), ("shop/c", 1)]);
    assert_eq!(play.round(true).await, three);
    // It has started, and one is back so far: the count of its deltas tells.
    play.set(answer(2, "UP_2_", &all[1..]), answer(1, "UP_2_", &[]));
    play.round(true).await;
    assert!(play.eureka.begun_anew.is_some() && play.eureka.keys.parts.held_in("shop/a") == 1);
    assert!(play.problems().contains("does not list what it listed before"));
    // Empty.
    play.set(answer(2, "", &[]), answer(2, "", &[]));
    assert_eq!(play.round(true).await.values().sum::<usize>(), 0);
    assert_eq!(play.eureka.keys.parts.names().count(), 3);
    play.set(answer(2, "UP_3_", &all), answer(4, "UP_3_", &[]));
    assert_eq!(play.round(true).await, three);
    assert!(play.problems().is_empty() && play.eureka.begun_anew.is_none());
    for rubbish in [json!({}), json!("<html>"), answer(2, "UP_3_", &[])] {
        play.set(rubbish, answer(5, "", &[]));
        let why = play.eureka.round(0, &mut play.http, true, &play.voice).await.unwrap_err();
        assert!(why.contains("Eureka at 127.0.0.1"), "{why}");
    }
    let settings = Arc::new(EurekaSettings {
        urls: vec![format!("http://me:wrong@{}/eureka", play.http.authority)],
        ..settings()
    });
    let mut http = opened(&settings, 0).await.unwrap();
    let why = play.eureka.round(0, &mut http, true, &play.voice).await.unwrap_err();
    assert!(why.contains("401") && why.contains("passwordFile") && !why.contains("wrong"), "{why}");
    let kept = serde_json::to_string(&*settings).unwrap();
    assert!(!format!("{settings:?}{kept}").contains("wrong"), "{kept}");
}
