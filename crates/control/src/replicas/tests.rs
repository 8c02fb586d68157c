//! Several against an API server that keeps objects as a real one does: each has a version, and who writes must know it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use outrigger_model::identity::SpiffeId;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::document::{Document, Fields, MOST};
use super::leader::Candidate;
use super::store::{Entries, Listed, ReplicaStore};
use super::{REVOCATIONS, TOKENS};
use crate::store::memory::Memory;
use crate::store::records::{StoredRevocation, StoredToken, Use};
use crate::store::{Mutation, Store, StoreError};

/// What it keeps, by path.
#[derive(Clone, Default)]
struct Server {
    objects: Arc<Mutex<(u64, BTreeMap<String, Value>)>>,
}

impl Server {
    /// A client, and what cuts it off: it waits then, and what it has asked is not done.
    fn client(&self) -> (Client, Arc<AtomicBool>) {
        let (server, cut) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let is_cut = cut.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (server, cut) = (server.clone(), is_cut.clone());
            async move {
                // The way there, on which others come between.
                sleep(Duration::from_millis(fastrand::u64(1..20))).await;
                while cut.load(SeqCst) {
                    sleep(Duration::from_millis(100)).await;
                }
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (status, value) = server.answer(&head.method, head.uri.path(), &body);
                let body = Full::new(bytes::Bytes::from(value.to_string()));
                Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
            }
        });
        (Client::new(service, "mesh"), cut)
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (StatusCode, Value) {
        let mut objects = self.objects.lock();
        let refuse = |status: StatusCode| {
            let code = status.as_u16();
            let words = status.canonical_reason().unwrap_or_default().replace(' ', "");
            (
                status,
                json!({"kind": "Status", "status": "Failure", "code": code, "reason": words, "message": words}),
            )
        };
        let mut new: Value = serde_json::from_slice(body).unwrap_or_default();
        let name = new["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let key = if *method == Method::POST { format!("{path}/{name}") } else { path.to_owned() };
        let known = objects.1.get(&key).cloned();
        match (method, known) {
            (&Method::GET, Some(known)) => return (StatusCode::OK, known),
            (&Method::POST, Some(_)) => return refuse(StatusCode::CONFLICT),
            (&Method::POST, None) => {}
            (&Method::PUT, Some(known)) => {
                if new["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"] {
                    return refuse(StatusCode::CONFLICT);
                }
            }
            _ => return refuse(StatusCode::NOT_FOUND),
        }
        objects.0 += 1;
        new["metadata"]["resourceVersion"] = objects.0.to_string().into();
        objects.1.insert(key, new.clone());
        (StatusCode::OK, new)
    }
}

/// The store of one replica, and its volume's.
fn store(server: &Server) -> (Arc<ReplicaStore>, Arc<Memory>) {
    let (client, _) = server.client();
    let local = Arc::new(Memory::default());
    let document = |name| Document::new(client.clone(), "mesh", name);
    let (revocations, tokens) = (Listed::new(document(REVOCATIONS)), Listed::new(document(TOKENS)));
    (Arc::new(ReplicaStore::new(local.clone(), revocations, tokens)), local)
}

fn token(uses: u32) -> StoredToken {
    StoredToken {
        secret_sha256: "ab".repeat(32),
        identity: SpiffeId::workload("cluster.local", "shop", "web").unwrap(),
        services: Vec::new(),
        ranges: Vec::new(),
        created: Timestamp::UNIX_EPOCH,
        expires: None,
        uses_left: Some(uses),
        used_for: Vec::new(),
    }
}

/// Spends one of what this replica believes to be left.
async fn spend(store: &Arc<ReplicaStore>, left: u32) -> Result<bool, StoreError> {
    let used = Use { request: String::new(), at: Timestamp::now() };
    store.clone().spend(StoredToken { used_for: vec![used], ..token(left) }, Timestamp::UNIX_EPOCH).await
}

fn revoke(account: &str) -> Mutation {
    let entry = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    Mutation::PutRevocation(Box::new(StoredRevocation { entry, by: "ann".into(), at: Timestamp::UNIX_EPOCH }))
}

