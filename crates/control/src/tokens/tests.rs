use std::net::SocketAddr;

use super::*;
use crate::store::memory::Memory;
use crate::store::records::{HistoryEntry, StoredSaid};
use crate::store::{Answer, Contents};

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn id(name: &str) -> SpiffeId {
    SpiffeId::workload("cluster.local", "shop", name).unwrap()
}

fn caller(bearer: Option<&str>) -> Caller {
    Caller {
        certificate: None,
        bearer: bearer.map(str::to_owned),
        remote: SocketAddr::from(([127, 0, 0, 1], 1)),
        request: String::new(),
    }
}

fn grant(name: &str) -> Grant {
    Grant { identity: id(name), services: Vec::new(), ranges: Vec::new(), ttl: None, uses: None }
}

#[tokio::test]
async fn a_token_proves_its_identity_and_nothing_else_does() {
    let store = Arc::new(Memory::default());
    let tokens = Tokens::new(store.clone(), Vec::new());
    let (secret, stored) = tokens.create(grant("web")).await.unwrap();
    assert_eq!(tokens.identify(&caller(Some(&secret))).await.unwrap(), id("web"));
    assert!(
        tokens.identify(&caller(Some("outrigger-join-guess"))).await.unwrap_err().reason.contains("unknown")
    );
    assert!(tokens.identify(&caller(None)).await.is_err());
    assert!(!format!("{stored:?}").contains(&secret), "only the hash is kept");
    let reopened = Tokens::new(store.clone(), store.contents().tokens);
    assert_eq!(reopened.check(&secret, Timestamp::now(), HERE).unwrap(), id("web"));
    assert_eq!(reopened.revoke(&id("web")).await.unwrap(), 1);
    assert!(reopened.check(&secret, Timestamp::now(), HERE).is_err());
}

#[tokio::test]
async fn a_token_ends_by_time_and_by_use() {
    let tokens = Tokens::new(Arc::new(Memory::default()), Vec::new());
    let hour = Some(Duration::from_secs(3600));
    let (secret, stored) = tokens.create(Grant { ttl: hour, uses: Some(1), ..grant("web") }).await.unwrap();
    let late = stored.expires.unwrap();
    assert!(tokens.check(&secret, late, HERE).unwrap_err().reason.contains("expired"));
    for _ in 0..3 {
        assert!(tokens.identify(&caller(Some(&secret))).await.is_ok(), "nothing was made of it yet");
    }
    tokens.spend(&caller(Some(&secret))).await.unwrap();
    assert!(tokens.spend(&caller(Some(&secret))).await.unwrap_err().reason.contains("as often"));
    assert!(tokens.identify(&caller(Some(&secret))).await.unwrap_err().reason.contains("as often"));
}

#[tokio::test]
async fn what_a_token_was_for_is_remembered_and_spent_ones_do_not_pile_up() {
    let store = Arc::new(Memory::default());
    let tokens = Tokens::new(store.clone(), Vec::new());
    let once = || Grant { uses: Some(1), ..grant("web") };
    let (other, _) = tokens.create(Grant { services: vec!["shop".into()], ..once() }).await.unwrap();
    tokens.spend(&caller(Some(&other))).await.unwrap();
    for _ in 0..3 {
        let (secret, _) = tokens.create(once()).await.unwrap();
        tokens.spend(&caller(Some(&secret))).await.unwrap();
        // Nobody can have lost the answer any more.
        tokens.forget_answers(Some(Timestamp::now()));
    }
    assert_eq!((tokens.list().len(), store.contents().tokens.len()), (2, 2));
    assert_eq!(tokens.services_of(&id("web")), ["shop", "web"]);
    // One that is good goes on.
    let (good, _) = tokens.create(once()).await.unwrap();
    tokens.create(once()).await.unwrap();
    assert_eq!(tokens.identify(&caller(Some(&good))).await.unwrap(), id("web"));
}

#[tokio::test]
async fn a_request_that_comes_again_uses_nothing_up() {
    let store = Arc::new(Memory::default());
    let tokens = Tokens::new(store.clone(), Vec::new());
    let (secret, _) = tokens.create(Grant { uses: Some(2), ..grant("web") }).await.unwrap();
    let asks = |request: &str| Caller { request: request.into(), ..caller(Some(&secret)) };
    for request in ["a", "a", "b", "a", "b"] {
        tokens.identify(&asks(request)).await.unwrap();
        tokens.spend(&asks(request)).await.unwrap();
    }
    // Also after a start, and nobody else has anything of it.
    let again = Tokens::new(store.clone(), store.contents().tokens);
    again.spend(&asks("b")).await.unwrap();
    for tokens in [&tokens, &again] {
        assert!(tokens.identify(&asks("c")).await.unwrap_err().reason.contains("as often"));
        assert!(tokens.spend(&asks("")).await.unwrap_err().reason.contains("as often"));
    }
}

