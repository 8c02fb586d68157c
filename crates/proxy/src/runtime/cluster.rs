//! A cluster as it runs: its configuration, its limits, and one cell with its endpoints and their health.
//!
//! A handle is made anew when the configuration changes; what must outlive that (counts, ejections, endpoint state, the
//! round robin's place) is shared by all handles of the name. Which endpoint of those allowed is `balance`'s business.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use outrigger_identity::PeerExpectation;
use outrigger_model::cluster::{ClientTls, Cluster, Discovery, Part};
use outrigger_model::endpoint::EndpointSet;
use outrigger_model::resource::{Invalid, Origin, ResourceKind};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::runtime::breaker::{Breaker, Pass, Turned};
use crate::runtime::endpoint::{EndpointState, Outcome, Reach};
use crate::runtime::latency::Latencies;
use crate::runtime::limits::Limits;
use crate::runtime::measures::Measures;
use crate::runtime::outlier::{Cause, Ejections, Peer};
use crate::runtime::reports;
use crate::runtime::table::EndpointTable;
use crate::runtime::verdict::{Counts, Failed, Flip, Verdict};
use crate::upstream::outside::OutsideConfigs;

mod pick;

use pick::Way;
pub use pick::{Left, PickContext};

/// One cluster.
pub struct ClusterHandle {
    /// Dense, stable for the name as long as the process lives.
    pub id: u32,
    /// Its name.
    pub name: Arc<str>,
    /// What it was built from.
    pub config: Arc<Cluster>,
    /// The user object that shaped it.
    pub origin: Option<Arc<Origin>>,
    /// Circuit-breaker limits.
    pub limits: Limits,
    /// Opens where too much fails.
    pub breaker: Option<Arc<Breaker>>,
    /// SNI of TLS.
    pub server_name: Option<ServerName<'static>>,
    /// Whom an endpoint without an identity of its own must prove to be; `None`: our trust domain.
    pub expected: Option<PeerExpectation>,
    /// TLS to servers outside the mesh.
    pub outside: Option<OutsideConfigs>,
    /// What the policy wants to know of answers.
    pub measures: Option<Arc<Measures>>,
    way: Way,
    lasting: Arc<Lasting>,
}

struct Lasting {
    table: ArcSwap<EndpointTable>,
    /// Held by whoever makes another table: endpoints come from the control plane, verdicts from checks.
    changing: Mutex<()>,
    ejections: Ejections,
    checks: Counts,
    reports: Arc<reports::Counts>,
    /// Requests for which there was no endpoint or no connection.
    unmet: AtomicU64,
    /// Made for the first request that is hedged by what others took.
    latencies: OnceLock<Box<Latencies>>,
    cursor: AtomicUsize,
    last_dynamic: ArcSwapOption<EndpointState>,
    dynamic: Mutex<HashMap<(SocketAddr, Reach), Arc<EndpointState>>>,
}

