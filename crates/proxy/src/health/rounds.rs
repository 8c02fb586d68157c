//! Who is asked, and when: of every cluster with active checks each endpoint that the control plane has for healthy.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_model::cluster::{CheckHow, Cluster, Discovery, HealthCheck, Limits, UpstreamProtocol};
use outrigger_model::endpoint::{EndpointSet, Health as Reported};
use tokio::time::Instant;

use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::EndpointState;
use crate::runtime::snapshot::Snapshot;

/// Between the beginnings of two checks: a sidecar begins at most 500 in a second, whatever intervals and endpoints there are.
const PACE: Duration = Duration::from_millis(2);

/// Checks of one cluster under way at a time: a quarter of all, so that one whose checks take long holds up nobody else's.
const MOST_OF_ONE: usize = 16;
/// So long whoever has no place waits.
const NO_PLACE: Duration = Duration::from_secs(1);

/// All that are asked.
#[derive(Default)]
pub(super) struct Rounds {
    clusters: HashMap<Arc<str>, Asked>,
    subjects: HashMap<u64, Subject>,
    /// By time; entries of subjects that have gone stay until then.
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Checks under way, and of which cluster: also those whose subjects have gone.
    under_way: HashMap<u64, Arc<str>>,
    ids: u64,
    begun: Option<Instant>,
}

/// A cluster whose endpoints are asked.
struct Asked {
    check: Arc<HealthCheck>,
    /// As it is configured, without limits, breaker and endpoints.
    apart: Arc<ClusterHandle>,
    /// As requests use it.
    cluster: Arc<ClusterHandle>,
    endpoints: HashMap<SocketAddr, u64>,
    /// When a request was last seen.
    used: Option<Instant>,
    /// Requests that reached nobody when that was looked at last.
    unmet: u64,
}

/// An endpoint that is asked.
struct Subject {
    cluster: Arc<str>,
    endpoint: Arc<EndpointState>,
    /// The same place with a load of its own.
    apart: Arc<EndpointState>,
    /// When it was asked last.
    asked: Option<Instant>,
    /// Requests to it when that was looked at last.
    requests: u64,
}

/// A check that is to be made.
pub(super) struct Next {
    pub(super) id: u64,
    pub(super) cluster: Arc<ClusterHandle>,
    pub(super) endpoint: Arc<EndpointState>,
    pub(super) check: Arc<HealthCheck>,
}

impl Rounds {
    /// When something is to be done.
    pub(super) fn due(&self) -> Option<Instant> {
        let Reverse((due, _)) = self.queue.peek()?;
        Some(self.begun.map_or(*due, |begun| (*due).max(begun + PACE)))
    }

