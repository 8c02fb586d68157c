//! Which resources were received, which are in force, and what to subscribe to: a pure state machine with an injected clock.
//!
//! ADS has no transaction across types. A resource is *received* when the client has it, and goes *in force* once all that it
//! refers to ([`Resource::references`]) was received too, at the latest [`WARM_LIMIT`] after it arrived; until then its previous
//! version serves.
//!
//! Destinations and hosts are asked for on demand, one by one; nothing here tells the two apart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_model::cluster::{Cluster, Discovery, DnsDiscovery};
use outrigger_model::resource::{Invalid, Resource, ResourceKind};

/// A resource goes in force at the latest this long after it arrived, even if something that it names is missing.
pub const WARM_LIMIT: Duration = Duration::from_secs(15);

/// A connection waits for an answer no longer than this, so who asked before has given up.
const WAITING: Duration = Duration::from_secs(60);

/// After so long TLS that could not be set up is tried again; then after twice as long, and so on, up to the second.
const AGAIN: Duration = Duration::from_secs(10);
const SELDOM: Duration = Duration::from_secs(300);

/// How many destinations are kept, and how many hosts, and for how long nobody may use one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Beyond so many those that were unused for the longest are forgotten. Those in use stay, however many they are.
    pub most: usize,
    /// One that nobody has used for so long is forgotten.
    pub idle: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { most: 1024, idle: Duration::from_secs(3600) }
    }
}

mod freshness;

pub use freshness::{Freshness, Subscription};

/// Kind and name.
pub type ResourceKey = (ResourceKind, String);

/// A received resource.
#[derive(Debug, Clone)]
pub struct Held {
    /// The resource.
    pub resource: Arc<Resource>,
    /// Its version.
    pub version: String,
    /// Since when it waits to be in force.
    since: Instant,
    /// When it came.
    came: Instant,
}

/// All that is known of configuration.
#[derive(Debug, Default)]
pub struct FeedState {
    received: BTreeMap<ResourceKey, Held>,
    in_force: BTreeMap<ResourceKey, Held>,
    /// What served before a version that may yet turn out not to be usable.
    last_good: BTreeMap<ResourceKey, Held>,
    /// Versions that could not be used.
    refused: BTreeMap<ResourceKey, Arc<Resource>>,
    /// Of those the clusters where nobody is called, with the time at which their TLS is tried again, and how long that was waited for: it
    /// may only be that a file comes late.
    barred: BTreeMap<ResourceKey, (Instant, Duration)>,
    /// With the time at which somebody last asked.
    demanded: BTreeMap<ResourceKey, Instant>,
    pinned: BTreeSet<ResourceKey>,
    always: BTreeSet<ResourceKey>,
    absent: BTreeSet<ResourceKey>,
    absent_changed: bool,
    /// With the time since when.
    subscribed: BTreeMap<ResourceKey, Instant>,
    /// Versions that could not be read, until another comes.
    unreadable: BTreeMap<ResourceKey, (String, Instant)>,
    /// The endpoint sets that DNS is asked for.
    resolving: BTreeSet<String>,
    barrier: Option<u64>,
    acknowledged: u64,
}

/// What a step asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What is in force changed: build and swap a snapshot before anything else.
    pub changed: bool,
    /// Names to subscribe to.
    pub subscribe: Vec<ResourceKey>,
    /// Names that nothing refers to any more.
    pub unsubscribe: Vec<ResourceKey>,
    /// The endpoint sets to ask DNS for from now on, where they are others than before: they arrive as if they were sent.
    pub resolve: Option<BTreeMap<String, DnsDiscovery>>,
    /// After the swap: acknowledge this generation.
    pub barrier: Option<u64>,
    /// Step again at this time, even if nothing arrives.
    pub deadline: Option<Instant>,
    /// Went in force although these were missing.
    pub late: Vec<(ResourceKey, ResourceKey)>,
}

impl FeedState {
    /// `always` are subscribed whatever happens: the trust bundle, the barrier.
    pub fn new(always: impl IntoIterator<Item = ResourceKey>) -> Self {
        Self { always: always.into_iter().collect(), ..Self::default() }
    }

