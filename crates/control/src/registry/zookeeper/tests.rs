use bytes::Bytes;
use serde_json::{Value, json};

use super::super::parts::Said;
use super::super::{ORIGIN, Word};
use super::wire::{In, code, event};
use super::*;
use crate::instance::{Instance, Protocol, State};

fn settings() -> ZooKeeperSettings {
    let names = BTreeMap::from([("com.acme.Stock".to_owned(), "stock".to_owned())]);
    ZooKeeperSettings { dubbo: Some("/dubbo".into()), names, ..ZooKeeperSettings::default() }
}

fn taken(said: Said) -> Result<Instance, String> {
    match said {
        Said::Instance(_, instance) => Ok((*instance).clone()),
        Said::Wrong(_, why) => Err(why),
        Said::Nobody => Err("nobody".to_owned()),
    }
}

fn node(under: &str, value: &Value) -> Result<Instance, String> {
    taken(layout::node(&format!("/services/{under}"), under, value.to_string().as_bytes(), &settings(), "us"))
}

fn provider(name: &str) -> Option<Result<Instance, String>> {
    layout::provider(&format!("/dubbo/com.acme.Stock/providers/{name}"), &settings(), "us").map(taken)
}

fn curator(id: &str) -> Value {
    json!({
        "name": "catalog", "id": id, "address": "10.0.0.1", "port": 8080, "sslPort": null, "serviceType": "DYNAMIC",
        "registrationTimeUTC": 1, "uriSpec": { "parts": [{ "value": "scheme", "variable": true }] },
        "payload": { "@class": "org.springframework.cloud.zookeeper.discovery.ZookeeperInstance", "id": "x", "name": "y", "metadata": {
            "version": "v2", "zone": "z1", "weight": "30", "instance_status": "UP", "protocol": "http",
        } },
    })
}

#[test]
fn a_node_of_curator_spring_dubbo_or_ours_is_an_instance() {
    let spring = node("catalog/c1", &curator("c1")).unwrap();
    assert_eq!((&*spring.id, &*spring.service, &*spring.namespace), ("c1@catalog", "catalog", "default"));
    assert_eq!((spring.version.as_deref(), &*spring.zone, spring.weight), (Some("v2"), "z1", 30));
    assert_eq!(
        (spring.ports[0].number, spring.ports[0].protocol, spring.state),
        (8080, Protocol::Http, State::Running)
    );
    let mut out = curator("c1");
    out["payload"]["metadata"]["instance_status"] = json!("OUT_OF_SERVICE");
    assert_eq!(node("catalog/c1", &out).unwrap().state, State::Maintenance);
    let mut off = curator("c1");
    (off["enabled"], off["sslPort"], off["payload"]) =
        (json!(false), json!(8443), json!({ "version": "v3" }));
    let off = node("catalog/c1", &off).unwrap();
    assert_eq!(
        (off.state, off.version.as_deref()),
        (State::Maintenance, Some("v3")),
        "a payload may be flat"
    );
    assert_eq!((off.ports[1].number, off.ports[1].protocol), (8443, Protocol::Tls));
    let mut dubbo = curator("d1");
    dubbo["payload"]["metadata"] = json!({ "dubbo.endpoints": "[{\"port\":8080,\"protocol\":\"dubbo\"},{\"port\":50051,\"protocol\":\"tri\"}]" });
    let ports = node("catalog/d1", &dubbo).unwrap().ports;
    let ports: Vec<_> = ports.iter().map(|port| (port.number, port.protocol)).collect();
    assert_eq!(ports, [(8080, Protocol::Tcp), (50051, Protocol::Grpc)]);
    let ours = node("shop/web/w1", &json!({ "addresses": ["10.0.0.2"], "ports": [] })).unwrap();
    assert_eq!((&*ours.id, &*ours.service, &*ours.namespace), ("w1", "web", "shop"));
    for (at, with, word) in [
        ("address", json!("cart.internal"), "no IP address"),
        ("address", Value::Null, "address: there is none"),
        ("address", json!("0.0.0.0"), "nobody's own"),
        ("port", json!("http"), "cannot be read"),
        ("name", json!("payments"), "\"payments\" is not \"catalog\", which its path says"),
        ("payload", json!({ "a": "b".repeat(20_000) }), "16384"),
    ] {
        let mut bad = curator("c1");
        bad[at] = with;
        let why = node("catalog/c1", &bad).unwrap_err();
        assert!(why.contains(word) && why.contains("/services/catalog/c1"), "{at}: {why}");
    }
    let mut odd = curator("c1");
    odd["name"] = json!("a$b");
    assert!(node("a$b/c1", &odd).unwrap_err().contains("service"));
    let mut own = curator("c1");
    own["payload"]["metadata"] = json!({ ORIGIN: "us" });
    assert_eq!(node("catalog/c1", &own).unwrap_err(), "nobody");
}

