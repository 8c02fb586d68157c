use tokio::sync::mpsc;

use super::super::parts::Said;
use super::super::{ORIGIN, Word};
use super::*;
use crate::instance::{Instance, Protocol, State};

fn settings() -> NacosSettings {
    let names = BTreeMap::from([("providers:com.acme.Stock:1.0:".to_owned(), "stock".to_owned())]);
    NacosSettings { namespace: "shop".into(), names, ..NacosSettings::default() }
}

fn host(ip: &str, more: Value) -> Value {
    let mut host = json!({
        "instanceId": "x", "ip": ip, "port": 8080, "weight": 1.0, "healthy": true, "enabled": true, "ephemeral": true,
        "clusterName": "DEFAULT", "serviceName": "DEFAULT_GROUP@@catalog", "instanceHeartBeatInterval": 5000,
        "metadata": { "version": "v2", "zone": "z1", "protocol": "http", "weight": "7" },
    });
    host.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    host
}

fn info(name: &str, made: i64, hosts: &[Value]) -> Value {
    json!({ "name": name, "groupName": "DEFAULT_GROUP", "clusters": "", "lastRefTime": made, "hosts": hosts, "valid": true })
}

fn read(name: &str, host: Value) -> Result<Instance, String> {
    let service = entry::read(&info(name, 1, &[host]), &settings(), "us")?;
    match service.said.into_iter().next().unwrap() {
        Said::Instance(_, instance) => Ok((*instance).clone()),
        Said::Wrong(_, why) => Err(why),
        Said::Nobody => Err("nobody".to_owned()),
    }
}

#[test]
fn weight_health_cluster_group_and_metadata_are_taken_over() {
    let one = read("Catalog_V", host("10.0.0.1", json!({}))).unwrap();
    assert_eq!((&*one.id, &*one.service, &*one.namespace), ("10.0.0.1:8080@catalog-v", "catalog-v", "shop"));
    assert_eq!(
        (one.weight, one.version.as_deref(), &*one.zone, one.state),
        (100, Some("v2"), "z1", State::Running)
    );
    assert_eq!((one.ports[0].number, one.ports[0].protocol), (8080, Protocol::Http));
    let more = json!({ "weight": 2.5, "clusterName": "c2", "healthy": false, "metadata": null });
    let other = read("g1@@providers:com.acme.Stock:1.0:", host("fd00::7", more)).unwrap();
    assert_eq!((&*other.id, &*other.service), ("fd00::7:8080+c2+g1@stock", "stock"));
    assert_eq!((other.weight, other.state, &*other.labels["nacos-cluster"]), (250, State::Unhealthy, "c2"));
    assert_eq!(other.tags, ["c2", "g1"]);
    for (more, state) in [
        (json!({ "enabled": false }), State::Maintenance),
        (json!({ "weight": 0.0, "healthy": false }), State::Maintenance),
        (json!({ "weight": 0.001 }), State::Running),
    ] {
        let one = read("catalog", host("10.0.0.1", more)).unwrap();
        assert_eq!((one.state, one.weight >= 1), (state, true));
    }
    for (more, word) in [
        (json!({ "ip": "catalog.internal" }), "no IP address"),
        (json!({ "ip": "0.0.0.0" }), "nobody's own"),
        (json!({ "port": 70000 }), "cannot be read"),
        (json!({ "weight": -1.0 }), "weight: -1"),
        (json!({ "metadata": { "a": "b".repeat(20_000) } }), "16384"),
    ] {
        let why = read("catalog", host("10.0.0.1", more)).unwrap_err();
        assert!(why.contains(word), "{why}");
    }
    assert!(
        read("providers:com.acme.Other:1.0:", host("10.0.0.1", json!({}))).unwrap_err().contains("service")
    );
    assert_eq!(read("a", host("10.0.0.1", json!({ "metadata": { ORIGIN: "us" } }))).unwrap_err(), "nobody");
    for rubbish in [json!({}), Value::Null, json!({ "name": "" }), json!({ "name": "a", "hosts": 7 })] {
        assert!(entry::read(&rubbish, &settings(), "us").is_err(), "{rubbish}");
    }
    let of_c2 = NacosSettings { clusters: vec!["c2".into()], ..settings() };
    let service = entry::read(&info("a", 1, &[host("10.0.0.1", json!({}))]), &of_c2, "us").unwrap();
    assert_eq!(service.said, [Said::Nobody]);
}

/// A Nacos of the test, and what was said of each part last.
struct Play {
    nacos: Nacos,
    heard: Heard,
    voice: Voice,
    words: mpsc::Receiver<Word>,
}

impl Play {
    fn new() -> Self {
        let (voice, words) = Voice::of_a_test();
        let heard = Heard { whole: true, ..Heard::default() };
        Self { nacos: Nacos::new(settings(), "us".into()), heard, voice, words }
    }