    /// Somebody wants a destination or a host.
    pub fn demand(&mut self, wanted: ResourceKey, now: Instant) {
        self.demanded.insert(wanted, now);
    }

    /// Somebody wants a destination for good: it is never surplus.
    pub fn pin(&mut self, destination: &str) {
        self.pinned.insert((ResourceKind::Destination, destination.to_owned()));
    }

    /// How many of a kind are subscribed to on demand.
    pub fn wanted(&self, kind: ResourceKind) -> usize {
        let pinned = self.pinned.iter().filter(|key| key.0 == kind && !self.demanded.contains_key(*key));
        of_kind(&self.demanded, kind).count() + pinned.count()
    }

    /// Whether there are more of a kind than the bound, so that the longest unused have to go.
    pub fn is_crowded(&self, bounds: &Bounds) -> bool {
        // The sum is the cheap look: this is asked with every demand.
        self.demanded.len() > bounds.most
            && ResourceKind::ON_DEMAND.iter().any(|kind| of_kind(&self.demanded, *kind).count() > bounds.most)
    }

    /// What to forget of each kind: all that were idle for too long, then the longest idle until the bound holds. `used` are
    /// those that were answered, with the time for which nobody has used them, or `None` while somebody does. Who waits
    /// for an answer uses it too.
    pub fn surplus(
        &self,
        used: &[(ResourceKey, Option<Duration>)],
        bounds: &Bounds,
        now: Instant,
    ) -> Vec<ResourceKey> {
        let used: BTreeMap<&ResourceKey, Option<Duration>> =
            used.iter().map(|(key, idle)| (key, *idle)).collect();
        let of_kind = |kind| self.surplus_of(kind, &used, bounds, now);
        ResourceKind::ON_DEMAND.into_iter().flat_map(of_kind).collect()
    }

    fn surplus_of(
        &self,
        kind: ResourceKind,
        used: &BTreeMap<&ResourceKey, Option<Duration>>,
        bounds: &Bounds,
        now: Instant,
    ) -> Vec<ResourceKey> {
        let mut idle: Vec<(Duration, &ResourceKey)> = of_kind(&self.demanded, kind)
            .filter(|(key, _)| !self.pinned.contains(*key))
            .filter_map(|(key, asked)| {
                let idle = match used.get(key) {
                    Some(idle) => (*idle)?,
                    None => Some(now.saturating_duration_since(*asked)).filter(|asked| *asked > WAITING)?,
                };
                Some((idle, key))
            })
            .collect();
        idle.sort_unstable_by(|a, b| b.cmp(a));
        let beyond = of_kind(&self.demanded, kind).count().saturating_sub(bounds.most);
        let old = idle.iter().take_while(|(idle, _)| *idle >= bounds.idle).count();
        idle.truncate(beyond.max(old));
        idle.into_iter().map(|(_, key)| key.clone()).collect()
    }

    /// Nobody wants it any more.
    pub fn forget(&mut self, unwanted: &ResourceKey) {
        self.demanded.remove(unwanted);
        self.absent_changed |= self.absent.remove(unwanted);
        self.received.remove(unwanted);
    }

    /// A resource arrived.
    pub fn upsert(&mut self, resource: Resource, version: String, now: Instant) {
        if let Resource::Barrier(barrier) = &resource {
            self.barrier = Some(barrier.generation);
            return;
        }
        let key = (resource.kind(), resource.name().to_owned());
        self.absent.remove(&key);
        // Whoever is sent again and again while something is missing goes in force in time all the same.
        let waiting = self.received.get(&key).filter(|held| !self.serves(&key, held));
        let since = waiting.map_or(now, |held| held.since);
        self.unreadable.remove(&key);
        let resource = self.known(&key, &resource).unwrap_or_else(|| Arc::new(resource));
        if let Some(serving) = self.in_force.get_mut(&key)
            && Arc::ptr_eq(&serving.resource, &resource)
        {
            serving.version.clone_from(&version);
        }
        self.received.insert(key, Held { resource, version, since, came: now });
    }

