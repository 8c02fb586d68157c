//! ZooKeeper: nodes below paths of the settings are instances, and live as long as the sessions of those who made them.
//!
//! ```text
//! session ──▶ sync ──▶ every node once, each with a watch ──▶ Reset of the part NAMESPACE/SERVICE
//!    ▲                        ▲─── an event ───┤
//!    └── pause ◀── failed, silent, expired ────┘
//! ```
//!
//! Each connection is a session of its own, and reads everything anew: what came between is in it. One whose last change is before the one
//! that was heard is of another history (a restore, a start without data): what it does not have is held.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::keys::Keys;
use super::{Event, Item, MOST_PROBLEMS, Problem, Registry, Voice};

mod client;
mod layout;
mod tree;
mod wire;
pub(super) mod writer;

use client::{Answer, Session};
use tree::{News, Question, Tree};
use wire::{Out, op, xid};

/// After it began another history: so long others may take to register again.
const RECOVERY: Duration = Duration::from_secs(600);
/// Of a session that only reads; the server says what it takes of it.
const SESSION: Duration = Duration::from_secs(15);
/// Questions under way at once; a server takes a thousand of all its clients.
const AT_ONCE: usize = 200;
/// What changes within is one change: many sessions that end together are told from one that ends.
const TURN: Duration = Duration::from_millis(100);
/// A node that may not be read is asked again.
const AGAIN: Duration = Duration::from_secs(60);
/// And it waits no longer than this.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// A ZooKeeper of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ZooKeeperSettings {
    /// Its servers, tried in turn; `tls://HOST:PORT` for TLS. Default `127.0.0.1:2181`.
    pub endpoints: Vec<String>,
    /// Below these are instances in Curator's layout, or in ours. Default `/services`.
    pub paths: Vec<String>,
    /// Below this are Dubbo's interfaces, such as `/dubbo`. Default none.
    pub dubbo: Option<String>,
    /// What services are called here, by what they are called there.
    pub names: BTreeMap<String, String>,
    /// The namespace that its services get here. Default the one that a value says, else `default`.
    pub namespace: Option<String>,
    /// Whether instances in the layouts of others have a sidecar, where their metadata do not say `sidecar`. Default false.
    pub sidecar: bool,
    /// Who we are (scheme `digest`), with `passwordFile`.
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
    /// Whether what is registered here is written below the first path, in Curator's layout. Default false.
    pub register: bool,
    /// The class of the payload that we write; empty: none, and no metadata. Default Spring Cloud's.
    pub payload_class: String,
    /// Seconds that what we wrote outlives us. Default 30.
    pub ttl_seconds: u32,
}

impl Default for ZooKeeperSettings {
    fn default() -> Self {
        Self {
            endpoints: vec!["127.0.0.1:2181".into()],
            paths: vec!["/services".into()],
            dubbo: None,
            names: BTreeMap::new(),
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
            payload_class: "org.springframework.cloud.zookeeper.discovery.ZookeeperInstance".into(),
            ttl_seconds: 30,
        }
    }
}

/// One that a node can have, and that is not all of the tree.
fn is_path(path: &str) -> bool {
    let step =
        |step: &str| !step.is_empty() && step != "." && step != ".." && !step.chars().any(char::is_control);
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(step))
}

impl ZooKeeperSettings {
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
                    "endpoints[{i}]: is not tls://, but caFile, certFile and serverName are for that"
                ));
            }
        }
        let all: Vec<&String> = self.paths.iter().chain(&self.dubbo).collect();
        if all.is_empty() {
            return Err("paths, dubbo: at least one path is needed".to_owned());
        }
        for (i, path) in all.iter().enumerate() {
            if !is_path(path) {
                return Err(format!("paths, dubbo: {path:?} is no path of a node; write /services"));
            }
            let within = |other: &&&String| format!("{path}/").starts_with(&format!("{other}/"));
            if let Some(other) =
                all.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, other)| other).find(within)
            {
                return Err(format!("paths, dubbo: {path:?} is within {other:?}; leave it out"));
            }
        }
        if self.register && self.paths.is_empty() {
            return Err("register, paths: what is registered here is written below the first path".to_owned());
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

    /// What a service is called here.
    fn name(&self, there: &str) -> String {
        self.names.get(there).map_or(there, String::as_str).to_owned()
    }
}

