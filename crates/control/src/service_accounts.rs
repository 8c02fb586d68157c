//! Service accounts of a cluster as a proof: the API server says whose a token is; while it is away its keys do, and what is known of the
//! Pod (`offline`).
//!
//! Only a token that was made for us (its audience) and for a Pod is taken, so neither an application's own token nor that of a Secret
//! makes a sidecar. Namespace and account are the token's; nothing that the caller says of itself is looked at.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use outrigger_identity::CONTROL_SERVICE_ACCOUNT;
use outrigger_identity::csr::service::Denied;
use outrigger_model::identity::SpiffeId;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::kept::Kept;
pub use self::offline::Whose;
use self::offline::{Issuer, Unseen};
use crate::registry::kubernetes::KubernetesSettings;
use crate::tokens::ADMIN_SERVICE_ACCOUNT;

mod kept;
mod offline;
#[cfg(test)]
pub(crate) use offline::tests::{good, looked, trusting};

/// Whom the tokens of sidecars must be for.
pub const AUDIENCE: &str = "outrigger-ca";
/// Reviews at once of tokens that the cluster's keys have signed, and as many of others: strangers ask for them.
const AT_ONCE: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);
/// For its answer where the token can be judged without.
const SHORT: Duration = Duration::from_secs(3);
/// Others wait so long for their turn.
const TURN: Duration = Duration::from_secs(3);
/// One that was away is asked again after so long.
const LATER: Duration = Duration::from_secs(5);
/// Which Pod a token was made for.
const POD: &str = "authentication.kubernetes.io/pod-name";
const USER: &str = "system:serviceaccount:";

/// A cluster that can be asked.
#[derive(Clone)]
pub struct ServiceAccounts {
    settings: KubernetesSettings,
    trust_domain: Arc<str>,
    /// Of tokens that are signed, and of others.
    places: Arc<(Semaphore, Semaphore)>,
    /// When the API server was found to be away, and why.
    away: Arc<Mutex<Option<(Instant, String)>>>,
    issuer: Arc<Issuer>,
    /// Where the issuer's keys are for the next start.
    kept: Option<Arc<Kept>>,
    pods: Arc<Pods>,
    /// Made with the first question.
    client: Arc<tokio::sync::OnceCell<Client>>,
}

/// What is known of a Pod, as it was heard last: whether it is the one that a token was made for; why not.
pub type Pods = dyn Fn(&Whose) -> Result<(), String> + Send + Sync;

/// Why a token was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It is bad: whoever shows many such waits.
    Wrong(Denied),
    /// Nobody could say.
    Unknown(Denied),
}

/// What a token is worth by the cluster's keys alone.
#[derive(Debug)]
pub struct Judged(Result<Whose, Refused>);

impl Judged {
    /// The cluster has made it, for us and a Pod, and it has not ended: whoever shows it has guessed nothing.
    pub fn is_good(&self) -> bool {
        self.0.is_ok()
    }
}

/// Whether a secret has the form of a token of a service account, and is none of ours.
pub fn is_token(secret: &str) -> bool {
    secret.starts_with("eyJ") && secret.bytes().filter(|byte| *byte == b'.').count() == 2
}

impl ServiceAccounts {
    /// Nobody is asked yet.
    pub fn new(settings: KubernetesSettings, trust_domain: &str, pods: Arc<Pods>) -> Self {
        Self {
            settings,
            trust_domain: trust_domain.into(),
            places: Arc::new((Semaphore::new(AT_ONCE), Semaphore::new(AT_ONCE))),
            away: Arc::default(),
            issuer: Arc::default(),
            kept: None,
            pods,
            client: Arc::default(),
        }
    }

    /// With what was kept in this directory of a start before, and for the next one. Reads a small file.
    pub async fn keeping(self, directory: &Path) -> Self {
        let kept = Kept::new(directory, &self.settings);
        kept.recall(&self.issuer).await;
        Self { kept: Some(Arc::new(kept)), ..self }
    }

    /// Whether nobody was there when the API server was looked for last, so that a Pod may have no token that is good. Nobody who asks for
    /// anything can change that.
    pub fn is_away(&self) -> bool {
        self.issuer.is_away()
    }

