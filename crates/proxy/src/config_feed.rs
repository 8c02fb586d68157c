//! The feed of configuration: what the control plane sends becomes snapshots, what workers ask for becomes subscriptions.
//!
//! Runs on the control runtime. Decides nothing itself: `state` says what is in force and what to subscribe to; building and
//! swapping the snapshot is the [`Publish`]er's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrigger_model::endpoint::EndpointSet;
use outrigger_model::resource::{Host, Invalid, Resource, ResourceKind, TrustBundleSecret};
use outrigger_xds::client::{Client, Event, Events};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::disk::{SnapshotFile, Unusable};
use crate::resolve::Resolver;

pub mod metrics;
pub mod state;

use state::{Bounds, FeedState, ResourceKey, Step, is_of_tls};

/// Takes what is in force.
pub trait Publish: Send + 'static {
    /// Builds and swaps a snapshot. What cannot be built is left out of it and returned; its last good version stays.
    fn publish(
        &mut self,
        generation: u64,
        in_force: &[Arc<Resource>],
        absent: &BTreeSet<ResourceKey>,
    ) -> Vec<(ResourceKey, Invalid)>;
    /// New roots to trust, and who is trusted no longer.
    fn trust(&mut self, secret: &TrustBundleSecret);
    /// Who was trusted no longer when the configuration was stored that serves for now.
    fn revoke(&mut self, secret: &TrustBundleSecret);
    /// The destinations and hosts that were answered, with the time for which nobody has used them; `None`: somebody does.
    fn usage(&self) -> Vec<(ResourceKey, Option<Duration>)>;
    /// From now on nobody begins to use it; says no if somebody has begun.
    fn retire(&self, key: &ResourceKey) -> bool;
}

/// What the feed says of itself to the admin server and to readiness.
#[derive(Debug, Clone, Default)]
pub struct FeedStatus {
    /// The stream to the control plane is open.
    pub connected: bool,
    /// Why it is not, if it is not.
    pub disconnected: Option<String>,
    /// Since when it is not, unless it never was tried.
    pub disconnected_since: Option<Instant>,
    /// The last generation that is in force.
    pub generation: u64,
    /// The first configuration was applied, from the control plane or from disk.
    pub applied: bool,
    /// When what serves was stored, while it comes from disk.
    pub from_disk: Option<SystemTime>,
    /// Refused resources, the newest last.
    pub refused: Vec<String>,
    /// Destinations subscribed to.
    pub destinations: usize,
    /// Names subscribed to for DNS.
    pub hosts: usize,
    /// Destinations and names that were given up because nobody used them.
    pub forgotten: u64,
    /// When the control plane last said something of a type.
    pub heard: BTreeMap<ResourceKind, Instant>,
}

impl FeedStatus {
    /// Since when nobody can have said that what serves is not what should: the control plane is away. `None`: it is there.
    pub fn unconfirmed(&self) -> Option<Duration> {
        let away = self.disconnected_since.filter(|_| !self.connected).map(|since| since.elapsed());
        let stored = self.from_disk.map(|since| since.elapsed().unwrap_or_default());
        away.max(stored)
    }
}

/// Refusals that are remembered for people.
const MOST_REFUSED: usize = 32;
/// How often unused destinations are looked for.
const SWEEP: Duration = Duration::from_secs(30);
/// The disk is written at most this often.
const WRITE_INTERVAL: Duration = Duration::from_millis(500);

/// Everything that the feed works with.
pub struct ConfigFeed<P> {
    /// The ADS client.
    pub client: Client,
    /// Its events.
    pub events: Events,
    /// What workers and DNS ask for.
    pub demands: mpsc::Receiver<ResourceKey>,
    /// Asks DNS for what clusters of names consist of.
    pub resolver: Resolver,
    /// The state, at which pages look while nothing changes it. Where its lock and that of `status` are taken, that one comes first.
    pub state: Arc<Mutex<FeedState>>,
    /// Takes what is in force.
    pub publisher: P,
    /// How many destinations and hosts are kept.
    pub bounds: Bounds,
    /// Holds the last good configuration.
    pub file: SnapshotFile,
    /// What the feed says of itself.
    pub status: Arc<Mutex<FeedStatus>>,
}

/// What is subscribed whatever happens; which names of the world have addresses only for who answers DNS.
pub fn always(dns: bool) -> impl Iterator<Item = ResourceKey> {
    let all = [(ResourceKind::Secret, "ROOTCA"), (ResourceKind::Barrier, "barrier")];
    let outside = dns.then_some((ResourceKind::Host, Host::OUTSIDE));
    all.into_iter().chain(outside).map(|(kind, name)| (kind, name.to_owned()))
}