/// One ZooKeeper, and what it said.
pub struct ZooKeeper {
    settings: Arc<ZooKeeperSettings>,
    origin: Arc<str>,
    /// Which endpoint is tried first.
    first: usize,
    keys: Keys,
    /// The last change that was heard.
    history: i64,
    begun_anew: Option<Instant>,
    heard: Option<Instant>,
}

/// What one connection has heard.
struct Connection {
    tree: Tree,
    /// To be asked, and asked.
    queue: VecDeque<Question>,
    asked: VecDeque<(i32, Question)>,
    /// Nodes that said something, until all were asked once.
    seen: Option<BTreeSet<String>>,
    /// Parts that are to be said, the first and the last change of them.
    touched: BTreeSet<String>,
    since: Option<(Instant, Instant)>,
    /// When nodes that may not be read are asked again.
    again: Instant,
}

impl Connection {
    fn new(settings: &Arc<ZooKeeperSettings>, origin: &Arc<str>) -> Self {
        let tree = Tree::new(settings.clone(), origin.clone());
        Self {
            queue: tree.begin().into(),
            tree,
            asked: VecDeque::new(),
            seen: Some(BTreeSet::new()),
            touched: BTreeSet::new(),
            since: None,
            again: Instant::now() + AGAIN,
        }
    }

    /// When what changed is said: nothing more has come for a while, or it came for too long.
    fn due(&self) -> Option<Instant> {
        let (first, last) = self.since.filter(|_| self.seen.is_none())?;
        let is_idle = self.queue.is_empty() && self.asked.is_empty();
        Some(if is_idle { (last + TURN).min(first + LONGEST_TURN) } else { first + LONGEST_TURN })
    }
}

impl ZooKeeper {
    /// Nothing is asked yet. `origin` is who we are: what we wrote there is not read.
    pub fn new(settings: ZooKeeperSettings, origin: Arc<str>) -> Self {
        let keys = Keys::new(Duration::from_secs(settings.hold_seconds), settings.names.clone());
        let settings = Arc::new(settings);
        Self { settings, origin, first: 0, keys, history: 0, begun_anew: None, heard: None }
    }

    fn is_recovering(&self) -> bool {
        self.begun_anew.is_some_and(|since| since.elapsed() < RECOVERY)
    }

    /// It has got to a change.
    fn is_at(&mut self, zxid: i64) {
        if zxid > 0 && zxid < self.history {
            tracing::warn!(
                zxid,
                "ZooKeeper has begun another history; what it does not have any more is held"
            );
            self.begun_anew = Some(Instant::now());
            self.history = 0;
        }
        self.history = self.history.max(zxid);
        self.heard = Some(Instant::now());
    }

    /// What nodes say now.
    fn put(&mut self, news: News, connection: &mut Connection) {
        let before = connection.touched.len();
        for (path, said) in news {
            if let Some(seen) = &mut connection.seen {
                if said.is_some() {
                    seen.insert(path.clone())
                } else {
                    seen.remove(&path)
                };
            }
            self.keys.put(&path, said, &mut connection.touched);
        }
        if connection.touched.len() > before || connection.tree.untold {
            let now = Instant::now();
            connection.since = Some((connection.since.map_or(now, |(first, _)| first), now));
        }
    }

