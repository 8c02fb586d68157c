//! Kubernetes: Pods are instances, Services and custom resources are rules.
//!
//! ```text
//! a watch for each kind --> Cluster: Pods, Services, Nodes as they are now --> what is news, part by part
//! ```
//!
//! A kind that the cluster knows no longer takes its objects with it, once the API server says that its definition has gone; that it finds
//! no objects it also says while it starts. A watch that breaks goes on from where it was; one that is too old lists anew, and what is missing then has gone. While the API server
//! is away everything holds. It is asked for its version every ten seconds, so that silence is told from rest, and how far its storage has
//! come: one that was restored from a backup is behind where our watches go on from, and they would hear nothing until it is there again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Client, Config};
use outrigger_rules::ParseOptions;
use outrigger_telemetry::logging::Throttle;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamMap;

use super::{Event, Item, Problem, Registry, Voice};
use crate::inject::Release;

mod cluster;
mod places;
mod pod;
pub(crate) mod read;
mod releases;
mod roots;
mod watch;

use cluster::{Cluster, NODE, Named, SERVICE, Said, Thing};
use releases::Releases;
use watch::{Kinds, News, Watch};

/// Between two questions whether the API server is there.
const PING: Duration = Duration::from_secs(10);
/// For the answer, and for a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// A watch says something at least as often: the API server sends bookmarks, and ends it after [`watch::LIFE`].
const SILENCE: Duration = Duration::from_secs(75);
/// A watch in trouble says so again within its pause and the patience of a connection; what it has not repeated is over.
const TROUBLE: Duration = Duration::from_secs(15);
/// Between two tellings of what is wrong, where much is.
const TOLD: Duration = Duration::from_secs(1);
/// For Pods, Services, nodes and endpoints to be listed, where it is known what they were.
const CORE: Duration = Duration::from_secs(30);
/// A watch that fails so often in a row, while the API server answers, cannot go on from where it was: it lists anew. (API servers say in
/// more than one way that a place is too old.)
const FAILURES: u32 = 4;

/// What of Services has no effect.
static IDLE: Throttle = Throttle::new();

/// A cluster of Kubernetes as a row of the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubernetesSettings {
    /// A kubeconfig file. Default: the service account of the Pod that this runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the file. Default: its current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// The network of its Pods. Default: the default one.
    pub network: String,
    /// Write no status into it: another control plane does. Default false.
    pub read_only: bool,
    /// Sidecars of Istio (containers `istio-proxy`) are the mesh's, too: they have its roots. Default false: they are called in plain text, as
    /// Pods without a sidecar are.
    pub istio_peers: bool,
}

impl KubernetesSettings {
    /// Where its API server is, and by what it is known. Nobody is asked for that.
    ///
    /// # Errors
    /// Says which file cannot be used and why.
    pub(crate) async fn config(&self) -> Result<Config, String> {
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path);
                let file = read.map_err(|error| format!("kubeconfig {}: {error}", path.display()))?;
                let options =
                    KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
                let config = Config::from_custom_kubeconfig(file, &options).await;
                config.map_err(|error| format!("kubeconfig {}: {error}", path.display()))?
            }
            None => Config::incluster().map_err(|error| {
                format!("this is no Pod of a cluster, and no kubeconfig is named in the settings: {error}")
            })?,
        };
        (config.connect_timeout, config.read_timeout) = (Some(PATIENCE), Some(SILENCE));
        Ok(config)
    }

    /// A client of its API server.
    ///
    /// # Errors
    /// Says which file cannot be used and why.
    pub async fn client(&self) -> Result<Client, String> {
        Client::try_from(self.config().await?).map_err(|error| error.to_string())
    }
}