    /// A resource that is here already: with it stays what was compiled of it. One that could not be used is tried again instead.
    fn known(&self, key: &ResourceKey, resource: &Resource) -> Option<Arc<Resource>> {
        let held = [self.received.get(key), self.in_force.get(key)].into_iter().flatten();
        let mut same = held.map(|held| &held.resource).filter(|known| ***known == *resource);
        same.find(|known| self.refused.get(key).is_none_or(|bad| !Arc::ptr_eq(bad, known))).cloned()
    }

    /// Whether this very resource is in force, or was and could not be used.
    fn serves(&self, key: &ResourceKey, held: &Held) -> bool {
        let same = |known: &Arc<Resource>| Arc::ptr_eq(known, &held.resource);
        self.in_force.get(key).is_some_and(|known| same(&known.resource))
            || self.refused.get(key).is_some_and(same)
    }

    /// What just went in force can be used, except these: of them the last good version is in force again, if there is one. Of a
    /// cluster whose TLS cannot be built it is not: nobody can be called there. Says whether there is such a one.
    pub fn settle(&mut self, refused: &[(ResourceKey, Invalid)], now: Instant) -> bool {
        let mut any = false;
        for (key, invalid) in refused {
            let Some(bad) = self.in_force.get(key).cloned() else { continue };
            if self.received.get(key).is_none_or(|held| !Arc::ptr_eq(&held.resource, &bad.resource)) {
                continue;
            }
            self.refused.insert(key.clone(), bad.resource.clone());
            match (&*bad.resource, self.last_good.remove(key)) {
                (Resource::Cluster(cluster), _) if is_of_tls(invalid) => {
                    let barred = Resource::Cluster(cluster.clone().barred(&invalid.reason));
                    self.in_force.insert(key.clone(), Held { resource: Arc::new(barred), ..bad });
                    let wait = self.barred.get(key).map_or(AGAIN, |(_, before)| (*before * 2).min(SELDOM));
                    self.barred.insert(key.clone(), (now + wait, wait));
                    any = true;
                }
                (_, Some(good)) => drop(self.in_force.insert(key.clone(), good)),
                (_, None) => drop(self.in_force.remove(key)),
            }
        }
        self.last_good.clear();
        let received = &self.received;
        self.refused
            .retain(|key, bad| received.get(key).is_some_and(|held| Arc::ptr_eq(&held.resource, bad)));
        let refused = &self.refused;
        self.barred.retain(|key, _| refused.contains_key(key));
        any
    }

    /// Those whose time has come are as if they had just arrived.
    fn try_again(&mut self, now: Instant) -> Option<Instant> {
        for (key, (at, wait)) in &mut self.barred {
            if *at <= now
                && let Some(held) = self.received.get_mut(key)
            {
                held.resource = Arc::new((*held.resource).clone());
                *at = now + *wait;
            }
        }
        self.barred.values().map(|(at, _)| *at).min()
    }

    /// A cluster that asks for TLS could not even be read: where its TLS is at fault, or what was there before may be plain text, nobody
    /// can be called there. Says whether that is so.
    pub fn bar(&mut self, invalid: &Invalid, version: &str, now: Instant) -> bool {
        let before = self.received.get(&(ResourceKind::Cluster, invalid.name.clone()));
        let known = before.and_then(|held| match &*held.resource {
            Resource::Cluster(cluster) => Some(cluster),
            _ => None,
        });
        if !is_of_tls(invalid) && known.is_none_or(|cluster| cluster.tls.is_for_all()) {
            return false;
        }
        let cluster = known.cloned().unwrap_or_else(|| Cluster::new(&invalid.name));
        let why = format!("{}: {}", invalid.field, invalid.reason);
        self.upsert(Resource::Cluster(cluster.barred(&why)), version.to_owned(), now);
        true
    }