#[test]
fn whoever_may_write_one_node_is_no_other_service() {
    let ours = |more: Value| {
        let mut value = json!({ "addresses": ["10.0.0.2"], "ports": [] });
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        value
    };
    for (under, value, word) in [
        ("shop/web/w1", ours(json!({ "service": "payments" })), "service: \"payments\" is not \"web\""),
        ("shop/web/w1", ours(json!({ "namespace": "bank" })), "namespace: \"bank\" is not \"shop\""),
        ("shop/web/w1", ours(json!({ "id": "p1" })), "id: \"p1\" is not \"w1\""),
        ("web/w1", ours(json!({ "namespace": "bank" })), "is no PATH/NAMESPACE/SERVICE/ID"),
        ("web/shop/payments/p1", ours(json!({})), "is no PATH/NAMESPACE/SERVICE/ID"),
    ] {
        let why = node(under, &value).unwrap_err();
        assert!(why.contains(word), "{under}: {why}");
    }
    let said = json!({ "id": "w1", "service": "web", "namespace": "shop" });
    assert_eq!(node("shop/web/w1", &ours(said)).unwrap().service, "web");
    // Where all are of one namespace, what is below another's service is not.
    let shop = ZooKeeperSettings { namespace: Some("shop".into()), ..settings() };
    let at = |under: &str, value: Value| {
        taken(layout::node(&format!("/services/{under}"), under, value.to_string().as_bytes(), &shop, "us"))
    };
    assert!(at("web/payments/p1", ours(json!({}))).unwrap_err().contains("\"shop\" is not \"web\""));
    assert_eq!(at("shop/payments/p1", ours(json!({}))).unwrap().service, "payments");
    // A name with a slash could be that of another, too.
    let mut slash = curator("c1");
    slash["name"] = json!("pay/ments");
    assert!(node("pay/ments/c1", &slash).unwrap_err().contains("names"));
    let names = BTreeMap::from([("pay/ments".to_owned(), "payments".to_owned())]);
    let named = ZooKeeperSettings { names, ..settings() };
    let read =
        layout::node("/services/pay/ments/c1", "pay/ments/c1", slash.to_string().as_bytes(), &named, "us");
    assert_eq!(taken(read).unwrap().service, "payments");
}

