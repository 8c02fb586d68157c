//! Consul: one blocking query tells which services there are, and one for each of them its instances and their health.
//!
//! ```text
//! /v1/catalog/services ──▶ which there are ──▶ /v1/health/service/NAME, each a task ──▶ Reset of the part NAME
//! ```
//!
//! A Consul that suddenly has much less than it had has more likely lost it than that all of it went: what is missing is held, and said.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::parts::{Missing, Parts};
use super::{Event, Item, MOST_PROBLEMS, Problem, Registry, Voice};

mod ask;
mod entry;
mod http;
pub(super) mod writer;

use ask::{Ask, News};
use http::Http;

/// After a Consul began another history: so long its agents may take to say again what they have.
const RECOVERY: Duration = Duration::from_secs(600);

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
    /// Seconds of answers that what seems lost is held. Default 3600.
    pub hold_seconds: u64,
    /// Whether what is registered here in `namespace` is registered at this agent. Default false.
    pub register: bool,
    /// Seconds that what we registered is well without us. Default 30.
    pub ttl_seconds: u32,
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
            register: false,
            ttl_seconds: 30,
        }
    }
}

impl ConsulSettings {
    /// What cannot work.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<(), String> {
        let tls = [self.ca_file.is_some(), self.cert_file.is_some(), self.server_name.is_some()];
        if !http::place(&self.address)?.tls && tls.contains(&true) {
            return Err(
                "caFile, certFile, serverName: they are for https://, and address is http://".to_owned()
            );
        }
        if !(3..=10_000).contains(&self.connections) {
            return Err(format!("connections: {} is not from 3 to 10000", self.connections));
        }
        if !(1..=600).contains(&self.wait_seconds) {
            return Err(format!("waitSeconds: {} is not from 1 to 600", self.wait_seconds));
        }
        if !(5..=86_400).contains(&self.ttl_seconds) {
            return Err(format!("ttlSeconds: {} is not from 5 to 86400", self.ttl_seconds));
        }
        if self.register && self.datacenter.is_some() {
            return Err("register, datacenter: an agent registers in its own datacenter only".to_owned());
        }
        if self.hold_seconds > 31 * 24 * 3600 {
            return Err(format!("holdSeconds: {} is more than 31 days", self.hold_seconds));
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
    origin: Arc<str>,
    parts: Parts,
    /// Of the last list.
    index: u64,
    /// When it began another history.
    begun_anew: Option<Instant>,
    /// When it last said anything.
    heard: Option<Instant>,
    /// Services that are asked for in vain.
    trouble: BTreeMap<String, String>,
    /// Whose answers do not show everything; of the list itself under no name.
    filtered: BTreeSet<String>,
}

/// Ends with its task.
struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Consul {
    /// Nothing is asked yet. `origin` is who we are: what we wrote there is not read.
    pub fn new(settings: ConsulSettings, origin: Arc<str>) -> Self {
        let parts = Parts::new(Duration::from_secs(settings.hold_seconds));
        let (trouble, filtered) = (BTreeMap::new(), BTreeSet::new());
        Self { settings, origin, parts, index: 0, begun_anew: None, heard: None, trouble, filtered }
    }

    /// The list was answered. An index smaller than that of the last is another history's: a restore, or a start without data.
    fn answered(&mut self, index: u64, filtered: bool) {
        if index > 0 && index < self.index {
            self.begun_anew = Some(Instant::now());
        }
        self.index = index;
        self.see(String::new(), filtered);
    }

    fn see(&mut self, part: String, filtered: bool) {
        match filtered {
            true => self.filtered.insert(part),
            false => self.filtered.remove(&part),
        };
    }

    /// What is missing may be on its way back.
    fn is_recovering(&self) -> bool {
        self.begun_anew.is_some_and(|since| since.elapsed() < RECOVERY)
    }

    fn tell(&self, voice: &Voice) {
        let token = (!self.filtered.is_empty()).then(|| {
            let text = "the token may not read everything (results are filtered by ACLs): give it service:read and node:read; what it does \
                        not show any more stays as it was";
            Problem::of_part("token", text.to_owned())
        });
        let trouble = self.trouble.iter().map(|(part, why)| Problem::of_part(part, why.clone()));
        let all = token.into_iter().chain(trouble).chain(self.parts.problems());
        voice.problems(all.take(MOST_PROBLEMS).collect());
    }
}

/// What one connection has heard.
#[derive(Default)]
struct Connection {
    listed: Option<BTreeSet<String>>,
    watches: BTreeMap<String, Watch>,
    /// Listed first, and not heard of yet.
    waiting: BTreeSet<String>,
    whole: bool,
}

impl Consul {
    async fn services(
        &mut self,
        now: BTreeSet<String>,
        connection: &mut Connection,
        voice: &Voice,
    ) -> Result<Vec<String>, String> {
        if connection.listed.is_none() {
            connection.waiting.clone_from(&now);
        }
        let hidden = self.filtered.contains("");
        for (part, left) in self.parts.list(&now, hidden, self.is_recovering(), Instant::now()) {
            tracing::info!(service = part, "Consul does not list it any more");
            voice.say(&part, Event::Reset(left)).await?;
        }
        // One that the token may hide is asked for on: its own answer tells.
        let asked = |name: &String| now.contains(name) || (hidden && self.parts.has(name));
        connection.watches.retain(|name, _| asked(name));
        self.trouble.retain(|name, _| asked(name));
        self.filtered.retain(|name| name.is_empty() || asked(name));
        connection.waiting.retain(|name| now.contains(name));
        let of_before = self.parts.names().filter(|name| hidden && !now.contains(*name));
        let all = now.iter().chain(of_before);
        let new = all.filter(|name| !connection.watches.contains_key(*name)).cloned().collect();
        connection.listed = Some(now);
        Ok(new)
    }

