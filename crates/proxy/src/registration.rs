//! The registration of our own workload: says to the control plane what the bootstrap file and the checks say, until it is told.
//!
//! ```text
//! certificate ─▶ told ─▶ (health changes, forgotten, ten minutes) ─▶ told ─▶ SIGTERM: stopping ─▶ drained: deregistered
//!                  ├ refused, away: again after 0.25 to 30 s
//!                  └ replaced by a newer process with our id: again after minutes, in case that it is gone by then
//! ```
//!
//! Always the whole registration is said, so that what the control plane knew before does not matter; to say the same twice is no
//! change there. In between our ADS stream keeps its lease, and whether we are still known the configuration says: without a
//! registration there is no inbound listener.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_identity::{ControlPlane, CredentialStore};
use outrigger_model::listener::Direction;
use outrigger_telemetry::admin::{AdminResponse, Row};
use outrigger_telemetry::metrics::Page;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::checks::{self, Checks, Health, Verdict};
use crate::process::Process;

mod call;
mod flap;
mod instance;

use call::Trouble;
use flap::Flap;
pub use instance::Own;

/// For one call, connecting included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between tries, at first and at most.
const AGAIN: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// Before a registration that a newer process has is tried for again, which does not end for our asking.
const REPLACED: Duration = Duration::from_secs(300);
/// It is said again after so long, whatever happens: somebody may have changed what we do not see.
const REFRESH: Duration = Duration::from_secs(600);
/// Before it is said to one that has forgotten us, at least and at most.
const FORGOTTEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// For the last word, and for one try at it.
const FAREWELL: Duration = Duration::from_secs(3);
const LAST_TRY: Duration = Duration::from_secs(1);

/// What is to be said of the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Its checks have not passed yet.
    Starting,
    /// It takes calls.
    Running,
    /// A check fails.
    Unhealthy,
    /// It finishes what it has.
    Stopping,
    /// It is no more.
    Gone,
}

impl From<Health> for Standing {
    fn from(health: Health) -> Self {
        match health {
            Health::Starting => Self::Starting,
            Health::Running => Self::Running,
            Health::Unhealthy => Self::Unhealthy,
        }
    }
}

/// How far the end of the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Leaving,
    Ending,
}

/// What the pages show.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    /// What the control plane has taken.
    state: Option<Standing>,
    at: Option<SystemTime>,
    /// Why the last try failed.
    error: Option<String>,
    tries: u64,
}

/// The handle on the registration, for the pages and the end; cheap to clone.
#[derive(Clone)]
pub struct Registrar {
    own: Arc<Own>,
    checks: Checks,
    told: Arc<Mutex<Told>>,
    phase: Arc<watch::Sender<Phase>>,
    /// Whether it has been tried.
    tried: Arc<watch::Sender<bool>>,
}

struct Task {
    registrar: Registrar,
    health: watch::Receiver<Health>,
    phase: watch::Receiver<Phase>,
    swapped: watch::Receiver<u64>,
    /// Whether the configuration has our inbound listeners: without a registration there is none.
    has_inbound: Box<dyn Fn() -> bool + Send + Sync>,
    /// Whether it has had them since we were last forgotten.
    known: bool,
    flap: Flap,
}

impl Registrar {
    /// Begins to register; call it inside the control runtime.
    pub fn start(
        own: Own,
        checks: Checks,
        control: ControlPlane,
        store: CredentialStore,
        process: Arc<Process>,
    ) -> (Self, JoinHandle<()>) {
        let registrar = Self {
            own: Arc::new(own),
            checks,
            told: Arc::default(),
            phase: Arc::new(watch::Sender::new(Phase::Serving)),
            tried: Arc::new(watch::Sender::new(false)),
        };
        let (own, mut phase) = (registrar.own.clone(), registrar.phase.subscribe());
        let tell = move |state| {
            let (control, own) = (control.clone(), own.clone());
            async move { call::tell(&control, &own, state).await }
        };
        let task = Task {
            health: registrar.checks.health(),
            phase: registrar.phase.subscribe(),
            swapped: process.swapped.subscribe(),
            has_inbound: Box::new(move || {
                let snapshot = process.snapshot.load();
                snapshot.listeners().any(|listener| listener.config.direction == Direction::Inbound)
            }),
            known: false,
            flap: Flap::default(),
            registrar: registrar.clone(),
        };
        let run = async move {
            tokio::select! {
                _ = store.ready() => {}
                // Nobody was told anything.
                _ = phase.wait_for(|phase| *phase == Phase::Ending) => return,
            }
            task.run(tell).await;
        };
        (registrar, tokio::spawn(run))
    }

    /// Which start of the process this is, for the stream that keeps the registration's lease.
    pub fn incarnation(&self) -> &str {
        self.own.incarnation()
    }

    /// Resolves when it has been tried once: whoever asks for configuration after that is asked about by its instance.
    pub fn tried(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut tried = self.tried.subscribe();
        async move {
            let _ = tried.wait_for(|tried| *tried).await;
        }
    }

    /// No new calls from now on.
    pub fn leave(&self) {
        self.phase.send_if_modified(|phase| {
            *phase < Phase::Leaving && {
                *phase = Phase::Leaving;
                true
            }
        });
    }

    /// Ends the registration; what cannot be told ends with its lease.
    pub async fn end(&self, task: JoinHandle<()>) {
        self.phase.send_replace(Phase::Ending);
        if timeout(FAREWELL, task).await.is_err() {
            let ttl = self.own.ttl();
            tracing::warn!("the registration could not be ended: it ends by itself after {ttl:?}");
        }
    }