/// A cluster that is followed.
pub struct Kubernetes {
    settings: KubernetesSettings,
    options: ParseOptions,
    cluster: Cluster,
    releases: Releases,
    /// What is wrong with objects.
    flaws: BTreeMap<(&'static str, Named), String>,
    /// Watches that failed, and when.
    trouble: BTreeMap<&'static str, (Instant, String)>,
    /// How often, without a word in between.
    failed: HashMap<&'static str, u32>,
    /// Watches that listed anew because they were too old, and when.
    renewed: HashMap<&'static str, Instant>,
    /// What listings have shown so far.
    listing: HashMap<&'static str, HashSet<Named>>,
    known: HashMap<&'static str, HashSet<Named>>,
    /// Kinds whose first listing is not over.
    waiting: HashSet<&'static str>,
    whole: bool,
    /// What it said before this start is known, and when it was followed for the first time since.
    recalled: bool,
    begun: Option<Instant>,
    /// Something is wrong that was not, or the other way round.
    untold: bool,
    told: Option<Instant>,
    /// How far the cluster's storage had come when it was asked last.
    reached: Option<u64>,
}

impl Kubernetes {
    /// Nothing is asked yet. `options` say how rules are read.
    pub fn new(settings: KubernetesSettings, options: ParseOptions) -> Self {
        let cluster = Cluster::new(settings.network.clone(), settings.istio_peers);
        Self {
            settings,
            options,
            cluster,
            releases: Releases::default(),
            flaws: BTreeMap::new(),
            trouble: BTreeMap::new(),
            failed: HashMap::new(),
            renewed: HashMap::new(),
            listing: HashMap::new(),
            known: HashMap::new(),
            waiting: HashSet::new(),
            whole: false,
            recalled: false,
            begun: None,
            untold: false,
            told: None,
            reached: None,
        }
    }

    fn put(&mut self, kind: &'static str, (named, thing, flaw, idle): watch::Seen) -> Vec<Said> {
        self.known.entry(kind).or_default().insert(named.clone());
        if let Thing::Node(_, release) = &thing {
            self.releases.node(&named, *release);
        }
        let key = (kind, named);
        let before = match flaw.clone() {
            Some(flaw) => self.flaws.insert(key.clone(), flaw),
            None => self.flaws.remove(&key),
        };
        let refused = self.cluster.refused().len();
        let news = self.cluster.put(kind, &key.1, thing);
        self.untold |= before != flaw || self.cluster.refused().len() != refused;
        if is_news(kind, &news) {
            let disputed = if kind == SERVICE { self.cluster.disputed(&key.1) } else { None };
            for what in idle.into_iter().chain(disputed) {
                if let Some(suppressed) = IDLE.admit() {
                    let object = format!("{kind} {}/{}", key.1.0, key.1.1);
                    tracing::warn!(object, suppressed, "{what}");
                }
            }
        }
        news
    }

    fn take(&mut self, kind: &'static str, named: Named) -> Vec<Said> {
        if let Some(known) = self.known.get_mut(kind) {
            known.remove(&named);
        }
        if kind == NODE {
            self.releases.node(&named, None);
        }
        let news = self.cluster.take(kind, &named);
        self.untold |= self.flaws.remove(&(kind, named)).is_some();
        news
    }

    /// What an event of a watch means.
    fn hear(&mut self, kind: &'static str, event: watcher::Event<watch::Seen>) -> Vec<Said> {
        match event {
            watcher::Event::Apply(seen) => self.put(kind, seen),
            watcher::Event::Delete((named, ..)) => self.take(kind, named),
            watcher::Event::Init => {
                self.listing.insert(kind, HashSet::new());
                Vec::new()
            }
            watcher::Event::InitApply(seen) => {
                self.listing.entry(kind).or_default().insert(seen.0.clone());
                self.put(kind, seen)
            }
            watcher::Event::InitDone => {
                self.waiting.remove(kind);
                let listed = self.listing.remove(kind).unwrap_or_default();
                let gone: Vec<Named> = self.known.get(kind).into_iter().flatten().cloned().collect();
                let gone = gone.into_iter().filter(|named| !listed.contains(named));
                gone.collect::<Vec<_>>().into_iter().flat_map(|named| self.take(kind, named)).collect()
            }
        }
    }

    /// Kinds that the cluster may know no longer: their watches are in trouble, or they have none, and what they said still holds.
    fn suspects(&self, kinds: &Kinds) -> Vec<&'static str> {
        let unwatched = self.known.iter().filter(|(kind, known)| !known.is_empty() && !kinds.watches(kind));
        let unwatched = unwatched.map(|(kind, _)| *kind);
        let suspects: BTreeSet<&'static str> = self.trouble.keys().copied().chain(unwatched).collect();
        suspects.into_iter().filter(|kind| kinds.is_defined_by_users(kind)).collect()
    }

    /// The cluster knows a kind no longer, so there are no objects of it either.
    fn forget(&mut self, kind: &'static str) -> Vec<Said> {
        self.waiting.remove(kind);
        self.listing.remove(kind);
        self.failed.remove(kind);
        self.untold |= self.trouble.remove(kind).is_some();
        let gone: Vec<Named> = self.known.remove(kind).into_iter().flatten().collect();
        gone.into_iter().flat_map(|named| self.take(kind, named)).collect()
    }

