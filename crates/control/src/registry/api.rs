//! Registrations over the management API: who may register what, and leases.
//!
//! A lease runs out a while after the last heartbeat. When a large part of a service seems to go at once, it is more likely
//! that heartbeats cannot reach us than that the instances died: nothing expires then, and that is reported. Time is passed
//! in, so that every decision can be tested without waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outrigger_model::identity::SpiffeId;
use tokio::time::Instant;

use super::claim::Reach;
use crate::instance::Instance;

/// More than this share of a service at once is held. Percent.
const MASS_PERCENT: usize = 30;
/// Registrations of one identity that its workloads may make themselves, each of at most
/// [`crate::instance::MAX_BYTES`].
pub const MAX_PER_IDENTITY: usize = 1000;
/// How often held leases are looked at again.
const RECHECK: Duration = Duration::from_secs(1);

/// Who asks for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Somebody with the socket, the admin token or an admin certificate; the name goes into the history.
    Operator(String),
    /// A workload, and the services that its token allows it.
    Workload {
        /// What its certificate or token proves.
        identity: SpiffeId,
        /// The services that it may register in its namespace.
        services: Vec<String>,
        /// The addresses that it may register.
        reach: Reach,
    },
}

impl Caller {
    /// How the caller is named in the history.
    pub fn name(&self) -> &str {
        match self {
            Self::Operator(name) => name,
            Self::Workload { identity, .. } => identity.as_str(),
        }
    }

    /// Its identity, when it is a workload.
    pub fn identity(&self) -> Option<&SpiffeId> {
        match self {
            Self::Operator(_) => None,
            Self::Workload { identity, .. } => Some(identity),
        }
    }

    /// Whether the caller may register an instance of this service as this identity. Its addresses are [`Reach`]'s.
    ///
    /// # Errors
    /// Says what the caller may not.
    pub fn may_register(&self, instance: &Instance) -> Result<(), String> {
        let Self::Workload { identity, services, .. } = self else { return Ok(()) };
        self.may_touch(instance)?;
        if services.iter().any(|service| service == "*" || *service == instance.service) {
            return Ok(());
        }
        Err(format!(
            "{identity} may not register service \"{}\": its token allows {}; create one with that service",
            instance.service,
            if services.is_empty() { "none".to_owned() } else { services.join(", ") }
        ))
    }

    /// Whether the caller may send heartbeats for, change or deregister this instance.
    ///
    /// # Errors
    /// Says what the caller may not.
    pub fn may_touch(&self, instance: &Instance) -> Result<(), String> {
        let Self::Workload { identity, .. } = self else { return Ok(()) };
        let own = identity.namespace() == Some(instance.namespace.as_str())
            && identity.service_account() == Some(instance.service_account.as_str());
        if own {
            return Ok(());
        }
        Err(format!(
            "{identity} may not act for instance \"{}\", which runs as {}/{}",
            instance.id, instance.namespace, instance.service_account
        ))
    }
}

#[derive(Debug, Clone)]
struct Lease {
    service: String,
    ttl: Duration,
    renewed: Instant,
    held: bool,
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
    leases: BTreeMap<String, Lease>,
    /// Expired lately, so that a slow mass expiry counts as one: service, id, when.
    recent: Vec<(String, String, Instant)>,
}

impl Leases {
    /// Begins or renews the lease of an instance; one without a TTL has none.
    pub fn renew(&mut self, instance: &Instance, now: Instant) {
        self.recent.retain(|(_, id, _)| *id != instance.id);
        match instance.ttl_seconds {
            None => {
                self.leases.remove(&instance.id);
            }
            Some(seconds) => {
                let ttl = Duration::from_secs(seconds.into());
                let service = service_of(instance);
                self.leases.insert(instance.id.clone(), Lease { service, ttl, renewed: now, held: false });
            }
        }
    }

    /// Ends a lease without expiry.
    pub fn forget(&mut self, id: &str) {
        self.leases.remove(id);
    }

    /// Seconds since the last heartbeat.
    pub fn age(&self, id: &str, now: Instant) -> Option<Duration> {
        self.leases.get(id).map(|lease| now.saturating_duration_since(lease.renewed))
    }

