//! Leases of registrations with a TTL: which have run out, and which of these are believed.
//!
//! A lease runs out a while after the last heartbeat. When a large part of a service seems to go at once, it is more likely
//! that heartbeats cannot reach us than that the instances died: nothing expires then, and that is reported. Time is passed
//! in, so that every decision can be tested without waiting.
//!
//! A heartbeat writes its time into the lease and nothing else: the queue finds out when the lease comes up, once in a TTL, and puts it
//! back. Only services with something due are looked at, and those where expiries are held once in `RECHECK`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::instance::Instance;

/// More than this share of a service at once is held. Percent.
const MASS_PERCENT: usize = 30;
/// How often held leases are looked at again.
/// So late nobody comes who was awake.
const ASLEEP: Duration = Duration::from_secs(5);
/// So many late ones are not chance, among however many.
const SEVERAL: usize = 3;
/// So long it may be that nobody is heard; then they have gone.
const DEAF: Duration = Duration::from_secs(600);
const RECHECK: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Lease {
    instance: Arc<Instance>,
    service: Arc<str>,
    ttl: Duration,
    renewed: Instant,
    /// Where it is in the queue, not later than it runs out. Nowhere: it has run out, and is one of its service's.
    queued: Option<Instant>,
    held: bool,
}

/// The leases of one service.
#[derive(Debug, Default)]
struct Service {
    leases: BTreeSet<Arc<str>>,
    /// Run out, and not decided yet or held.
    due: BTreeSet<Arc<str>>,
    /// Expired lately, so that a slow mass expiry counts as one: when.
    recent: BTreeMap<Arc<str>, Instant>,
    /// When it is looked at, if it is to be.
    look: Option<Instant>,
}

/// A service whose expiries are held.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// `namespace/service`.
    pub service: String,
    /// The instances that would have expired.
    pub instances: Vec<String>,
}

/// The leases of all registrations that have a TTL.
#[derive(Debug, Default)]
pub struct Leases {
    leases: HashMap<Arc<str>, Lease>,
    services: BTreeMap<Arc<str>, Service>,
    /// When to look at a lease, each at most once.
    queue: BTreeSet<(Instant, Arc<str>)>,
    /// When to look at a service.
    looks: BTreeSet<(Instant, Arc<str>)>,
    held: Arc<Vec<Held>>,
    /// What is held has changed.
    stale: bool,
}

impl Leases {
    /// Begins or renews the lease of an instance; one without a TTL has none.
    pub fn renew(&mut self, instance: &Arc<Instance>, now: Instant) {
        let known =
            self.leases.get(instance.id.as_str()).is_some_and(|lease| Arc::ptr_eq(&lease.instance, instance));
        if known {
            self.beat(&instance.id, now);
            return;
        }
        self.forget(&instance.id);
        let service: Arc<str> = service_of(instance).into();
        if let Some(service) = self.services.get_mut(&service) {
            service.recent.remove(instance.id.as_str());
        }
        let Some(seconds) = instance.ttl_seconds else { return };
        let (ttl, id) = (Duration::from_secs(seconds.into()), Arc::<str>::from(instance.id.as_str()));
        self.services.entry(service.clone()).or_default().leases.insert(id.clone());
        let lease = Lease {
            instance: instance.clone(),
            service,
            ttl,
            renewed: now,
            queued: Some(now + ttl),
            held: false,
        };
        self.queue.insert((now + ttl, id.clone()));
        self.leases.insert(id, lease);
    }

    /// A heartbeat of an instance that has a lease.
    pub fn beat(&mut self, id: &str, now: Instant) {
        let Some(lease) = self.leases.get_mut(id) else { return };
        lease.renewed = now;
        if lease.queued.is_none() {
            self.requeue(id);
        }
    }