    async fn take(&mut self, news: News, connection: &mut Connection, voice: &Voice) -> Result<(), String> {
        match news {
            News::Service { name, rows, filtered, back } if connection.watches.contains_key(&name) => {
                if back {
                    self.begun_anew = Some(Instant::now());
                }
                let listed = connection.listed.as_ref().is_some_and(|listed| listed.contains(&name));
                let missing = match filtered {
                    true => Missing::Hidden,
                    false if self.is_recovering() => Missing::Lost,
                    false if rows.is_empty() && listed => Missing::Emptied,
                    false => Missing::Gone,
                };
                self.trouble.remove(&name);
                self.see(name.clone(), filtered);
                let said = rows.iter().map(|row| row.read(&self.settings, &self.origin));
                let items = self.parts.part(&name, said, missing, Instant::now());
                voice.say(&name, Event::Reset(items)).await?;
                connection.waiting.remove(&name);
            }
            News::Trouble { name, why } if connection.watches.contains_key(&name) => {
                // Anybody who may register there could keep us from starting: after two answers that are none, nobody waits for it.
                if self.trouble.insert(name.clone(), why).is_some() {
                    connection.waiting.remove(&name);
                }
            }
            News::Failed(why) => return Err(why),
            // Of one that has gone meanwhile.
            News::Service { .. } | News::Trouble { .. } => {}
            News::Answered { .. } | News::Services(_) | News::Nothing => voice.heard(),
        }
        Ok(())
    }
}

impl Registry for Consul {
    fn recall(&mut self, said: &mut BTreeMap<String, Vec<Item>>) -> bool {
        let before = said.len();
        let wanted = &self.settings.services;
        said.retain(|part, _| wanted.is_empty() || wanted.contains(part));
        // Of other services than before nothing has been said yet.
        if said.is_empty() && before > 0 {
            return false;
        }
        self.parts.recall(said);
        true
    }

    async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
        let settings = self.settings.clone();
        let http = tokio::task::spawn_blocking(move || Http::open(&settings)).await;
        let http = http.map_err(|error| error.to_string())??;
        let (news, mut heard) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        let ask = Ask::new(http, news, self.settings.clone());
        tasks.spawn(ask.clone().services());
        let mut connection = Connection::default();
        loop {
            let ends = connection.listed.as_ref().and_then(|_| self.parts.hold_ends());
            let next = tokio::select! {
                next = heard.recv() => next.unwrap_or(News::Failed("its tasks have ended".into())),
                () = async { sleep_until(ends.unwrap_or_else(Instant::now)).await }, if ends.is_some() => {
                    for (part, left) in self.parts.let_go(Instant::now()) {
                        tracing::warn!(service = part, "Consul has been without it for too long; what was held goes");
                        voice.say(&part, Event::Reset(left)).await?;
                    }
                    self.tell(voice);
                    continue;
                }
            };
            if !matches!(next, News::Failed(_)) {
                let now = Instant::now();
                if connection.listed.is_none()
                    && let Some(before) = self.heard
                {
                    self.parts.pause(now.saturating_duration_since(before));
                }
                self.heard = Some(now);
            }
            if matches!(next, News::Nothing) {
                voice.heard();
                continue;
            }
            match next {
                News::Services(now) => {
                    ask.count(now.len());
                    for name in self.services(now, &mut connection, voice).await? {
                        let watch = Watch(tasks.spawn(ask.clone().service(name.clone())));
                        connection.watches.insert(name, watch);
                    }
                    voice.heard();
                }
                News::Answered { index, filtered } => {
                    self.answered(index, filtered);
                    voice.heard();
                }
                other => self.take(other, &mut connection, voice).await?,
            }
            self.tell(voice);
            if !connection.whole && connection.listed.is_some() && connection.waiting.is_empty() {
                connection.whole = true;
                voice.whole().await?;
            }
            // All of it is back: from now on what goes has gone.
            if connection.whole && !self.parts.is_holding() {
                self.begun_anew = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