#[tokio::test(start_paused = true)]
async fn a_token_is_spent_as_often_as_it_may_be_whoever_is_asked() {
    let server = Server::default();
    let stores = [0; 3].map(|_| store(&server).0);
    stores[0].clone().commit(vec![Mutation::PutToken(Box::new(token(5)))]).await.unwrap();
    // Each believes that nobody else has spent anything.
    let asked = (0..12).map(|which| spend(&stores[which % 3], 4));
    let spent = futures_util::future::join_all(asked).await;
    // One that was overtaken too often may have said so, and has spent nothing.
    let good = spent.iter().filter(|one| matches!(one, Ok(true))).count();
    let left = stores[1].clone().load().await.unwrap().tokens[0].uses_left.unwrap();
    assert_eq!(good as u32 + left, 5, "{spent:?}");
    while let Ok(true) = spend(&stores[2], 9).await {}
    assert!(!spend(&stores[0], 4).await.unwrap());
    assert_eq!(stores[0].clone().load().await.unwrap().tokens[0].uses_left, Some(0));
    stores[1].clone().commit(vec![Mutation::DeleteToken(token(0).secret_sha256)]).await.unwrap();
    assert!(!spend(&stores[0], 4).await.unwrap(), "it was revoked elsewhere");
}

#[tokio::test(start_paused = true)]
async fn what_several_revoke_at_once_is_all_revoked_and_what_is_not_shared_is_refused() {
    let server = Server::default();
    let [(one, local), (two, _)] = [0; 2].map(|_| store(&server));
    let asked = (0..6).map(|n| [&one, &two][n % 2].clone().commit(vec![revoke(&format!("a{n}"))]));
    for done in futures_util::future::join_all(asked).await {
        done.unwrap();
    }
    for store in [&one, &two] {
        assert_eq!(store.clone().load().await.unwrap().revoked.len(), 6);
    }
    assert!(local.contents().revoked.is_empty(), "nobody has it for himself");

    one.clone().commit(vec![Mutation::ReserveGeneration(9)]).await.unwrap();
    assert_eq!((local.contents().generation, two.load().await.unwrap().generation), (9, 0));
    let refused = one.clone().commit(vec![Mutation::DeleteInstance("web-1".into()), revoke("b")]).await;
    assert!(refused.unwrap_err().to_string().contains("not shared"));

    // What does not fit changes nothing.
    let long = StoredRevocation { entry: "serial:1".into(), by: "x".repeat(MOST), at: Timestamp::UNIX_EPOCH };
    let full =
        one.clone().commit(vec![Mutation::PutRevocation(Box::new(long))]).await.unwrap_err().to_string();
    assert!(
        full.contains("outrigger-revocations cannot be written") && full.contains("are more than"),
        "{full}"
    );
    assert_eq!(one.load().await.unwrap().revoked.len(), 6);
}

