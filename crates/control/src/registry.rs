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
//! To add one: a file here that implements [`Registry`], a field in [`Row`] with what `row` says of it, an arm in `opened`. [`api`] holds the rules of
//! registrations over the management API, [`lease`] when they expire, [`claim`] whose an address is.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use outrigger_rules::Object;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::inject::Release;
use crate::instance::Instance;

pub mod api;
pub mod claim;
pub mod consul;
pub mod dns;
pub mod etcd;
pub mod eureka;
pub mod file;
mod foreign;
mod grpc;
pub mod health;
mod keys;
pub mod kubernetes;
pub mod lease;
pub mod nacos;
mod opened;
mod parts;
mod row;
mod web;
pub mod write;
pub mod zookeeper;

pub(crate) use foreign::label;
use health::Health;
pub use opened::{Heard, Memories, Memory, Opened, open};
pub use row::Row;

/// Words on their way to the keeper; a registry waits beyond that.
const WORDS: usize = 64;
/// Before a registry that failed is tried again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
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
    /// Comes after all that are not, whatever its place: what workloads say of themselves.
    pub last: bool,
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
        Arc::new(Self { last: false, place: 0, registry: Self::API.into(), part: String::new() })
    }

    /// What workloads register of themselves over the management API: after all others.
    pub fn workloads() -> Arc<Self> {
        Arc::new(Self { last: true, ..Self::clone(&Self::api()) })
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

    /// What it said before this start, part by part: it goes on from there, as after an outage, and says so of parts that have gone
    /// meanwhile. Left in it is what that is now, to go on with until then. Whether it does; of one that does not nothing is recalled.
    fn recall(&mut self, _said: &mut BTreeMap<String, Vec<Item>>) -> bool {
        false
    }
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
    labels: Arc<row::Labels>,
}

impl Voice {
    fn new(place: usize, row: &health::Registered, words: mpsc::Sender<Word>, labels: &row::Labels) -> Self {
        let (registry, health) = (row.name.clone(), row.health.clone());
        Self { place, registry, words, health, labels: Arc::new(labels.clone()) }
    }

    /// Says something of a part. Waits when the keeper is behind.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub async fn say(&self, part: &str, mut event: Event) -> Result<(), String> {
        self.health.heard();
        match &mut event {
            Event::Reset(items) => items.iter_mut().for_each(|item| row::mark(item, &self.labels)),
            Event::Upsert(item) => row::mark(item, &self.labels),
            Event::Remove(_) => {}
        }
        let source =
            Source { last: false, place: self.place, registry: self.registry.clone(), part: part.to_owned() };
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

    /// The oldest release of a cluster.
    fn release(&self, release: Option<Release>) {
        self.health.set_release(release);
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
        let (registry, health, labels) = ("test".into(), Arc::default(), Arc::default());
        (Self { place: 1, registry, words, health, labels }, heard)
    }
}

#[cfg(test)]
mod tests;
