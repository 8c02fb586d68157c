//! Where instances and rules come from: a table of registries, each a row of the settings.
//!
//! ```text
//! row of the settings --open--> a Registry, followed by a task of its own --Word--> keeper: who has what
//!                                     `--> Health: connected, last heard, last error, what cannot be read
//! ```
//!
//! A registry says what it has, part by part (a file, a service): everything of a part, or what changed in it. The keeper keeps what
//! each said and decides who has what is claimed twice: the management API before the registries, these in the order of the
//! settings, within one the part whose name comes first. A registry that fails has said nothing: what it said last holds, and ages.
//!
//! To add one: a file here that implements [`Registry`], a field in [`Row`], an arm in [`open`]. [`api`] holds the rules of registrations
//! over the management API, [`lease`] when they expire, [`claim`] whose an address is.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use outrigger_rules::{Object, ParseOptions};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::instance::Instance;

pub mod api;
pub mod claim;
pub mod consul;
pub mod dns;
pub mod etcd;
pub mod file;
mod foreign;
pub mod health;
mod keys;
pub mod kubernetes;
pub mod lease;
mod parts;
mod row;
pub mod write;
pub mod zookeeper;

use health::{Health, Registered, Table};
pub use row::Row;
use write::{Wanted, Writer};

/// Words on their way to the keeper; a registry waits beyond that.
const WORDS: usize = 64;
/// Before a registry that failed is tried again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// At a start, for a registry to say something of what it has; all of it takes as long as it takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Problems told of one registry.
const MOST_PROBLEMS: usize = 100;
/// In the metadata of what we write to a registry: which control plane did, so that it does not come back as somebody else.
pub const ORIGIN: &str = "outrigger-origin";

/// One thing that a registry has.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A running copy of a service.
    Instance(Arc<Instance>),
    /// A rule; a service or a workload that is described is one, too.
    Rule(Box<Object>),
}

/// Which thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// By its id.
    Instance(String),
    /// By `Kind/namespace/name`.
    Rule(String),
}

/// What a registry says of a part.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It has exactly these.
    Reset(Vec<Item>),
    /// It has this, new or changed.
    Upsert(Item),
    /// It has this no longer.
    Remove(Key),
}

/// Who says something. Ordered as they go before each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// Its place in the table.
    pub place: usize,
    /// Its name in the settings.
    pub registry: Arc<str>,
    /// Which part of it: a file, a service.
    pub part: String,
}

impl Source {
    /// The management API.
    pub const API: &str = "api";

    /// What is registered and applied over the management API.
    pub fn api() -> Arc<Self> {
        Arc::new(Self { place: 0, registry: Self::API.into(), part: String::new() })
    }

    /// Whether it is the management API.
    pub fn is_api(&self) -> bool {
        self.place == 0
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_api(), self.part.as_str()) {
            (true, _) => f.write_str("the management API"),
            (false, "") => write!(f, "registry \"{}\"", self.registry),
            (false, part) => write!(f, "registry \"{}\" ({part})", self.registry),
        }
    }
}

/// What is wrong in a part of a registry. What it said of the part before holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// The registry's name in the settings.
    #[serde(default)]
    pub registry: String,
    /// The file, or which part of another registry.
    pub file: String,
    /// The line, from 1; 0 when it belongs to none.
    pub line: u64,
    /// What is wrong.
    pub message: String,
}

