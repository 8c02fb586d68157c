//! Tokens while the API server is away: by the keys that it signs with, as they were while it was there (also before a start: `kept`), and by
//! the Pod, as it was heard of last.
//!
//! What nobody can say then is what has become of the Pod and of its account since. So a token is good for as long as it says (an hour,
//! where our injector has made the volume) although its Pod has been deleted meanwhile, but no longer than for [`OLD`] after the keys were
//! seen last. Away is a server, too, that has too much to do (429), cannot do it (5xx) or says nothing in time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Request;
use kube::Client;
use outrigger_identity::csr::service::Denied;
use outrigger_model::token::{Claims, JwtProvider, Refusal, check_keys};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{AUDIENCE, PATIENCE, Refused, USER};
use crate::canonical;
use crate::instance::Instance;

/// Between two looks: new keys are shown before they sign.
const PERIOD: Duration = Duration::from_secs(600);
/// After one that failed.
const RETRY: Duration = Duration::from_secs(15);
/// Keys that were not seen for so long judge nothing: one may have been taken back.
const OLD: Duration = Duration::from_secs(24 * 3600);
/// What the API server says of itself as an issuer (OpenID Connect Discovery), and its keys.
const DISCOVERY: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";

/// What an API server says of itself as an issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keys {
    /// Its name.
    pub(super) issuer: String,
    /// JWKS.
    pub(super) keys: String,
}

/// Why a look has seen no keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unseen {
    pub(super) why: String,
    /// The server is away; else it has answered, with something else.
    pub(super) is_away: bool,
}

impl Unseen {
    pub(super) fn away(why: String) -> Self {
        Self { why, is_away: true }
    }

    fn answered(why: String) -> Self {
        Self { why, is_away: false }
    }
}

/// The API server as an issuer of tokens.
#[derive(Default)]
pub(super) struct Issuer {
    known: Mutex<Option<Known>>,
    /// Why the last look has failed.
    failed: Mutex<Option<Unseen>>,
}

struct Known {
    provider: JwtProvider,
    at: Instant,
    /// How old it was then.
    age: Duration,
}

impl Known {
    /// Whether the keys were seen lately enough.
    fn holds(&self) -> bool {
        self.age.saturating_add(self.at.elapsed()) < OLD
    }
}

/// Whose a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whose {
    /// Of Pod and account.
    pub namespace: String,
    /// The account.
    pub account: String,
    /// The Pod that it was made for.
    pub pod: String,
    /// Which of all of that name.
    pub uid: String,
    /// Where that is; API servers before Kubernetes 1.32 do not say.
    pub node: Option<String>,
}

/// What of the claims an API server makes.
#[derive(Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Object,
    pod: Option<Object>,
    node: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    #[serde(default)]
    uid: String,
}

impl Issuer {
    /// Whether it could judge.
    pub(super) fn is_known(&self) -> bool {
        self.known.lock().as_ref().is_some_and(Known::holds)
    }

    /// Whether the last look has found nobody. Who has answered is there, whatever that was, and so is who has not been asked yet.
    pub(super) fn is_away(&self) -> bool {
        self.failed.lock().as_ref().is_some_and(|unseen| unseen.is_away)
    }

    /// Asks for its name and its keys.
    pub(super) async fn fetch(&self, client: &Client) -> Result<Keys, Unseen> {
        #[derive(Deserialize)]
        struct Said {
            issuer: String,
        }
        let said: Said = serde_json::from_str(&asked(client, DISCOVERY).await?)
            .map_err(|error| Unseen::answered(format!("{DISCOVERY}: {error}")))?;
        let keys = asked(client, KEYS).await?;
        check_keys(&keys).map_err(|why| Unseen::answered(format!("{KEYS} {why}")))?;
        let keys = Keys { issuer: said.issuer, keys };
        self.recall(&keys, Duration::ZERO);
        Ok(keys)
    }

    /// What was seen so long ago.
    pub(super) fn recall(&self, keys: &Keys, age: Duration) {
        let mut provider = JwtProvider::new(&keys.issuer, &keys.keys);
        provider.audiences = vec![AUDIENCE.to_owned()];
        provider.require_expiration = true;
        *self.known.lock() = Some(Known { provider, at: Instant::now(), age });
    }

