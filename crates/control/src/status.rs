//! What each connected proxy has in force, what it refused and why; and what that means for each rule.
//!
//! Fed by the xDS server's events. For an Outrigger proxy the barrier decides: it is acknowledged when everything before it
//! is in force. A foreign client has a generation when everything of it was sent and answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_model::identity::SpiffeId;
use outrigger_model::resource::ResourceKind;
use outrigger_xds::ClientKind;
use outrigger_xds::server::{Audience, Seat};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::compile::scope::Scope;
use crate::others::named;

mod refusal;
mod shared;

pub(crate) use refusal::cut;

/// NACKs kept per proxy; one that refuses more is broken, and the first ones say why.
const MOST_NACKS: usize = 200;
/// Bytes of a client's words about a resource, and of the names in it.
pub const LONGEST_REASON: usize = 2048;
pub const LONGEST_NAME: usize = 512;
/// Instances of which it is remembered when their client left; the one that left first is forgotten first.
const MOST_SEEN: usize = 10_000;

/// A client of the xDS server.
#[derive(Debug, Clone)]
pub struct Client {
    /// What it calls itself.
    pub node: String,
    /// The registered instance that it stands beside.
    pub instance: Option<String>,
    /// What its certificate proves.
    pub identity: Option<SpiffeId>,
    /// Outrigger, Envoy or gRPC.
    pub kind: ClientKind,
    /// The program and its version.
    pub version: String,
    /// What of it decides what it is sent.
    pub scope: Scope,
    /// What a gRPC client asked for; others are sent everything, or enforce everything.
    pub asked: Arc<Mutex<BTreeSet<(ResourceKind, String)>>>,
    /// Knows the last generation that had something for it.
    pub seat: Arc<Seat>,
}

impl Client {
    /// How it is called in reports.
    pub(crate) fn name(&self) -> &str {
        self.instance.as_deref().unwrap_or(&self.node)
    }
}

/// A refused resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// `Cluster`, `Listener`, …
    pub kind: String,
    /// The resource; empty when the client did not say.
    pub name: String,
    /// The refused version.
    pub version: String,
    /// The path of the field; empty for the whole resource.
    pub field: String,
    /// Why.
    pub reason: String,
    /// The rules that the resource was made from, as `VirtualService shop/catalog`.
    pub rules: Vec<String>,
    /// Seconds since it was refused.
    pub age_seconds: u64,
}

/// One type of resource on one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    /// Responses sent.
    pub sent: u64,
    /// What was in them: new, changed, gone, or not there.
    #[serde(default)]
    pub resources: u64,
    /// Responses acknowledged.
    pub acked: u64,
    /// Responses refused.
    pub nacked: u64,
    /// `SYNCED`, `STALE` (not acknowledged yet) or `NOT SENT`.
    pub state: String,
    /// Seconds that a response of it waits for its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_seconds: Option<u64>,
}

/// A connected proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    /// What it calls itself.
    pub node: String,
    /// The registered instance that it stands beside.
    pub instance: Option<String>,
    /// Its identity.
    pub identity: Option<String>,
    /// `outrigger`, `envoy` or `grpc`.
    pub client: String,
    /// The program and its version.
    pub version: String,
    /// Seconds since it connected.
    pub connected_seconds: u64,
    /// The generation that it has in force.
    pub generation: u64,
    /// Whether that is the latest.
    pub synced: bool,
    /// The replica of the control plane that it is connected to, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// The Sidecar that holds for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<String>,
    /// By type of resource.
    pub types: BTreeMap<String, TypeStatus>,
    /// What it refuses at present.
    pub refused: Vec<Refusal>,
}

/// How far a generation has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InForce {
    /// Whether every connected proxy has it.
    pub complete: bool,
    /// Proxies that have it.
    pub proxies: usize,
    /// Connected proxies.
    pub of: usize,
    /// Who has not.
    pub waiting: Vec<String>,
    /// Who refused something of it, and why.
    pub refused: Vec<String>,
    /// Who does not enforce something of it, and why, as `not enforced by X: why`; such proxies are not among `proxies`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unenforced: Vec<String>,
}