    /// What is registered and what the checks say, and the application's own word.
    pub fn rows(&self) -> [Row; 2] {
        let registrar = self.clone();
        let page =
            Row::get("/registration", "what is registered of the workload, and its checks", move |_| {
                let told = registrar.told.lock().clone();
                AdminResponse::json(&json!({
                    "instance": registrar.own.id(),
                    "service": registrar.own.service(),
                    "health": *registrar.checks.health().borrow(),
                    "told": told,
                    "checks": registrar.checks.statuses(),
                }))
            });
        [page, checks::row(self.checks.clone())]
    }

    /// Metrics.
    pub fn write(&self, page: &mut Page) {
        let told = self.told.lock().clone();
        let there = told.state.is_some_and(|state| state != Standing::Gone) && told.error.is_none();
        page.gauge(
            "outrigger_registered",
            "1 while the control plane has what is registered of the workload.",
        )
        .sample((), u64::from(there));
        let mut passing = page.gauge("outrigger_check_passing", "1 while a check of the application passes.");
        let statuses = self.checks.statuses();
        for (name, status) in &statuses {
            let passes = status.verdict == Verdict::Passing;
            passing.sample([("check", name.as_str())], u64::from(passes));
        }
        let mut failures =
            page.counter("outrigger_check_failures_total", "Results that were failures, by check.");
        for (name, status) in &statuses {
            failures.sample([("check", name.as_str())], status.failures);
        }
    }

    /// Notes how a try went, and says in the log what is new.
    fn note(&self, state: Standing, result: Result<(), Trouble>) {
        let mut told = self.told.lock();
        told.tries += 1;
        let replaced = matches!(result, Err(Trouble::Replaced(_)));
        let error = result.err().map(|trouble| trouble.to_string());
        match &error {
            None => {
                if told.state != Some(state) || told.error.is_some() {
                    tracing::info!(instance = self.own.id(), ?state, "registered with the control plane");
                }
                (told.state, told.at) = (Some(state), Some(SystemTime::now()));
            }
            Some(error) if replaced && told.error.as_ref() != Some(error) => {
                tracing::error!(
                    instance = self.own.id(),
                    error,
                    "this sidecar is not registered: another has its node.id"
                );
            }
            Some(error) if told.error.as_ref() != Some(error) => {
                tracing::warn!(
                    instance = self.own.id(),
                    ?state,
                    error,
                    "the registration is not taken; it is tried again"
                );
            }
            Some(_) => {}
        }
        told.error = error;
        drop(told);
        self.tried.send_replace(true);
    }
}

impl Task {
    async fn run<F>(mut self, tell: impl Fn(Standing) -> F)
    where
        F: Future<Output = Result<(), Trouble>>,
    {
        let mut bound = AGAIN;
        loop {
            let state = self.wanted();
            // A farewell has room for several.
            let patience = if state == Standing::Gone { LAST_TRY } else { PATIENCE };
            let mut phase = self.phase.clone();
            let result = tokio::select! {
                result = timeout(patience, tell(state)) => {
                    result.unwrap_or_else(|_| Err(Trouble::Away(format!("no answer within {patience:?}"))))
                }
                // It does not hold any more. What has been sent of it arrives first: the next has a connection to make.
                _ = phase.changed() => {
                    bound = AGAIN;
                    continue;
                }
            };
            let pause = match &result {
                Ok(()) => None,
                Err(Trouble::Replaced(_)) => Some(REPLACED),
                Err(_) => Some(bound),
            };
            self.registrar.note(state, result);
            let Some(pause) = pause else {
                if state == Standing::Gone {
                    return;
                }
                self.flap.told(state, Instant::now());
                bound = AGAIN;
                self.news(state).await;
                continue;
            };
            bound = if state == Standing::Gone { AGAIN } else { (bound * 2).min(LONGEST) };
            tokio::select! {
                // With jitter, so that a fleet does not come back as one wave.
                () = sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
                _ = self.phase.changed() => bound = AGAIN,
            }
        }
    }

    fn wanted(&mut self) -> Standing {
        let health = *self.health.borrow_and_update();
        match *self.phase.borrow_and_update() {
            Phase::Serving => self.flap.damp(health.into(), Instant::now()),
            Phase::Leaving => Standing::Stopping,
            Phase::Ending => Standing::Gone,
        }
    }

    /// Until something is to be said.
    async fn news(&mut self, told: Standing) {
        self.known |= (self.has_inbound)();
        let refresh = sleep(REFRESH.mul_f64(0.9 + fastrand::f64() / 5.0));
        tokio::pin!(refresh);
        while self.wanted() == told {
            let held = self.flap.held(Instant::now());
            tokio::select! {
                _ = self.health.changed() => {}
                _ = self.phase.changed() => {}
                () = sleep_until(held.unwrap_or_else(Instant::now)), if held.is_some() => {}
                _ = self.swapped.changed() => {
                    let there = (self.has_inbound)();
                    if self.known && !there {
                        self.forgotten().await;
                        return;
                    }
                    self.known |= there;
                }
                () = &mut refresh => return,
            }
        }
    }

    /// Waits a little: a configuration without us may be on its way to one with us, and what has forgotten us has forgotten others.
    async fn forgotten(&mut self) {
        tracing::warn!("the control plane does not know the workload any more: it is registered again");
        self.known = false;
        let pause = FORGOTTEN.0 + (FORGOTTEN.1 - FORGOTTEN.0).mul_f64(fastrand::f64());
        tokio::select! {
            () = sleep(pause.min(self.registrar.own.ttl() / 2)) => {}
            _ = self.phase.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests;
