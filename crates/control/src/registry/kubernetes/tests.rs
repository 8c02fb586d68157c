use kube::runtime::watcher::Event as Watched;
use outrigger_rules::{Object, parse_with};
use serde_json::json;

use super::super::{Event, Key, Word};
use super::cluster::{NODE, POD, SERVICE, SLICE, Thing};
use super::pod::Pod;
use super::*;

mod followed;

const POLICY: &str = "AuthorizationPolicy";

fn named(name: &str) -> Named {
    ("shop".to_owned(), name.to_owned())
}

fn object(text: &str) -> Object {
    parse_with("", text, &ParseOptions::default()).objects.remove(0)
}

fn policy(name: &str) -> Object {
    object(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{}}\n"
    ))
}

fn service() -> Object {
    object(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n",
    )
}

fn pod(name: &str) -> watch::Seen {
    let pod = json!({
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": "10.1.0.7", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    (named(name), Thing::Pod(Pod::of(&serde_json::from_value(pod).unwrap()).map(Box::new)), None, Vec::new())
}

fn rule(object: Object) -> watch::Seen {
    (named(&object.name.clone()), Thing::Rule(Some(Box::new(object))), None, Vec::new())
}

fn kubernetes() -> Kubernetes {
    Kubernetes::new(KubernetesSettings::default(), ParseOptions::default())
}

/// A listing of a kind.
fn list(kubernetes: &mut Kubernetes, kind: &'static str, all: Vec<watch::Seen>) -> Vec<Said> {
    let between = all.into_iter().map(Watched::InitApply);
    let events = std::iter::once(Watched::Init).chain(between).chain([Watched::InitDone]);
    events.flat_map(|event| kubernetes.hear(kind, event)).collect()
}

/// Everything that it says, as it is kept.
fn everything(kubernetes: &Kubernetes) -> BTreeMap<String, Vec<Item>> {
    let all = kubernetes.cluster.all().into_iter();
    all.map(|(part, event)| match event {
        Event::Reset(items) => (part.to_owned(), items),
        other => panic!("{other:?}"),
    })
    .collect()
}

#[test]
fn after_a_start_what_is_not_listed_has_gone_and_what_cannot_be_read_is_what_it_was() {
    let mut before = kubernetes();
    list(&mut before, SERVICE, vec![rule(service())]);
    list(&mut before, POD, vec![pod("web-1"), pod("web-2")]);
    list(&mut before, POLICY, vec![rule(policy("guard")), rule(policy("old"))]);
    let said = everything(&before);
    assert!(said[POD].iter().all(|item| matches!(item, Item::Instance(pod) if pod.node() == Some("n1"))));
    // Kept is what somebody wrote, not what we make of it.
    let mut kept = said.clone();
    kept.insert(SERVICE.to_owned(), vec![Item::Rule(Box::new(service()))]);

    let mut after = kubernetes();
    assert!(after.recall(&mut kept));
    assert_eq!(kept, said, "until the cluster answers all of it is as it was");
    assert_eq!(everything(&after), said);
    let unreadable = (named("guard"), Thing::Rule(None), Some("spec.rules: no".to_owned()), Vec::new());
    list(&mut after, SERVICE, vec![rule(service())]);
    let gone = list(&mut after, POD, vec![pod("web-2")]);
    assert_eq!(gone, [(POD, Event::Remove(Key::Instance("web-1.shop".into())))]);
    let gone = list(&mut after, POLICY, vec![unreadable]);
    assert_eq!(gone, [(POLICY, Event::Remove(Key::Rule("AuthorizationPolicy/shop/old".into())))]);
    assert_eq!(everything(&after)[POLICY], [Item::Rule(Box::new(policy("guard")))]);
    assert_eq!(after.flaws.len(), 1, "and it is told");
}

fn down() -> watch::Failed {
    watch::Failed { why: "its conversion webhook is down".to_owned(), is_too_old: false }
}

#[tokio::test]
async fn after_a_start_a_kind_that_cannot_be_listed_keeps_nobody_else_back() {
    let mut before = kubernetes();
    list(&mut before, SERVICE, vec![rule(service())]);
    list(&mut before, POD, vec![pod("web-1"), pod("web-2")]);
    list(&mut before, POLICY, vec![rule(policy("guard"))]);
    let mut kept = everything(&before);
    kept.insert(SERVICE.to_owned(), vec![Item::Rule(Box::new(service()))]);
    for recalled in [true, false] {
        let mut after = kubernetes();
        if recalled {
            after.recall(&mut kept);
        }
        after.begun = Some(Instant::now());
        after.waiting = HashSet::from([SERVICE, POD, NODE, SLICE, POLICY]);
        for kind in [SERVICE, NODE, SLICE] {
            // A Service that cannot be read any more selects whom it selected.
            let unreadable = (named("web"), Thing::Rule(None), Some("no".to_owned()), Vec::new());
            list(&mut after, kind, if kind == SERVICE { vec![unreadable] } else { Vec::new() });
        }
        let (voice, mut words) = Voice::of_a_test();
        after.news(POLICY, Err(down()), &voice).await.unwrap();
        assert!(words.try_recv().is_err(), "Pods are waited for");
        list(&mut after, POD, vec![pod("web-2")]);
        after.news(POLICY, Err(down()), &voice).await.unwrap();
        let mut said = BTreeMap::new();
        while let Ok(Word::Event(source, Event::Reset(items))) = words.try_recv() {
            said.insert(source.part.clone(), items);
        }
        assert_eq!(said.is_empty(), !recalled, "without a memory nobody knows what policies there are");
        if recalled {
            assert_eq!(said[POLICY].len(), 1);
            let [Item::Instance(pod)] = said[POD].as_slice() else { panic!("{said:?}") };
            assert_eq!(
                (&*pod.id, pod.services.as_deref()),
                ("web-2.shop", Some(["web".to_owned()].as_slice()))
            );
        }
    }
}

#[tokio::test]
async fn after_a_start_a_kind_that_is_not_watched_holds_until_the_cluster_says_that_it_has_gone() {
    let mut kubernetes = kubernetes();
    kubernetes
        .recall(&mut BTreeMap::from([(POLICY.to_owned(), vec![Item::Rule(Box::new(policy("guard")))])]));
    let client = Client::try_from(Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let kinds = Kinds::new(client, ParseOptions::default());
    assert_eq!(kubernetes.suspects(&kinds), [POLICY]);
    assert_eq!(everything(&kubernetes)[POLICY].len(), 1);
    assert_eq!(kubernetes.forget(POLICY).len(), 1);
    assert!(everything(&kubernetes)[POLICY].is_empty());
}

#[test]
fn what_is_the_same_again_is_told_once() {
    let mut kubernetes = kubernetes();
    let said = kubernetes.put(SERVICE, rule(service()));
    assert!(is_news(SERVICE, &said));
    let said = kubernetes.put(SERVICE, rule(service()));
    assert!(!is_news(SERVICE, &said));
    let said = kubernetes.put(POD, pod("web-1"));
    assert!(!said.is_empty() && !is_news(POD, &said) && !is_news(SERVICE, &said));
    let mut other = service();
    other.annotations.insert("service.kubernetes.io/topology-mode".to_owned(), "Auto".to_owned());
    let said = kubernetes.put(SERVICE, rule(other));
    assert!(is_news(SERVICE, &said));
}
