//! Whether the application is well, by the checks of the bootstrap file; what it comes to is registered.
//!
//! ```text
//! starting ──all pass──▶ running ◀──all pass again── unhealthy
//!     └───────────one fails──┴──────one fails──────────▶
//! ```
//!
//! One task per check on the control runtime. A check's verdict changes after so many results in a row (`threshold`); how the
//! application is asked is `app_health`'s and `script`'s, and the word of the application itself comes over the admin port.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use outrigger_telemetry::admin::{AdminRequest, AdminResponse, Row};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::bootstrap::register::{Check, Kind};

mod script;
mod threshold;

use script::Program;
use threshold::Threshold;
pub use threshold::Verdict;

/// Bytes of a reason that are kept.
const REASON: usize = 512;

/// What all checks come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// One has not passed yet, and none fails.
    Starting,
    /// All pass.
    Running,
    /// One fails.
    Unhealthy,
}

/// How a check is.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// What it says.
    pub verdict: Verdict,
    /// When that changed last.
    pub since: SystemTime,
    /// Why the last result was a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Results so far, and how many of them were failures.
    pub runs: u64,
    /// Failures of these.
    pub failures: u64,
}

struct Entry {
    status: Status,
    threshold: Threshold,
    /// Rung by the application's word; only a ttl has one.
    beat: Option<Arc<Notify>>,
}

/// All checks of the workload; cheap to clone.
#[derive(Clone)]
pub struct Checks {
    entries: Arc<Mutex<BTreeMap<String, Entry>>>,
    health: Arc<watch::Sender<Health>>,
}

impl Checks {
    /// Begins to check; call it inside the control runtime.
    pub fn start(checks: &BTreeMap<String, Check>) -> Self {
        let all = Self { entries: Arc::default(), health: Arc::new(watch::Sender::new(Health::Starting)) };
        for (name, check) in checks {
            // Read and checked with the file.
            let Ok(kind) = check.kind() else { continue };
            all.add(name, check, kind);
        }
        all.settle();
        all
    }

    fn add(&self, name: &str, check: &Check, kind: Kind) {
        let (healthy, unhealthy) = match kind {
            Kind::Ttl(_) => (1, 1),
            _ => (check.healthy.unwrap_or(1), check.unhealthy.unwrap_or(3)),
        };
        let beat = matches!(kind, Kind::Ttl(_)).then(Arc::<Notify>::default);
        let status = Status {
            verdict: Verdict::Unknown,
            since: SystemTime::now(),
            reason: None,
            runs: 0,
            failures: 0,
        };
        let threshold = Threshold::new(healthy, unhealthy);
        self.entries.lock().insert(name.to_owned(), Entry { status, threshold, beat: beat.clone() });
        let (all, name, check) = (self.clone(), name.to_owned(), check.clone());
        match (kind, beat) {
            (Kind::Probe(probe), _) => {
                let ask = move || {
                    let probe = probe.clone();
                    async move { probe.passes().await }
                };
                self.mind(&name, all.follow(name.clone(), check, ask));
            }
            (Kind::Script(script), _) => {
                let program = Arc::new(Program::new(script));
                let ask = move || {
                    let program = program.clone();
                    async move { program.run().await }
                };
                self.mind(&name, all.follow(name.clone(), check, ask));
            }
            (Kind::Ttl(ttl), beat) => {
                self.mind(&name, all.expect(name.clone(), ttl, beat.unwrap_or_default()))
            }
        }
    }

    /// Runs the task of a check. It has no end; where it has one all the same, its last verdict is not one for ever.
    fn mind(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        let (all, name, task) = (self.clone(), name.to_owned(), tokio::spawn(task));
        tokio::spawn(async move {
            if let Err(broken) = task.await {
                all.broken(&name, format!("the check itself is broken, restart the sidecar: {broken}"));
            }
        });
    }

    fn broken(&self, name: &str, reason: String) {
        tracing::error!(check = name, reason, "the application is not asked any more");
        if let Some(Entry { status, .. }) = self.entries.lock().get_mut(name) {
            (status.verdict, status.since) = (Verdict::Failing, SystemTime::now());
            status.reason = Some(shortened(reason));
        }
        self.settle();
    }