#[test]
fn the_name_of_a_dubbo_provider_is_an_instance() {
    let of = |url: &str| provider(&url.replace('%', "%25").replace('/', "%2F").replace('?', "%3F"));
    let one = of(
        "dubbo://10.0.0.3:20880/com.acme.Stock?application=Stock_App&version=1.2.0&group=g1&weight=200&timestamp=1&zone=z%202",
    );
    let one = one.unwrap().unwrap();
    assert_eq!((&*one.id, &*one.service), ("10.0.0.3:20880+1.2.0+g1@stock", "stock"));
    assert_eq!(
        (one.version.as_deref(), one.weight, &*one.service_account),
        (Some("1.2.0"), 200, "stock-app")
    );
    assert_eq!((one.ports[0].number, one.ports[0].protocol, &*one.zone), (20880, Protocol::Tcp, "z 2"));
    assert_eq!((one.tags, one.labels.contains_key("timestamp")), (vec!["g1".to_owned()], false));
    let tri = of("tri://[fd00::7]:50051/com.acme.Stock?weight=0").unwrap().unwrap();
    assert_eq!((tri.ports[0].protocol, tri.state, tri.weight), (Protocol::Grpc, State::Maintenance, 1));
    assert!(provider("empty%3A%2F%2F10.0.0.3%2Fcom.acme.Stock").is_none() && provider("x").is_none());
    assert!(provider("%F").is_none() && provider("%ff%ff").is_none(), "no escape, no UTF-8");
    assert!(of("dubbo://stock.internal:20880/x").unwrap().unwrap_err().contains("no IP address"));
    assert!(of("dubbo://10.0.0.3:20880/x?weight=much").unwrap().unwrap_err().contains("weight"));
}

/// A ZooKeeper of the test: its nodes, by path.
struct Play {
    keeper: ZooKeeper,
    connection: Connection,
    nodes: BTreeMap<String, Option<Value>>,
    /// Nodes that are no ephemeral ones although they have a value, by what their owner is.
    owners: BTreeMap<String, i64>,
    /// Nodes that may not be read.
    closed: BTreeSet<String>,
    voice: Voice,
    words: tokio::sync::mpsc::Receiver<Word>,
}

impl Play {
    fn new() -> Self {
        let keeper = ZooKeeper::new(settings(), "us".into());
        let (voice, words) = Voice::of_a_test();
        let connection = Self::connected(&keeper);
        let (nodes, owners, closed) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { keeper, connection, nodes, owners, closed, voice, words }
    }

    fn connected(keeper: &ZooKeeper) -> Connection {
        Connection::new(&keeper.settings, &keeper.origin)
    }

    fn set(&mut self, path: &str, value: Option<Value>) {
        for (end, _) in path.match_indices('/').skip(1) {
            self.nodes.entry(path[..end].to_owned()).or_insert(None);
        }
        self.nodes.insert(path.to_owned(), value);
    }

    fn answer(&self, question: &Question) -> (i32, In) {
        let (Question::Children(path) | Question::Data(path) | Question::Exists(path)) = question;
        let Some(value) = self.nodes.get(path) else { return (code::NO_NODE, In(Bytes::new())) };
        if self.closed.contains(path) {
            return (code::NO_AUTH, In(Bytes::new()));
        }
        let below = |other: &String| other.strip_prefix(path)?.strip_prefix('/').map(str::to_owned);
        let children: BTreeSet<String> = self
            .nodes
            .keys()
            .filter_map(below)
            .map(|rest| rest.split('/').next().unwrap().to_owned())
            .collect();
        let mut out = Out::bare();
        match question {
            Question::Children(_) => {
                out = out.int(children.len() as i32);
                out = children.iter().fold(out, |out, child| out.text(child));
            }
            _ => {
                out = out.buffer(value.as_ref().map(ToString::to_string).unwrap_or_default().as_bytes());
                let owner = self.owners.get(path).copied().unwrap_or_else(|| i64::from(value.is_some()));
                out = (0..4)
                    .fold(out, |out, _| out.long(1))
                    .int(0)
                    .int(0)
                    .int(0)
                    .long(owner)
                    .int(0)
                    .int(0)
                    .long(1);
            }
        }
        (code::OK, In(Bytes::from(out.bare_frame()).slice(4..)))
    }

    /// All that is to be asked is answered, and what that means is said: parts, and how many instances they have.
    async fn run(&mut self) -> Result<BTreeMap<String, usize>, String> {
        while let Some(question) = self.connection.queue.pop_front() {
            let (answered, mut body) = self.answer(&question);
            let mut news = News::new();
            let next = self.connection.tree.answered(&question, answered, &mut body, &mut news)?;
            self.connection.queue.extend(next);
            self.keeper.put(news, &mut self.connection);
        }
        match self.connection.seen.take() {
            Some(seen) => self.keeper.listed(&seen, &mut self.connection, &self.voice).await?,
            None => self.keeper.say(&mut self.connection, &self.voice).await?,
        }
        let mut said = BTreeMap::new();
        while let Ok(word) = self.words.try_recv() {
            if let Word::Event(source, Event::Reset(items)) = word {
                said.insert(source.part.clone(), items.len());
            }
        }
        Ok(said)
    }

