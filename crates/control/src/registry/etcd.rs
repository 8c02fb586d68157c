//! etcd v3: every key under a prefix is an instance; they are listed once, and watched from the revision of that list.
//!
//! ```text
//! connect ──▶ list, page by page at one revision ──▶ watch from the next ──▶ Reset of the part NAMESPACE/SERVICE
//!    ▲                    ▲      compacted meanwhile ◀──┤
//!    └── pause ◀──────────┴─────── failed, silent ◀─────┘
//! ```
//!
//! The list is what there is: after an outage, a compaction, at another member. One whose revision is before what was heard, or of
//! another cluster, is of another history (a restore, a start without data): what it does not have is held.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::keys::Keys;
use super::parts::Said;
use super::{Event, Item, MOST_PROBLEMS, Registry, Voice};

mod client;
mod layout;
mod proto;
pub(super) mod writer;

use client::{Connection, Listing, PATIENCE};
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use proto::mvccpb::KeyValue;
use proto::mvccpb::event::EventType;

/// After it began another history: so long others may take to register again.
const RECOVERY: Duration = Duration::from_secs(600);
/// A watch without news is asked whether it is there.
const ASK: Duration = Duration::from_secs(10);
/// And must have said something within.
const SILENCE: Duration = Duration::from_secs(30);

/// An etcd of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EtcdSettings {
    /// Its members, tried in turn. Default `http://127.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// Every key that begins so is an instance. Default `/outrigger/instances/`.
    pub prefix: String,
    /// The namespace that its services get here. Default the one that a value says, else `default`.
    pub namespace: Option<String>,
    /// Whether instances in the layouts of others have a sidecar, where their metadata do not say `sidecar`. Default false.
    pub sidecar: bool,
    /// A user of its own, with `passwordFile`.
    pub user: Option<String>,
    /// A file with the user's password, read anew at each connection.
    pub password_file: Option<PathBuf>,
    /// Whom to trust, PEM. Default the system's roots.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain, PEM, where it asks for one.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// The name in its certificate. Default the endpoint's host.
    pub server_name: Option<String>,
    /// Seconds of answers that what seems lost is held. Default 3600.
    pub hold_seconds: u64,
    /// Whether what is registered here is written under the prefix. Default false.
    pub register: bool,
    /// Seconds that what we wrote outlives us. Default 30.
    pub ttl_seconds: u32,
}

impl Default for EtcdSettings {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            prefix: "/outrigger/instances/".into(),
            namespace: None,
            sidecar: false,
            user: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
            hold_seconds: 3600,
            register: false,
            ttl_seconds: 30,
        }
    }
}

impl EtcdSettings {
    /// What cannot work.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<(), String> {
        if self.endpoints.is_empty() {
            return Err("endpoints: at least one is needed".to_owned());
        }
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let place = client::place(endpoint).map_err(|why| format!("endpoints[{i}]: {why}"))?;
            let tls = [self.ca_file.is_some(), self.cert_file.is_some(), self.server_name.is_some()];
            if !place.tls && tls.contains(&true) {
                return Err(format!(
                    "endpoints[{i}]: is http://, but caFile, certFile and serverName are for https://"
                ));
            }
        }
        if self.prefix.len() < 2 || self.prefix.chars().any(char::is_control) {
            return Err(format!("prefix: {:?} is none; write /outrigger/instances/", self.prefix));
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Err("user, passwordFile: one needs the other".to_owned());
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err("certFile, keyFile: one needs the other".to_owned());
        }
        if !(5..=86_400).contains(&self.ttl_seconds) {
            return Err(format!("ttlSeconds: {} is not from 5 to 86400", self.ttl_seconds));
        }
        if self.hold_seconds > 31 * 24 * 3600 {
            return Err(format!("holdSeconds: {} is more than 31 days", self.hold_seconds));
        }
        Ok(())
    }
}

/// One etcd, and what it said.
pub struct Etcd {
    settings: EtcdSettings,
    origin: Arc<str>,
    /// Which endpoint is tried first.
    first: usize,
    keys: Keys,
    /// Cluster and revision that were heard last.
    history: Option<(u64, i64)>,
    begun_anew: Option<Instant>,
    heard: Option<Instant>,
}

impl Etcd {
    /// Nothing is asked yet. `origin` is who we are: what we wrote there is not read.
    pub fn new(settings: EtcdSettings, origin: Arc<str>) -> Self {
        let keys = Keys::new(Duration::from_secs(settings.hold_seconds), BTreeMap::new());
        Self { settings, origin, first: 0, keys, history: None, begun_anew: None, heard: None }
    }

    fn is_recovering(&self) -> bool {
        self.begun_anew.is_some_and(|since| since.elapsed() < RECOVERY)
    }

    fn read(&self, key: &KeyValue) -> (String, Said) {
        let name = String::from_utf8_lossy(&key.key).into_owned();
        let said = layout::read(&name, &key.value, &self.settings, &self.origin);
        (name, said)
    }

    async fn say(&mut self, touched: BTreeSet<String>, voice: &Voice) -> Result<(), String> {
        let recovering = self.is_recovering();
        for (part, items) in self.keys.settle(touched, recovering, Instant::now()) {
            voice.say(&part, Event::Reset(items)).await?;
        }
        // All of it is back: from now on what goes has gone.
        if !self.keys.parts.is_holding() {
            self.begun_anew = None;
        }
        self.tell(voice);
        Ok(())
    }