impl<P: Publish> ConfigFeed<P> {
    /// Serves from disk until the control plane answers, if there is something to serve from.
    pub fn restore(&mut self) {
        match self.file.read() {
            Ok(good) => {
                tracing::info!(
                    age_seconds = good.age.as_secs(),
                    generation = good.generation,
                    resources = good.resources.len(),
                    "serving the last good configuration from disk until the control plane answers"
                );
                for stored in &good.resources {
                    match &stored.resource {
                        Resource::Secret(secret) => self.publisher.revoke(secret),
                        Resource::Endpoints(set) => self.resolver.restore(set),
                        _ => {}
                    }
                }
                let stored = good.resources.into_iter().map(|stored| (stored.resource, stored.version));
                self.state.lock().restore(stored, good.generation, Instant::now());
                self.status.lock().from_disk = SystemTime::now().checked_sub(good.age);
                self.publish();
            }
            Err(Unusable::Absent(_)) => {}
            Err(unusable) => tracing::warn!(%unusable, "no configuration from disk"),
        }
    }

    /// Runs until the client ends.
    pub async fn run(mut self) {
        self.client.wildcard(ResourceKind::Listener);
        self.client.wildcard(ResourceKind::Cluster);
        let mut deadline = self.advance();
        let mut unsaved = false;
        let mut last_write = Instant::now();
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let warm = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let write = async {
                match unsaved {
                    true => tokio::time::sleep_until((last_write + WRITE_INTERVAL).into()).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => unsaved |= self.take(event),
                    None => return,
                },
                Some(wanted) = self.demands.recv() => {
                    if self.demand(wanted) {
                        self.forget_unused();
                    }
                }
                sets = self.resolver.next() => unsaved |= self.resolved(sets),
                _ = sweep.tick() => self.forget_unused(),
                () = warm => {}
                () = write => {
                    self.save().await;
                    unsaved = false;
                    last_write = Instant::now();
                    continue;
                }
            }
            deadline = self.advance();
        }
    }

    /// Somebody wants a destination or a host; whether there are too many of them by now.
    fn demand(&self, wanted: ResourceKey) -> bool {
        let mut state = self.state.lock();
        state.demand(wanted, Instant::now());
        state.is_crowded(&self.bounds)
    }

    /// Gives up what nobody uses. The step that follows unsubscribes, before anybody is heard who asks anew. While the control
    /// plane is away nothing that was answered is given up: nobody could answer for it again.
    fn forget_unused(&mut self) {
        let mut used = self.publisher.usage();
        if !self.status.lock().connected {
            used.iter_mut().for_each(|(_, idle)| *idle = None);
        }
        let surplus = self.state.lock().surplus(&used, &self.bounds, Instant::now());
        for key in surplus {
            let answered = used.iter().any(|(known, _)| *known == key);
            if !answered || self.publisher.retire(&key) {
                tracing::debug!(kind = ?key.0, name = key.1, "forgotten: nobody has used it");
                self.state.lock().forget(&key);
                self.status.lock().forgotten += 1;
            }
        }
    }

    /// Whether something arrived that is worth storing.
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Connected => {
                tracing::info!("connected to the control plane");
                self.state.lock().forget_barrier();
                let mut status = self.status.lock();
                status.connected = true;
                status.disconnected = None;
                status.disconnected_since = None;
            }
            Event::Disconnected { reason } => {
                let mut status = self.status.lock();
                if status.connected || status.disconnected.as_ref() != Some(&reason) {
                    tracing::warn!(
                        reason,
                        "no stream to the control plane; the last good configuration goes on serving"
                    );
                }
                status.connected = false;
                status.disconnected = Some(reason);
                status.disconnected_since.get_or_insert_with(Instant::now);
            }
            Event::Update { kind, upserts, removed } => {
                let now = Instant::now();
                // That a name looked up is not in the mesh is never stored.
                let mut stores = !upserts.is_empty();
                let mut state = self.state.lock();
                for (resource, version) in upserts {
                    if let Resource::Secret(secret) = &resource {
                        self.publisher.trust(secret);
                    }
                    state.upsert(resource, version, now);
                }
                for name in removed {
                    stores |= state.remove(kind, &name);
                }
                drop(state);
                let mut status = self.status.lock();
                status.heard.insert(kind, now);
                if status.from_disk.take().is_some() {
                    tracing::info!("the control plane answers again");
                }
                return stores;
            }
            Event::Rejected { invalid, version, wants_tls } => {
                let now = Instant::now();
                let mut state = self.state.lock();
                let barred = (wants_tls || is_of_tls(&invalid)) && state.bar(&invalid, &version, now);
                state.reject(&invalid, &version, now);
                drop(state);
                self.refuse(&invalid, &version, barred);
                return barred;
            }
        }
        false
    }

    /// What DNS said, as if the control plane had: says whether something arrived that is worth storing.
    fn resolved(&mut self, sets: Vec<EndpointSet>) -> bool {
        let (now, version) = (Instant::now(), "dns");
        let any = !sets.is_empty();
        for set in sets {
            self.state.lock().upsert(Resource::Endpoints(set), version.to_owned(), now);
        }
        any
    }

    /// `barred`: what was there before does not serve either.
    fn refuse(&self, invalid: &Invalid, version: &str, barred: bool) {
        let so = match barred {
            true => "nobody is called there, as what was there before may be plain text",
            false => "its last good version goes on serving",
        };
        tracing::warn!(%invalid, version, "a resource is refused; {so}");
        let mut status = self.status.lock();
        if status.refused.len() == MOST_REFUSED {
            status.refused.remove(0);
        }
        status.refused.push(format!("{invalid} (version {version})"));
    }

    /// Brings in force what is ready, until nothing changes.
    fn advance(&mut self) -> Option<Instant> {
        loop {
            let mut step = self.state.lock().step(Instant::now());
            let wanted = step.resolve.take();
            let deadline = self.carry_out(step);
            // Names that other clusters have as well are known already.
            let known = wanted.map(|wanted| self.resolver.want(wanted)).unwrap_or_default();
            if !self.resolved(known) {
                return deadline;
            }
        }
    }

    fn carry_out(&mut self, step: Step) -> Option<Instant> {
        let Step { changed, subscribe, unsubscribe, resolve: _, barrier, deadline, late } = step;
        for ((kind, name), (missing_kind, missing)) in late {
            tracing::warn!(
                ?kind,
                name,
                ?missing_kind,
                missing,
                "in force although what it refers to did not arrive in time"
            );
        }
        for (kind, name) in &unsubscribe {
            self.client.unsubscribe(*kind, name);
        }
        for (kind, name) in &subscribe {
            self.client.subscribe(*kind, name);
        }
        if changed || barrier.is_some() || !self.status.lock().applied {
            self.publish();
        }
        if let Some(generation) = barrier {
            // After the swap: every worker reads the new snapshot with its next request or connection.
            self.client.ack_barrier(generation);
        }
        deadline
    }

    fn publish(&mut self) {
        let generation = self.state.lock().acknowledged();
        let refused = self.bring_in_force(generation);
        let stands_in = self.state.lock().settle(&refused, Instant::now());
        if stands_in {
            // What stands in place of those that must not go on as they were: there is nothing in it to refuse.
            self.bring_in_force(generation);
        }
        for ((kind, name), invalid) in refused {
            let version = self.state.lock().version(kind, &name).unwrap_or_default();
            self.refuse(&invalid, &version, is_of_tls(&invalid));
            self.client.reject(kind, &name, &version, invalid);
        }
        let mut status = self.status.lock();
        let state = self.state.lock();
        status.applied |= generation > 0 || state.in_force().next().is_some();
        status.generation = generation;
        status.destinations = state.wanted(ResourceKind::Destination);
        status.hosts = state.wanted(ResourceKind::Host);
    }

    fn bring_in_force(&mut self, generation: u64) -> Vec<(ResourceKey, Invalid)> {
        let state = self.state.lock();
        let in_force: Vec<Arc<Resource>> = state.in_force().map(|(_, held)| held.resource.clone()).collect();
        self.publisher.publish(generation, &in_force, state.absent())
    }

    /// With the versions.
    fn serving(&self) -> (u64, Vec<(Arc<Resource>, String)>) {
        let state = self.state.lock();
        let held = state.in_force().map(|(_, held)| (held.resource.clone(), held.version.clone()));
        (state.acknowledged(), held.collect())
    }

    async fn save(&self) {
        let file = self.file.clone();
        let (generation, held) = self.serving();
        let written = tokio::task::spawn_blocking(move || {
            file.write(generation, held.iter().map(|(resource, version)| (&**resource, version.as_str())))
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the last good configuration could not be stored; a restart during an outage would serve an older one")
            }
            Err(error) => tracing::warn!(%error, "storing the configuration failed"),
        }
    }
}

#[cfg(test)]
mod tests;