/// Whoever has the token and the key of one that joined by it is not given certificates for ever.
#[tokio::test]
async fn a_token_that_is_used_up_answers_again_only_for_minutes_and_not_after_a_revocation() {
    let store = Arc::new(Memory::default());
    let tokens = Tokens::new(store.clone(), Vec::new());
    let (secret, _) = tokens.create(Grant { uses: Some(1), ..grant("web") }).await.unwrap();
    let first = Timestamp::now();
    tokens.redeem(&secret, "a", first).await.unwrap();
    let again = Tokens::new(store.clone(), store.contents().tokens);
    let soon = first + Duration::from_secs(9 * 60);
    let late = first + Duration::from_secs(11 * 60);
    for tokens in [&tokens, &again] {
        assert!(tokens.check_for(&secret, "a", soon, HERE).is_ok());
        tokens.redeem(&secret, "a", soon).await.unwrap();
        // Asking makes it last no longer.
        assert!(tokens.check_for(&secret, "a", late, HERE).unwrap_err().reason.contains("as often"));
        assert!(tokens.redeem(&secret, "a", late).await.unwrap_err().reason.contains("as often"));
        // A revocation of before is none of it.
        tokens.forget_answers(Some(first - Duration::from_secs(60)));
        assert!(tokens.check_for(&secret, "a", soon, HERE).is_ok());
        tokens.forget_answers(Some(first + Duration::from_secs(60)));
        assert!(tokens.check_for(&secret, "a", soon, HERE).unwrap_err().reason.contains("as often"));
        assert!(tokens.redeem(&secret, "a", soon).await.unwrap_err().reason.contains("as often"));
    }
    // Written by a release that noted no time, or by a clock that was years ahead.
    for (text, is_good) in [
        ("a".to_owned(), false),
        (format!("a@{}", first.as_second()), true),
        (format!("a@{}", first.as_second() + 100_000_000), false),
    ] {
        let mut stored = store.contents().tokens;
        stored[0].used_for = serde_json::from_value(serde_json::json!([text])).unwrap();
        let tokens = Tokens::new(store.clone(), stored);
        assert_eq!(tokens.check_for(&secret, "a", soon, HERE).is_ok(), is_good, "{text}");
    }
}

#[tokio::test]
async fn what_a_token_remembers_is_bounded() {
    let store = Arc::new(Memory::default());
    let tokens = Tokens::new(store.clone(), Vec::new());
    let (secret, _) = tokens.create(Grant { uses: Some(100), ..grant("web") }).await.unwrap();
    for n in 0..50 {
        tokens.redeem(&secret, &format!("request {n}"), Timestamp::now()).await.unwrap();
    }
    for all in [tokens.list(), store.contents().tokens] {
        assert_eq!((all[0].used_for.len(), all[0].uses_left), (8, Some(50)));
        assert_eq!(all[0].used_for.last().unwrap().request, "request 49");
    }
}

/// The one that asks for the next token may be the one that has not heard of the last.
#[tokio::test]
async fn a_token_whose_answer_may_be_lost_is_not_taken_away_by_the_next() {
    let store = Arc::new(Memory::default());
    let tokens = Tokens::new(store.clone(), Vec::new());
    let once = || Grant { uses: Some(1), ..grant("web") };
    let (secret, _) = tokens.create(once()).await.unwrap();
    let asks = Caller { request: "a".into(), ..caller(Some(&secret)) };
    tokens.spend(&asks).await.unwrap();
    tokens.create(once()).await.unwrap();
    tokens.identify(&asks).await.unwrap();
    tokens.spend(&asks).await.unwrap();
    assert_eq!(store.contents().tokens.len(), 2);
}

/// A store in which counting a use takes until it is let go.
struct Slow {
    inner: Arc<Memory>,
    begun: tokio::sync::Notify,
    go: tokio::sync::Notify,
}

impl Store for Slow {
    fn load(self: Arc<Self>) -> Answer<Contents> {
        self.inner.clone().load()
    }

    fn history(self: Arc<Self>, key: String) -> Answer<Vec<HistoryEntry>> {
        self.inner.clone().history(key)
    }

