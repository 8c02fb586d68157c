//! Registries as they are opened and followed, and what they said before and at the start.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use jiff::Timestamp;
use outrigger_rules::ParseOptions;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::health::{Health, Registered, Table};
use super::row::mark;
use super::write::{self, Wanted, Writer};
use super::{
    Event, Item, PAUSE, Registry, Row, Source, Voice, WORDS, Word, consul, dns, etcd, eureka, file,
    kubernetes, nacos, zookeeper,
};

/// At a start, for a registry to say something of what it has; all of it takes as long as it takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same where it is known what it said before.
const RECALLING: Duration = Duration::from_secs(5);
/// And so long it may go on saying it, all together.
const LISTING: Duration = Duration::from_secs(60);

/// What a registry said before this start.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Part by part.
    pub parts: BTreeMap<String, Vec<Item>>,
    /// When it was heard last.
    pub at: Timestamp,
}

/// By the registry's name.
pub type Memories = HashMap<String, Memory>;

impl Memory {
    /// When it was heard last, by the clock of this process, if that goes so far back.
    pub fn heard(&self) -> Option<Instant> {
        let ago = Timestamp::now().duration_since(self.at);
        Instant::now().checked_sub(Duration::try_from(ago).ok()?)
    }

    /// As a registry would say it.
    fn events(self, voice: &Voice) -> Vec<(Arc<Source>, Event)> {
        let (place, registry) = (voice.place, &voice.registry);
        let event = |(part, mut items): (_, Vec<Item>)| {
            items.iter_mut().for_each(|item| mark(item, &voice.labels));
            (Arc::new(Source { last: false, place, registry: registry.clone(), part }), Event::Reset(items))
        };
        self.parts.into_iter().map(event).collect()
    }
}

/// What a registry that was opened says.
pub struct Heard {
    row: Registered,
    words: mpsc::Receiver<Word>,
    /// What it said before this start, if that is known.
    recalled: Option<Vec<(Arc<Source>, Event)>>,
}

impl Heard {
    pub(super) fn new(row: Registered, words: mpsc::Receiver<Word>) -> Self {
        Self { row, words, recalled: None }
    }

    /// It is known that it had nothing before this start.
    #[cfg(test)]
    pub(super) fn that_was_heard_before(self) -> Self {
        Self { recalled: Some(Vec::new()), ..self }
    }