    /// Keeps what tokens are judged by while the API server is away, for ever.
    pub async fn follow(self) {
        loop {
            let fetched = match self.client().await {
                Ok(client) => self.issuer.fetch(client).await,
                Err(why) => Err(Unseen::away(why)),
            };
            if let (Ok(keys), Some(kept)) = (&fetched, &self.kept) {
                kept.write(keys.clone()).await;
            }
            tokio::time::sleep(self.issuer.fetched(fetched.map(drop))).await;
        }
    }

    async fn client(&self) -> Result<&Client, String> {
        self.client.get_or_try_init(|| self.settings.client()).await
    }

    /// What a token is worth before anybody is asked. Costs a signature's check.
    pub fn judge(&self, token: &str) -> Judged {
        Judged(self.issuer.judge(token, SystemTime::now()))
    }

    /// Whose a token is that was judged.
    ///
    /// # Errors
    /// Says why it proves nothing.
    pub async fn identify(&self, token: &str, Judged(judged): Judged) -> Result<SpiffeId, Refused> {
        // One that was away a moment ago is away: whoever has a good token need not find that out again.
        let away = match self.known_away().filter(|_| judged.is_ok()) {
            Some(why) => why,
            None => match self.review(token, judged.is_ok()).await {
                Ok(answer) => return answer,
                Err(why) => why,
            },
        };
        // What no key has signed that is known, anybody may have made.
        let guess = judged.is_err();
        judged.and_then(|whose| self.without_it(&whose)).map_err(|refused| match refused {
            Refused::Unknown(Denied { reason: why, .. }) => match unknown(&format!("{away}; {why}")) {
                Refused::Unknown(denied) => Refused::Unknown(Denied { guess, ..denied }),
                wrong => wrong,
            },
            wrong => wrong,
        })
    }

    /// Why it was away a moment ago, if it was.
    fn known_away(&self) -> Option<String> {
        let away = self.away.lock();
        away.as_ref().filter(|(at, _)| at.elapsed() < LATER).map(|(_, why)| why.clone())
    }

    /// What the API server says of a token.
    ///
    /// # Errors
    /// Why it is away.
    async fn review(&self, token: &str, is_signed: bool) -> Result<Result<SpiffeId, Refused>, String> {
        // Strangers can make up no token that is signed: they are in nobody's way but each other's.
        let places = if is_signed { &self.places.0 } else { &self.places.1 };
        let place = tokio::time::timeout(TURN, places.acquire()).await;
        // Another has found it out meanwhile.
        if let Some(why) = self.known_away().filter(|_| is_signed) {
            return Err(why);
        }
        let Ok(Ok(_place)) = place else { return Ok(Err(unknown("too many are asked for at once"))) };
        let client = match self.client().await {
            Ok(client) => client,
            Err(why) => return Ok(Err(unknown(&why))),
        };
        let spec =
            TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(client.clone());
        let params = PostParams::default();
        let patience = if self.issuer.is_known() { SHORT } else { PATIENCE };
        let away = match tokio::time::timeout(patience, api.create(&params, &review)).await {
            Ok(Ok(review)) => {
                *self.away.lock() = None;
                let status = review.status.unwrap_or_default();
                return Ok(
                    identity(&status, &self.trust_domain).map_err(|why| Refused::Wrong(Denied::new(why)))
                );
            }
            // It is there, and has its reasons.
            Ok(Err(kube::Error::Api(status))) if offline::is_answer(status.code) => {
                *self.away.lock() = None;
                return Ok(Err(unknown(&status.message)));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {patience:?}"),
        };
        // What strangers cause by a flood says nothing to those who have a token.
        if is_signed {
            *self.away.lock() = Some((Instant::now(), away.clone()));
        }
        Err(away)
    }

    /// Whose a good token is while nobody can be asked.
    fn without_it(&self, whose: &Whose) -> Result<SpiffeId, Refused> {
        let wrong = |why: String| Refused::Wrong(Denied::new(why));
        let id = named(&whose.user(), true, &self.trust_domain).map_err(wrong)?;
        // Who is not known may only not be known yet.
        (self.pods)(whose).map_err(|why| Refused::Unknown(Denied::new(why)))?;
        tracing::info!(
            pod = whose.pod,
            namespace = whose.namespace,
            "the API server is away: a token was judged by its keys"
        );
        Ok(id)
    }
}

fn unknown(why: &str) -> Refused {
    let text = format!("the cluster could not be asked whose the token is: {why}; ask again");
    Refused::Unknown(Denied::new(text))
}

/// What the API server found, as an identity.
fn identity(status: &TokenReviewStatus, trust_domain: &str) -> Result<SpiffeId, String> {
    if status.authenticated != Some(true) {
        let why = status.error.as_deref().unwrap_or("it has expired, or is of another cluster");
        return Err(format!("the service account's token is not good: {why}"));
    }
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(format!("the service account's token is not for the audience {AUDIENCE}"));
    }
    let user = status.user.as_ref();
    let extra = user.and_then(|user| user.extra.as_ref());
    let is_bound = extra.and_then(|extra| extra.get(POD)).is_some_and(|pods| !pods.is_empty());
    named(user.and_then(|user| user.username.as_deref()).unwrap_or_default(), is_bound, trust_domain)
}

