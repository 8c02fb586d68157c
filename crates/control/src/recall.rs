//! What registries of the network said last, kept for a start without them.
//!
//! ```text
//! keeper: who says what --every few seconds, what has changed--> store
//! store --at a start--> the registry's own state, and the first world
//! ```
//!
//! A registry goes on where it was: what it does not say any more after the start is missing as if it had been away, a rule that cannot
//! be read is what it was. Where it does not answer, what it said holds, and ages. Who asks another place than before has said nothing
//! yet, nor has who is called otherwise by the settings of now. Files are not kept: they are there, or the start fails.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use outrigger_rules::{Object, parse_with};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::instance::{Instance, MAX_OF_POD};
use crate::keeper::{Claims, Keeper, Published, Rule};
use crate::registry::health::{Registered, Table};
use crate::registry::{Item, Memories, Memory, Row, label};
use crate::store::records::{StoredSaid, shared};
use crate::store::{Contents, Mutation, Store, StoreError};
use crate::world::MeshSettings;

/// Between two writings of what has changed.
const PAUSE: Duration = Duration::from_secs(2);
/// That a registry was heard is written at least so often.
const NOTE: Duration = Duration::from_secs(60);
/// Changes in one commit: others wait for it.
const COMMIT: usize = 1000;
/// A memory that no running control plane has had for so long is forgotten: addresses are others' by then.
const MOST_AGE: Duration = Duration::from_hours(24);
/// Fields of a row that say where it is asked: one that stays is the same place.
const WHERE: [&str; 7] = ["address", "addresses", "endpoints", "servers", "urls", "kubeconfig", "context"];
/// Fields that say what is asked for there.
const WHAT: [&str; 9] =
    ["datacenter", "prefix", "paths", "dubbo", "tag", "namespaceId", "groups", "group", "clusters"];
const FACT: &str = "registries";

/// What is noted of a registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    /// What is asked for.
    asked: String,
    /// Where.
    at: BTreeSet<String>,
    heard: Option<Timestamp>,
    /// When a control plane last had it in force.
    kept: Timestamp,
    /// What things are called here.
    #[serde(default)]
    called: Option<Called>,
}

/// What things of a registry are called here, by its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Called {
    /// The namespace that its services get; without, their own.
    namespace: Option<String>,
    /// What services are called, by what they are called there.
    names: BTreeMap<String, String>,
}

impl Called {
    fn of(row: &Value) -> Self {
        let namespace = row["namespace"].as_str().map(str::to_owned);
        let names = serde_json::from_value(row["names"].clone()).unwrap_or_default();
        Self { namespace, names }
    }

    /// What was called something that is called otherwise now: it comes under another name, and of what it was nothing is missing. Whatever
    /// else was called like that by itself has to be said again, too.
    fn renamed(&self, now: &Self) -> Renamed {
        let moved_to = if self.namespace.is_none() { now.namespace.clone() } else { None };
        let namespace = self.namespace.clone().filter(|_| self.namespace != now.namespace);
        let there: BTreeSet<&String> = self.names.keys().chain(now.names.keys()).collect();
        let moved = there.into_iter().filter(|name| self.names.get(*name) != now.names.get(*name));
        let was = |name: &String| label(self.names.get(name).unwrap_or(name));
        Renamed { namespace, moved_to, services: moved.map(was).collect() }
    }
}

/// What is not called any more what it was.
#[derive(Default)]
struct Renamed {
    namespace: Option<String>,
    /// Where all of it is now that had namespaces of its own.
    moved_to: Option<String>,
    services: BTreeSet<String>,
}

impl Renamed {
    fn has(&self, item: &Item) -> bool {
        match item {
            Item::Instance(instance) => {
                self.namespace.as_ref() == Some(&instance.namespace)
                    || self.moved_to.as_ref().is_some_and(|to| *to != instance.namespace)
                    || self.services.contains(&instance.service)
            }
            Item::Rule(_) => false,
        }
    }
}

impl Note {
    fn of(row: &Row, heard: Option<Timestamp>) -> Self {
        let whole = serde_json::to_value(row).unwrap_or_default();
        let rows = whole.as_object().into_iter().flatten();
        let (mut asked, mut at, mut called) = (String::new(), BTreeSet::new(), None);
        for (kind, of) in rows.filter(|(name, _)| *name != "name" && *name != "labels") {
            asked.push_str(kind);
            called = Some(Called::of(of));
            for what in WHAT.iter().filter(|what| !of[**what].is_null()) {
                asked.push_str(&format!(" {what}={}", of[*what]));
            }
            at.extend(WHERE.iter().flat_map(|name| match &of[*name] {
                Value::Null => Vec::new(),
                Value::Array(all) => all.iter().map(Value::to_string).collect(),
                one => vec![one.to_string()],
            }));
        }
        Self { asked, at, heard, kept: Timestamp::now(), called }
    }