struct Entry {
    client: Client,
    connected: SystemTime,
    barrier: u64,
    /// The latest generation of which something was sent.
    sent: u64,
    settled: u64,
    types: BTreeMap<ResourceKind, TypeCount>,
    refused: BTreeMap<(ResourceKind, String), (Refusal, SystemTime, u64)>,
}

#[derive(Default, Clone, Copy)]
struct TypeCount {
    sent: u64,
    resources: u64,
    acked: u64,
    nacked: u64,
    /// Since when a response waits for its answer.
    in_flight: Option<SystemTime>,
}

/// All connected proxies.
pub struct Board {
    entries: Mutex<BTreeMap<u64, Entry>>,
    /// When the last client of an instance left.
    left: Mutex<BTreeMap<String, SystemTime>>,
    changed: watch::Sender<()>,
    audience: Arc<Audience>,
}

/// A refusal as an event brings it.
#[derive(Debug, Clone)]
pub struct Nack {
    /// The resource; empty when the client did not say.
    pub name: String,
    /// The refused version.
    pub version: String,
    /// The path of the field.
    pub field: String,
    /// Why.
    pub reason: String,
    /// The rules behind it.
    pub rules: Vec<String>,
}

impl Board {
    /// Of the streams of an audience.
    pub fn new(audience: Arc<Audience>) -> Self {
        let (changed, _) = watch::channel(());
        Self { entries: Mutex::default(), left: Mutex::default(), changed, audience }
    }

    /// Wakes at whatever a proxy does.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether the sidecar of an instance is connected.
    pub fn has_instance(&self, id: &str) -> bool {
        self.entries.lock().values().any(|entry| entry.client.instance.as_deref() == Some(id))
    }

    /// A stream has said who it is.
    pub fn connected(&self, stream: u64, client: Client) {
        let entry = Entry {
            client,
            connected: SystemTime::now(),
            barrier: 0,
            sent: 0,
            settled: 0,
            types: BTreeMap::new(),
            refused: BTreeMap::new(),
        };
        self.entries.lock().insert(stream, entry);
        self.changed.send_replace(());
    }

