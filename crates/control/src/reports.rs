//! What a cluster is told of its rules: the status of each object that is one.
//!
//! ```text
//! keeper, board ─▶ told (what is known of each rule) ─▶ shape (the status of its kind) ─▶ compared with what is there ─▶ merge patch
//! ```
//!
//! A round looks at everything; one begins when something has changed, and ends with a pause. An object is asked for only when something is
//! known of it that was not, or another number of proxies has it and that was said a while ago; it is written only when its status says
//! something else, under the version that was read. A status is no news to the watch, so nothing here wakes itself. One control plane writes:
//! of replicas the one that leads, which asks the others for their proxies; all else that follows the cluster is `readOnly`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use outrigger_rules::Finding;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::keeper::Keeper;
use crate::others::Others;
use crate::registry::health::Table;
use crate::registry::kubernetes::{KubernetesSettings, read};
use crate::replicas::Replicas;
use crate::replicas::leader::{Leadership, WRITE};
use crate::settings::Settings;
use crate::status::Board;
use crate::world::MeshSettings;
use findings::Found;
use told::Told;

mod events;
mod findings;
mod shape;
mod told;

/// Between two rounds.
const PAUSE: Duration = Duration::from_secs(2);
/// A round comes at least as often.
const PERIOD: Duration = Duration::from_secs(20);
/// After a failure.
const RETRY: Duration = Duration::from_secs(10);
/// That a number of proxies has changed is said so often at most, of each rule.
const CALM: Duration = Duration::from_secs(30);
/// Objects that a round asks for; the others wait for the next.
const MOST: usize = 200;
/// Before an object that was not done is tried again, at most.
const LATEST: Duration = Duration::from_secs(60);
/// The same where there are other replicas, whose proxies nobody is woken by.
const OTHERS: Duration = Duration::from_secs(5);
/// For an Event, and for those of a round: the statuses of the next wait for them.
const EVENT: Duration = Duration::from_secs(1);
const EVENTS: Duration = Duration::from_secs(3);
/// Whose change this is.
const WHO: &str = "outrigger-control";

/// Why a status could not be written.
enum Trouble {
    /// The API server says no to this one.
    Refused(String),
    /// It cannot be asked.
    Away(String),
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status.to_string()),
            error => Self::Away(error.to_string()),
        }
    }
}

/// An object that was not done: when it is tried again, and after how many times.
#[derive(Clone, Copy)]
struct Late {
    until: Instant,
    times: u32,
}

/// What an object was last told.
#[derive(Clone, Copy)]
struct Known {
    essence: u64,
    whole: u64,
    at: Instant,
    /// That all proxies have it was said already.
    everywhere: bool,
}

/// What became of an Event.
enum Made {
    Yes,
    /// There is one, or nothing to be told.
    Needless,
    /// The object is not the one that was judged: it comes again.
    Later,
}

/// When a round comes.
enum Next {
    /// There is more to tell.
    AtOnce,
    /// Within this time, and when something has changed.
    Within(Duration),
}

/// Who tells one cluster.
pub(crate) struct Reporter {
    cluster: KubernetesSettings,
    /// The registry's name and place in the table.
    registry: Arc<str>,
    place: usize,
    keeper: Keeper,
    board: Arc<Board>,
    table: Table,
    settings: MeshSettings,
    replicas: Option<Arc<Replicas>>,
    leadership: Leadership,
    events: Mutex<events::Teller>,
}