    /// Whether a watch may begin anew at once. One whose listing is too old again is left to its pauses and to the next question whether the API
    /// server is there.
    fn may_renew(&mut self, kind: &'static str) -> bool {
        let now = Instant::now();
        let may = self.renewed.get(kind).is_none_or(|at| now - *at >= PING);
        if may {
            self.renewed.insert(kind, now);
        }
        may
    }

    /// Says what is wrong. All of it is gone through, so not for every object of a listing.
    fn tell(&mut self, voice: &Voice) {
        (self.untold, self.told) = (false, Some(Instant::now()));
        self.trouble.retain(|_, (at, _)| at.elapsed() < TROUBLE);
        let flaws = self.flaws.iter().map(|((kind, (namespace, name)), message)| {
            let file = format!("{kind} {namespace}/{name}");
            Problem { registry: String::new(), file, line: 0, message: message.clone() }
        });
        let trouble = self.trouble.iter().map(|(kind, (_, why))| {
            let message = format!("cannot be watched: {why}");
            Problem { registry: String::new(), file: (*kind).to_owned(), line: 0, message }
        });
        let refused = self.cluster.refused().map(|(id, message)| Problem {
            registry: String::new(),
            file: id.clone(),
            line: 0,
            message: message.clone(),
        });
        voice.problems(trouble.chain(flaws).chain(refused).collect());
    }
}

impl Registry for Kubernetes {
    /// Its objects are known, as if they had been listed: what a listing does not show any more has gone, what cannot be read is what it
    /// was, and what no watch is of holds until the cluster says that its kind has gone.
    fn recall(&mut self, said: &mut BTreeMap<String, Vec<Item>>) -> bool {
        for (part, items) in said {
            let Some(kind) = Kinds::all().find(|kind| kind == part) else { continue };
            for item in items.iter_mut() {
                let Some(named) = self.cluster.recall(kind, item) else { continue };
                self.known.entry(kind).or_default().insert(named);
            }
        }
        self.recalled = true;
        true
    }

    async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
        let client = self.settings.client().await?;
        let mut kinds = Kinds::new(client.clone(), self.options.clone());
        let mut watches = StreamMap::new();
        self.failed.clear();
        self.begun.get_or_insert_with(Instant::now);
        for (kind, watch) in kinds.discover().await? {
            self.waiting.insert(kind);
            watches.insert(kind, watch);
        }
        let (pong, mut pongs) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(ping(client, pong));
        loop {
            tokio::select! {
                Some((kind, news)) = watches.next() => {
                    let is_too_old = news.as_ref().is_err_and(|failed| failed.is_too_old);
                    self.news(kind, news, voice).await?;
                    if is_too_old && self.may_renew(kind) {
                        tracing::info!(kind, "the watch is too old, and lists anew");
                        watches.insert(kind, kinds.watch(kind));
                    }
                }
                pong = pongs.recv() => match pong {
                    Some(Ok(pong)) => self.pong(pong, &mut kinds, &mut watches, voice).await?,
                    Some(Err(why)) => {
                        self.failed.clear();
                        voice.health.failed(why);
                    }
                    None => return Err("its tasks have ended".to_owned()),
                },
            }
        }
    }
}

impl Kubernetes {
    /// The API server is there.
    async fn pong(
        &mut self,
        Pong { release, reached }: Pong,
        kinds: &mut Kinds,
        watches: &mut StreamMap<&'static str, Watch>,
        voice: &Voice,
    ) -> Result<(), String> {
        voice.is_there();
        self.releases.api(release);
        voice.release(self.releases.oldest());
        self.tell(voice);
        if self.is_set_back(reached) {
            tracing::warn!(
                "the cluster's storage is behind where it was, as after a restore: all is listed anew"
            );
            for kind in watches.keys().copied().collect::<Vec<_>>() {
                watches.insert(kind, kinds.watch(kind));
            }
        }
        for kind in self.suspects(kinds) {
            if kinds.is_gone(kind).await {
                tracing::info!(kind, "the cluster knows it no longer, and its rules have gone with it");
                watches.remove(kind);
                kinds.forget(kind);
                let said = self.forget(kind);
                self.pass_on(said, voice).await?;
            }
        }
        // One whose version the cluster has no longer is watched in another.
        for (kind, _) in self.failed.extract_if(|_, times| *times >= FAILURES) {
            kinds.forget(kind);
        }
        // Kinds may be defined at any time.
        let found = tokio::time::timeout(PATIENCE, kinds.discover()).await;
        for (kind, watch) in found.unwrap_or(Ok(Vec::new())).unwrap_or_default() {
            tracing::info!(kind, "watched from its beginning");
            watches.insert(kind, watch);
        }
        Ok(())
    }