    /// What a stream stands beside is registered, or no longer.
    pub fn beside(&self, stream: u64, instance: Option<String>) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&stream).filter(|entry| entry.client.instance != instance) {
            entry.client.instance = instance;
            drop(entries);
            self.changed.send_replace(());
        }
    }

    /// A stream has ended.
    pub fn disconnected(&self, stream: u64) {
        let gone = self.entries.lock().remove(&stream);
        if let Some(instance) = gone.and_then(|entry| entry.client.instance) {
            let mut left = self.left.lock();
            left.insert(instance, SystemTime::now());
            if left.len() > MOST_SEEN {
                let first = left.iter().min_by_key(|(_, at)| **at).map(|(instance, _)| instance.clone());
                first.map(|instance| left.remove(&instance));
            }
        }
        self.changed.send_replace(());
    }

    /// When the last client of an instance left, if one was here.
    pub fn left(&self, instance: &str) -> Option<SystemTime> {
        self.left.lock().get(instance).copied()
    }

    fn change(&self, stream: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.lock().get_mut(&stream) {
            change(entry);
        }
        // Who begins to wait looks at all of it first.
        if self.changed.receiver_count() > 0 {
            self.changed.send_replace(());
        }
    }

    /// A response of a kind went out; the next one of that kind waits until it is answered.
    pub fn sent(&self, stream: u64, kind: ResourceKind, generation: u64, resources: usize) {
        self.change(stream, |entry| {
            let count = entry.types.entry(kind).or_default();
            count.sent += 1;
            count.resources += resources as u64;
            count.in_flight.get_or_insert_with(SystemTime::now);
            entry.sent = entry.sent.max(generation);
        });
    }

    /// A response of a kind was acknowledged. `cured` says of what was refused earlier whether another version has been
    /// taken since.
    pub fn acked(&self, stream: u64, kind: ResourceKind, cured: impl Fn(&Refusal) -> bool) {
        self.change(stream, |entry| {
            let count = entry.types.entry(kind).or_default();
            count.acked += 1;
            count.in_flight = None;
            entry.refused.retain(|(of, _), (refusal, ..)| *of != kind || !cured(refusal));
        });
    }

    /// A resource was refused.
    pub fn nacked(&self, stream: u64, kind: ResourceKind, nack: Nack) {
        self.change(stream, |entry| {
            let count = entry.types.entry(kind).or_default();
            count.nacked += 1;
            count.in_flight = None;
            let name = cut(nack.name, LONGEST_NAME);
            let refusal = Refusal {
                kind: format!("{kind:?}"),
                name: name.clone(),
                version: cut(nack.version, LONGEST_NAME),
                field: cut(nack.field, LONGEST_NAME),
                reason: cut(nack.reason, LONGEST_REASON),
                rules: nack.rules,
                age_seconds: 0,
            };
            if entry.refused.len() < MOST_NACKS {
                let generation = entry.sent;
                entry.refused.insert((kind, name), (refusal, SystemTime::now(), generation));
            }
        });
    }

    /// Everything up to a generation was sent and answered.
    pub fn settled(&self, stream: u64, generation: u64) {
        self.change(stream, |entry| entry.settled = entry.settled.max(generation));
    }

    /// A barrier was acknowledged.
    pub fn barrier(&self, stream: u64, generation: u64) {
        self.change(stream, |entry| {
            entry.barrier = entry.barrier.max(generation);
            // An answer like any other, though it is what everything else is for.
            let count = entry.types.entry(ResourceKind::Barrier).or_default();
            count.acked += 1;
            count.in_flight = None;
        });
    }

    /// How many streams there are.
    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every connected proxy; `latest` is the generation of the world.
    pub fn proxies(&self, latest: u64) -> Vec<ProxyStatus> {
        self.proxies_with(latest, |_| None)
    }

    /// The same, with the Sidecar that holds for each.
    pub(crate) fn proxies_with(
        &self,
        latest: u64,
        sidecar: impl Fn(&Scope) -> Option<String>,
    ) -> Vec<ProxyStatus> {
        let (now, marked) = (SystemTime::now(), self.audience.generation());
        let status = |entry: &Entry| ProxyStatus {
            sidecar: sidecar(&entry.client.scope),
            ..entry.status(latest, marked, now)
        };
        let mut all: Vec<ProxyStatus> = self.entries.lock().values().map(status).collect();
        all.sort_by(|a, b| (&a.instance, &a.node).cmp(&(&b.instance, &b.node)));
        all
    }

    /// How far a generation has come.
    pub fn in_force(&self, generation: u64) -> InForce {
        let marked = self.audience.generation();
        let entries = self.entries.lock();
        let mut result = InForce { of: entries.len(), ..InForce::default() };
        for entry in entries.values() {
            if entry.generation(marked) >= generation {
                result.proxies += 1;
            } else {
                result.waiting.push(entry.name());
            }
            result.refused.extend(entry.refusals_since(generation));
        }
        result.complete = result.waiting.is_empty() && result.refused.is_empty();
        result
    }

    /// Refusals of resources that were made from a rule, `VirtualService shop/catalog`, as `proxy: reason`.
    pub fn refused_rule(&self, rule: &str) -> Vec<String> {
        let entries = self.entries.lock();
        let of = |entry: &Entry| {
            let about =
                entry.refused.values().filter(|(refusal, ..)| refusal.rules.iter().any(|r| r == rule));
            about.map(|(refusal, ..)| format!("{}: {}", entry.name(), refusal.text())).collect::<Vec<_>>()
        };
        entries.values().flat_map(of).collect()
    }

    /// Every connected proxy, as what it enforces is asked about.
    pub(crate) fn clients(&self) -> Vec<Client> {
        self.entries.lock().values().map(|entry| entry.client.clone()).collect()
    }

    /// How far a generation has come, and who refuses what was made from these rules: also what was refused before, and is the
    /// same now.
    fn reached(&self, generation: u64, rules: &[String]) -> InForce {
        let mut state = self.in_force(generation);
        let refused = rules.iter().flat_map(|rule| self.refused_rule(rule));
        state.refused.extend(refused);
        state.refused.sort();
        state.refused.dedup();
        state.complete = state.waiting.is_empty() && state.refused.is_empty();
        state
    }

    /// Waits until every connected proxy has a generation in force, or has refused something of it; at most `timeout`. Of `rules`
    /// earlier refusals count, too.
    pub async fn wait(&self, generation: u64, rules: &[String], timeout: Duration) -> InForce {
        let (mut changed, mut marked) = (self.changed.subscribe(), self.audience.generations());
        let reached = async {
            loop {
                changed.mark_unchanged();
                marked.mark_unchanged();
                let state = self.reached(generation, rules);
                // Whoever refused will not come round by waiting.
                if state.waiting.len() <= self.refusing(generation) {
                    return state;
                }
                let more = tokio::select! {
                    more = changed.changed() => more,
                    more = marked.changed() => more,
                };
                if more.is_err() {
                    return state;
                }
            }
        };
        match tokio::time::timeout(timeout, reached).await {
            Ok(state) => state,
            Err(_) => self.reached(generation, rules),
        }
    }

    /// Proxies that lack a generation because they refused something of it.
    fn refusing(&self, generation: u64) -> usize {
        let marked = self.audience.generation();
        let entries = self.entries.lock();
        let stuck = |entry: &&Entry| {
            entry.generation(marked) < generation && !entry.refusals_since(generation).is_empty()
        };
        entries.values().filter(stuck).count()
    }
}

