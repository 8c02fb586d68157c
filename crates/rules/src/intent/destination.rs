//! A destination as its clients see it: subsets by label, and the policy for connections to it.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_model::cluster::{
    Balance, Breaker, CheckHow, HealthCheck, Keepalive, LoadReports, Outlier, RetryBudget, Warmup,
};
use outrigger_model::route::HashOn;
use serde::{Deserialize, Serialize};

use super::{BackendTls, ClientTls, Host, Nearness, Origin, Place, Say, Visibility};
use crate::catalog::PortProtocol;

/// Subsets and client-side policy of one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DestinationIntent {
    /// The object that says so.
    pub origin: Origin,
    /// When it was made, as RFC 3339 writes it in UTC; Kubernetes says so.
    #[serde(default)]
    pub created: Option<String>,
    /// Resolved host; may be a wildcard.
    pub host: Host,
    /// Where the host was written.
    pub place: Place,
    /// Which clients it applies to.
    pub visibility: Visibility,
    /// For all ports and subsets that don't override it.
    pub policy: TrafficPolicy,
    /// Whole policies by port: a port's policy inherits nothing.
    pub ports: BTreeMap<u16, TrafficPolicy>,
    /// Named parts of the host.
    pub subsets: Vec<SubsetIntent>,
    /// It is for some clients alone, which is not implemented: it only adds subsets to what holds anyway.
    #[serde(default)]
    pub subsets_only: bool,
    /// Further objects that were merged into this one.
    pub merged: Vec<Origin>,
    /// What policies of the Gateway API say of TLS towards it, where no rule does.
    #[serde(default)]
    pub backend_tls: Vec<BackendTls>,
}

/// A named part of a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubsetIntent {
    /// As routes name it.
    pub name: String,
    /// Labels that an instance must have; empty = all instances.
    pub labels: BTreeMap<String, String>,
    /// Overrides the host's policy field by field.
    pub policy: TrafficPolicy,
    /// Whole policies by port, which inherit nothing.
    pub ports: BTreeMap<u16, TrafficPolicy>,
    /// Who serves while nobody of it runs; `None` = nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Where it was written.
    pub place: Place,
    /// The object that it was written in.
    pub origin: Origin,
}

/// Who serves in place of a subset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fallback {
    /// All instances of the host.
    Any,
    /// Those of another subset.
    Subset(String),
}

impl SubsetIntent {
    /// Whether an instance with these labels belongs to the subset.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl DestinationIntent {
    /// Of two of one namespace for one host the one with the lesser age goes first: what says when it was made, then names.
    fn age(&self) -> (bool, Option<&str>, &Origin) {
        (self.created.is_none(), self.created.as_deref(), &self.origin)
    }

