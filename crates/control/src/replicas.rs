//! Several control planes that are one: each serves sidecars, and one of them writes.
//!
//! ```text
//! the cluster's:  rules, Pods, Services                          (registry/kubernetes)
//! in Secrets:     the authority, revocations, join tokens        (keys, store, over document)
//! by a Lease:     who writes status and caBundles                (leader)
//! each its own:   generation, what registries said, its proxies  (asked for by peers)
//! ```
//!
//! What can be shared in none of these ways is refused.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::join_all;
use kube::Client;
use outrigger_identity::authority::files::Step;
use outrigger_identity::{Authority, AuthorityOptions, CredentialStore};
use outrigger_telemetry::Registry;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::keeper::{Keeper, Refused};
use crate::others::{Others, Report};
use crate::registry::kubernetes::KubernetesSettings;
use crate::store::Store;
use crate::store::records::{StoredRevocation, StoredToken};
use crate::tokens::Tokens;
use document::{Document, Fields, Version};
use keys::{Before, Keys};
use leader::{Candidate, Leadership, Stop};
use peers::Peers;
use store::{Listed, ReplicaStore};

mod document;
pub(crate) mod keys;
pub(crate) mod leader;
pub(crate) mod peers;
mod store;

/// Of the objects that replicas share.
const AUTHORITY: &str = "outrigger-authority";
const REVOCATIONS: &str = "outrigger-revocations";
const TOKENS: &str = "outrigger-join-tokens";
/// Where replicas tell each other of their proxies.
pub(crate) const REPORT: &str = "/v1/replica/report";
/// Where one says all that `outrigger status` shows of it.
pub(crate) const STATUS: &str = "/v1/replica/status";
/// Where one says what it knows of revocations and join tokens.
pub(crate) const SHARED: &str = "/v1/replica/shared";
/// Where one says how many proxies it has.
pub(crate) const LOAD: &str = "/v1/replica/load";
/// Between two looks whether the API server says anything.
const LOOK: Duration = Duration::from_secs(4);
/// It is asked every five seconds: after so many of silence others are asked.
const SILENCE: Duration = Duration::from_secs(8);
/// Looks between two at where the others are.
const PLACES: u32 = 5;
/// After so much of it this replica is not called ready any more, if another one hears the API server.
const CUT_OFF: Duration = Duration::from_secs(20);
/// Says in [`SHARED`] whether a replica leads, and so hears it.
const LEADS: &str = "leads";
/// Before what cannot be in force is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// A control plane that is one of several, in a cluster of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ReplicaSettings {
    /// Which of them this is; no other has this name. Default: the host's, which is the Pod's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where their Secrets and their Lease are. Default: the Pod's own, or that of the kubeconfig.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The Service there whose endpoints they are, where sidecars and API servers find them. Default `outrigger-control`.
    pub service: String,
    /// The Lease of the one that writes status. Control planes of another revision, which have a Service of their own, share it, and find each
    /// other by the label `outrigger.io/control-planes` of their Services, whose value it is. Default: called like the Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

impl Default for ReplicaSettings {
    fn default() -> Self {
        Self { name: None, namespace: None, service: "outrigger-control".to_owned(), lease: None }
    }
}

/// How many proxies one has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Load {
    /// None where no more should go to it.
    proxies: Option<usize>,
}

/// Why something was not shared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// The API server says no, with this status.
    #[error("{1}")]
    Refused(u16, String),
    /// It cannot be asked.
    #[error("{0}")]
    Away(String),
    /// What is there, or was to be, is wrong.
    #[error("{0}")]
    Wrong(String),
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match error {
            // One that has too much to do, or has not begun.
            kube::Error::Api(status) if status.code == 429 || status.code >= 500 => {
                Self::Away(status.message.clone())
            }
            kube::Error::Api(status) => Self::Refused(status.code, status.message.clone()),
            error => Self::Away(error.to_string()),
        }
    }
}