    fn said(self: Arc<Self>) -> Answer<Vec<StoredSaid>> {
        self.inner.clone().said()
    }

    fn commit(self: Arc<Self>, mutations: Vec<Mutation>) -> Answer<()> {
        self.inner.clone().commit(mutations)
    }

    fn spend(self: Arc<Self>, left: StoredToken, since: Timestamp) -> Answer<bool> {
        Box::pin(async move {
            self.begun.notify_one();
            self.go.notified().await;
            self.inner.clone().spend(left, since).await
        })
    }

    fn trouble(&self) -> Option<String> {
        self.inner.trouble()
    }

    fn retry(self: Arc<Self>) -> Answer<()> {
        self.inner.clone().retry()
    }
}

#[tokio::test]
async fn what_is_revoked_while_a_use_is_counted_stays_revoked() {
    let inner = Arc::new(Memory::default());
    let (begun, go) = Default::default();
    let slow = Arc::new(Slow { inner: inner.clone(), begun, go });
    let tokens = Tokens::new(slow.clone(), Vec::new());
    let (secret, _) = tokens.create(Grant { uses: Some(2), ..grant("web") }).await.unwrap();
    let (spending, asks) = (tokens.clone(), caller(Some(&secret)));
    let spent = tokio::spawn(async move { spending.spend(&asks).await });
    slow.begun.notified().await;
    let revoking = tokens.clone();
    let revoked = tokio::spawn(async move { revoking.revoke(&id("web")).await });
    tokio::task::yield_now().await;
    slow.go.notify_one();
    spent.await.unwrap().unwrap();
    assert_eq!(revoked.await.unwrap().unwrap(), 1);
    assert!(inner.contents().tokens.is_empty(), "a start would bring it back");
}

#[tokio::test]
async fn a_use_that_cannot_be_stored_neither_counts_nor_is_lost() {
    let store = Arc::new(Memory::default());
    let tokens = Tokens::new(store.clone(), Vec::new());
    let (secret, stored) = tokens.create(Grant { uses: Some(1), ..grant("web") }).await.unwrap();
    store.fail("the disk is full");
    let denied = tokens.spend(&caller(Some(&secret))).await.unwrap_err().reason;
    assert!(denied.contains("could not be stored"), "{denied}");
    store.clone().retry().await.unwrap();
    tokens.spend(&caller(Some(&secret))).await.unwrap();
    assert_eq!(store.contents().tokens[0].uses_left, Some(0));
    // Others have counted: what they say holds.
    tokens.replace(vec![StoredToken { uses_left: Some(1), ..stored.clone() }]);
    assert!(tokens.identify(&caller(Some(&secret))).await.is_ok());
    tokens.replace(Vec::new());
    assert!(tokens.spend(&caller(Some(&secret))).await.unwrap_err().reason.contains("unknown"));
}

#[tokio::test]
async fn whoever_guesses_waits_even_with_a_good_token() {
    let tokens = Tokens::new(Arc::new(Memory::default()), Vec::new());
    let (secret, _) = tokens.create(grant("web")).await.unwrap();
    for _ in 0..20 {
        assert!(
            tokens
                .identify(&caller(Some("outrigger-join-guess")))
                .await
                .unwrap_err()
                .reason
                .contains("unknown")
        );
    }
    let waits = tokens.identify(&caller(Some(&secret))).await.unwrap_err().reason;
    assert!(waits.contains("too many wrong tokens"), "{waits}");
    let elsewhere = Caller { remote: ([127, 0, 0, 2], 1).into(), ..caller(Some(&secret)) };
    assert_eq!(tokens.identify(&elsewhere).await.unwrap(), id("web"));
}

#[tokio::test]
async fn services_come_from_tokens_and_default_to_the_own_name() {
    let tokens = Tokens::new(Arc::new(Memory::default()), Vec::new());
    assert_eq!(tokens.services_of(&id("web")), ["web"]);
    assert!(!tokens.knows(&id("web")));
    tokens.create(Grant { services: vec!["shopfront".into()], ..grant("web") }).await.unwrap();
    assert_eq!(tokens.services_of(&id("web")), ["shopfront"]);
    assert!(tokens.knows(&id("web")));
}

#[test]
fn the_admin_token_is_made_once_and_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    AdminToken::open(dir.path()).unwrap();
    let path = dir.path().join(ADMIN_TOKEN_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = AdminToken::open(dir.path()).unwrap();
    assert!(again.is(text.trim()) && !again.is("guess"));
}