    /// The rules of a namespace for one host as one, as Istio merges them: the subsets of all, the first to define one; and the
    /// first traffic policy that there is. That nobody loses by it is the analyzer's business.
    ///
    /// `None` of none. The order is that in which they came.
    pub fn merge<'r>(rules: impl IntoIterator<Item = &'r Self>) -> Option<Self> {
        let mut rules = rules.into_iter();
        let mut whole = rules.next()?.clone();
        for rule in rules {
            if whole.is_without_policy() && !rule.is_without_policy() {
                whole.policy = rule.policy.clone();
                whole.ports = rule.ports.clone();
                whole.merged.push(std::mem::replace(&mut whole.origin, rule.origin.clone()));
                whole.place = rule.place.clone();
            } else {
                whole.merged.push(rule.origin.clone());
            }
            whole.backend_tls.extend(rule.backend_tls.iter().cloned());
            let new = rule.subsets.iter().filter(|subset| whole.subset(&subset.name).is_none());
            let new: Vec<_> = new.cloned().collect();
            whole.subsets.extend(new);
        }
        Some(whole)
    }

    /// Which rules a client of `namespace` has for a host, to be merged, as Istio: those of the client's own namespace go first, then
    /// those of the host's owner, then those of a root namespace, and nobody else has a say; of a namespace those for exactly the host
    /// go before wildcards, and a longer one before a shorter; of several for one host the oldest first. What only adds subsets stands
    /// last.
    pub fn in_force<'r, R: Borrow<Self>>(
        rules: &'r [R],
        host: &Host,
        say: &Say<'_>,
        namespace: &str,
    ) -> Vec<&'r R> {
        let rank = |rule: &Self| {
            let exact = if rule.host == *host { usize::MAX } else { rule.host.as_str().len() };
            let near = say.of(&rule.origin.namespace, &rule.visibility, namespace)?;
            (rule.host == *host || rule.host.covers(host.as_str())).then_some((near, exact))
        };
        let visible = rules.iter().filter(|rule| {
            let rule: &Self = (*rule).borrow();
            rule.visibility.includes(namespace)
        });
        let mut best = None;
        let (mut chosen, mut adding): (Vec<&R>, Vec<&R>) = Default::default();
        for found in visible {
            let rule: &Self = found.borrow();
            let Some(rank) = rank(rule) else { continue };
            if rule.subsets_only {
                adding.push(found);
            } else if Some(rank) > best {
                best = Some(rank);
                chosen = vec![found];
            } else if let Some(first) = chosen.first().map(|first| -> &Self { (*first).borrow() })
                && Some(rank) == best
                && (&first.host, &first.origin.namespace) == (&rule.host, &rule.origin.namespace)
            {
                chosen.push(found);
            }
        }
        chosen.sort_by(|one, other| (*one).borrow().age().cmp(&(*other).borrow().age()));
        chosen.append(&mut adding);
        chosen
    }

    /// Whether it has subsets at most.
    pub fn is_without_policy(&self) -> bool {
        self.policy.is_empty() && self.ports.is_empty()
    }

    /// Every object behind it.
    pub fn origins(&self) -> impl Iterator<Item = &Origin> {
        std::iter::once(&self.origin).chain(&self.merged)
    }

    /// The object behind a subset, or behind the whole.
    pub fn origin_of(&self, subset: Option<&str>) -> &Origin {
        subset.and_then(|name| self.subset(name)).map_or(&self.origin, |subset| &subset.origin)
    }

    /// The subset of that name.
    pub fn subset(&self, name: &str) -> Option<&SubsetIntent> {
        self.subsets.iter().find(|subset| subset.name == name)
    }

    /// What holds for a port of the host, or of one of its subsets, by Istio's rules of inheritance: the host's policy, or
    /// its port's instead; then the subset's fields over it; or the subset's port alone, which has no budget of its own.
    pub fn effective(&self, subset: Option<&str>, port: u16) -> TrafficPolicy {
        let base = self.ports.get(&port).unwrap_or(&self.policy);
        match subset.and_then(|name| self.subset(name)) {
            None => base.clone(),
            Some(subset) => match subset.ports.get(&port) {
                Some(whole) => {
                    let around = subset.policy.retry_budget.or(base.retry_budget);
                    TrafficPolicy { retry_budget: whole.retry_budget.or(around), ..whole.clone() }
                }
                None => subset.policy.over(base),
            },
        }
    }
}

/// Client-side policy; `None` = not said here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficPolicy {
    /// Default: least request.
    pub load_balancing: Option<LoadBalancing>,
    /// Which endpoints go first, by where they are; `None` = all are alike.
    #[serde(default)]
    pub nearness: Option<Nearness>,
    /// New endpoints get their share little by little; `None` = at once.
    pub warmup: Option<Warmup>,
    /// Limits.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of failing endpoints; `None` = off.
    pub outlier: Option<Outlier>,
    /// Opens where too much fails; `None` = never.
    #[serde(default)]
    pub breaker: Option<Breaker>,
    /// Asks endpoints whether they are well; `None` = nobody asks.
    #[serde(default)]
    pub health_check: Option<HealthCheckIntent>,
    /// Limit of retries to this destination.
    pub retry_budget: Option<RetryBudget>,
    /// TLS towards it; `None` = mTLS wherever the peer has it.
    pub tls: Option<ClientTls>,
}