    /// What is called otherwise now than it was then. Of a note of before that was noted nothing is.
    fn renamed(&self, now: &Self) -> Renamed {
        let both = self.called.as_ref().zip(now.called.as_ref());
        both.map(|(before, now)| before.renamed(now)).unwrap_or_default()
    }

    /// Whether what was kept then is what is asked for now.
    fn holds_for(&self, now: &Self) -> bool {
        let near = self.at == now.at || self.at.iter().any(|place| now.at.contains(place));
        // A clock that was put back says nothing of age.
        let age = Duration::try_from(now.kept.duration_since(self.kept)).unwrap_or_default();
        self.asked == now.asked && near && age <= MOST_AGE
    }
}

type Notes = BTreeMap<String, Note>;

/// A thing as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Kept {
    Instance(#[serde(with = "shared")] Arc<Instance>),
    Rule {
        namespace: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<String>,
        source: String,
    },
}

impl Kept {
    fn read(self, mesh: &MeshSettings) -> Option<Item> {
        match self {
            Self::Instance(instance) => {
                instance.validate_within(MAX_OF_POD).is_ok().then_some(Item::Instance(instance))
            }
            Self::Rule { namespace, file, source } => {
                // What it means is this release's business, not of the one that kept it.
                let mut parsed =
                    parse_with(file.as_deref().unwrap_or_default(), &source, &mesh.reading(&namespace));
                let object: Object = parsed.objects.pop().filter(|_| parsed.objects.is_empty())?;
                Some(Item::Rule(Box::new(object)))
            }
        }
    }
}

fn of_network(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|row| row.file.is_none())
}

/// What registries of the network said before this start.
///
/// # Errors
/// The store cannot be read or written.
pub async fn load(
    store: &Arc<dyn Store>,
    contents: &Contents,
    rows: &[Row],
    mesh: &MeshSettings,
) -> Result<Memories, StoreError> {
    let notes: Notes =
        contents.facts.get(FACT).and_then(|fact| serde_json::from_str(fact).ok()).unwrap_or_default();
    let (mut memories, mut renamed) = (Memories::new(), HashMap::new());
    for row in of_network(rows) {
        let now = Note::of(row, None);
        if let Some(note) = notes.get(row.name()).filter(|note| note.holds_for(&now))
            && let Some(heard) = note.heard
        {
            renamed.insert(row.name().to_owned(), note.renamed(&now));
            memories.insert(row.name().to_owned(), Memory { at: heard, parts: BTreeMap::new() });
        }
    }
    let (mut unread, mut others, mut left) = (0, Vec::new(), BTreeSet::new());
    for said in store.clone().said().await? {
        let StoredSaid { registry, part, key, json } = said;
        let Some((memory, renamed)) = memories.get_mut(&registry).zip(renamed.get(&registry)) else {
            others.push(Mutation::DeleteSaid { registry, part, key });
            continue;
        };
        let kept = serde_json::from_str::<Kept>(&json).ok().and_then(|kept| kept.read(mesh));
        if kept.as_ref().is_some_and(|item| renamed.has(item)) {
            left.insert(registry.clone());
            others.push(Mutation::DeleteSaid { registry, part, key });
            continue;
        }
        let part = memory.parts.entry(part).or_default();
        match kept {
            Some(item) => part.push(item),
            None => unread += 1,
        }
    }
    // Where all of it is called otherwise nothing has been said yet.
    memories.retain(|registry, memory| !memory.parts.is_empty() || !left.contains(registry));
    // What another place said, or was called otherwise, goes before anything of this one is written under its name.
    for some in others.chunks(COMMIT) {
        store.clone().commit(some.to_vec()).await?;
    }
    if unread > 0 {
        tracing::warn!(
            unread,
            "of what registries said before this start not all can be read, and is forgotten"
        );
    }
    Ok(memories)
}

/// Keeps what registries of the network say, for ever. What changes is in the store a few seconds later, a start in between repeats it.
pub async fn keep(keeper: Keeper, store: Arc<dyn Store>, table: Table, rows: Vec<Row>) {
    let place = |(place, row): (usize, &Registered)| {
        Some((place, of_network(&rows).find(|of| *of.name() == *row.name)?))
    };
    let places: HashMap<usize, &Row> = table.rows().filter_map(place).collect();
    if places.is_empty() {
        return;
    }
    let mut generation = keeper.subscribe();
    let (mut before, mut noted) = (None::<Said>, None::<Instant>);
    loop {
        let now = Said::of(&keeper.published());
        let kept = match &before {
            Some(_) => Ok(None),
            None => store.clone().said().await.map(Some),
        };
        let changes = match kept {
            Ok(kept) => now.changes(before.take(), kept, places.keys().copied().collect()).await,
            Err(_) => None,
        };
        let due = noted.is_none_or(|at| at.elapsed() >= NOTE);
        // What cannot be read or written is tried again.
        if let Some((changes, last)) = changes {
            before = last;
            if (due || !changes.is_empty()) && write(&store, changes, &notes(&table, &places)).await {
                let kept = |place| now.instances.count(place) + now.rules.count(place);
                let rows = table.rows().filter(|(place, _)| places.contains_key(place));
                rows.for_each(|(place, row)| row.health.set_kept(kept(place)));
                (before, noted) = (Some(now), Some(Instant::now()));
            }
        }
        tokio::time::sleep(PAUSE).await;
        if let Ok(Err(_)) = timeout(NOTE, generation.changed()).await {
            return;
        }
    }
}