    fn happens(&mut self, kind: i32, path: &str) {
        let mut news = News::new();
        let question = self.connection.tree.event(kind, path.to_owned(), &mut news);
        self.connection.queue.extend(question);
        self.keeper.put(news, &mut self.connection);
    }

    fn problems(&self) -> String {
        self.voice.health.problems().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

fn counts(parts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    parts.iter().map(|(part, count)| ((*part).to_owned(), *count)).collect()
}

#[tokio::test]
async fn nodes_come_go_are_made_anew_and_one_that_cannot_be_read_stays() {
    let mut play = Play::new();
    play.set("/services/catalog/c1", Some(curator("c1")));
    play.set("/services/catalog/c2", Some(curator("c2")));
    play.set("/services/catalog/.locks", None);
    play.set("/dubbo/com.acme.Stock/providers/rest%3A%2F%2F10.0.0.4%3A80%2Fx", None);
    play.set("/dubbo/com.acme.Stock/consumers/consumer%3A%2F%2F10.0.0.5%2Fx", None);
    let both = counts(&[("default/catalog", 2), ("default/stock", 1)]);
    assert_eq!(play.run().await.unwrap(), both);
    assert_eq!(play.problems(), "");
    // Deleted and made at once, as by a new session: seen as one that was there all the time, it would be lost.
    play.happens(event::DELETED, "/services/catalog/c1");
    play.happens(event::CHILDREN, "/services/catalog");
    assert_eq!(play.run().await.unwrap(), counts(&[("default/catalog", 2)]));
    play.nodes.remove("/services/catalog/c1");
    play.happens(event::CHILDREN, "/services/catalog");
    assert_eq!(play.run().await.unwrap(), counts(&[("default/catalog", 1)]));
    play.set("/services/catalog/c2", Some(json!({ "name": "catalog" })));
    play.happens(event::DATA, "/services/catalog/c2");
    assert_eq!(play.run().await.unwrap(), counts(&[("default/catalog", 1)]));
    assert!(play.problems().contains("/services/catalog/c2"), "{}", play.problems());
    // By its own word a catalog's, but in the cart.
    play.set("/services/cart/k1", Some(curator("k1")));
    play.happens(event::CHILDREN, "/services");
    assert_eq!(play.run().await.unwrap().get("default/catalog"), None);
    assert!(play.problems().contains("\"catalog\" is not \"cart\""), "{}", play.problems());
}

#[tokio::test]
async fn an_emptied_one_another_history_and_what_may_not_be_read_take_nothing() {
    let mut play = Play::new();
    for name in ["a", "b", "c"] {
        let mut value = curator(name);
        value["name"] = json!(name);
        play.set(&format!("/services/{name}/{name}1"), Some(value));
    }
    play.set("/dubbo", None);
    play.keeper.is_at(50);
    let three = counts(&[("default/a", 1), ("default/b", 1), ("default/c", 1)]);
    assert_eq!(play.run().await.unwrap(), three);
    // All of it has gone, also the path itself.
    let all = std::mem::take(&mut play.nodes);
    play.connection = Play::connected(&play.keeper);
    assert_eq!(play.run().await.unwrap(), counts(&[]));
    let told = play.problems();
    assert!(
        told.contains("does not list what it listed before") && told.contains("/services: there is no"),
        "{told}"
    );
    // Its path is there again, which is waited for.
    play.nodes.clone_from(&all);
    play.happens(event::CREATED, "/services");
    play.happens(event::CREATED, "/dubbo");
    assert_eq!(play.run().await.unwrap(), three);
    assert_eq!(play.problems(), "");
    // An older copy: what it does not have is held, one by one.
    play.nodes.retain(|path, _| !path.starts_with("/services/a"));
    play.connection = Play::connected(&play.keeper);
    play.keeper.is_at(9);
    play.run().await.unwrap();
    assert!(play.keeper.keys.parts.held_in("default/a") == 1 && play.keeper.begun_anew.is_some());
    play.nodes.clone_from(&all);
    play.happens(event::CHILDREN, "/services");
    play.run().await.unwrap();
    assert!(play.keeper.begun_anew.is_none() && play.problems().is_empty());
    // Some of it may not be read any more.
    play.closed.insert("/services/a".into());
    play.connection = Play::connected(&play.keeper);
    assert_eq!(play.run().await.unwrap(), three, "what may not be read stays");
    assert!(play.problems().contains("/services/a: it may not be read"), "{}", play.problems());
    assert_eq!(play.keeper.keys.parts.held_in("default/a"), 0);
    // The path itself.
    play.closed.insert("/services".into());
    play.connection = Play::connected(&play.keeper);
    let why = play.run().await.unwrap_err();
    assert!(why.contains("passwordFile"), "{why}");
}

#[tokio::test]
async fn what_may_not_be_read_is_told_at_once_and_read_when_it_may_be() {
    let mut play = Play::new();
    play.set("/services/catalog/c1", Some(curator("c1")));
    play.set("/dubbo", None);
    assert_eq!(play.run().await.unwrap(), counts(&[("default/catalog", 1)]));
    // A second one that is closed is all that happens, and is said.
    play.set("/services/catalog/c2", Some(curator("c2")));
    play.closed.insert("/services/catalog/c2".into());
    play.happens(event::CHILDREN, "/services/catalog");
    while let Some(question) = play.connection.queue.pop_front() {
        let (answered, mut body) = play.answer(&question);
        let mut news = News::new();
        let next = play.connection.tree.answered(&question, answered, &mut body, &mut news).unwrap();
        play.connection.queue.extend(next);
        play.connection.seen = None;
        play.keeper.put(news, &mut play.connection);
    }
    assert!(play.connection.due().is_some(), "there is something to tell");
    assert_eq!(play.run().await.unwrap(), counts(&[]));
    assert!(play.problems().contains("/services/catalog/c2: it may not be read"), "{}", play.problems());
    // Nothing happens when it is permitted: it is asked again.
    let asked = play.connection.tree.again();
    assert_eq!(asked, [Question::Data("/services/catalog/c2".into())]);
    play.connection.queue.extend(asked);
    assert_eq!(play.run().await.unwrap(), counts(&[]), "not yet");
    play.closed.clear();
    let asked = play.connection.tree.again();
    play.connection.queue.extend(asked);
    assert_eq!(play.run().await.unwrap(), counts(&[("default/catalog", 2)]));
    assert_eq!((play.problems(), play.connection.tree.again()), (String::new(), Vec::new()));
    // A server that takes no more is no matter of rights.
    let busy = Question::Data("/services/catalog/c2".into());
    let (none, mut news) = (&mut In(Bytes::new()), News::new());
    let why = play.connection.tree.answered(&busy, -127, none, &mut news).unwrap_err();
    assert!(why.contains("throttled") && play.connection.tree.forbidden.is_empty(), "{why}");
}

#[tokio::test]
async fn instances_below_containers_and_nodes_with_a_ttl_are_seen() {
    let mut play = Play::new();
    let ours = json!({ "addresses": ["10.0.0.2"], "ports": [] });
    play.set("/services/shop/web/w1", Some(ours.clone()));
    play.set("/services/shop/db/d1", Some(ours));
    play.set("/dubbo", None);
    // Both have the address of whoever made them.
    for (path, owner) in [("/services/shop/web", i64::MIN), ("/services/shop/db", -(1 << 56) + 60_000)] {
        play.set(path, Some(json!("10.0.0.9")));
        play.owners.insert(path.to_owned(), owner);
    }
    assert_eq!(play.run().await.unwrap(), counts(&[("shop/db", 1), ("shop/web", 1)]));
    assert_eq!(play.problems(), "");
}

#[tokio::test]
async fn what_is_below_one_path_is_not_below_another_that_begins_so() {
    let mut play = Play::new();
    let settings = ZooKeeperSettings {
        paths: vec!["/services".into(), "/services2".into()],
        ..ZooKeeperSettings::default()
    };
    play.keeper = ZooKeeper::new(settings, "us".into());
    play.connection = Play::connected(&play.keeper);
    play.set("/services/catalog/c1", Some(curator("c1")));
    play.set("/services2/catalog/c2", Some(curator("c2")));
    assert_eq!(play.run().await.unwrap(), counts(&[("default/catalog", 2)]));
    assert_eq!(play.problems(), "");
}

#[tokio::test]
async fn what_cannot_be_read_after_a_start_is_what_it_was_before() {
    let mut play = Play::new();
    for id in ["c1", "c2", "c3"] {
        play.set(&format!("/services/catalog/{id}"), Some(curator(id)));
    }
    for name in ["cart", "stock"] {
        let mut value = curator("k1");
        value["name"] = json!(name);
        play.set(&format!("/services/{name}/k1"), Some(value));
    }
    play.set("/dubbo", None);
    play.run().await.unwrap();
    let said = |play: &Play| {
        let parts = play.keeper.keys.all_parts();
        let items = |part: &String| play.keeper.keys.parts.items(part);
        parts.iter().map(|part| (part.clone(), items(part))).collect::<BTreeMap<_, _>>()
    };
    let mut before = said(&play);
    // The next process: one node is rubbish, one has gone, a service is closed.
    let nodes = std::mem::take(&mut play.nodes);
    let mut next = Play::new();
    next.nodes = nodes;
    assert!(next.keeper.recall(&mut before));
    next.set("/services/catalog/c1", Some(json!({ "name": "catalog" })));
    next.nodes.remove("/services/catalog/c2");
    next.closed.insert("/services/cart".into());
    let all = counts(&[("default/cart", 1), ("default/catalog", 2), ("default/stock", 1), ("catalog", 0)]);
    assert_eq!(next.run().await.unwrap(), all);
    let told = next.problems();
    assert!(told.contains("/services/catalog/c1") && told.contains("/services/cart: it may not"), "{told}");
    // It may be read again, and there is nobody any more.
    next.closed.clear();
    next.nodes.remove("/services/cart/k1");
    let asked = next.connection.tree.again();
    next.connection.queue.extend(asked);
    assert_eq!(next.run().await.unwrap(), counts(&[("default/cart", 0)]));
}

#[test]
fn settings_that_cannot_work_are_told_by_their_field() {
    let of = |more: Value| serde_json::from_value::<ZooKeeperSettings>(more).unwrap().validate();
    assert_eq!(of(json!({ "endpoints": ["zk1", "tls://zk2:2281"] })), Ok(()));
    for (more, word) in [
        (json!({ "endpoints": [] }), "endpoints:"),
        (json!({ "endpoints": ["tls://a", "b"], "caFile": "/ca.pem" }), "endpoints[1]: is not tls://"),
        (json!({ "paths": [] }), "paths, dubbo"),
        (json!({ "paths": ["/"] }), "no path"),
        (json!({ "paths": ["/a", "/a/b"] }), "is within"),
        (json!({ "paths": ["/a"], "dubbo": "/a" }), "is within"),
        (json!({ "paths": [], "dubbo": "/dubbo", "register": true }), "register"),
        (json!({ "user": "me" }), "passwordFile"),
        (json!({ "ttlSeconds": 1 }), "ttlSeconds"),
    ] {
        let why = of(more.clone()).unwrap_err();
        assert!(why.contains(word), "{more}: {why}");
    }
}