impl Reporter {
    /// One for each cluster of the settings that is told.
    pub(crate) fn all(
        settings: &Settings,
        table: &Table,
        keeper: &Keeper,
        board: &Arc<Board>,
        replicas: Option<&Arc<Replicas>>,
    ) -> Vec<Self> {
        let rows = settings.rows();
        let told = rows.iter().filter_map(|row| {
            Some((row.name(), row.kubernetes.clone().filter(|cluster| !cluster.read_only)?))
        });
        let of = |(name, cluster): (&str, KubernetesSettings)| {
            let (place, row) = table.rows().find(|(_, row)| &*row.name == name)?;
            Some(Self {
                cluster,
                registry: row.name.clone(),
                place,
                keeper: keeper.clone(),
                board: board.clone(),
                table: table.clone(),
                settings: settings.mesh(),
                replicas: replicas.cloned(),
                leadership: replicas.map_or_else(Leadership::alone, |replicas| replicas.leadership.clone()),
                events: Mutex::default(),
            })
        };
        told.filter_map(of).collect()
    }

    /// Tells it, for ever.
    pub(crate) async fn tell(self) {
        let (mut generation, mut board) = (self.keeper.subscribe(), self.board.subscribe());
        let (mut known, mut late) = (HashMap::new(), HashMap::new());
        let mut found = Found::default();
        let mut complained: Option<String> = None;
        let mut term = 0;
        loop {
            let now = self.leadership.lead().await;
            if std::mem::replace(&mut term, now) != now {
                known.clear();
                late.clear();
            }
            generation.mark_unchanged();
            board.mark_unchanged();
            let outcome = match self.client().await {
                Ok(client) => self.round(&client, &mut known, &mut late, &mut found).await,
                Err(why) => Err(why),
            };
            let (pause, period) = match outcome {
                Ok((next, trouble)) => {
                    self.complain(&mut complained, trouble);
                    match next {
                        Next::AtOnce => {
                            sleep(PAUSE).await;
                            continue;
                        }
                        Next::Within(period) => (PAUSE, period),
                    }
                }
                Err(why) => {
                    self.complain(&mut complained, Some(why));
                    (RETRY, PERIOD)
                }
            };
            sleep(pause).await;
            tokio::select! {
                changed = generation.changed() => if changed.is_err() { return },
                changed = board.changed() => if changed.is_err() { return },
                () = sleep(period) => {}
            }
        }
    }

    async fn client(&self) -> Result<Client, String> {
        timeout(WRITE, self.cluster.client()).await.map_err(|_| "no client in time".to_owned())?
    }

    /// Says what is wrong, once.
    fn complain(&self, before: &mut Option<String>, now: Option<String>) {
        if let Some(why) = now.as_ref().filter(|why| before.as_ref() != Some(*why)) {
            tracing::warn!(registry = %self.registry, %why, "the status of rules cannot be written");
        }
        *before = now;
    }