impl Problem {
    fn of_part(part: &str, message: String) -> Self {
        Self { registry: String::new(), file: part.to_owned(), line: 0, message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

/// Something that knows what there is.
pub trait Registry: Send + 'static {
    /// Connects, says everything that there is, then what changes, and returns when that fails. Then it is called again, after a
    /// pause, and says everything anew: parts that went in between with an empty `Reset`. What it has said holds until then.
    ///
    /// # Errors
    /// Why the connection ended: what, where, what to do.
    fn follow(&mut self, voice: &Voice) -> impl Future<Output = Result<(), String>> + Send;
}

/// What goes from a registry to whoever listens.
#[derive(Debug)]
pub enum Word {
    /// News of a part.
    Event(Arc<Source>, Event),
    /// Everything has been said once.
    Whole,
}

/// How a registry says what it has, and how it is.
pub struct Voice {
    place: usize,
    registry: Arc<str>,
    words: mpsc::Sender<Word>,
    health: Arc<Health>,
}

impl Voice {
    /// Says something of a part. Waits when the keeper is behind.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub async fn say(&self, part: &str, event: Event) -> Result<(), String> {
        self.health.heard();
        let source = Source { place: self.place, registry: self.registry.clone(), part: part.to_owned() };
        self.send(Word::Event(Arc::new(source), event)).await
    }

    /// Everything that there is has been said.
    ///
    /// # Errors
    /// As [`Voice::say`].
    pub async fn whole(&self) -> Result<(), String> {
        self.health.heard();
        self.send(Word::Whole).await
    }

    /// There is nothing new, and the connection is good.
    pub fn heard(&self) {
        self.health.heard();
    }

    /// The connection is good, and that is all: no word of what there is.
    pub fn is_there(&self) {
        self.health.is_there();
    }

    /// What cannot be read at the moment, by part; the rest is good.
    pub fn problems(&self, mut problems: Vec<Problem>) {
        problems.iter_mut().for_each(|problem| problem.registry = self.registry.to_string());
        let before = self.health.problems();
        let before: HashSet<&Problem> = before.iter().collect();
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            tracing::error!(registry = %self.registry, "{problem}; what it said before stays in force");
        }
        self.health.set_problems(problems);
    }

    async fn send(&self, word: Word) -> Result<(), String> {
        self.words.send(word).await.map_err(|_| "nobody listens".to_owned())
    }

    #[cfg(test)]
    pub(crate) fn of_a_test() -> (Self, mpsc::Receiver<Word>) {
        let (words, heard) = mpsc::channel(WORDS);
        (Self { place: 1, registry: "test".into(), words, health: Arc::default() }, heard)
    }
}

/// What a registry that was opened says.
pub struct Heard {
    row: Registered,
    words: mpsc::Receiver<Word>,
}

impl Heard {
    /// All that it has, for a first world.
    ///
    /// # Errors
    /// When it does not say so in time, or files have errors. To go on without would take instances away from proxies that
    /// serve well without us.
    pub async fn first(&mut self) -> anyhow::Result<Vec<(Arc<Source>, Event)>> {
        let Registered { name, kind, health } = &self.row;
        let mut said = Vec::new();
        // Files are the operator's own, and read as long as it takes. Others may have much to say, but not be silent for long.
        let files = *kind == "file";
        let patience = if files { Duration::MAX } else { PATIENCE };
        let mut words = health.words();
        let whole = loop {
            match tokio::time::timeout(patience, self.words.recv()).await {
                Ok(Some(Word::Event(source, event))) => said.push((source, event)),
                Ok(Some(Word::Whole)) => break true,
                // A cluster's listing is many pages, and said when it is whole.
                Err(_) if health.words() > words => {
                    words = health.words();
                    tracing::info!(registry = %name, words, "it has not said all that it has yet; waiting");
                }
                // Whoever followed it has ended, or says nothing.
                Ok(None) | Err(_) => break false,
            }
        };
        if !whole {
            let why = health.state().error.map_or_else(|| "no answer".to_owned(), |error| error.message);
            bail!(
                "registry \"{name}\" ({kind}) has not said what it has: {why}. Without it the instances would be taken from sidecars, \
                 which go on with what they have: start again when it answers, or take it out of the settings"
            );
        }
        let problems = health.problems();
        // What is wrong in a catalogue that others write stops nobody.
        if files && !problems.is_empty() {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            bail!("registry \"{name}\" ({kind}) cannot be used: {}", problems.join("; "));
        }
        Ok(said)
    }

    /// What it says next, in order, as much as there is; nothing when it is gone.
    pub async fn next(&mut self) -> Option<Vec<(Arc<Source>, Event)>> {
        let mut words = Vec::with_capacity(WORDS);
        if self.words.recv_many(&mut words, WORDS).await == 0 {
            return None;
        }
        let news = |word| match word {
            Word::Event(source, event) => Some((source, event)),
            Word::Whole => None,
        };
        Some(words.into_iter().filter_map(news).collect())
    }
}