#[test]
fn an_entry_that_cannot_be_read_is_what_it_was_and_the_others_are_read() {
    let entry = |who: &str| {
        let entry = format!("spiffe://cluster.local/ns/shop/sa/{who}");
        serde_json::to_string(&StoredRevocation { entry, by: "ann".into(), at: Timestamp::UNIX_EPOCH })
            .unwrap()
    };
    let mut entries = Entries::<StoredRevocation>::default();
    let mut fields = Fields::from([("a".into(), entry("a")), ("b".into(), entry("b"))]);
    let who = |all: Vec<StoredRevocation>| -> String {
        all.iter().map(|one| one.entry.chars().last().unwrap()).collect()
    };
    assert_eq!(who(entries.update(&fields, "here")), "ab");
    fields.insert("a".into(), "{".into());
    fields.insert("c".into(), r#"{"entry": 7}"#.into());
    fields.insert("d".into(), entry("d"));
    assert_eq!(who(entries.update(&fields, "here")), "abd", "a goes on, and of c nobody knows who it is");
    fields.remove("a");
    assert_eq!(who(entries.update(&fields, "here")), "bd");
    // Who has not known it before has the others.
    assert_eq!(who(Entries::default().update(&fields, "here")), "bd");
}

/// What docs/control-plane.md says of a Secret's room.
#[test]
fn so_many_tokens_have_room() {
    let at = Timestamp::from_nanosecond(1_790_000_000_123_456_789).unwrap();
    let rooms = [1, 8].map(|times| {
        let used = Use { request: "ab".repeat(32), at };
        let (created, expires) = (at, Some(at));
        let token = StoredToken { created, expires, used_for: vec![used; times], ..token(1) };
        MOST / (token.secret_sha256.len() + serde_json::to_string(&token).unwrap().len())
    });
    assert!((2_300..2_500).contains(&rooms[0]) && (1_000..1_100).contains(&rooms[1]), "{rooms:?}");
}

/// Whoever starts would let in whom it revokes.
#[tokio::test(start_paused = true)]
async fn nobody_starts_with_a_revocation_that_cannot_be_read_and_who_knew_it_goes_on() {
    let server = Server::default();
    let (one, _) = store(&server);
    one.clone().commit(vec![revoke("a"), revoke("b"), Mutation::PutToken(Box::new(token(1)))]).await.unwrap();
    assert_eq!(one.clone().load().await.unwrap().revoked.len(), 2);
    // What a later release may write: no JSON of ours, or a kind that nobody knows here.
    let later = json!({"entry": "key:1", "by": "ann", "at": Timestamp::UNIX_EPOCH}).to_string();
    for text in ["{", &later] {
        let (client, _) = server.client();
        let document = Document::new(client, "mesh", REVOCATIONS);
        let change = |fields: &mut Fields| {
            *fields.values_mut().next().unwrap() = text.to_owned();
            Ok(())
        };
        document.change(change).await.unwrap();
        let why = store(&server).0.load().await.unwrap_err().to_string();
        assert!(why.contains("outrigger-revocations") && why.contains("would be let in"), "{why}");
        assert_eq!(one.clone().load().await.unwrap().revoked.len(), 2, "it is known what it was");
    }
    // A token that nobody can read lets nobody in.
    let (client, _) = server.client();
    let broken = |fields: &mut Fields| {
        fields.values_mut().for_each(|text| *text = "{".to_owned());
        Ok(())
    };
    Document::new(client.clone(), "mesh", TOKENS).change(broken).await.unwrap();
    let mended = |fields: &mut Fields| {
        fields.retain(|_, text| *text != later);
        Ok(())
    };
    Document::new(client, "mesh", REVOCATIONS).change(mended).await.unwrap();
    let contents = store(&server).0.load().await.unwrap();
    assert_eq!((contents.revoked.len(), contents.tokens.len()), (1, 0));
}

/// By the time that replicas note, not by what each of them has heard.
#[tokio::test(start_paused = true)]
async fn a_request_that_comes_again_to_another_replica_uses_nothing_up_for_some_minutes() {
    let server = Server::default();
    let [one, two] = [0; 2].map(|_| store(&server).0);
    one.clone().commit(vec![Mutation::PutToken(Box::new(token(1)))]).await.unwrap();
    let spend = |store: &Arc<ReplicaStore>, at: Timestamp, since: Timestamp| {
        let used = Use { request: "a".to_owned(), at };
        store.clone().spend(StoredToken { used_for: vec![used], ..token(0) }, since)
    };
    let first = Timestamp::from_second(1_000_000).unwrap();
    let minute = Duration::from_secs(60);
    assert!(spend(&one, first, first - minute).await.unwrap());
    assert!(spend(&two, first + minute, first - minute).await.unwrap());
    assert!(!spend(&two, first + minute, first).await.unwrap(), "somebody was revoked since");
    assert!(!spend(&two, first + 60 * minute, first + 50 * minute).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn there_are_never_two_leaders_and_there_is_one_again_in_time() {
    for _ in 0..20 {
        let server = Server::default();
        let mut cuts = Vec::new();
        let mut seen = Vec::new();
        let mut stops = Vec::new();
        for name in ["a", "b", "c"] {
            let (client, cut) = server.client();
            let candidate = Candidate::new(client, "mesh", "outrigger-control", name.into());
            seen.push(candidate.leadership());
            let (stop, running) = candidate.run();
            tokio::spawn(running);
            cuts.push(cut);
            stops.push(stop);
        }
        let mut last = Instant::now();
        for step in 0..3000 {
            sleep(Duration::from_millis(100)).await;
            if step % 50 == 0 {
                // Every five seconds some are cut off from the API server, and some are not any more; never all.
                cuts.iter().for_each(|cut| cut.store(fastrand::bool(), SeqCst));
                cuts[fastrand::usize(..3)].store(false, SeqCst);
            }
            let leaders = seen.iter().filter(|one| one.leads()).count();
            assert!(leaders <= 1, "{leaders} lead at once");
            if leaders == 1 {
                last = Instant::now();
            }
        }
        assert!(last.elapsed() < Duration::from_secs(60));

        // One that is given back is taken at once.
        cuts.iter().for_each(|cut| cut.store(false, SeqCst));
        let until_led = async {
            loop {
                if let Some(leader) = seen.iter().position(super::leader::Leadership::leads) {
                    return leader;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let leader = tokio::time::timeout(Duration::from_secs(30), until_led).await.unwrap();
        let begun = Instant::now();
        stops.swap_remove(leader).stop().await;
        assert!(!seen[leader].leads());
        while !seen.iter().any(super::leader::Leadership::leads) {
            sleep(Duration::from_millis(100)).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        for stop in stops {
            stop.stop().await;
        }
    }
}