    /// When [`Leases::expire`] has something to do next.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.leases
            .values()
            .map(|lease| if lease.held { now + RECHECK } else { lease.renewed + lease.ttl })
            .min()
    }

    /// The instances that expire now; their leases are gone. `members` are all instances of a `namespace/service`, with or
    /// without a lease. What is held stays and is marked.
    pub fn expire(&mut self, now: Instant, members: impl Fn(&str) -> usize) -> Vec<String> {
        let longest = self.leases.values().map(|lease| lease.ttl).max().unwrap_or_default();
        self.recent.retain(|(_, _, at)| now.saturating_duration_since(*at) <= longest);
        let due: BTreeSet<String> =
            self.leases.values().filter(|lease| lease.is_due(now)).map(|l| l.service.clone()).collect();
        let mut expired = Vec::new();
        for service in due {
            // Late ones count too: heartbeats of one service do not come at the same instant, so neither do expiries.
            let late =
                self.leases.values().filter(|lease| lease.service == service && lease.is_late(now)).count();
            let gone = self.recent.iter().filter(|(of, _, _)| *of == service).count();
            let (missing, all) = (late + gone, members(&service) + gone);
            let mass = missing >= 2 && missing * 100 > all * MASS_PERCENT;
            let ids: Vec<String> = self
                .leases
                .iter()
                .filter(|(_, lease)| lease.service == service && lease.is_due(now))
                .map(|(id, _)| id.clone())
                .collect();
            for id in ids {
                if mass {
                    self.hold(&id, missing, all);
                } else {
                    self.leases.remove(&id);
                    self.recent.push((service.clone(), id.clone(), now));
                    expired.push(id);
                }
            }
        }
        expired
    }

    fn hold(&mut self, id: &str, missing: usize, all: usize) {
        if let Some(lease) = self.leases.get_mut(id).filter(|lease| !lease.held) {
            lease.held = true;
            tracing::warn!(
                instance = id, service = %lease.service,
                "no heartbeat, but {missing} of {all} instances are missing at once: it stays registered; \
                 deregister it if it is really gone"
            );
        }
    }

    /// What is held at the moment.
    pub fn held(&self) -> Vec<Held> {
        let mut by_service: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (id, lease) in self.leases.iter().filter(|(_, lease)| lease.held) {
            by_service.entry(&lease.service).or_default().push(id.clone());
        }
        by_service
            .into_iter()
            .map(|(service, instances)| Held { service: service.to_owned(), instances })
            .collect()
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

    fn leased(id: &str) -> Instance {
        Instance { ttl_seconds: Some(30), ..sample(id, "catalog", "v1", "127.0.0.5", 80, Protocol::Http) }
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
        assert_eq!(leases.next_deadline(start), Some(start + seconds(30)));
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
        assert_eq!(leases.next_deadline(start), None);
    }

    #[test]
    fn an_instance_without_ttl_never_expires() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.renew(&sample("a", "web", "v1", "127.0.0.5", 80, Protocol::Http), start);
        assert!(leases.expire(start + seconds(1_000_000), |_| 1).is_empty());
    }

    #[test]
    fn a_workload_registers_only_itself_and_only_services_of_its_token() {
        let identity = SpiffeId::workload("cluster.local", "shop", "catalog").unwrap();
        let caller = Caller::Workload { identity, services: vec!["catalog".into()], reach: Reach::default() };
        let own = leased("c1");
        assert_eq!(caller.may_register(&own), Ok(()));
        let other_service = Instance { service: "web".into(), ..own.clone() };
        assert!(caller.may_register(&other_service).unwrap_err().contains("web"));
        let other_account = Instance { service_account: "web".into(), ..own.clone() };
        assert!(caller.may_register(&other_account).is_err());
        let other_namespace = Instance { namespace: "bank".into(), ..own.clone() };
        assert!(caller.may_touch(&other_namespace).is_err());
        assert_eq!(Caller::Operator("me".into()).may_register(&other_namespace), Ok(()));
    }
}