    /// The control plane says that a name does not exist. Of what nobody asks for (any more) this is not kept: traffic to
    /// what is known to be absent passes by the mesh, and nobody would be told when it joins. Says whether there was one.
    pub fn remove(&mut self, kind: ResourceKind, name: &str) -> bool {
        let key = (kind, name.to_owned());
        let held = self.received.remove(&key).is_some();
        self.unreadable.remove(&key);
        if kind.is_on_demand() && (self.demanded.contains_key(&key) || self.pinned.contains(&key)) {
            self.absent_changed |= self.absent.insert(key);
        }
        held
    }

    /// Everything that is in force.
    pub fn in_force(&self) -> impl Iterator<Item = (&ResourceKey, &Held)> {
        self.in_force.iter()
    }

    /// The version that was received of a name.
    pub fn version(&self, kind: ResourceKind, name: &str) -> Option<String> {
        self.received.get(&(kind, name.to_owned())).map(|held| held.version.clone())
    }

    /// Destinations and hosts that are known not to be in the mesh.
    pub fn absent(&self) -> &BTreeSet<ResourceKey> {
        &self.absent
    }

    /// The last acknowledged generation.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// There is another stream: what the one before waited for is nobody's question any more.
    pub fn forget_barrier(&mut self) {
        self.barrier = None;
    }

    /// Starts from what was stored on disk: in force at once, and replaced by whatever the control plane says.
    pub fn restore(
        &mut self,
        stored: impl IntoIterator<Item = (Resource, String)>,
        generation: u64,
        now: Instant,
    ) {
        for (resource, version) in stored {
            let key = (resource.kind(), resource.name().to_owned());
            if key.0.is_on_demand() {
                // It serves, so nobody will ask for it: without this it would stay as it was stored for ever.
                self.demanded.insert(key.clone(), now);
            }
            let held = Held { resource: Arc::new(resource), version, since: now, came: now };
            self.received.insert(key.clone(), held.clone());
            self.in_force.insert(key, held);
        }
        self.acknowledged = generation;
    }

    /// Brings in force what is ready.
    pub fn step(&mut self, now: Instant) -> Step {
        let deadline = self.try_again(now);
        let mut step =
            Step { changed: std::mem::take(&mut self.absent_changed), deadline, ..Step::default() };
        let waiting = self.promote(now, &mut step);
        self.retire(&mut step);
        self.subscriptions(&mut step, now);
        if waiting == 0
            && step.subscribe.is_empty()
            && let Some(generation) = self.barrier.take()
        {
            self.acknowledged = generation;
            step.barrier = Some(generation);
        }
        step
    }

    /// Leaves first, so that one pass carries a whole chain; returns how many wait.
    fn promote(&mut self, now: Instant, step: &mut Step) -> usize {
        use ResourceKind::{Cluster, Destination, Endpoints, Host, Listener, Routes, Secret};
        let mut waiting = 0;
        for kind in [Secret, Endpoints, Cluster, Routes, Listener, Destination, Host] {
            let candidates: Vec<ResourceKey> = of_kind(&self.received, kind)
                .filter(|(key, held)| !self.serves(key, held))
                .map(|(key, _)| key.clone())
                .collect();
            for key in candidates {
                let Some(held) = self.received.get(&key).cloned() else { continue };
                let missing = references(&held.resource).find(|needed| !self.is_ready(needed));
                if let Some(missing) = missing {
                    let limit = held.since + WARM_LIMIT;
                    if now < limit {
                        waiting += 1;
                        step.deadline = Some(step.deadline.map_or(limit, |d| d.min(limit)));
                        continue;
                    }
                    step.late.push((key.clone(), missing));
                }
                let old = self.in_force.insert(key.clone(), held.clone());
                step.changed |= old.as_ref().is_none_or(|old| old.resource != held.resource);
                if let Some(old) = old {
                    self.last_good.entry(key).or_insert(old);
                }
            }
        }
        waiting
    }

    /// Something is ready when it is in force, so that a whole chain is. What cannot be used is not waited for.
    fn is_ready(&self, key: &ResourceKey) -> bool {
        self.in_force.contains_key(key) || self.refused.contains_key(key)
    }

