//! Consul: one blocking query tells which services there are, and one for each of them its instances and their health.
//!
//! ```text
//! /v1/catalog/services ──▶ which there are ──▶ /v1/health/service/NAME, each a task ──▶ Reset of the part NAME
//! ```
//!
//! A query that returns is no proof of news, an index that goes backwards begins anew, and none is asked more than ten times a second.
//! The queries share [`ConsulSettings::connections`] (an agent takes 200 of one address): of more services than these each is waited for in
//! turn, so that none is older than `ROUND`.
//!
//! A Consul that suddenly lists much less than it did has more likely lost it than that all of it went: what is missing is held, and said.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::{Event, Item, Problem, Registry, Voice};
use crate::instance::Instance;

mod entry;
mod http;

use entry::Entry;
use http::{Answer, Http};

/// Where there are more services than connections, none is asked later than this.
const ROUND: Duration = Duration::from_secs(10);
/// Between two questions about the same.
const LEAST: Duration = Duration::from_millis(100);
/// More than this share of the services gone at once is held. Percent.
const MASS_PERCENT: usize = 30;
/// Consul's own servers register themselves.
const OWN: &str = "consul";
/// Problems told of one registry.
const MOST_PROBLEMS: usize = 100;

/// A Consul of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConsulSettings {
    /// An agent or server. Default `http://127.0.0.1:8500`.
    pub address: String,
    /// A file with an ACL token, read anew at each connection. It needs `service:read` and `node:read`.
    pub token_file: Option<PathBuf>,
    /// Another datacenter than the agent's.
    pub datacenter: Option<String>,
    /// Only services of these names. Default all.
    pub services: Vec<String>,
    /// Only services that have this tag.
    pub tag: Option<String>,
    /// The namespace that its services get here. Default `default`.
    pub namespace: String,
    /// Whether instances have a sidecar, where their metadata do not say `sidecar`. Default false.
    pub sidecar: bool,
    /// Whom to trust, PEM. Default the system's roots.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain, PEM, where it asks for one.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// The name in its certificate. Default the address.
    pub server_name: Option<String>,
    /// The most connections. Default 100.
    pub connections: usize,
    /// Seconds that a query waits for news. Default 60.
    pub wait_seconds: u64,
    /// Seconds that much which is gone at once is held. Default 3600.
    pub hold_seconds: u64,
}

impl Default for ConsulSettings {
    fn default() -> Self {
        Self {
            address: "http://127.0.0.1:8500".into(),
            token_file: None,
            datacenter: None,
            services: Vec::new(),
            tag: None,
            namespace: "default".into(),
            sidecar: false,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
            connections: 100,
            wait_seconds: 60,
            hold_seconds: 3600,
        }
    }
}

impl ConsulSettings {
    /// What cannot work.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<(), String> {
        http::place(&self.address)?;
        if !(2..=10_000).contains(&self.connections) {
            return Err(format!("connections: {} is not from 2 to 10000", self.connections));
        }
        if !(1..=600).contains(&self.wait_seconds) {
            return Err(format!("waitSeconds: {} is not from 1 to 600", self.wait_seconds));
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err("certFile, keyFile: one needs the other".to_owned());
        }
        Ok(())
    }
}

/// One Consul, and what it said.
pub struct Consul {
    settings: ConsulSettings,
    /// What each part has in force: who is bad now keeps what it was, and a part that is gone is told so after an outage, too.
    said: BTreeMap<String, BTreeMap<String, Arc<Instance>>>,
    /// Since when services are missing.
    held: BTreeMap<String, Instant>,
    problems: BTreeMap<String, Vec<String>>,
}

/// What the tasks of one connection find.
enum News {
    /// The services that there are.
    Services(BTreeSet<String>),
    /// The instances of one.
    Service(String, Vec<Entry>),
    /// Nothing new.
    Nothing,
    /// Consul does not show everything: since when it is asked about.
    Filtered(bool),
    Failed(String),
}