    async fn push(&mut self, name: &str, made: i64, ips: &[&str]) -> Option<usize> {
        let hosts: Vec<Value> = ips.iter().map(|ip| host(ip, json!({}))).collect();
        self.say(info(name, made, &hosts)).await
    }

    /// Something is pushed; how many instances are said then.
    async fn say(&mut self, info: Value) -> Option<usize> {
        self.nacos.pushed(&json!({ "serviceInfo": info }), &mut self.heard, &self.voice).await.unwrap();
        match self.words.try_recv() {
            Ok(Word::Event(_, Event::Reset(items))) => Some(items.len()),
            _ => None,
        }
    }

    fn problems(&self) -> String {
        self.voice.health.problems().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

#[tokio::test]
async fn what_is_pushed_holds_unless_it_is_old_empty_or_rubbish() {
    let mut play = Play::new();
    assert_eq!(play.push("catalog", 5, &["10.0.0.1"]).await, None, "nobody has subscribed to it");
    play.heard.subscribed.insert(Name::of("catalog", GROUP), Known::new(5));
    assert_eq!(play.push("catalog", 6, &["10.0.0.1", "10.0.0.2"]).await, Some(2));
    assert_eq!(play.push("catalog", 5, &["10.0.0.1"]).await, None, "it is older");
    assert_eq!(play.push("DEFAULT_GROUP@@catalog", 7, &["10.0.0.1"]).await, Some(1));
    // Everybody gone at once, while it is still listed.
    assert_eq!(play.push("catalog", 8, &[]).await, Some(1));
    assert!(play.problems().contains("does not list what it listed before"), "{}", play.problems());
    let bad = [host("nowhere", json!({})), host("10.0.0.3", json!({}))];
    assert_eq!(play.say(info("catalog", 9, &bad)).await, Some(2));
    assert!(play.problems().contains("nowhere:8080"), "{}", play.problems());
    assert_eq!(play.say(Value::Null).await, None);
    assert!(play.problems().contains("names no service"));
    // After a new connection what is missing is held, one by one.
    assert_eq!(play.push("catalog", 10, &["10.0.0.1", "10.0.0.3"]).await, Some(2));
    (play.heard.again, play.heard.whole) = (true, false);
    assert_eq!(play.push("catalog", 11, &["10.0.0.3"]).await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_taken_out_goes_and_many_at_once_are_held() {
    let mut play = Play::new();
    let names = ["a", "b", "c", "d"];
    for name in names {
        play.heard.subscribed.insert(Name::of(name, GROUP), Known::new(0));
        assert_eq!(play.push(name, 1, &["10.0.0.1", "10.0.0.2"]).await, Some(2));
    }
    // Disabled in the console, with all its instances.
    assert_eq!(play.push("a", 2, &[]).await, Some(2));
    tokio::time::advance(EMPTY / 2).await;
    assert_eq!(play.push("a", 3, &[]).await, Some(2), "it may be on its way");
    tokio::time::advance(EMPTY / 2).await;
    assert_eq!((play.push("a", 4, &[]).await, &*play.problems()), (Some(0), ""));
    assert_eq!(play.push("a", 5, &["10.0.0.1"]).await, Some(1));
    // One that had somebody in between begins anew.
    assert_eq!(play.push("a", 6, &[]).await, Some(1));
    assert_eq!(play.push("a", 7, &["10.0.0.1"]).await, Some(1));
    tokio::time::advance(EMPTY).await;
    for name in &names[..2] {
        assert!(play.push(name, 8, &[]).await > Some(0));
    }
    tokio::time::advance(EMPTY).await;
    for name in &names[..2] {
        assert!(play.push(name, 9, &[]).await > Some(0), "two of four at once");
    }
}

#[tokio::test]
async fn what_the_first_round_after_a_start_lacks_is_held_one_by_one() {
    let mut play = Play::new();
    assert!(!play.nacos.begins().again, "nothing is known that could be missing");
    let of = |ip: &&str| Item::Instance(Arc::new(read("catalog", host(ip, json!({}))).unwrap()));
    let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
    let part = "DEFAULT_GROUP@@catalog".to_owned();
    assert!(play.nacos.recall(&mut BTreeMap::from([(part.clone(), all.iter().map(of).collect())])));
    play.heard = play.nacos.begins();
    play.heard.subscribed.insert(Name::of("catalog", GROUP), Known::new(0));
    assert_eq!(play.push("catalog", 1, &all[..1]).await, Some(3));
    assert_eq!(play.nacos.parts.held_in(&part), 2);
    assert!(play.problems().contains("does not list what it listed before"), "{}", play.problems());
    assert_eq!(play.push("catalog", 2, &all).await, Some(3));
    play.heard.whole = true;
    assert_eq!((play.push("catalog", 3, &all[1..]).await, &*play.problems()), (Some(2), ""));
}

#[tokio::test]
async fn a_service_that_the_list_has_lost_is_asked_for_before_it_goes() {
    const ALL: &[&str] = &["a", "b", "c", "d", "e"];
    const REST: &[&str] = &["a", "c", "d", "e"];
    let fake = client::tests::Fake::start("/nacos/v1/auth/login").await;
    let connection = fake.connect().await;
    let mut play = Play::new();
    let mut heard = play.nacos.begins();
    // `b` is not listed from the second list on, and is there until the third.
    for (listed, there, said) in [(ALL, ALL, 5), (REST, ALL, 0), (REST, REST, 1)] {
        fake.scene.lock().answers = Box::new(move |kind: &str, asked: &Value| {
            let name = asked["serviceName"].as_str().unwrap_or_default();
            let hosts = if there.contains(&name) { vec![host("10.0.0.1", json!({}))] } else { Vec::new() };
            match kind {
                "ServiceListRequest" => json!({ "count": listed.len(), "serviceNames": listed }),
                "SubscribeServiceRequest" => json!({ "serviceInfo": info(name, 1, &hosts) }),
                _ => json!({}),
            }
        });
        play.nacos.round(&connection, &mut heard, &play.voice).await.unwrap();
        let mut resets = Vec::new();
        while let Ok(word) = play.words.try_recv() {
            if let Word::Event(source, Event::Reset(items)) = word {
                resets.push((source.part.clone(), items.len()));
            }
        }
        assert_eq!(resets.len(), said, "{resets:?}");
        let b = Name::of("b", GROUP);
        assert_eq!(heard.subscribed.contains_key(&b), said != 1);
        assert!(said != 1 || resets == [(b.part(), 0)], "{resets:?}");
    }
    assert_eq!(play.problems(), "");
}

#[tokio::test]
async fn a_server_whose_clock_was_put_back_is_believed_when_it_is_asked() {
    let fake = client::tests::Fake::start("/nacos/v1/auth/login").await;
    let connection = fake.connect().await;
    let mut play = Play::new();
    let mut heard = play.nacos.begins();
    for (made, ips) in [(100, &["10.0.0.1"][..]), (50, &["10.0.0.1", "10.0.0.2"])] {
        fake.scene.lock().answers = Box::new(move |kind: &str, asked: &Value| {
            let hosts: Vec<Value> = ips.iter().map(|ip| host(ip, json!({}))).collect();
            match kind {
                "ServiceListRequest" => json!({ "count": 1, "serviceNames": ["a"] }),
                "SubscribeServiceRequest" => {
                    json!({ "serviceInfo": info(asked["serviceName"].as_str().unwrap(), made, &hosts) })
                }
                _ => json!({}),
            }
        });
        heard.subscribed.values_mut().for_each(|known| known.asked -= AGAIN);
        play.nacos.round(&connection, &mut heard, &play.voice).await.unwrap();
        let Ok(Word::Event(_, Event::Reset(items))) = play.words.try_recv() else {
            panic!("nothing is said")
        };
        assert_eq!(items.len(), ips.len());
        while play.words.try_recv().is_ok() {}
    }
    // And what it pushes from then on.
    play.heard = heard;
    assert_eq!(play.push("a", 51, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]).await, Some(3));
}

#[tokio::test]
async fn services_that_are_not_wanted_any_more_are_not_recalled() {
    let of = |name: &str| Item::Instance(Arc::new(read(name, host("10.0.0.1", json!({}))).unwrap()));
    let part = |name: &str| (Name::of(name, GROUP).part(), vec![of(name)]);
    let before = BTreeMap::from(["a", "b", "c", "d"].map(part));
    for (services, left) in [(&[][..], Some(4)), (&["a", "b"], Some(2)), (&["x"], None)] {
        let services = services.iter().map(|name: &&str| (*name).to_owned()).collect();
        let mut nacos = Nacos::new(NacosSettings { services, ..settings() }, "us".into());
        let mut said = before.clone();
        assert_eq!(nacos.recall(&mut said).then_some(said.len()), left);
        assert_eq!((nacos.parts.names().count(), nacos.counts.len()), (left.unwrap_or(0), left.unwrap_or(0)));
    }
}

#[test]
fn settings_that_cannot_work_are_told_by_their_field() {
    let of = |more: Value| serde_json::from_value::<NacosSettings>(more).unwrap().validate();
    assert_eq!(of(json!({})), Ok(()));
    for (more, word) in [
        (json!({ "urls": [] }), "urls:"),
        (json!({ "urls": ["nacos:8848"] }), "urls[0]"),
        (json!({ "urls": ["http://a"], "caFile": "/ca.pem" }), "urls[0]: is http://"),
        (json!({ "groups": [] }), "groups"),
        (json!({ "groups": ["a@@b"] }), "groups"),
        (json!({ "namespaceId": "" }), "namespaceId"),
        (json!({ "user": "me" }), "passwordFile"),
        (json!({ "intervalSeconds": 0 }), "intervalSeconds"),
    ] {
        assert!(of(more.clone()).unwrap_err().contains(word), "{more}");
    }
}