/// The identity of a user of the API server, if it is a Pod's.
fn named(named: &str, is_bound: bool, trust_domain: &str) -> Result<SpiffeId, String> {
    let plain =
        |(namespace, account): &(&str, &str)| !namespace.contains('/') && !account.contains(['/', ':']);
    let parts = named.strip_prefix(USER).and_then(|rest| rest.split_once(':')).filter(plain);
    let Some((namespace, account)) = parts else {
        return Err(format!("{named:?} is no service account"));
    };
    // Those are given by the authority itself, and by an operator: whoever may make a Pod is neither.
    if [ADMIN_SERVICE_ACCOUNT, CONTROL_SERVICE_ACCOUNT].contains(&account) {
        return Err(format!(
            "{named} is a name of the mesh's own, of which no Pod is; use another service account"
        ));
    }
    if !is_bound {
        return Err(format!(
            "the token of {named} is bound to no Pod; mount it as a projected serviceAccountToken"
        ));
    }
    SpiffeId::workload(trust_domain, namespace, account).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(change: impl FnOnce(&mut serde_json::Value)) -> Result<SpiffeId, String> {
        let mut status = json!({
            "authenticated": true, "audiences": [AUDIENCE],
            "user": {"username": "system:serviceaccount:shop:web", "extra": {POD: ["web-1"]}},
        });
        change(&mut status);
        identity(&serde_json::from_value(status).unwrap(), "cluster.local")
    }

    #[test]
    fn a_pods_token_for_us_is_its_accounts_identity_and_no_other_is() {
        assert_eq!(of(|_| {}).unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        for (change, word) in [
            (json!({"authenticated": false, "error": "token expired"}), "token expired"),
            (json!({"authenticated": true, "audiences": ["other"]}), "audience outrigger-ca"),
            (json!({"authenticated": true}), "audience outrigger-ca"),
            (
                json!({"authenticated": true, "audiences": [AUDIENCE], "user": {"username": "admin"}}),
                "no service account",
            ),
            (
                json!({"authenticated": true, "audiences": [AUDIENCE], "user": {"username": "system:serviceaccount:shop:web"}}),
                "bound to no Pod",
            ),
        ] {
            let refused = of(|status| *status = change).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
        for own in ["outrigger-system:outrigger-control", "shop:outrigger-admin"] {
            let refused =
                of(|status| status["user"]["username"] = json!(format!("system:serviceaccount:{own}")));
            assert!(refused.unwrap_err().contains("the mesh's own"), "{own}");
        }
        let odd = of(|status| status["user"]["username"] = json!("system:serviceaccount:shop:we/b"));
        assert!(odd.is_err());
    }

    #[test]
    fn join_tokens_are_not_asked_the_cluster_for() {
        assert!(is_token("eyJhbGciOiJSUzI1NiJ9.e30.c2ln"));
        assert!(!is_token("outrigger-join-a.b.c"));
        assert!(!is_token("eyJhbGci"));
    }
}
