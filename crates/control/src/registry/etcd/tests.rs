use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::instance::{Instance, Protocol};
use crate::registry::ORIGIN;

fn read(key: &str, value: Value) -> Result<Instance, String> {
    let settings = EtcdSettings { prefix: "/services/".into(), ..EtcdSettings::default() };
    match layout::read(key, value.to_string().as_bytes(), &settings, "us") {
        Said::Instance(_, instance) => Ok((*instance).clone()),
        Said::Wrong(_, why) => Err(why),
        Said::Nobody => Err("nobody".to_owned()),
    }
}

fn ours(id: &str) -> Value {
    json!({ "id": id, "addresses": ["10.0.0.1"], "ports": [{ "number": 80, "protocol": "http" }] })
}

#[test]
fn a_value_is_read_in_the_layout_that_its_fields_tell() {
    let own = read("/services/shop/web/w1", json!({ "addresses": ["10.0.0.1"], "ports": [] })).unwrap();
    assert_eq!((&*own.id, &*own.service, &*own.namespace, own.sidecar), ("w1", "web", "shop", true));
    let grpc = json!({ "Op": 0, "Addr": "10.0.0.2:50051", "Metadata": { "weight": 5, "zone": "z1" } });
    let grpc = read("/services/Cart_Api/10.0.0.2:50051", grpc).unwrap();
    assert_eq!((&*grpc.id, &*grpc.service), ("10.0.0.2:50051@cart-api", "cart-api"));
    assert_eq!((grpc.ports[0].number, grpc.ports[0].protocol), (50051, Protocol::Grpc));
    assert_eq!((grpc.weight, &*grpc.zone, grpc.sidecar), (5, "z1", false));
    let micro = read(
        "/services/greeter/greeter-7",
        json!({ "name": "greeter", "version": "v2", "metadata": null, "endpoints": [], "nodes": [
            { "id": "greeter-7", "address": "10.0.0.3:8080", "metadata": { "protocol": "grpc", "sidecar": "true" } },
        ] }),
    )
    .unwrap();
    assert_eq!((&*micro.service, micro.version.as_deref(), micro.sidecar), ("greeter", Some("v2"), true));
    assert_eq!(micro.ports[0].protocol, Protocol::Grpc);
    let kratos = read(
        "/services/helloworld/h1",
        json!({ "id": "h1", "name": "helloworld", "version": "v1", "metadata": {},
            "endpoints": ["http://10.0.0.4:8000", "grpc://10.0.0.4:9000?isSecure=false"] }),
    )
    .unwrap();
    let ports: Vec<_> = kratos.ports.iter().map(|port| (port.number, port.protocol)).collect();
    assert_eq!((&*kratos.id, ports), ("h1@helloworld", vec![(8000, Protocol::Http), (9000, Protocol::Grpc)]));
}

#[test]
fn what_cannot_be_an_instance_is_told_by_its_key_and_what_we_wrote_is_nobody() {
    for (value, said) in [
        (json!("x"), "no JSON object"),
        (json!({ "Addr": "cart.internal:80" }), "no IP address"),
        (json!({ "ports": [] }), "addresses"),
        (json!({ "addresses": ["0.0.0.0"], "ports": [] }), "nobody's own"),
        (json!({ "addresses": ["10.0.0.1"], "ports": [], "adress": 1 }), "adress"),
        (json!({ "addresses": ["10.0.0.1"], "ports": [], "metadata": { "a": "b".repeat(40_000) } }), "32768"),
    ] {
        let why = read("/services/shop/web/w1", value).unwrap_err();
        assert!(why.contains(said) && why.contains("/services/shop/web/w1"), "{said}: {why}");
    }
    let mut own = ours("w1");
    own["metadata"] = json!({ ORIGIN: "us" });
    assert_eq!(read("/services/shop/web/w1", own.clone()).unwrap_err(), "nobody");
    own["metadata"] = json!({ ORIGIN: "them" });
    assert!(read("/services/shop/web/w1", own).is_ok());
}

/// What an etcd of the test has, and what it said to the keeper last, by part.
struct Play {
    etcd: Etcd,
    voice: Voice,
    words: mpsc::Receiver<crate::registry::Word>,
}

impl Play {
    fn new() -> Self {
        let settings = EtcdSettings { prefix: "/services/".into(), ..EtcdSettings::default() };
        let (voice, words) = Voice::of_a_test();
        Self { etcd: Etcd::new(settings, "us".into()), voice, words }
    }

    /// It is listed, with these keys; which parts are said then, with how many instances.
    async fn list(&mut self, cluster: u64, revision: i64, keys: &[(&str, Value)]) -> BTreeMap<String, usize> {
        let key = |(key, value): &(&str, Value)| KeyValue {
            key: format!("/services/{key}").into_bytes(),
            value: value.to_string().into_bytes(),
            ..KeyValue::default()
        };
        let listing = Listing { cluster, revision, keys: keys.iter().map(key).collect() };
        self.etcd.listed(&listing, &self.voice).await.unwrap();
        let mut said = BTreeMap::new();
        while let Ok(word) = self.words.try_recv() {
            if let crate::registry::Word::Event(source, Event::Reset(items)) = word {
                said.insert(source.part.clone(), items.len());
            }
        }
        said
    }