    /// What had run out has not, after all.
    fn requeue(&mut self, id: &str) {
        let Some((id, _)) = self.leases.get_key_value(id) else { return };
        let id = id.clone();
        let Some(lease) = self.leases.get_mut(&id) else { return };
        let at = lease.renewed + lease.ttl;
        lease.queued = Some(at);
        self.stale |= std::mem::take(&mut lease.held);
        if let Some(service) = self.services.get_mut(&lease.service) {
            service.due.remove(&id);
        }
        self.queue.insert((at, id));
    }

    /// Ends a lease without expiry.
    pub fn forget(&mut self, id: &str) {
        let Some((id, lease)) = self.leases.remove_entry(id) else { return };
        self.stale |= lease.held;
        if let Some(at) = lease.queued {
            self.queue.remove(&(at, id.clone()));
        }
        let Some(service) = self.services.get_mut(&lease.service) else { return };
        service.leases.remove(&id);
        service.due.remove(&id);
        if service.leases.is_empty() {
            if let Some(at) = service.look {
                self.looks.remove(&(at, lease.service.clone()));
            }
            self.services.remove(&lease.service);
        }
    }

    /// Whether an instance has one.
    pub fn has(&self, id: &str) -> bool {
        self.leases.contains_key(id)
    }

    /// When [`Leases::expire`] may have something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let first = |of: &BTreeSet<(Instant, Arc<str>)>| of.first().map(|(at, _)| *at);
        [first(&self.queue), first(&self.looks)].into_iter().flatten().min()
    }

    /// The instances that expire now; their leases are gone. `members` are all instances of a `namespace/service`, with or
    /// without a lease. What is held stays and is marked.
    pub fn expire(&mut self, now: Instant, members: impl Fn(&str) -> usize) -> Vec<String> {
        // Stopped for so long, this process has heard of nobody meanwhile.
        if self.next_deadline().is_some_and(|at| now.saturating_duration_since(at) > ASLEEP) {
            tracing::warn!("this process has been away for seconds: all leases begin anew");
            for id in self.leases.keys().cloned().collect::<Vec<_>>() {
                self.beat(&id, now);
            }
        }
        while let Some((at, id)) = self.queue.first().filter(|(at, _)| *at <= now).cloned() {
            self.queue.remove(&(at, id.clone()));
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            if !lease.is_due(now) {
                let later = lease.renewed + lease.ttl;
                lease.queued = Some(later);
                self.queue.insert((later, id));
                continue;
            }
            lease.queued = None;
            let Some(service) = self.services.get_mut(&lease.service) else { continue };
            service.due.insert(id);
            // Where it is to be looked at already, there is time until then.
            if service.look.is_none() {
                service.look = Some(now);
                self.looks.insert((now, lease.service.clone()));
            }
        }
        let mut expired = Vec::new();
        if self.looks.first().is_none_or(|(at, _)| *at > now) {
            return expired;
        }
        // Nobody is heard of: it is more likely that nobody is heard than that all have gone at once.
        let late = self.leases.values().filter(|lease| lease.is_late(now)).count();
        let deaf = late >= SEVERAL && late * 100 > self.leases.len() * MASS_PERCENT;
        while let Some((at, service)) = self.looks.first().filter(|(at, _)| *at <= now).cloned() {
            self.looks.remove(&(at, service.clone()));
            self.look(&service, now, (members(&service), deaf), &mut expired);
        }
        expired
    }

    /// Decides about what is due in a service that has so many members. Costs as much as it has leases.
    fn look(
        &mut self,
        name: &Arc<str>,
        now: Instant,
        (members, deaf): (usize, bool),
        expired: &mut Vec<String>,
    ) {
        let Some(service) = self.services.get_mut(name) else { return };
        service.look = None;
        let leases = || service.leases.iter().filter_map(|id| self.leases.get(id));
        let longest = leases().map(|lease| lease.ttl).max().unwrap_or_default();
        // Late ones count too: heartbeats of one service do not come at the same instant, so neither do expiries.
        let late = leases().filter(|lease| lease.is_late(now)).count();
        service.recent.retain(|_, at| now.saturating_duration_since(*at) <= longest);
        let gone = service.recent.len();
        let (missing, all) = (late + gone, members + gone);
        // The last of a service is not let go of then: calls to it fail without it, too.
        let overdue = |id: &Arc<str>| {
            self.leases
                .get(id)
                .is_some_and(|lease| now.saturating_duration_since(lease.renewed) >= lease.ttl + DEAF)
        };
        let last = service.due.len() >= members && !service.due.iter().any(overdue);
        let mass = (missing >= 2 && missing * 100 > all * MASS_PERCENT) || (deaf && last);
        if service.due.is_empty() {
            return;
        }
        if mass {
            for id in &service.due {
                let Some(lease) = self.leases.get_mut(id).filter(|lease| !lease.held) else { continue };
                (lease.held, self.stale) = (true, true);
                tracing::warn!(
                    instance = %id, service = %name,
                    "no heartbeat, but {missing} of {all} instances are missing at once: it stays registered; \
                     deregister it if it is really gone"
                );
            }
            service.look = Some(now + RECHECK);
            self.looks.insert((now + RECHECK, name.clone()));
            return;
        }
        let due = std::mem::take(&mut service.due);
        service.recent.extend(due.iter().map(|id| (id.clone(), now)));
        for id in due {
            self.forget(&id);
            expired.push(id.to_string());
        }
    }

    /// What is held at the moment; the same value as long as it is the same.
    pub fn held(&mut self) -> &Arc<Vec<Held>> {
        if std::mem::take(&mut self.stale) {
            let is_held = |id: &&Arc<str>| self.leases.get(*id).is_some_and(|lease| lease.held);
            let of = |(name, service): (&Arc<str>, &Service)| Held {
                service: name.to_string(),
                instances: service.due.iter().filter(is_held).map(ToString::to_string).collect(),
            };
            let all = self.services.iter().map(of).filter(|held| !held.instances.is_empty());
            self.held = Arc::new(all.collect());
        }
        &self.held
    }
}