    /// What was removed stays while something in force refers to it.
    fn retire(&mut self, step: &mut Step) {
        loop {
            let referred: BTreeSet<ResourceKey> =
                self.in_force.values().flat_map(|held| references(&held.resource)).collect();
            let gone: Vec<ResourceKey> = self
                .in_force
                .keys()
                .filter(|key| !self.received.contains_key(*key) && !referred.contains(*key))
                .cloned()
                .collect();
            if gone.is_empty() {
                return;
            }
            step.changed = true;
            for key in gone {
                self.in_force.remove(&key);
            }
        }
    }

    /// Demands, and everything that received or serving resources refer to. Of it, endpoint sets of names are DNS's to say.
    fn subscriptions(&mut self, step: &mut Step, now: Instant) {
        let mut wanted = self.always.clone();
        wanted.extend(self.demanded.keys().chain(&self.pinned).cloned());
        let mut open: Vec<ResourceKey> = wanted.iter().cloned().collect();
        // Inbound listeners and clusters come by wildcard; they are roots as well.
        open.extend(self.received.keys().filter(|key| self.is_wildcard(key)).cloned());
        let mut names: BTreeMap<String, &DnsDiscovery> = BTreeMap::new();
        while let Some(key) = open.pop() {
            for held in [self.received.get(&key), self.in_force.get(&key)].into_iter().flatten() {
                if let Some((name, dns)) = of_names(&held.resource) {
                    names.insert(name, dns);
                    continue;
                }
                for needed in references(&held.resource) {
                    if wanted.insert(needed.clone()) {
                        open.push(needed);
                    }
                }
            }
        }
        if !names.keys().eq(&self.resolving) {
            let asked = names.into_iter().map(|(name, dns)| (name, dns.clone()));
            let asked: BTreeMap<_, _> = asked.collect();
            self.resolving = asked.keys().cloned().collect();
            self.received.retain(|key, _| {
                key.0 != ResourceKind::Endpoints || wanted.contains(key) || asked.contains_key(&key.1)
            });
            step.resolve = Some(asked);
        }
        step.subscribe = wanted.iter().filter(|key| !self.subscribed.contains_key(*key)).cloned().collect();
        step.unsubscribe = self.subscribed.keys().filter(|key| !wanted.contains(*key)).cloned().collect();
        for key in &step.unsubscribe {
            self.received.remove(key);
            self.unreadable.remove(key);
            self.subscribed.remove(key);
        }
        self.subscribed.extend(step.subscribe.iter().map(|key| (key.clone(), now)));
        if !step.unsubscribe.is_empty() || step.resolve.is_some() {
            self.retire(step);
        }
    }

    fn is_wildcard(&self, key: &ResourceKey) -> bool {
        matches!(key.0, ResourceKind::Listener | ResourceKind::Cluster) && !self.subscribed.contains_key(key)
    }
}

/// Whether it is a cluster's TLS that cannot be taken.
pub fn is_of_tls(invalid: &Invalid) -> bool {
    invalid.kind == ResourceKind::Cluster && invalid.field.starts_with("transport_socket")
}

fn of_kind<V>(
    map: &BTreeMap<ResourceKey, V>,
    kind: ResourceKind,
) -> impl Iterator<Item = (&ResourceKey, &V)> {
    map.range((kind, String::new())..).take_while(move |((k, _), _)| *k == kind)
}

/// What a resource refers to, as keys.
fn references(resource: &Resource) -> impl Iterator<Item = ResourceKey> {
    resource.references().into_iter().map(|(kind, name)| (kind, name.into_owned()))
}

/// The endpoint set of a cluster of names.
fn of_names(resource: &Resource) -> Option<(String, &DnsDiscovery)> {
    let Resource::Cluster(cluster) = resource else { return None };
    let Discovery::Dns(dns) = &cluster.discovery else { return None };
    Some((cluster.endpoints_name()?.into_owned(), dns))
}

#[cfg(test)]
mod tests;