impl From<kube::runtime::watcher::Error> for Trouble {
    fn from(error: kube::runtime::watcher::Error) -> Self {
        Self::Away(error.to_string())
    }
}

/// One that has found what is shared, and has not begun to serve.
pub(crate) struct Joining {
    name: Arc<str>,
    namespace: Arc<str>,
    service: String,
    lease: String,
    client: Client,
    authority: Document,
    revocations: Listed<StoredRevocation>,
    tokens: Listed<StoredToken>,
}

impl Joining {
    /// Waits for the API server: without it nobody knows what is shared.
    pub(crate) async fn begin(
        settings: ReplicaSettings,
        cluster: &KubernetesSettings,
    ) -> anyhow::Result<Self> {
        let client = cluster.client().await.map_err(anyhow::Error::msg)?;
        let name = settings.name.unwrap_or_else(host_name);
        anyhow::ensure!(!name.is_empty(), "replicas.name: this host has no name, so it must be set");
        let namespace = settings.namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        let document = |name| Document::new(client.clone(), &namespace, name);
        let joining = Self {
            name: name.into(),
            lease: settings.lease.unwrap_or_else(|| settings.service.clone()),
            service: settings.service,
            authority: document(AUTHORITY),
            revocations: Listed::new(document(REVOCATIONS)),
            tokens: Listed::new(document(TOKENS)),
            namespace: namespace.as_str().into(),
            client,
        };
        let mut complained = false;
        let revocations = &joining.revocations.document;
        while let Err(trouble) = revocations.read().await {
            if !matches!(trouble, Trouble::Away(_)) {
                anyhow::bail!("{} cannot be read: {trouble}", revocations.place());
            }
            if !std::mem::replace(&mut complained, true) {
                tracing::warn!(why = %trouble, "waiting for the API server, which has what replicas share");
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(joining)
    }

    /// A client of the API server.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The store of this replica over that of its volume.
    pub(crate) async fn store(&self, local: Arc<dyn Store>) -> anyhow::Result<Arc<dyn Store>> {
        let shared = ReplicaStore::new(local, self.revocations.clone(), self.tokens.clone());
        shared.carry_over().await?;
        Ok(Arc::new(shared))
    }

    /// Whether there is an authority that replicas share.
    pub(crate) async fn has_authority(&self) -> anyhow::Result<bool> {
        Ok(self.authority.read().await?.is_some())
    }

    /// Who is revoked is known from the first authority on: where there is one and nobody knows, it was lost. What an operator must know,
    /// which `note` has written down before there is anything that says otherwise.
    pub(crate) async fn revocations(
        &self,
        had_authority: bool,
        note: impl AsyncFnOnce(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<String>> {
        let document = &self.revocations.document;
        if document.read().await?.is_some() {
            return Ok(None);
        }
        if !had_authority {
            document.create(&Fields::new()).await?;
            return Ok(None);
        }
        let notice = format!(
            "there was no {}, although there is an authority: whoever was revoked is so no longer. Restore it from a backup, or revoke anew \
             (after a release that made none before somebody was revoked, and if nobody ever was, this is as it should be); it is said until \
             there is a revocation, which may be reinstated",
            document.place()
        );
        note(&notice).await?;
        // Another may be quicker: then it says the same.
        document.create(&Fields::new()).await?;
        tracing::error!("{notice}");
        Ok(Some(notice))
    }

    /// The shared authority. What is known of one from before: where it was made, which roots sidecars were given, and whose roots API
    /// servers have been told.
    pub(crate) async fn authority(
        &self,
        options: AuthorityOptions,
        directory: PathBuf,
        roots: Vec<String>,
        told: Option<String>,
    ) -> anyhow::Result<(Authority, Keys)> {
        let keys = Keys::new(self.authority.clone(), options);
        let authority = keys.open(Before { directory, roots, told }).await?;
        Ok((authority, keys))
    }

    /// Follows what is shared from now on, and stands for election. `keys` is absent where the authority was provided.
    pub(crate) fn join(
        self,
        keys: Option<Keys>,
        (authority, credentials): (&Arc<Authority>, &CredentialStore),
        keeper: &Keeper,
        known: &Tokens,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<Arc<Replicas>> {
        if let Some(keys) = keys.clone() {
            tasks.spawn(self.authority.clone().follow());
            tasks.spawn(keys.follow(authority.clone()));
        }
        for document in [&self.revocations.document, &self.tokens.document] {
            tasks.spawn(document.clone().follow());
        }
        tasks.spawn(share_revocations(self.revocations.clone(), keeper.clone()));
        tasks.spawn(share_tokens(self.tokens.clone(), known.clone()));
        let identity: Arc<str> = format!("{}_{:016x}", self.name, fastrand::u64(..)).into();
        let mut stops = Vec::new();
        let mut stand = |lease: &str| {
            let candidate = Candidate::new(self.client.clone(), &self.namespace, lease, identity.clone());
            let leadership = candidate.leadership();
            let (stop, running) = candidate.run();
            tasks.spawn(running);
            stops.push(stop);
            leadership
        };
        let leadership = stand(&self.lease);
        // What is a revision's own is written by one of its own.
        let own = if self.lease == self.service { leadership.clone() } else { stand(&self.service) };
        let place = peers::Place {
            namespace: self.namespace,
            service: self.service,
            among: self.lease,
            name: self.name.clone(),
        };
        let peers = Peers::new(self.client, place, authority.trust_domain(), credentials.clone())?;
        let replicas = Arc::new(Replicas {
            name: self.name,
            keys,
            revocations: self.revocations.document,
            tokens: self.tokens,
            known: known.clone(),
            leadership,
            own,
            peers,
            proxies: Arc::default(),
            cut_off: AtomicBool::new(false),
            stop: Mutex::new(stops),
        });
        tasks.spawn(replicas.clone().listen());
        Ok(replicas)
    }
}

/// What one of several has of the others.
pub(crate) struct Replicas {
    /// Which of them this is.
    pub(crate) name: Arc<str>,
    keys: Option<Keys>,
    revocations: Document,
    tokens: Listed<StoredToken>,
    known: Tokens,
    pub(crate) leadership: Leadership,
    /// Which of those of this revision writes what is the revision's own.
    pub(crate) own: Leadership,
    pub(crate) peers: Peers,
    /// How many are connected here that may as well be elsewhere.
    pub(crate) proxies: Arc<AtomicUsize>,
    cut_off: AtomicBool,
    stop: Mutex<Vec<Stop>>,
}

impl Replicas {
    /// Shows whether this one leads.
    pub(crate) fn observe(&self, registry: &Registry) {
        let leadership = self.leadership.clone();
        registry.register_fn(move |page| {
            let help = "Whether this replica of the control plane is the one that writes status.";
            page.gauge("outrigger_leads", help).sample((), u64::from(leadership.leads()));
        });
    }

    /// What the others say of their proxies.
    pub(crate) async fn others(&self) -> Others {
        let answers = self.peers.ask::<Report>(REPORT).await;
        for (replica, why) in &answers.silent {
            tracing::debug!(replica, why, "a replica does not answer");
        }
        let silent = answers.silent.into_iter().map(|(name, _)| name).collect();
        Others::new(answers.said.into_iter().map(|(_, report)| report), silent)
    }

    /// Who is revoked, and which join tokens there are, for another replica. Of tokens only hashes are known.
    pub(crate) fn shared(&self) -> serde_json::Value {
        let known = |document: &Document| (document.name().to_owned(), serde_json::json!(*document.latest()));
        let documents = [&self.revocations, &self.tokens.document].into_iter().map(known);
        let leads = serde_json::json!(Version::word(self.own.leads().into()));
        documents.chain([(LEADS.to_owned(), leads)]).collect()
    }

    /// How many proxies are here, for another replica.
    pub(crate) fn load(&self) -> Load {
        Load { proxies: self.hears().is_ok().then(|| self.proxies.load(Relaxed)) }
    }

    /// How many proxies each other replica has to which more could go: those of another revision have sidecars of their own.
    pub(crate) async fn loads(&self) -> Vec<usize> {
        let said = self.peers.ask::<Load>(LOAD).await.said.into_iter();
        said.filter(|(name, _)| self.peers.is_own(name)).filter_map(|(_, load)| load.proxies).collect()
    }

    /// Not where sidecars should go: others hear of the cluster, and this one does not.
    ///
    /// # Errors
    /// Says so.
    pub(crate) fn hears(&self) -> Result<(), String> {
        match self.cut_off.load(Relaxed) {
            true => Err("the API server is not heard here, and another replica hears it".to_owned()),
            false => Ok(()),
        }
    }

    /// Hears from the others what the API server does not say here: who is revoked there must be revoked here, too.
    async fn listen(self: Arc<Self>) {
        let documents = [&self.revocations, &self.tokens.document];
        for look in 0_u32.. {
            tokio::time::sleep(LOOK).await;
            if documents.iter().all(|document| document.silence() <= SILENCE) {
                if self.cut_off.swap(false, Relaxed) {
                    tracing::info!("the API server is heard again");
                }
                if look % PLACES == 0 {
                    // To know them when nobody can say it any more.
                    self.peers.find().await;
                }
                continue;
            }
            let said = self.peers.ask::<BTreeMap<String, Version>>(SHARED).await.said;
            let is_long = documents.iter().all(|document| document.silence() > CUT_OFF);
            // While nobody hears it none is better than another.
            let mut own = said.iter().filter(|(name, _)| self.peers.is_own(name));
            let led = own.any(|(_, said)| said.get(LEADS).is_some_and(|word| word.number() > 0));
            if is_long && self.cut_off.swap(led, Relaxed) != led {
                tracing::warn!(
                    led,
                    "whether another replica hears the API server, which this one does not, has changed"
                );
            }
            for (replica, mut said) in said {
                for document in documents {
                    if said.remove(document.name()).is_some_and(|version| document.hear(version)) {
                        tracing::info!(replica, secret = %document.place(), "another replica knows more of it");
                    }
                }
            }
        }
    }

    /// Takes a step with the authority, for all replicas. `None`: it was provided, and is not theirs to change.
    pub(crate) async fn step(&self, step: Step, authority: &Authority) -> Option<Result<(), String>> {
        let keys = self.keys.as_ref()?;
        Some(match keys.step(step).await {
            Ok(()) => keys.take(authority),
            Err(trouble) => Err(trouble.to_string()),
        })
    }

    /// Knows all join tokens that there are at this moment.
    pub(crate) async fn refresh_tokens(&self) -> Result<(), String> {
        self.known.replace(self.tokens.read().await.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Gives the Leases back, so that another need not wait.
    pub(crate) async fn stop(&self) {
        let stops = std::mem::take(&mut *self.stop.lock());
        join_all(stops.into_iter().map(Stop::stop)).await;
    }
}

/// Whom others revoke is revoked here.
async fn share_revocations(listed: Listed<StoredRevocation>, keeper: Keeper) {
    let mut changes = listed.document.subscribe();
    loop {
        changes.mark_unchanged();
        let listed = listed.clone();
        let asked = move || Some(listed.heard());
        match keeper.share(Box::new(asked)).await {
            Err(Refused::Stopping) => return,
            Ok(_) => {}
            // Another change of the same turn was not stored.
            Err(_) => {
                tokio::time::sleep(AGAIN).await;
                changes.mark_changed();
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Join tokens that others make, spend and revoke are made, spent and revoked.
async fn share_tokens(listed: Listed<StoredToken>, known: Tokens) {
    let mut changes = listed.document.subscribe();
    loop {
        changes.mark_unchanged();
        known.replace(listed.heard());
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests;