    /// Tells what is due; when there is more, and the first that was refused: it keeps nobody else waiting.
    async fn round(
        &self,
        client: &Client,
        known: &mut HashMap<String, Known>,
        late: &mut HashMap<String, Late>,
        found: &mut Found,
    ) -> Result<(Next, Option<String>), String> {
        let (published, board, mut now) =
            (self.keeper.published(), self.board.clone(), std::mem::take(found));
        let flaws = self.flaws();
        let others = match &self.replicas {
            Some(replicas) => replicas.others().await,
            None => Others::default(),
        };
        let (registry, place, settings) = (self.registry.clone(), self.place, self.settings.clone());
        // Seconds for tens of thousands of rules.
        let all = tokio::task::spawn_blocking(move || {
            now.renew(&published, &registry, &settings);
            let mut all = told::all(&published, (&board, &others), &registry, place, &flaws, now.all());
            all.iter_mut().for_each(|told| told.word = events::known(told));
            (now, all)
        });
        let told: Vec<Told>;
        (*found, told) = all.await.map_err(|error| error.to_string())?;
        let ids: HashSet<&str> = told.iter().map(|told| told.id.as_str()).collect();
        known.retain(|id, _| ids.contains(id.as_str()));
        late.retain(|id, _| ids.contains(id.as_str()));
        self.events.lock().retain(&ids);
        let now = Instant::now();
        let is_late = |told: &Told| late.get(&told.id).is_some_and(|late| late.until > now);
        let due: Vec<&Told> =
            told.iter().filter(|told| due(told, known.get(&told.id)) && !is_late(told)).collect();
        let more = due.len() > MOST;
        let mut trouble = None;
        let mut fresh = HashSet::new();
        for told in due.into_iter().take(MOST) {
            let outcome = timeout(WRITE, self.write(client, told)).await;
            match outcome.map_err(|_| format!("the API server did not answer within {WRITE:?}"))? {
                Ok(true) => {
                    late.remove(&told.id);
                    fresh.insert(told.id.as_str());
                    let (essence, whole) = (hash(&told.essence()), hash(told));
                    let before = known.get(&told.id).filter(|known| known.essence == essence);
                    let everywhere = told.is_reached() || before.is_some_and(|known| known.everywhere);
                    known.insert(told.id.clone(), Known { essence, whole, at: Instant::now(), everywhere });
                    continue;
                }
                Ok(false) => {}
                Err(Trouble::Refused(why)) => trouble = trouble.or(Some(format!("{}: {why}", told.id))),
                Err(Trouble::Away(why)) => return Err(why),
            }
            let times = late.get(&told.id).map_or(0, |late| late.times);
            let pause = (PAUSE * 2u32.saturating_pow(times.min(10))).min(LATEST);
            late.insert(told.id.clone(), Late { until: Instant::now() + pause, times: times + 1 });
        }
        self.tell_events(client, &told, known, &fresh).await;
        if more {
            return Ok((Next::AtOnce, trouble));
        }
        let now = Instant::now();
        let held = told.iter().filter_map(|told| held(told, known.get(&told.id)?));
        let late = late.values().map(|late| late.until.saturating_duration_since(now));
        let next = held.filter(|held| !held.is_zero()).chain(late).min().unwrap_or(PERIOD);
        let most = if self.replicas.is_some() { OTHERS } else { PERIOD };
        Ok((Next::Within(next.min(most)), trouble))
    }

    /// Objects that cannot be read, by their id, and why.
    fn flaws(&self) -> Vec<(String, String)> {
        let rows = self.table.rows().find(|(_, row)| row.name == self.registry);
        let problems = rows.map(|(_, row)| row.health.problems()).unwrap_or_default();
        problems.iter().map(|problem| (problem.file.clone(), problem.message.clone())).collect()
    }

    /// Whether it is done: an object that is not the one that was judged comes again.
    async fn write(&self, client: &Client, told: &Told) -> Result<bool, Trouble> {
        let Some((objects, object)) = find(client, told).await? else { return Ok(true) };
        let Some(generation) = object.metadata.generation else { return Ok(true) };
        let Some(told) = self.judged(told, &object, generation) else { return Ok(false) };
        let now = &object.data["status"];
        let status = shape::status(&told, generation, now, jiff::Timestamp::now());
        let mut after = now.clone();
        json_patch::merge(&mut after, &status);
        if after == *now || (now.is_null() && after == json!({})) {
            return Ok(true);
        }
        let patch =
            json!({"metadata": {"resourceVersion": object.metadata.resource_version}, "status": status});
        let params = PatchParams { field_manager: Some(WHO.to_owned()), ..PatchParams::default() };
        if !self.leadership.leads() {
            return Err(Trouble::Away("this replica leads no longer".to_owned()));
        }
        match objects.patch_status(&told.name, &params, &Patch::Merge(patch)).await {
            Ok(_) => Ok(true),
            // Somebody was faster, or it has gone.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// What is known of this very object; nothing where it is not the one that was judged.
    fn judged<'t>(&self, told: &'t Told, object: &DynamicObject, generation: i64) -> Option<Cow<'t, Told>> {
        if let Some(judged) = told.generation {
            return (judged == generation).then_some(Cow::Borrowed(told));
        }
        // Its words are those of this very object.
        let options = self.settings.reading(&told.namespace);
        let findings = read::read(object.clone(), &options).findings;
        if !findings.iter().any(Finding::is_error) {
            return None;
        }
        Some(Cow::Owned(told.clone().unreadable(findings, &object.data["spec"])))
    }