    /// Whether the storage was further already. What does not count gives no versions that can be compared.
    fn is_set_back(&mut self, reached: Option<u64>) -> bool {
        let Some(now) = reached else { return false };
        self.reached.replace(now).is_some_and(|before| now < before)
    }

    async fn news(&mut self, kind: &'static str, news: News, voice: &Voice) -> Result<(), String> {
        let event = match news {
            Ok(event) => event,
            Err(failed) => {
                self.trouble.insert(kind, (Instant::now(), failed.why));
                *self.failed.entry(kind).or_default() += 1;
                self.tell(voice);
                return self.pass_on(Vec::new(), voice).await;
            }
        };
        self.failed.remove(kind);
        self.untold |= self.trouble.remove(kind).is_some();
        // At a start only what brings its end nearer: one kind that cannot be listed is not waited for because others change.
        let nearer = matches!(event, watcher::Event::InitApply(_) | watcher::Event::InitDone);
        match self.whole || (nearer && self.waiting.contains(kind)) {
            true => voice.heard(),
            false => voice.is_there(),
        }
        let said = self.hear(kind, event);
        if kind == NODE {
            voice.release(self.releases.oldest());
        }
        self.pass_on(said, voice).await
    }

    /// Whether all that there is is known: listed, or, of a kind that cannot be listed, what it was before this start. What Pods and
    /// Services are there is waited for longer.
    fn is_known(&self) -> bool {
        let long_ago = || self.begun.is_some_and(|begun| begun.elapsed() > CORE);
        let remembered =
            |kind: &&'static str| self.trouble.contains_key(*kind) && (!Kinds::is_core(kind) || long_ago());
        self.waiting.is_empty() || (self.recalled && self.waiting.iter().all(remembered))
    }

    async fn pass_on(&mut self, said: Vec<Said>, voice: &Voice) -> Result<(), String> {
        // The rest with the next answer of the API server.
        if self.untold && self.told.is_none_or(|told| told.elapsed() > TOLD) {
            self.tell(voice);
        }
        if !self.whole && !self.is_known() {
            return Ok(());
        }
        // Until everything is known nothing is said: a Pod without its Services would be nobody's.
        let said = if self.whole { said } else { self.cluster.all() };
        for (part, event) in said {
            voice.say(part, event).await?;
        }
        if !self.whole {
            self.whole = true;
            self.tell(voice);
            voice.whole().await?;
        }
        Ok(())
    }
}

/// Whether a rule says something else than before: what is the same again was told.
fn is_news(kind: &str, news: &[Said]) -> bool {
    news.iter().any(|(part, event)| *part == kind && matches!(event, Event::Upsert(Item::Rule(_))))
}

/// What an API server that is there says of itself.
struct Pong {
    release: Option<Release>,
    /// The version of the last change that is stored.
    reached: Option<u64>,
}

/// How far the storage has come. A listing that names no version is of what is stored, not of what an API server remembers.
async fn reached(client: &Client) -> Option<u64> {
    #[derive(Deserialize)]
    struct Listed {
        metadata: At,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct At {
        resource_version: String,
    }
    let request = http::Request::get("/api/v1/services?limit=1").body(Vec::new()).ok()?;
    let listed = tokio::time::timeout(PATIENCE, client.request::<Listed>(request)).await;
    listed.ok()?.ok()?.metadata.resource_version.parse().ok()
}

/// Asks for the version, for ever.
async fn ping(client: Client, pong: mpsc::Sender<Result<Pong, String>>) {
    loop {
        let asked = tokio::time::timeout(PATIENCE, client.apiserver_version()).await;
        let answer = match asked {
            Ok(Ok(said)) => {
                let release = said.git_version.parse().ok();
                Ok(Pong { release, reached: reached(&client).await })
            }
            Ok(Err(error)) => Err(format!("the API server does not answer: {error}")),
            Err(_) => Err(format!("the API server did not answer within {PATIENCE:?}")),
        };
        if pong.send(answer).await.is_err() {
            return;
        }
        tokio::time::sleep(PING).await;
    }
}

#[cfg(test)]
mod tests;