    /// When to look again.
    pub(super) fn fetched(&self, outcome: Result<(), Unseen>) -> Duration {
        let mut failed = self.failed.lock();
        let pause = if outcome.is_ok() { PERIOD } else { RETRY };
        let unseen = outcome.err();
        match unseen.as_ref().filter(|unseen| failed.as_ref() != Some(unseen)) {
            // Nothing depends on it until the API server is away.
            Some(Unseen { why, is_away: true }) => {
                tracing::info!(
                    why,
                    "the keys of the cluster's tokens cannot be looked at; those before hold"
                );
            }
            Some(Unseen { why, .. }) => tracing::warn!(
                why,
                "the API server does not show the keys of its tokens, by which Pods would renew while it is away; \
                 bind system:service-account-issuer-discovery to the control plane's account"
            ),
            None => {}
        }
        *failed = unseen;
        pause
    }

    /// Whose a token is, if it is good. Costs a signature's check.
    pub(super) fn judge(&self, token: &str, now: SystemTime) -> Result<Whose, Refused> {
        let provider = match &*self.known.lock() {
            Some(known) if known.holds() => known.provider.clone(),
            Some(_) => {
                return Err(Refused::Unknown(Denied::new(format!(
                    "its keys have not been seen for {OLD:?}"
                ))));
            }
            None => {
                let failed = self.failed.lock();
                let why = failed.as_ref().map_or("nobody has looked yet", |unseen| &unseen.why);
                return Err(Refused::Unknown(Denied::new(format!("its keys are not known: {why}"))));
            }
        };
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        match provider.verify(token, now) {
            Ok(claims) => whose(&claims).map_err(|why| Refused::Wrong(Denied::new(why))),
            // It may be signed with a key that is newer than what we know.
            Err(Refusal::Signature | Refusal::NoKeys) => Err(Refused::Unknown(Denied::new(
                "the token is signed with none of the keys that are known".to_owned(),
            ))),
            // A server may have been told to take those of other issuers, too, of which it says nothing.
            Err(why @ Refusal::UnknownIssuer) => Err(Refused::Unknown(Denied::new(why.text().to_owned()))),
            Err(why) => Err(Refused::Wrong(Denied::new(format!(
                "the service account's token is not good: {}",
                why.text()
            )))),
        }
    }
}

async fn asked(client: &Client, path: &str) -> Result<String, Unseen> {
    let request = Request::get(path).body(Vec::new());
    let request = request.map_err(|error| Unseen::answered(error.to_string()))?;
    match tokio::time::timeout(PATIENCE, client.request_text(request)).await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => {
            let is_away = !matches!(&error, kube::Error::Api(status) if is_answer(status.code));
            Err(Unseen { why: format!("{path}: {error}"), is_away })
        }
        Err(_) => Err(Unseen::away(format!("{path}: no answer within {PATIENCE:?}"))),
    }
}

/// Whether a server that says no with this status could have said something else.
pub(super) fn is_answer(status: u16) -> bool {
    status != 429 && status < 500
}

/// What the claims say, which must be one thing.
fn whose(claims: &Claims) -> Result<Whose, String> {
    let bound = claims.get("kubernetes.io").ok_or("the token is of no service account")?;
    let bound = Bound::deserialize(bound).map_err(|error| format!("the token's kubernetes.io: {error}"))?;
    let none = || "the token is bound to no Pod; mount it as a projected serviceAccountToken".to_owned();
    let pod = bound.pod.filter(|pod| !pod.name.is_empty() && !pod.uid.is_empty()).ok_or_else(none)?;
    let whose = Whose {
        namespace: bound.namespace,
        account: bound.serviceaccount.name,
        pod: pod.name,
        uid: pod.uid,
        node: bound.node.map(|node| node.name),
    };
    match claims.get("sub").and_then(|sub| sub.as_str()) {
        Some(sub) if sub == whose.user() => Ok(whose),
        sub => Err(format!("the token's sub {sub:?} is not {}", whose.user())),
    }
}

impl Whose {
    /// As the API server calls it.
    pub(super) fn user(&self) -> String {
        format!("{USER}{}:{}", self.namespace, self.account)
    }

    /// As the mesh calls the Pod.
    pub fn instance(&self) -> String {
        format!("{}.{}", self.pod, self.namespace)
    }

    /// Whether this instance is the Pod.
    ///
    /// # Errors
    /// Why not.
    pub fn is(&self, known: Option<&Instance>) -> Result<(), String> {
        let Self { namespace, account, pod, uid, node } = self;
        let known = known.ok_or_else(|| format!("Pod {namespace}/{pod} is not known"))?;
        let is_same = known.namespace == *namespace
            && known.metadata.get(canonical::UID) == Some(uid)
            && known.service_account == *account
            && node.as_ref().is_none_or(|node| known.node() == Some(node));
        match is_same {
            true => Ok(()),
            false => Err(format!(
                "the Pod {namespace}/{pod} that is known is another one, or runs as somebody else"
            )),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