    fn tell(&self, voice: &Voice) {
        voice.problems(self.keys.parts.problems().take(MOST_PROBLEMS).collect());
    }

    /// This is all that there is.
    async fn listed(&mut self, listing: &Listing, voice: &Voice) -> Result<(), String> {
        let of_another =
            |(cluster, revision): (u64, i64)| cluster != listing.cluster || revision > listing.revision;
        if self.history.is_some_and(of_another) {
            tracing::warn!(
                revision = listing.revision,
                "etcd has begun another history; what it does not have any more is held"
            );
            self.begun_anew = Some(Instant::now());
        }
        if let Some(before) = self.heard {
            self.keys.parts.pause(before.elapsed());
        }
        self.heard(Some((listing.cluster, listing.revision)));
        let mut gone: BTreeSet<String> = self.keys.names().cloned().collect();
        let mut touched = self.keys.all_parts();
        for key in &listing.keys {
            let (name, said) = self.read(key);
            gone.remove(&name);
            self.keys.put(&name, Some(said), &mut touched);
        }
        for name in &gone {
            self.keys.put(name, None, &mut touched);
        }
        self.say(touched, voice).await?;
        voice.whole().await
    }

    fn heard(&mut self, history: Option<(u64, i64)>) {
        self.heard = Some(Instant::now());
        self.history = history.or(self.history);
    }

    /// Follows what comes after a list, until it has to be listed anew.
    async fn watched(
        &mut self,
        connection: &Connection,
        from: &Listing,
        voice: &Voice,
    ) -> Result<(), String> {
        let (ask, asks) = mpsc::channel(4);
        let create = WatchCreateRequest {
            key: self.settings.prefix.as_bytes().to_vec(),
            range_end: client::after(self.settings.prefix.as_bytes()),
            start_revision: from.revision + 1,
            progress_notify: true,
            fragment: true,
        };
        let request = |union| WatchRequest { request_union: Some(union) };
        let _ = ask.send(request(RequestUnion::CreateRequest(create))).await;
        let mut watch = connection.watch();
        let opened = timeout(PATIENCE, watch.watch(connection.request(ReceiverStream::new(asks)))).await;
        let mut answers = connection.answered("watching", opened)?;
        let (mut asked, mut said) = (Instant::now(), Instant::now());
        loop {
            let ends = self.keys.parts.hold_ends();
            let answer = tokio::select! {
                answer = answers.message() => answer.map_err(|status| connection.refused("watching", &status))?,
                () = sleep_until(asked + ASK) => {
                    if said.elapsed() > SILENCE {
                        return Err(connection.silent(SILENCE));
                    }
                    asked = Instant::now();
                    let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
                    let _ = ask.try_send(request(progress));
                    continue;
                }
                () = async { sleep_until(ends.unwrap_or_else(Instant::now)).await }, if ends.is_some() => {
                    for (part, left) in self.keys.parts.let_go(Instant::now()) {
                        tracing::warn!(service = part, "etcd has been without it for too long; what was held goes");
                        voice.say(&part, Event::Reset(left)).await?;
                    }
                    self.tell(voice);
                    continue;
                }
            };
            let Some(answer) = answer else { return Err(connection.ended()) };
            said = Instant::now();
            if !self.take(&answer, from, connection, voice).await? {
                return Ok(());
            }
        }
    }

    /// Takes one answer of a watch. Whether it goes on.
    async fn take(
        &mut self,
        answer: &WatchResponse,
        from: &Listing,
        connection: &Connection,
        voice: &Voice,
    ) -> Result<bool, String> {
        if answer.compact_revision > 0 {
            tracing::info!(
                revision = answer.compact_revision,
                "etcd has compacted what is to be watched; listing anew"
            );
            return Ok(false);
        }
        if answer.canceled {
            return Err(connection.canceled(&answer.cancel_reason));
        }
        let history = answer.header.as_ref().map(|header| (header.cluster_id, header.revision));
        // A watch of what is to come would be silent.
        if history.is_some_and(|(cluster, revision)| cluster != from.cluster || revision < from.revision) {
            return Err(connection.canceled("it has begun another history"));
        }
        self.heard(history);
        let mut touched = BTreeSet::new();
        for event in &answer.events {
            let Some(key) = &event.kv else { continue };
            match event.r#type() {
                EventType::Put => {
                    let (name, said) = self.read(key);
                    self.keys.put(&name, Some(said), &mut touched);
                }
                EventType::Delete => {
                    let name = String::from_utf8_lossy(&key.key);
                    self.keys.put(&name, None, &mut touched);
                }
            }
        }
        match touched.is_empty() {
            true => voice.heard(),
            false => self.say(touched, voice).await?,
        }
        Ok(true)
    }
}

impl Registry for Etcd {
    fn recall(&mut self, said: &mut BTreeMap<String, Vec<Item>>) -> bool {
        self.keys.recall(said);
        true
    }

    async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
        let first = self.first;
        // The next attempt is at another member.
        self.first = (first + 1) % self.settings.endpoints.len();
        let connection = Connection::open(&self.settings, first).await?;
        loop {
            let listing = connection.list().await?;
            self.listed(&listing, voice).await?;
            let from = Listing { keys: Vec::new(), ..listing };
            self.watched(&connection, &from, voice).await?;
        }
    }
}

#[cfg(test)]
mod tests;
