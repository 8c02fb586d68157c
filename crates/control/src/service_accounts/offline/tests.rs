use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Response;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use kube::client::Body;
use outrigger_model::identity::SpiffeId;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::super::{LATER, Pods, SHORT, ServiceAccounts};
use super::*;
use crate::registry::kubernetes::KubernetesSettings;

const SECRET: &[u8] = b"what the API server signs with";
const ISSUER: &str = "https://kubernetes.default.svc";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn token(change: impl FnOnce(&mut Value)) -> String {
    let mut claims = json!({
        "iss": ISSUER, "aud": [AUDIENCE], "exp": 1_800_000_600, "nbf": 1_799_999_000, "iat": 1_799_999_000,
        "sub": "system:serviceaccount:shop:web",
        "kubernetes.io": {
            "namespace": "shop", "serviceaccount": {"name": "web", "uid": "a"}, "pod": {"name": "web-1", "uid": "p"},
            "node": {"name": "n1", "uid": "n"},
        },
    });
    change(&mut claims);
    encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

fn keys() -> Keys {
    let keys = json!({"keys": [{"kty": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(SECRET)}]});
    Keys { issuer: ISSUER.to_owned(), keys: keys.to_string() }
}

fn issuer() -> Issuer {
    let issuer = Issuer::default();
    issuer.recall(&keys(), Duration::ZERO);
    issuer
}

/// The token of a Pod of the account `web`, which is good for ten minutes.
pub(crate) fn good(namespace: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    token(|claims| {
        (claims["exp"], claims["nbf"]) = ((now + 600).into(), (now - 600).into());
        claims["sub"] = format!("system:serviceaccount:{namespace}:web").into();
        claims["kubernetes.io"]["namespace"] = namespace.into();
    })
}

/// A cluster that is asked by this client, and whose keys are known.
pub(crate) fn trusting(client: Client, pods: Arc<Pods>) -> ServiceAccounts {
    ServiceAccounts {
        client: Arc::new(OnceCell::from(client)),
        issuer: Arc::new(issuer()),
        ..ServiceAccounts::new(KubernetesSettings::default(), "cluster.local", pods)
    }
}

/// Its API server was looked for, and found or not.
pub(crate) fn looked(accounts: &ServiceAccounts, found: bool) {
    accounts.issuer.fetched(if found { Ok(()) } else { Err(Unseen::away("connection refused".to_owned())) });
}

async fn identify(accounts: ServiceAccounts, token: String) -> Result<SpiffeId, Refused> {
    let judged = accounts.judge(&token);
    accounts.identify(&token, judged).await
}

fn why(refused: Refused) -> String {
    match refused {
        Refused::Wrong(Denied { reason: why, .. }) => format!("wrong: {why}"),
        Refused::Unknown(Denied { reason: why, .. }) => format!("unknown: {why}"),
    }
}

#[test]
fn a_token_is_good_by_its_keys_its_audience_its_times_and_its_pod() {
    let issuer = issuer();
    let whose = issuer.judge(&token(|_| {}), now()).unwrap();
    assert_eq!(
        (whose.user().as_str(), whose.instance().as_str()),
        ("system:serviceaccount:shop:web", "web-1.shop")
    );
    assert_eq!((whose.uid.as_str(), whose.node.as_deref()), ("p", Some("n1")));
    type Change = fn(&mut Value);
    for (change, word) in [
        ((|claims| claims["iss"] = "https://another".into()) as Change, "unknown: Jwt issuer"),
        (
            |claims| claims["aud"] = json!(["api"]),
            "wrong: the service account's token is not good: Audiences",
        ),
        (
            |claims| claims["exp"] = 1_799_999_500.into(),
            "wrong: the service account's token is not good: Jwt is expired",
        ),
        (|claims| drop(claims.as_object_mut().unwrap().remove("exp")), "Jwt must have an expiration"),
        (|claims| claims["nbf"] = 1_800_009_000.into(), "Jwt not yet valid"),
        (|claims| claims["kubernetes.io"]["pod"] = Value::Null, "bound to no Pod"),
        (|claims| claims["kubernetes.io"] = Value::Null, "kubernetes.io"),
        (
            |claims| claims["sub"] = "system:serviceaccount:shop:admin".into(),
            "is not system:serviceaccount:shop:web",
        ),
        (
            |claims| claims["kubernetes.io"]["namespace"] = "bank".into(),
            "is not system:serviceaccount:bank:web",
        ),
    ] {
        let refused = why(issuer.judge(&token(change), now()).unwrap_err());
        assert!(refused.contains(word), "{word}: {refused}");
    }
    // Keys may be newer than what is known, so nobody is blamed for guessing.
    let other = encode(
        &Header::new(Algorithm::HS256),
        &json!({"iss": ISSUER, "aud": AUDIENCE, "exp": 1_800_000_600}),
        &EncodingKey::from_secret(b"x"),
    );
    let refused = why(issuer.judge(&other.unwrap(), now()).unwrap_err());
    assert!(refused.starts_with("unknown: ") && refused.contains("none of the keys"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn keys_that_nobody_has_seen_for_long_judge_nothing() {
    let none = Issuer::default();
    assert!(!none.is_away(), "nobody has asked");
    none.fetched(Err(Unseen::answered("403 Forbidden".to_owned())));
    assert!(!none.is_away(), "it has answered");
    none.fetched(Err(Unseen::away("connection refused".to_owned())));
    assert!(none.is_away());
    assert_eq!(
        why(none.judge(&token(|_| {}), now()).unwrap_err()),
        "unknown: its keys are not known: connection refused"
    );
    let issuer = issuer();
    assert!(issuer.is_known());
    tokio::time::advance(OLD).await;
    let refused = why(issuer.judge(&token(|_| {}), now()).unwrap_err());
    assert!(refused.contains("have not been seen") && !issuer.is_known(), "{refused}");
    // A restart makes them no younger.
    let (keys, hour) = (keys(), Duration::from_secs(3600));
    issuer.recall(&keys, OLD - hour);
    issuer.judge(&token(|_| {}), now()).unwrap();
    tokio::time::advance(hour).await;
    let refused = why(issuer.judge(&token(|_| {}), now()).unwrap_err());
    assert!(refused.contains("have not been seen") && !issuer.is_known(), "{refused}");
}

#[test]
fn the_pod_that_is_known_must_be_the_one_that_the_token_was_made_for() {
    let whose = issuer().judge(&token(|_| {}), now()).unwrap();
    let known = |change: fn(&mut Value)| -> Instance {
        let mut instance = json!({
            "id": "web-1.shop", "service": "web", "namespace": "shop", "addresses": ["10.1.0.7"], "ports": [], "serviceAccount": "web",
            "metadata": {"node": "n1", "uid": "p"},
        });
        change(&mut instance);
        serde_json::from_value(instance).unwrap()
    };
    assert_eq!(whose.is(Some(&known(|_| {}))), Ok(()));
    assert!(whose.is(None).unwrap_err().contains("is not known"));
    // Another Pod of the name, another account, another node.
    for change in [
        (|one: &mut Value| one["metadata"]["uid"] = "q".into()) as fn(&mut Value),
        |one| one["serviceAccount"] = "admin".into(),
        |one| one["metadata"]["node"] = "n2".into(),
        |one| one["metadata"] = json!({}),
    ] {
        assert!(whose.is(Some(&known(change))).unwrap_err().contains("another one"));
    }
    // One that does not say its node is as good as API servers before it did.
    let old = issuer().judge(&token(|claims| claims["kubernetes.io"]["node"] = Value::Null), now()).unwrap();
    assert_eq!(old.is(Some(&known(|_| {}))), Ok(()));
}

/// Against a server that says nothing: whose tokens are signed are judged all the same, however many others strangers have made up.
#[tokio::test(start_paused = true)]
async fn strangers_take_no_place_of_whoever_has_a_good_token_while_the_api_server_is_away() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let silent = tower::service_fn(move |_: Request<Body>| {
        count.fetch_add(1, Relaxed);
        pending::<Result<Response<Body>, Infallible>>()
    });
    let accounts = trusting(Client::new(silent, "mesh"), Arc::new(|_| Ok(())));
    let mut strangers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        strangers.spawn(identify(accounts.clone(), "eyJh.eyJi.c2ln".to_owned()));
    }
    tokio::task::yield_now().await;
    let began = Instant::now();
    let mut members = tokio::task::JoinSet::new();
    for n in 0..100 {
        members.spawn(identify(accounts.clone(), good(&format!("shop-{n}"))));
    }
    for joined in members.join_all().await {
        joined.unwrap();
    }
    assert!(began.elapsed() <= SHORT + Duration::from_millis(100), "{:?}", began.elapsed());
    // It is asked again now and then, and not for each of them.
    let before = asked.load(Relaxed);
    for _ in 0..100 {
        identify(accounts.clone(), good("shop")).await.unwrap();
    }
    assert_eq!(asked.load(Relaxed), before);
    tokio::time::advance(LATER).await;
    identify(accounts.clone(), good("shop")).await.unwrap();
    assert_eq!(asked.load(Relaxed), before + 1);
    for refused in strangers.join_all().await {
        assert!(matches!(refused, Err(Refused::Unknown(_) | Refused::Wrong(_))));
    }
}