/// Registries that are followed.
pub struct Opened {
    /// How each is.
    pub table: Table,
    /// What each says.
    pub heard: Vec<Heard>,
    /// Takes what is registered here, for those that are to have it; closed where none is.
    pub wanted: watch::Sender<Arc<Wanted>>,
}

/// Begins to follow every registry of the settings. `options` say how rules are read, `origin` who we are in registries.
///
/// # Errors
/// When a row cannot work.
pub fn open(
    rows: &[Row],
    options: &ParseOptions,
    origin: &Arc<str>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Opened> {
    let mut table = Table::new();
    let mut heard = Vec::new();
    let (wanted, wants) = watch::channel(Arc::default());
    for row in rows {
        let registered = table.add(row.name(), row.kind());
        let (words, receiver) = mpsc::channel(WORDS);
        let health = registered.health.clone();
        let voice = Voice { place: table.len() - 1, registry: registered.name.clone(), words, health };
        heard.push(Heard { row: registered, words: receiver });
        let mut following = Following { tasks: &mut *tasks, wants: &wants, voice };
        let by = || origin.clone();
        if let Some(files) = &row.file {
            following.begin(file::FileRegistry::new(files.paths.clone(), options.clone()));
        } else if let Some(consul) = &row.consul {
            following.write(consul.register, || consul::writer::ConsulWriter::new(consul.clone(), by()));
            following.begin(consul::Consul::new(consul.clone(), by()));
        } else if let Some(names) = &row.dns {
            following.begin(dns::Dns::new(names.clone()));
        } else if let Some(etcd) = &row.etcd {
            following.write(etcd.register, || etcd::writer::EtcdWriter::new(etcd.clone(), by()));
            following.begin(etcd::Etcd::new(etcd.clone(), by()));
        } else if let Some(keeper) = &row.zookeeper {
            following
                .write(keeper.register, || zookeeper::writer::ZooKeeperWriter::new(keeper.clone(), by()));
            following.begin(zookeeper::ZooKeeper::new(keeper.clone(), by()));
        } else if let Some(cluster) = &row.kubernetes {
            following.begin(kubernetes::Kubernetes::new(cluster.clone(), options.clone()));
        }
    }
    drop(wants);
    Ok(Opened { table, heard, wanted })
}

/// A row that is about to be followed.
struct Following<'a> {
    tasks: &'a mut JoinSet<()>,
    wants: &'a watch::Receiver<Arc<Wanted>>,
    voice: Voice,
}

impl Following<'_> {
    fn begin<R: Registry>(self, registry: R) {
        self.tasks.spawn(keep(registry, self.voice));
    }

    /// Writes to it, too, where that is wanted.
    fn write<W: Writer>(&mut self, is_wanted: bool, writer: impl FnOnce() -> W) {
        if is_wanted {
            let (registry, health) = (self.voice.registry.clone(), self.voice.health.clone());
            self.tasks.spawn(write::write(writer(), registry, self.wants.clone(), health));
        }
    }
}

/// Says of a registry that nobody follows it any more.
struct Followed(Arc<Health>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.failed("its task has ended; restart the control plane".to_owned());
    }
}

/// Follows a registry for ever.
async fn keep<R: Registry>(mut registry: R, voice: Voice) {
    let _followed = Followed(voice.health.clone());
    let mut pause = PAUSE.0;
    loop {
        let begun = voice.health.words();
        let ended = registry.follow(&voice).await;
        if voice.words.is_closed() {
            return;
        }
        let why = ended.err().unwrap_or_else(|| "the connection ended".to_owned());
        tracing::error!(registry = %voice.registry, "{why}; what it said before stays in force, trying again in {pause:?}");
        voice.health.failed(why);
        // One that had something to say is there again; one that has not is asked less and less.
        pause = if voice.health.words() > begun { PAUSE.0 } else { pause };
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

#[cfg(test)]
mod tests;