impl ClusterHandle {
    /// A handle; takes over all that lives from an earlier handle of the same name.
    ///
    /// # Errors
    /// A server name that TLS cannot send.
    pub fn new(id: u32, config: Arc<Cluster>, before: Option<&Self>) -> Result<Self, Invalid> {
        let name: Arc<str> = before.map_or_else(|| config.name.as_str().into(), |b| b.name.clone());
        let origin = config.origin.clone().map(Arc::new);
        let invalid = |field: &str, reason: String| Invalid {
            kind: ResourceKind::Cluster,
            name: config.name.clone(),
            field: field.to_owned(),
            reason,
        };
        let sni = |name: &String| {
            ServerName::try_from(name.clone()).map_err(|error| {
                let reason = format!("\"{name}\" cannot be sent as a server name: {error}");
                invalid("transport_socket.sni", reason)
            })
        };
        let mut outside = None;
        let (server_name, expected) = match &config.tls {
            ClientTls::None => (None, None),
            ClientTls::Outside(tls) => {
                let configs =
                    OutsideConfigs::load(tls).map_err(|reason| invalid("transport_socket", reason))?;
                outside = Some(configs);
                (Some(sni(&tls.server_name)?), None)
            }
            ClientTls::Mesh { server_name, identities, .. } => {
                let parsed = sni(server_name)?;
                let expected = match identities.as_slice() {
                    [] => None,
                    [only] => Some(PeerExpectation::Exactly(only.clone())),
                    list => Some(PeerExpectation::AnyOf(list.to_vec())),
                };
                (Some(parsed), expected)
            }
        };
        let (limits, lasting) = match before {
            Some(before) => {
                before.limits.configure(config.limits, origin.clone());
                (before.limits.clone(), before.lasting.clone())
            }
            None => (Limits::new(name.clone(), config.limits, origin.clone()), Arc::new(Lasting::default())),
        };
        let breaker = breaker_of(&config, &name, &origin, before);
        let measures = Measures::of(&config, &lasting.reports).map(Arc::new);
        let way = Way::of(&config);
        let handle = Self {
            id,
            name,
            config,
            origin,
            limits,
            breaker,
            server_name,
            expected,
            outside,
            measures,
            way,
            lasting,
        };
        if handle.config.outlier.is_none() && before.is_some_and(|before| before.config.outlier.is_some()) {
            handle.endpoints().all.iter().for_each(|e| handle.lasting.ejections.forget_rules(&e.load.health));
        }
        if let Some(before) = before {
            handle.checks_otherwise(&before.config);
        }
        if let Discovery::Static(set) = &handle.config.discovery {
            // Those of zones wait for their shares, without which they must not be picked.
            if handle.config.zone_aware.is_none() {
                handle.update(set);
            }
        } else if before.is_some_and(|before| balances_otherwise(&before.config, &handle.config)) {
            handle.look_again();
        }
        Ok(handle)
    }

    /// The same cluster, of which only a part is picked from: all else is one.
    pub fn part(&self, part: &Part) -> Self {
        Self {
            id: self.id,
            name: self.name.clone(),
            config: self.config.clone(),
            origin: self.origin.clone(),
            limits: self.limits.clone(),
            breaker: self.breaker.clone(),
            server_name: self.server_name.clone(),
            expected: self.expected.clone(),
            outside: self.outside.clone(),
            measures: self.measures.clone(),
            way: self.way.to(part),
            lasting: self.lasting.clone(),
        }
    }

    /// Whether connections to an endpoint are the mesh's mTLS.
    pub fn uses_mesh(&self, endpoint: &EndpointState) -> bool {
        match &self.config.tls {
            ClientTls::Mesh { required, .. } => *required || endpoint.mesh_tls,
            ClientTls::None | ClientTls::Outside(_) => false,
        }
    }

    /// Replaces the endpoints; load and ejection are kept by address.
    pub fn update(&self, set: &EndpointSet) {
        let _changing = self.lasting.changing.lock();
        let before = self.lasting.table.load_full();
        let table = EndpointTable::new(set, &before, &self.config);
        let after: HashMap<SocketAddr, ()> = table.all.iter().map(|e| (e.address, ())).collect();
        self.lasting.table.store(Arc::new(table));
        for gone in before.all.iter().filter(|e| !after.contains_key(&e.address)) {
            self.lasting.ejections.forgive(&gone.load.health);
        }
        self.keep_enough();
    }

    /// Who of the same endpoints takes requests now.
    fn look_again(&self) {
        let _changing = self.lasting.changing.lock();
        let table = self.lasting.table.load().again(&self.config);
        self.lasting.table.store(Arc::new(table));
        self.keep_enough();
    }

    /// Where those that are left are all ejected, one of them serves again: the last never is. As many as the rules want.
    fn keep_enough(&self) {
        let table = self.lasting.table.load();
        let rules = self.config.outlier.as_ref();
        let ended = self.lasting.ejections.keep_enough(rules, peers(&table), Instant::now());
        if ended > 0 {
            tracing::warn!(cluster = %self.name, ended, "ejections end early: too few other endpoints take requests");
        }
    }

