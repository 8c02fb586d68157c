//! What a workload says of itself, beside what others say.

use super::*;
use crate::instance::Word;

fn at(id: &str, service: &str, address: &str) -> Instance {
    sample(id, service, "v1", address, 8080, Protocol::Http)
}

#[tokio::test]
async fn whoever_takes_an_id_first_does_not_keep_it_from_a_registry() {
    let (keeper, _) = keeper().await;
    let service = |id: &str| keeper.published().world.instance(id).unwrap().service.clone();
    keeper.register(at("db-0", "evil", "10.0.0.66"), workload("evil", "10.0.0.66")).await.unwrap();
    keeper.register(at("db-1", "spare", "10.0.0.67"), operator()).await.unwrap();
    assert_eq!(service("db-0"), "evil");
    let pods = [at("db-0", "db", "10.0.0.5"), at("db-1", "db", "10.0.0.6")];
    keeper.registry(file(1, "pods"), has(&pods)).await.unwrap();
    assert_eq!(
        (service("db-0").as_str(), service("db-1").as_str()),
        ("db", "spare"),
        "an operator's word is before"
    );
    let published = keeper.published();
    let shadowed: Vec<_> =
        published.claims.shadowed(0).map(|(id, _, by)| (id.to_owned(), by.part.clone())).collect();
    let told = vec![("db-0".to_owned(), "pods".to_owned())];
    assert_eq!((published.claims.count(0), shadowed), (2, told), "it counts, and is told");
    keeper.registry(file(1, "pods"), has(&[])).await.unwrap();
    assert_eq!(service("db-0"), "evil", "nobody else says it any more");
}

#[tokio::test]
async fn whose_word_it_was_is_known_after_a_restart() {
    let first = keeper().await;
    let called = |app: &str| {
        let mut one = at(app, "web", "10.0.0.7");
        one.ports[0].number = 8000 + app.len() as u16;
        one.labels.insert("app".into(), app.into());
        one
    };
    for app in ["web", "bank"] {
        first.0.register(called(app), workload("web", "10.0.0.7")).await.unwrap();
    }
    first.0.register(at("own", "stock", "10.0.0.9"), operator()).await.unwrap();
    let (keeper, _) = reopened(first).await;
    let word = |id: &str| keeper.published().world.instance(id).unwrap().word;
    assert_eq!((word("web"), word("bank"), word("own")), (Word::Named, Word::Own, Word::Trusted));
    let selector = |key: &str| [(key.to_owned(), "x".to_owned())].into();
    let may_be = |key: &str| ["web", "bank", "own"].map(|id| word(id).may_be(&selector(key)));
    assert_eq!((may_be("app"), may_be("tier")), ([true, false, true], [false, false, true]));
}

#[test]
fn what_an_older_release_has_stored_is_a_workloads_where_one_stands_behind_it() {
    let stored = |by: &str, incarnations: &str, app: &str| {
        let instance = serde_json::json!({
            "id": "w1", "service": "web", "addresses": ["10.0.0.7"], "ports": [{"number": 80}], "labels": {"app": app},
        });
        let json = format!(
            r#"{{"instance":{instance},"by":{by},"at":"2026-11-01T00:00:00Z","incarnations":{incarnations}}}"#
        );
        serde_json::from_str::<StoredInstance>(&json).unwrap().word()
    };
    let own = r#""spiffe://cluster.local/ns/shop/sa/web""#;
    assert_eq!(stored(own, "[]", "web"), Word::Named);
    assert_eq!(stored(own, "[]", "bank"), Word::Own);
    assert_eq!(stored("null", r#"["a"]"#, "bank"), Word::Own, "an operator has no process");
    assert_eq!(stored("null", "[]", "bank"), Word::Trusted);
}

#[tokio::test]
async fn a_workload_opens_few_ports() {
    let (keeper, _) = keeper().await;
    let with = |id: &str, ports: std::ops::Range<u16>| {
        let mut one = at(id, "web", "10.0.0.7");
        let port = one.ports[0].clone();
        one.ports = ports.map(|number| crate::instance::Port { number, ..port.clone() }).collect();
        one
    };
    let own = || workload("web", "10.0.0.7");
    keeper.register(with("w1", 8000..8040), own()).await.unwrap();
    let told = keeper.register(with("w2", 8030..8065), own()).await.unwrap_err().to_string();
    assert!(told.contains("web.shop.svc.cluster.local would have 65 ports"), "{told}");
    keeper.register(with("w2", 8030..8064), own()).await.unwrap();
    keeper.register(with("w3", 9000..9100), operator()).await.unwrap();
    keeper.register(with("w2", 8030..8064), own()).await.unwrap();
    let mut leaving = with("w2", 8030..8064);
    leaving.state = State::Stopping;
    keeper.register(leaving, own()).await.expect("what adds no port is taken");
    let mut both = with("w4", 7000..7040);
    both.services = Some(vec!["a".into(), "b".into()]);
    let any = || match own() {
        Caller::Workload { identity, reach, incarnation, .. } => {
            Caller::Workload { identity, services: vec!["*".into()], reach, incarnation }
        }
        operator @ Caller::Operator(_) => operator,
    };
    keeper.register(both, any()).await.expect("of described services it says no ports");
}