    /// Makes Events of what statuses say by now, as many as there is room for, by turns of namespaces. Where the API server has no time for one it
    /// has none for the others: all that there was no Event of is asked for again by the next round.
    async fn tell_events(
        &self,
        client: &Client,
        all: &[Told],
        known: &HashMap<String, Known>,
        fresh: &HashSet<&str>,
    ) {
        let is_written =
            |told: &Told| known.get(&told.id).is_some_and(|known| known.essence == hash(&told.essence()));
        let news: Vec<&Told> = {
            let mut events = self.events.lock();
            let news = all.iter().filter(|told| events.is_news(told) && is_written(told)).collect();
            events.in_turn(news, fresh)
        };
        let begun = Instant::now();
        for told in news {
            if begun.elapsed() >= EVENTS || !self.leadership.leads() || !self.events.lock().takes() {
                return;
            }
            let made = timeout(EVENT, self.event(client, told)).await.unwrap_or_else(|_| {
                Err(Trouble::Away(format!("the API server did not answer within {EVENT:?}")))
            });
            match made {
                Ok(Made::Yes) => self.events.lock().told(told, true),
                Ok(Made::Needless) => self.events.lock().told(told, false),
                Ok(Made::Later) => {
                    let mut events = self.events.lock();
                    events.failed(told);
                    events.give_back();
                }
                Err(Trouble::Refused(why)) => {
                    tracing::info!(
                        rule = %told.id,
                        %why,
                        "an Event cannot be made of what the rule's status says"
                    );
                    self.events.lock().told(told, true);
                }
                Err(Trouble::Away(why)) => {
                    if self.events.lock().failed(told) {
                        tracing::info!(
                            rule = %told.id,
                            %why,
                            "an Event of what the rule's status says has to wait"
                        );
                    }
                    return;
                }
            }
        }
    }

    /// Makes that of one.
    async fn event(&self, client: &Client, told: &Told) -> Result<Made, Trouble> {
        // Refused for what it is; others say that the API server is busy, or whom it asks.
        let trouble = |error: kube::Error| match error {
            kube::Error::Api(status) if !matches!(status.code, 400 | 403 | 404 | 413 | 422) => {
                Trouble::Away(status.to_string())
            }
            error => error.into(),
        };
        let Some((_, object)) = find(client, told).await.map_err(trouble)? else { return Ok(Made::Needless) };
        let Some(generation) = object.metadata.generation else { return Ok(Made::Needless) };
        let Some(told) = self.judged(told, &object, generation) else { return Ok(Made::Later) };
        match events::word(&told) {
            Some(word) if events::tell(client, &word, &object).await.map_err(trouble)? => Ok(Made::Yes),
            _ => Ok(Made::Needless),
        }
    }
}

/// The object in the first version that the cluster has of its kind.
async fn find(
    client: &Client,
    told: &Told,
) -> Result<Option<(Api<DynamicObject>, DynamicObject)>, kube::Error> {
    for resource in read::resources(&told.kind) {
        let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), &told.namespace, &resource);
        match objects.get(&told.name).await {
            Ok(object) => return Ok(Some((objects, object))),
            // Without a name it is the path that there is not.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                if status.details.as_ref().is_some_and(|details| details.name == told.name) {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn due(told: &Told, known: Option<&Known>) -> bool {
    known.is_none_or(|known| {
        known.essence != hash(&told.essence()) || held(told, known).is_some_and(|held| held.is_zero())
    })
}

/// How long what is only another number is still kept back, if there is such.
fn held(told: &Told, known: &Known) -> Option<Duration> {
    // Of what cannot be read nobody says which generation it is.
    let later = known.whole != hash(told) || told.generation.is_none();
    // Who has just applied it waits for this word.
    let calm = if told.is_reached() && !known.everywhere { PAUSE } else { CALM };
    later.then(|| calm.saturating_sub(known.at.elapsed()))
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