/// Who is asked what, and was heard when: this time, or before.
fn notes(table: &Table, places: &HashMap<usize, &Row>) -> Notes {
    let note = |(place, row): (usize, &Registered)| {
        let of = places.get(&place)?;
        let heard = row.health.state().heard.and_then(|at| Timestamp::now().checked_sub(at.elapsed()).ok());
        Some((of.name().to_owned(), Note::of(of, heard)))
    };
    table.rows().filter_map(note).collect()
}

/// Whether all of it is written. What is not is found to differ again.
async fn write(store: &Arc<dyn Store>, changes: Vec<Mutation>, notes: &Notes) -> bool {
    let note = Mutation::PutFact { name: FACT, value: serde_json::to_string(notes).unwrap_or_default() };
    // Whose word it is comes first: without the note nothing of it counts.
    let all: Vec<Mutation> = std::iter::once(note).chain(changes).collect();
    for some in all.chunks(COMMIT) {
        if let Err(error) = store.clone().commit(some.to_vec()).await {
            tracing::debug!(%error, "what registries say is not kept; trying again");
            return false;
        }
    }
    true
}

/// What is in the store is left as it is.
fn differing(kept: Vec<StoredSaid>, now: Vec<Mutation>) -> Vec<Mutation> {
    let mut kept: HashMap<(String, String, String), String> =
        kept.into_iter().map(|said| ((said.registry, said.part, said.key), said.json)).collect();
    let mut changes: Vec<Mutation> = now
        .into_iter()
        .filter(|change| match change {
            Mutation::PutSaid(said) => {
                let key = (said.registry.clone(), said.part.clone(), said.key.clone());
                kept.remove(&key).is_none_or(|json| json != said.json)
            }
            _ => true,
        })
        .collect();
    let gone = kept.into_keys().map(|(registry, part, key)| Mutation::DeleteSaid { registry, part, key });
    changes.extend(gone);
    changes
}

/// Everything that is said at one moment. A copy costs nothing.
#[derive(Clone, Default)]
struct Said {
    instances: Claims<Arc<Instance>>,
    rules: Claims<Arc<Rule>>,
}

impl Said {
    fn of(published: &Published) -> Self {
        Self { instances: published.claims.clone(), rules: published.ruled.clone() }
    }

    /// The same, of all that there is: away from the threads that serve. Gives back what there was before.
    async fn changes(
        &self,
        before: Option<Self>,
        kept: Option<Vec<StoredSaid>>,
        places: HashSet<usize>,
    ) -> Option<(Vec<Mutation>, Option<Self>)> {
        let now = self.clone();
        let compared = tokio::task::spawn_blocking(move || {
            let news = now.news(before.as_ref().unwrap_or(&Self::default()), &places);
            (
                match kept {
                    Some(kept) => differing(kept, news),
                    None => news,
                },
                before,
            )
        });
        compared.await.ok()
    }

    /// What to write so that the store has this instead of that.
    fn news(&self, before: &Self, places: &HashSet<usize>) -> Vec<Mutation> {
        let instances = self.instances.news(&before.instances, Arc::ptr_eq);
        let instances = instances.map(|(source, id, instance)| {
            (source, format!("instance/{id}"), instance.map(|instance| Kept::Instance(instance.clone())))
        });
        let rules = self.rules.news(&before.rules, Arc::ptr_eq).map(|(source, key, rule)| {
            let kept = rule.map(|rule| Kept::Rule {
                namespace: rule.stored.namespace.clone(),
                file: rule.stored.file.clone(),
                source: rule.stored.source.clone(),
            });
            (source, key.to_owned(), kept)
        });
        let all = instances.chain(rules).filter(|(source, ..)| places.contains(&source.place));
        all.filter_map(|(source, key, kept)| {
            let (registry, part) = (source.registry.to_string(), source.part.clone());
            Some(match kept {
                Some(kept) => {
                    let json = serde_json::to_string(&kept).ok()?;
                    Mutation::PutSaid(Box::new(StoredSaid { registry, part, key, json }))
                }
                None => Mutation::DeleteSaid { registry, part, key },
            })
        })
        .collect()
    }
}

#[cfg(test)]
mod tests;