    /// All nodes have been asked once: what has not been seen has gone.
    async fn listed(
        &mut self,
        seen: &BTreeSet<String>,
        connection: &mut Connection,
        voice: &Voice,
    ) -> Result<(), String> {
        let forbidden = |key: &&String| {
            let mut paths = connection.tree.forbidden.iter();
            paths.any(|path| {
                key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        let gone = self.keys.names().filter(|key| !seen.contains(*key) && !forbidden(key));
        let gone: Vec<String> = gone.cloned().collect();
        connection.touched.extend(self.keys.all_parts());
        for key in gone {
            self.keys.put(&key, None, &mut connection.touched);
        }
        self.say(connection, voice).await?;
        voice.whole().await
    }

    async fn say(&mut self, connection: &mut Connection, voice: &Voice) -> Result<(), String> {
        (connection.since, connection.tree.untold) = (None, false);
        let touched = std::mem::take(&mut connection.touched);
        self.keys.hide(&connection.tree.forbidden);
        for (part, items) in self.keys.settle(touched, self.is_recovering(), Instant::now()) {
            voice.say(&part, Event::Reset(items)).await?;
        }
        // All of it is back: from now on what goes has gone.
        if !self.keys.parts.is_holding() {
            self.begun_anew = None;
        }
        self.tell(connection, voice);
        Ok(())
    }

    fn tell(&self, connection: &Connection, voice: &Voice) {
        let problem = |paths: &BTreeSet<String>, what: &str| {
            let of = |path: &String| Problem::of_part(path, what.to_owned());
            paths.iter().map(of).collect::<Vec<_>>()
        };
        let missing =
            problem(&connection.tree.missing, "there is no such node; what is made below it will be seen");
        let what = "it may not be read; give the user read on it, and what is below it stays as it was";
        let forbidden = problem(&connection.tree.forbidden, what);
        let all = missing.into_iter().chain(forbidden).chain(self.keys.parts.problems());
        voice.problems(all.take(MOST_PROBLEMS).collect());
    }

    /// Takes an answer or an event.
    fn take(&mut self, answer: Answer, connection: &mut Connection, session: &Session) -> Result<(), String> {
        self.is_at(answer.zxid);
        let bad = |why: String| session.said(&why);
        let mut body = answer.body;
        let mut news = News::new();
        match answer.xid {
            xid::PING => session.good(&Answer { body, ..answer }, "keeping the session")?,
            xid::EVENT => {
                let (kind, path) = wire::happened(&mut body).map_err(bad)?;
                connection.queue.extend(connection.tree.event(kind, path, &mut news));
            }
            number => {
                let asked = connection.asked.pop_front().filter(|(asked, _)| *asked == number);
                let (_, question) = asked.ok_or_else(|| bad("it answers what was not asked".to_owned()))?;
                let next =
                    connection.tree.answered(&question, answer.code, &mut body, &mut news).map_err(bad)?;
                connection.queue.extend(next);
            }
        }
        self.put(news, connection);
        Ok(())
    }
}

impl Registry for ZooKeeper {
    fn recall(&mut self, said: &mut BTreeMap<String, Vec<Item>>) -> bool {
        self.keys.recall(said);
        true
    }

    async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
        let first = self.first;
        // The next attempt is at another server.
        self.first = (first + 1) % self.settings.endpoints.len();
        let session = Session::open(&self.settings, first, SESSION, None).await;
        let mut session = session.map_err(client::Refused::text)?;
        // One that lags behind its leader would have begun another history.
        let path = self.settings.paths.iter().chain(&self.settings.dubbo).next().cloned().unwrap_or_default();
        let synced = session.call(op::SYNC, Out::new().text(&path)).await?;
        session.good(&synced, "synchronizing")?;
        if let Some(before) = self.heard {
            self.keys.parts.pause(before.elapsed());
        }
        self.is_at(synced.zxid);
        let mut connection = Connection::new(&self.settings, &self.origin);
        loop {
            while connection.asked.len() < AT_ONCE
                && let Some(question) = connection.queue.pop_front()
            {
                let (what, path) = match &question {
                    Question::Children(path) => (op::GET_CHILDREN, path),
                    Question::Data(path) => (op::GET_DATA, path),
                    Question::Exists(path) => (op::EXISTS, path),
                };
                let number = session.ask(what, Out::new().text(path).flag(true));
                connection.asked.push_back((number, question));
            }
            session.flush().await?;
            if connection.queue.is_empty()
                && connection.asked.is_empty()
                && let Some(seen) = connection.seen.take()
            {
                self.listed(&seen, &mut connection, voice).await?;
            }
            let is_refused = connection.seen.is_none() && !connection.tree.forbidden.is_empty();
            let (beat, due, ends) = (session.due(), connection.due(), self.keys.parts.hold_ends());
            let at = |time: Option<Instant>| time.unwrap_or_else(Instant::now);
            tokio::select! {
                answer = session.next() => {
                    self.take(answer?, &mut connection, &session)?;
                    // A long list is progress.
                    if connection.seen.is_none() { voice.is_there() } else { voice.heard() }
                }
                () = sleep_until(beat) => session.beat().await?,
                () = sleep_until(connection.again), if is_refused => {
                    connection.again = Instant::now() + AGAIN;
                    connection.queue.extend(connection.tree.again());
                }
                () = sleep_until(at(due)), if due.is_some() => self.say(&mut connection, voice).await?,
                () = sleep_until(at(ends)), if ends.is_some() && connection.seen.is_none() => {
                    for (part, left) in self.keys.parts.let_go(Instant::now()) {
                        tracing::warn!(service = part, "ZooKeeper has been without it for too long; what was held goes");
                        voice.say(&part, Event::Reset(left)).await?;
                    }
                    self.tell(&connection, voice);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