    /// Asks for whom the snapshot has, and for nobody else.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, now: Instant) {
        let asks = |cluster: &&Arc<ClusterHandle>| {
            cluster.config.health_check.is_some()
                && cluster.config.discovery != Discovery::OriginalDestination
        };
        let mut before = std::mem::take(&mut self.clusters);
        for cluster in snapshot.clusters().filter(asks) {
            let Some(asked) = self.asked(cluster, before.remove(&cluster.name)) else { continue };
            self.clusters.insert(cluster.name.clone(), asked);
            self.endpoints(cluster, now);
        }
        for gone in before.into_values().flat_map(|asked| asked.endpoints.into_values()) {
            self.subjects.remove(&gone);
        }
    }

    fn asked(&mut self, cluster: &Arc<ClusterHandle>, before: Option<Asked>) -> Option<Asked> {
        let check = cluster.config.health_check.as_ref()?;
        let before = match before {
            Some(same) if Arc::ptr_eq(&same.cluster.config, &cluster.config) => {
                return Some(Asked { cluster: cluster.clone(), ..same });
            }
            before => before,
        };
        let config = Arc::new(apart(&cluster.config, check));
        let apart = match ClusterHandle::new(cluster.id, config, before.as_ref().map(|before| &*before.apart))
        {
            Ok(apart) => apart,
            // As the cluster was, until it can be otherwise.
            Err(error) => {
                tracing::warn!(cluster = %cluster.name, %error, "endpoints are not checked as they should be");
                return before;
            }
        };
        let mut asked = Asked {
            check: Arc::new((**check).clone()),
            apart: Arc::new(apart),
            cluster: cluster.clone(),
            endpoints: HashMap::new(),
            used: None,
            unmet: cluster.unmet(),
        };
        if let Some(before) = before {
            (asked.used, asked.unmet) = (before.used, before.unmet);
            if *before.check == **check {
                asked.endpoints = before.endpoints;
            } else {
                // Another question: it is asked at once.
                before.endpoints.values().for_each(|id| drop(self.subjects.remove(id)));
            }
        }
        Some(asked)
    }

    fn endpoints(&mut self, cluster: &ClusterHandle, now: Instant) {
        let Some(asked) = self.clusters.get_mut(&cluster.name) else { return };
        let mut before = std::mem::take(&mut asked.endpoints);
        for endpoint in cluster.endpoints().all.iter().filter(|one| one.reported == Reported::Healthy) {
            let known = before.remove(&endpoint.address);
            if let Some(id) = known
                && let Some(subject) = self.subjects.get_mut(&id)
            {
                let same = (&subject.endpoint.identity, subject.endpoint.mesh_tls)
                    == (&endpoint.identity, endpoint.mesh_tls);
                if !same {
                    subject.apart = Arc::new(endpoint.apart());
                }
                subject.endpoint = endpoint.clone();
                asked.endpoints.insert(endpoint.address, id);
                continue;
            }
            self.ids += 1;
            let (cluster, apart) = (cluster.name.clone(), Arc::new(endpoint.apart()));
            let requests = endpoint.totals().0;
            let subject = Subject { cluster, endpoint: endpoint.clone(), apart, asked: None, requests };
            self.subjects.insert(self.ids, subject);
            asked.endpoints.insert(endpoint.address, self.ids);
            self.queue.push(Reverse((now + up_to(asked.check.initial_jitter), self.ids)));
        }
        for gone in before.into_values() {
            self.subjects.remove(&gone);
        }
    }

    /// The check that is due, if one is.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Next> {
        let Reverse((due, id)) = *self.queue.peek()?;
        if due > now {
            return None;
        }
        self.queue.pop();
        let subject = self.subjects.get_mut(&id)?;
        let asked = self.clusters.get_mut(&subject.cluster)?;
        asked.look(subject, now);
        // Where nobody calls, it is only looked whether somebody does.
        let next = subject.asked.map(|last| last + asked.check.no_traffic_interval);
        if let Some(next) = next.filter(|next| asked.is_quiet(now) && now < *next) {
            self.queue.push(Reverse((next.min(now + asked.check.interval), id)));
            return None;
        }
        if self.under_way.values().filter(|of| **of == subject.cluster).count() >= MOST_OF_ONE {
            self.queue.push(Reverse((now + NO_PLACE.min(asked.check.interval), id)));
            return None;
        }
        self.under_way.insert(id, subject.cluster.clone());
        self.begun = Some(now);
        let (cluster, check) = (asked.apart.clone(), asked.check.clone());
        Some(Next { id, cluster, endpoint: subject.apart.clone(), check })
    }

    /// A check has ended: whom it was about, if it is still asked; the next is due after the interval.
    pub(super) fn ended(&mut self, id: u64, now: Instant) -> Option<(Arc<str>, Arc<EndpointState>)> {
        self.under_way.remove(&id);
        let subject = self.subjects.get_mut(&id)?;
        let asked = self.clusters.get_mut(&subject.cluster)?;
        subject.asked = Some(now);
        let check = &asked.check;
        let interval = match asked.is_quiet(now) {
            true => check.interval.min(check.no_traffic_interval),
            false => check.interval,
        };
        let share = f64::from(check.interval_jitter_percent.min(100)) / 100.0;
        let jitter = up_to(check.interval_jitter) + up_to(interval.mul_f64(share));
        self.queue.push(Reverse((now + interval + jitter, id)));
        Some((subject.cluster.clone(), subject.endpoint.clone()))
    }
}

impl Asked {
    /// Looks whether somebody called since it was looked at last, or still does: also in vain, so that where nobody is left it is seen
    /// soon who comes back.
    fn look(&mut self, subject: &mut Subject, now: Instant) {
        let requests = subject.endpoint.totals().0;
        let came = std::mem::replace(&mut subject.requests, requests) != requests;
        let unmet = self.cluster.unmet();
        let in_vain = std::mem::replace(&mut self.unmet, unmet) != unmet;
        if came || in_vain || subject.endpoint.in_flight() > 0 {
            self.used = Some(now);
        }
    }

    /// Whether nobody has called for a while.
    fn is_quiet(&self, now: Instant) -> bool {
        self.used.is_none_or(|used| now.duration_since(used) >= self.check.no_traffic_interval)
    }
}

fn up_to(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}

/// The cluster as checks use it: what bounds and judges requests is not for them.
fn apart(cluster: &Cluster, check: &HealthCheck) -> Cluster {
    let http2 = match &check.how {
        CheckHow::Http(http) => http.http2,
        CheckHow::Grpc(_) => true,
        CheckHow::Tcp(_) => false,
    };
    Cluster {
        discovery: Discovery::Static(EndpointSet::default()),
        limits: Limits::default(),
        outlier: None,
        breaker: None,
        health_check: None,
        warmup: None,
        connect_timeout: check.timeout,
        protocol: if http2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 },
        ..cluster.clone()
    }
}

#[cfg(test)]
mod tests;