impl Entry {
    /// The generation that it has in force. `marked` is the one up to which it is known what concerns whom; it is read first.
    fn generation(&self, marked: u64) -> u64 {
        let confirmed = if self.client.kind == ClientKind::Outrigger { self.barrier } else { self.settled };
        // Generations after the last one that had something for it are in force there by themselves.
        if confirmed > 0 && confirmed >= self.client.seat.due() { confirmed.max(marked) } else { confirmed }
    }

    fn name(&self) -> String {
        self.client.name().to_owned()
    }

    fn refusals_since(&self, generation: u64) -> Vec<String> {
        let since = self.refused.values().filter(|(_, _, at)| *at >= generation);
        since.map(|(refusal, ..)| format!("{}: {}", self.name(), refusal.text())).collect()
    }

    fn status(&self, latest: u64, marked: u64, now: SystemTime) -> ProxyStatus {
        let age = |since: SystemTime| now.duration_since(since).map_or(0, |age| age.as_secs());
        let generation = self.generation(marked);
        let state = |count: &TypeCount| match (count.sent, count.in_flight) {
            (0, _) => "NOT SENT",
            (_, None) => "SYNCED",
            (_, Some(_)) => "STALE",
        };
        let types = self.types.iter().map(|(kind, count)| {
            let TypeCount { sent, resources, acked, nacked, in_flight } = *count;
            let (state, stale_seconds) = (state(count).to_owned(), in_flight.map(age));
            (format!("{kind:?}"), TypeStatus { sent, resources, acked, nacked, state, stale_seconds })
        });
        ProxyStatus {
            node: self.client.node.clone(),
            instance: self.client.instance.clone(),
            identity: self.client.identity.as_ref().map(ToString::to_string),
            client: named(self.client.kind),
            version: self.client.version.clone(),
            connected_seconds: age(self.connected),
            generation,
            synced: generation >= latest,
            replica: None,
            sidecar: None,
            types: types.collect(),
            refused: self
                .refused
                .values()
                .map(|(refusal, at, _)| Refusal { age_seconds: age(*at), ..refusal.clone() })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests;