impl Lease {
    fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.renewed) >= self.ttl
    }

    /// Two thirds of the TTL without a heartbeat: whoever sends three per TTL has missed one.
    fn is_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.renewed) * 3 >= self.ttl * 2
    }
}

/// `namespace/service`.
pub fn service_of(instance: &Instance) -> String {
    format!("{}/{}", instance.namespace, instance.service)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{Protocol, sample};

    fn leased(id: &str) -> Arc<Instance> {
        let instance = sample(id, "catalog", "v1", "127.0.0.5", 80, Protocol::Http);
        Arc::new(Instance { ttl_seconds: Some(30), ..instance })
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn one_silent_instance_of_many_expires_at_its_ttl() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        for n in 0..10 {
            leases.renew(&leased(&format!("c{n}")), start);
        }
        for n in 1..10 {
            leases.renew(&leased(&format!("c{n}")), start + seconds(20));
        }
        assert_eq!(leases.next_deadline(), Some(start + seconds(30)));
        assert!(leases.expire(start + seconds(29), |_| 10).is_empty());
        assert_eq!(leases.expire(start + seconds(30), |_| 10), ["c0"]);
        assert!(leases.held().is_empty());
    }

    #[test]
    fn mass_expiry_is_held_and_reported_until_heartbeats_come_back() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        for n in 0..10 {
            // Heartbeats are spread, so the expiries would be as well.
            leases.renew(&leased(&format!("c{n}")), start + seconds(n));
        }
        for at in 30..60 {
            assert!(leases.expire(start + seconds(at), |_| 10).is_empty(), "second {at}");
        }
        assert_eq!(leases.held().len(), 1);
        assert_eq!(leases.held()[0].service, "shop/catalog");
        assert_eq!(leases.held()[0].instances.len(), 10);
        for n in 0..9 {
            leases.renew(&leased(&format!("c{n}")), start + seconds(60));
        }
        // The others are back, so the last one is really gone.
        assert_eq!(leases.expire(start + seconds(61), |_| 10), ["c9"]);
        assert!(leases.held().is_empty());
    }

    #[test]
    fn the_only_instance_of_a_service_expires() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.renew(&leased("only"), start);
        assert_eq!(leases.expire(start + seconds(31), |_| 1), ["only"]);
        assert_eq!(leases.next_deadline(), None);
    }

    #[test]
    fn where_nobody_is_heard_of_no_service_loses_its_last() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let of = |id: &str| Arc::new(Instance { service: id.to_owned(), ..(*leased(id)).clone() });
        let ids = ["a", "b", "c", "d"];
        for (i, id) in ids.into_iter().enumerate() {
            leases.renew(&of(id), start + seconds(i as u64 * 2));
        }
        // Each is the only one of its service, and all fall silent.
        for after in 30..=40 {
            assert!(leases.expire(start + seconds(after), |_| 1).is_empty(), "{after}");
        }
        assert_eq!(leases.held().len(), 4);
        // Three are heard of again: the fourth has gone.
        for id in &ids[..3] {
            leases.beat(id, start + seconds(41));
        }
        assert_eq!(leases.expire(start + seconds(42), |_| 1), ["d"]);
        assert!(leases.held().is_empty());
    }

    #[test]
    fn who_is_not_heard_of_for_ten_minutes_more_has_gone() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let of = |id: &str| Arc::new(Instance { service: id.to_owned(), ..(*leased(id)).clone() });
        for id in ["a", "b", "c"] {
            leases.renew(&of(id), start);
        }
        let mut expired = Vec::new();
        for after in 30..=631 {
            expired.extend(leases.expire(start + seconds(after), |_| 1));
            assert!(expired.is_empty() || after >= 630, "{after}");
        }
        expired.sort();
        assert_eq!(expired, ["a", "b", "c"]);
    }

    #[test]
    fn a_process_that_was_stopped_begins_all_leases_anew() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.renew(&leased("a"), start);
        assert!(leases.expire(start + seconds(90), |_| 1).is_empty());
        assert_eq!(leases.next_deadline(), Some(start + seconds(120)));
        assert_eq!(leases.expire(start + seconds(121), |_| 1), ["a"]);
    }

    #[test]
    fn an_instance_without_ttl_never_expires() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.renew(&Arc::new(sample("a", "web", "v1", "127.0.0.5", 80, Protocol::Http)), start);
        assert!(leases.expire(start + seconds(1_000_000), |_| 1).is_empty());
    }

    #[test]
    fn a_shorter_ttl_a_move_and_an_end_leave_nothing_behind() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.renew(&leased("a"), start);
        let shorter =
            Arc::new(Instance { ttl_seconds: Some(5), service: "web".into(), ..(*leased("a")).clone() });
        leases.renew(&shorter, start);
        assert_eq!(leases.next_deadline(), Some(start + seconds(5)));
        assert_eq!(leases.services.keys().map(AsRef::as_ref).collect::<Vec<&str>>(), ["shop/web"]);
        leases.forget("a");
        assert!(leases.queue.is_empty() && leases.looks.is_empty() && leases.services.is_empty());
    }

    #[test]
    fn heartbeats_touch_nothing_but_the_lease_and_cost_no_wake_but_one_in_a_ttl() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let all: Vec<_> = (0..1000).map(|n| leased(&format!("c{n}"))).collect();
        all.iter().for_each(|instance| leases.renew(instance, start));
        let queue = leases.queue.clone();
        for at in 1..30 {
            all.iter().for_each(|instance| leases.beat(&instance.id, start + seconds(at)));
            assert!(leases.expire(start + seconds(at), |_| 1000).is_empty());
        }
        assert_eq!(leases.queue, queue, "nobody has moved");
        assert!(leases.expire(start + seconds(30), |_| 1000).is_empty());
        assert_eq!(leases.next_deadline(), Some(start + seconds(59)), "each has, once");
        assert_eq!(leases.queue.len(), 1000);
    }
}