    /// What is to be thought of endpoints where active checks came, went, or ask something else.
    fn checks_otherwise(&self, before: &Cluster) {
        if before.health_check == self.config.health_check {
            return;
        }
        for checked in self.endpoints().all.iter().filter_map(|endpoint| endpoint.load.checked()) {
            match self.config.health_check {
                Some(_) => checked.begin_anew(),
                None => checked.forget(),
            }
        }
    }

    /// Takes what an active check said of an endpoint; what it changes, if anything.
    pub fn judge(&self, endpoint: &EndpointState, said: Result<(), Failed>) -> Option<Flip> {
        let rules = self.config.health_check.as_ref()?;
        self.lasting.checks.count(&said);
        let passes = said.is_ok();
        let checked = endpoint.load.checked()?;
        let turn = checked.note(rules, said, Instant::now());
        let ends = self.config.outlier.as_ref().is_some_and(|outlier| outlier.check_ends_ejection);
        if passes && ends && self.lasting.ejections.any() && checked.verdict() == Verdict::Healthy {
            self.forgiven(endpoint);
        }
        let turn = turn?;
        // Who was presumed to be well takes requests already.
        if (turn.from, turn.to) != (Verdict::Presumed, Verdict::Healthy) {
            self.look_again();
        }
        Some(turn)
    }

    fn forgiven(&self, endpoint: &EndpointState) {
        if self.lasting.ejections.end(&endpoint.load.health, Instant::now()) {
            tracing::info!(cluster = %self.name, endpoint = %endpoint.address, "an ejection ends: its health check passes");
        }
    }

    /// The endpoints of this moment.
    pub fn endpoints(&self) -> arc_swap::Guard<Arc<EndpointTable>> {
        self.lasting.table.load()
    }

    /// Leave of the circuit breaker to send something, where there is one; what comes of it is to be told.
    ///
    /// # Errors
    /// It is open.
    #[inline]
    pub fn admit(&self) -> Result<Option<Pass>, Failure> {
        self.breaker.as_ref().map(Breaker::admit).transpose()
    }

    /// Tells what became of a request to an endpoint, which may be ejected for it, and of the leave that it was sent with;
    /// what it has made of the circuit breaker.
    pub fn report(&self, endpoint: &EndpointState, outcome: Outcome, pass: Option<Pass>) -> Turned {
        endpoint.note(outcome);
        // It may have had no connection, and then nobody has counted it.
        if outcome.is_unanswered() {
            self.lasting.unmet.fetch_add(1, Relaxed);
        }
        let turned = pass.map(|pass| pass.tell(outcome)).unwrap_or_default();
        if outcome == Outcome::Refused {
            self.refused(endpoint);
        }
        // Without rules there is no clock to read.
        let Some(rules) = &self.config.outlier else { return turned };
        let now = Instant::now();
        let table = self.lasting.table.load();
        let health = &endpoint.load.health;
        let cause = self.lasting.ejections.record(rules, health, outcome, now, peers(&table));
        if let Some(cause) = cause {
            tracing::warn!(cluster = %self.name, endpoint = %endpoint.address, ?cause, "endpoint ejected");
            self.held([endpoint]);
        }
        turned
    }