/// Ends with its task.
struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Consul {
    /// Nothing is asked yet.
    pub fn new(settings: ConsulSettings) -> Self {
        Self { settings, said: BTreeMap::new(), held: BTreeMap::new(), problems: BTreeMap::new() }
    }

    /// What is to go of the parts that were said, now that only these are listed.
    fn gone(&mut self, listed: &BTreeSet<String>) -> Vec<String> {
        let now = Instant::now();
        let (known, hold) = (self.said.len(), Duration::from_secs(self.settings.hold_seconds));
        let missing: Vec<String> = self.said.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        self.held.retain(|name, _| missing.contains(name));
        // Those that were held before stay so: the others of them may come back one by one.
        if missing.len() >= 2 && missing.len() * 100 > known * MASS_PERCENT {
            for name in &missing {
                self.held.entry(name.clone()).or_insert(now);
            }
        }
        let over = |name: &String| self.held.get(name).is_none_or(|since| now - *since >= hold);
        let gone: Vec<String> = missing.iter().filter(|name| over(name)).cloned().collect();
        for name in &gone {
            self.held.remove(name);
            self.said.remove(name);
            self.problems.remove(name);
        }
        gone
    }

    /// When a hold ends, if there is one.
    fn hold_ends(&self) -> Option<Instant> {
        self.held.values().min().map(|since| *since + Duration::from_secs(self.settings.hold_seconds))
    }

    /// The instances of a service as they are here.
    fn convert(&mut self, name: &str, entries: &[Entry]) -> Vec<Item> {
        let (mut wrong, mut now) = (Vec::new(), BTreeMap::new());
        let before = self.said.remove(name).unwrap_or_default();
        for entry in entries.iter().filter(|entry| !entry.is_of_the_mesh()) {
            let id = entry.id();
            let instance = match entry.instance(&self.settings) {
                Ok(new) => match before.get(&id).filter(|old| ***old == new) {
                    Some(same) => same.clone(),
                    None => Arc::new(new),
                },
                Err(why) => {
                    wrong.push(why);
                    let Some(last) = before.get(&id) else { continue };
                    last.clone()
                }
            };
            if now.insert(id.clone(), instance).is_some() {
                wrong.push(format!("instance \"{id}\" occurs twice"));
            }
        }
        match wrong.is_empty() {
            true => drop(self.problems.remove(name)),
            false => drop(self.problems.insert(name.to_owned(), wrong)),
        }
        let items = now.values().cloned().map(Item::Instance).collect();
        self.said.insert(name.to_owned(), now);
        items
    }

    fn tell(&self, voice: &Voice, filtered: bool) {
        let problem = |part: &str, message: String| Problem {
            registry: String::new(),
            file: part.to_owned(),
            line: 0,
            message,
        };
        let mut all = Vec::new();
        if filtered {
            let text = "the token may not read everything (results are filtered by ACLs): give it service:read and node:read";
            all.push(problem("token", text.to_owned()));
        }
        for name in self.held.keys() {
            let text = format!(
                "it is not listed any more, as {} of {} services at once: it is held for {} s, or until it is listed again",
                self.held.len(),
                self.said.len(),
                self.settings.hold_seconds
            );
            all.push(problem(name, text));
        }
        let bad = self.problems.iter().flat_map(|(part, all)| all.iter().map(move |text| (part, text)));
        all.extend(bad.map(|(part, text)| problem(part, text.clone())));
        all.truncate(MOST_PROBLEMS);
        voice.problems(all);
    }
}

impl Registry for Consul {
    async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
        let settings = self.settings.clone();
        let http = tokio::task::spawn_blocking(move || Http::open(&settings)).await;
        let http = Arc::new(http.map_err(|error| error.to_string())??);
        let (news, mut heard) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        let ask = Ask {
            http,
            news,
            places: Arc::new(Semaphore::new(self.settings.connections - 1)),
            all: Arc::default(),
            settings: Arc::new(self.settings.clone()),
        };
        tasks.spawn(ask.clone().services());
        let mut watches: BTreeMap<String, Watch> = BTreeMap::new();
        let (mut waiting, mut whole, mut filtered): (Option<BTreeSet<String>>, _, _) = (None, false, false);
        let mut listed = BTreeSet::new();
        loop {
            let ends = self.hold_ends().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let next = tokio::select! {
                next = heard.recv() => next.unwrap_or(News::Failed("its tasks have ended".into())),
                () = tokio::time::sleep_until(ends) => News::Services(listed.clone()),
            };
            match next {
                News::Failed(why) => return Err(why),
                News::Nothing => voice.heard(),
                News::Filtered(now) => filtered = now,
                News::Services(now) => {
                    watches.retain(|name, _| now.contains(name));
                    for gone in self.gone(&now) {
                        tracing::info!(service = gone, "Consul does not list it any more");
                        voice.say(&gone, Event::Reset(Vec::new())).await?;
                    }
                    ask.count(now.len());
                    for name in
                        now.iter().filter(|name| !watches.contains_key(*name)).cloned().collect::<Vec<_>>()
                    {
                        let watch = Watch(tasks.spawn(ask.clone().service(name.clone())));
                        watches.insert(name, watch);
                    }
                    match &mut waiting {
                        None => waiting = Some(now.clone()),
                        Some(waiting) => waiting.retain(|name| now.contains(name)),
                    }
                    listed = now;
                    voice.heard();
                }
                News::Service(name, entries) => {
                    // That all of them are gone the list says, and may be held.
                    let emptied =
                        entries.is_empty() && self.said.get(&name).is_some_and(|known| !known.is_empty());
                    if watches.contains_key(&name) && !emptied {
                        let items = self.convert(&name, &entries);
                        voice.say(&name, Event::Reset(items)).await?;
                    }
                    if let Some(waiting) = &mut waiting {
                        waiting.remove(&name);
                    }
                }
            }
            self.tell(voice, filtered);
            if !whole && waiting.as_ref().is_some_and(BTreeSet::is_empty) {
                whole = true;
                voice.whole().await?;
            }
        }
    }
}