    fn problems(&self) -> String {
        let all: Vec<String> = self.etcd.keys.parts.problems().map(|problem| problem.to_string()).collect();
        all.join("; ")
    }
}

fn counts(parts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    parts.iter().map(|(part, count)| ((*part).to_owned(), *count)).collect()
}

#[tokio::test]
async fn one_that_cannot_be_read_stays_what_it_was_and_holds_up_nobody() {
    let mut play = Play::new();
    let both = [("shop/web/w1", ours("w1")), ("shop/web/w2", ours("w2"))];
    assert_eq!(play.list(1, 5, &both).await, counts(&[("shop/web", 2)]));
    let one_bad = [("shop/web/w1", json!("rubbish")), ("shop/web/w3", ours("w3")), ("shop/db/d1", json!(7))];
    assert_eq!(play.list(1, 6, &one_bad).await.get("shop/web"), Some(&2), "w1 stays, w2 has gone, w3 is new");
    assert!(play.problems().contains("/services/shop/web/w1") && play.problems().contains("shop/db/d1"));
    play.list(1, 7, &both).await;
    assert_eq!(play.problems(), "");
}

#[tokio::test]
async fn one_that_cannot_be_read_after_a_start_is_what_it_was_before() {
    let mut play = Play::new();
    let all = [
        ("shop/web/w1", ours("w1")),
        ("shop/web/w2", ours("w2")),
        ("shop/web/w3", ours("w3")),
        ("cart/10.0.0.2:80", json!({ "Addr": "10.0.0.2:80" })),
        ("shop/db/d1", ours("d1")),
    ];
    play.list(1, 5, &all).await;
    let keys = &play.etcd.keys;
    let said = keys.all_parts().into_iter().map(|part| (part.clone(), keys.parts.items(&part)));
    let mut said: BTreeMap<_, _> = said.collect();
    let mut next = Play::new();
    assert!(next.etcd.recall(&mut said));
    // Two are rubbish, one has gone.
    let mut now = all.to_vec();
    now.remove(2);
    (now[0].1, now[2].1) = (json!("rubbish"), json!({ "Addr": "cart.internal:80" }));
    let left = next.list(1, 6, &now).await;
    let parts = [("shop/web", 2), ("default/cart", 1), ("shop/db", 1), ("cart", 0), ("web", 0)];
    assert_eq!(left, counts(&parts));
    assert!(next.problems().contains("/services/shop/web/w1"), "{}", next.problems());
    now.remove(2);
    assert_eq!(next.list(1, 7, &now).await.get("default/cart"), Some(&0), "and goes with its key");
}

#[tokio::test]
async fn another_history_and_an_emptied_one_take_nothing_until_it_is_back() {
    let mut play = Play::new();
    let all: Vec<(String, Value)> = ["a", "b", "c"]
        .iter()
        .map(|name| (format!("shop/{name}/{name}1"), ours(&format!("{name}1"))))
        .collect();
    let all: Vec<(&str, Value)> = all.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let three = counts(&[("shop/a", 1), ("shop/b", 1), ("shop/c", 1)]);
    assert_eq!(play.list(1, 50, &all).await, three);
    // Emptied: no part is said to have less.
    assert_eq!(play.list(1, 51, &[]).await, counts(&[]));
    assert!(play.problems().contains("does not list what it listed before"));
    assert_eq!(play.list(1, 52, &all).await, three);
    assert_eq!(play.problems(), "");
    // A restore: what it does not have yet is held, also within a service that it has.
    let restored = [("shop/a/a2", ours("a2"))];
    assert_eq!(play.list(1, 9, &restored).await.get("shop/a"), Some(&2));
    assert!(play.etcd.begun_anew.is_some() && play.etcd.keys.parts.is_holding());
    let back: Vec<(&str, Value)> = all.iter().chain(&restored).cloned().collect();
    play.list(1, 10, &back).await;
    assert!(play.etcd.begun_anew.is_none(), "all of it is back");
    // Another cluster.
    play.list(2, 11, &[]).await;
    assert!(play.etcd.begun_anew.is_some());
    // One that goes while nothing is wrong has gone.
    play.list(2, 12, &back).await;
    let more: Vec<(&str, Value)> = back.iter().cloned().chain([("shop/d/d1", ours("d1"))]).collect();
    play.list(2, 13, &more).await;
    assert_eq!(play.list(2, 14, &back).await.get("shop/d"), Some(&0));
}

#[test]
fn tls_is_not_off_where_it_was_meant() {
    let settings = |endpoint: &str| EtcdSettings {
        endpoints: vec!["https://a:2379".into(), endpoint.into()],
        ca_file: Some("/ca.pem".into()),
        ..EtcdSettings::default()
    };
    assert_eq!(settings("https://b:2379").validate(), Ok(()));
    assert!(settings("http://b:2379").validate().unwrap_err().starts_with("endpoints[1]: is http://"));
}