    /// These were ejected by a table that may be an old one: who is gone by now would be counted for ever.
    #[cold]
    fn held<'e>(&self, endpoints: impl IntoIterator<Item = &'e EndpointState>) {
        let _changing = self.lasting.changing.lock();
        let table = self.lasting.table.load();
        for endpoint in endpoints {
            if !table.all.iter().any(|other| Arc::ptr_eq(&other.load, &endpoint.load)) {
                self.lasting.ejections.forgive(&endpoint.load.health);
            }
        }
    }

    #[cold]
    fn refused(&self, endpoint: &EndpointState) {
        let table = self.lasting.table.load();
        let health = &endpoint.load.health;
        if let Some(length) = self.lasting.ejections.refused(health, Instant::now(), peers(&table)) {
            tracing::info!(cluster = %self.name, endpoint = %endpoint.address, ?length, "an endpoint refuses connections and is left alone");
            self.held([endpoint]);
        }
    }

    /// Ends an interval of the rules of ejection: who was an outlier in it gets nothing for a while.
    pub fn look_at_rates(&self) {
        let Some(rules) = &self.config.outlier else { return };
        let table = self.lasting.table.load();
        let all: Vec<Peer<'_>> = peers(&table).collect();
        let found = self.lasting.ejections.look(rules, &all, Instant::now());
        for found in &found {
            let endpoint = table.all[found.at].address;
            let (cause, success) = (found.cause, found.rate);
            tracing::warn!(cluster = %self.name, %endpoint, ?cause, success, "endpoint ejected");
        }
        if !found.is_empty() {
            self.held(found.iter().map(|found| &*table.all[found.at]));
        }
    }

    /// Makes the weights of the endpoints anew, by what they have reported.
    pub fn weigh(&self) {
        if self.endpoints().all.iter().any(|endpoint| endpoint.load.reported().is_some()) {
            self.look_again();
        }
    }

    /// Reports of load that count, and that do not.
    pub fn reports(&self) -> [u64; 2] {
        self.lasting.reports.all()
    }

    /// The cluster's ejections.
    pub fn ejections(&self) -> &Ejections {
        &self.lasting.ejections
    }

    /// How long first attempts of late took, of requests that are hedged by that.
    pub fn latencies(&self) -> &Latencies {
        self.lasting.latencies.get_or_init(Box::default)
    }

    /// What became of active checks.
    pub fn checks(&self) -> &Counts {
        &self.lasting.checks
    }

    /// Requests that nobody was found for, or that brought no answer: endpoints do not count all of them.
    pub fn unmet(&self) -> u64 {
        self.lasting.unmet.load(Relaxed)
    }

    /// Why an endpoint is ejected, and for how much longer; `None` if it is not.
    pub fn ejection(&self, endpoint: &EndpointState) -> Option<(Cause, Duration)> {
        self.lasting.ejections.ejection(&endpoint.load.health, Instant::now())
    }

    /// Healthy endpoints, and all.
    pub fn membership(&self) -> (usize, usize) {
        let table = self.lasting.table.load();
        (table.levels.iter().map(|level| level.members.len()).sum(), table.all.len())
    }
}

/// All endpoints, as ejection sees them.
fn peers(table: &EndpointTable) -> impl Iterator<Item = Peer<'_>> {
    table.all.iter().map(|endpoint| (&endpoint.load.health, endpoint.serves))
}

/// The breaker of before, where its rules are the same; other rules begin with a closed one.
fn breaker_of(
    config: &Cluster,
    name: &Arc<str>,
    origin: &Option<Arc<Origin>>,
    before: Option<&ClusterHandle>,
) -> Option<Arc<Breaker>> {
    let rules = config.breaker.as_ref()?;
    let kept = before
        .and_then(|before| before.breaker.as_ref())
        .filter(|kept| kept.is_for(rules, origin.as_deref()));
    Some(
        kept.cloned()
            .unwrap_or_else(|| Arc::new(Breaker::new((**rules).clone(), name.clone(), origin.clone()))),
    )
}

fn balances_otherwise(before: &Cluster, after: &Cluster) -> bool {
    (before.balance, before.warmup, before.capacity) != (after.balance, after.warmup, after.capacity)
        || before.load_reports != after.load_reports
        || before.health_check.is_some() != after.health_check.is_some()
}

impl Default for Lasting {
    fn default() -> Self {
        Self {
            table: ArcSwap::default(),
            changing: Mutex::default(),
            ejections: Ejections::default(),
            checks: Counts::default(),
            reports: Arc::default(),
            unmet: AtomicU64::new(0),
            latencies: OnceLock::new(),
            // Workloads that start together must not all begin with the same endpoint.
            cursor: AtomicUsize::new(fastrand::usize(..1 << 16)),
            last_dynamic: ArcSwapOption::empty(),
            dynamic: Mutex::default(),
        }
    }
}

#[cfg(test)]
mod distribution;
#[cfg(test)]
mod parts;
#[cfg(test)]
mod tests;