/// What the tasks of one connection share.
#[derive(Clone)]
struct Ask {
    http: Arc<Http>,
    news: mpsc::Sender<News>,
    /// One for each connection but that of the list.
    places: Arc<Semaphore>,
    /// How many services there are.
    all: Arc<std::sync::atomic::AtomicUsize>,
    settings: Arc<ConsulSettings>,
}

impl Ask {
    fn count(&self, services: usize) {
        self.all.store(services, std::sync::atomic::Ordering::Relaxed);
    }

    /// How long a query of a service may hold its connection.
    fn wait(&self) -> Duration {
        let (all, places) =
            (self.all.load(std::sync::atomic::Ordering::Relaxed), self.settings.connections - 1);
        let most = Duration::from_secs(self.settings.wait_seconds);
        if all <= places { most } else { (ROUND * places as u32 / all.max(1) as u32).min(most) }
    }

    /// Asks for the list of services for ever.
    async fn services(self) {
        let wait = Duration::from_secs(self.settings.wait_seconds);
        let mut index = Index::default();
        let mut last = None;
        loop {
            index.pace().await;
            let asked = self.http.query("/v1/catalog/services", &[], index.of_last(), wait).await;
            let read = asked
                .and_then(|answer| Ok((read::<BTreeMap<String, Option<Vec<String>>>>(&answer)?, answer)));
            let (services, answer) = match read {
                Ok(read) => read,
                Err(why) => return drop(self.news.send(News::Failed(why)).await),
            };
            index.take(answer.index);
            let wanted = |name: &String, tags: &Option<Vec<String>>| {
                let tagged = |tag: &String| tags.iter().flatten().any(|other| other == tag);
                name != OWN
                    && (self.settings.services.is_empty() || self.settings.services.contains(name))
                    && self.settings.tag.as_ref().is_none_or(tagged)
            };
            let now: BTreeSet<String> = services
                .into_iter()
                .filter(|(name, tags)| wanted(name, tags))
                .map(|(name, _)| name)
                .collect();
            let same = last.as_ref() == Some(&now);
            last = Some(now.clone());
            let told = match same {
                true => self.news.send(News::Nothing).await,
                false => self.news.send(News::Services(now)).await,
            };
            if told.is_err() || self.news.send(News::Filtered(answer.filtered)).await.is_err() {
                return;
            }
        }
    }

    /// Asks for the instances of a service for ever.
    async fn service(self, name: String) {
        let path = format!("/v1/health/service/{}", http::escaped(&name));
        let tag = self.settings.tag.clone();
        let more: Vec<(&str, &str)> = tag.iter().map(|tag| ("tag", tag.as_str())).collect();
        let mut index = Index::default();
        let mut last = None;
        loop {
            index.pace().await;
            let Ok(place) = self.places.acquire().await else { return };
            let asked = self.http.query(&path, &more, index.of_last(), self.wait()).await;
            drop(place);
            let read = asked.and_then(|answer| Ok((read::<Vec<Entry>>(&answer)?, answer)));
            let news = match read {
                Err(why) => News::Failed(why),
                Ok((entries, answer)) => {
                    index.take(answer.index);
                    if last.as_ref() == Some(&entries) {
                        News::Nothing
                    } else {
                        last = Some(entries.clone());
                        News::Service(name.clone(), entries)
                    }
                }
            };
            let over = matches!(news, News::Failed(_));
            if self.news.send(news).await.is_err() || over {
                return;
            }
        }
    }
}

fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, String> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| format!("Consul's answer to {} cannot be read: {error}", answer.path))
}

/// The index of one query, and its pace.
#[derive(Default)]
struct Index {
    last: u64,
    asked: Option<Instant>,
}

impl Index {
    /// The one to wait beyond; nothing: what there is now is wanted.
    fn of_last(&self) -> Option<u64> {
        (self.last > 0).then_some(self.last)
    }

    /// One that goes backwards is of another history (a restore, a new leader): then what there is is asked for anew. Zero would
    /// not wait at all.
    fn take(&mut self, index: u64) {
        self.last = if index < self.last { 0 } else { index.max(1) };
    }

    async fn pace(&mut self) {
        if let Some(asked) = self.asked {
            tokio::time::sleep_until(asked + LEAST).await;
        }
        self.asked = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests;
