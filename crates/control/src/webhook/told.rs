//! What the injector warns of in the control plane's log: a Pod that is made by a controller has nobody who would hear it. Each workload is told
//! of once an hour, and when what there is to tell has changed.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use outrigger_telemetry::logging::Throttle;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::inject::owner;

/// Until a workload is told of again.
const AGAIN: Duration = Duration::from_secs(3600);
/// Workloads that are remembered. Whoever reaches the webhook can name others without end, and is throttled then.
const MOST: usize = 4096;

static WARNED: Throttle = Throttle::new();

/// Of whom was told what.
#[derive(Default)]
pub(super) struct Told(Mutex<HashMap<u64, Instant>>);

impl Told {
    pub(super) fn tell(&self, namespace: &str, pod: &serde_json::Value, warnings: &[String]) {
        if warnings.is_empty() {
            return;
        }
        let workload = owner(pod);
        if self.is_news((namespace, &workload, warnings))
            && let Some(suppressed) = WARNED.admit()
        {
            let workload = workload.chars().take(253).collect::<String>();
            tracing::warn!(namespace, workload, suppressed, warnings = %warnings.join("; "), "Pods get their sidecar, and their author should know");
        }
    }

    fn is_news(&self, what: impl Hash) -> bool {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        let (key, now) = (hasher.finish(), Instant::now());
        let mut all = self.0.lock();
        if all.get(&key).is_some_and(|at| now - *at < AGAIN) {
            return false;
        }
        if all.len() >= MOST {
            all.retain(|_, at| now - *at < AGAIN);
        }
        if all.len() < MOST {
            all.insert(key, now);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_workload_is_told_of_once_an_hour_and_when_there_is_something_else() {
        let told = Told::default();
        let is_news = |workload: &str, warnings: &[&str]| told.is_news(("shop", workload, warnings));
        assert!(is_news("web", &["a"]) && !is_news("web", &["a"]));
        assert!(is_news("web", &["b"]) && is_news("db", &["a"]));
        tokio::time::advance(AGAIN).await;
        assert!(is_news("web", &["a"]) && !is_news("web", &["a"]));
        for n in 0..MOST + 10 {
            is_news(&n.to_string(), &["a"]);
        }
        assert!(told.0.lock().len() <= MOST);
    }
}
