//! Readiness: named conditions and probes, and a text that says what is missing.
//!
//! A condition is a flag that its owner sets. A probe asks, each time somebody wants to know: the proxy uses one to
//! ping its workers, because a process whose control thread answers while its workers hang is not ready.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;

use crate::drain::Drain;

type ProbeFuture = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

#[derive(Clone)]
struct Probe {
    deadline: Duration,
    ask: Arc<dyn Fn() -> ProbeFuture + Send + Sync>,
}

#[derive(Default)]
struct Inner {
    /// Name to the reason why not; `None` is ready.
    conditions: Mutex<BTreeMap<String, Option<String>>>,
    probes: Mutex<BTreeMap<String, Probe>>,
}

/// All that must hold before the process takes traffic; cheap to clone.
#[derive(Clone, Default)]
pub struct Readiness {
    inner: Arc<Inner>,
}

/// One named condition, set by its owner.
#[derive(Clone)]
pub struct Condition {
    inner: Arc<Inner>,
    name: String,
}

/// What is missing, by name, with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Conditions and probes that do not hold; empty means ready.
    pub missing: Vec<(String, String)>,
}

impl Readiness {
    /// Ready, as long as nothing is registered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition, not ready ("has not reported yet") until its owner says otherwise. The name is unique: a
    /// second registration is the same condition, begun anew.
    pub fn register(&self, name: impl Into<String>) -> Condition {
        let condition = Condition { inner: self.inner.clone(), name: name.into() };
        condition.set_not_ready("has not reported yet");
        condition
    }

    /// Adds a probe: `ask` is called for each report, and its future has `deadline` to answer.
    pub fn probe<F, Fut>(&self, name: impl Into<String>, deadline: Duration, ask: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        let ask: Arc<dyn Fn() -> ProbeFuture + Send + Sync> = Arc::new(move || Box::pin(ask()));
        self.inner.probes.lock().insert(name.into(), Probe { deadline, ask });
    }

    /// From the beginning of the drain on, the process is not ready.
    pub fn fail_when_draining(&self, drain: &Drain) {
        let drain = drain.clone();
        self.probe("drain", Duration::from_secs(1), move || {
            let draining = drain.is_draining();
            async move { if draining { Err("draining".to_owned()) } else { Ok(()) } }
        });
    }

    /// Asks everything, the probes all at once.
    pub async fn report(&self) -> Report {
        let probes: Vec<(String, Probe)> =
            self.inner.probes.lock().iter().map(|(name, probe)| (name.clone(), probe.clone())).collect();
        let asked = probes.into_iter().map(|(name, probe)| async move {
            match tokio::time::timeout(probe.deadline, (probe.ask)()).await {
                Ok(Ok(())) => None,
                Ok(Err(reason)) => Some((name, reason)),
                Err(_) => Some((name, format!("no answer within {:?}", probe.deadline))),
            }
        });
        let answers = join_all(asked).await;
        let conditions = self.inner.conditions.lock();
        let unset = conditions.iter().filter_map(|(name, reason)| Some((name.clone(), reason.clone()?)));
        Report { missing: unset.chain(answers.into_iter().flatten()).collect() }
    }
}

impl Condition {
    /// The condition holds.
    pub fn set_ready(&self) {
        self.set(None);
    }

    /// The condition does not hold, and why.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, reason: Option<String>) {
        self.inner.conditions.lock().insert(self.name.clone(), reason);
    }

    /// Takes the condition away, for something that need no longer exist.
    pub fn remove(self) {
        self.inner.conditions.lock().remove(&self.name);
    }
}

impl Report {
    /// Whether nothing is missing.
    pub fn is_ready(&self) -> bool {
        self.missing.is_empty()
    }

    /// `LIVE`, as Envoy says, or one line per missing thing.
    pub fn text(&self) -> String {
        if self.is_ready() {
            return "LIVE\n".to_owned();
        }
        let mut text = "NOT READY\n".to_owned();
        for (name, reason) in &self.missing {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}: {reason}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn text_lists_what_is_missing_and_why() {
        let readiness = Readiness::new();
        let workers = readiness.register("workers");
        let config = readiness.register("config");
        config.set_not_ready("no listener yet");
        let report = readiness.report().await;
        assert!(!report.is_ready());
        assert_eq!(report.text(), "NOT READY\nconfig: no listener yet\nworkers: has not reported yet\n");

        workers.set_ready();
        config.set_ready();
        assert_eq!(readiness.report().await.text(), "LIVE\n");
        workers.set_not_ready("one of 2 is gone");
        assert_eq!(readiness.report().await.missing, [("workers".to_owned(), "one of 2 is gone".to_owned())]);
        workers.remove();
        assert!(readiness.report().await.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn probe_that_does_not_answer_is_missing_after_its_deadline() {
        let readiness = Readiness::new();
        readiness.probe("worker 0", Duration::from_millis(500), || async { Ok(()) });
        readiness.probe("worker 1", Duration::from_millis(500), std::future::pending);
        readiness.probe("worker 2", Duration::from_secs(60), || async { Err("wedged".to_owned()) });
        let before = tokio::time::Instant::now();
        let report = readiness.report().await;
        assert_eq!(report.text(), "NOT READY\nworker 1: no answer within 500ms\nworker 2: wedged\n");
        assert!(before.elapsed() < Duration::from_secs(1), "probes run side by side");
    }

    #[tokio::test(start_paused = true)]
    async fn drain_ends_readiness() {
        let (readiness, drain) = (Readiness::new(), Drain::new());
        readiness.fail_when_draining(&drain);
        assert!(readiness.report().await.is_ready());
        drain.begin();
        assert_eq!(readiness.report().await.text(), "NOT READY\ndrain: draining\n");
    }
}