impl TrafficPolicy {
    /// This policy's fields, and where it says nothing those of `base`.
    pub fn over(&self, base: &Self) -> Self {
        Self {
            load_balancing: self.load_balancing.clone().or_else(|| base.load_balancing.clone()),
            nearness: self.nearness.clone().or_else(|| base.nearness.clone()),
            warmup: self.warmup.or(base.warmup),
            connection_pool: self.connection_pool.clone().or_else(|| base.connection_pool.clone()),
            outlier: self.outlier.clone().or_else(|| base.outlier.clone()),
            breaker: self.breaker.clone().or_else(|| base.breaker.clone()),
            health_check: self.health_check.clone().or_else(|| base.health_check.clone()),
            retry_budget: self.retry_budget.or(base.retry_budget),
            tls: self.tls.clone().or_else(|| base.tls.clone()),
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How endpoints are asked whether they are well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheckIntent {
    /// As the proxy has it; a host that is not said is empty.
    pub check: HealthCheck,
    /// Only this port of the service; `None` = all that speak so.
    pub port: Option<u16>,
    /// Where it was written.
    pub place: Place,
}

impl HealthCheckIntent {
    /// Whether a port is asked that speaks so: all that speak as the check does, or the one that is named, if it may speak so.
    pub fn asks(&self, port: u16, spoken: PortProtocol) -> bool {
        let is_named = match self.port {
            Some(named) if named != port => return false,
            named => named.is_some(),
        };
        match (&self.check.how, spoken) {
            (CheckHow::Tcp(_), _) => true,
            (CheckHow::Http(_) | CheckHow::Grpc(_), PortProtocol::Tcp | PortProtocol::Tls) => false,
            (CheckHow::Http(_), PortProtocol::Grpc) => is_named,
            (CheckHow::Grpc(_), PortProtocol::Http | PortProtocol::Detect) => is_named,
            (CheckHow::Http(_) | CheckHow::Grpc(_), _) => true,
        }
    }
}

/// How an endpoint is picked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadBalancing {
    /// By what rule.
    pub balance: Balance,
    /// What a consistent hash is taken over; it travels on the routes.
    pub hash: Option<HashOn>,
    /// How reports of load are weighed, where they decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reports: Option<LoadReports>,
}

impl From<Balance> for LoadBalancing {
    fn from(balance: Balance) -> Self {
        Self { balance, hash: None, reports: None }
    }
}

/// Limits on connections and requests; `None` = the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionPool {
    /// Connections to the destination at once, default unlimited.
    pub max_connections: Option<u32>,
    /// To establish a connection, default 10 s.
    pub connect_timeout: Option<Duration>,
    /// Idle TCP session, default 1 h.
    pub tcp_idle_timeout: Option<Duration>,
    /// Probes of connections without traffic, default the proxy's own.
    #[serde(default)]
    pub keepalive: Option<Keepalive>,
    /// How old a connection may get, default as old as it likes.
    #[serde(default)]
    pub max_connection_duration: Option<Duration>,
    /// Requests that wait for a connection, default unlimited.
    pub max_pending_requests: Option<u32>,
    /// Requests in flight, default unlimited.
    pub max_requests: Option<u32>,
    /// Retries in flight, default unlimited (but inside the budget).
    pub max_retries: Option<u32>,
    /// Requests after which a connection is closed; 0 = unlimited.
    pub max_requests_per_connection: Option<u32>,
    /// Streams of an HTTP/2 connection at a time, default what the peer allows.
    #[serde(default)]
    pub max_streams_per_connection: Option<u32>,
    /// Idle HTTP connection, default 1 h.
    pub http_idle_timeout: Option<Duration>,
    /// Whether HTTP/1 requests travel as HTTP/2.
    pub h2_upgrade: Option<H2Upgrade>,
    /// The upstream hop uses the protocol of the downstream one.
    pub use_client_protocol: bool,
}

impl ConnectionPool {
    /// These limits, and where they say nothing those of `base`.
    #[must_use]
    pub fn over(self, base: Option<&Self>) -> Self {
        let Some(base) = base else { return self };
        Self {
            max_connections: self.max_connections.or(base.max_connections),
            connect_timeout: self.connect_timeout.or(base.connect_timeout),
            tcp_idle_timeout: self.tcp_idle_timeout.or(base.tcp_idle_timeout),
            keepalive: self.keepalive.or(base.keepalive),
            max_connection_duration: self.max_connection_duration.or(base.max_connection_duration),
            max_pending_requests: self.max_pending_requests.or(base.max_pending_requests),
            max_requests: self.max_requests.or(base.max_requests),
            max_retries: self.max_retries.or(base.max_retries),
            max_requests_per_connection: self
                .max_requests_per_connection
                .or(base.max_requests_per_connection),
            max_streams_per_connection: self.max_streams_per_connection.or(base.max_streams_per_connection),
            http_idle_timeout: self.http_idle_timeout.or(base.http_idle_timeout),
            h2_upgrade: self.h2_upgrade.or(base.h2_upgrade),
            use_client_protocol: self.use_client_protocol || base.use_client_protocol,
        }
    }
}

/// `h2UpgradePolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum H2Upgrade {
    /// Keep HTTP/1.
    Never,
    /// Upgrade to HTTP/2.
    Always,
}