    /// All that it has, for a first world.
    ///
    /// # Errors
    /// When it does not say so in time, or files have errors. To go on without would take instances away from proxies that
    /// serve well without us.
    pub async fn first(&mut self) -> anyhow::Result<Vec<(Arc<Source>, Event)>> {
        let Registered { name, kind, health } = &self.row;
        let recalled = self.recalled.take();
        let known = recalled.is_some();
        let mut said = recalled.unwrap_or_default();
        let until = known.then(|| Instant::now() + LISTING);
        // Files are the operator's own, and read as long as it takes. Others may have much to say, but not be silent for long.
        let files = *kind == "file";
        let patience = match (files, known) {
            (true, _) => Duration::MAX,
            (false, true) => RECALLING,
            (false, false) => PATIENCE,
        };
        let mut words = health.words();
        let whole = loop {
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            match tokio::time::timeout(patience.min(left), self.words.recv()).await {
                Ok(Some(Word::Event(source, event))) => said.push((source, event)),
                Ok(Some(Word::Whole)) => break true,
                // A cluster's listing is many pages, and said when it is whole.
                Err(_) if health.words() > words && !left.is_zero() => {
                    words = health.words();
                    tracing::info!(registry = %name, words, "it has not said all that it has yet; waiting");
                }
                Err(_) if known => {
                    let why =
                        health.state().error.map_or_else(|| "no answer".to_owned(), |error| error.message);
                    tracing::error!(registry = %name, "{why}; what it said before this start stays in force");
                    return Ok(said);
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

/// One that is being opened.
struct Opening<'a> {
    voice: Voice,
    heard: Heard,
    memory: Option<Memory>,
    wants: &'a watch::Receiver<Arc<Wanted>>,
    tasks: &'a mut JoinSet<()>,
}

impl Opening<'_> {
    /// Follows it from where it was before this start.
    fn follow(mut self, mut registry: impl Registry) -> Heard {
        if let Some(mut memory) = self.memory
            && registry.recall(&mut memory.parts)
        {
            self.voice.health.recalled(memory.heard());
            self.heard.recalled = Some(memory.events(&self.voice));
        }
        self.tasks.spawn(keep(registry, self.voice));
        self.heard
    }

    /// What is registered here is written to it, too, where that is wanted.
    fn write<W: Writer>(&mut self, is_wanted: bool, writer: impl FnOnce() -> W) {
        if is_wanted {
            let (name, health) = (self.voice.registry.clone(), self.voice.health.clone());
            self.tasks.spawn(write::write(writer(), name, self.wants.clone(), health));
        }
    }
}

/// Begins to follow every registry of the settings. `options` say how rules are read, `origin` who we are in registries, `memories` what
/// they said before this start.
pub fn open(
    rows: &[Row],
    options: &ParseOptions,
    origin: &Arc<str>,
    mut memories: Memories,
    tasks: &mut JoinSet<()>,
) -> Opened {
    let mut table = Table::new();
    let mut heard = Vec::new();
    let (wanted, wants) = watch::channel(Arc::default());
    for row in rows {
        let registered = table.add(row.name(), row.kind());
        let (words, receiver) = mpsc::channel(WORDS);
        let voice = Voice::new(table.len() - 1, &registered, words, &row.labels);
        let memory = memories.remove(row.name());
        let one = Heard::new(registered, receiver);
        let opening = Opening { voice, heard: one, memory, wants: &wants, tasks };
        heard.extend(follow(row, options, origin, opening));
    }
    Opened { table, heard, wanted }
}

fn follow(row: &Row, options: &ParseOptions, origin: &Arc<str>, mut opening: Opening<'_>) -> Option<Heard> {
    let by = || origin.clone();
    if let Some(files) = &row.file {
        Some(opening.follow(file::FileRegistry::new(files.paths.clone(), options.clone())))
    } else if let Some(consul) = &row.consul {
        opening.write(consul.register, || consul::writer::ConsulWriter::new(consul.clone(), by()));
        Some(opening.follow(consul::Consul::new(consul.clone(), by())))
    } else if let Some(names) = &row.dns {
        Some(opening.follow(dns::Dns::new(names.clone())))
    } else if let Some(etcd) = &row.etcd {
        opening.write(etcd.register, || etcd::writer::EtcdWriter::new(etcd.clone(), by()));
        Some(opening.follow(etcd::Etcd::new(etcd.clone(), by())))
    } else if let Some(keeper) = &row.zookeeper {
        opening.write(keeper.register, || zookeeper::writer::ZooKeeperWriter::new(keeper.clone(), by()));
        Some(opening.follow(zookeeper::ZooKeeper::new(keeper.clone(), by())))
    } else if let Some(eureka) = &row.eureka {
        opening.write(eureka.register, || eureka::writer::EurekaWriter::new(eureka.clone(), by()));
        Some(opening.follow(eureka::Eureka::new(eureka.clone(), by())))
    } else if let Some(nacos) = &row.nacos {
        opening.write(nacos.register, || nacos::writer::NacosWriter::new(nacos.clone(), by()));
        Some(opening.follow(nacos::Nacos::new(nacos.clone(), by())))
    } else {
        let cluster = row.kubernetes.as_ref()?;
        Some(opening.follow(kubernetes::Kubernetes::new(cluster.clone(), options.clone())))
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
pub(super) async fn keep<R: Registry>(mut registry: R, voice: Voice) {
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