    /// Asks at every interval.
    async fn follow<F>(self, name: String, check: Check, ask: impl Fn() -> F)
    where
        F: Future<Output = Result<(), String>>,
    {
        sleep(check.initial_delay.unwrap_or_default()).await;
        let patience = check.timeout();
        loop {
            let next = Instant::now() + check.interval();
            let result = match timeout(patience, ask()).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer within {patience:?}")),
            };
            self.note(&name, result);
            sleep_until(next).await;
        }
    }

    /// Waits for the application's word; silence is a failure.
    async fn expect(self, name: String, ttl: Duration, beat: Arc<Notify>) {
        loop {
            if timeout(ttl, beat.notified()).await.is_err() {
                self.note(&name, Err(format!("the application has said nothing for {ttl:?}")));
            }
        }
    }

    fn note(&self, name: &str, result: Result<(), String>) {
        {
            let mut entries = self.entries.lock();
            let Some(Entry { status, threshold, .. }) = entries.get_mut(name) else { return };
            let verdict = threshold.note(result.is_ok());
            status.runs += 1;
            status.failures += u64::from(result.is_err());
            status.reason = result.err().map(shortened);
            if verdict != status.verdict {
                (status.verdict, status.since) = (verdict, SystemTime::now());
                match &status.reason {
                    Some(reason) => tracing::warn!(check = name, reason, "the application is not well"),
                    None => tracing::info!(check = name, "the check passes"),
                }
            }
        }
        self.settle();
    }

    fn settle(&self) {
        let entries = self.entries.lock();
        let any = |verdict| entries.values().any(|entry| entry.status.verdict == verdict);
        let health = match (any(Verdict::Failing), any(Verdict::Unknown)) {
            (true, _) => Health::Unhealthy,
            (false, true) => Health::Starting,
            (false, false) => Health::Running,
        };
        // Under the lock: of two tasks the later one has the last word.
        self.health.send_if_modified(|now| std::mem::replace(now, health) != health);
    }

    /// What they come to, as it changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// How each is.
    pub fn statuses(&self) -> BTreeMap<String, Status> {
        self.entries.lock().iter().map(|(name, entry)| (name.clone(), entry.status.clone())).collect()
    }

    /// The application's own word for a check of kind ttl.
    ///
    /// # Errors
    /// When there is no such check.
    pub fn says(&self, name: &str, word: Result<(), String>) -> Result<(), String> {
        let beat = match self.entries.lock().get(name) {
            Some(Entry { beat: Some(beat), .. }) => beat.clone(),
            Some(_) => return Err(format!("check \"{name}\" asks by itself; only a ttl takes a word")),
            None => return Err(format!("no check \"{name}\" in the bootstrap file (register.checks)")),
        };
        beat.notify_one();
        self.note(name, word);
        Ok(())
    }
}

/// `POST /checks/NAME/pass` and `/checks/NAME/fail`, for applications.
pub fn row(checks: Checks) -> Row {
    let help =
        "POST NAME/pass or NAME/fail: the application's word for a check of kind ttl; a body is the reason";
    Row::new("/checks/*", &["POST"], help, move |request| std::future::ready(answer(&checks, &request)))
}

fn answer(checks: &Checks, request: &AdminRequest) -> AdminResponse {
    let said = match request.tail.rsplit_once('/') {
        Some((name, "pass")) => checks.says(name, Ok(())),
        Some((name, "fail")) => {
            let reason = String::from_utf8_lossy(&request.body);
            let reason = if reason.is_empty() { "the application says so".into() } else { reason };
            checks.says(name, Err(reason.into_owned()))
        }
        _ => Err("try POST /checks/NAME/pass or /checks/NAME/fail".to_owned()),
    };
    match said {
        Ok(()) => AdminResponse::text("noted\n"),
        Err(why) => AdminResponse::status(StatusCode::NOT_FOUND, format!("{why}\n")),
    }
}

/// The beginning, at a character.
fn shortened(mut reason: String) -> String {
    let end = (0..=REASON.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
    reason.truncate(end.unwrap_or(0));
    reason
}

#[cfg(test)]
mod tests;
